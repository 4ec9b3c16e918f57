"""Is a cycle better than an earlier one? What two candidates achieved in, the rows of both decision criteria out.

1. Both external deltas improve jointly: the lower 95 % bound of each difference of group means lies above 0.
2. Of the gates required there, more pass here than there, and no stress control that passed there is lost.

Deltas that were measured on different things are not subtracted. Pure: no files, no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from husai_lib.decisions.candidates import describe_setting, earlier_settings
from husai_lib.decisions.gates import External
from husai_lib.errors import DataError
from husai_lib.evidence.rows import (
    CONTROLS,
    CaveatRow,
    CriterionRow,
    EarlierGateRow,
    EarlierGroupRow,
    EarlierMemberRow,
    GateRow,
)
from husai_lib.intervals import Interval, difference_interval

Outcome = Literal["met", "not met", "not comparable"]
DECIDING: tuple[Outcome, ...] = ("not met", "not comparable", "met")
"""Of two deltas that must both improve, the first of these that occurs decides."""
UNUSED = {"saebench": ("stories", "pairs", "baseline"), "cebench": ("data sets", "probing")}
"""What each benchmark does not use, of all that a run is measured on."""
NOT_KNOWN = "not known"
JOINT = "external"


@dataclass(frozen=True)
class Standing:
    """What a run's candidate achieved."""

    name: str
    """`<cycle>/<run>` or `imported/<name>`."""
    saebench: Interval | None
    """SAEBench delta over the group's seeds."""
    cebench: Interval | None
    """CE-Bench delta over the group's seeds."""
    measured_on: Mapping[str, str]
    """What the deltas were measured on: setting -> canonical JSON; settings that are not known are left out."""
    gates: Mapping[str, str]
    """Verdicts of the required gates: pass, fail, missing or unreachable."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """The thresholds of these gates, as far as they are known."""
    basis: Literal["bound", "value"] = "bound"
    """What its gates read: the conservative end of an interval, or the estimate."""
    caveats: tuple[str, ...] = ()
    """What is known to be wrong with an import's numbers."""
    note: str = ""
    """Why a delta is missing."""


def standing_of_run(
    name: str,
    external: External,
    gates: Sequence[GateRow],
    measured_on: Mapping[str, str],
    basis: Literal["bound", "value"] = "bound",
) -> Standing:
    """The standing of a run, from the external results of its selected group, its gates and what it was measured on."""
    required = {row.gate: row for row in gates if row.required}
    verdicts = {gate: row.verdict for gate, row in required.items()}
    thresholds = {gate: row.threshold for gate, row in required.items()}
    return Standing(
        name, external.saebench, external.cebench, measured_on, verdicts, thresholds, basis, note=external.note
    )


def standing_of_import(
    name: str,
    groups: Sequence[EarlierGroupRow],
    members: Sequence[EarlierMemberRow],
    gates: Sequence[EarlierGateRow],
    caveats: Sequence[CaveatRow] = (),
) -> Standing:
    """The standing of an imported cycle: its group of rank 0 as stated, and the gates that were required.

    Raises DataError where it holds several selections or judges a gate twice.
    """
    chosen = [group for group in groups if group.rank == 0]
    required = [row for row in gates if row.required and row.gate != "pass_all"]  # that one sums up the others
    verdicts = {row.gate: row.stated or "missing" for row in required}
    if len(chosen) > 1 or len(verdicts) < len(required):
        what = f"{len(chosen)} selections" if len(chosen) > 1 else "several verdicts on one gate"
        raise DataError(f"{name} holds {what}; import each decision under its own name")
    thresholds = {row.gate: row.threshold for row in required if row.threshold is not None}
    wrong = tuple(dict.fromkeys(row.caveat for row in caveats))
    if not chosen:
        why = "no selection was imported"
        return Standing(name, None, None, {}, verdicts, thresholds, caveats=wrong, note=why)
    own = _earlier_settings([row for row in members if row.condition == chosen[0].condition])
    deltas = _stated(chosen[0], "saebench"), _stated(chosen[0], "cebench")
    return Standing(name, *deltas, own, verdicts, thresholds, caveats=wrong)


def compare(here: Standing, there: Standing) -> list[CriterionRow]:
    """The rows of both criteria: one for each external delta, then one for each gate that either has.

    A gate's row is met where it passes here; one that was not required there, or is easier here, is not comparable.
    """
    gates = dict.fromkeys([*here.gates, *there.gates])
    return [*(_delta_row(which, here, there) for which in UNUSED), *(_gate_row(gate, here, there) for gate in gates)]


def criterion_outcome(rows: Sequence[CriterionRow]) -> Outcome:
    """The outcome of the rows of one criterion against one earlier run.

    1 is met where both deltas are, and not met as soon as one is not. 2 is met where more of the gates required there
    pass here than there, and every stress control that passed there passes here; more or fewer gates gain nothing.
    """
    if rows[0].criterion == 1:
        return next(outcome for outcome in DECIDING if outcome in {row.outcome for row in rows})
    compared = counted(rows)
    if not compared:
        return "not comparable"
    better = passes(compared, "verdict_here") > passes(compared, "verdict_there")
    return "met" if better and not lost_controls(compared) else "not met"


def _stated(group: EarlierGroupRow, which: str) -> Interval | None:
    mean, low, high, std = (getattr(group, f"{which}_delta{end}") for end in ("", "_low", "_high", "_std"))
    return None if mean is None else Interval(mean, low, high, group.n_seeds, std)


def _earlier_settings(members: Sequence[EarlierMemberRow]) -> dict[str, str]:
    """What the members of an imported group were measured on; several values of a setting equal no other value."""
    found: dict[str, set[str]] = {}
    for member in members:
        for what, value in earlier_settings(member).items():
            found.setdefault(what, set()).add(value)
    return {what: texts.pop() if len(texts) == 1 else '"several"' for what, texts in found.items()}


def _delta_row(which: str, here: Standing, there: Standing) -> CriterionRow:
    mine, theirs = (getattr(standing, which) for standing in (here, there))
    absent = [f"not measured there{_because(there)}"]
    differing = _differences(which, here.measured_on, there.measured_on) if theirs else absent
    difference = difference_interval(mine, theirs) if mine and not differing else None
    low = difference.low if difference else None
    notes = [*differing, "" if mine else f"not measured here{_because(here)}"]
    notes.append("too few seeds for a 95 % bound" if difference and low is None else "")
    wrong = ", ".join(code.replace("_", " ") for code in there.caveats)
    notes.append(f"known to be wrong there: {wrong}" if wrong else "")
    return CriterionRow(
        criterion=1,
        earlier=there.name,
        metric=f"{which}_delta",
        here=mine and mine.mean,
        there=theirs and theirs.mean,
        difference=difference.mean if difference else None,
        difference_low=low,
        difference_high=difference.high if difference else None,
        outcome="not comparable" if differing else "met" if low is not None and low > 0 else "not met",
        note="; ".join(filter(None, notes)),
    )


def _because(standing: Standing) -> str:
    return f" ({standing.note})" if standing.note else ""


def _differences(which: str, here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """The settings of a benchmark that differ between both sides, or that only one side names."""
    used = [what for what in dict.fromkeys([*here, *there]) if not what.startswith(UNUSED[which])]
    both = [what for what in used if what in here and what in there]
    found = [_difference(what, here[what], there[what]) for what in both if here[what] != there[what]]
    for side, known in (("here", here), ("there", there)):
        if unknown := [what for what in used if what not in known]:
            found.append(f"{NOT_KNOWN} {side}: {', '.join(unknown)}")
    return found


def _difference(what: str, mine: str, theirs: str) -> str:
    names = [json.loads(value) for value in (mine, theirs)]
    lists = all(isinstance(value, list) and len(value) > 1 and isinstance(value[0], str) for value in names)
    common = f", {len({*names[0]} & {*names[1]})} in common" if lists else ""
    return f"{what}: {describe_setting(mine)} here, {describe_setting(theirs)} there{common}"


def _gate_row(gate: str, here: Standing, there: Standing) -> CriterionRow:
    mine, theirs = here.gates.get(gate, ""), there.gates.get(gate, "")
    easier = _why_easier(gate, here, there) if mine and theirs else ""
    notes = {not mine: "not required here", not theirs: "not required there", bool(easier): easier}
    return CriterionRow(
        criterion=2,
        earlier=there.name,
        metric=gate,
        **dict.fromkeys(("here", "there", "difference", "difference_low", "difference_high")),
        verdict_here=mine,
        verdict_there=theirs,
        outcome="not comparable" if easier or not theirs else "met" if mine == "pass" else "not met",
        note=notes.get(True, "passed there" if theirs == "pass" != mine else ""),
    )


def _why_easier(gate: str, here: Standing, there: Standing) -> str:
    """Why a gate is easier to pass here than there; empty if it is not."""
    if here.basis == "value" and there.basis == "bound":
        return "judged by the estimate here, by its bound there"
    mine, theirs = here.thresholds.get(gate), there.thresholds.get(gate)
    if mine is None or theirs is None or (mine <= theirs if gate == "ood" else mine >= theirs):
        return ""
    return f"the threshold is {mine:g} here and {theirs:g} there"


def counted(rows: Sequence[CriterionRow]) -> list[CriterionRow]:
    """The gates that criterion 2 counts: those required there; the joint external gate stands for both benchmarks."""
    compared = [row for row in rows if row.outcome != "not comparable"]
    joint = any(row.metric == JOINT for row in compared)
    return [row for row in compared if not (joint and row.metric.startswith(f"{JOINT}_"))]


def passes(rows: Sequence[CriterionRow], side: Literal["verdict_here", "verdict_there"]) -> int:
    """How many of the gates pass here, or there."""
    return sum(getattr(row, side) == "pass" for row in rows)


def lost_controls(rows: Sequence[CriterionRow]) -> list[str]:
    """The stress controls that passed there and do not pass here."""
    return [row.metric for row in rows if row.metric in CONTROLS and row.verdict_there == "pass" != row.verdict_here]
