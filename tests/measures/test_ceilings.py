"""Ceilings say what help would give a probe, and the best single latent is above every probe of one latent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from small_saes import D_IN, bank, cache, random_sae, trained

from husai_lib.activations.banks import Bank
from husai_lib.activations.texts import ProbingSet
from husai_lib.measures import ceilings
from husai_lib.measures.ceilings import ceiling_rows, full_width_auc, oracle_auc, single_latent_aucs
from husai_lib.measures.probing import ProbeTask, llm_scores, scores_by_k
from husai_lib.params.benchmarks import ProbingParams

assert cache  # the fixture that every test of this module uses

PARAMS = ProbingParams(ks=[1, 2])


def noise(name: str = "noise", n: int = 320, seed: int = 0, strength: float = 0.4) -> tuple[ProbingSet, Bank]:
    """Rows whose first three dimensions tell the classes apart by `strength`."""
    labels, rows = np.arange(n) % 2, np.random.default_rng(seed).standard_normal((n, D_IN))
    rows[:, :3] += strength * labels[:, None]
    return ProbingSet(name, tuple(f"{name} {i}" for i in range(n)), labels, ("0", "1")), bank(rows)


def tasks(*names: str, splits: int = 2, kept: int = 310) -> list[ProbeTask]:
    """Each data set as published, and in `splits` splits without duplicates."""
    found = []
    for seed, name in enumerate(names):
        whole = ProbeTask(*noise(name, seed=seed))
        found += [whole, *(replace(whole, kept=np.arange(kept), split=split) for split in range(splits))]
    return found


def sparse(rng: np.random.Generator, n: int, d_sae: int) -> np.ndarray:
    return (rng.standard_normal((n, d_sae)) * (rng.random((n, d_sae)) < 0.3)).clip(0).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(10, 60), d_sae=st.integers(1, 12))
def test_no_probe_of_one_latent_exceeds_the_best_single_latent(seed: int, n: int, d_sae: int) -> None:
    rng = np.random.default_rng(seed)
    latents, labels = sparse(rng, n, d_sae), rng.permutation(np.arange(n) % 2)
    singles = single_latent_aucs(latents, labels)
    for j in range(d_sae):  # even one that is fitted on the test rows themselves
        fitted = LogisticRegression(C=1e3).fit(latents[:, [j]], labels)
        score = roc_auc_score(labels, fitted.decision_function(latents[:, [j]]))
        assert score <= singles[j] + 1e-12 <= singles.max() + 1e-12


def test_every_probe_of_one_latent_of_the_benchmark_is_below_the_best_single_latent() -> None:
    saes = [trained(random_sae(seed, "standard"), seed) for seed in range(3)]
    on, params = tasks("a", "b"), ProbingParams(ks=[1])
    rows = ceiling_rows(saes, on, llm_scores(on, params), params)
    for row in rows:
        assert row.single_latent_delta >= row.largest_k_delta
        assert row.single_latent_delta > -0.5


def test_the_auc_of_a_latent_is_read_in_both_directions_and_that_of_a_dead_one_is_chance() -> None:
    labels = np.array([0, 0, 1, 1])
    latents = np.array([[3.0, 0, 0, 2], [2, 0, 0, 0], [1, 0, 0, 1], [0, 0, 0, 3]])
    # falls with the label; dead; dead; 2 of 4 pairs are in order, one of them against 0: (1, 2) (3, 2) (1, 0) (3, 0)
    assert single_latent_aucs(latents, labels).tolist() == [1.0, 0.5, 0.5, 0.75]


def test_latents_fitted_on_the_test_rows_are_above_any_single_one_and_grow_with_their_number() -> None:
    rng = np.random.default_rng(3)
    latents = sparse(rng, 200, 40)
    labels = (latents[:, :4].sum(1) + rng.standard_normal(200) > 0.7).astype(int)
    singles = single_latent_aucs(latents, labels)
    aucs = [oracle_auc(latents, labels, count, singles) for count in (1, 2, 4, 8)]
    assert aucs[0] == singles.max()
    assert aucs == sorted(aucs)
    every = LogisticRegression(C=1e5, max_iter=1000).fit(latents[:, :4], labels)
    assert aucs[2] > roc_auc_score(labels, every.decision_function(latents[:, :4])) - 0.02
    assert oracle_auc(labels[:, None].astype(float), labels, 5, np.ones(1)) == 1.0


def test_a_probe_on_all_latents_finds_what_is_spread_over_many() -> None:
    rng = np.random.default_rng(4)
    latents, weights = sparse(rng, 900, 60), rng.standard_normal(60)
    labels = (latents @ weights > np.median(latents @ weights)).astype(int)
    (train, test), (y_train, y_test) = (np.split(part, [700]) for part in (latents, labels))
    auc = full_width_auc(train, y_train, test, y_test, 42)
    assert auc > 0.95 > single_latent_aucs(test, y_test).max() + 0.2
    assert full_width_auc(np.zeros_like(train), y_train, test, y_test, 42) == 0.5


def test_a_row_has_the_mean_over_splits_of_each_delta_to_the_raw_activation() -> None:
    on, saes = tasks("a", "b"), [trained(random_sae(seed, "standard"), seed) for seed in (5, 6)]
    llm = llm_scores(on, PARAMS)
    rows = ceiling_rows(saes, on, llm, PARAMS)
    assert [(row.seed, row.data_set, row.test_rows) for row in rows] == [
        (seed, name, 99) for seed in (5, 6) for name in "ab"
    ]
    for i, row in enumerate(rows):
        own = slice(1, 3) if row.data_set == "a" else slice(4, 6)  # the first of each is with duplicates
        raw = np.array([base.test_auc for base in llm[own]])
        largest = [scores_by_k(task, [saes[i // 2]], PARAMS)[0][-1] for task in on[own]]
        assert {score.k for score in largest} == {2}
        assert row.largest_k_delta == pytest.approx(np.mean([score.test_auc for score in largest] - raw))
        supervised = [base.rectified_auc for base in llm[own]]
        assert row.supervised_delta == pytest.approx(np.mean(np.array(supervised) - raw))
        first = ceilings._of_sae(saes[i // 2], on[own][0], PARAMS)
        assert row.full_width_delta == pytest.approx(first["full_width"] - raw[0])
        assert row.oracle_delta == pytest.approx(first["oracle"] - raw[0])
        assert first["oracle"] >= first["single_latent"]
    assert rows[0].supervised_delta == rows[2].supervised_delta  # whatever the SAE


def test_ceilings_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    on, sae = tasks("c"), trained(random_sae(9, "standard"))
    llm = llm_scores(on, PARAMS)
    once = ceiling_rows([sae], on, llm, PARAMS)
    monkeypatch.setattr(ceilings, "_of_sae", lambda *_: pytest.fail("computed again"))
    assert ceiling_rows([sae], on, llm, PARAMS) == once


def test_neighbouring_seeds_share_no_ceilings() -> None:
    """Split 1 of one seed is split 0 of the next, but only the first split has all ceilings."""
    on, sae = tasks("e"), trained(random_sae(11, "standard"))
    for seed in (42, 43, 42):
        given = PARAMS.model_copy(update={"seed": seed})
        [row] = ceiling_rows([sae], on, llm_scores(on, given), given)
        base = llm_scores(on, given)[1].test_auc
        assert row.full_width_delta == pytest.approx(ceilings._of_sae(sae, on[1], given)["full_width"] - base)


def test_a_dead_sae_has_no_headroom() -> None:
    dead: Any = random_sae(0, "standard")
    dead.b_enc.data = torch.full_like(dead.b_enc, -1e6)
    on = tasks("d", splits=1)
    llm = llm_scores(on, PARAMS)
    [row] = ceiling_rows([trained(dead)], on, llm, PARAMS)
    deltas = (row.full_width_delta, row.oracle_delta, row.single_latent_delta, row.largest_k_delta)
    assert deltas == pytest.approx([0.5 - llm[1].test_auc] * 4)


def test_binary_latents_have_ceilings_of_their_own() -> None:
    on, sae = tasks("e", splits=1), trained(random_sae(2, "standard"))
    binary = ProbingParams(ks=[1], binarize=True)
    [row] = ceiling_rows([sae], on, llm_scores(on, binary), binary)
    [plain] = ceiling_rows([sae], on, llm_scores(on, PARAMS), ProbingParams(ks=[1]))
    assert row.single_latent_delta >= row.largest_k_delta
    assert row.single_latent_delta != plain.single_latent_delta
