"""Matching of dictionaries against brute force, scipy's subspace angles and hand-made decoders."""

import json
import subprocess
import sys
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.linalg import subspace_angles
from scipy.sparse import csc_array

from husai_lib.errors import DataError, ModelError
from husai_lib.intervals import mean_interval, mean_over_pairs, pair_table, pwmcc_difference, pwmcc_interval
from husai_lib.measures import matching
from husai_lib.measures.matching import (
    Behaviour,
    match,
    pair_rows,
    pairwise_pwmcc,
    random_decoders,
)
from husai_lib.report.recomputed import matched_cosine

seeds = st.integers(0, 2**32 - 1)


def gaussian(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def pwmcc(decoders):
    return mean_over_pairs(pairwise_pwmcc(decoders))


def group_stability(decoders, encoders):
    """Of seeds whose latents never fire: what they do is tested in test_agreement.py."""
    silent = [Behaviour(csc_array((1, len(decoder))), np.asarray(decoder)) for decoder in decoders]
    return matching.group_stability(decoders, encoders, silent)


def cosine(a, b):
    return abs(a @ b) / (np.linalg.norm(a) * np.linalg.norm(b))


def brute_force(a, b):
    """The best mean |cosine| over every injection of the smaller dictionary into the larger."""
    small, large = sorted((a, b), key=len)
    table = np.array([[cosine(x, y) for y in large] for x in small])
    rows = np.arange(len(small))
    return max(table[rows, list(cols)].mean() for cols in permutations(range(len(large)), len(small)))


@given(seeds, st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
@settings(deadline=None)  # the first example compiles
def test_assignment_is_the_best_of_all_permutations(seed, n, m, d_in):
    a, b = gaussian(seed, n, d_in), gaussian(seed + 1, m, d_in)
    found = match(a, b)
    assert len(found.rows) == min(n, m) == len(set(found.rows)) == len(set(found.cols))
    assert pwmcc([a, b]) == pytest.approx(brute_force(a, b), abs=1e-6)
    expected = [cosine(a[i], b[j]) for i, j in zip(found.rows, found.cols, strict=True)]
    assert found.cosines == pytest.approx(expected, abs=1e-6)


def test_assignment_is_one_to_one_where_the_nearest_neighbour_is_not():
    # Both rows of a are nearest to (1, 0); only one may have it. |cos| = [[1, 0], [0.8, 0.6]].
    a, b = np.array([[1.0, 0.0], [0.8, 0.6]]), np.eye(2)
    table = group_stability([a, b], [a.T, b.T])
    assert table.pwmcc[0, 1] == pytest.approx((1 + 0.6) / 2, abs=1e-6)
    assert table.pwmcc_max[0, 1] == pytest.approx((1 + 0.8 + 1 + 0.6) / 4, abs=1e-6)
    # The nearest neighbour of row 1 is at 0.8, but its partner is at 0.6: it doesn't reappear.
    assert table.reappearing_fraction[0, 1] == pytest.approx(0.5)


@given(seeds, st.floats(1e-25, 1e25))
@settings(deadline=None)  # the first example compiles
def test_pwmcc_ignores_order_sign_and_scale(seed, scale):
    a, b = gaussian(seed, 6, 4), gaussian(seed + 1, 6, 4)
    rng = np.random.default_rng(seed)
    changed = a[rng.permutation(6)] * rng.choice([-1, 1], size=(6, 1)) * rng.uniform(0.1, 10, size=(6, 1)) * scale
    assert pwmcc([changed, b]) == pytest.approx(pwmcc([a, b]), abs=1e-6)
    assert pwmcc([b, a]) == pytest.approx(pwmcc([a, b]), abs=1e-6)


@given(seeds)
@settings(deadline=None)  # the first example compiles
def test_a_dictionary_is_itself(seed):
    a = gaussian(seed, 8, 5)
    stability = group_stability([a, -a[::-1], a], [a.T, a[::-1].T, a.T])
    # float32 cosines: 1 to a few 1e-7, never above
    assert 1 - 1e-6 < mean_over_pairs(stability.pwmcc) <= 1
    assert pwmcc_interval(stability.pwmcc).low == pytest.approx(1, abs=1e-5)
    assert mean_over_pairs(stability.encoder_mcc) == pytest.approx(1, abs=1e-6)
    assert mean_over_pairs(stability.reappearing_fraction) == 1
    assert mean_over_pairs(stability.subspace_overlap) == pytest.approx(1, abs=1e-6)


@given(seeds, st.integers(0, 5))
@settings(deadline=None)  # the first example compiles
def test_zero_rows_count_as_unlike_everything(seed, zeros):
    a, b = gaussian(seed, 5, 3), gaussian(seed + 1, 5, 3)
    a[:zeros] = 0
    found = match(a, b)
    assert all(np.isfinite(values).all() for values in (found.cosines, found.row_maxima, found.col_maxima))
    assert (found.cosines[:zeros] == 0).all()
    assert (found.row_maxima[:zeros] == 0).all()
    table = group_stability([a, b], [a.T, b.T])
    assert all(np.isfinite(getattr(table, name)).all() for name in table.__dataclass_fields__)


def test_zero_decoders_have_no_likeness():
    zero = torch.zeros(4, 3)
    table = group_stability([zero, zero], [zero.T, zero.T])
    assert table.pwmcc[0, 1] == table.encoder_mcc[0, 1] == table.reappearing_fraction[0, 1] == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    a = gaussian(0, 3, 3)
    a[1, 1] = bad
    with pytest.raises(ModelError, match="NaN or infinite"):
        pwmcc([a, a])


def test_torch_and_numpy_half_and_single_precision_are_accepted():
    a, b = gaussian(0, 6, 4), gaussian(1, 6, 4)
    parameter = torch.nn.Parameter(torch.tensor(a))
    assert pwmcc([parameter, b]) == pytest.approx(pwmcc([a, b]), abs=1e-6)
    assert pwmcc([parameter.bfloat16(), torch.tensor(b).half()]) == pytest.approx(pwmcc([a, b]), abs=0.01)


def test_unequal_widths_are_matched_over_the_smaller():
    a = gaussian(0, 7, 5)
    assert pwmcc([a, a[2:5]]) == pytest.approx(1, abs=1e-6)
    # three of the seven reappear in one direction, all three in the other
    assert group_stability([a, a[2:5]], [a.T, a[2:5].T]).reappearing_fraction[0, 1] == pytest.approx((3 / 7 + 1) / 2)


def test_encoders_are_compared_under_the_decoders_matching():
    # The decoders swap the two latents; the encoders don't, so matched encoder columns are orthogonal.
    table = group_stability([np.eye(2), np.eye(2)[::-1]], [np.eye(2), np.eye(2)])
    assert table.pwmcc[0, 1] == 1
    assert table.encoder_mcc[0, 1] == 0


def test_a_transposed_encoder_is_refused():
    with pytest.raises(ModelError, match="W_enc"):
        group_stability([np.ones((3, 2))] * 2, [np.ones((3, 2))] * 2)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_subspace_overlap_is_that_of_scipys_principal_angles(seed):
    decoders = [gaussian(seed + i, 30, 8) * [9, 5, 3, 1, 1, 1, 1, 1] for i in range(2)]
    bases, ranks = [], []
    for decoder in decoders:
        unit = decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
        _, singular, right = np.linalg.svd(unit)
        share = np.cumsum(singular**2) / np.sum(singular**2)
        bases.append(right)
        ranks.append(min(int(np.argmax(share >= 0.9)) + 1, 4))  # at most half of d_in = 8
    r = min(ranks)
    angles = subspace_angles(bases[0][:r].T, bases[1][:r].T)
    table = group_stability(decoders, [decoder.T for decoder in decoders])
    assert table.subspace_overlap[0, 1] == pytest.approx(np.mean(np.cos(angles) ** 2), abs=1e-4)


def test_random_subspaces_overlap_by_their_share_of_the_space():
    decoders = random_decoders((400, 40), range(6))
    overlap = group_stability(decoders, [d.T for d in decoders]).subspace_overlap
    assert mean_over_pairs(overlap) == pytest.approx(0.5, abs=0.02)  # r = d_in // 2


def test_stability_is_the_mean_over_pairs_with_a_jackknife_over_seeds():
    decoders = [gaussian(seed, 12, 6) for seed in range(4)]
    by_pair = {(i, j): pwmcc([decoders[i], decoders[j]]) for i, j in combinations(range(4), 2)}
    thetas = np.array([np.mean([v for pair, v in by_pair.items() if out not in pair]) for out in range(4)])
    half = stats.t.ppf(0.975, 3) * np.sqrt(3 / 4 * np.sum((thetas - thetas.mean()) ** 2))
    stability = group_stability(decoders, [decoder.T for decoder in decoders])
    found = pwmcc_interval(stability.pwmcc)
    mean = np.mean(list(by_pair.values()))
    assert (found.mean, found.low, found.high) == pytest.approx((mean, mean - half, mean + half), abs=1e-9)
    assert mean_over_pairs(stability.pwmcc_max) >= mean


def test_two_seeds_have_no_bound_and_one_has_no_pairs():
    a, b = gaussian(0, 4, 3), gaussian(1, 4, 3)
    assert pwmcc_interval(pairwise_pwmcc([a, b])).low is None
    assert pairwise_pwmcc([a]).shape == (1, 1)
    assert pair_rows({"topk": pairwise_pwmcc([a])}, [0]) == []


def test_difference_leaves_out_the_same_seed_of_both():
    a = pairwise_pwmcc([gaussian(seed, 9, 4) for seed in range(4)])
    b = pairwise_pwmcc([gaussian(seed + 10, 9, 4) for seed in range(4)])
    thetas = np.array([np.delete(np.delete(a - b, i, 0), i, 1)[np.triu_indices(3, 1)].mean() for i in range(4)])
    half = stats.t.ppf(0.975, 3) * np.sqrt(3 / 4 * np.sum((thetas - thetas.mean()) ** 2))
    difference = pwmcc_difference(a, b)
    estimate = mean_over_pairs(a) - mean_over_pairs(b)
    assert (difference.mean, difference.low) == pytest.approx((estimate, estimate - half), abs=1e-12)
    same = pwmcc_difference(a, a)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    with pytest.raises(DataError, match="same seeds"):
        pwmcc_difference(a, b[:3, :3])


def test_pairs_are_rows_that_name_their_seeds():
    table = np.array([[1, 0.1, 0.2], [0.1, 1, 0.3], [0.2, 0.3, 1]])
    rows = pair_rows({"topk": table, "transcoder": 2 * table}, [5, 3, 9])
    assert [(row.of, row.seed_a, row.seed_b, row.pwmcc) for row in rows] == [
        ("topk", 5, 3, 0.1), ("topk", 5, 9, 0.2), ("topk", 3, 9, 0.3),
        ("transcoder", 5, 3, 0.2), ("transcoder", 5, 9, 0.4), ("transcoder", 3, 9, 0.6),
    ]  # fmt: skip
    assert pair_rows({}, []) == []


@given(seeds, st.integers(1, 6), st.integers(1, 5))
@settings(deadline=None)
def test_the_audit_matches_decoders_as_training_does(seed, n, d_in):
    a, b = (gaussian(seed + i, n, d_in).astype(np.float32) for i in (0, 1))
    a[0] = 0
    assert matched_cosine(a, b) == pytest.approx(pwmcc([a, b]), abs=1e-6)


def test_random_decoders_are_unit_distinct_and_repeatable():
    first, second = random_decoders((50, 8), [0, 1])
    assert first.shape == (50, 8)
    assert first.norm(dim=1).numpy() == pytest.approx(1, abs=1e-6)
    assert not torch.equal(first, second)
    assert torch.equal(second, random_decoders((50, 8), [1])[0])


def test_read_only_decoders_are_matched():
    a, b = gaussian(0, 6, 4).astype(np.float32), gaussian(1, 6, 4).astype(np.float32)
    kept = a.copy()
    a.flags.writeable = b.flags.writeable = False
    assert pwmcc([a, b]) == pytest.approx(brute_force(a, b), abs=1e-6)
    assert (a == kept).all()


def test_maxima_are_those_of_all_pairs_not_of_the_matched_ones():
    a, b = np.array([[1.0, 0.0], [0.8, 0.6]]), np.eye(2)
    found = match(a, b)
    assert found.cosines == pytest.approx([1, 0.6])
    assert found.row_maxima == pytest.approx([1, 0.8])
    assert found.col_maxima == pytest.approx([1, 0.6])


MEMORY = """
import json, re, sys
from husai_lib.measures.matching import pairwise_pwmcc, random_decoders
def resident(which):
    return int(re.findall(which + r":\\s+(\\d+) kB", open("/proc/self/status").read())[0]) * 1024
decoders = random_decoders((4096, 64), range(2))
pairwise_pwmcc([decoder[:2048] for decoder in decoders])  # loads compiled code, and starts threads
before = resident("VmRSS")
pairwise_pwmcc(decoders)
print(json.dumps(resident("VmHWM") - before))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_a_pair_of_seeds_needs_little_more_memory_than_two_bytes_a_cosine():
    done = subprocess.run([sys.executable, "-c", MEMORY], check=True, stdout=subprocess.PIPE, text=True)
    assert json.loads(done.stdout) < 4 * 4096**2  # a float32 table alone takes 4


def test_the_interval_of_pwmcc_holds_the_mean_as_often_as_it_says_and_a_bootstrap_over_pairs_does_not():
    # Pairs share seeds: the value of a pair is a mean, an effect of each of its seeds, and noise.
    rng, true, held, held_by_bootstrap = np.random.default_rng(0), 0.4, 0, 0
    for i in range(500):
        effects = rng.normal(0, 0.02, 5)
        pairs = {(i, j): true + effects[i] + effects[j] + rng.normal(0, 0.01) for i, j in combinations(range(5), 2)}
        found = pwmcc_interval(pair_table(5, pairs))
        naive = mean_interval(list(pairs.values()), "bootstrap", seed=i)
        held += found.low <= true <= found.high
        held_by_bootstrap += naive.low <= true <= naive.high
    assert 0.92 <= held / 500 <= 0.98
    assert held_by_bootstrap / 500 < 0.92
