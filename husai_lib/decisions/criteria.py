"""Is a cycle better than an earlier one? What two candidates achieved in, the rows of both decision criteria out.

1. Both external deltas improve jointly: the lower 95 % bound of each difference of group means lies above 0.
2. Of the gates required there, more pass here than there, and no stress control that passed there is lost.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from husai_lib.decisions.candidates import describe_setting, differences
from husai_lib.decisions.gates import EXTERNAL, describe
from husai_lib.evidence.rows.base import CONTROLS, IMPORTED, noted
from husai_lib.evidence.rows.decided import CriterionRow
from husai_lib.intervals import Interval, difference_interval

UNUSED = {"saebench": ("stories", "pairs", "baseline"), "cebench": ("data sets", "probing")}
"""What each benchmark does not use, of all that a run is measured on."""
OTHER_IN_IMPORTS = ("transcoder", "ood")
"""Gates that asked something else in earlier cycles: whether a transcoder is more stable, and for a drop of AUC."""


@dataclass(frozen=True)
class Standing:
    """What a run's candidate achieved."""

    name: str
    saebench: Interval | None
    cebench: Interval | None
    """The external deltas over its seeds, as far as they were measured; CE-Bench's against the matched baseline."""
    measured_on: Mapping[str, str]
    """What the deltas were measured on: setting -> canonical JSON; settings that are not known are left out."""
    gates: Mapping[str, tuple[str, float | None]]
    """Verdict (pass, fail, missing or unreachable) and threshold of each required gate."""
    basis: Literal["bound", "value"] = "bound"
    note: str = ""
    """Why a delta is missing."""
    caveats: tuple[str, ...] = ()
    """What is known to be wrong with an import's numbers."""
    confirmed: bool = True
    """Whether the deltas are of fresh seeds, and not of those that the candidate was selected by."""


def compare(here: Standing, there: Standing) -> list[CriterionRow]:
    """The rows of both criteria: one for each external delta, then one for each gate that either has."""
    gates = dict.fromkeys([*here.gates, *there.gates])
    return [*(_delta_row(which, here, there) for which in UNUSED), *(_gate_row(gate, here, there) for gate in gates)]


def criterion_outcome(rows: Sequence[CriterionRow]) -> str:
    """The outcome of the rows of one criterion against one earlier run; more or fewer gates gain nothing."""
    if rows and rows[0].criterion == 1:
        found = {row.outcome for row in rows}
        return next(outcome for outcome in ("not met", "not comparable", "met") if outcome in found)
    if not (compared := counted(rows)):
        return "not comparable"
    better = passes(compared, "verdict_here") > passes(compared, "verdict_there")
    return "met" if better and not lost_controls(compared) else "not met"


def _delta_row(which: str, here: Standing, there: Standing) -> CriterionRow:
    mine, theirs = (getattr(standing, which) for standing in (here, there))
    because, why = (f" ({one.note})" if one.note else "" for one in (here, there))
    absent = [f"not measured there{why}"]
    differing = _differing(which, here.measured_on, there.measured_on) if theirs else absent
    difference = difference_interval(mine, theirs) if mine and not differing else None
    mean, low, high = (getattr(difference, part, None) for part in ("mean", "low", "high"))
    wrong = ", ".join(code.replace("_", " ") for code in there.caveats)
    notes = {
        "; ".join(differing): True,
        f"not measured here{because}": not mine,
        "too few seeds for a 95 % bound": mean is not None and low is None,
        "optimistic here: of the seeds that it was selected by": mean is not None and not here.confirmed,
        "optimistic there: of the seeds that it was selected by": mean is not None and not there.confirmed,
        f"known to be wrong there: {wrong}": bool(wrong),
    }
    outcome = "not comparable" if differing else "met" if low is not None and low > 0 else "not met"
    sides = {"here": mine and mine.mean, "there": theirs and theirs.mean}
    columns = sides | {"difference": mean, "difference_low": low, "difference_high": high, "note": noted(notes)}
    return CriterionRow(criterion=1, earlier=there.name, metric=f"{which}_delta", outcome=outcome, **columns)


def _differing(which: str, here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    used = {what: values for what, values in differences([here, there]).items() if not what.startswith(UNUSED[which])}
    found = [_difference(what, *values) for what, values in used.items() if what in here and what in there]
    for side, known in (("here", here), ("there", there)):
        if unknown := [what for what in used if what not in known]:
            found.append(f"not known {side}: {', '.join(unknown)}")
    return found


def _difference(what: str, mine: str, theirs: str) -> str:
    names = [json.loads(value) for value in (mine, theirs)]
    lists = all(isinstance(value, list) and len(value) > 1 and isinstance(value[0], str) for value in names)
    common = f", {len({*names[0]} & {*names[1]})} in common" if lists else ""
    return f"{what}: {describe_setting(mine)} here, {describe_setting(theirs)} there{common}"


def _gate_row(gate: str, here: Standing, there: Standing) -> CriterionRow:
    """Met where the gate passes here; one that was not required there, or is easier here, is not comparable."""
    mine, theirs = (standing.gates.get(gate, ("", None))[0] for standing in (here, there))
    easier = _easier(gate, here, there)
    if gate == "external":  # as easy as the easiest of its parts
        parts = {name: _easier(name, here, there) for name in EXTERNAL}
        easier = easier or next((f"{describe(name)}: {why}" for name, why in parts.items() if why), "")
    lost = "passed there" if theirs == "pass" != mine else ""
    note = easier or lost if mine and theirs else f"not required {'there' if mine else 'here'}"
    outcome = "not comparable" if easier or not theirs else "met" if mine == "pass" else "not met"
    columns: dict[str, Any] = dict.fromkeys(("here", "there", "difference", "difference_low", "difference_high"))
    columns |= {"verdict_here": mine, "verdict_there": theirs, "outcome": outcome, "note": note}
    return CriterionRow(criterion=2, earlier=there.name, metric=gate, **columns)


def _easier(gate: str, here: Standing, there: Standing) -> str:
    """Why a gate was easier to pass, or another one, here than there; empty where it was not."""
    (mine, limit), (theirs, its_limit) = (standing.gates.get(gate, ("", None)) for standing in (here, there))
    if there.name.startswith(f"{IMPORTED}/") and gate in OTHER_IN_IMPORTS:
        return "it asked something else there"
    if mine and theirs and here.basis == "value" and there.basis == "bound":
        return "judged by the estimate here, by its bound there"
    if limit is not None and its_limit is not None and (limit > its_limit if gate == "ood" else limit < its_limit):
        return f"the threshold is {limit:g} here and {its_limit:g} there"
    return ""


def counted(rows: Sequence[CriterionRow]) -> list[CriterionRow]:
    """The gates that criterion 2 counts: those required there; the joint external gate stands for both benchmarks."""
    compared = [row for row in rows if row.outcome != "not comparable"]
    joint = any(row.metric == "external" for row in compared)
    return [row for row in compared if not (joint and row.metric.startswith("external_"))]


def passes(rows: Sequence[CriterionRow], side: Literal["verdict_here", "verdict_there"]) -> int:
    """How many of the gates pass here, or there."""
    return sum(getattr(row, side) == "pass" for row in rows)


def lost_controls(rows: Sequence[CriterionRow]) -> list[str]:
    """The stress controls that passed there and do not pass here."""
    return [row.metric for row in rows if row.metric in CONTROLS and row.verdict_there == "pass" != row.verdict_here]
