"""Effects of the grid of phase 4e: against numbers worked out by hand, and against least squares."""

from itertools import combinations, product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from husai_lib.evidence.rows.base import RunTables
from husai_lib.evidence.rows.scaling import EFFECTS_ON, EffectRow
from husai_lib.params.scaling import name_of

SEEDS = [3, 5, 8]
LEVELS = {"hook_layers": [0, 1], "tokens": [10, 30], "d_sae": [16, 32]}
CONDITION = {"architecture": "topk", "d_sae": 16, "k": 4, "training_samples": 64, "batch_size": 8}


def run(values: Any, pairs: Any = None, levels: dict[str, list[int]] = LEVELS, seeds: list[int] = SEEDS) -> RunTables:
    """A run whose members have `values(point, i)` as every metric, `i` the position of the seed."""
    points = [*product(*levels.values())]
    members = [
        SimpleNamespace(condition=name_of(point), seed=seed, **dict.fromkeys(EFFECTS_ON, values(point, i)))
        for point in points for i, seed in enumerate(seeds)
    ]  # fmt: skip
    rows = [
        SimpleNamespace(of=name_of(point), seed_a=seeds[i], seed_b=seeds[j], pwmcc=pairs(point, i, j))
        for point in points for i, j in (combinations(range(len(seeds)), 2) if pairs else ())
    ]  # fmt: skip
    scaling = {"condition": CONDITION, "seeds": seeds, **levels}
    return RunTables({("scaling", "members"): members, ("scaling", "pairs"): rows}, {"scaling": scaling, "seeds": [0]})


def effect(of: str, tables: RunTables, metric: str = "saebench_delta") -> EffectRow:
    return EffectRow.derive("scaling", tables, metric=metric, of=of)


def additive(point: tuple[int, ...], i: int) -> float:
    """Layer adds 5, budget 2 for each level of 10, width 0.5 a latent, and layer x width another 0.1 a latent."""
    layer, tokens, d_sae = point
    return 5 * layer + 0.2 * tokens + 0.5 * d_sae + 0.1 * layer * d_sae + i


def test_main_effects_are_those_that_were_put_in() -> None:
    tables = run(additive)
    assert effect("layer", tables).effect == pytest.approx(5 + 0.1 * 24)  # at the mean width
    assert effect("tokens", tables).effect == pytest.approx(0.2 * 20)
    assert effect("d_sae", tables).effect == pytest.approx((0.5 + 0.1 * 0.5) * 16)  # at the mean layer


def test_interactions_are_those_that_were_put_in() -> None:
    tables = run(additive)
    assert effect("layer x d_sae", tables).effect == pytest.approx(0.1 * 16)
    assert effect("layer x tokens", tables).effect == pytest.approx(0, abs=1e-12)
    assert effect("tokens x d_sae", tables).effect == pytest.approx(0, abs=1e-12)


def test_effects_are_the_coefficients_of_least_squares_on_coded_levels() -> None:
    noise = np.random.default_rng(0).normal(size=(8, 3))
    points = [*product(*LEVELS.values())]
    tables = run(lambda point, i: noise[points.index(point), i])
    coded = np.array([[2 * (value > levels[0]) - 1 for value, levels in zip(point, LEVELS.values(), strict=True)]
                      for point in points], float)  # fmt: skip
    columns = {
        "layer": coded[:, 0],
        "tokens": coded[:, 1],
        "d_sae": coded[:, 2],
        "layer x tokens": coded[:, 0] * coded[:, 1],
    }
    design = np.column_stack([np.ones(8), *columns.values()])
    found = np.linalg.lstsq(design, noise.mean(1), rcond=None)[0][1:]
    for (of, _), coefficient in zip(columns.items(), found, strict=True):
        times = 4 if " x " in of else 2
        assert effect(of, tables).effect == pytest.approx(times * coefficient)


def test_the_interval_is_the_t_interval_of_the_effects_of_single_seeds() -> None:
    noise = np.random.default_rng(1).normal(size=(8, 3))
    points = [*product(*LEVELS.values())]
    found = effect("tokens", run(lambda point, i: noise[points.index(point), i]))
    high = np.array([point[1] == 30 for point in points])
    of_seeds = noise[high].mean(0) - noise[~high].mean(0)
    low, top = stats.t.interval(0.95, 2, of_seeds.mean(), stats.sem(of_seeds))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(top))


def test_of_three_levels_an_axis_compares_the_ends_and_averages_over_all_levels_of_the_others() -> None:
    levels = LEVELS | {"tokens": [10, 20, 90]}
    tables = run(lambda point, i: {10: 1.0, 20: 100.0, 90: 4.0}[point[1]] * (1 + point[0]) + i, levels=levels)
    assert effect("tokens", tables).effect == pytest.approx(3 * 1.5)
    assert effect("tokens", tables).change == "10 to 90"
    assert effect("layer", tables).effect == pytest.approx((1 + 100 + 4) / 3)


def test_agreement_is_compared_pair_by_pair_and_leaves_out_one_seed_at_a_time() -> None:
    tables = run(additive, pairs=lambda point, i, j: (0.1 + 0.02 * (i + j)) * (1 + (point[2] == 32)))
    found = effect("d_sae", tables, "pwmcc")
    pairs = {(0, 1): 0.12, (0, 2): 0.14, (1, 2): 0.16}
    assert found.effect == pytest.approx(np.mean([*pairs.values()]))
    thetas = np.array([pairs[1, 2], pairs[0, 2], pairs[0, 1]])
    half = stats.t.ppf(0.975, 2) * np.sqrt(2 / 3 * np.square(thetas - thetas.mean()).sum())
    assert found.high == pytest.approx(found.effect + half)


def test_a_single_seed_has_effects_without_bounds_and_no_agreement() -> None:
    tables = run(additive, seeds=[42])
    found = effect("tokens", tables)
    assert (found.effect, found.low, found.n_seeds) == (pytest.approx(4.0), None, 1)
    assert found.note == "too few seeds for an interval"
    agreement = effect("tokens", tables, "pwmcc")
    assert (agreement.effect, agreement.note) == (None, "a single seed has no agreement across seeds")


def test_a_missing_delta_leaves_no_effect_and_says_so() -> None:
    found = effect("layer", run(lambda point, i: None if point == (1, 30, 32) and i == 1 else 0.5))
    assert (found.effect, found.low, found.high, found.note) == (None, None, None, "a delta is missing")
