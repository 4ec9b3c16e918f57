"""Functional agreement is the substitution test: what is left when one latent's contribution stands for another's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csc_array
from small_saes import bank, cache, random_sae

from husai_lib.measures import matching as module
from husai_lib.measures.matching import Agreement, Behaviour, agreement, behaviour, group_stability, match

assert cache  # the fixture that every test of this module uses


def does(latents: ArrayLike, decoder: ArrayLike) -> Behaviour:
    """The behaviour of an SAE with these latents `[n, d_sae]` and decoder `[d_sae, d_out]`."""
    return Behaviour(csc_array(np.array(latents, np.float32)), np.array(decoder, np.float32))


def same_order(a: Behaviour, b: Behaviour) -> Agreement:
    """The agreement where latent i of one SAE is matched with latent i of the other."""
    every = np.arange(len(a.decoder))
    return agreement(a, b, every, every)


@pytest.mark.parametrize(
    ("f", "w", "g", "v", "expected"),
    [
        ([1, 0, 2], [3, 4], [1, 0, 2], [3, 4], 1.0),  # identical
        ([1, 0, 2], [3, 4], [5, 0, 10], [3, 4], 1.0),  # five times the latent
        ([1, 0, 2], [3, 4], [5, 0, 10], [0.6, 0.8], 1.0),  # and a shorter decoder row
        ([1, 0, 0], [3, 4], [0, 1, 2], [3, 4], 0.0),  # the same direction, never together
        ([1, 0, 2], [3, 4], [1, 0, 2], [-3, -4], -1.0),  # the opposite direction
        ([1, 0, 2], [1, 0], [1, 0, 2], [0, 1], 0.0),  # orthogonal
        ([1, 0, 2], [1, 0], [1, 0, 2], [1, 1], 0.5**0.5),  # 45 degrees
        ([1, 1, 0], [1, 0], [0, 1, 1], [1, 0], 0.5),  # one row of two in common: 1 / sqrt(2 * 2)
        ([2, 1, 0], [1, 0], [1, 2, 0], [-1, 1], -0.8 * 0.5**0.5),  # (2 + 2) / 5 times the cosine
        ([1, 0, 2], [3, 4], [0, 0, 0], [3, 4], 0.0),  # one never fires
    ],
)
def test_a_pair_by_hand(f: list[int], w: list[int], g: list[int], v: list[float], expected: float) -> None:
    a, b = (does(np.transpose([latent]), [row]) for latent, row in ((f, w), (g, v)))
    assert same_order(a, b) == pytest.approx((expected,) * 3, abs=1e-7)
    assert same_order(b, a) == pytest.approx((expected,) * 3, abs=1e-7)


def test_a_pair_of_which_neither_fires_is_left_out_and_one_dead_latent_counts_as_zero() -> None:
    a = does([[1, 0, 1], [1, 0, 0]], np.eye(3))
    b = does([[1, 0, 0], [1, 0, 0]], np.eye(3))
    # R = 1, left out, 0; the last fires once and is the rarer of two
    assert same_order(a, b) == (0.5, 0.0, 1.0)


def test_saes_that_never_fire_agree_in_nothing() -> None:
    silent = does(np.zeros((4, 3)), np.eye(3))
    assert same_order(silent, silent) == (0.0, 0.0, 0.0)


def test_thirds_are_by_how_often_the_two_latents_fire() -> None:
    # latent i fires in the first n_i of 8 rows, with the value 1; that of the other SAE in the first m_i
    own, other = np.array([8, 1, 4, 2, 6, 0, 3, 1]), np.array([8, 1, 1, 2, 6, 0, 0, 3])
    a, b = (does(np.arange(8)[:, None] < counts, np.eye(8)) for counts in (own, other))
    R = [1.0, 1.0, 4**-0.5, 1.0, 1.0, None, 0.0, 3**-0.5]  # min(n, m) / sqrt(n m)
    # seven pairs fire, so a third is three: 1 + 1, 3 + 0 and 2 + 2 or 1 + 3 times; of those the former comes first
    rare, frequent = [R[1], R[6], R[3]], [R[0], R[4], R[2]]
    expected = [np.mean([r for r in R if r is not None]), np.mean(rare), np.mean(frequent)]  # type: ignore[arg-type]
    assert same_order(a, b) == pytest.approx(expected)


def test_pairs_are_those_of_the_assignment() -> None:
    a, b = does(np.eye(3), np.eye(3)), does(np.eye(3)[:, [1, 2, 0]], np.eye(3)[[1, 2, 0]])
    assert same_order(a, b).functional == 0.0
    assert agreement(a, b, np.array([0, 1, 2]), np.array([2, 0, 1])).functional == 1.0
    # a narrower SAE has fewer pairs
    assert agreement(a, does(np.eye(3)[:, :1], np.eye(3)[:1]), np.array([0]), np.array([0])).functional == 1.0


def contributions(latents: NDArray[np.float32], decoder: NDArray[np.float32]) -> NDArray[np.float64]:
    """`[d_sae, n, d_out]`."""
    return np.einsum("ni,id->ind", latents.astype(np.float64), decoder.astype(np.float64))


def test_r_is_what_substitution_leaves_of_random_saes_and_the_cosine_bounds_it() -> None:
    rows = bank(np.random.default_rng(0).normal(size=(300, 32)))
    a, b = (behaviour(random_sae(seed, "topk" if seed else "standard"), rows) for seed in (0, 1))
    found = match(a.decoder, b.decoder)
    mine, other = (
        contributions(one.latents.toarray(), one.decoder)[which] for one, which in ((a, found.rows), (b, found.cols))
    )
    together = (mine * other).sum((1, 2))
    norms = [np.sqrt((one**2).sum((1, 2))) for one in (mine, other)]
    R = together / np.prod(norms, 0)
    assert same_as(agreement(a, b, found.rows, found.cols), R, a, b, found)
    assert (np.abs(R) <= found.cosines + 1e-6).all()
    # swapping a latent for its partner, at the best factor, leaves this share of the squared contribution: 1 - R^2
    factors = together / norms[1] ** 2
    left = ((mine - factors[:, None, None] * other) ** 2).sum((1, 2)) / norms[0] ** 2
    np.testing.assert_allclose(left, 1 - R**2, atol=1e-9)


def same_as(found: Agreement, R: NDArray[np.float64], a: Behaviour, b: Behaviour, pairs: Any) -> bool:
    """Whether the means are those of R over all and over the thirds, counted densely."""
    fired = (a.latents.toarray() != 0).sum(0)[pairs.rows] + (b.latents.toarray() != 0).sum(0)[pairs.cols]
    assert (fired > 0).all()
    order, third = sorted(range(len(R)), key=lambda i: (fired[i], i)), -(-len(R) // 3)
    means = R.mean(), R[order[:third]].mean(), R[order[-third:]].mean()
    return found == pytest.approx(means, abs=1e-6)


def test_each_mean_is_at_most_that_of_the_cosines() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        a, b = (
            does(rng.exponential(size=(30, 9)) * (rng.random((30, 9)) < 0.4), rng.normal(size=(9, 4))) for _ in "ab"
        )
        found = match(a.decoder, b.decoder)
        assert abs(agreement(a, b, found.rows, found.cols).functional) <= found.cosines.mean() + 1e-6


def test_the_behaviour_of_an_sae_is_by_its_own_encoder_on_the_first_held_out_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = bank(np.random.default_rng(1).normal(size=(50, 32)))
    sae = random_sae(4)
    expected = sae.encode(rows.take(np.arange(50))).detach().numpy()
    np.testing.assert_allclose(behaviour(sae, rows).latents.toarray(), expected, rtol=1e-5)
    monkeypatch.setattr(module, "BEHAVIOUR_ROWS", 20)
    found = behaviour(sae, rows)
    np.testing.assert_allclose(found.latents.toarray(), expected[:20], rtol=1e-5)
    np.testing.assert_array_equal(found.decoder, sae.W_dec.detach().numpy())


def test_sparse_latents_and_half_precision_give_the_same_behaviour() -> None:
    rows = bank(np.abs(np.random.default_rng(2).normal(size=(40, 3))))
    W_dec = torch.tensor([[1.0, 0.5], [0.0, 2.0], [-1.0, 0.25]])
    dense = SimpleNamespace(encode=lambda x: x.round(), W_dec=W_dec)
    sparse = SimpleNamespace(encode=lambda x: x.round().to_sparse(), W_dec=W_dec)
    half = SimpleNamespace(encode=lambda x: x.round().bfloat16(), W_dec=W_dec.bfloat16())
    first, *others = (behaviour(sae, rows) for sae in (dense, sparse, half))
    assert first.latents.nnz > 0
    for other in others:
        np.testing.assert_array_equal(other.latents.toarray(), first.latents.toarray())
        np.testing.assert_array_equal(other.decoder, first.decoder)


def test_the_table_of_pairs_holds_the_agreement_of_matched_latents() -> None:
    rows = bank(np.random.default_rng(5).normal(size=(200, 32)))
    saes = [random_sae(seed) for seed in (0, 1, 1)]
    does_what = [behaviour(sae, rows) for sae in saes]
    stability = group_stability([sae.W_dec for sae in saes], [sae.W_enc for sae in saes], does_what)
    assert stability.functional_agreement[1, 2] == pytest.approx(1.0)  # the same SAE at two seeds
    for i in (1, 2):
        found = match(saes[0].W_dec, saes[i].W_dec)
        expected = agreement(does_what[0], does_what[i], found.rows, found.cols)
        tables = (stability.functional_agreement, stability.functional_rare, stability.functional_frequent)
        assert [table[0, i] for table in tables] == pytest.approx(expected)


def test_geometry_may_agree_where_function_does_not() -> None:
    rows = bank(np.random.default_rng(6).normal(size=(300, 32)))
    sae, deaf = random_sae(7), random_sae(7)
    deaf.W_enc.data = -deaf.W_enc.data  # the same decoder, read from the opposite side
    does_what = [behaviour(one, rows) for one in (sae, deaf)]
    stability = group_stability([sae.W_dec, deaf.W_dec], [sae.W_enc, deaf.W_enc], does_what)
    assert stability.pwmcc[0, 1] == pytest.approx(1.0)
    assert stability.functional_agreement[0, 1] < 0.2
