"""How many fresh seeds or data sets would show a true value, from the spread of a finished run. Pure: no files.

The power of a gate is the probability that its bound lies on the right side of the threshold. For a mean over seeds it
is exact, from the noncentral t distribution. PW-MCC is no mean, so there the scaling of its jackknife deviation by
1 / sqrt(seeds) is an approximation. For SAEBench the standard errors over seeds and over data sets are taken as
independent, and the components of variance as known.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from husai_lib.decisions.gates import EXTERNAL, RULES, Judged
from husai_lib.errors import ParameterError
from husai_lib.evidence.rows.decided import GateRow
from husai_lib.evidence.rows.probes import delta_table, mean_delta
from husai_lib.intervals import LEVEL, jackknife_interval, share_of_luck, t_quantile
from husai_lib.params.sections import one_of

FEWEST, MOST = 3, 10_000
"""Numbers of seeds and of data sets that a plan considers: with fewer, PW-MCC has no bound."""
POINTS = 60
"""Points at which a chi-square distribution is taken."""
TINY = 1e-300


@dataclass(frozen=True)
class Need:
    """What one gate needs to pass with a given power."""

    gate: str
    threshold: float
    estimate: float | None
    true_value: float | None
    seeds_std: float | None = None
    """Standard deviation over seeds: the standard error times the root of their number. The same over data sets."""
    sets_std: float | None = None
    seeds: int | None = None
    """Number of fresh seeds needed, with the data sets of the run; None where no number is enough."""
    sets: int | None = None
    """Number of data sets needed, with as many seeds as the run has; None but for SAEBench."""
    remark: str = ""


@dataclass(frozen=True)
class Spread:
    """The components of variance of a mean over seeds and data sets, and the levels of its interval."""

    seeds: float
    sets: float = 0.0
    probes: float = 0.0
    """Of one seed on one data set."""
    level: float = LEVEL
    sets_level: float = LEVEL

    def deviations(self, seeds: int, sets: int) -> tuple[float, float]:
        """The standard deviations over seeds and over data sets that a table of this size shows."""
        return math.sqrt(self.seeds + self.probes / max(sets, 1)), math.sqrt(self.sets + self.probes / seeds)

    def power(self, margin: float, seeds: int, sets: int = 0) -> float:
        """How often the bound, over seeds alone without `sets`, reaches a threshold `margin` below the true value."""
        if not sets:
            shift = min(margin / math.sqrt(self.seeds / seeds or TINY), 1e3)
            return float(stats.nct.sf(t_quantile(seeds - 1, self.level), seeds - 1, shift))
        by_seed, by_set = self.deviations(seeds, sets)
        over_seeds = _half_widths(by_seed / math.sqrt(seeds), seeds, self.level)
        over_sets = _half_widths(by_set / math.sqrt(sets), sets, self.sets_level)
        error = math.sqrt(self.seeds / seeds + self.sets / sets + self.probes / (seeds * sets) or TINY)
        luck = share_of_luck(sets, self.sets_level)
        half = luck * over_sets + np.hypot.outer(over_seeds, (1 - luck) * over_sets)
        return float(stats.norm.cdf((margin - half) / error).mean())


def _half_widths(error: float, n: int, level: float) -> Any:
    """Half widths of the t interval over n values, at equally likely points of their distribution."""
    shares = (np.arange(POINTS) + 0.5) / POINTS
    return t_quantile(n - 1, level) * error * np.sqrt(stats.chi2.ppf(shares, n - 1) / (n - 1))


def needs(judged: Judged, gates: Iterable[GateRow], values: Mapping[str, float], power: float = 0.8) -> list[Need]:
    """What each gate but the joint one needs, if the true values are `values` or else the estimates."""
    return [_need(gate, judged, values.get(gate.gate, gate.value), power) for gate in gates if gate.gate != "external"]


def true_values(given: Iterable[str]) -> dict[str, float]:
    """True values by gate, from texts such as `external_cebench=0.5`; ParameterError for any other."""
    found: dict[str, float] = {}
    for text in given:
        name, _, number = (part.strip() for part in text.partition("="))
        try:
            gate, value = one_of(name, [rule for rule in RULES if rule != "external"], "gate"), float(number)
        except ValueError as error:
            why = error if "unknown" in str(error) else f"{number!r} is no number"
            raise ParameterError(f"--delta {text}: {why}; write GATE=VALUE, such as external_cebench=0.5") from None
        if gate in found or not math.isfinite(value):
            raise ParameterError(f"--delta {text}: give each gate one finite value")
        found[gate] = value
    return found


def _need(gate: GateRow, judged: Judged, true: float | None, power: float) -> Need:
    need, n = Need(gate.gate, gate.threshold, gate.value, true), len(judged.members)
    units = len({member.unit for member in judged.members}) if gate.metric == "pwmcc" else n
    if gate.value is None or gate.bound is None or gate.level is None or gate.verdict == "missing" or true is None:
        return replace(need, remark=gate.note or "no spread over seeds was measured")
    sets = len({row.data_set for row in judged.probes}) if gate.sets_level else 0
    std = abs(gate.value - gate.bound) / t_quantile(units - 1, gate.level) * math.sqrt(units)
    spread = _two_way(judged) if sets else Spread(std**2)
    over_seeds, over_sets = spread.deviations(units, sets)
    need = replace(need, seeds_std=over_seeds, sets_std=over_sets if sets else None)
    if gate.ceiling is not None and max(gate.threshold, true) > gate.ceiling:
        what = "threshold" if gate.threshold > gate.ceiling else "assumed true value"
        above = f"the {what} lies above {gate.ceiling:.4g}, the largest possible"
        return replace(need, remark=f"not by more seeds: {above}")
    margin = true - gate.threshold if gate.direction == "above" else gate.threshold - true
    if margin <= 0:
        return replace(need, remark="not by more seeds: the assumed true value does not lie beyond the threshold")
    seeds = _fewest(lambda count: spread.power(margin, count, sets), power)
    more_sets = _fewest(lambda count: spread.power(margin, n, count), power) if sets else None
    remark = "" if gate.gate in EXTERNAL else "approximate: no mean over seeds"
    if units < n:
        remark = "references rather than seeds, as seeds of one reference agree by construction; approximate"
    if sets and seeds is None:
        remark = f"not by more seeds: {sets} data sets alone leave too much open"
    return replace(need, seeds=seeds, sets=more_sets, remark=remark)


def _two_way(judged: Judged) -> Spread:
    """The components of variance of the SAEBench delta, from jackknifes and the residuals of a two-way table."""
    table, weights = delta_table(judged.probes)
    seeds, sets = map(range, table.shape)
    left = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    probes = float(np.square(left).sum()) / ((len(seeds) - 1) * (len(sets) - 1))
    over_seeds = jackknife_interval(lambda some: mean_delta(table, weights, some, sets), len(seeds), 1).std or 0.0
    over_sets = jackknife_interval(lambda some: mean_delta(table, weights, seeds, some), len(sets), 1).std or 0.0
    own = (max(over_seeds**2 - probes / len(sets), 0.0), max(over_sets**2 - probes / len(seeds), 0.0))
    return Spread(*own, probes, sets_level=judged.sets_level)


def _fewest(power_of: Callable[[int], float], power: float) -> int | None:
    """The smallest number from FEWEST to MOST that has this power, which grows with it; None where none has."""
    numbers = range(FEWEST, MOST + 1)
    at = bisect_left(numbers, power, key=power_of)
    return numbers[at] if at < len(numbers) else None
