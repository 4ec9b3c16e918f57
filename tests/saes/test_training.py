"""Training learns, does not depend on what else runs, and reports divergence; measures match their definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import r2_score
from synthetic_banks import bank_of, dictionary, sparse_rows

from husai_lib.activations.banks import Bank
from husai_lib.errors import DataError, IntegrityError
from husai_lib.measures.evaluation import measure
from husai_lib.params.conditions import Condition, SaeParams
from husai_lib.params.hyperparameters import ARCHITECTURES
from husai_lib.saes import training
from husai_lib.saes.architectures import new_sae
from husai_lib.saes.data import batches
from husai_lib.saes.trained import Member, TrainedSae, load_sae, open_trained
from husai_lib.saes.training import members, train_bank

D_IN, D_SAE, K = 32, 64, 4
FEATURES = dictionary(32, D_IN)
SAES = [name for name in ARCHITECTURES if name != "topk_transcoder"]
SHARED: dict[str, Any] = {"d_sae": D_SAE, "k": K, "training_samples": 60_000, "batch_size": 256, "learning_rate": 3e-3}
pytestmark = pytest.mark.usefixtures("one_job_on_the_cpu")


@pytest.fixture(scope="module")
def rows() -> Bank:
    return bank_of(sparse_rows(FEATURES, 4096, active=3, seed=1))


@pytest.fixture(scope="module")
def held_out() -> Bank:
    return bank_of(sparse_rows(FEATURES, 2500, active=3, seed=2))


def condition(architecture: str = "topk", **changes: Any) -> Condition:
    known = ARCHITECTURES[architecture]().model_dump()
    own = known | {"l0_coefficient": 0.5}
    hyperparameters = {key: changes.pop(key, own[key]) for key in known}
    name = changes.pop("name", architecture)
    return Condition(name=name, architecture=architecture, hyperparameters=hyperparameters, **SHARED | changes)


def short(architecture: str = "topk", **changes: Any) -> Condition:
    return condition(architecture, **{"training_samples": 2048} | changes)


def hashes(saes: list[TrainedSae]) -> list[str]:
    return [trained.weights_sha256 for trained in saes]


# --- measures ------------------------------------------------------------------------------------


def test_explained_variance_is_that_of_sklearn() -> None:
    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=D_SAE))
    sae.W_enc.data *= 0.3
    data = np.random.default_rng(0).normal(size=(5000, D_IN)) * np.linspace(0.1, 5, D_IN) + 100  # far off-centre
    bank = bank_of(data)
    with torch.no_grad():
        reconstructed = sae(torch.from_numpy(np.array(bank.rows))).numpy()
    expected = r2_score(np.asarray(bank.rows, float), reconstructed.astype(float), multioutput="variance_weighted")
    assert measure(sae, bank).explained_variance == pytest.approx(expected, rel=1e-5)


def test_measures_of_a_small_case_derived_by_hand() -> None:
    sae = TopKSAE(TopKSAEConfig(d_in=2, d_sae=4, k=2, apply_b_dec_to_input=False))
    sae.W_enc.data = torch.tensor([[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, -1.0]])
    sae.W_dec.data = sae.W_enc.data.T.clone()
    bank = bank_of(np.array([[1.0, 0.0], [2.0, 3.0], [-1.0, 0.0], [-2.0, 5.0]]))
    # latents: x, y, -x, -y where positive: 1 + 2 + 1 + 2 of them over 4 rows; y is never negative
    found = measure(sae, bank)
    assert (found.l0, found.dead_fraction) == (1.5, 0.25)
    assert found.explained_variance == pytest.approx(1.0)
    sae.b_dec.data = torch.tensor([1.0, 0.0])
    # squared error 1 a row; mean row (0, 2), so the variance is 5 + 5 + 5 + 13
    assert measure(sae, bank).explained_variance == pytest.approx(1 - 4 / 28)


def test_a_transcoder_is_measured_against_its_target() -> None:
    sae = TopKSAE(TopKSAEConfig(d_in=2, d_sae=2, k=2, apply_b_dec_to_input=False))
    sae.W_enc.data, sae.W_dec.data = torch.eye(2), 2 * torch.eye(2)
    data = np.random.default_rng(0).uniform(1, 2, size=(100, 2))
    assert measure(sae, bank_of(data), bank_of(2 * data)).explained_variance == pytest.approx(1.0)
    assert measure(sae, bank_of(data)).explained_variance < 0


# --- the order of the data -----------------------------------------------------------------------


def test_every_epoch_visits_every_row_once_in_an_order_of_its_own() -> None:
    drawn = list(batches(1000, SaeParams(**SHARED | {"training_samples": 3000, "batch_size": 300}), seed=0))
    assert {len(index) for index in drawn} == {300}
    assert len(drawn) == 10
    flat = np.concatenate(drawn)
    epochs = flat.reshape(3, 1000)
    for epoch in epochs:
        assert sorted(epoch) == list(range(1000))
    assert not np.array_equal(epochs[0], epochs[1])
    assert np.abs(np.corrcoef(epochs[0], np.arange(1000))[0, 1]) < 0.15


def test_the_order_is_that_of_the_seed_alone_and_a_batch_may_exceed_the_rows() -> None:
    params = SaeParams(**SHARED | {"training_samples": 1000, "batch_size": 250})
    first, again, other = (np.concatenate(list(batches(100, params, seed))) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(np.bincount(first), np.full(100, 10))


def test_the_step_size_falls_linearly_to_zero_over_the_last_fifth(
    rows: Bank, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[float] = []

    class Recorded(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            sizes.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "Adam", Recorded)
    train_bank([Member(condition(training_samples=20 * 256, learning_rate=1.0), 0)], rows)
    assert sizes == pytest.approx([1.0] * 17 + [0.75, 0.5, 0.25])


# --- the same weights, whatever else runs --------------------------------------------------------


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_member_has_the_same_weights_alone_and_in_a_bank_with_any_number_of_jobs(
    rows: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: str
) -> None:
    bank = members([short(name) for name in SAES], [0, 1])
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path / "alone"))
    monkeypatch.setenv("HUSAI_JOBS", "1")
    alone = [hashes(train_bank([member], rows))[0] for member in bank]
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path / "bank"))
    monkeypatch.setenv("HUSAI_JOBS", jobs)
    progress: list[tuple[int, int, str]] = []
    together = train_bank(bank[::-1], rows, progress=lambda *state: progress.append(state))
    assert hashes(together)[::-1] == alone
    assert len(set(alone)) == len(bank)
    assert progress == [(i, len(bank), "members trained") for i in range(len(bank) + 1)]


def test_a_condition_is_trained_once_whatever_it_is_called(
    rows: Bank, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [first] = train_bank([Member(short(), 0)], rows)
    assert list(first.entry.files) == ["cfg.json", "sae_weights.safetensors"]
    other = train_bank([Member(short(learning_rate=1e-3), 0), Member(short(), 1), Member(short(k=5), 0)], rows)
    monkeypatch.setattr(training, "_train", None)  # whatever is trained from now on fails
    [again] = train_bank([Member(short(name="another_name"), 0)], rows)
    assert again.entry.key == first.entry.key
    assert len({trained.entry.key for trained in [first, *other]}) == 4


def test_equal_rows_of_two_hooks_make_two_saes(fresh_cache: Path) -> None:
    data = sparse_rows(FEATURES, 512, active=3)
    banks = [bank_of(data, hook) for hook in ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre")]
    saes = [train_bank([Member(short(), 0)], bank)[0] for bank in banks]
    assert [trained.sae.cfg.metadata.hook_name for trained in saes] == [bank.hook_name for bank in banks]
    assert saes[0].weights_sha256 == saes[1].weights_sha256


# --- learning --------------------------------------------------------------------------------------


def recovered(decoder: torch.Tensor) -> float:
    """Mean cosine of the true features with the latents of their best one-to-one assignment."""
    cosines = (FEATURES @ torch.nn.functional.normalize(decoder.detach(), dim=1).T).abs().numpy()
    return float(cosines[linear_sum_assignment(cosines, maximize=True)].mean())


def untrained(architecture: str, scale: float) -> Any:
    sae = new_sae(condition(architecture), D_IN, D_IN, torch.Generator().manual_seed(0))
    return sae.export(scale, scale, metadata={})


@pytest.mark.parametrize("architecture", ["topk", "standard", "batchtopk", "jumprelu"])
def test_training_explains_held_out_rows_and_finds_the_features_they_consist_of(
    rows: Bank, held_out: Bank, architecture: str
) -> None:
    [trained] = train_bank([Member(condition(architecture), 0)], rows)
    before, after = measure(untrained(architecture, rows.scale()), held_out), measure(trained.sae, held_out)
    assert after.explained_variance > 0.9
    assert after.explained_variance > before.explained_variance + 0.3
    random = [recovered(dictionary(D_SAE, D_IN, seed)) for seed in range(10, 20)]
    assert max(random) < 0.5
    assert recovered(trained.sae.W_dec) > 0.8
    assert after.l0 < 2 * K


def test_the_scale_of_the_activations_does_not_matter(rows: Bank, held_out: Bank) -> None:
    [plain] = train_bank([Member(short(), 0)], rows)
    [large] = train_bank([Member(short(), 0)], bank_of(1024 * np.array(rows.rows)))
    # a power of two is exact, so training is the same to the last bit
    torch.testing.assert_close(large.sae.W_dec, plain.sae.W_dec)
    torch.testing.assert_close(large.sae.b_dec, 1024 * plain.sae.b_dec)
    expected = measure(plain.sae, held_out)
    found = measure(large.sae, bank_of(1024 * np.array(held_out.rows)))
    assert (found.l0, found.dead_fraction) == (expected.l0, expected.dead_fraction)
    assert found.explained_variance == pytest.approx(expected.explained_variance, abs=1e-5)


def test_a_transcoder_learns_the_map_from_one_hook_to_another() -> None:
    x = sparse_rows(FEATURES, 4096, active=3, seed=1)
    mlp = torch.randn(D_IN, D_IN, generator=torch.Generator().manual_seed(3)) / 4
    target = 50 * torch.relu(x @ mlp) + 7
    banks = bank_of(x, "blocks.0.mlp.hook_in"), bank_of(target, "blocks.0.hook_mlp_out")
    [trained] = train_bank([Member(condition("topk_transcoder"), 0)], *banks)
    assert measure(trained.sae, *banks).explained_variance > 0.7
    metadata = load_sae(trained.entry.path).cfg.metadata
    assert (metadata.hook_name, metadata.hook_name_out) == ("blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out")


@pytest.mark.parametrize("architecture", SAES)
def test_a_training_that_diverges_is_an_error_and_leaves_nothing(
    rows: Bank, fresh_cache: Path, architecture: str
) -> None:
    with pytest.raises(DataError, match=f"training of {architecture} at seed 3 diverged; lower its learning_rate"):
        train_bank([Member(short(architecture, learning_rate=1e30), 3)], rows)
    assert not list(fresh_cache.glob("saes/*"))


# --- weights in the cache ------------------------------------------------------------------------


def test_only_the_weights_of_the_record_are_opened(rows: Bank, fresh_cache: Path) -> None:
    first, second = train_bank([Member(short(), seed) for seed in (0, 1)], rows)
    opened = open_trained(first.member, first.entry.key, first.weights_sha256)
    assert torch.equal(opened.sae.W_dec, first.sae.W_dec)
    with pytest.raises(IntegrityError, match="the weights of topk at seed 0 are not those of its record"):
        open_trained(first.member, first.entry.key, second.weights_sha256)


def test_weights_with_a_flipped_bit_are_never_loaded_and_are_trained_again(rows: Bank, fresh_cache: Path) -> None:
    [trained] = train_bank([Member(short(), 0)], rows)
    path = trained.entry.path / "sae_weights.safetensors"
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(IntegrityError):
        open_trained(trained.member, trained.entry.key, trained.weights_sha256)
    [again] = train_bank([Member(short(), 0)], rows)
    assert again.weights_sha256 == trained.weights_sha256
    assert path.read_bytes() == sound
