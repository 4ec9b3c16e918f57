"""May the candidate be released? Numbers and thresholds in, verdicts out.

A gate reads the conservative end of a two-sided interval (`basis: bound`) or the estimate (`basis: value`).
"""

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal, NamedTuple

from husai_lib.decisions.candidates import Members, matched_baselines
from husai_lib.errors import DataError, IntegrityError
from husai_lib.evidence.rows.base import CONTROLS, IMPORTED, group_sha256, is_matched
from husai_lib.evidence.rows.controls import PROBED, ControlRow
from husai_lib.evidence.rows.decided import GateRow
from husai_lib.evidence.rows.measured import GroupRow, MemberRow
from husai_lib.evidence.rows.probes import ProbeRow, saebench_interval
from husai_lib.intervals import LEVEL, Interval, mean_interval
from husai_lib.params.rules import GateParams

COMPARE = {">": operator.gt, "≥": operator.ge, "≤": operator.le}
WORDS = {"pwmcc": "PW-MCC", "saebench": "SAEBench", "cebench": "CE-Bench", "ood": "OOD", "auc": "AUC"}
"""Words of identifiers that prose writes differently."""
HANDICAP = 0.05
"""A baseline that has so much more dead latents than the candidate, or explains so much less, was handicapped."""


class Rule(NamedTuple):
    """One gate of the release policy."""

    question: str
    threshold: str | float
    """The threshold, or the field of GateParams that holds it."""
    required: str | bool
    """Whether release requires it, or the field of GateParams that says so."""
    sign: str
    """How its number must compare with the threshold: a key of COMPARE."""
    measure: Callable[[MemberRow], float] | None = None
    """The value of one SAE, for a gate on the mean over the judged group; None for controls and benchmarks."""


RULES = {
    "random_model": Rule(
        "Do its seeds agree more than those of the same recipe on every model with random weights?",
        "min_random_model_delta", "require_random_model", ">",
    ),
    "random_decoder": Rule(
        "Do its seeds agree more than random decoders do?", "min_random_model_delta", "require_random_model", ">"
    ),
    "transcoder": Rule(
        "Do its seeds agree about as much as those of a matched transcoder?",
        "min_transcoder_delta", "require_transcoder", "≥",
    ),
    "in_domain": Rule("Do its probes find the concepts of the shifted tasks at all?", 0.0, "require_ood", ">"),
    "ood": Rule(
        "Does it retain as much under a shift of domain as the raw activation?", "max_ood_drop", "require_ood", "≤"
    ),
    "external_saebench": Rule(
        "Do probes of its latents do as well as those of the whole activation?",
        "min_saebench_delta", "require_external", "≥",
    ),
    "external_cebench": Rule(
        "Do its latents tell stories apart at least as well as a matched baseline's?",
        "min_cebench_delta", "require_external", "≥",
    ),
    "external_cebench_calibrated": Rule(
        "Do they still, when each score is compared with stories whose tokens were mixed?",
        "min_cebench_calibrated_delta", "require_external", "≥",
    ),
    "external": Rule("Do all external benchmarks pass?", 0.0, "require_external", "≥"),
}  # fmt: skip
"""Every gate, by name. A new gate on the members of the group is one row here."""
EXTERNAL = [name for name in RULES if name.startswith("external_")]
COLUMNS = {"external_cebench": "cebench_delta", "external_cebench_calibrated": "cebench_calibrated_delta"}
"""The columns of members that the gates of CE-Bench read."""


@dataclass(frozen=True)
class Judged:
    """The group that the gates judge: its confirmation seeds, or without any those that it was selected by."""

    members: Members = ()
    baselines: Members = ()
    probes: Sequence[ProbeRow] = ()
    group: GroupRow | None = None
    source: str = "selection"
    """The record that all of these are from."""
    ks: Sequence[int] = ()
    choose_k: str = "validation"
    level: float = LEVEL
    """Confidence of the two-sided intervals over seeds."""
    sets_level: float = LEVEL
    """Confidence of their part over data sets."""


@dataclass(frozen=True)
class Measured:
    """What one external gate reads; note and ceiling as in `GateRow`."""

    interval: Interval | None
    note: str = ""
    ceiling: float | None = None


@dataclass(frozen=True)
class Policy:
    """The release decision."""

    gates: tuple[GateRow, ...]
    pass_all: bool
    """Whether every required gate passes, and there is one."""
    verdict: str
    basis: Literal["bound", "value"]


def evaluate(judged: Judged, controls: Sequence[ControlRow], params: GateParams) -> Policy:
    """Every gate's verdict; IntegrityError for a control of other weights, DataError for two rows of one control."""
    weights = group_sha256((member.seed, member.weights_sha256) for member in judged.members)
    if other := [row.control for row in controls if row.delta is not None and row.candidate_sha256 != weights]:
        own = judged.members
        candidate = f"{own[0].condition} at {len(own)} seeds" if own else "none was selected"
        what = f"the stress control {other[0]} was run on other weights than the candidate's ({candidate})"
        raise IntegrityError(f"{what}; run the cycle again")
    gates = [_control(name, controls, params) for name in CONTROLS]
    if off := _off_target(judged.members):
        gates = [_missing(gate, off) if gate.metric == "pwmcc" else gate for gate in gates]
    if judged.choose_k == "test":
        gates = [_missing(gate, "") if gate.gate in PROBED and gate.value is not None else gate for gate in gates]
    benchmarks = [_external(name, found, judged, params) for name, found in external_results(judged).items()]
    gates += [*benchmarks, _joint(benchmarks, params)]
    gates += [_of_members(name, rule.measure, judged, params) for name, rule in RULES.items() if rule.measure]
    required = [gate.verdict for gate in gates if gate.required]
    return Policy(tuple(gates), {*required} == {"pass"}, verdict_sentence(gates), params.basis)


def external_results(judged: Judged) -> dict[str, Measured]:
    """What each external gate reads, by its name; CE-Bench counts only against a matched baseline."""
    if not judged.members:
        return dict.fromkeys(EXTERNAL, Measured(None, _why_none(judged)))
    members = sorted(judged.members, key=lambda row: row.seed)  # a mean of floats depends on their order
    baselines = matched_baselines(members, judged.baselines)
    saebench = saebench_interval(judged.probes, judged.level, judged.sets_level)
    exact = judged.group.single_latent_delta if judged.group and [*judged.ks] == [1] else None
    claim = f"probes read at most {max(judged.ks)} of {members[0].d_sae:,} latents" if judged.ks else ""
    found = {"external_saebench": Measured(saebench, claim, exact)}
    if judged.choose_k == "test":
        found["external_saebench"] = Measured(None, "each best k was chosen on the test set")
    unmatched, handicap = _unmatched(members, baselines), _handicap(members, baselines)
    for gate, column in COLUMNS.items():
        deltas = [value for row in members if (value := getattr(row, column)) is not None]
        lacking = f"{len(members) - len(deltas)} of {len(members)} members have no {column}"
        missing = lacking if len(deltas) < len(members) else unmatched
        found[gate] = Measured(None if missing else mean_interval(deltas, level=judged.level), missing or handicap)
    if baselines:
        highest = min(row.cebench_ceiling for row in members) - fmean(b.cebench_interpretability for b in baselines)
        found["external_cebench"] = replace(found["external_cebench"], ceiling=highest)
    return found


def _unmatched(members: Members, baselines: Members) -> str:
    if not baselines:
        return "the baseline is not matched: none has the candidate's width, target k and seeds"
    if off := _off_target(members):
        return off
    l0, other = (fmean(row.l0 for row in rows) for rows in (members, baselines))
    if not l0 or not is_matched(other, l0):
        return f"the baseline is not matched: its l0 is {other:.4g}, the candidate's {l0:.4g}"
    return ""


def _off_target(members: Members) -> str:
    """Which members miss their target L0, so that nothing of equal sparsity stands beside them; empty if none does."""
    off = [f"{row.l0:.1f} at seed {row.seed}" for row in members if not row.l0_matched]
    return f"the candidate's L0 is more than 10 % off k: {', '.join(off)}" if off else ""


def _missing(gate: GateRow, why: str) -> GateRow:
    return gate.model_copy(update={"verdict": "missing", "note": "; ".join(filter(None, (why, gate.note)))})


def _handicap(members: Members, baselines: Members) -> str:
    """In which respects the baselines were trained less well than the members; empty if in none."""
    if not baselines:
        return ""
    dead, own_dead = (fmean(row.dead_fraction for row in rows) for rows in (baselines, members))
    ev, own_ev = (fmean(row.explained_variance for row in rows) for rows in (baselines, members))
    notes = {
        f"{dead:.0%} of its latents are dead, {own_dead:.0%} of the candidate's": dead > own_dead + HANDICAP,
        f"it explains {ev:.2f} of the variance, the candidate {own_ev:.2f}": ev < own_ev - HANDICAP,
    }
    found = " and ".join(note for note, applies in notes.items() if applies)
    return f"the baseline is handicapped: {found}" if found else ""


def _why_none(judged: Judged) -> str:
    if judged.source.startswith(f"{IMPORTED}/"):
        return "the candidate is of an import: its numbers are no measurements of ours"
    return "no group was selected"


def verdict_sentence(gates: Sequence[GateRow]) -> str:
    """The verdict in one sentence, with the required gates that speak against release."""
    required = [gate for gate in without_repeats(gates) if gate.required]
    if not required:
        return "Not releasable: no gate is required, so nothing was shown."
    failed = [gate for gate in required if gate.verdict != "pass"]
    if not failed:
        return f"Releasable: all {len(required)} required gates pass."
    names = [describe(gate.gate) + (f": {gate.verdict}" if gate.verdict != "fail" else "") for gate in failed]
    verb = "fails" if len(failed) == 1 else "fail"
    return f"Not releasable: {len(failed)} of {len(required)} required gates {verb} ({', '.join(names)})."


def without_repeats(gates: Sequence[GateRow]) -> list[GateRow]:
    """The gates without the joint one, where release requires each of its parts, which it then only repeats."""
    parts = [gate.required for gate in gates if gate.gate in EXTERNAL]
    return [gate for gate in gates if gate.gate != "external" or not parts or not all(parts)]


def describe(name: str) -> str:
    """The name of a gate, control or metric in prose."""
    words = " ".join(WORDS.get(word, word) for word in name.split("_"))
    return "external (all)" if name == "external" else words


def requirement(gate: str, threshold: float) -> str:
    """What a gate requires of its number, such as `> 0`."""
    return f"{RULES[gate].sign} {threshold:g}"


def release_policy(policy: Policy) -> dict[str, Any]:
    """The decision as JSON values for `release_policy.json`: every gate as a whole row, and tables by gate."""
    gates = policy.gates
    return {
        "basis": policy.basis,
        "rows": [gate.model_dump() for gate in gates],
        "metrics": {gate.gate: {"metric": gate.metric, "value": gate.value, "bound": gate.bound} for gate in gates},
        "thresholds": {gate.gate: {gate.direction: gate.threshold} for gate in gates},
        "gates": {gate.gate: gate.verdict == "pass" for gate in gates},
        "verdicts": {gate.gate: gate.verdict for gate in gates},
        "required": {gate.gate: gate.required for gate in gates},
        "notes": {gate.gate: gate.note for gate in gates if gate.note},
        "verdict": policy.verdict,
        "pass_all": policy.pass_all,
    }


def _control(name: str, controls: Sequence[ControlRow], params: GateParams) -> GateRow:
    """The gate of a control; of several random models, the one that is nearest to the candidate decides."""
    rows = [row for row in controls if re.fullmatch(rf"{name}(_\d+)?", row.control)]
    if len({row.control for row in rows}) < len(rows):
        raise DataError(f"the stress record has {len(rows)} rows for the control {name}; keep one row a control")
    if not rows:
        return _gate(name, params, None, metric="", source="stress", note="the control was not run")

    def rank(row: ControlRow) -> tuple[bool, bool, float]:
        read = row.delta_low if params.basis == "bound" else row.delta
        return (row.delta is not None, row.l0_matched, -math.inf if read is None else read)

    worst = min(rows, key=rank)
    several = len(rows) > 1 and worst.delta is not None
    of_several = f"{describe(worst.control)} is the nearest of {len(rows)}" if several else ""
    about = {"metric": worst.metric, "level": worst.level, "source": "stress"}
    delta = None if worst.delta is None else Interval(worst.delta, worst.delta_low, worst.delta_high, 0, None)
    gate = _gate(name, params, delta, note="; ".join(filter(None, (of_several, worst.note))), **about)
    return gate if worst.l0_matched or worst.delta is None else gate.model_copy(update={"verdict": "missing"})


def _external(name: str, found: Measured, judged: Judged, params: GateParams) -> GateRow:
    """The gate of one external benchmark; a threshold above what the group can reach is refused."""
    about = {"metric": f"{name.removeprefix('external_')}_delta", "level": judged.level, "source": judged.source}
    about |= {"sets_level": judged.sets_level} if name == "external_saebench" else {}
    gate = _gate(name, params, found.interval, note=found.note, ceiling=found.ceiling, **about)
    if not found.interval or found.ceiling is None or gate.threshold <= found.ceiling:
        return gate
    note = f"refused: {gate.threshold:.4g} lies above {found.ceiling:.4g}, the largest value that this group can reach"
    return gate.model_copy(update={"verdict": "unreachable", "note": note})


def _joint(benchmarks: Sequence[GateRow], params: GateParams) -> GateRow:
    """The gate that all benchmarks pass: its number is the smallest margin over their thresholds."""
    verdicts = {gate.verdict for gate in benchmarks}
    worst = next((verdict for verdict in ("missing", "unreachable", "fail") if verdict in verdicts), "pass")
    margins: dict[str, float | None] = {}
    for end in ("value", "bound"):
        own = [getattr(gate, end) - gate.threshold for gate in benchmarks if getattr(gate, end) is not None]
        margins[end] = min(own) if len(own) == len(benchmarks) else None
    about = {"metric": "smallest margin over all thresholds", "level": benchmarks[0].level}
    joint = _gate("external", params, None, source=benchmarks[0].source, note="", **about)
    note = "" if worst == "pass" else "all benchmarks must pass"
    return joint.model_copy(update=margins | {"verdict": worst, "note": note})


def _of_members(name: str, measure: Callable[[MemberRow], float], judged: Judged, params: GateParams) -> GateRow:
    found = mean_interval([measure(row) for row in judged.members], level=judged.level) if judged.members else None
    note = "" if found else _why_none(judged)
    return _gate(name, params, found, metric=name, level=judged.level, source=judged.source, note=note)


def _gate(name: str, params: GateParams, found: Interval | None, **columns: Any) -> GateRow:
    rule = RULES[name]
    value, low, high = (found.mean, found.low, found.high) if found else (None, None, None)
    bound = high if rule.sign == "≤" else low
    number = bound if params.basis == "bound" else value
    threshold = getattr(params, rule.threshold) if isinstance(rule.threshold, str) else rule.threshold
    required = getattr(params, rule.required) if isinstance(rule.required, str) else rule.required
    verdict = "pass" if number is not None and COMPARE[rule.sign](number, threshold) else "fail"
    if value is None:
        verdict, columns["note"] = "missing", columns["note"] or "no result"
    elif number is None:
        few = "too few seeds or data sets" if columns.get("sets_level") else "too few seeds"
        said = columns["note"].replace("too few seeds for an interval", "").strip("; ")
        verdict, columns["note"] = "missing", "; ".join(filter(None, (f"{few} for a bound", said)))
    columns |= {"direction": "below" if rule.sign == "≤" else "above", "required": required}
    return GateRow(gate=name, value=value, bound=bound, threshold=threshold, verdict=verdict, **columns)
