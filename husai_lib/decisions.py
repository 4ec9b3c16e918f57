"""The decisions of a run from its records: selection, gates, and whether it improves on earlier runs.

Notebooks take them, `husai gate` and the audit take them again. Pure but for `read`, which gives a record by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from husai_lib.candidates import candidates_of, measured_on
from husai_lib.criteria import Standing, compare, standing_of_import, standing_of_run
from husai_lib.evidence import Record
from husai_lib.gates import Policy, evaluate_members
from husai_lib.params import GateParams, SelectionParams
from husai_lib.records import CriterionRow, GateRow, MemberRow
from husai_lib.selection import Selection, select

Read = Callable[[str], Record]
"""The record of a step of this run, or of an earlier run as `<cycle>/<run>/<step>`."""


def selection_of(read: Read) -> Selection:
    """The selection by the parameters in the record of its step."""
    rules = SelectionParams.model_validate(read("selection").data["parameters"]["selection"])
    return select([member for source in rules.sources for member in candidates_of(source, read)], rules)


def selected_group(chosen: Mapping[str, Any] | None, read: Read) -> tuple[list[MemberRow], list[MemberRow]]:
    """The members of the selected group, and the baselines of its run; no members without a selection.

    A candidate of an imported cycle has none either: its rows are no measurements of ours.
    """
    source = chosen["source"] if chosen else "frontier"
    if source.startswith("imported/"):
        return [], read("baselines").table("members")
    run = source.rpartition("/")[0]
    baselines = read(f"{run}/baselines" if run else "baselines").table("members")
    group = [row for row in read(source).table("members") if chosen and row.condition == chosen["condition"]]
    return group, baselines


def policy_of(read: Read) -> Policy:
    """The gates by the parameters in the record of their step; raises IntegrityError for controls of other weights."""
    chosen = read("selection").summary["selected"]
    thresholds = GateParams.model_validate(read("gate").data["parameters"]["gates"])
    return evaluate_members(*selected_group(chosen, read), read("stress").table("controls"), thresholds)


def against(
    earlier: Sequence[str], gates: Sequence[GateRow], read: Read, read_run: Callable[[str], Any]
) -> list[CriterionRow]:
    """Both decision criteria against each earlier run; `read_run` gives all records of one, by step."""
    here = _standing("this cycle", read, gates)
    return [row for name in earlier for row in compare(here, earlier_standing(name, read_run(name)))]


def _standing(name: str, read: Read, gates: Sequence[GateRow]) -> Standing:
    group, _ = selected_group(read("selection").summary["selected"], read)
    return standing_of_run(name, group, gates, measured_on(read("activations"), read("baselines"), group))


def earlier_standing(name: str, records: Mapping[str, Record]) -> Standing:
    """What an earlier run's candidate achieved; raises DataError for an import of several selections or policies."""
    if not name.startswith("imported/"):
        return _standing(name, records.__getitem__, records["gate"].table("gates"))
    tables: dict[str, list[Any]] = {"earlier_groups": [], "earlier_members": [], "earlier_gates": []}
    for record in records.values():
        kind = record.summary.get("kind")
        for table in tables.keys() & record.data["tables"].keys():
            if table != "earlier_gates" or kind == "gates":  # those of stress tests and sweeps decided nothing
                tables[table] += record.table(table)
    return standing_of_import(name, tables["earlier_groups"], tables["earlier_members"], tables["earlier_gates"])
