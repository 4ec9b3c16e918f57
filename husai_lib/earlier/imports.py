"""Records of earlier cycles imported as evidence: the files as given, what was read of them, and what is wrong with it.

`evidence/imported/<name>/` holds `originals/`, `records/` (one a file, and a last one, `caveats`), the journal and the
manifest.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

from husai_lib.earlier.caveats import Earlier, caveats
from husai_lib.earlier.records import read_earlier
from husai_lib.errors import DataError, ParameterError
from husai_lib.evidence.rows import Row
from husai_lib.evidence.runs import Record, Run
from husai_lib.evidence.steps import Step
from husai_lib.files import explained, write_bytes

__all__ = ["Earlier", "audit_import", "caveats", "import_earlier", "read_earlier"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
CAVEATS = "caveats"
"""The last record of an import."""
Check = tuple[str, Any, Any]
"""What is checked, what the run states, what it must be."""


@dataclass(frozen=True)
class File:
    """One file to import."""

    source: str
    """Its path within the folder that was given, or its name."""
    content: bytes
    read: Earlier

    @property
    def sha256(self) -> str:
        """Hash of its bytes, in hex."""
        return sha256(self.content).hexdigest()


@dataclass
class Found:
    """What the given files and folders hold."""

    files: list[File] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    """`source` and `reason` of every file of a folder that was left out."""


def import_earlier(paths: Sequence[Path], name: str, evidence: Path) -> Run:
    """Read files, and all `*.json` in folders, into the run `imported/<name>`; a failed import leaves nothing.

    Raises ParameterError for a name that cannot be used, DataError for a file that cannot be read and where nothing
    can, EvidenceError where the disk is full or read-only.
    """
    target = evidence / "imported" / name
    if not NAME.fullmatch(name):
        raise ParameterError(
            f"{name!r} is no name of an import; use letters, digits, '_', '.' and '-', such as cycle_3"
        )
    with explained(target):
        if target.exists():
            raise ParameterError(f"{target} exists; name the import otherwise, or delete that folder first")
    found = _find(paths)
    with explained(target):
        evidence.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=evidence, prefix=".import.") as folder:
            run = Run(Path(folder) / "imported" / name)  # records and manifest take the run's name from its path
            _write(found, run)
            target.parent.mkdir(exist_ok=True)
            run.path.rename(target)
    return Run(target)


def _find(paths: Sequence[Path]) -> Found:
    found = Found()
    for source, path, alone in _sources(paths):
        try:
            _take(path, source, found)
        except DataError as error:
            if alone:
                raise
            found.skipped.append({"source": source, "reason": str(error)})
    if not found.files:
        why = found.skipped[0]["reason"] if found.skipped else "no *.json lies there; name a file or another folder"
        raise DataError(f"nothing to import in {', '.join(map(str, paths)) or 'no files'}: {why}")
    return found


def _sources(paths: Sequence[Path]) -> Iterator[tuple[str, Path, bool]]:
    """What records call a file, where it is, and whether it was named itself."""
    for path in paths:
        if path.is_dir():
            inside = (file for file in sorted(path.rglob("*.json")) if file.is_file())
            yield from ((_text(file.relative_to(path)), file, False) for file in inside)
        else:
            yield _text(path.name), path, True


def _text(path: Path | str) -> str:
    """A path as a record can hold it: names of files need not be UTF-8."""
    return str(path).encode(errors="replace").decode()


def _take(path: Path, source: str, found: Found) -> None:
    """Read one file; of the same bytes given again only that is kept."""
    try:
        content = path.read_bytes()
    except OSError as error:  # the sentence goes into a record: no path of this machine
        raise DataError(f"{source} cannot be read ({error.strerror}); name a file or folder that can") from None
    same = next((file.source for file in found.files if file.content == content), None)
    if same is None:
        found.files.append(File(source, content, _read(content, source)))
    else:
        found.skipped.append({"source": source, "reason": f"{source} has the same bytes as {same}"})


def _read(content: bytes, source: str) -> Earlier:
    try:
        data = json.loads(content)
        json.dumps(data, indent=1, ensure_ascii=False).encode()  # what no record can hold: half a surrogate pair
    except (ValueError, RecursionError):
        raise DataError(f"{source} is empty, cut off or no JSON; name the file as it was written") from None
    return read_earlier(data, source)


def _write(found: Found, run: Run) -> None:
    named = dict(zip(_record_names([file.source for file in found.files]), found.files, strict=True))
    for name, file in named.items():
        step = Step(name, run, params=None, parameters={})
        path = _original(name)
        step.published[path] = write_bytes(run.path / path, file.content)
        step.write(file.read.tables, **_summary(file))
    read = {name: file.read for name, file in named.items()}
    last = Step(CAVEATS, run, params=None, parameters={})
    last.write({"caveats": [*caveats(read)]}, skipped=found.skipped)
    kinds = Counter(file.read.kind for file in found.files)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    about = f"Records of earlier cycles: {counts}; {len(found.skipped)} files skipped."
    run.write_manifest(cycle="imported", summary=about, steps=[*named, CAVEATS], verdict="imported", pass_all=False)


def _original(record: str) -> str:
    return f"originals/{record}.json"


def _summary(file: File) -> dict[str, Any]:
    own = {"kind": file.read.kind, "run_id": file.read.run_id, "source": file.source}
    return own | {"sha256": file.sha256, "bytes": len(file.content)} | file.read.summary


def _record_names(sources: Sequence[str]) -> list[str]:
    """An identifier for each path, in the same order: unique, and short enough for a file name."""
    taken = {CAVEATS}
    names = []
    for source in sources:
        stem = re.sub(r"[^a-z0-9]+", "_", source.lower().removesuffix(".json")).strip("_")[-100:]
        stem = stem if stem[:1].isalpha() else f"record_{stem}".rstrip("_")
        names.append(next(name for n in count(1) if (name := stem if n == 1 else f"{stem}_{n}") not in taken))
        taken.add(names[-1])
    return names


def audit_import(run: Run) -> Iterator[Check]:
    """What an import states and what it must be: every file's hash, and all that is read again from the originals."""
    manifest = run.manifest()
    files = dict.fromkeys(manifest["files"], "missing") | run.files()
    for name, found in files.items():
        yield f"SHA-256 of {name}", found, manifest["files"].get(name, "absent")
    if files != manifest["files"]:
        return  # all other checks read these files
    yield "manifest: run", manifest["run"], run.name
    yield "steps of the manifest", sorted(manifest["steps"]), sorted(run.journal)
    again: dict[str, Earlier] = {}
    for step in manifest["steps"]:
        record = run.record(step)
        if step == CAVEATS:
            yield from _compared(record, {"caveats": [*caveats(again)]}, {})
            continue
        if _original(step) not in files:
            yield f"original of record {step}", "missing", "present"
            continue
        content, source = (run.path / _original(step)).read_bytes(), record.summary["source"]
        again[step] = _read(content, source)
        yield from _compared(record, again[step].tables, _summary(File(source, content, again[step])))


def _compared(record: Record, tables: Mapping[str, Sequence[Row]], summary: dict[str, Any]) -> Iterator[Check]:
    for key, value in summary.items():
        yield f"{key} of record {record.step}", record.summary.get(key), value
    yield f"tables of record {record.step}", sorted(record.data["tables"]), sorted(tables)
    for table, rows in tables.items():
        stated = record.data["tables"].get(table, [])
        yield f"number of {table} in record {record.step}", len(stated), len(rows)
        for n, (own, must) in enumerate(zip(stated, rows, strict=False)):
            for column, value in must:
                yield f"{column} of row {n} of {record.step}/{table}", own.get(column), value
