"""Which weight of the consistency objective is the best of a sweep, and whether it is accepted."""

import math
from collections.abc import Sequence
from typing import Any

from husai_lib.evidence.rows.consistency import GATES, SweepRow
from husai_lib.params.consistency import AcceptanceParams


def best_of(rows: Sequence[SweepRow]) -> SweepRow:
    """The weight with the largest conservative delta among those that are accepted or, where none is, among all.

    Groups at lambda = 0 have no objective that could be accepted, so one is the best only of a sweep of nothing else.
    """
    weights = [row for row in rows if row.weight] or list(rows)
    accepted = [row for row in weights if row.accepted] or weights

    def deltas(row: SweepRow) -> list[float]:
        return [-math.inf if delta is None else delta for delta in (row.delta_lcb, row.delta_pwmcc)]

    return max(accepted, key=deltas)


def acceptance(rows: Sequence[SweepRow], limits: AcceptanceParams) -> dict[str, Any]:
    """The acceptance of a sweep as earlier cycles recorded it: limits, the best weight, its numbers and its gates."""
    best = best_of(rows)
    before = next(row for row in rows if row.condition == best.base)
    return {
        **limits.model_dump(),
        "best_condition": best.condition,
        "best_lambda": best.weight,
        "best_checkpoint_seed": best.checkpoint_seed,
        "best_delta_pwmcc": best.delta_pwmcc,
        "best_delta_lcb": best.delta_lcb,
        "best_explained_variance": best.explained_variance,
        "baseline_explained_variance": before.explained_variance,
        **{column: getattr(best, column) for column in ("ev_drop", "external_delta", "cebench_delta")},
        **{f"gate_{gate}": getattr(best, f"gate_{gate}") for gate in GATES},
        "pass_all": best.accepted,
    }
