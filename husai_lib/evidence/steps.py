"""Steps: a notebook at work, the record it leaves, and where that record was made."""

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
from husai_lib.evidence.cache import cache_folder, versions
from husai_lib.errors import EvidenceError, IntegrityError
from husai_lib.files import REPOSITORY, canonical_json, explained, read_json, sha256_file, sha256_text, write_bytes, write_json, write_text
from husai_lib.params.sections import check
from husai_lib.params.cycle import check_sections
from husai_lib.evidence.runs import Record, Run, utc_now
from husai_lib.evidence.rows import IMPORTED, TABLES, Row
from husai_lib.version import __version__


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
