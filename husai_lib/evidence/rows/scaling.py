"""Rows of phase 4e: what token budget, layer and width change, alone and together."""

from collections.abc import Iterable, Sequence
from itertools import product
from statistics import fmean
from typing import Any

from husai_lib.evidence.rows.base import MeasuredRow, RunTables, noted
from husai_lib.evidence.rows.measured import pairs_of
from husai_lib.intervals import jackknife_interval, mean_over_pairs
from husai_lib.params.scaling import AXES, ScalingParams, name_of

EFFECTS_ON = ("explained_variance", "pwmcc", "saebench_delta", "cebench_delta")
"""The metrics whose effects are estimated: two inside, two outside."""


class EffectRow(MeasuredRow):
    """What an axis of the grid does to a metric from its lowest to its highest level, or what two axes do together."""

    metric: str
    """explained_variance, pwmcc (across seeds), saebench_delta (AUC) or cebench_delta (SD)."""
    of: str
    """layer, tokens or d_sae; `a x b` is an interaction: how much more a does at the highest than at the lowest b."""
    change: str
    n_seeds: int
    effect: float | None
    """Mean over all levels of the other axes; null where the metric is missing."""
    low: float | None
    high: float | None
    """95 % interval over seeds: leave-one-seed-out jackknife, t(S - 1)."""

    def _derived(self, step: str, run: RunTables) -> dict[str, Any]:
        params = ScalingParams.model_validate(run.parameters["scaling"])
        seeds, of = params.seeds or run.parameters["seeds"], self.of.split(" x ")
        change = "; ".join(f"{params.levels[axis][0]:,} to {params.levels[axis][-1]:,}" for axis in of)
        about = {"change": change, "n_seeds": len(seeds), "effect": None, "low": None, "high": None}
        values = {point: _of_seeds(self.metric, point, seeds, step, run) for point in product(*params.levels.values())}
        smallest = 2 if self.metric == "pwmcc" else 1
        if len(seeds) < smallest or any(own is None for own in values.values()):
            missing = "a single seed has no agreement across seeds" if len(seeds) < smallest else "a delta is missing"
            return about | {"note": missing}

        def effect(some: Sequence[int]) -> float:
            found = []
            for sign, point in _contrast(params, of):
                own = values[point]
                value = fmean(own[i] for i in some) if isinstance(own, list) else mean_over_pairs(own, some)
                found.append(sign * value)
            return fmean(found) * float(2 ** len(of))

        found = jackknife_interval(effect, len(seeds), smallest)
        note = noted({"too few seeds for an interval": found.low is None})
        return about | {"effect": found.mean, "low": found.low, "high": found.high, "note": note}


def _contrast(params: ScalingParams, of: Sequence[str]) -> Iterable[tuple[int, tuple[int, ...]]]:
    """The points at the ends of the axes `of` and at all levels of the others; the sign is -1 per lowest level."""
    ends = {axis: (levels[0], levels[-1]) if axis in of else levels for axis, levels in params.levels.items()}
    for point in product(*ends.values()):
        lowest = sum(axis in of and value == ends[axis][0] for axis, value in zip(AXES, point, strict=True))
        yield (-1) ** lowest, point


def _of_seeds(metric: str, point: tuple[int, ...], seeds: Sequence[int], step: str, run: RunTables) -> Any:
    """A metric of one point: a value for each seed or, for pwmcc, the table of pairs; None where one is missing."""
    if metric == "pwmcc":
        return pairs_of(name_of(point), seeds, run.rows(step, "pairs")) if len(seeds) > 1 else None
    found = {row.seed: getattr(row, metric) for row in run.rows(step, "members", condition=name_of(point))}
    values = [found[seed] for seed in seeds]
    return None if None in values else values
