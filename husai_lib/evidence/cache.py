"""The cache: results keyed by the content of everything that determines them.

A key is the hash of the inputs (hashes of weights and texts, every argument), of the source code of
the module that computes the result and of all modules of this library it imports, and of the versions
of the numerical libraries. So the same work is never done twice and a stale result is never read.
An entry is a folder that appears whole, with the hash of each of its files.
"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from husai_lib.errors import EvidenceError, IntegrityError
from husai_lib.files import REPOSITORY, canonical_json, explained, read_json, sha256_file, sha256_text, write_json

CACHED = {"banks": "banks", "members": "saes", "control_saes": "saes"}
"""Tables of records whose `key` column names cache entries, and the kind of these."""
NUMERICAL_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "transformers", "transformer-lens", "sae-lens",
                      "sae-probes")  # fmt: skip
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


def cache_folder() -> Path:
    """Where entries lie: `$HUSAI_CACHE`, else `.cache/husai` beside the library."""
    return Path(os.environ.get("HUSAI_CACHE") or REPOSITORY / ".cache" / "husai")


def key_of(module: str, inputs: dict[str, Any]) -> str:
    """The key of what `module` computes from `inputs` (JSON values)."""
    return sha256_text(canonical_json({"code": code_hash(module), "inputs": inputs, "versions": versions()}))


def cached(kind: str, module: str, inputs: dict[str, Any], make: Callable[[Path], None]) -> Entry:
    """The entry for `inputs`, verified; if there is none, `make(folder)` fills it first.

    A damaged entry (a truncated or changed file) is discarded and made again. Raises EvidenceError
    where the disk is full or read-only.
    """
    key = key_of(module, inputs)
    path = cache_folder() / kind / key
    try:
        return open_entry(kind, key)
    except EvidenceError:
        shutil.rmtree(path, ignore_errors=True)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as temporary:
            made = Path(temporary) / "entry"
            made.mkdir()
            make(made)
            files = {str(p.relative_to(made)): sha256_file(p) for p in sorted(made.rglob("*")) if p.is_file()}
            write_json(made / "entry.json", {"kind": kind, "module": module, "inputs": inputs, "files": files})
            try:
                made.rename(path)
            except OSError:
                if not path.exists():  # else another process made the same entry meanwhile
                    raise
    return open_entry(kind, key)


def is_cached(kind: str, module: str, inputs: dict[str, Any]) -> bool:
    """Whether there is a sound entry for `inputs`."""
    try:
        return bool(open_entry(kind, key_of(module, inputs)))
    except EvidenceError:
        return False


def open_entry(kind: str, key: str) -> Entry:
    """An existing entry, every file checked against its hash.

    Raises EvidenceError where there is none, IntegrityError where a file is not what its hash says.
    """
    path = cache_folder() / kind / key
    files = read_json(path / "entry.json")["files"]
    for name, sha256 in files.items():
        if not (path / name).exists() or sha256_file(path / name) != sha256:
            raise IntegrityError(f"{path / name} is damaged; delete {path} and run again")
    return Entry(path, key, files)


@cache
def versions() -> dict[str, str]:
    """Versions of the packages whose arithmetic decides the results."""
    return {name: importlib.metadata.version(name) for name in NUMERICAL_PACKAGES}


@cache
def code_hash(module: str) -> str:
    """Hash of the source of a module of this library and of all others it imports, transitively."""
    sources: dict[str, str] = {}
    pending = {module}
    while pending:
        name = pending.pop()
        source = source_of(name)
        if name not in sources and source is not None:
            sources[name] = source
            pending |= library_imports(source)
    assert sources, f"{module} is no module of this library"
    return sha256_text(canonical_json(sources))


def source_of(module: str) -> str | None:
    """The source text of a module or package of this library; None for any other name."""
    base = REPOSITORY / module.replace(".", "/")
    files = (base.with_suffix(".py"), base / "__init__.py")
    return next((path.read_text(encoding="utf-8") for path in files if path.exists()), None)


def library_imports(source: str) -> set[str]:
    """Dotted names of this library that a source text imports, wherever in it: modules and what is in them."""
    found: set[str] = set()
    with _PARSING:  # CPython 3.11 cannot build syntax trees in two threads at once
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "husai_lib"}
