"""What is checked before a cycle starts: that the machine, the model and the notebooks can carry it."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from husai_lib.cache import cache_folder
from husai_lib.errors import EvidenceError, ParameterError, StepError
from husai_lib.files import canonical_json, explain_os_error, sha256_text
from husai_lib.params import CycleParams, local_path

CACHE_BYTES = 2 * 10**9
EVIDENCE_BYTES = 200 * 10**6
LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")

# Value types of a GGUF header by number, as `struct` reads them; 8 is a string, 9 an array.
GGUF_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
GGUF_STRING, GGUF_ARRAY = 8, 9
GGUF_LONGEST = 2**24  # bytes of a string; more means that the file is damaged


def check_layer(params: CycleParams, source: str) -> None:
    """Raise ParameterError where the model, as far as its files tell without torch, has no such layer."""
    layers = layer_count(params.model.name, source)
    if layers is not None and params.activations.layer >= layers:
        raise ParameterError(
            f"{source}: activations.hook_name = {params.activations.hook_name!r}, but {params.model.name} has "
            f"{layers} layers; the last is blocks.{layers - 1}"
        )


def layer_count(name: str, source: str) -> int | None:
    """The number of layers of a model on this machine; None for a hub name.

    Raises ParameterError for a file that is no GGUF model and a folder that holds no Hugging Face model.
    """
    path = local_path(name.removeprefix("random:"))
    if path is None:
        return None
    try:
        layers = _gguf_layers(path) if path.is_file() else _folder_layers(path)
    except (OSError, ValueError, struct.error):
        layers = None
    if layers is None:
        kind = "a complete GGUF file" if path.is_file() else "a folder with a Hugging Face config.json"
        raise ParameterError(f"{source}: model.name = {name!r} is not {kind}; name another model")
    return layers


def _folder_layers(path: Path) -> int | None:
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    known = [config[key] for key in LAYER_KEYS if isinstance(config, dict) and isinstance(config.get(key), int)]
    return known[0] if known else None


def _gguf_layers(path: Path) -> int | None:
    """`block_count` of a GGUF header, read up to there (the reader of package gguf takes seconds)."""
    with path.open("rb") as file:
        magic, _, _, n_keys = _unpack(file, "4sIQQ")
        for _ in range(n_keys if magic == b"GGUF" else 0):
            key = _gguf_value(file, GGUF_STRING)
            value = _gguf_value(file, _unpack(file, "I")[0])
            if key.endswith(b".block_count"):
                return int(value)
    return None


def _gguf_value(file: BinaryIO, kind: int) -> Any:
    if kind == GGUF_STRING:
        length = _unpack(file, "Q")[0]
        if length > GGUF_LONGEST:
            raise ValueError(f"a string of {length} bytes")
        return file.read(length)
    if kind == GGUF_ARRAY:
        inner, length = _unpack(file, "IQ")
        return [_gguf_value(file, inner) for _ in range(length)]
    if kind not in GGUF_SCALARS:
        raise ValueError(f"value type {kind}")
    return _unpack(file, GGUF_SCALARS[kind])[0]


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{layout}", file.read(struct.calcsize(f"<{layout}")))


def check_space(evidence: Path) -> None:
    """Raise EvidenceError where evidence cannot be written or a disk is nearly full."""
    for folder, needed, remedy in (
        (evidence, EVIDENCE_BYTES, "name another folder with --evidence"),
        (cache_folder(), CACHE_BYTES, "name another folder in HUSAI_CACHE"),
    ):
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise EvidenceError(f"{existing} is not a folder; {remedy}")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise EvidenceError(f"{folder} cannot be written (read-only); {remedy}")
        free = shutil.disk_usage(existing).free
        if free < needed:
            raise EvidenceError(
                f"{folder} has {free / 1e9:.2f} GB free and a cycle needs {needed / 1e9:.1f} GB; free some or {remedy}"
            )


def check_notebook(path: Path, names: Iterable[str]) -> None:
    """Raise StepError where the notebook's `parameters` cell does not define every one of `names`.

    papermill would only warn, and the notebook would run with its defaults.
    """
    if not path.exists():
        raise StepError(f"{path} does not exist; restore the notebook")
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
        statements = ast.parse("\n".join(sources)).body
    except (KeyError, TypeError, ValueError, SyntaxError):
        raise StepError(f"{path} is not a notebook whose parameters cell can be read; restore it") from None
    targets = [t for s in statements if isinstance(s, ast.Assign) for t in s.targets]
    targets += [s.target for s in statements if isinstance(s, ast.AnnAssign)]
    defined = {target.id for target in targets if isinstance(target, ast.Name)}
    for name in names:
        if name not in defined:
            raise StepError(f"{path}: its cell tagged 'parameters' defines no {name!r}; add it")


def notebook_code(path: Path) -> str:
    """Hash of a notebook's code cells, which decides whether an execution of it is still current."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return sha256_text(canonical_json(["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]))


@contextmanager
def only_run_of(cycle: str, evidence: Path) -> Iterator[None]:
    """Hold the cycle's lock, which the system takes back when the process ends, however it ends."""
    path = evidence / cycle / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise explain_os_error(error, path) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EvidenceError(f"cycle {cycle!r} is being run by another process; wait until it ends") from None
        yield
