"""Runs and records: what a cycle leaves behind, hashed as it is written, verified as it is read.

evidence/<cycle>/run_<UTC>/ holds:
- parameters.json: what the run was asked to do
- records/<step>.json: one typed record a step
- notebooks/ and figures/: what a person reads
- <published>.json: results, selection and gate files under their well-known names
- journal.json: which steps are done, with hashes, and where each attempt ran; grows during the run
- manifest.json: every file's hash; written last, so its absence means unfinished
"""

import datetime
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from husai_lib.errors import EvidenceError, IntegrityError
from husai_lib.evidence.rows.base import IMPORTED
from husai_lib.files import REPOSITORY, canonical_json, explained, read_json, sha256_file, sha256_text, write_json
from husai_lib.params.sections import Section, check

RUN_NAME = re.compile(r"run_\d{8}T\d{6}Z")
TRANSIENT = {"manifest.json", "progress.json"}
"""Files of a run that its manifest does not list."""


class Code(Section):
    """The code that made a record: `code.library_hash` and `code.git_commit`."""

    library_sha256: str
    git_commit: str | None


class Environment(Section):
    """Where a record was made: versions, code and device, without names of people or machines."""

    husai: str
    code: Code
    python: str
    packages: dict[str, str]
    device: str
    cpu: str


class RecordContent(Section):
    """A record as it lies in its file, closed to any other key."""

    step: str
    cycle: str
    parameters: dict[str, Any]
    """The sections of the cycle that the step was given."""
    inputs: dict[str, str]
    """SHA-256 of the records of this run that it read, by step."""
    earlier: dict[str, str]
    """SHA-256 of the records of earlier runs that it read, by `<cycle>/<run>/<step>`."""
    summary: dict[str, Any]
    tables: dict[str, list[dict[str, Any]]]
    published: dict[str, str]
    """SHA-256 of the other files that it wrote, by path."""
    environment: Environment
    finished_utc: str
    wall_seconds: float


@dataclass(frozen=True)
class Record:
    """One step's record, verified."""

    step: str
    data: dict[str, Any]
    """See `RecordContent`."""
    sha256: str

    @property
    def summary(self) -> dict[str, Any]:
        """Single values of the step, by name."""
        return dict(self.data["summary"])

    def _ipython_display_(self) -> None:
        """Show nothing where a cell ends with a record: a notebook shows its tables."""

    def table(self, name: str) -> list[Any]:
        """The rows of one table, as typed rows of `rows`; ParameterError for a column or value that cannot be."""
        from husai_lib.evidence.rows.tables import TABLES  # noqa: PLC0415 - takes numpy, which `verify` does without

        source = f"record {self.step}, table {name}"
        return [check(TABLES[name], row, source) for row in self.data["tables"][name]]


class Run:
    """One execution of a cycle: a folder of evidence."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """`<cycle>/<run>`, as commands take and print it."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def journal(self) -> dict[str, dict[str, Any]]:
        """Steps done so far, by name, with the hashes of what they wrote."""
        return dict(self._journal()["steps"])

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """The environment in which each attempt at the run began, the first one and every `--resume`."""
        return list(self._journal()["attempts"])

    def _journal(self) -> dict[str, Any]:
        path = self.path / "journal.json"
        return {"attempts": [], "steps": {}} | (read_sealed(path) if path.exists() else {})

    def _write_journal(self, **change: Any) -> None:
        write_sealed(self.path / "journal.json", self._journal() | change)

    def note_attempt(self, environment: dict[str, Any]) -> None:
        """Put the beginning of an attempt into the journal."""
        self._write_journal(attempts=[*self.attempts, environment])

    def note_step(self, step: str, entry: dict[str, Any]) -> None:
        """Put a step into the journal, in place of an older version: its `files` with hashes, its `key`."""
        self._write_journal(steps=self.journal | {step: entry})

    def drop_step(self, step: str) -> None:
        """Forget a step and delete what it wrote, so that nothing of an older version stays behind."""
        steps = self.journal
        for name in steps.pop(step, {"files": {}})["files"]:
            assert (self.path / name).resolve().is_relative_to(self.path.resolve()), name
            (self.path / name).unlink(missing_ok=True)
        self._write_journal(steps=steps)

    def record(self, step: str) -> Record:
        """The record of a step of this run; EvidenceError if there is none, IntegrityError if changed."""
        entry = self.journal.get(step)
        if entry is None:
            raise EvidenceError(f"{self.path} has no record of step {step!r}; run that step first")
        path, sha256 = self.path / "records" / f"{step}.json", entry["files"][f"records/{step}.json"]
        return Record(step, check(RecordContent, read_json(path, sha256), str(path)).model_dump(), sha256)

    def find_record(self, name: str) -> Record:
        """The record of a step of this run, or of an earlier run as `<cycle>/<run>/<step>`; raises as `record` does."""
        run, _, step = name.rpartition("/")
        return (earlier_run(self.path.parent.parent, run) if run else self).record(step)

    def read_run(self, name: str) -> dict[str, Record]:
        """Every record of the earlier run `<cycle>/<run>` or `imported/<name>`, by step."""
        earlier = earlier_run(self.path.parent.parent, name)
        return {step: earlier.record(step) for step in earlier.manifest()["steps"]}

    @property
    def is_complete(self) -> bool:
        """Whether the manifest was written."""
        return (self.path / "manifest.json").exists()

    def manifest(self) -> dict[str, Any]:
        """The manifest, checked against its own hash."""
        if not self.is_complete:
            raise EvidenceError(f"run {self.name} is unfinished: it has no manifest; finish it with --resume")
        return read_sealed(self.path / "manifest.json")

    def files(self) -> dict[str, str]:
        """SHA-256 of every file of the run that a manifest lists, hidden ones included, by path."""
        found = {path.relative_to(self.path).as_posix(): path for path in sorted(self.path.rglob("*"))}
        return {name: sha256_file(path) for name, path in found.items() if path.is_file() and name not in TRANSIENT}

    def write_manifest(self, **about: Any) -> None:
        """Hash every file of the run and declare it complete."""
        for leftover in [*self.path.rglob(".*")]:  # of a write that was killed, or of an editor
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)
        about |= {"run": self.name, "files": self.files(), "finished_utc": utc_now()}
        write_sealed(self.path / "manifest.json", about)


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file that carries the hash of its own content."""
    write_json(path, content | {"sha256": sha256_text(canonical_json(content))})


def read_sealed(path: Path) -> dict[str, Any]:
    """The content of a file that `write_sealed` wrote; IntegrityError if it is not what its hash says."""
    content: dict[str, Any] = read_json(path)
    if content.pop("sha256", None) != sha256_text(canonical_json(content)):
        raise IntegrityError(f"{path} was changed after it was written; restore it or run the cycle again")
    return content


def utc_now() -> str:
    """The time in ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def new_run(evidence: Path, cycle: str) -> Run:
    """A new, empty run folder named by the time; never one that exists."""
    while (path := evidence / cycle / f"run_{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}").exists():
        time.sleep(0.2)
    with explained(path):
        path.mkdir(parents=True)
    return Run(path)


def find_runs(evidence: Path) -> list[Run]:
    """All runs under `evidence`, oldest first."""
    found = (path for path in evidence.glob("*/run_*") if path.is_dir() and path.parent.name != IMPORTED)
    return [Run(path) for path in sorted(found, key=lambda path: (path.name, path.parent.name))]


def find_imports(evidence: Path) -> list[Run]:
    """All imports of earlier cycles' records under `evidence`, by name."""
    return [Run(path) for path in sorted(evidence.glob(f"{IMPORTED}/*")) if path.is_dir()]


def earlier_run(evidence: Path, name: str) -> Run:
    """The complete run `<cycle>/<run>` or `imported/<name>`, of `evidence`, else of the checkout."""
    found = [folder / name for folder in (evidence, REPOSITORY / "evidence") if (folder / name).is_dir()]
    if not found:
        remedy = "'husai ls' lists the runs, 'husai import FILE --as NAME' makes one of an earlier cycle's records"
        raise EvidenceError(f"no earlier run is called {name!r} in {evidence}; {remedy}")
    run = Run(found[0])
    run.manifest()  # raises where it is unfinished or was changed
    return run


def find_run(evidence: Path, name: str | None) -> Run:
    """The run called `<cycle>/<run>`, `<run>` or `<cycle>` (its newest); the newest of all without a name."""
    runs = [*find_imports(evidence), *find_runs(evidence)] if name else find_runs(evidence)
    if not runs:
        raise EvidenceError(f"{evidence} holds no runs; make one with: husai run params/smoke.yaml")
    if name is None:
        return runs[-1]
    names = name.rstrip("/"), Path(name).resolve()
    matching = [r for r in runs if {r.name, r.path.name, r.path.parent.name, r.path.resolve()} & {*names}]
    if not matching:
        raise EvidenceError(f"no run is called {name!r}; 'husai ls' lists those in {evidence}")
    return matching[-1]
