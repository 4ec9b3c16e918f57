"""Where the true features are known, recovery is measured against them, and the objective is seen to align seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sae_lens import TopKSAE, TopKSAEConfig
from scipy.optimize import linear_sum_assignment, nnls
from small_saes import cache, trained
from torch import Tensor

from husai_lib.activations.banks import Bank
from husai_lib.evidence.rows.consistency import TruthRow
from husai_lib.measures import consistency as module
from husai_lib.measures.consistency import HELD_OUT, known_truth, synthetic_world
from husai_lib.measures.matching import random_decoders
from husai_lib.params.consistency import KnownTruthParams
from husai_lib.saes.trained import Member, TrainedSae

assert cache  # the fixture that every test of this module uses

SMALL = KnownTruthParams(features=32, d_in=24, active=3, rows=4096, training_samples=512 * 60, seeds=[0, 1, 2, 3])
pytestmark = pytest.mark.usefixtures("one_job_on_the_cpu")


def mean_best_cosine(a: Tensor, b: Tensor) -> float:
    """The mean |cosine| of rows matched one to one, by numpy and scipy."""
    first, second = (x.detach().double().numpy() / np.linalg.norm(x.detach().numpy(), axis=1)[:, None] for x in (a, b))
    cosines = np.abs(first @ second.T)
    return float(cosines[linear_sum_assignment(cosines, maximize=True)].mean())


# --- the world -----------------------------------------------------------------------------------


def test_the_same_world_is_drawn_twice_and_another_seed_is_another(fresh_cache: object) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (synthetic_world(SMALL, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first[0], again[0])
    assert [one.sha256 for one in first[1:]] == [one.sha256 for one in again[1:]]
    assert not torch.equal(first[0], other[0])
    assert {one.sha256 for one in first[1:]}.isdisjoint(one.sha256 for one in other[1:])


def off_centre(rows: Bank) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows without the offset that all have, and the offset: the row that occurs again and again has no feature."""
    values = np.asarray(rows.rows, np.float64)
    found, counts = np.unique(values, axis=0, return_counts=True)
    assert (counts > 1).sum() == 1
    return values - found[counts.argmax()], found[counts.argmax()]


def test_rows_are_sums_of_features_with_positive_weights_and_one_offset() -> None:
    features, rows, held_out = synthetic_world(SMALL)
    drawn, offset = off_centre(rows)
    assert np.linalg.norm(offset) == pytest.approx(1.0)  # the default of `sae_lens.synthetic`
    assert features.shape == (32, 24)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(32))
    assert (len(rows.rows), len(held_out.rows)) == (4096, HELD_OUT)
    parts = [nnls(features.double().numpy().T, row) for row in drawn[:300]]  # the nearest sum with positive weights
    np.testing.assert_allclose([residual for _, residual in parts], 0, atol=1e-4)
    strangers = np.random.default_rng(0).normal(size=(20, 24))
    assert min(nnls(features.double().numpy().T, row)[1] for row in strangers) > 0.1


def test_as_many_features_as_asked_are_active_and_some_far_more_often_than_others() -> None:
    features, rows, _ = synthetic_world(SMALL.model_copy(update={"d_in": 64}))  # more dimensions: weights are unique
    drawn, _ = off_centre(rows)
    weights = drawn @ np.linalg.pinv(features.double().numpy())
    active = weights > 1e-3
    assert active.sum(1).mean() == pytest.approx(SMALL.active, rel=0.2)
    rates = np.sort(active.mean(0))
    assert rates[-1] > 5 * rates[0]


def test_held_out_rows_are_no_training_rows() -> None:
    _, *both = synthetic_world(SMALL)
    (training, offset), (held_out, same) = (off_centre(one) for one in both)
    np.testing.assert_array_equal(offset, same)
    first, second = ({row.tobytes() for row in one if row.any()} for one in (training, held_out))
    assert len(first) > 3900  # all rows but those without a feature
    assert first.isdisjoint(second)


# --- recovery ------------------------------------------------------------------------------------


def with_decoders(decoders: Sequence[Tensor]) -> Any:
    """A `train_bank` that returns SAEs of these decoders, their encoders the transpose."""

    def train_bank(of: Sequence[Member], *_: Any, **__: Any) -> list[TrainedSae]:
        saes = []
        for member, decoder in zip(of, decoders, strict=True):
            sae = TopKSAE(TopKSAEConfig(d_in=decoder.shape[1], d_sae=len(decoder), k=SMALL.active))
            sae.W_dec.data, sae.W_enc.data = decoder.clone(), decoder.T.contiguous()
            saes.append(TrainedSae(member, trained(sae).entry))
        return saes

    return train_bank


def test_the_truth_itself_is_recovered_whatever_order_and_sign_and_random_decoders_are_the_null(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, *_ = synthetic_world(SMALL)
    order = [torch.randperm(32, generator=torch.Generator().manual_seed(seed)) for seed in SMALL.seeds]
    monkeypatch.setattr(module, "train_bank", with_decoders([features[own] for own in order]))
    [row] = known_truth(SMALL, [0.0])
    assert (row.recovery, row.pwmcc, row.functional_agreement) == pytest.approx((1, 1, 1), abs=1e-5)
    monkeypatch.setattr(module, "train_bank", with_decoders([-features] * 4))
    assert known_truth(SMALL, [0.0])[0].recovery == pytest.approx(1, abs=1e-5)
    random = random_decoders((32, 24), range(70, 74))
    monkeypatch.setattr(module, "train_bank", with_decoders(random))
    [null] = known_truth(SMALL, [0.0])
    assert null.recovery == pytest.approx(np.mean([mean_best_cosine(features, one) for one in random]), abs=1e-5)
    assert null.recovery == pytest.approx(null.pwmcc, abs=0.05)  # features are as random as random decoders
    assert null.recovery < 0.6
    assert null.pwmcc_within is None


def test_agreement_within_and_across_references_are_columns_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = random_decoders((32, 24), [80, 81])
    monkeypatch.setattr(module, "train_bank", with_decoders([one, other, one, other]))  # copies of two references
    [row] = known_truth(SMALL, [1.0])
    assert row.pwmcc_within == pytest.approx(1, abs=1e-6)
    assert row.pwmcc == pytest.approx(mean_best_cosine(one, other), abs=1e-5)


# --- a small sweep -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sweep(cache: object) -> Iterator[list[TruthRow]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUSAI_JOBS", "1")
        patch.setenv("HUSAI_DEVICE", "cpu")
        yield known_truth(SMALL, [0.0, 0.1, 10.0])


def test_seeds_of_one_reference_agree_more_the_larger_the_weight(sweep: list[TruthRow]) -> None:
    plain, little, much = sweep
    assert [row.weight for row in sweep] == [0.0, 0.1, 10.0]
    assert plain.pwmcc_within is None
    assert plain.pwmcc < little.pwmcc_within < much.pwmcc_within  # type: ignore[operator]
    assert much.pwmcc_within > much.pwmcc  # type: ignore[operator]


def test_trained_saes_recover_more_of_the_truth_than_random_ones(sweep: list[TruthRow]) -> None:
    features, *_ = synthetic_world(SMALL)
    null = np.mean([mean_best_cosine(features, one) for one in random_decoders((32, 24), range(4))])
    assert sweep[0].recovery > null + 0.1
    assert sweep[0].explained_variance > 0.5
