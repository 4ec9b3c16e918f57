"""The decisions of a run from its records: selection, gates, and whether it improves on earlier runs.

Notebooks make them; `husai gate` and the audit reproduce them. Pure but for `read`, which gives a record by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from husai_lib.decisions.candidates import (
    BASELINE,
    Candidate,
    Read,
    baseline_of,
    beside,
    candidates_of,
    check_measured_here,
    measured_on,
)
from husai_lib.decisions.criteria import Standing, compare, standing_of_import, standing_of_run
from husai_lib.decisions.gates import Policy, evaluate_members, external_results
from husai_lib.decisions.selection import Selection, select
from husai_lib.evidence.rows import IMPORTED, CriterionRow, GateRow, MemberRow
from husai_lib.evidence.runs import Record
from husai_lib.params.rules import GateParams, SelectionParams

ReadRun = Callable[[str], Mapping[str, Record]]
"""All records of an earlier run, by step."""


def candidates_for(rules: SelectionParams, read: Read) -> list[Candidate]:
    """The candidates of all sources.

    Raises DataError for a source that was measured on other things than this run, except under the rules 2026-02.
    """
    found: list[Candidate] = []
    for source in rules.sources:
        own = candidates_of(source, read)
        if own and "/" in source and rules.rules == "current":
            check_measured_here(source, own[0].comparability, measured_on("frontier", read))
        found += own
    return found


def selection_of(read: Read) -> Selection:
    """The selection by the parameters in the record of its step."""
    rules = SelectionParams.model_validate(read("selection").data["parameters"]["selection"])
    return select(candidates_for(rules, read), rules)


def source_of(chosen: Mapping[str, Any] | None) -> str:
    """The record of a selected candidate; that of the frontier where nothing was selected."""
    return str(chosen["source"]) if chosen else "frontier"


def _is_imported(name: str) -> bool:
    return name.startswith(f"{IMPORTED}/")


def selected_group(chosen: Mapping[str, Any] | None, read: Read) -> tuple[list[MemberRow], list[MemberRow]]:
    """The members of the selected group, and the baselines of its run.

    There are no members without a selection, nor of an imported cycle: its rows were not measured here.
    """
    source = source_of(chosen)
    if _is_imported(source):
        return [], read("baselines").table("members")
    group = [row for row in read(source).table("members") if chosen and row.condition == chosen["condition"]]
    return group, read(beside(source, "baselines")).table("members")


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
    source, (group, baselines) = source_of(chosen), selected_group(chosen, read)
    external = external_results(group, baselines, source)
    measured = measured_on("frontier" if _is_imported(source) else source, read)
    return standing_of_run(name, external, gates, measured | {BASELINE: baseline_of(group, baselines)}, basis)


def earlier_standing(name: str, read_run: ReadRun) -> Standing:
    """What an earlier run's candidate achieved; raises DataError for an import of several selections or policies."""
    records = read_run(name)

    def read(step: str) -> Record:
        run, _, its_step = step.rpartition("/")
        return (read_run(run) if run else records)[its_step]

    if not _is_imported(name):
        basis = read("gate").data["parameters"]["gates"]["basis"]
        return _standing(name, read("gate").table("gates"), basis, read)

    def rows(table: str, kind: str = "") -> list[Any]:
        holding = [record for record in records.values() if table in record.data["tables"]]
        return [row for record in holding if kind in ("", record.summary.get("kind")) for row in record.table(table)]

    gates = rows("earlier_gates", "gates")  # those of stress tests and sweeps decided nothing
    return standing_of_import(name, rows("earlier_groups"), rows("earlier_members"), gates, rows("caveats"))
