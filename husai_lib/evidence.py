"""Runs, steps and records: what a cycle leaves behind, hashed as it is written, verified as it is read.

evidence/<cycle>/run_<UTC>/ holds:
- parameters.json: what the run was asked to do
- records/<step>.json: one typed record a step
- notebooks/ and figures/: what a person reads
- <published>.json: results, selection and gate files under their well-known names
- journal.json: which steps are done, with hashes; grows during the run
- manifest.json: every file's hash; written last, so its absence means unfinished
"""

from __future__ import annotations

import datetime
import io
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from husai_lib.cache import cache_folder, versions
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
    write_text,
)
from husai_lib.params import check, check_sections
from husai_lib.records import IMPORTED, TABLES, Row
from husai_lib.version import __version__

TRANSIENT = {"manifest.json", "progress.json"}
"""Files of a run that its manifest does not list."""


@dataclass(frozen=True)
class Record:
    """One step's record, verified."""

    step: str
    data: dict[str, Any]
    """The whole record as it lies in the file."""
    sha256: str

    @property
    def summary(self) -> dict[str, Any]:
        """Single values of the step, by name."""
        summary: dict[str, Any] = self.data["summary"]
        return summary

    def table(self, name: str) -> list[Any]:
        """The rows of one table, as typed rows of `records`."""
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
        path = self.path / "journal.json"
        steps: dict[str, dict[str, Any]] = _read_sealed(path)["steps"] if path.exists() else {}
        return steps

    def note_step(self, step: str, entry: dict[str, Any]) -> None:
        """Put a step into the journal, in place of an older version: its `files` with hashes, its `key`."""
        _write_sealed(self.path / "journal.json", {"steps": self.journal | {step: entry}})

    def drop_step(self, step: str) -> None:
        """Forget a step and delete what it wrote, so that nothing of an older version stays behind."""
        steps = self.journal
        for name in steps.pop(step, {"files": {}})["files"]:
            assert (self.path / name).resolve().is_relative_to(self.path.resolve()), name
            (self.path / name).unlink(missing_ok=True)
        _write_sealed(self.path / "journal.json", {"steps": steps})

    def record(self, step: str) -> Record:
        """The record of a step of this run; EvidenceError if there is none, IntegrityError if changed."""
        entry = self.journal.get(step)
        if entry is None:
            raise EvidenceError(f"{self.path} has no record of step {step!r}; run that step first")
        sha256 = entry["files"][f"records/{step}.json"]
        return Record(step, read_json(self.path / "records" / f"{step}.json", sha256), sha256)

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
        return _read_sealed(self.path / "manifest.json")

    def files(self) -> dict[str, str]:
        """SHA-256 of every file of the run that a manifest lists, by path."""
        found = (path for path in sorted(self.path.rglob("*")) if path.is_file() and path.name not in TRANSIENT)
        return {str(path.relative_to(self.path)): sha256_file(path) for path in found if path.name[0] != "."}

    def write_manifest(self, **about: Any) -> None:
        """Hash every file of the run and declare it complete."""
        content = about | {"run": self.name, "files": self.files(), "finished_utc": utc_now()}
        _write_sealed(self.path / "manifest.json", content)


def _write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file that carries the hash of its own content."""
    write_json(path, content | {"sha256": sha256_text(canonical_json(content))})


def _read_sealed(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = read_json(path)
    content = {key: value for key, value in data.items() if key != "sha256"}
    if sha256_text(canonical_json(content)) != data.get("sha256"):
        raise IntegrityError(f"{path} was changed after it was written; restore it or run the cycle again")
    return data


@dataclass
class Step:
    """A notebook at work: it reads earlier records, computes, and writes one record."""

    name: str
    run: Run
    params: Any
    """The sections of the cycle this step was given, as checked models."""
    parameters: dict[str, Any]
    """The same as JSON values, as they enter the record."""
    inputs: dict[str, str] = field(default_factory=dict)
    earlier: dict[str, str] = field(default_factory=dict)
    """Hashes of the records of earlier runs that were read, by `<cycle>/<run>/<step>`."""
    published: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.time)

    def read(self, step: str) -> Record:
        """A record, verified; its hash becomes part of this step's record.

        `step` is one of this run, or `<cycle>/<run>/<step>` or `imported/<name>/<record>` of an earlier one.
        """
        record = self.run.find_record(step)
        (self.earlier if "/" in step else self.inputs)[step] = record.sha256
        return record

    def read_run(self, run: str) -> dict[str, Record]:
        """Every record of the earlier run `<cycle>/<run>` or `imported/<name>`, by step, as `read` gives one."""
        return {step: self.read(f"{run}/{step}") for step in self.run.read_run(run)}

    def progress(self, done: int, total: int, what: str) -> None:
        """Tell whoever watches the run how far this step is."""
        state = {"step": self.name, "done": done, "total": total, "what": what}
        write_text(self.run.path / "progress.json", canonical_json(state))

    def publish(self, name: str, data: Any) -> None:
        """Write a file of the run under a well-known name, such as `release_policy.json`: a text, or data as JSON."""
        path = self.run.path / name
        self.published[name] = write_text(path, data) if isinstance(data, str) else write_json(path, data)

    def save_figure(self, figure: Any, name: str) -> Any:
        """Keep a matplotlib figure as `figures/<name>.png` and hand it back to be shown."""
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=150, metadata={"Software": None})
        path = f"figures/{name}.png"
        self.published[path] = write_bytes(self.run.path / path, image.getvalue())
        return figure

    def write(self, tables: dict[str, list[Row]] | None = None, device: str = "cpu", **summary: Any) -> Record:
        """Write the step's record: its tables and single values with everything they came from.

        The record carries parameters, hashes of the records read, package and code versions,
        device and wall time. Raises ValueError for NaN: a missing value is null, with a note.
        """
        tables = tables or {}
        assert all(type(row) is TABLES[name] for name, rows in tables.items() for row in rows), "rows of another table"
        data = {
            "step": self.name,
            "cycle": self.run.path.parent.name,
            "parameters": self.parameters,
            "inputs": self.inputs,
            "earlier": self.earlier,
            "summary": summary,
            "tables": {name: [row.model_dump() for row in rows] for name, rows in tables.items()},
            "published": self.published,
            "environment": environment(device),
            "finished_utc": utc_now(),
            "wall_seconds": round(time.time() - self.started, 3),
        }
        path, key = f"records/{self.name}.json", step_key(self.name, self.parameters)
        sha256 = write_json(self.run.path / path, data)
        self.run.note_step(self.name, {"files": {path: sha256} | self.published, "key": key})
        return Record(self.name, data, sha256)


def results(records: Sequence[Record]) -> dict[str, Any]:
    """The tables of several records as `results.json` has them: no times, no versions, no paths.

    The same parameters on the same machine give the same bytes, whatever interrupted the run.
    """
    return {
        record.step: {"parameters": record.data["parameters"], "summary": record.summary, **record.data["tables"]}
        for record in records
    }


def open_step(name: str, run: str = "", **sections: Any) -> Step:
    """Open the step `name` of the run in folder `run`, with the sections of the cycle it needs.

    With `run` empty the step belongs to a scratch run in the cache, so that a notebook can be read
    and run alone. Raises ParameterError for a wrong section.
    """
    params = check_sections(sections, f"step {name}")
    folder = Path(run) if run else Path(os.environ.get("HUSAI_SCRATCH") or cache_folder() / "scratch" / "smoke" / "run")
    folder.mkdir(parents=True, exist_ok=True)
    return Step(name, Run(folder), params, params.model_dump(mode="json"))


def step_key(step: str, parameters: dict[str, Any]) -> str:
    """What decides whether a finished step may be kept: its parameters and the library's code."""
    return sha256_text(canonical_json({"step": step, "parameters": parameters, "code": library_hash()}))


@cache
def library_hash() -> str:
    """Hash of the whole library's source, as a step may call any of it."""
    modules = sorted(p for p in (REPOSITORY / "husai_lib").rglob("*.py"))
    return sha256_text(canonical_json({str(p.relative_to(REPOSITORY)): sha256_file(p) for p in modules}))


def made_by_other_code(run: Run) -> bool:
    """Whether any record of a run was written by another state of the library than the present one."""
    records = [run.record(step).data for step in run.journal]
    return any(data["environment"]["code"]["library_sha256"] != library_hash() for data in records)


def environment(device: str) -> dict[str, Any]:
    """Where a record was made: versions, code, device; no names of people or machines."""
    return {
        "husai": __version__,
        "code": {"library_sha256": library_hash(), "git_commit": git_commit()},
        "python": platform.python_version(),
        "packages": versions() | {"matplotlib": version("matplotlib")},
        "device": device,
        "cpu": platform.machine(),
    }


@cache
def git_commit() -> str | None:
    """The checked-out commit, with `+changes` where tracked files differ from it; null outside a checkout."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


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
    return [Run(p) for p in sorted(evidence.glob("*/run_*"), key=lambda p: (p.name, p.parent.name)) if p.is_dir()]


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
