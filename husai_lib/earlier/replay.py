"""Decisions of 2026-02 taken again from their imported records: by the rules of then, and by today's.

Pure: records in, rows out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from husai_lib.decisions.candidates import Candidate, candidates_from_earlier, told
from husai_lib.decisions.selection import Selection, select
from husai_lib.errors import DataError
from husai_lib.evidence.rows import EarlierGroupRow, ReplayRow, RuleChangeRow
from husai_lib.evidence.runs import Record
from husai_lib.params.rules import SelectionParams

INPUTS = {"frontier_results": "frontier", "scaling_results": "scaling", "assignment_results": "assignment_v3"}
"""Which kind of record each list of paths in a selection's settings names."""
COUNTS = {
    "total_candidates": "members", "eligible_seed_candidates": "eligible_members",
    "eligible_candidates": "eligible_groups", "pareto_count": "pareto",
}  # fmt: skip
"""What the selections of then called our counts."""
TODAY: tuple[tuple[str, dict[str, bool]], ...] = (
    ("only what was measured on the same, t over the seeds instead of 1.96", {}),
    ("and L0 within 10 % of k", {"require_matched_l0": True}),
    ("and a matched CE-Bench baseline", {"require_matched_l0": True, "require_matched_baseline": True}),
)
"""Today's rules, one after another."""


def replays(run: str, records: Mapping[str, Record]) -> list[ReplayRow]:
    """Each selection among the records of the imported `run` taken again by its own rules, number by number."""
    return [_replay(run, name, records) for name in _selections(records)]


def rule_changes(run: str, records: Mapping[str, Record]) -> list[RuleChangeRow]:
    """Each selection of the imported `run` by the rules of then and by today's, one rule after another."""
    rows: list[RuleChangeRow] = []
    for name in _selections(records):
        try:
            candidates, then = _taken_from(run, name, records)
        except DataError:  # told by `replays`
            continue
        rows += _changes(f"{run}/{name}", candidates, then)
    return rows


def _selections(records: Mapping[str, Record]) -> list[str]:
    """The records of whole selections; a selected candidate alone does not say what it was chosen from."""
    return [
        name
        for name, record in records.items()
        if record.summary.get("kind") == "selection" and "config" in record.summary
    ]


def _replay(run: str, name: str, records: Mapping[str, Record]) -> ReplayRow:
    stated = f"{run}/{name}"
    try:
        candidates, then = _taken_from(run, name, records)
    except DataError as error:
        return ReplayRow(
            decision=stated, winner=None, values=0, differing=0, largest_difference=None, note=f"not repeated: {error}"
        )
    selection = select(candidates, then)
    compared = list(_compared(records[name], selection))
    differing = [what for what, there, ours in compared if not _same(there, ours)]
    sizes = [abs(a - b) for _, a, b in compared if isinstance(a, float) and isinstance(b, float)]
    return ReplayRow(
        decision=stated,
        winner=selection.winner.condition if selection.winner else None,
        values=len(compared),
        differing=len(differing),
        largest_difference=max(sizes, default=0.0),
        note=f"differing: {'; '.join(differing[:3])}" if differing else "",
    )


def _taken_from(run: str, name: str, records: Mapping[str, Record]) -> tuple[list[Candidate], SelectionParams]:
    """What an earlier selection chose from, and its rules; DataError where an input was not imported."""
    settings = records[name].summary["config"]
    candidates: list[Candidate] = []
    for key, kind in INPUTS.items():
        for path in settings.get(key) or ():
            source = _named(path, kind, records)
            candidates += candidates_from_earlier(f"{run}/{source}", records[source].table("earlier_members"))
    return candidates, rules_of(settings)


def _named(path: str, kind: str, records: Mapping[str, Record]) -> str:
    """The record of a kind that came from the run in a path of that time."""
    found = re.findall(r"run_\d{8}T\d{6}Z", path)
    for name, record in records.items():
        if record.summary.get("kind") == kind and record.summary.get("run_id") in found[-1:]:
            return name
    raise DataError(f"its input {path} was not imported; import it together with the selection")


def rules_of(settings: Mapping[str, Any]) -> SelectionParams:
    """The settings of an earlier selection as parameters; floors of -1e9 were none."""
    floors = {key: settings.get(key) for key in ("min_saebench_delta", "min_cebench_delta")}
    given: dict[str, Any] = {
        "rules": "2026-02",
        "mode": "lcb" if settings.get("uncertainty_mode") == "lcb" else "mean",
        "grouping": "condition" if settings.get("group_by_condition", True) else "seed",
        "require_both_external": bool(settings.get("require_both_external")),
        "min_seeds": max(1, int(settings.get("min_seeds_per_group", 1))),
        "weights": {name: float(settings[f"weight_{name}"]) for name in ("saebench", "cebench", "train_ev")},
        "bootstraps": 0,
    }
    return SelectionParams(**given | {key: float(at) for key, at in floors.items() if at is not None and at > -1e9})


def _compared(stated: Record, selection: Selection) -> Iterator[tuple[str, Any, Any]]:
    """Every number and name of an earlier selection beside ours."""
    counts = selection.summary()["counts"]
    for there, here in COUNTS.items():
        yield f"count {there}", stated.summary["counts"][there], counts[here]
    groups: list[EarlierGroupRow] = stated.table("earlier_groups")
    ours = [row for row in selection.rows() if row.joint_score is not None]
    yield "number of groups", len(groups), len(ours)
    for group, row in zip(groups, ours, strict=False):
        for column in EarlierGroupRow.model_fields:
            if column in type(row).model_fields and column != "note":
                there, here = getattr(group, column), getattr(row, column)
                if there is not None:
                    yield f"{column} of {group.condition}", there, _of_then(column, here)


def _of_then(column: str, value: Any) -> Any:
    """One seed had a standard deviation of 0 then; today it has none."""
    return 0.0 if value is None and column.endswith("_std") else value


def _same(there: Any, here: Any) -> bool:
    if isinstance(there, float) and isinstance(here, float):
        return math.isclose(there, here, rel_tol=1e-9, abs_tol=1e-12)
    return bool(there == here)


def _changes(decision: str, candidates: Sequence[Candidate], then: SelectionParams) -> Iterator[RuleChangeRow]:
    yield _row(decision, "as decided: 1.96 standard errors, merged by name", "all records", select(candidates, then))
    kept = {
        "min_seeds",
        "mode",
        "grouping",
        "weights",
        "require_both_external",
        "min_saebench_delta",
        "min_cebench_delta",
    }
    loose = then.model_dump(include=kept) | {"require_matched_l0": False, "require_matched_baseline": False}
    loose |= {"bootstraps": 0, "min_seeds": max(2, then.min_seeds)}  # one seed has no bound any more
    for rule, change in TODAY:
        for over, members in _comparable(candidates):
            yield _row(decision, rule, over, select(members, SelectionParams(**loose | change)))


def _comparable(candidates: Sequence[Candidate]) -> list[tuple[str, list[Candidate]]]:
    """The candidates by what they were measured on, with a name for each such set."""

    def measured(candidate: Candidate) -> tuple[tuple[str, str], ...]:
        return tuple(sorted(candidate.comparability.items()))

    sets = [list(those) for _, those in groupby(sorted(candidates, key=measured), key=measured)]
    return sorted([(_set_name(members), members) for members in sets], key=lambda named: named[0])


def _set_name(members: Sequence[Candidate]) -> str:
    first, *others = dict.fromkeys(member.source.rpartition("/")[2] for member in members)
    what = members[0].comparability
    sets, hook = told(what["data sets"]) if "data sets" in what else 0, what.get("hook", '"an unknown hook"')
    records = f"{first} and {len(others)} more" if others else first
    return f"{records}: {sets} data sets at {told(hook)}"


def _row(decision: str, rule: str, over: str, selection: Selection) -> RuleChangeRow:
    winner, chosen = selection.winner, selection.representative
    reasons = [group.dropped for group in selection.groups if group.dropped]
    return RuleChangeRow(
        decision=decision,
        rule=rule,
        over=over,
        winner=winner.condition if winner else None,
        representative_seed=chosen.seed if chosen else None,
        eligible_groups=sum(not group.dropped for group in selection.groups),
        note="" if winner else "; ".join(dict.fromkeys(reasons)) or "no members",
    )
