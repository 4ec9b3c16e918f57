"""Records of earlier cycles as evidence: `originals/`, `records/` (one a file, and `caveats`), journal and manifest."""

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from husai_lib.earlier.caveats import caveats
from husai_lib.earlier.records import read_earlier
from husai_lib.errors import DataError, ParameterError
from husai_lib.evidence.rows.base import IMPORTED
from husai_lib.evidence.runs import Record, Run
from husai_lib.evidence.steps import Step
from husai_lib.files import explained, write_bytes
from husai_lib.params.cycle import STEPS

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
CAVEATS, ORIGINAL = "caveats", "originals/{}.json"
Check = tuple[str, Any, Any]
"""What is checked, what the run states, what it must be."""
Files = dict[str, tuple[str, bytes]]
"""Of each file, by the name of its record: its path within the folder that was given, or its name; and its bytes."""


def import_earlier(paths: Sequence[Path], name: str, evidence: Path) -> Run:
    """Read files, and all `*.json` in folders, into the run `imported/<name>`; a failed import leaves nothing.

    A file of a folder that cannot be read is skipped and named in the record `caveats`. Raises ParameterError for a
    name, DataError for a file that cannot be read, EvidenceError where the disk is full.
    """
    target = evidence / IMPORTED / name
    if not NAME.fullmatch(name):
        raise ParameterError(f"{name!r} cannot name an import; use letters, digits, '_', '.' and '-', such as cycle_3")
    with explained(target):
        if target.exists():
            raise ParameterError(f"{target} exists; give the import another name, or delete that folder first")
        files, skipped = _collect(paths)
        evidence.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=evidence, prefix=".import.") as folder:
            run = Run(Path(folder) / IMPORTED / name)  # records and manifest take the run's name from its path
            _write(run, files, skipped)
            target.parent.mkdir(exist_ok=True)
            run.path.rename(target)
    return Run(target)


def _collect(paths: Sequence[Path]) -> tuple[Files, list[dict[str, str]]]:
    """The files to import, and `source` and `reason` of those that are left out."""
    files: Files = {}
    skipped = []
    for path in paths:
        folder = path if path.is_dir() else path.parent
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            source = str(file.relative_to(folder)).encode(errors="replace").decode()  # file names need not be UTF-8
            try:
                content = _content(file, source, files)
                files[_record_name(source, {CAVEATS, *STEPS, *files})] = source, content
            except DataError as error:
                if not path.is_dir():
                    raise
                skipped.append({"source": source, "reason": str(error)})
    if not files:
        why = skipped[0]["reason"] if skipped else "there is no *.json; name a file or another folder"
        raise DataError(f"nothing to import in {', '.join(map(str, paths)) or 'no files'}: {why}")
    return files, skipped


def _content(path: Path, source: str, known: Files) -> bytes:
    """The bytes of a file that can be read as a record; DataError for another, and for the bytes of a known one."""
    try:
        content = path.read_bytes()
    except OSError as error:  # the message goes into a record, so it names no path of this machine
        raise DataError(f"{source} cannot be read ({error.strerror}); name a file or folder that can") from None
    for other, its_content in known.values():
        if its_content == content:
            raise DataError(f"{source} has the same bytes as {other}; name one of the two")
    read_earlier(content, source)
    return content


def _record_name(source: str, taken: set[str]) -> str:
    stem = re.sub(r"[^a-z0-9]+", "_", source.lower().removesuffix(".json")).strip("_")[-100:]
    stem = stem if stem[:1].isalpha() else f"record_{stem}".rstrip("_")
    return next(name for n in count(1) if (name := stem if n == 1 else f"{stem}_{n}") not in taken)


def _write(run: Run, files: Files, skipped: list[dict[str, str]]) -> None:
    records: dict[str, Record] = {}
    for name, (source, content) in files.items():
        step = Step(name, run, params=None, parameters={})
        original = ORIGINAL.format(name)
        step.published[original] = write_bytes(run.path / original, content)
        tables, summary = read_earlier(content, source)
        records[name] = step.write(tables, **summary)
    Step(CAVEATS, run, params=None, parameters={}).write({"caveats": [*caveats(records)]}, skipped=skipped)
    kinds = Counter(record.summary["kind"] for record in records.values())
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    about = f"Records of earlier cycles: {counts}; {len(skipped)} files skipped."
    run.write_manifest(cycle=IMPORTED, summary=about, steps=[*files, CAVEATS], verdict="imported", pass_all=False)


def audit_import(run: Run) -> Iterator[Check]:
    """What the records of an import state, and what its originals give when they are read again."""
    records = {step: run.record(step) for step in run.journal}
    last = records.pop(CAVEATS)
    for name, record in records.items():
        original = (run.path / ORIGINAL.format(name)).read_bytes()
        yield from _compared(record, *read_earlier(original, record.summary["source"]))
    yield from _compared(last, {"caveats": caveats(records)}, {})


def _compared(record: Record, tables: dict[str, list[Any]], summary: dict[str, Any]) -> Iterator[Check]:
    for key, value in summary.items():
        yield f"{key} of record {record.step}", record.summary.get(key), value
    for table in record.data["tables"] | tables:
        stated, again = record.data["tables"].get(table, []), [row.model_dump() for row in tables.get(table, [])]
        yield f"number of {table} in record {record.step}", len(stated), len(again)
        for n, (own, must) in enumerate(zip(stated, again, strict=False)):
            for column in must | own:
                yield f"{column} of row {n} of {record.step}/{table}", own.get(column), must.get(column)
