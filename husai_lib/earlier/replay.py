"""Decisions of February 2026, repeated by the rules of then and by today's. Pure: records in, rows out."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from husai_lib.decisions.candidates import Candidate, candidates_from_earlier, describe_setting
from husai_lib.decisions.selection import Selection, select
from husai_lib.earlier.records import RUN_ID
from husai_lib.errors import DataError, HusaiError
from husai_lib.evidence.rows.earlier import EarlierGroupRow, ReplayRow, RuleChangeRow
from husai_lib.evidence.runs import Record
from husai_lib.params.rules import SelectionParams
from husai_lib.params.sections import check

INPUTS = ("frontier_results", "scaling_results", "assignment_results")
"""Lists of paths in a selection's settings, which name what it chose from."""
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
    """Each selection among the records of the imported `run`, repeated by its own rules, number by number."""
    return [_replay(run, name, records) for name in _selections(records)]


def rule_changes(run: str, records: Mapping[str, Record]) -> list[RuleChangeRow]:
    """Each selection of the imported `run` by the rules of then and by today's, one rule after another."""
    rows: list[RuleChangeRow] = []
    for name in _selections(records):
        try:
            candidates, then = _repeatable(run, name, records)
        except HusaiError:  # `replays` reports it
            continue
        rows += _changes(f"{run}/{name}", candidates, then)
    return rows


def _selections(records: Mapping[str, Record]) -> list[str]:
    """The records of whole selections; a selected candidate alone does not say what it was chosen from."""
    return [name for name, record in records.items() if "config" in record.summary]


def _replay(run: str, name: str, records: Mapping[str, Record]) -> ReplayRow:
    row = ReplayRow(decision=f"{run}/{name}", winner=None, values=0, differing=0, largest_difference=None)
    try:
        selection = select(*_repeatable(run, name, records))
    except HusaiError as error:
        return row.model_copy(update={"note": f"not repeated: {error}"})
    compared = list(_compared(records[name], selection))
    differing = [what for what, there, ours in compared if not _same(there, ours)]
    sizes = [abs(a - b) for _, a, b in compared if isinstance(a, float) and isinstance(b, float)]
    return row.model_copy(update={
        "winner": selection.winner and selection.winner.row.condition, "values": len(compared),
        "differing": len(differing), "largest_difference": max(sizes, default=0.0),
        "note": f"differing: {'; '.join(differing[:3])}" if differing else "",
    })  # fmt: skip


def _repeatable(run: str, name: str, records: Mapping[str, Record]) -> tuple[list[Candidate], SelectionParams]:
    """What an earlier selection chose from, and its rules; HusaiError where an input or a rule is missing."""
    settings = records[name].summary["config"]
    tables = {of: record.table("earlier_members") for of, record in records.items()
              if "earlier_members" in record.data["tables"]}  # fmt: skip
    candidates: list[Candidate] = []
    for paths in (settings.get(key) or [] for key in INPUTS):
        for path in paths if isinstance(paths, list) else [paths]:
            own = [of for of in tables if records[of].summary["run_id"] in RUN_ID.findall(str(path))[-1:]]
            if not own:
                raise DataError(f"its input {path} was not imported; import it together with the selection")
            candidates += candidates_from_earlier(f"{run}/{own[0]}", tables[own[0]])
    return candidates, rules_of(settings)


def rules_of(settings: Mapping[str, Any]) -> SelectionParams:
    """The settings of an earlier selection as parameters; floors of -1e9 were none."""
    floors = {key: settings.get(key) for key in ("min_saebench_delta", "min_cebench_delta")}
    rules = {key: None if floor == -1e9 else floor for key, floor in floors.items()} | {
        "rules": "2026-02",
        "mode": "lcb" if settings.get("uncertainty_mode") == "lcb" else "mean",
        "grouping": "condition" if settings.get("group_by_condition", True) else "seed",
        "require_both_external": bool(settings.get("require_both_external")),
        "min_seeds": settings.get("min_seeds_per_group") or 1,
        "weights": {name: settings.get(f"weight_{name}") for name in ("saebench", "cebench", "train_ev")},
        "bootstraps": 0,
    }
    return check(SelectionParams, rules, "its settings")


def _compared(stated: Record, selection: Selection) -> Iterator[tuple[str, Any, Any]]:
    counts, then = selection.summary()["counts"], stated.summary.get("counts", {})
    yield from ((f"count {there}", then.get(there), counts[here]) for there, here in COUNTS.items())
    groups: list[EarlierGroupRow] = stated.table("earlier_groups")
    ours = [row for row in selection.rows() if row.joint_score is not None]
    yield "number of groups", len(groups), len(ours)
    for group, row in zip(groups, ours, strict=False):
        for column, there in group:
            if there is not None and column in type(row).model_fields and column != "note":
                here = getattr(row, column)
                missing = 0.0 if column.endswith("_std") else None  # then, the standard deviation of one seed was 0
                yield f"{column} of {group.condition}", there, missing if here is None else here


def _same(there: Any, here: Any) -> bool:
    if isinstance(there, float) and isinstance(here, float):
        return math.isclose(there, here, rel_tol=1e-9, abs_tol=1e-12)
    return bool(there == here)


def _changes(decision: str, candidates: Sequence[Candidate], then: SelectionParams) -> Iterator[RuleChangeRow]:
    loose = then.model_dump() | {
        "rules": "current", "interval": "t", "require_matched_l0": False, "require_matched_baseline": False,
        "min_seeds": max(2, then.min_seeds),  # one seed has no bound any more
    }  # fmt: skip
    alike: dict[tuple[Any, ...], list[Candidate]] = {}
    for candidate in candidates:
        alike.setdefault(tuple(sorted(candidate.comparability.items())), []).append(candidate)
    sets = sorted((_set_name(those), settings) for settings, those in alike.items())
    decided = ("as decided: 1.96 standard errors, merged by name", "all records", select(candidates, then))
    today = [(rule, over, select(alike[settings], SelectionParams(**loose | change)))
             for rule, change in TODAY for over, settings in sets]  # fmt: skip
    for rule, over, selection in (decided, *today):
        winner = selection.winner.row if selection.winner else None
        reasons = [group.dropped for group in selection.groups if group.dropped]
        yield RuleChangeRow(
            decision=decision, rule=rule, over=over, winner=winner.condition if winner else None,
            representative_seed=winner.representative_seed if winner else None,
            eligible_groups=len(selection.groups) - len(reasons),
            note="" if winner else "; ".join(dict.fromkeys(reasons)) or "no members",
        )  # fmt: skip


def _set_name(members: Sequence[Candidate]) -> str:
    """What candidates that were measured on the same are called: their records, data sets and hook."""
    first, *others = dict.fromkeys(member.source.rpartition("/")[2] for member in members)
    what = members[0].comparability
    sets = describe_setting(what["data sets"]) if "data sets" in what else 0
    hook = describe_setting(what.get("hook", '"an unknown hook"'))
    return f"{first}{f' and {len(others)} more' if others else ''}: {sets} data sets at {hook}"
