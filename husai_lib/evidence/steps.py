"""Steps: a notebook at work, the record it leaves, and where that record was made."""

import os
import platform
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from husai_lib.evidence.cache import cache_folder, versions
from husai_lib.evidence.code import git_commit, library_hash
from husai_lib.evidence.rows.base import Candidate, Row, shared_level
from husai_lib.evidence.runs import Record, Run, utc_now
from husai_lib.files import canonical_json, content_of, sha256_text, write_bytes, write_json
from husai_lib.params.conditions import Condition, SaeParams
from husai_lib.params.consistency import ConsistencyParams
from husai_lib.params.cycle import STEPS, check_sections
from husai_lib.version import __version__

Read = Callable[[str], Record]
"""Gives the record of a step of this run, or of an earlier run as `<cycle>/<run>/<step>`."""


@dataclass
class Step:
    """A notebook at work: it reads earlier records, computes, writes one record, and then shows what follows."""

    name: str
    run: Run
    params: Any
    """The sections of the cycle this step was given, as checked models."""
    parameters: dict[str, Any]
    """The same as JSON values, as they enter the record."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Hashes of the records that were read, as in `RecordContent`; likewise the next two."""
    earlier: dict[str, str] = field(default_factory=dict)
    published: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    reported: float = field(default_factory=time.time)
    """When progress was reported last."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds up to the last report of progress, by what was reported; by "" what lies between."""
    is_written: bool = False

    @property
    def record(self) -> Record:
        """The record that this step wrote, read back from its file."""
        return self.run.record(self.name)

    def read(self, step: str) -> Record:
        """A record of this run, or as `<run>/<step>` of an earlier one; its hash becomes part of this step's record."""
        record = self.run.find_record(step)
        (self.earlier if "/" in step else self.inputs)[step] = record.sha256
        return record

    def read_all(self) -> dict[str, Record]:
        """Every record of the other steps of this run, by step, as `read` gives one."""
        return {name: self.read(name) for name in self.run.journal if name != self.name}

    def read_run(self, run: str) -> dict[str, Record]:
        """Every record of the earlier run `<cycle>/<run>` or `imported/<name>`, by step, as `read` gives one."""
        return {step: self.read(f"{run}/{step}") for step in self.run.read_run(run)}

    def progress(self, done: int, total: int, what: str) -> None:
        """Report how far this step is, where its time went and its peak of memory so far, to whoever watches the run.

        The time since the last report belongs to `what`, unless this is the first report of it: `done` is then 0.
        """
        now = time.time()
        spent = what if done else ""
        self.seconds[spent] = self.seconds.get(spent, 0.0) + now - self.reported
        self.reported = now
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        state = {"step": self.name, "done": done, "total": total, "what": what}
        state |= {"seconds": self.seconds, "peak_bytes": peak}
        write_json(self.run.path / "progress.json", state)

    def publish(self, name: str, data: Any) -> None:
        """Write a file of the run, such as `release_policy.json`: text, bytes, or data as JSON.

        Once the record was written, it is noted in the journal only.
        """
        sha256 = write_bytes(self.run.path / name, content_of(data))
        if not self.is_written:
            self.published[name] = sha256
            return
        entry = self.run.journal[self.name]
        self.run.note_step(self.name, entry | {"files": entry["files"] | {name: sha256}})

    def save_figure(self, figure: Any, name: str) -> Any:
        """Keep a `ReportFigure` as `figures/<name>.png` and return it, so that the cell shows it."""
        self.publish(f"figures/{figure_name(self.name, name)}.png", figure.png())
        return figure

    def write(self, tables: dict[str, list[Row]] | None = None, device: str = "cpu", **summary: Any) -> Record:
        """Write the step's record: its tables and single values with all they came from; ValueError for NaN."""
        data = self.content(tables or {}, device, summary)
        path, key = f"records/{self.name}.json", step_key(self.name, self.parameters)
        sha256 = write_json(self.run.path / path, data)
        self.run.note_step(self.name, {"files": {path: sha256} | self.published, "key": key})
        self.is_written = True
        return Record(self.name, data, sha256)

    def content(self, tables: dict[str, list[Row]], device: str, summary: dict[str, Any]) -> dict[str, Any]:
        """The record as JSON values; see `runs.RecordContent`."""
        from husai_lib.evidence.rows.tables import TABLES  # noqa: PLC0415 - as in runs.py

        assert all(type(row) is TABLES[name] for name, rows in tables.items() for row in rows), "rows of another table"
        return {
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


def figure_name(step: str, name: str) -> str:
    """The name under which a step keeps a figure: those of a further sweep have its name before theirs."""
    return name if step in STEPS else f"{step}_{name}"


def selected_group(selected: Mapping[str, Any] | None, read: Read) -> Candidate:
    """The group that was selected, at the seeds that it was selected by.

    Confirmation and controls need the rows that it was trained on, so it must come from a run of the same model,
    activations and training texts, and not from an import.
    """
    if not selected:
        return Candidate()
    source, run = selected["source"], selected["source"].rpartition("/")[0]
    record = read(source)
    if not {"conditions", "consistency"} & record.data["parameters"].keys():
        return Candidate(why_none=f"the candidate is of {source}, an import without weights")
    theirs, ours = (read(f"{place}activations").data["parameters"] for place in (f"{run}/" if run else "", ""))
    differing = [what for what in ("model", "activations") if theirs[what] != ours[what]]
    differing += ["training texts"] if theirs["texts"]["training"] != ours["texts"]["training"] else []
    if differing:
        return Candidate(why_none=f"the candidate of {source} was trained on other {differing[0]} than this run's")
    members = [row for row in record.table("members") if row.condition == selected["condition"]]
    return Candidate(members, record.table("pairs"), "")


def condition_of(selected: Mapping[str, Any], read: Read) -> Condition:
    """The selected condition with all its hyperparameters; `read` gives the record that the selection names."""
    record = read(selected["source"])
    given = record.data["parameters"]
    if record.step == "consistency":
        trained = ConsistencyParams.model_validate(given["consistency"]).swept()
    else:
        trained = [Condition(**one) for one in given["conditions"]]
    return next(condition for condition in trained if condition.name == selected["condition"])


def baseline_sweep(selected: Mapping[str, Any], seeds: Sequence[int], read: Read) -> tuple[list[SaeParams], list[int]]:
    """What the matched baselines at fresh seeds are trained for: all conditions of the selected one's width and k.

    So they have the recipe of those of the selection, which are trained as long as the longest of these conditions.
    """
    chosen, (run, slash, _) = condition_of(selected, read), selected["source"].rpartition("/")
    given = check_sections(dict(read(f"{run}{slash}baselines").data["parameters"]), "the record of the baselines")
    conditions = [condition for own, _ in given.trained.values() for condition in own]
    return [one for one in conditions if (one.d_sae, one.k) == (chosen.d_sae, chosen.k)], list(seeds)


def why_unconfirmed(selected: Mapping[str, Any] | None, seeds: Sequence[int], read: Read) -> str:
    """Why no fresh seeds are trained; empty where they are."""
    group = selected_group(selected, read)
    taken = sorted({*seeds} & {member.seed for member in group.members})
    if not seeds:
        return "the parameters name no confirmation seeds"
    return group.why_none or (f"it was selected at seed {taken[0]}, which therefore confirms nothing" if taken else "")


def candidate_of(selected: Mapping[str, Any] | None, read: Read) -> Candidate:
    """The selected group as controls and gates read it: at its confirmation seeds, where it has any."""
    chosen, (level, _) = selected_group(selected, read), levels_of(read)
    confirmed, record = confirmed_members(read), read("confirmation")
    if chosen.members and confirmed:
        return Candidate(confirmed, record.table("pairs"), "", level)
    return replace(chosen, level=level)


def confirmed_members(read: Read) -> list[Any]:
    """The selected condition at fresh seeds, without its baselines; none where nothing was confirmed."""
    return [row for row in read("confirmation").table("members") if not row.is_baseline]


def levels_of(read: Read) -> tuple[float, float]:
    """The confidence of the gates' two-sided intervals: over seeds, and over data sets.

    Intervals over what a group was chosen by share the error rate with those of all groups that were compared. Fresh
    seeds were not chosen; the data sets are the same.
    """
    shared = shared_level(read("selection").summary["counts"]["compared_groups"])
    return (shared_level(1) if confirmed_members(read) else shared), shared


OPENER: ContextVar[Callable[[str, Any, dict[str, Any]], Step] | None] = ContextVar("OPENER", default=None)
"""Who opens steps in place of `open_step`: the audit, which executes notebooks on the records of a finished run."""


def open_step(name: str, run: str = "", **sections: Any) -> Step:
    """Open the step `name` of the run in folder `run`, by default of a scratch run; raises ParameterError."""
    params = check_sections(sections, f"step {name}")
    parameters = params.model_dump(mode="json")
    if opener := OPENER.get():
        return opener(name, params, parameters)
    folder = Path(run) if run else Path(os.environ.get("HUSAI_SCRATCH") or cache_folder() / "scratch" / "smoke" / "run")
    folder.mkdir(parents=True, exist_ok=True)
    return Step(name, Run(folder), params, parameters)


def results(records: Sequence[Record]) -> dict[str, Any]:
    """The tables of several records as `results.json` has them: no times, no versions, no paths."""
    return {
        record.step: {"parameters": record.data["parameters"], "summary": record.summary, **record.data["tables"]}
        for record in records
    }


def step_key(step: str, parameters: dict[str, Any], code: str | None = None) -> str:
    """What decides whether a finished step may be kept: its parameters and the library's code."""
    return sha256_text(canonical_json({"step": step, "parameters": parameters, "code": code or library_hash()}))


def environment(device: str) -> dict[str, Any]:
    """Where a record is made; see `runs.Environment`."""
    return {
        "husai": __version__,
        "code": {"library_sha256": library_hash(), "git_commit": git_commit()},
        "python": platform.python_version(),
        "packages": versions() | {"matplotlib": version("matplotlib")},
        "device": device,
        "cpu": platform.machine(),
    }
