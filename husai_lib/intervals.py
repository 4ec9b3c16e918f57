"""How sure an estimate over seeds is: two-sided intervals, 95 % by default. Pure functions, no files, no torch."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from husai_lib.errors import DataError

LEVEL = 0.95
Key = TypeVar("Key", bound=Hashable)
Pairs = NDArray[np.float64]
"""A statistic of every pair of seeds `[S, S]`: symmetric, 1 on the diagonal."""


@dataclass(frozen=True)
class Interval:
    """An estimate over seeds with its two-sided interval."""

    mean: float
    low: float | None
    """Lower bound; None where too few seeds give none."""
    high: float | None
    n: int
    std: float | None
    """Standard deviation over seeds, with n - 1; None for one seed."""


def mean_interval(
    values: Sequence[float],
    method: Literal["t", "normal", "bootstrap"] = "t",
    seed: int = 0,
    bootstraps: int = 2000,
    level: float = LEVEL,
) -> Interval:
    """The interval of the mean of `values`, one value a seed.

    `t`: Student's t with n - 1 degrees of freedom. `bootstrap`: percentiles of the means of resampled
    seeds, far too narrow for fewer than ten. `normal`: z = 1.96 whatever the level, and a single value is its own
    bound, only to reproduce old decisions. With one value the others have no bounds. Raises ValueError for no value,
    NaN and infinity.
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
        low, high = np.quantile(x[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
        return Interval(mean, float(low), float(high), n, std)
    half = (1.96 if method == "normal" else t_quantile(n - 1, level)) * std / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, std)


def jackknife_interval(
    statistic: Callable[[Sequence[int]], float], n: int, smallest: int = 2, level: float = LEVEL
) -> Interval:
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
    half = t_quantile(n - 1, level) * std / math.sqrt(n)
    return Interval(estimate, estimate - half, estimate + half, n, std)


def two_way_interval(
    statistic: Callable[[Sequence[int], Sequence[int]], float],
    n_seeds: int,
    n_sets: int,
    level: float = LEVEL,
    sets_level: float | None = None,
) -> Interval:
    """The interval of a statistic over seeds and data sets, both of which are samples of what might have been used.

    `statistic(seeds, sets)` is its value on these positions. The variances of two jackknifes, one over seeds and one
    over data sets, are added, each with its own t: the half width is the root of the sum of the squared half widths,
    but for a `share_of_luck`. So the interval is never narrower than either, and it covers at least as often as it
    states. `sets_level` is the level of the part over data sets, where it differs because they selected what is
    measured. `std` and `n` are those over seeds. No bounds where there is a single seed or a single data set.
    """
    every_seed, every_set = range(n_seeds), range(n_sets)
    seeds = jackknife_interval(lambda some: statistic(some, every_set), n_seeds, 1, level)
    sets = jackknife_interval(lambda some: statistic(every_seed, some), n_sets, 1, sets_level or level)
    if seeds.high is None or sets.high is None:
        return Interval(seeds.mean, None, None, n_seeds, seeds.std)
    of_seeds, of_sets, luck = seeds.high - seeds.mean, sets.high - sets.mean, share_of_luck(n_sets, sets_level or level)
    half = luck * of_sets + math.hypot(of_seeds, (1 - luck) * of_sets)
    return Interval(seeds.mean, seeds.mean - half, seeds.mean + half, n_seeds, seeds.std)


def share_of_luck(n_sets: int, sets_level: float) -> float:
    """The share of the half width over data sets that selection by them may have added to the estimate.

    The best of the groups that share the error rate lies above its truth by the median of the largest of their t
    statistics. This part is no spread, so it is added to the half width and not to its square.
    """
    groups = max(1.0, (1 - LEVEL) / (1 - sets_level))
    return t_quantile(n_sets - 1, 2 * 0.5 ** (1 / groups) - 1) / t_quantile(n_sets - 1, sets_level)


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


def between_units(pairs: Pairs, units: Sequence[Hashable]) -> Pairs:
    """The table `[U, U]` of a pair statistic between units of related seeds: each the mean over its pairs of seeds.

    Seeds that were aligned with the same reference are related, so only pairs of different units say whether unrelated
    seeds agree. `units` names that of each seed; where all differ, the table is the same.
    """
    names = list(dict.fromkeys(units))
    of = [[i for i, unit in enumerate(units) if unit == name] for name in names]
    return pair_table(
        len(of), {(a, b): float(pairs[np.ix_(of[a], of[b])].mean()) for b in range(len(of)) for a in range(b)}
    )


def mean_within_units(pairs: Pairs, units: Sequence[Hashable]) -> float | None:
    """The mean of a pair statistic over the pairs of related seeds; None where there are none."""
    n = len(units)
    within = [float(pairs[i, j]) for j in range(n) for i in range(j) if units[i] == units[j]]
    return fmean(within) if within else None


def pwmcc_interval(pairs: Pairs, level: float = LEVEL) -> Interval:
    """PW-MCC of several seeds with its jackknife interval, from the values of their pairs."""
    return jackknife_interval(lambda seeds: mean_over_pairs(pairs, seeds), len(pairs), level=level)


def pwmcc_difference(a: Pairs, b: Pairs, level: float = LEVEL) -> Interval:
    """PW-MCC(a) - PW-MCC(b) with its jackknife interval, which leaves the same seed out of both."""
    if a.shape != b.shape:
        raise DataError(f"PW-MCC of {len(a)} and of {len(b)} seeds cannot be compared; train both over the same seeds")
    return jackknife_interval(lambda some: mean_over_pairs(a, some) - mean_over_pairs(b, some), len(a), level=level)


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
    halves = [t_quantile(degrees) * own for own, degrees in sides]
    if error:  # two constant groups differ for sure
        halves.append(t_quantile(1 / sum((own / error) ** 4 / degrees for own, degrees in sides)) * error)
    half = max(halves, default=0.0)
    return Interval(mean, mean - half, mean + half, n, error * math.sqrt(n))


def means_by(values: Iterable[tuple[Key, float]]) -> dict[Key, float]:
    """The mean of each key's values, in the order in which the keys first appear."""
    known: dict[Key, list[float]] = {}
    for key, value in values:
        known.setdefault(key, []).append(value)
    return {key: fmean(own) for key, own in known.items()}


@cache
def t_quantile(degrees: float, level: float = LEVEL) -> float:
    """The half width of a two-sided t interval, in standard errors."""
    from scipy import stats  # noqa: PLC0415 - takes most of a second, which `husai ls` and others do without

    return float(stats.t.ppf((1 + level) / 2, degrees))
