"""Exact assignment against scipy's: cold and warm, of any shape, with ties, zero rows and near duplicates."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import normalize

from husai_lib.saes.assignment import LARGEST_PRICE, UNIT, WarmAssignment, assign, similarity

seeds = st.integers(0, 2**32 - 1)
KINDS = ("random", "ties", "zero rows", "identical", "nearly aligned", "shared")


def total(table, rows, cols):
    return int(table[rows, cols].astype(int).sum())


def optimum(table):
    return total(table, *linear_sum_assignment(table.astype(int), maximize=True))


def made_up(kind, seed, n, m, d_in=6):
    """A table `[n, m]` of two dictionaries that are alike in the way `kind` says."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, d_in)), rng.normal(size=(m, d_in))
    if kind == "ties":  # few different cosines
        a, b = rng.integers(-1, 2, size=(n, d_in)), rng.integers(-1, 2, size=(m, d_in))
    elif kind == "zero rows":
        a[rng.random(n) < 0.4], b[rng.random(m) < 0.4] = 0, 0
    elif kind != "random":
        both = min(n, m) if kind != "shared" else min(n, m) // 2
        b[:both] = a[:both] + {"identical": 0, "nearly aligned": 0.01, "shared": 0.3}[kind] * b[:both]
        b = b[rng.permutation(m)]
    a, b = (normalize(torch.tensor(rows, dtype=torch.float32), dim=1) for rows in (a, b))
    return similarity(a, b).table


@given(st.sampled_from(KINDS), seeds, st.integers(0, 90), st.integers(0, 90))
@settings(deadline=None)
def test_a_cold_assignment_is_optimal_for_any_shape(kind, seed, n, m):
    table = made_up(kind, seed, n, m)
    rows, cols = assign(table)
    assert len(rows) == len(set(cols)) == min(n, m)
    assert (np.diff(rows) > 0).all()
    assert total(table, rows, cols) == optimum(table)


@given(seeds, st.integers(1, 40), st.integers(1, 40), st.integers(1, UNIT))
@settings(deadline=None)
def test_tables_that_are_no_cosines_are_solved_too(seed, n, m, largest):
    table = np.random.default_rng(seed).integers(largest, size=(n, m), endpoint=True).astype(np.uint16)
    assert total(table, *assign(table)) == total(table.T, *assign(table.T)) == optimum(table)


@given(st.lists(st.tuples(st.sampled_from(KINDS), seeds), min_size=2, max_size=5), st.integers(1, 90))
@settings(deadline=None)
def test_a_warm_assignment_stays_optimal_when_the_table_becomes_another(kinds, n):
    warm = WarmAssignment(n)
    for kind, seed in kinds:
        table = made_up(kind, seed, n, n)
        cols = warm.solve(table)
        assert sorted(cols.tolist()) == list(range(n))
        assert total(table, np.arange(n), cols) == optimum(table)


@given(st.sampled_from(KINDS), seeds, st.integers(1, 90), st.sampled_from([1, 30, 1000]))
@settings(deadline=None)
def test_a_warm_assignment_stays_optimal_when_the_table_moves(kind, seed, n, step):
    warm, rng = WarmAssignment(n), np.random.default_rng(seed)
    table = made_up(kind, seed, n, n)
    for _ in range(4):
        assert total(table, np.arange(n), warm.solve(table)) == optimum(table)
        table = (table + rng.integers(-step, step, size=(n, n), endpoint=True)).clip(0, UNIT).astype(np.uint16)


@given(seeds, st.integers(1, 60), st.sampled_from([1, UNIT, LARGEST_PRICE, 2**31 - 1]))
@settings(deadline=None)
def test_any_state_gives_an_optimum(seed, n, largest):
    warm, generator = WarmAssignment(n), torch.Generator().manual_seed(seed)
    warm.prices.random_(-largest, largest, generator=generator)
    warm.cols.random_(-2, n + 2, generator=generator)  # neither one-to-one nor within the table
    table = made_up("random", seed, n, n)
    assert total(table, np.arange(n), warm.solve(table)) == optimum(table)


@given(st.sampled_from(KINDS), seeds, st.integers(1, 60))
@settings(deadline=None)
def test_a_stored_state_continues_with_the_same_columns(kind, seed, n):
    tables = [made_up(kind, seed, n, n), made_up("shared", seed, n, n), made_up(kind, seed + 1, n, n)]
    warm, restored = WarmAssignment(n), WarmAssignment(n)
    warm.solve(tables[0])
    for name in ("prices", "cols"):
        getattr(restored, name).copy_(getattr(warm, name).clone())
    for table in tables[1:]:
        assert warm.solve(table).tolist() == restored.solve(table).tolist()
    assert warm.prices.tolist() == restored.prices.tolist()


def test_the_columns_that_are_returned_are_not_the_state():
    warm = WarmAssignment(3)
    table = np.diag([9, 9, 9]).astype(np.uint16)
    warm.solve(table).fill_(0)
    assert warm.cols.tolist() == [0, 1, 2]


def test_a_dictionary_in_another_order_is_recovered():
    table = made_up("identical", 0, 50, 50)
    assert (table[assign(table)] == UNIT).all()


@pytest.mark.parametrize("noise", [None, 0.01, 0.5])
def test_rounding_costs_less_than_a_hundred_thousandth_of_mean_cosine(noise):
    a, b = normalize(torch.randn(2, 400, 64, generator=torch.Generator().manual_seed(0)), dim=2)
    b = b if noise is None else normalize(a + noise * b, dim=1)
    exact = (a.double() @ b.double().T).abs().numpy()
    best = exact[linear_sum_assignment(exact, maximize=True)].mean()
    assert exact[assign(similarity(a, b).table)].mean() == pytest.approx(best, abs=1e-5)


@given(seeds, st.integers(1, 30), st.integers(1, 30))
@settings(deadline=None)
def test_similarity_is_the_rounded_cosine_in_chunks_of_any_size(seed, n, m):
    generator = torch.Generator().manual_seed(seed)
    a = normalize(torch.randn(n, 5, generator=generator), dim=1)
    b = normalize(torch.randn(m, 5, generator=generator), dim=1)
    exact = (a.double() @ b.double().T).abs().numpy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("husai_lib.saes.assignment.TOGETHER", 2 * n)
        found = similarity(a, b)
    assert np.abs(found.table / UNIT - exact).max() <= 0.5 / UNIT + 1e-6
    assert found.row_maxima == pytest.approx(exact.max(1), abs=1e-6)
    assert found.col_maxima == pytest.approx(exact.max(0), abs=1e-6)
    assert max(found.row_maxima.max(), found.col_maxima.max()) <= 1
