"""Gates of cycles of 2026-02: as stated, and as the rules of that time give them from the stated numbers. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from husai_lib.earlier.json_parts import Part, first
from husai_lib.evidence.rows import EarlierGateRow

PASSED = {True: "pass", False: "fail", None: ""}
"""What a row says of a gate that passed, failed or was not judged."""
V2 = {
    "delta_pwmcc": ("gate_delta_pwmcc", "best_delta_pwmcc", "min_delta_pwmcc"),
    "delta_lcb": ("gate_delta_lcb", "best_delta_lcb", "min_delta_lcb"),
    "ev_drop": ("gate_ev_drop", "ev_drop", "max_ev_drop"),
    "external": ("gate_external", "external_delta", "min_external_delta"),
}
"""Of each gate of an assignment sweep: where it is stated, its value and its threshold."""
V3 = {
    "internal_lcb": ("gate_internal_lcb", "internal_lcb", "min_internal_lcb"),
    "ev_drop": ("gate_ev_drop", "ev_drop", "max_ev_drop"),
    "saebench": ("gate_saebench", "saebench_delta", "min_saebench_delta"),
    "cebench": ("gate_cebench", "cebench_delta", "min_cebench_delta"),
}
BENCHES = {"saebench": "saebench_delta", "cebench": "cebench_interp_delta_vs_baseline"}


def holds(value: float | None, threshold: float | None, below: bool = False, required: bool = True) -> str:
    """Whether a value passes: a missing one does if it is not required, NaN never; empty without a threshold."""
    if value is None:
        return PASSED[not required]
    if threshold is None:
        return PASSED[None]
    return PASSED[value <= threshold if below else value >= threshold]


def every(*verdicts: str) -> str:
    """The verdict on all: fail if one fails, else empty if one is unknown, else pass."""
    return "fail" if "fail" in verdicts else "" if "" in verdicts else "pass"


def gate_row(
    gate: str,
    stated: bool | None,
    follows: str,
    *,
    value: float | None = None,
    bound: float | None = None,
    threshold: float | None = None,
    direction: str = "above",
    required: bool = True,
    note: str = "",
) -> EarlierGateRow:
    """One row; numbers that are not finite are null, and its note says so."""
    numbers = {"value": value, "bound": bound, "threshold": threshold}
    odd = [
        f"{name} is {number}" for name, number in numbers.items() if number is not None and not math.isfinite(number)
    ]
    return EarlierGateRow(
        gate=gate, value=_finite(value), bound=_finite(bound), threshold=_finite(threshold), direction=direction,
        required=required, stated=PASSED[stated], follows=follows, note="; ".join(filter(None, (note, *odd))),
    )  # fmt: skip


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def acceptance(file: Part, gates: Mapping[str, tuple[str, str, str]], values: Part) -> list[EarlierGateRow]:
    """The gates V2 or V3 of an assignment sweep; v2 required no external result, v3 does where it says so."""
    stated, rows = file.part("acceptance"), []
    for gate, (flag, key, limit) in gates.items():
        below, value, threshold = limit.startswith("max"), values.raw(key), stated.number(limit)
        required = stated.flag("require_external") is True or gate not in {"external", *BENCHES}
        follows, direction = holds(value, threshold, below, required), "below" if below else "above"
        rows.append(
            gate_row(gate, stated.flag(flag), follows, value=value, threshold=threshold, direction=direction,
                     required=required)
        )  # fmt: skip
    return [*rows, gate_row("pass_all", stated.flag("pass_all"), every(*(row.follows for row in rows)))]


def policy(file: Part) -> list[EarlierGateRow]:
    """The gates of a release policy."""
    metrics, limits, stated = file.part("metrics"), file.part("thresholds"), file.part("gates")
    delta, low = metrics.raw("trained_random_delta"), metrics.raw("trained_random_delta_lcb")
    least, least_low = limits.number("min_trained_random_delta"), limits.number("min_trained_random_lcb")
    rows = [
        gate_row("random_model", stated.flag("random_model"), every(holds(delta, least), holds(low, least_low)),
                 value=delta, bound=low, threshold=least),
        _stress("transcoder", "transcoder_delta", "min_transcoder_delta", file),
        _stress("ood", "ood_drop", "max_ood_drop", file),
        *_external(metrics, limits, stated, limits.flag("require_external") is True),
    ]  # fmt: skip
    follows = every(*(row.follows for row in rows if not row.gate.startswith("external_")))
    return [*rows, gate_row("pass_all", stated.flag("pass_all"), follows)]


def _stress(gate: str, key: str, limit: str, file: Part) -> EarlierGateRow:
    limits, value, below = file.part("thresholds"), file.part("metrics").raw(key), limit.startswith("max")
    threshold, required = limits.number(limit), limits.flag(f"require_{gate}") is True
    return gate_row(
        gate, file.part("gates").flag(gate), holds(value, threshold, below, required), value=value,
        threshold=threshold, direction="below" if below else "above", required=required,
    )  # fmt: skip


def _external(metrics: Part, limits: Part, stated: Part, required: bool) -> list[EarlierGateRow]:
    """The external gate by its mode, after the two benchmarks' own where the policy has a mode."""
    mode, by_bound = limits.text("external_mode"), limits.flag("use_external_lcb") is True
    rows = {bench: _bench(bench, metrics, limits, stated, required) for bench in BENCHES}
    known = all(metrics.raw(key + "_ci95_low" if by_bound else key) is not None for key in BENCHES.values())
    value, threshold = metrics.raw("external_delta"), limits.number("min_external_delta")
    legacy, joint = holds(value, threshold, required=required), every(*(row.follows for row in rows.values()))
    without = PASSED[not required] if by_bound else legacy
    by_mode = {bench: row.follows for bench, row in rows.items()} | {
        "joint": joint,
        "auto": joint if known else without,
    }
    own = gate_row(
        "external", stated.flag("external"), by_mode.get(mode, legacy), value=value, threshold=threshold,
        required=required, note=f"by external_mode {mode}" if mode else "",
    )  # fmt: skip
    return [*(rows.values() if mode else ()), own]


def _bench(bench: str, metrics: Part, limits: Part, stated: Part, required: bool) -> EarlierGateRow:
    key, name, by_bound = BENCHES[bench], f"external_{bench}", limits.flag("use_external_lcb") is True
    least = limits.number(f"min_{bench}_delta")
    threshold = first(limits.number(f"min_{bench}_delta_lcb"), least) if by_bound else least
    value, bound = metrics.raw(key), metrics.raw(f"{key}_ci95_low")
    follows = holds(bound if by_bound else value, threshold, required=required)
    return gate_row(name, stated.flag(name), follows, value=value, bound=bound, threshold=threshold, required=required)
