"""The acceptance of a sweep of February 2026, repeated from its imported rows by today's verdicts. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from husai_lib.evidence.rows.consistency import acceptance_verdicts
from husai_lib.evidence.rows.earlier import EarlierSweepRow
from husai_lib.params.consistency import AcceptanceParams


def sweep_acceptance(
    rows: Sequence[EarlierSweepRow], limits: AcceptanceParams, external: float | None = None
) -> dict[str, Any]:
    """The best strength of a sweep with its numbers and its gates, under the names of `decisions.acceptance`.

    Strengths that fail a gate are left out before ranking, unless all do. `external` is the SAEBench delta of a sweep
    that evaluated none of its own SAEs (v2). A value that a row lacks makes its gate missing.
    """
    [before] = [row for row in rows if row.lambda_consistency == 0]
    judged = [(row, values := _values(row, before, external), acceptance_verdicts(values, limits.model_dump()))
              for row in rows]  # fmt: skip
    accepted = [one for one in judged if {*one[2].values()} <= {"pass", ""}] or judged
    best, values, verdicts = max(accepted, key=lambda one: (one[0].delta_low is not None, one[0].delta_low or 0.0))
    return {
        "best_lambda": best.lambda_consistency,
        "best_delta_pwmcc": values["delta_pwmcc"],
        "best_delta_lcb": values["delta_lcb"],
        "best_explained_variance": best.explained_variance,
        "baseline_explained_variance": before.explained_variance,
        "ev_drop": values["ev_drop"],
        "external_delta": values["external"],
        "cebench_delta": values["cebench"],
        **{f"gate_{gate}": verdict for gate, verdict in verdicts.items()},
        "pass_all": {*verdicts.values()} <= {"pass", ""},
    }


def _values(row: EarlierSweepRow, before: EarlierSweepRow, external: float | None) -> dict[str, float | None]:
    """What the gates read of one strength."""
    own, other = row.explained_variance, before.explained_variance
    return {
        "delta_pwmcc": row.delta,
        "delta_lcb": row.delta_low,
        "ev_drop": None if own is None or other is None else other - own,
        "external": external if row.saebench_delta is None else row.saebench_delta,
        "cebench": row.cebench_delta,
    }
