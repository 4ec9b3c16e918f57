"""Verify: whether evidence is complete and is what was written. Hashes and nothing else: no number is recomputed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from husai_lib.errors import HusaiError
from husai_lib.evidence.code import file_at, is_tracked
from husai_lib.evidence.rows.base import IMPORTED
from husai_lib.evidence.runs import RUN_NAME, Run, find_imports, find_runs
from husai_lib.files import REPOSITORY, sha256_file

PASSING = {".lock", "progress.json"}
"""Files that come and go beside and in a run; git ignores them."""
UNREADABLE = (
    ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, StopIteration, SyntaxError, TypeError,
    ValueError,
)  # fmt: skip
"""What files that do not fit together bring about: where all hashes are forged, anything can stand in them.

RuntimeError is what Python makes of StopIteration within a generator.
"""


def problems_of(run: Run) -> list[str]:
    """What is wrong with a run's files, in one sentence each; empty for a run whose every file is what was written."""
    try:
        return [*_problems(run)]
    except HusaiError as error:
        return [str(error)]
    except UNREADABLE as error:
        return [f"{run.name} cannot be verified ({type(error).__name__}: {error})"]


def problems_beside(evidence: Path) -> list[str]:
    """Files and folders of an evidence folder that belong to no run and no import."""
    runs = {run.path for run in (*find_runs(evidence), *find_imports(evidence))}
    cycles = {path for path in evidence.glob("*") if path.is_dir() and not path.is_symlink()}
    inside = [path for cycle in sorted(cycles) for path in sorted(cycle.glob("*")) if path not in runs]
    found = [*(path for path in sorted(evidence.glob("*")) if path not in cycles), *inside]
    strays = [f"{path} belongs to no run; remove it" for path in found if path.name not in PASSING]
    named = [path for path in sorted(runs) if path.parent.name != IMPORTED and not RUN_NAME.fullmatch(path.name)]
    return strays + [f"{path} is not named as a run is, run_<UTC>; give it its name back" for path in named]


def _problems(run: Run) -> Iterator[str]:
    links = [path for path in [run.path, *sorted(run.path.rglob("*"))] if path.is_symlink()]
    yield from (f"{path} is a link, not a file of the run; replace it by the file" for path in links)
    if not run.is_complete:  # a problem where git tracks it or the front page shows it
        front = REPOSITORY / "index.md"
        shown = run.path.is_relative_to(REPOSITORY) and front.is_file() and run.name in front.read_text("utf-8")
        if shown or is_tracked(run.path):
            yield f"{run.name} has no manifest, so it is unfinished, but it is committed or on the front page"
        return
    manifest = run.manifest()
    files = [*_files(run, manifest)]
    yield from files or _chain(run, manifest)


def _files(run: Run, manifest: dict[str, Any]) -> Iterator[str]:
    found = {name: sha256 for name, sha256 in run.files().items() if name not in PASSING}
    if manifest["run"] != run.name:
        yield f"{run.path} holds the manifest of {manifest['run']}"
    for name in sorted(found.keys() | manifest["files"].keys()):
        if name not in found:
            yield f"{run.path / name} is missing; restore it"
        elif name not in manifest["files"]:
            yield f"{run.path / name} is not listed in the manifest; remove it"
        elif found[name] != manifest["files"][name]:
            yield f"{run.path / name} was changed after it was written{_change(run.path / name)}; restore it"


def _chain(run: Run, manifest: dict[str, Any]) -> Iterator[str]:
    """What manifest, journal and records state of each other's hashes."""
    journal, roots = run.journal, (run.path.parent.parent, REPOSITORY / "evidence")
    if sorted(journal) != sorted(manifest["steps"]):
        yield f"{run.name}: the journal has the steps {sorted(journal)}, the manifest {sorted(manifest['steps'])}"
    written: dict[str, str] = {}
    for step, entry in journal.items():
        written |= entry["files"]
        data = run.record(step).data
        stated = {f"records/{of}.json": sha256 for of, sha256 in data["inputs"].items()} | data["published"]
        for name, sha256 in (stated | entry["files"]).items():
            if manifest["files"].get(name) != sha256:
                yield f"{run.name}: step {step} states another SHA-256 of {name} than the manifest"
        for name, sha256 in data["earlier"].items():
            folder, _, its_step = name.rpartition("/")
            places = [root / folder / "records" / f"{its_step}.json" for root in roots]
            if any(sha256_file(path) != sha256 for path in [path for path in places if path.is_file()][:1]):
                yield f"{run.name}: step {step} read another record {name} than the one that is there now"
    others = manifest["files"].keys() - written - {"journal.json", "parameters.json"}
    yield from (f"{run.path / name} was written by no step; remove it" for name in sorted(others))


def _change(path: Path) -> str:
    """The first value that differs from the committed file, for a JSON file that git tracks; else empty."""
    inside = path.resolve().is_relative_to(REPOSITORY)
    committed = file_at("HEAD", path.resolve().relative_to(REPOSITORY).as_posix()) if inside else None
    try:
        difference = _difference(json.loads(path.read_bytes()), json.loads(committed or ""))
    except (ValueError, RecursionError):
        return ""
    return f" ({difference})" if difference else ""


def _difference(now: Any, committed: Any, place: str = "") -> str:
    if type(now) is type(committed) and isinstance(now, dict | list):
        pairs = dict(enumerate(now)), dict(enumerate(committed))
        ours, theirs = pairs if isinstance(now, list) else (now, committed)
        keys = [key for key in {**theirs, **ours} if ours.get(key, ...) != theirs.get(key, ...)]
        return next((_difference(ours.get(k, "absent"), theirs.get(k, "absent"), f"{place}.{k}") for k in keys), "")
    return "" if now == committed else f"{place.removeprefix('.')} is {now!r}, and {committed!r} in the last commit"
