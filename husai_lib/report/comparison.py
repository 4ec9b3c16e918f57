"""Several runs side by side: what differs in their parameters, data, code, environment, metrics and verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from husai_lib.errors import DataError
from husai_lib.evidence.rows.base import IMPORTED
from husai_lib.evidence.runs import Run
from husai_lib.files import read_json

OF_MEMBERS = ("explained_variance", "l0", "dead_fraction", "cebench_delta", "cebench_calibrated_delta")
OF_GROUPS = ("pwmcc", "pwmcc_low", "pwmcc_within", "null_gaussian", "functional_agreement", "saebench_delta")


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same in all runs."""

    kind: str
    """parameters, data, environment, metrics or verdicts."""
    what: str
    values: tuple[Any, ...]
    """One a run, in their order; None where a run has none."""


def differences(runs: Sequence[Run]) -> list[Difference]:
    """What differs between complete runs, in the order of the phases.

    Raises EvidenceError for an unfinished run, DataError for an import.
    """
    for run in runs:
        run.manifest()
        if run.path.parent.name == IMPORTED:
            raise DataError(f"{run.name} is an import, which states too little to be compared; name runs")
    found = []
    for kind, read in KINDS.items():
        of_runs = [dict(read(run)) for run in runs]
        for what in dict.fromkeys(what for each in of_runs for what in each):
            values = tuple(each.get(what) for each in of_runs)
            of_absent = what.startswith("conditions.") and not all(what in each for each in of_runs)
            if not of_absent and any(value != values[0] for value in values):
                found.append(Difference(kind, what, values))
    return found


def _parameters(run: Run) -> Iterator[tuple[str, Any]]:
    """Every parameter; conditions by their names, lists as one value."""
    yield from _named(read_json(run.path / "parameters.json"))


def _named(data: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(data, list) and data and all(isinstance(one, dict) and "name" in one for one in data):
        yield place, ", ".join(one["name"] for one in data)
        data = {one["name"]: {key: value for key, value in one.items() if key != "name"} for one in data}
    if not isinstance(data, dict):
        yield place, ", ".join(map(str, data)) if isinstance(data, list) else data
        return
    for name, value in data.items():
        yield from _named(value, f"{place}.{name}".removeprefix("."))


def _data(run: Run) -> Iterator[tuple[str, Any]]:
    for bank in run.record("activations").table("banks"):
        yield f"{bank.bank} rows", bank.rows
        yield f"{bank.bank} SHA-256", bank.sha256[:12]


def _environment(run: Run) -> Iterator[tuple[str, Any]]:
    for attempt in run.attempts[-1:]:
        yield from _named(attempt)
    yield "devices", sorted({run.record(step).data["environment"]["device"] for step in run.journal})


def _metrics(run: Run) -> Iterator[tuple[str, Any]]:
    """Means over the seeds of each condition, of every step that trained SAEs."""
    for step in run.journal:
        tables = run.record(step).data["tables"]
        members = run.record(step).table("members") if "members" in tables else []
        for name in dict.fromkeys(member.condition for member in members):
            for column in OF_MEMBERS:
                of_seeds = [getattr(member, column) for member in members if member.condition == name]
                yield f"{step}: {name} {column}", None if None in of_seeds else fmean(of_seeds)
        for group in run.record(step).table("groups") if "groups" in tables else []:
            yield from ((f"{step}: {group.condition} {column}", getattr(group, column)) for column in OF_GROUPS)


def _verdicts(run: Run) -> Iterator[tuple[str, Any]]:
    chosen = run.record("selection").summary["selected"]
    yield "selected", chosen and chosen["condition"]
    for gate in run.record("gate").table("gates"):
        yield f"{gate.gate} verdict", gate.verdict
        yield f"{gate.gate} value", gate.value
        yield f"{gate.gate} bound", gate.bound
    yield "verdict", run.manifest()["verdict"]


KINDS: dict[str, Callable[[Run], Iterator[tuple[str, Any]]]] = {
    "parameters": _parameters, "data": _data, "environment": _environment, "metrics": _metrics, "verdicts": _verdicts,
}  # fmt: skip
"""What is compared, and how it is read from a run."""
