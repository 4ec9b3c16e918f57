"""May the candidate be released? Numbers and thresholds in, verdicts out. Pure: no files, no torch.

A gate reads the conservative end of a 95 % interval (`basis: bound`) or the estimate (`basis: value`).
What is missing, has no bound or cannot be reached does not pass.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, NamedTuple

from husai_lib.decisions.candidates import Members, matched_baselines
from husai_lib.errors import DataError, IntegrityError
from husai_lib.evidence.rows.base import CONTROLS, IMPORTED, group_sha256, is_matched
from husai_lib.evidence.rows.controls import ControlRow
from husai_lib.evidence.rows.decided import GateRow
from husai_lib.evidence.rows.measured import MemberRow
from husai_lib.intervals import Interval, mean_interval
from husai_lib.params.rules import GateParams

COMPARE = {">": operator.gt, "≥": operator.ge, "≤": operator.le}
WORDS = {"pwmcc": "PW-MCC", "saebench": "SAEBench", "cebench": "CE-Bench", "ood": "OOD"}
"""Words of identifiers that prose writes differently."""


class Rule(NamedTuple):
    """One gate of the release policy."""

    question: str
    """What it asks, in the report."""
    threshold: str | float
    """The threshold, or the field of GateParams that holds it."""
    required: str | bool
    """Whether release requires it, or the field of GateParams that says so."""
    sign: str
    """How its number must compare with the threshold: a key of COMPARE."""
    measure: Callable[[MemberRow], float] | None = None
    """The value of one SAE, for a gate on the mean over the selected group; None for controls and benchmarks."""


RULES = {
    "random_model": Rule(
        "Do its seeds agree more than those of the same recipe on a model with random weights?",
        "min_random_model_delta", "require_random_model", ">",
    ),
    "random_decoder": Rule(
        "Do its seeds agree more than random decoders do?", "min_random_model_delta", "require_random_model", ">"
    ),
    "transcoder": Rule(
        "Do the seeds of a matched transcoder agree at least as much as its own?",
        "min_transcoder_delta", "require_transcoder", "≥",
    ),
    "ood": Rule("Does its probing delta survive a shift of domain?", "max_ood_drop", "require_ood", "≤"),
    "external_saebench": Rule(
        "Do a few of its latents probe as well as the whole activation?", "min_saebench_delta", "require_external", "≥"
    ),
    "external_cebench": Rule(
        "Do its latents tell stories apart at least as well as a matched baseline's?",
        "min_cebench_delta", "require_external", "≥",
    ),
    "external": Rule("Do both benchmarks pass?", 0.0, "require_external", "≥"),
}  # fmt: skip
"""Every gate, by name. A new gate on the members of the group is one row here."""


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
    members: Members, baseline: Members, controls: Sequence[ControlRow], params: GateParams, source: str = "frontier"
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
    return evaluate_gates(external_results(members, baseline, source), controls, params, members)


def external_results(members: Members, baseline: Members, source: str = "frontier") -> External:
    """The external deltas of a group with their t intervals; CE-Bench only against a matched baseline.

    Only those rows of `baseline` count that the deltas of these members are taken against.
    """
    if not members:
        imported = source.startswith(f"{IMPORTED}/")
        why = "the candidate is of an import: its numbers are no measurements of ours" if imported else ""
        return External(None, None, note=why or "no group was selected", source=source)
    members = sorted(members, key=lambda row: row.seed)  # a mean of floats depends on their order
    own = matched_baselines(members, baseline)
    deltas = [member.cebench_delta for member in members if member.cebench_delta is not None]
    l0, other = (fmean(row.l0 for row in rows) if rows else 0.0 for rows in (members, own))
    note = ""
    if len(deltas) < len(members):
        note = f"{len(members) - len(deltas)} of {len(members)} members have no cebench_delta"
    elif not own:
        note = "the baseline is not matched: none has the candidate's width, target k and seeds"
    elif not l0 or not is_matched(other, l0):
        note = f"the baseline is not matched: its l0 is {other:.4g}, the candidate's {l0:.4g}"
    saebench, cebench = mean_interval([row.saebench_delta for row in members]), None if note else mean_interval(deltas)
    score = fmean(row.cebench_interpretability for row in own) if own else None
    return External(saebench, cebench, score, min(row.cebench_ceiling for row in members), note, source)


def evaluate_gates(
    external: External, controls: Sequence[ControlRow], params: GateParams, members: Members = ()
) -> Policy:
    """Every gate's verdict and what follows; pass_all needs all required gates to pass.

    A control is read from its one row by its `delta`: candidate minus control for random_model and random_decoder
    (must exceed the threshold), transcoder minus candidate for transcoder (must reach it), in domain minus shifted for
    ood (may not exceed it). Raises DataError for two rows of one control.
    """
    rows = {row.control: row for row in controls}
    if len(rows) < len(controls):
        raise DataError(f"the stress record has {len(controls)} rows for {len(rows)} controls; keep one row a control")
    gates = []
    for name in CONTROLS:
        row = rows.get(name)
        bound = row and (row.delta_high if name == "ood" else row.delta_low)
        about = {"metric": row.metric, "note": row.note} if row else {"metric": "", "note": "the control was not run"}
        gates.append(_gate(name, params, value=row and row.delta, bound=bound, source="stress", **about))
    gates += _external(external, params)
    for name, rule in RULES.items():
        if rule.measure:
            found = mean_interval([rule.measure(member) for member in members]) if members else None
            end = found and (found.high if rule.sign == "≤" else found.low)
            about = {"metric": name, "source": external.source, "note": "" if found else external.note}
            gates.append(_gate(name, params, value=found and found.mean, bound=end, **about))
    required = [gate.verdict for gate in gates if gate.required]
    return Policy(tuple(gates), {*required} == {"pass"}, verdict_sentence(gates), params.basis)


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
    words = " ".join(WORDS.get(word, word) for word in name.split("_"))
    return "external (both)" if name == "external" else words


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
    note = "" if worst == "pass" else "both benchmarks must pass"
    joint = {"gate": "external", "metric": "smaller margin over both thresholds", "threshold": 0.0}
    for end in ("value", "bound"):
        margins = [getattr(gate, end) - gate.threshold for gate in both if getattr(gate, end) is not None]
        joint[end] = min(margins) if len(margins) == len(both) else None
    return [*both, both[0].model_copy(update=joint | {"verdict": worst, "note": note})]


def _gate(name: str, params: GateParams, **columns: Any) -> GateRow:
    """A gate with its metric, value, bound, source and note, and its verdict."""
    rule, number = RULES[name], columns["bound" if params.basis == "bound" else "value"]
    threshold = getattr(params, rule.threshold) if isinstance(rule.threshold, str) else rule.threshold
    required = getattr(params, rule.required) if isinstance(rule.required, str) else rule.required
    verdict = "pass" if number is not None and COMPARE[rule.sign](number, threshold) else "fail"
    if columns["value"] is None:
        verdict, columns["note"] = "missing", columns["note"] or "no result"
    elif number is None:
        columns["note"] = "; ".join(filter(None, ("too few seeds for a 95 % bound", columns["note"])))
    columns |= {"direction": "below" if rule.sign == "≤" else "above", "required": required}
    return GateRow(gate=name, threshold=threshold, verdict=verdict, **columns)
