"""Intervals over seeds against scipy, hand-written formulas and the bounds of an earlier cycle."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from husai_lib.intervals import (
    Interval,
    between_units,
    difference_interval,
    jackknife_interval,
    mean_interval,
    mean_over_pairs,
    mean_within_units,
    pair_table,
    pwmcc_difference,
    pwmcc_interval,
    share_of_luck,
    two_way_interval,
)

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "cycle3" / "selection_summary.json"
values = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12)


def test_t_interval_of_three_seeds_by_hand():
    # mean 2, std 1, t(0.975, 2) = 4.3027: half width 4.3027 / sqrt(3) = 2.4841
    interval = mean_interval([1.0, 2.0, 3.0])
    assert (interval.mean, interval.std, interval.n) == (2.0, 1.0, 3)
    assert interval.low == pytest.approx(2 - 2.48414, abs=1e-5)
    assert interval.high == pytest.approx(2 + 2.48414, abs=1e-5)


@given(values)
def test_t_interval_is_scipys(numbers):
    expected = stats.ttest_1samp(numbers, 0.0).confidence_interval(0.95) if np.ptp(numbers) > 1e-3 else None
    interval = mean_interval(numbers)
    assert interval.std == pytest.approx(np.std(numbers, ddof=1), rel=1e-9, abs=1e-9)
    if expected:
        assert [interval.low, interval.high] == pytest.approx([expected.low, expected.high], rel=1e-6, abs=1e-6)


def test_the_level_of_an_interval_is_chosen():
    # t(0.995, 2) = 9.92484 on the standard error 1 / sqrt(3); z stays 1.96
    seeds = [1.0, 2.0, 3.0]
    assert mean_interval(seeds, level=0.99).high == pytest.approx(2 + 9.92484 / math.sqrt(3), abs=1e-5)
    assert jackknife_interval(lambda some: np.mean([seeds[i] for i in some]), 3, 1, 0.99).low == pytest.approx(
        2 - 9.92484 / math.sqrt(3), abs=1e-5
    )
    assert mean_interval(seeds, "normal", level=0.99) == mean_interval(seeds, "normal")
    draws = np.random.default_rng(1).normal(size=50)
    expected = stats.bootstrap((draws,), np.mean, n_resamples=20000, method="percentile", rng=1, confidence_level=0.8)
    interval = mean_interval(draws, "bootstrap", bootstraps=20000, level=0.8)
    assert [interval.low, interval.high] == pytest.approx([*expected.confidence_interval], abs=0.01)


def test_the_level_of_pwmcc_intervals_is_chosen():
    pairs = np.array([[1.0, 0.2, 0.4], [0.2, 1.0, 0.9], [0.4, 0.9, 1.0]])
    half = stats.t.ppf(0.995, 2) * math.sqrt(0.52 / 3)  # as in the jackknife by hand below
    assert pwmcc_interval(pairs, 0.99).low == pytest.approx(0.5 - half)
    assert pwmcc_difference(pairs, np.ones((3, 3)), 0.99).low == pytest.approx(-0.5 - half)


@pytest.mark.parametrize(("method", "stated"), [("t", 0.025), ("normal", 0.103), ("bootstrap", 0.127)])
def test_with_three_seeds_only_t_bounds_lie_above_the_truth_as_rarely_as_they_state(method, stated):
    draws = np.random.default_rng(0).normal(size=(4000, 3))
    above = np.mean([mean_interval(seeds, method, bootstraps=200).low > 0 for seeds in draws])
    assert above == pytest.approx(stated, abs=3 * math.sqrt(stated * (1 - stated) / 4000))


@given(values, st.sampled_from(["t", "normal", "bootstrap"]))
def test_bounds_enclose_the_mean(numbers, method):
    interval = mean_interval(numbers, method, bootstraps=200)
    slack = 1e-9 * (1 + abs(interval.mean)) + (interval.std if method == "bootstrap" else 0)
    assert interval.low - slack <= interval.mean <= interval.high + slack


def test_normal_interval_uses_1_96():
    half = 1.96 * math.sqrt(0.5) / math.sqrt(2)  # values 0 and 1: std sqrt(1/2)
    interval = mean_interval([0.0, 1.0], "normal")
    assert [interval.low, interval.high] == pytest.approx([0.5 - half, 0.5 + half], abs=1e-15)


@pytest.mark.parametrize("method", ["t", "bootstrap"])
def test_one_seed_has_no_bound(method):
    interval = mean_interval([0.3], method)
    assert (interval.mean, interval.low, interval.high, interval.n, interval.std) == (0.3, None, None, 1, None)


def test_one_seed_is_its_own_bound_only_under_the_old_rule():
    interval = mean_interval([0.3], "normal")
    assert (interval.low, interval.high) == (0.3, 0.3)


def test_bootstrap_agrees_with_scipys_percentile_bootstrap():
    numbers = np.random.default_rng(5).normal(size=40)
    expected = stats.bootstrap((numbers,), np.mean, n_resamples=20000, method="percentile", rng=1).confidence_interval
    interval = mean_interval(numbers, "bootstrap", seed=3, bootstraps=20000)
    assert [interval.low, interval.high] == pytest.approx([expected.low, expected.high], abs=0.01)
    assert interval == mean_interval(numbers, "bootstrap", seed=3, bootstraps=20000)
    assert interval != mean_interval(numbers, "bootstrap", seed=4, bootstraps=20000)


@pytest.mark.parametrize("numbers", [[], [math.nan], [1.0, math.inf], [1.0, 2.0, -math.inf]])
@pytest.mark.parametrize("method", ["t", "normal", "bootstrap"])
def test_what_is_not_finite_is_refused(numbers, method):
    with pytest.raises(ValueError, match="finite"):
        mean_interval(numbers, method)


def test_signed_zero_is_a_value():
    assert mean_interval([0.0, -0.0, 0.0]).low == 0.0


@pytest.mark.skipif(not GOLDEN.exists(), reason="the golden cases are not beside this checkout")
def test_bounds_of_cycle_3_are_reproduced():
    names = ("saebench_delta", "cebench_interp_delta_vs_baseline", "train_explained_variance")
    groups = json.loads(GOLDEN.read_text())["ranked_candidates"]
    for group in groups:
        for name in names:
            interval = mean_interval([seed["metrics"][name] for seed in group["seed_candidates"]], "normal")
            old = {key: group["metrics"][f"{name}_{key}"] for key in ("mean", "std", "ci95_low", "ci95_high", "n")}
            new = (interval.mean, interval.std, interval.low, interval.high, interval.n)
            assert new == pytest.approx(tuple(old.values()), rel=1e-12), (group["condition_id"], name)
            assert mean_interval([s["metrics"][name] for s in group["seed_candidates"]]).low < old["ci95_low"]
    assert len(groups) == 8


@given(values.filter(lambda numbers: len(numbers) >= 3))
def test_jackknife_of_a_mean_is_its_t_interval(numbers):
    # The leave-one-out means differ by (x_i - mean) / (n - 1), so the jackknife error is std / sqrt(n).
    expected = mean_interval(numbers)
    interval = jackknife_interval(lambda seeds: np.mean([numbers[i] for i in seeds]), len(numbers), smallest=1)
    slack = 1e-7 * (1 + max(map(abs, numbers)))
    assert (interval.mean, interval.low, interval.high, interval.std) == pytest.approx(
        (expected.mean, expected.low, expected.high, expected.std), rel=1e-7, abs=slack
    )


def test_jackknife_of_a_pair_statistic_by_hand():
    # Pairs 01, 02, 12 have 0.2, 0.4, 0.9: estimate 0.5; leaving out a seed leaves one pair:
    # 0.9, 0.4, 0.2 with mean 0.5. se^2 = 2/3 * (0.16 + 0.01 + 0.09) = 0.52/3.
    pairs = {(0, 1): 0.2, (0, 2): 0.4, (1, 2): 0.9}
    interval = jackknife_interval(lambda s: np.mean([v for p, v in pairs.items() if set(p) <= set(s)]), 3)
    half = stats.t.ppf(0.975, 2) * math.sqrt(0.52 / 3)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=1e-12)


def test_jackknife_has_no_bound_where_leaving_one_out_leaves_nothing():
    interval = jackknife_interval(lambda seeds: float(len(seeds)), 2)
    assert (interval.mean, interval.low, interval.high, interval.std) == (2.0, None, None, None)


def test_jackknife_refuses_too_few_seeds_and_what_is_not_finite():
    with pytest.raises(ValueError, match="needs 2 seeds, not 1"):
        jackknife_interval(len, 1)
    with pytest.raises(ValueError, match="not finite"):
        jackknife_interval(lambda seeds: math.nan if 0 in seeds else 1.0, 3)


# Over references, of which several seeds are copies

# Seeds 0 and 3 copied a, 1 and 4 copied b, 2 copied c.
UNITS = ["a", "b", "c", "a", "b"]
OF_RELATED = {(0, 3): 0.9, (1, 4): 0.8}
OF_UNRELATED = {(0, 1): 0.3, (0, 4): 0.5, (1, 3): 0.1, (3, 4): 0.3, (0, 2): 0.2, (2, 3): 0.4, (1, 2): 0.5, (2, 4): 0.7}
COPIES = pair_table(5, OF_RELATED | OF_UNRELATED)


def test_agreement_between_references_is_the_mean_over_the_pairs_of_their_seeds_by_hand():
    # a and b: 0.3, 0.5, 0.1, 0.3 with mean 0.3; a and c: 0.2, 0.4 with 0.3; b and c: 0.5, 0.7 with 0.6
    expected = [[1.0, 0.3, 0.3], [0.3, 1.0, 0.6], [0.3, 0.6, 1.0]]
    np.testing.assert_allclose(between_units(COPIES, UNITS), expected, atol=1e-12)
    assert mean_within_units(COPIES, UNITS) == pytest.approx((0.9 + 0.8) / 2)


def test_the_interval_over_references_leaves_out_each_with_all_its_seeds_by_hand():
    # PW-MCC (0.3 + 0.3 + 0.6) / 3 = 0.4; without a 0.6, without b 0.3, without c 0.3, with mean 0.4.
    # se^2 = 2/3 * (0.04 + 0.01 + 0.01) = 0.04: half width t(0.975, 2) * 0.2 = 4.302653 * 0.2
    found = pwmcc_interval(between_units(COPIES, UNITS))
    assert (found.mean, found.n) == (pytest.approx(0.4), 3)
    assert (found.low, found.high) == pytest.approx((0.4 - 0.8605306, 0.4 + 0.8605306), abs=1e-6)


@given(st.integers(2, 7), st.integers(0, 2**32 - 1))
def test_seeds_without_references_are_the_units_themselves(n, seed):
    rng = np.random.default_rng(seed)
    pairs = pair_table(n, {(i, j): rng.random() for j in range(n) for i in range(j)})
    assert between_units(pairs, range(n)).tolist() == pairs.tolist()
    assert mean_within_units(pairs, range(n)) is None


def test_two_references_give_no_bound_however_many_seeds_copy_them():
    pairs = pair_table(8, {(i, j): 0.5 for j in range(8) for i in range(j)})
    found = pwmcc_interval(between_units(pairs, [0, 1] * 4))
    assert (found.mean, found.low, found.high, found.n) == (0.5, None, None, 2)


def test_the_seeds_of_one_reference_are_all_related():
    pairs = pair_table(3, {(0, 1): 0.9, (0, 2): 0.7, (1, 2): 0.8})
    assert between_units(pairs, [7, 7, 7]).tolist() == [[1.0]]
    assert mean_within_units(pairs, [7, 7, 7]) == pytest.approx(0.8)


def copied_set(rng, references, copies, mean):
    """PW-MCC of seeds that are copies of references: a pair has what its two references share, and a little noise."""
    units = np.repeat(np.arange(references), copies)
    of_reference, n = rng.normal(scale=0.03, size=references), len(units)
    noise = rng.normal(scale=0.01, size=(n, n))
    shared = mean + of_reference[:, None] + of_reference[None, :]
    return {(i, j): shared[units[i], units[j]] + noise[i, j] for j in range(n) for i in range(j)}, units


def test_a_jackknife_over_seeds_is_too_narrow_where_seeds_copy_references_and_one_over_references_is_not():
    rng, sets, mean = np.random.default_rng(0), 400, 0.5
    covered = {"references": 0, "seeds": 0}
    for _ in range(sets):
        values, units = copied_set(rng, references=4, copies=4, mean=mean)
        pairs, unrelated = pair_table(16, values), units[:, None] != units[None, :]

        def over_seeds(some, pairs=pairs, unrelated=unrelated):
            own = np.ix_(some, some)
            return float(pairs[own][unrelated[own]].mean())

        for name, found in (
            ("references", pwmcc_interval(between_units(pairs, list(units)))),
            ("seeds", jackknife_interval(over_seeds, 16)),
        ):
            assert found.mean == pytest.approx(mean_over_pairs(between_units(pairs, list(units))))
            covered[name] += found.low <= mean <= found.high
    assert covered["references"] / sets >= 0.92
    assert covered["seeds"] / sets <= 0.75  # instead of 0.95


# Over seeds and data sets


def mean_of(table):
    return lambda seeds, sets: float(table[np.ix_(seeds, sets)].mean())


def test_a_two_way_interval_by_hand():
    # Seeds -0.1, 0, 0.1: deviation 0.1, error 0.1 / sqrt(3), t(0.975, 2) = 4.30265: half width 0.248414.
    # Data sets 0, 0, 0.3, 0.3: deviation sqrt(0.03), error sqrt(0.03) / 2, t(0.975, 3) = 3.18245: half width 0.275608.
    # The root of the sum of their squares is 0.371035.
    table = np.add.outer([-0.1, 0.0, 0.1], [0.0, 0.0, 0.3, 0.3])
    found = two_way_interval(mean_of(table), 3, 4)
    assert (found.mean, found.n, found.std) == (pytest.approx(0.15), 3, pytest.approx(0.1))
    assert [found.low, found.high] == pytest.approx([0.15 - 0.371035, 0.15 + 0.371035], abs=1e-5)
    # One part alone gives its interval at its own level: t(0.995, 2) = 9.92484, t(0.995, 3) = 5.84091
    seeds, sets = np.add.outer([-0.1, 0.0, 0.1], [0.0] * 4), np.add.outer([0.0] * 3, [0.0, 0.0, 0.3, 0.3])
    assert two_way_interval(mean_of(seeds), 3, 4, 0.99).high == pytest.approx(9.92484 * 0.1 / math.sqrt(3), abs=1e-5)
    assert two_way_interval(mean_of(seeds), 3, 4, 0.95, 0.99).high == pytest.approx(0.248414, abs=1e-5)
    both = two_way_interval(mean_of(sets), 3, 4, 0.95, 0.99), two_way_interval(mean_of(sets), 3, 4, 0.99)
    assert [one.high - 0.15 for one in both] == pytest.approx([5.84091 * math.sqrt(0.03) / 2] * 2, abs=1e-5)


def test_the_luck_of_the_best_of_several_groups_is_its_median():
    # At 0.99 the error rate of 0.95 is shared by five groups, each with a t(3) statistic of its data sets.
    largest = np.random.default_rng(0).standard_t(3, size=(40_000, 5)).max(1)
    assert share_of_luck(4, 0.99) * stats.t.ppf(0.995, 3) == pytest.approx(np.median(largest), rel=0.02)


@given(st.integers(2, 6), st.integers(2, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=examples(100))
def test_the_two_way_interval_of_a_mean_has_the_half_widths_of_both_t_intervals(n_seeds, n_sets, seed):
    table = np.random.default_rng(seed).normal(size=(n_seeds, n_sets))
    found = two_way_interval(lambda seeds, sets: table[np.ix_(seeds, sets)].mean(), n_seeds, n_sets)
    halves = [stats.sem(own) * stats.t.ppf(0.975, len(own) - 1) for own in (table.mean(axis=1), table.mean(axis=0))]
    assert found.mean == pytest.approx(table.mean(), abs=1e-12)
    assert found.high - found.mean == pytest.approx(math.hypot(*halves), rel=1e-9)
    assert found.std == pytest.approx(table.mean(axis=1).std(ddof=1), rel=1e-9)


def test_the_luck_of_data_sets_that_selected_is_added_and_not_squared():
    table = np.add.outer([-1.0, 0.0, 1.0], [0.0, 2.0, 4.0, 6.0])
    found = two_way_interval(lambda seeds, sets: table[np.ix_(seeds, sets)].mean(), 3, 4, 0.95, 1 - 0.05 / 7)
    error = stats.sem([0.0, 2.0, 4.0, 6.0])
    luck, whole = stats.t.ppf(0.5 ** (1 / 7), 3) * error, stats.t.ppf(1 - 0.025 / 7, 3) * error
    seeds = stats.t.ppf(0.975, 2) / math.sqrt(3)
    assert found.mean - found.low == pytest.approx(luck + math.hypot(seeds, whole - luck))
    assert found.mean - found.low > math.hypot(seeds, whole)


def test_without_a_selection_there_is_no_luck():
    assert share_of_luck(8, 0.95) == share_of_luck(8, 0.9) == pytest.approx(0, abs=1e-12)
    assert 0 < share_of_luck(8, 1 - 0.05 / 7) < share_of_luck(8, 1 - 0.05 / 50) < 1


@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (1, 1)])
def test_a_single_seed_or_data_set_gives_no_two_way_bounds(shape):
    table = np.arange(float(math.prod(shape))).reshape(shape)
    found = two_way_interval(mean_of(table), *shape)
    assert (found.mean, found.low, found.high, found.n) == (table.mean(), None, None, shape[0])


def test_a_two_way_interval_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="not finite"):
        two_way_interval(lambda seeds, sets: math.nan if 1 not in sets else 0.0, 3, 3)


shapes = st.tuples(st.integers(2, 6), st.integers(2, 8))
tables = shapes.flatmap(lambda s: st.lists(st.lists(st.floats(-10, 10), min_size=s[1], max_size=s[1]), min_size=s[0],
                                           max_size=s[0]))  # fmt: skip
levels = st.floats(0.5, 0.999)


@given(tables, levels, levels)
def test_a_two_way_interval_is_never_narrower_than_one_over_seeds_or_over_data_sets(rows, level, sets_level):
    table = np.array(rows)
    found = two_way_interval(mean_of(table), *table.shape, level, sets_level)
    seeds, sets = mean_interval(table.mean(1), level=level), mean_interval(table.mean(0), level=sets_level)
    half, parts = found.high - found.mean, [one.high - one.mean for one in (seeds, sets)]
    assert found.mean == pytest.approx(table.mean(), abs=1e-12)
    assert half >= math.hypot(*parts) * (1 - 1e-7) - 1e-9


@given(tables, levels, st.floats(0, 1), st.booleans())
def test_a_higher_level_never_narrows_a_two_way_interval(rows, level, more, sets):
    table, higher = np.array(rows), level + more * (0.999 - level)
    chosen = [(0.95, x) if sets else (x, 0.95) for x in (level, higher)]
    narrow, wide = (two_way_interval(mean_of(table), *table.shape, *own) for own in chosen)
    assert wide.high >= narrow.high - 1e-9


@pytest.mark.parametrize(
    ("of_seeds", "of_sets", "of_both"), [(1.0, 1.0, 0.0), (1.0, 0.3, 1.0), (0.3, 1.0, 1.0), (1.0, 1.0, 3.0)]
)
def test_a_two_way_interval_covers_at_least_as_often_as_it_states(of_seeds, of_sets, of_both):
    """Seeds and data sets both vary, and their interaction; an interval over one of them alone covers too rarely."""
    rng, cycles, (n_seeds, n_sets) = np.random.default_rng(0), 1500, (4, 8)
    covered = {"seeds": 0, "sets": 0, "both": 0}
    for _ in range(cycles):
        seeds, sets = rng.normal(size=(n_seeds, 1)) * of_seeds, rng.normal(size=n_sets) * of_sets
        table = seeds + sets + rng.normal(size=(n_seeds, n_sets)) * of_both
        found = {"seeds": mean_interval(table.mean(1)), "sets": mean_interval(table.mean(0))}
        found["both"] = two_way_interval(mean_of(table), n_seeds, n_sets)
        for name, interval in found.items():
            covered[name] += interval.low <= 0 <= interval.high
    noise = math.sqrt(0.95 * 0.05 / cycles)
    assert covered["both"] / cycles > 0.95 - 3 * noise
    assert min(covered["seeds"], covered["sets"]) / cycles < 0.95 - 3 * noise


samples = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8)
spreads = st.one_of(st.just(0.0), st.floats(1e-9, 1e3))
sizes = st.integers(2, 12)


def group(mean, std, n):
    """A group of n seeds; its own bounds play no part in a difference."""
    return Interval(mean, None, None, n, std)


def test_welch_interval_by_hand():
    # Standard errors 0.3 / sqrt(9) = 0.1 and 0.8 / sqrt(16) = 0.2: error sqrt(0.05), degrees of freedom
    # 0.05^2 / (0.1^4 / 8 + 0.2^4 / 15) = 0.0025 / (0.0000125 + 0.000106667) = 20.979.
    difference = difference_interval(group(1.0, 0.3, 9), group(0.4, 0.8, 16))
    half = stats.t.ppf(0.975, 20.979) * math.sqrt(0.05)
    assert (difference.mean, difference.n) == (pytest.approx(0.6), 25)
    assert [difference.low, difference.high] == pytest.approx([0.6 - half, 0.6 + half], abs=1e-5)
    assert difference.std == pytest.approx(math.sqrt(0.05 * 25))


@given(samples, samples)
def test_interval_of_a_difference_is_scipys_welch_or_that_of_the_noisier_side(a, b):
    if np.ptp(a) < 1e-3 or np.ptp(b) < 1e-3:
        return
    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    alone = [(side.high - side.low) / 2 for side in map(mean_interval, (a, b))]
    mean = np.mean(a) - np.mean(b)
    half = max((welch.high - welch.low) / 2, *alone)
    difference = difference_interval(mean_interval(a), mean_interval(b))
    assert [difference.low, difference.high] == pytest.approx([mean - half, mean + half], rel=1e-6, abs=1e-6)


def test_welch_alone_would_be_surer_for_more_noise_and_ours_is_not():
    # Five seeds with standard error 1 against three constant ones: 4 degrees of freedom, t = 2.776. A standard error
    # of 0.3 in those three gives Welch 1.09^2 / (1 / 4 + 0.3^4 / 2) = 4.677 degrees, and a narrower interval.
    still, noisy = group(0.0, 0.0, 3), group(0.0, 0.3 * math.sqrt(3), 3)
    five = group(0.0, math.sqrt(5), 5)
    assert stats.t.ppf(0.975, 4.677) * math.sqrt(1.09) < stats.t.ppf(0.975, 4)
    for other in (still, noisy):
        assert difference_interval(five, other).high == pytest.approx(stats.t.ppf(0.975, 4))


@settings(max_examples=examples(1000), deadline=None)
@given(spreads, spreads, spreads, sizes, sizes)
def test_more_spread_on_either_side_never_narrows_the_interval_of_a_difference(spread, more, other, n, m):
    narrow, wide = (difference_interval(group(0.0, s, n), group(0.0, other, m)) for s in (spread, spread + more))
    assert narrow.high <= wide.high * (1 + 1e-12)
    assert narrow.low >= wide.low * (1 + 1e-12)


@settings(max_examples=examples(500), deadline=None)
@given(samples, samples)
def test_the_difference_of_a_and_b_is_minus_that_of_b_and_a(a, b):
    forward, back = (difference_interval(*map(mean_interval, pair)) for pair in ((a, b), (b, a)))
    assert (forward.mean, forward.low, forward.high) == (-back.mean, -back.high, -back.low)
    assert (forward.std, forward.n) == (back.std, back.n)


def test_constant_groups_differ_for_sure():
    assert difference_interval(group(0.3, 0.0, 3), group(0.1, 0.0, 2)) == Interval(
        0.3 - 0.1, 0.3 - 0.1, 0.3 - 0.1, 5, 0.0
    )
    one = difference_interval(group(0.0, 0.0, 3), group(-0.0, 2.0, 4))  # t(3) = 3.1824, standard error 1
    assert [one.low, one.high] == pytest.approx([-3.18245, 3.18245], abs=1e-5)


@pytest.mark.parametrize(
    "alone",
    [mean_interval([0.3]), group(0.3, 0.0, 1), group(0.3, None, 3)],
    ids=["one seed", "one seed, its deviation stated as 0", "no deviation stated"],
)
def test_a_difference_has_no_bounds_where_one_side_has_no_deviation(alone):
    three = mean_interval([0.1, 0.1, 0.1])
    assert difference_interval(alone, three) == Interval(pytest.approx(0.2), None, None, alone.n + 3, None)
    assert difference_interval(three, alone).low is None


def test_deviations_too_small_to_be_squared_still_count():
    tiny = group(0.0, 1e-200, 4)
    assert difference_interval(tiny, group(0.0, 0.0, 4)).high == pytest.approx(stats.t.ppf(0.975, 3) * 5e-201)
