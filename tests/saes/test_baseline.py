"""The baseline is SAELens' own training, on the candidates' rows, and reproducible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_banks import bank_of, dictionary, sparse_rows

from husai_lib.activations.banks import Bank
from husai_lib.measures.evaluation import measure
from husai_lib.params.conditions import BaselineParams, SaeParams
from husai_lib.saes import baseline
from husai_lib.saes.baseline import train_baseline
from husai_lib.saes.data import batches
from husai_lib.saes.trained import TrainedSae

D_IN, K = 32, 4
FEATURES = dictionary(32, D_IN)
SHARED: dict[str, Any] = {"d_sae": 64, "k": K, "training_samples": 20_000, "batch_size": 256, "learning_rate": 1.0}
pytestmark = pytest.mark.usefixtures("one_job_on_the_cpu")


@pytest.fixture(scope="module")
def rows() -> Bank:
    return bank_of(sparse_rows(FEATURES, 4096, active=3, seed=1))


@pytest.fixture(scope="module")
def held_out() -> Bank:
    return bank_of(sparse_rows(FEATURES, 2500, active=3, seed=2))


def hashes(saes: list[TrainedSae]) -> list[str]:
    return [trained.weights_sha256 for trained in saes]


SAELENS = SaeParams(**SHARED)  # its own learning rate counts
RECIPE = BaselineParams(learning_rate=1e-2)


@pytest.fixture(scope="module")
def trained(rows: Bank) -> list[TrainedSae]:
    return train_baseline(RECIPE, SAELENS, [0, 1], rows)


def test_the_baseline_has_exactly_k_latents_a_row_and_learns(
    rows: Bank, held_out: Bank, trained: list[TrainedSae]
) -> None:
    for sae in trained:
        found = measure(sae.sae, held_out)
        assert found.l0 == pytest.approx(K, rel=0.01)  # fewer only where less than k pre-activations are positive
        assert found.explained_variance > 0.4
    assert [sae.member.condition.name for sae in trained] == ["baseline", "baseline"]


def test_the_baseline_is_the_same_in_every_run_with_any_number_of_jobs_and_differs_by_seed(
    rows: Bank, trained: list[TrainedSae], fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUSAI_JOBS", "2")
    state = torch.random.get_rng_state()
    again = train_baseline(RECIPE, SAELENS, [1, 0], rows)
    assert hashes(again)[::-1] == hashes(trained)
    assert len(set(hashes(trained))) == 2
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_baseline_starts_from_weights_of_its_seed_and_sees_the_batches_of_our_own_loop_in_their_order(
    rows: Bank, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    starts: list[torch.Tensor] = []

    class Recorded(baseline.sae_trainer.SAETrainer):  # type: ignore[misc]
        def __init__(self, cfg: Any, sae: Any, data: Any) -> None:
            super().__init__(cfg, sae, data)
            starts.append(sae.W_dec.detach().clone())

        def step(self, batch: torch.Tensor) -> Any:
            seen.append(batch)
            return super().step(batch)

    monkeypatch.setattr(baseline.sae_trainer, "SAETrainer", Recorded)
    train_baseline(RECIPE, SAELENS, [0, 1], rows)
    assert not torch.equal(*starts)
    expected = [torch.from_numpy(rows.rows[i]) for seed in (0, 1) for i in batches(len(rows.rows), SAELENS, seed)]
    assert len(seen) == 2 * (20_000 // 256)  # the last, incomplete batch is left out by both
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_dead_latents_of_the_baseline_are_revived_within_its_few_steps() -> None:
    features = dictionary(256, D_IN)
    rows, held_out = (bank_of(sparse_rows(features, n, active=5, seed=seed)) for n, seed in ((4096, 1), (2500, 2)))
    params = SaeParams(**SHARED | {"d_sae": 128, "training_samples": 300 * 256})
    [trained] = train_baseline(RECIPE, params, [0], rows)
    # with SAELens' own window of 1,000 steps nothing is revived in 300, and 62 % of the latents are dead
    assert measure(trained.sae, held_out).dead_fraction < 0.05


@pytest.mark.parametrize("architecture", ["batchtopk", "standard"])
def test_other_recipes_of_saelens_can_be_the_baseline(rows: Bank, held_out: Bank, architecture: str) -> None:
    [trained] = train_baseline(RECIPE.model_copy(update={"architecture": architecture}), SAELENS, [0], rows)
    assert trained.sae.cfg.architecture() == {"batchtopk": "jumprelu", "standard": "standard"}[architecture]
    assert np.isfinite(measure(trained.sae, held_out).explained_variance)
