"""The decisions of a run from its records: selection, gates, and whether it improves on earlier runs.

Notebooks take them, `husai gate` and the audit take them again. Pure but for `read`, which gives a record by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from husai_lib.decisions.candidates import (
    BASELINE,
    Candidate,
    baseline_of,
    candidates_of,
    check_measured_here,
    measured_on,
)
from husai_lib.decisions.criteria import Standing, compare, standing_of_import, standing_of_run
from husai_lib.decisions.gates import Policy, evaluate_members
from husai_lib.decisions.selection import Selection, select
from husai_lib.evidence.rows import IMPORTED, CriterionRow, GateRow, MemberRow
from husai_lib.evidence.runs import Record
from husai_lib.params.rules import GateParams, SelectionParams

Read = Callable[[str], Record]
"""The record of a step of this run, or of an earlier run as `<cycle>/<run>/<step>`."""
ReadRun = Callable[[str], Mapping[str, Record]]
"""All records of an earlier run, by step."""


def candidates_for(rules: SelectionParams, read: Read) -> list[Candidate]:
    """The candidates of all sources; raises DataError for one that was not measured on what this run measures on.

    The rules 2026-02 did not ask that.
    """
    found: list[Candidate] = []
    for source in rules.sources:
        own = candidates_of(source, read)
        if own and "/" in source and rules.rules == "current":
            check_measured_here(source, own[0].comparability, measured_on(read("activations"), read("baselines")))
        found += own
    return found


def selection_of(read: Read) -> Selection:
    """The selection by the parameters in the record of its step."""
    rules = SelectionParams.model_validate(read("selection").data["parameters"]["selection"])
    return select(candidates_for(rules, read), rules)


def source_of(chosen: Mapping[str, Any] | None) -> str:
    """The record that a selected candidate is of; that of the frontier where nothing was selected."""
    return str(chosen["source"]) if chosen else "frontier"


def selected_group(chosen: Mapping[str, Any] | None, read: Read) -> tuple[list[MemberRow], list[MemberRow]]:
    """The members of the selected group, and the baselines of its run; no members without a selection.

    A candidate of an imported cycle has none either: its rows are no measurements of ours.
    """
    source = source_of(chosen)
    if source.startswith(f"{IMPORTED}/"):
        return [], read("baselines").table("members")
    group = [row for row in read(source).table("members") if chosen and row.condition == chosen["condition"]]
    return group, read(_beside(source, "baselines")).table("members")


def _beside(source: str, step: str) -> str:
    """Another step of the run that a source is of."""
    run = source.rpartition("/")[0]
    return f"{run}/{step}" if run else step


def policy_of(read: Read) -> Policy:
    """The gates by the parameters in the record of their step; raises IntegrityError for controls of other weights."""
    chosen = read("selection").summary["selected"]
    thresholds = GateParams.model_validate(read("gate").data["parameters"]["gates"])
    group, baselines = selected_group(chosen, read)
    return evaluate_members(group, baselines, read("stress").table("controls"), thresholds, source_of(chosen))


def against(earlier: Sequence[str], policy: Policy, read: Read, read_run: ReadRun) -> list[CriterionRow]:
    """Both decision criteria against each earlier run."""
    here = _standing("this cycle", policy.gates, policy.basis, read)
    return [row for name in earlier for row in compare(here, earlier_standing(name, read_run))]


def _standing(name: str, gates: Sequence[GateRow], basis: Literal["bound", "value"], read: Read) -> Standing:
    chosen = read("selection").summary["selected"]
    group, baselines = selected_group(chosen, read)
    source = "frontier" if source_of(chosen).startswith(f"{IMPORTED}/") else source_of(chosen)
    measured = measured_on(read(_beside(source, "activations")), read(_beside(source, "baselines")))
    return standing_of_run(name, group, gates, measured | {BASELINE: baseline_of(group, baselines)}, basis)


def earlier_standing(name: str, read_run: ReadRun) -> Standing:
    """What an earlier run's candidate achieved; raises DataError for an import of several selections or policies."""
    records = read_run(name)

    def read(step: str) -> Record:
        run, _, its_step = step.rpartition("/")
        return (read_run(run) if run else records)[its_step]

    if not name.startswith(f"{IMPORTED}/"):
        basis = read("gate").data["parameters"]["gates"]["basis"]
        return _standing(name, read("gate").table("gates"), basis, read)
    tables: dict[str, list[Any]] = {"earlier_groups": [], "earlier_members": [], "earlier_gates": [], "caveats": []}
    for record in records.values():
        kind = record.summary.get("kind")
        for table in tables.keys() & record.data["tables"].keys():
            if table != "earlier_gates" or kind == "gates":  # those of stress tests and sweeps decided nothing
                tables[table] += record.table(table)
    groups, members, gates, caveats = tables.values()
    return standing_of_import(name, groups, members, gates, caveats)
