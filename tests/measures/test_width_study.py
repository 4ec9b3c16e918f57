"""The width study: random SAEs are what they are called, and the plain score grows with width and sparsity alone."""

from __future__ import annotations

from dataclasses import asdict
from statistics import fmean

import numpy as np
import pytest
import torch
from small_saes import bank, cache

from husai_lib.activations.banks import Bank
from husai_lib.evidence.rows.base import ceiling
from husai_lib.evidence.rows.measured import ContrastiveRow
from husai_lib.measures.contrastive import score
from husai_lib.measures.width_study import random_topk, width_study
from husai_lib.params.benchmarks import ContrastiveParams, WidthStudyParams
from husai_lib.params.conditions import Condition, SaeParams
from husai_lib.saes.training import members, train_bank

assert cache  # the fixture that every test of this module uses

SAE = SaeParams(d_sae=64, k=8, training_samples=2048, batch_size=256, learning_rate=3e-3)
PARAMS = ContrastiveParams(study=WidthStudyParams(widths=[32, 16], random_widths=[512], ks=[2, 8]))


@pytest.fixture(scope="module")
def banks() -> dict[str, Bank]:
    rng = np.random.default_rng(0)
    mean = 3 * rng.standard_normal(24)
    return {
        "training": bank(mean + rng.standard_normal((1024, 24))),
        "stories": bank(mean + rng.standard_normal((160, 24)), list(range(0, 161, 10))),
    }


@pytest.fixture(scope="module")
def rows(banks: dict[str, Bank]) -> list[ContrastiveRow]:
    return width_study(PARAMS, SAE, 3, banks)


def test_there_is_a_row_for_each_width_and_k_and_only_narrow_saes_are_trained(rows: list[ContrastiveRow]) -> None:
    shapes = [(16, 2), (16, 8), (32, 2), (32, 8)]
    assert [(row.d_sae, row.k) for row in rows if row.origin == "random"] == [*shapes, (512, 2), (512, 8)]
    assert [(row.d_sae, row.k) for row in rows if row.origin == "trained"] == shapes
    assert {row.seed for row in rows} == {3}
    assert all(row.ceiling == ceiling(row.d_sae) for row in rows)


def test_a_row_has_the_scores_of_its_own_sae(rows: list[ContrastiveRow], banks: dict[str, Bank]) -> None:
    condition = Condition(name="topk", architecture="topk", **SAE.model_dump() | {"d_sae": 32, "k": 2})
    [trained] = train_bank(members([condition], [3]), banks["training"])
    random = random_topk(32, 2, 3, banks["training"].mean().float())
    for origin, sae in (("trained", trained.sae), ("random", random)):
        [row] = [row for row in rows if (row.origin, row.d_sae, row.k) == (origin, 32, 2)]
        found = score(sae, banks["stories"], PARAMS)
        assert row.model_dump(exclude={"origin", "seed", "d_sae", "k", "ceiling", "note"}) == asdict(found)


def test_the_trained_ones_are_the_recipe_of_the_candidates() -> None:
    condition = Condition(name="topk", architecture="topk", **SAE.model_dump() | {"d_sae": 32, "k": 2})
    assert condition.architecture == "topk"
    assert SAE.model_copy(update={"d_sae": 32, "k": 2}).model_dump() == condition.model_dump(
        exclude={"name", "architecture", "hyperparameters", "consistency"}
    )


def test_a_random_sae_has_unit_decoder_rows_their_transpose_as_encoder_and_k_latents_of_centred_rows() -> None:
    bias = torch.arange(24.0)
    sae = random_topk(64, 5, 0, bias)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    x = torch.randn(7, 24, generator=torch.Generator().manual_seed(0))
    largest = (x @ sae.W_dec.T).topk(5)
    latents = sae.encode(x + bias)
    torch.testing.assert_close(latents.gather(1, largest.indices), largest.values, atol=1e-5, rtol=1e-4)
    assert int((latents != 0).sum()) == 5 * 7


def test_random_saes_differ_by_seed_only() -> None:
    one, same, other = (random_topk(16, 2, seed, torch.zeros(8)).W_dec for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_another_seed_or_mean_of_the_training_rows_gives_other_random_saes(
    rows: list[ContrastiveRow], banks: dict[str, Bank]
) -> None:
    shifted = {**banks, "training": bank(np.array(banks["training"].rows) + 1)}
    for other in (width_study(PARAMS, SAE, 4, banks), width_study(PARAMS, SAE, 3, shifted)):
        for one, changed in zip(rows, other, strict=True):
            assert one.contrastive != changed.contrastive
    assert width_study(PARAMS, SAE, 3, banks) == rows


def test_the_plain_score_of_random_saes_grows_with_width_and_with_sparsity(rows: list[ContrastiveRow]) -> None:
    at = {(row.d_sae, row.k): row for row in rows if row.origin == "random"}
    for column in ("interpretability", "interpretability_as_released"):
        for k in (2, 8):
            assert getattr(at[512, k], column) > 1.5 * getattr(at[16, k], column)
        assert getattr(at[512, 2], column) > getattr(at[512, 8], column)
    # the stories differ in nothing, and the calibrated score knows
    assert abs(fmean(row.calibrated or 0.0 for row in rows)) < 1


def test_an_sae_without_a_calibrated_score_says_why(banks: dict[str, Bank]) -> None:
    same = {**banks, "stories": bank(np.ones((8, 24), np.float32), [0, 2, 4, 6, 8])}
    found = width_study(PARAMS, SAE, 3, same)
    assert {row.calibrated for row in found} == {None}
    assert {row.note for row in found} == {"no calibrated score: its null does not vary"}


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"ks": [4, 40]}, "k = 40 exceeds a width of 32"),
        ({"widths": [64, 64]}, "width 64 is given twice"),
        ({"random_widths": [64]}, "width 64 is given twice"),
        ({"ks": [4, 4]}, "k 4 is given twice"),
    ],
)
def test_a_study_that_cannot_be_made_is_refused(study: dict[str, list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WidthStudyParams(**study)
