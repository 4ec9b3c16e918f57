"""The cache: results keyed by the content of everything that determines them.

A key is the hash of the inputs (hashes of weights and texts, every argument), of the source code of
the module that computes the result and of all modules of this library it imports, and of the versions
of the numerical libraries. So the same work is never done twice and a stale result is never read.
An entry is a folder that appears whole, with the hash of each of its files.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from husai_lib.errors import IntegrityError
from husai_lib.files import canonical_json, explain_os_error, read_json, sha256_file, sha256_text, write_json

CACHED = {"banks": "banks", "members": "saes"}
"""Tables of records whose `key` column names cache entries, and the kind of these."""
NUMERICAL_PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "transformers",
    "transformer-lens",
    "sae-lens",
    "sae-probes",
)


_PARSING = threading.Lock()


@dataclass(frozen=True)
class Entry:
    """A finished cache entry."""

    path: Path
    """Its folder."""
    key: str
    """Hash of everything that determines it."""
    files: dict[str, str]
    """SHA-256 of each file, by name."""
    made: bool
    """Whether it was made now, rather than found."""


def cache_folder() -> Path:
    """Where entries lie: `$HUSAI_CACHE`, else `.cache/husai` beside the library."""
    default = Path(__file__).resolve().parent.parent / ".cache" / "husai"
    return Path(os.environ.get("HUSAI_CACHE") or default)


def key_of(module: str, inputs: dict[str, Any]) -> str:
    """The key of what `module` computes from `inputs` (JSON values)."""
    return sha256_text(canonical_json({"code": code_hash(module), "inputs": inputs, "versions": versions()}))


def is_cached(kind: str, module: str, inputs: dict[str, Any]) -> bool:
    """Whether the entry exists; its files are verified only when it is opened."""
    return (cache_folder() / kind / key_of(module, inputs) / "entry.json").exists()


def cached(kind: str, module: str, inputs: dict[str, Any], make: Callable[[Path], None]) -> Entry:
    """The entry for `inputs`, verified; if there is none, `make(folder)` fills it first.

    A damaged entry (a truncated or changed file) is discarded and made again, with a warning's
    worth of time as the only cost. Raises EvidenceError where the disk is full or read-only.
    """
    key = key_of(module, inputs)
    path = cache_folder() / kind / key
    try:
        return open_entry(kind, key)
    except IntegrityError:
        shutil.rmtree(path, ignore_errors=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=".making-"))
    except OSError as error:
        raise explain_os_error(error, path) from error
    try:
        make(temporary)
        files = {str(p.relative_to(temporary)): sha256_file(p) for p in sorted(temporary.rglob("*")) if p.is_file()}
        write_json(temporary / "entry.json", {"kind": kind, "module": module, "inputs": inputs, "files": files})
        temporary.rename(path)
    except OSError as error:
        if not path.exists():  # else another process made the same entry meanwhile
            raise explain_os_error(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Entry(path, key, open_entry(kind, key).files, made=True)


def open_entry(kind: str, key: str) -> Entry:
    """An existing entry, every file checked against its hash; IntegrityError where that fails."""
    path = cache_folder() / kind / key
    if not (path / "entry.json").exists():
        raise IntegrityError(f"{path} is not a finished cache entry; run the step that makes it again")
    files = read_json(path / "entry.json")["files"]
    for name, sha256 in files.items():
        if not (path / name).exists() or sha256_file(path / name) != sha256:
            raise IntegrityError(f"{path / name} is damaged; delete {path} and run again")
    return Entry(path, key, files, made=False)


@cache
def versions() -> dict[str, str]:
    """Versions of the packages whose arithmetic decides the results."""
    return {name: importlib.metadata.version(name) for name in NUMERICAL_PACKAGES}


def code_hash(module: str) -> str:
    """Hash of the source of a module of this library and of all others it imports, transitively."""
    with _PARSING:  # CPython 3.11 cannot build syntax trees in two threads at once
        return _code_hash(module)


@cache
def _code_hash(module: str) -> str:
    sources: dict[str, str] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        spec = importlib.util.find_spec(name)
        if name in sources or spec is None or not spec.origin:
            continue
        sources[name] = Path(spec.origin).read_text(encoding="utf-8")
        pending += library_imports(sources[name])
    return sha256_text(canonical_json(sources))


def library_imports(source: str) -> list[str]:
    """The modules of this library that a source text imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "husai_lib":
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] == "husai_lib"]
    return [name for name in found if _is_module(name)]


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
