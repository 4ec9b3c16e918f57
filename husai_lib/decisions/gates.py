"""May the candidate be released? Numbers and thresholds in, verdicts out. Pure: no files, no torch.

A gate reads the conservative end of a 95 % interval (`basis: bound`) or the estimate (`basis: value`).
What is missing, has no bound or cannot be reached does not pass.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from husai_lib.decisions.candidates import matched_baselines
from husai_lib.errors import DataError, IntegrityError
from husai_lib.evidence.rows import CONTROLS, IMPORTED, ControlRow, GateRow, MemberRow, group_sha256, is_matched
from husai_lib.intervals import Interval, mean_interval
from husai_lib.params.rules import GateParams

RULES = {
    "random_model": ("min_random_model_delta", "require_random_model", ">"),
    "random_decoder": ("min_random_model_delta", "require_random_model", ">"),
    "transcoder": ("min_transcoder_delta", "require_transcoder", "≥"),
    "ood": ("max_ood_drop", "require_ood", "≤"),
    "external_saebench": ("min_saebench_delta", "require_external", "≥"),
    "external_cebench": ("min_cebench_delta", "require_external", "≥"),
}
"""Of each gate: its threshold and its requirement in GateParams, and how its number must compare with the threshold."""
COMPARE = {">": operator.gt, "≥": operator.ge, "≤": operator.le}
DISPLAY_NAMES = {
    "pwmcc": "PW-MCC",
    "saebench_delta": "SAEBench delta",
    "cebench_delta": "CE-Bench delta",
    "ood": "OOD",
    "external": "external (both)",
    "external_saebench": "external SAEBench",
    "external_cebench": "external CE-Bench",
}
"""Names in prose of gates, controls and metrics whose identifier does not read well without its underscores."""


@dataclass(frozen=True)
class External:
    """The candidate group's external benchmarks, as far as they were measured."""

    saebench: Interval | None
    """SAEBench delta over the group's seeds."""
    cebench: Interval | None
    """CE-Bench delta against the matched baseline."""
    cebench_baseline: float | None = None
    """The baseline's own CE-Bench interpretability; None leaves reachability unchecked."""
    cebench_ceiling: float | None = None
    """The highest CE-Bench score that the candidate's width allows, (d_sae - 1) / sqrt(d_sae)."""
    note: str = ""
    """Why a result is missing."""
    source: str = "frontier"
    """The record the results come from."""


@dataclass(frozen=True)
class Policy:
    """The release decision."""

    gates: tuple[GateRow, ...]
    pass_all: bool
    """Whether every required gate passes, and there is one."""
    verdict: str
    """One sentence."""
    basis: Literal["bound", "value"]


def evaluate_members(
    members: Sequence[MemberRow],
    baseline: Sequence[MemberRow],
    controls: Sequence[ControlRow],
    params: GateParams,
    source: str = "frontier",
) -> Policy:
    """The decision on the selected group from the rows of its members, the baselines and the controls.

    `source` names the record of the members. Without members, as when nothing was selected, the external results are
    missing. Intervals are t over seeds. Raises IntegrityError for a control of other weights than the members'.
    """
    weights = group_sha256((member.seed, member.weights_sha256) for member in members)
    if other := [row.control for row in controls if row.candidate_sha256 != weights]:
        candidate = f"{members[0].condition} at {len(members)} seeds" if members else "none was selected"
        raise IntegrityError(
            f"the stress control {other[0]} was run on other weights than the candidate's ({candidate}); "
            "run the cycle again"
        )
    return evaluate_gates(external_results(members, baseline, source), controls, params)


def external_results(members: Sequence[MemberRow], baseline: Sequence[MemberRow], source: str = "frontier") -> External:
    """The external deltas of a group with their t intervals; CE-Bench only against a matched baseline.

    Only those rows of `baseline` count that the deltas of these members are taken against.
    """
    if not members:
        imported = source.startswith(f"{IMPORTED}/")
        why = "the candidate is of an import: its numbers are no measurements of ours" if imported else ""
        return External(None, None, note=why or "no group was selected", source=source)
    members = sorted(members, key=lambda row: row.seed)  # a mean of floats depends on their order
    own = matched_baselines(members, baseline)
    saebench = mean_interval([member.saebench_delta for member in members])
    deltas = [member.cebench_delta for member in members if member.cebench_delta is not None]
    note = _why_unmatched(members, own)
    if len(deltas) < len(members):
        note = f"{len(members) - len(deltas)} of {len(members)} members have no cebench_delta"
    cebench = None if note else mean_interval(deltas)
    score = fmean(row.cebench_interpretability for row in own) if own else None
    return External(saebench, cebench, score, min(member.cebench_ceiling for member in members), note, source)


def evaluate_gates(external: External, controls: Sequence[ControlRow], params: GateParams) -> Policy:
    """Every gate's verdict and what follows; pass_all needs all required gates to pass.

    A control is read from its one row by its `delta`: candidate minus control for random_model and random_decoder
    (must exceed the threshold), transcoder minus candidate for transcoder (must reach it), in domain minus shifted for
    ood (may not exceed it). Raises DataError for two rows of one control.
    """
    rows = {row.control: row for row in controls}
    if len(rows) < len(controls):
        raise DataError(f"the stress record has {len(controls)} rows for {len(rows)} controls; keep one row a control")
    gates = [*(_control(name, rows.get(name), params) for name in CONTROLS), *_external(external, params)]
    required = [gate for gate in gates if gate.required]
    pass_all = bool(required) and all(gate.verdict == "pass" for gate in required)
    return Policy(tuple(gates), pass_all, verdict_sentence(gates), params.basis)


def verdict_sentence(gates: Sequence[GateRow]) -> str:
    """The verdict in one plain sentence, with the required gates that speak against release."""
    required = [gate for gate in gates if gate.required]
    if not required:
        return "Not releasable: no gate is required, so nothing was shown."
    failed = [gate for gate in required if gate.verdict != "pass"]
    if not failed:
        return f"Releasable: all {len(required)} required gates pass."
    names = [describe(gate.gate) + (f": {gate.verdict}" if gate.verdict != "fail" else "") for gate in failed]
    verb = "fails" if len(failed) == 1 else "fail"
    return f"Not releasable: {len(failed)} of {len(required)} required gates {verb} ({', '.join(names)})."


def describe(name: str) -> str:
    """The name of a gate, control or metric in prose."""
    return DISPLAY_NAMES.get(name, name.replace("_", " "))


def requirement(gate: str, threshold: float) -> str:
    """What a gate requires of its number, such as `> 0`."""
    return f"{RULES[gate][2] if gate in RULES else '≥'} {threshold:g}"


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


def _control(name: str, row: ControlRow | None, params: GateParams) -> GateRow:
    if row is None:
        return _gate(name, params, metric="", value=None, bound=None, source="stress", note="the control was not run")
    bound = row.delta_high if name == "ood" else row.delta_low
    return _gate(name, params, metric=row.metric, value=row.delta, bound=bound, source="stress", note=row.note)


def _external(external: External, params: GateParams) -> list[GateRow]:
    """The gates of both benchmarks, and the joint one."""
    both = []
    for name, interval in (("saebench", external.saebench), ("cebench", external.cebench)):
        value, bound, note = (interval.mean, interval.low, "") if interval else (None, None, external.note)
        about = {"metric": f"{name}_delta", "source": external.source, "note": note}
        both.append(_gate(f"external_{name}", params, value=value, bound=bound, **about))
    threshold, baseline, highest = params.min_cebench_delta, external.cebench_baseline, external.cebench_ceiling
    if external.cebench and baseline is not None and highest is not None and baseline + threshold > highest:
        note = (
            f"refused: the threshold {threshold:.4g} plus the baseline's {baseline:.4g} "
            f"lies above {highest:.4g}, the highest score of this width"
        )
        both[1] = both[1].model_copy(update={"verdict": "unreachable", "note": note})
    verdicts = {gate.verdict for gate in both}
    worst = next((verdict for verdict in ("missing", "unreachable", "fail") if verdict in verdicts), "pass")
    joint = {
        "gate": "external",
        "metric": "smaller margin over both thresholds",
        "value": _margin([(gate.value, gate.threshold) for gate in both]),
        "bound": _margin([(gate.bound, gate.threshold) for gate in both]),
        "threshold": 0.0,
        "verdict": worst,
        "note": "" if worst == "pass" else "both benchmarks must pass",
    }
    return [*both, both[0].model_copy(update=joint)]


def _gate(name: str, params: GateParams, **columns: Any) -> GateRow:
    """A gate with its metric, value, bound, source and note, and its verdict."""
    threshold_field, required_field, sign = RULES[name]
    threshold, number = getattr(params, threshold_field), columns["bound" if params.basis == "bound" else "value"]
    if columns["value"] is None:
        verdict, columns["note"] = "missing", columns["note"] or "no result"
    elif number is None:
        verdict = "fail"
        columns["note"] = "; ".join(filter(None, ("too few seeds for a 95 % bound", columns["note"])))
    else:
        verdict = "pass" if COMPARE[sign](number, threshold) else "fail"
    columns |= {"direction": "below" if sign == "≤" else "above", "required": getattr(params, required_field)}
    return GateRow(gate=name, threshold=threshold, verdict=verdict, **columns)


def _margin(numbers: Sequence[tuple[float | None, float]]) -> float | None:
    margins = [number - threshold for number, threshold in numbers if number is not None]
    return min(margins) if len(margins) == len(numbers) else None


def _why_unmatched(members: Sequence[MemberRow], baseline: Sequence[MemberRow]) -> str:
    """Why the members' baseline is not matched: its width or L0 is more than 10 % off; empty if it is matched."""
    if not baseline:
        return "the baseline is not matched: none has the candidate's width, target k and seeds"
    for what in ("d_sae", "l0"):
        own, other = (fmean(getattr(row, what) for row in rows) for rows in (members, baseline))
        if not own or not is_matched(other, own):
            return f"the baseline is not matched: its {what} is {other:.4g}, the candidate's {own:.4g}"
    return ""
