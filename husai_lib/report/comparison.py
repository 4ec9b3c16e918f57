"""Several runs side by side: what differs in their parameters, data, code, environment, metrics and verdicts."""

from collections.abc import Iterator, Sequence
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
    of_runs = []
    for run in runs:
        run.manifest()
        if run.path.parent.name == IMPORTED:
            raise DataError(f"{run.name} is an import, which states too little to be compared; name runs")
        of_runs.append({(kind, what): value for kind, what, value in _values(run)})
    found = []
    for key in sorted(dict.fromkeys(key for each in of_runs for key in each), key=lambda key: KINDS.index(key[0])):
        values = tuple(each.get(key) for each in of_runs)
        of_absent = key[1].startswith("conditions.") and not all(key in each for each in of_runs)
        if not of_absent and any(value != values[0] for value in values):
            found.append(Difference(*key, values))
    return found


KINDS = ("parameters", "data", "environment", "metrics", "verdicts")


def _values(run: Run) -> Iterator[tuple[str, str, Any]]:
    """Kind, name and value of everything that is compared; metrics are means over the seeds of each condition."""
    for what, value in _named(read_json(run.path / "parameters.json")):
        yield "parameters", what, value
    for bank in run.record("activations").table("banks"):
        yield "data", f"{bank.bank} rows", bank.rows
        yield "data", f"{bank.bank} SHA-256", bank.sha256[:12]
    for what, value in _named(run.attempts[-1]) if run.attempts else ():
        yield "environment", what, value
    yield "environment", "devices", sorted({run.record(step).data["environment"]["device"] for step in run.journal})
    for step in run.journal:
        record = run.record(step)
        members, groups = (record.table(t) if t in record.data["tables"] else [] for t in ("members", "groups"))
        for name in dict.fromkeys(member.condition for member in members):
            for column in OF_MEMBERS:
                of_seeds = [getattr(member, column) for member in members if member.condition == name]
                yield "metrics", f"{step}: {name} {column}", None if None in of_seeds else fmean(of_seeds)
        for group in groups:
            for column in OF_GROUPS:
                yield "metrics", f"{step}: {group.condition} {column}", getattr(group, column)
    chosen = run.record("selection").summary["selected"]
    yield "verdicts", "selected", chosen and chosen["condition"]
    for gate in run.record("gate").table("gates"):
        for column in ("verdict", "value", "bound"):
            yield "verdicts", f"{gate.gate} {column}", getattr(gate, column)
    yield "verdicts", "verdict", run.manifest()["verdict"]


def _named(data: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every parameter with its place; conditions by their names, lists as one value."""
    if isinstance(data, list) and data and all(isinstance(one, dict) and "name" in one for one in data):
        yield place, ", ".join(one["name"] for one in data)
        data = {one["name"]: {key: value for key, value in one.items() if key != "name"} for one in data}
    if not isinstance(data, dict):
        yield place, ", ".join(map(str, data)) if isinstance(data, list) else data
        return
    for name, value in data.items():
        yield from _named(value, f"{place}.{name}".removeprefix("."))
