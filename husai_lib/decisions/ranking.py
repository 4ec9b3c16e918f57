"""Groups ranked by their scores: the Pareto front, scaled metrics, a weighted sum. Arrays in, arrays out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from husai_lib.params.rules import Metric, SelectionParams

Scores = NDArray[np.float64]
"""`[..., groups, 3]` in the order of METRICS; -inf where a metric is missing, which is worse than any value."""
WEIGHTED: dict[Metric, str] = {"saebench": "SAEBench", "cebench": "CE-Bench", "train_ev": "explained variance"}
"""The weights of METRICS, in the same order, with their names in prose."""


class Ranking(NamedTuple):
    """What `rank` makes of scores `[..., groups, 3]`."""

    components: NDArray[np.float64]
    """`[..., groups, 3]`: each metric as it enters the joint score, before its weight."""
    joint: NDArray[np.float64]
    """`[..., groups]`: the weighted sum of the components."""
    front: NDArray[np.bool_]
    """`[..., groups]`: whether no other group dominates it."""
    winner: NDArray[np.intp]
    """`[...]`: the position of the best group on the front."""


def rank(scores: Scores, rules: SelectionParams) -> Ranking:
    """The groups by joint score, and which of them are on the Pareto front.

    The first two metrics span the front: a group is off it if another is at least as good in both and better in one.
    Of equal joint scores the first group wins; groups come in the order of their names.
    """
    front = _front(scores, rules)
    components = _ranks_on(front, scores) if rules.scaling == "rank" else minmax(scores, rules)
    joint = components @ np.array([rules.weights[name] for name in WEIGHTED])
    return Ranking(components, joint, front, np.where(front, joint, -np.inf).argmax(axis=-1))


def _front(scores: Scores, rules: SelectionParams) -> NDArray[np.bool_]:
    both = scores[..., :2]
    if rules.rules == "2026-02":  # a group without one of the two was never dominated
        both = np.where(np.isfinite(both).all(axis=-1, keepdims=True), both, np.nan)
    saebench, cebench = np.ascontiguousarray(np.moveaxis(both, -1, 0))
    front = np.ones(saebench.shape, dtype=bool)
    for g in range(saebench.shape[-1]):
        s, c = saebench[..., g : g + 1], cebench[..., g : g + 1]
        front &= ~((s >= saebench) & (c >= cebench) & ((s > saebench) | (c > cebench)))
    return front


def minmax(scores: Scores, rules: SelectionParams) -> NDArray[np.float64]:
    """Each metric scaled to 0..1 from the worst to the best of the groups, `[..., groups, 3]`; a missing one is 0.

    A metric on which all groups agree, to rounding, is 0 for all; under the rules 2026-02 it is 0.5.
    """
    values, then = np.where(np.isfinite(scores), scores, np.nan), rules.rules == "2026-02"
    low, high = (end.reduce(values, axis=-2, keepdims=True) for end in (np.fmin, np.fmax))  # both ignore NaN
    differs = high - low > (0.0 if then else 1e-12 * np.maximum(np.abs(high), np.abs(low)))
    scaled = np.where(differs, (values - low) / np.where(differs, high - low, 1.0), 0.5 * then)
    return np.where(np.isnan(values), 0.0, scaled)


def _ranks_on(front: NDArray[np.bool_], scores: Scores) -> NDArray[np.float64]:
    """The share of the front's other groups that a group exceeds, metric by metric."""
    below = np.zeros(scores.shape)
    for g in range(scores.shape[-2]):
        below += front[..., g, None, None] & (scores[..., g : g + 1, :] < scores)
    shares: NDArray[np.float64] = below / np.maximum(front.sum(axis=-1) - 1, 1)[..., None, None]
    return shares
