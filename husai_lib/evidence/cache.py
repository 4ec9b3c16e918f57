"""The cache: results keyed by the content of everything that determines them.

A key is the hash of the inputs (hashes of weights and texts, every argument), of the code that computes the result,
and of the versions of the numerical libraries. An entry is a folder that appears as a whole, with its files' hashes.
"""

import ast
import hashlib
import importlib.metadata
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from husai_lib.errors import EvidenceError, IntegrityError
from husai_lib.files import (
    REPOSITORY,
    canonical_json,
    explained,
    read_json,
    sha256_file,
    sha256_text,
    write_bytes,
    write_json,
)

CACHED = {"banks": "banks", "members": "saes", "control_saes": "saes"}
"""Tables of records whose `key` column names cache entries, and the kind of these entries."""
NUMERICAL_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "transformers", "transformer-lens", "sae-lens",
                      "sae-probes", "numba")  # fmt: skip
COMPUTING = tuple(f"husai_lib.{room}" for room in ("activations", "saes", "measures", "randomness", "intervals"))
"""Rooms and modules whose code determines results. The others only describe, store or judge them."""
SHARDS = "shards.json"
"""The file of a divided bank that names its shards."""
_PARSING = threading.Lock()


@dataclass(frozen=True)
class Entry:
    """A finished cache entry."""

    path: Path
    key: str
    """Hash of everything that determines it."""
    files: dict[str, str]
    """SHA-256 of each file, by name."""

    @property
    def kind(self) -> str:
        """Banks, saes, probes or others."""
        return self.path.parent.name

    def __reduce__(self) -> tuple[Any, ...]:
        """An entry goes to another process as its key and hashes; there it is the entry of that process's cache."""
        _note(self)
        return same_entry, (self.kind, self.key, self.files)


_NOTED: ContextVar[list[Entry] | None] = ContextVar("_NOTED", default=None)
_LOOKING: ContextVar[bool] = ContextVar("_LOOKING", default=False)


def cache_folder() -> Path:
    """The folder of all entries: `$HUSAI_CACHE`, or `.cache/husai` beside the library."""
    return Path(os.environ.get("HUSAI_CACHE") or REPOSITORY / ".cache" / "husai")


def shards_of(path: Path) -> list[str]:
    """The keys of the entries that the bank in this folder is divided into; none for any other entry."""
    return read_json(path / SHARDS) if (path / SHARDS).exists() else []


def is_there(kind: str, key: str) -> bool:
    """Whether the cache has an entry and, of a divided bank, every shard; no hash is checked."""
    path = cache_folder() / kind / key
    try:
        return (path / "entry.json").exists() and all(is_there(kind, shard) for shard in shards_of(path))
    except EvidenceError:
        return False


def further_disks() -> list[Path]:
    """The folders of `$HUSAI_DISKS`, such as `/disk2/husai:/disk3/husai`, where banks may lie too."""
    return [Path(name) for name in os.environ.get("HUSAI_DISKS", "").split(os.pathsep) if name]


def key_of(module: str, inputs: dict[str, Any]) -> str:
    """The key of what `module` computes from `inputs` (JSON values)."""
    return sha256_text(canonical_json({"code": code_hash(module), "inputs": inputs, "versions": versions()}))


def cached(kind: str, module: str, inputs: dict[str, Any], make: Callable[[Path], None]) -> Entry:
    """The verified entry for `inputs`; if there is none, or a damaged one, `make(folder)` fills it first.

    Raises EvidenceError if the disk is full or read-only.
    """
    key = key_of(module, inputs)
    path = cache_folder() / kind / key
    try:
        return open_entry(kind, key)
    except EvidenceError:
        _stop_looking(key)
        discard(path)
    with _whole(path) as made:
        make(made)
        files = {str(p.relative_to(made)): sha256_file(p) for p in sorted(made.rglob("*")) if p.is_file()}
        write_json(made / "entry.json", {"kind": kind, "module": module, "inputs": inputs, "files": files})
    return open_entry(kind, key)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A folder to be filled, which becomes `path` at once when the block ends, or what `path` is a link to."""
    place = _place(path)
    with explained(place), tempfile.TemporaryDirectory(dir=place.parent, prefix=".making-") as temporary:
        made = Path(temporary) / "entry"
        made.mkdir()
        yield made
        try:
            made.rename(place)
            if place != path:
                path.symlink_to(place.absolute())
        except OSError:
            if not path.exists():  # otherwise another process has made the same entry meanwhile
                raise
            if place != path:
                shutil.rmtree(place, ignore_errors=True)


def _place(path: Path) -> Path:
    """Where an entry is made: at its path or, if it is a bank, on the disk that has most space."""
    folders = [path.parent, *(further_disks() if path.parent.name == "banks" else ())]
    for folder in folders:
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
    roomiest = max(folders, key=lambda folder: shutil.disk_usage(folder).free)
    return path if roomiest == path.parent else roomiest / f"{path.name}-{secrets.token_hex(4)}"


def discard(path: Path) -> None:
    """Remove an entry, wherever it lies."""
    shutil.rmtree(path.resolve(), ignore_errors=True)
    if path.is_symlink():
        path.unlink()


def is_cached(kind: str, module: str, inputs: dict[str, Any]) -> bool:
    """Whether there is an intact entry for `inputs`."""
    try:
        return bool(open_entry(kind, key_of(module, inputs)))
    except EvidenceError:
        _stop_looking(module)
        return False


def open_entry(kind: str, key: str) -> Entry:
    """An existing entry, every file checked against its hash; EvidenceError without one, IntegrityError if damaged."""
    path = cache_folder() / kind / key
    files = read_json(path / "entry.json")["files"]
    for name, sha256 in files.items():
        if not (path / name).exists() or sha256_file(path / name) != sha256:
            raise IntegrityError(f"{path / name} is damaged; delete {path} and run again")
    entry = Entry(path, key, files)
    _note(entry)
    return entry


# --- entries that go to another process --------------------------------------------------------------


@contextmanager
def noted_entries() -> Iterator[list[Entry]]:
    """Every entry that is opened, made or pickled in the block by this thread."""
    entries: list[Entry] = []
    before = _NOTED.set(entries)
    try:
        yield entries
    finally:
        _NOTED.reset(before)


def _note(entry: Entry) -> None:
    if (noted := _NOTED.get()) is not None and entry not in noted:
        noted.append(entry)


class NotCached(Exception):  # noqa: N818 - a finding, not an error
    """What `looked_up` looked for is not in the cache."""


def looked_up(function: Callable[[Any], Any], task: Any) -> Any:
    """What `function`, which asks the cache before it computes, makes of `task`; NotCached if it would compute."""
    before = _LOOKING.set(True)
    try:
        return function(task)
    finally:
        _LOOKING.reset(before)


def _stop_looking(what: str) -> None:
    if _LOOKING.get():
        raise NotCached(what)


def same_entry(kind: str, key: str, files: Mapping[str, str]) -> Entry:
    """The entry of this process's cache that has these hashes, checked once; raises as `open_entry` does."""
    return _checked(cache_folder(), kind, key, tuple(sorted(files.items())))


@cache
def _checked(folder: Path, kind: str, key: str, files: tuple[tuple[str, str], ...]) -> Entry:
    entry = open_entry(kind, key)
    if entry.files != dict(files):
        raise IntegrityError(f"{folder / kind / key} differs from the entry that was sent; delete it and run again")
    return entry


def contents(entry: Entry) -> dict[str, bytes]:
    """All files of an entry by name, to be received elsewhere."""
    return {name: (entry.path / name).read_bytes() for name in [*entry.files, "entry.json"]}


def receive(kind: str, key: str, files: Mapping[str, str], sent: Mapping[str, bytes]) -> None:
    """Put an entry into this process's cache, unless it is there; IntegrityError if a file does not match its hash."""
    path = cache_folder() / kind / key
    try:
        same_entry(kind, key, files)
    except EvidenceError:
        discard(path)
        for name, sha256 in files.items():
            if hashlib.sha256(sent[name]).hexdigest() != sha256:
                raise IntegrityError(f"{kind}/{key}/{name} was damaged on its way; run again") from None
        with _whole(path) as made:
            for name in [*files, "entry.json"]:
                write_bytes(made / name, sent[name])


@cache
def versions() -> dict[str, str]:
    """Versions of the packages whose arithmetic determines results."""
    return {name: importlib.metadata.version(name) for name in NUMERICAL_PACKAGES}


@cache
def code_hash(module: str) -> str:
    """Hash of the code of a module of this library and of the computing modules that it imports, transitively."""
    trees: dict[str, str] = {}
    pending = {module}
    while pending:
        name = pending.pop()
        source = source_of(name)
        if name not in trees and source is not None:
            trees[name] = tree_hash(source)
            pending |= {imported for imported in library_imports(source) if imported.startswith(COMPUTING)}
    assert trees, f"{module} is not a module of this library"
    return sha256_text(canonical_json(trees))


def source_of(module: str) -> str | None:
    """The source text of a module or package of this library; None for any other name."""
    base = REPOSITORY / module.replace(".", "/")
    files = (base.with_suffix(".py"), base / "__init__.py")
    return next((path.read_text(encoding="utf-8") for path in files if path.exists()), None)


def tree_hash(source: str) -> str:
    """Hash of a module's syntax tree: comments, docstrings and layout do not count."""
    return sha256_text(ast.dump(_tree(source)))


def library_imports(source: str) -> set[str]:
    """Dotted names that a source text imports from this library, wherever in it: modules and names in them."""
    found: set[str] = set()
    for node in ast.walk(_tree(source)):
        if isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "husai_lib"}


@cache
def _tree(source: str) -> ast.Module:
    """The syntax tree of a source text without constants that are statements: docstrings and comments on fields."""
    with _PARSING:  # CPython 3.11 cannot build syntax trees in two threads at once
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            is_constant = [isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) for s in node.body]
            node.body = [s for s, constant in zip(node.body, is_constant, strict=True) if not constant]
    return tree
