"""How sure a mean over seeds is: 95 % two-sided intervals. Pure functions, no files, no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from husai_lib.errors import DataError

LEVEL = 0.95
Key = TypeVar("Key", bound=Hashable)
Pairs = NDArray[np.float64]
"""A statistic of every pair of seeds `[S, S]`: symmetric, 1 on the diagonal."""


@dataclass(frozen=True)
class Interval:
    """An estimate over seeds with its 95 % two-sided interval."""

    mean: float
    """The estimate."""
    low: float | None
    """Lower bound; None where too few seeds give none."""
    high: float | None
    n: int
    """Number of seeds."""
    std: float | None
    """Standard deviation over seeds, with n - 1; None for one seed."""


def mean_interval(
    values: Sequence[float],
    method: Literal["t", "normal", "bootstrap"] = "t",
    seed: int = 0,
    bootstraps: int = 2000,
) -> Interval:
    """The interval of the mean of `values`, one value a seed.

    `t`: Student's t with n - 1 degrees of freedom. `bootstrap`: percentiles of the means of resampled
    seeds. `normal`: z = 1.96 and a single value is its own bound, only to reproduce old decisions.
    With one value the others have no bounds. Raises ValueError for no value, NaN and infinity.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"an interval needs finite values, not {list(values)}")
    mean, n = float(x.mean()), x.size
    if n == 1:
        bound = mean if method == "normal" else None
        return Interval(mean, bound, bound, 1, None)
    std = float(x.std(ddof=1))
    if method == "bootstrap":
        draws = np.random.default_rng([seed, *b"mean_interval"]).integers(n, size=(bootstraps, n))
        low, high = np.quantile(x[draws].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(mean, float(low), float(high), n, std)
    half = (1.96 if method == "normal" else _t_quantile(n - 1)) * std / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, std)


def jackknife_interval(statistic: Callable[[Sequence[int]], float], n: int, smallest: int = 2) -> Interval:
    """The leave-one-seed-out jackknife interval of a statistic of n seeds that is no plain mean.

    `statistic(indices)` is its value on the seeds of these positions; it exists from `smallest` seeds
    on (2 for statistics of pairs), so with n <= smallest there are no bounds. Half width: t(n - 1)
    times the jackknife standard error, whose square is (n - 1) / n * sum (theta_i - mean theta)^2.
    `std` is that error times sqrt(n). Raises ValueError for n < smallest, NaN and infinity.
    """
    if n < smallest:
        raise ValueError(f"the statistic needs {smallest} seeds, not {n}")
    everyone = range(n)
    left_out = [[i for i in everyone if i != out] for out in everyone] if n > smallest else []
    estimate, *thetas = (float(statistic(indices)) for indices in [list(everyone), *left_out])
    if not np.isfinite([estimate, *thetas]).all():
        raise ValueError(f"the statistic is not finite: {estimate} on all seeds, {thetas} with one left out")
    if not thetas:
        return Interval(estimate, None, None, n, None)
    std = math.sqrt((n - 1) * float(np.square(np.array(thetas) - np.mean(thetas)).sum()))
    half = _t_quantile(n - 1) * std / math.sqrt(n)
    return Interval(estimate, estimate - half, estimate + half, n, std)


def pair_table(n: int, values: Mapping[tuple[int, int], float]) -> Pairs:
    """The table `[n, n]` of a statistic from its value for each pair of positions."""
    table = np.eye(n)
    for (i, j), value in values.items():
        table[i, j] = table[j, i] = value
    return table


def mean_over_pairs(pairs: Pairs, seeds: Sequence[int] | None = None) -> float:
    """Mean of a pair statistic over the pairs among `seeds` (positions; all by default)."""
    chosen = pairs if seeds is None else pairs[np.ix_(seeds, seeds)]
    return float(chosen[np.triu_indices(len(chosen), 1)].mean())


def pwmcc_interval(pairs: Pairs) -> Interval:
    """PW-MCC of several seeds with its jackknife interval, from the values of their pairs."""
    return jackknife_interval(lambda seeds: mean_over_pairs(pairs, seeds), len(pairs))


def pwmcc_difference(a: Pairs, b: Pairs) -> Interval:
    """PW-MCC(a) - PW-MCC(b), with the jackknife interval that leaves out the same seed of both.

    `a` and `b` are tables over the same seeds in the same order; DataError if their numbers of seeds differ.
    """
    if a.shape != b.shape:
        raise DataError(f"PW-MCC of {len(a)} and of {len(b)} seeds cannot be compared; train both over the same seeds")
    return jackknife_interval(lambda seeds: mean_over_pairs(a, seeds) - mean_over_pairs(b, seeds), len(a))


def difference_interval(a: Interval, b: Interval) -> Interval:
    """The interval of `a.mean - b.mean` of two independent groups of seeds: Welch's, with Satterthwaite's degrees.

    It is never narrower than either group's own t interval. Welch's alone can be, because the degrees of freedom
    grow where a small deviation joins a large one, so that noise would make a difference surer. No bounds where a
    group has a single seed or no `std`. `std` is the standard error times sqrt(n), n the seeds of both.
    """
    mean, n = a.mean - b.mean, a.n + b.n
    if a.std is None or b.std is None or min(a.n, b.n) < 2:
        return Interval(mean, None, None, n, None)
    sides = sorted((group.std / math.sqrt(group.n), group.n - 1) for group in (a, b) if group.std)
    error = math.hypot(*(own for own, _ in sides))
    halves = [_t_quantile(degrees) * own for own, degrees in sides]
    if error:  # two constant groups differ for sure
        halves.append(_t_quantile(1 / sum((own / error) ** 4 / degrees for own, degrees in sides)) * error)
    half = max(halves, default=0.0)
    return Interval(mean, mean - half, mean + half, n, error * math.sqrt(n))


def means_by(values: Iterable[tuple[Key, float]]) -> dict[Key, float]:
    """The mean of each key's values, in the order in which the keys first appear."""
    known: dict[Key, list[float]] = {}
    for key, value in values:
        known.setdefault(key, []).append(value)
    return {key: fmean(own) for key, own in known.items()}


@cache
def _t_quantile(degrees: float) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, degrees))
