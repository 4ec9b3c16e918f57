"""Every architecture finds the features that made-up activations consist of: an SAE for which this is not so is wrong.

The features are those of `sae_lens.synthetic`, and so is the measure: the mean |cosine| of true features and decoder
rows, matched one to one. Every architecture has latents for two dictionaries, as some need: RouteSAE reads both
layers, layer-wise SAEs have half of their latents for each, and either block of a routed SAE sees all features.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from sae_lens.synthetic import ActivationGenerator, FeatureDictionary, mean_correlation_coefficient
from synthetic_banks import bank_of, dictionary
from torch import Tensor

from husai_lib.activations.banks import Bank
from husai_lib.params.conditions import Condition
from husai_lib.params.hyperparameters import ARCHITECTURES
from husai_lib.saes.trained import Member
from husai_lib.saes.training import train_bank

D_IN, FEATURES, D_SAE, K, ROWS = 32, 48, 128, 4, 4096
OWN: dict[str, dict[str, Any]] = {"routed_topk": {"num_experts": 2}}
MARGIN = 0.4
"""How far above random decoders. Correct training comes 0.45 (RouteSAE) to 0.52 above their 0.48, where 1 - 0.48 is all
there is; 0.4 leaves room for rounding and other seeds, and none for decoders that are half learnt."""


class Problem(NamedTuple):
    """What an architecture is trained on, and the answer."""

    rows: Bank
    target: Bank | None
    truth: Tensor
    """Features `[n, d]`, each a decoder row to be found."""


@pytest.fixture(scope="module")
def layers() -> list[FeatureDictionary]:
    """Two dictionaries for the same latents: those of two layers, or of a transcoder's input and target."""
    return [FeatureDictionary(FEATURES, D_IN, bias=1.0, seed=seed) for seed in (100, 101)]


@pytest.fixture(scope="module")
def latents() -> Tensor:
    """True latents: each of 48 in 6 % of the rows, so 2.9 a row, of size 1.5 with a standard deviation of 0.3."""
    generator = ActivationGenerator(FEATURES, 0.06, std_firing_magnitudes=0.3, mean_firing_magnitudes=1.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return generator.sample(ROWS)


@pytest.fixture(autouse=True)
def on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUSAI_JOBS", "1")
    monkeypatch.setenv("HUSAI_DEVICE", "cpu")


@torch.no_grad()
def problem(architecture: str, layers: list[FeatureDictionary], latents: Tensor) -> Problem:
    first, second = (layer(latents) for layer in layers)
    truths = [layer.feature_vectors.detach() for layer in layers]
    match architecture:
        case "topk_transcoder":
            return Problem(bank_of(first), bank_of(second), truths[1])
        case "route_sae":  # each row is reconstructed at one layer, whichever the router chose
            return Problem(bank_of(torch.cat([first, second], 1)), None, torch.cat(truths))
        case "layerwise":
            return Problem(bank_of(torch.cat([first, second], 1)), None, torch.block_diag(*truths))
        case _:
            return Problem(bank_of(first), None, truths[0])


def random_decoder(architecture: str, seed: int) -> Tensor:
    """Random unit rows of the shape that the architecture's decoder has."""
    rows = dictionary(D_SAE, D_IN, seed)
    return torch.block_diag(*rows.chunk(2)) if architecture == "layerwise" else rows


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_finds_the_features_that_activations_consist_of(
    architecture: str, layers: list[FeatureDictionary], latents: Tensor
) -> None:
    rows, target, truth = problem(architecture, layers, latents)
    condition = Condition(
        architecture=architecture, d_sae=D_SAE, k=2 * K if architecture == "layerwise" else K, match_l0="k",
        training_samples=250 * 256, batch_size=256, learning_rate=1e-2, hyperparameters=OWN.get(architecture, {}),
    )  # fmt: skip
    [trained] = train_bank([Member(condition, 0)], rows, target)
    found = mean_correlation_coefficient(trained.sae.W_dec.detach(), truth)
    random = max(mean_correlation_coefficient(random_decoder(architecture, seed), truth) for seed in range(5))
    assert random < 0.5
    assert found > random + MARGIN


def test_the_measure_is_one_to_one_and_blind_to_sign_order_and_length() -> None:
    # three directions of which the decoder has two, the first of them twice: (1 + 1 + 0) / 3
    assert mean_correlation_coefficient(
        torch.eye(3)[[1, 0, 0]] * torch.tensor([[2.0], [-3.0], [1.0]]), torch.eye(3)
    ) == (pytest.approx(2 / 3))
