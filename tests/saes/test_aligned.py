"""`aligned` keeps each latent's encoder and decoder directions at inner product 1, and training still learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_saes import cache
from synthetic_banks import bank_of, dictionary, sparse_rows

from husai_lib.activations.banks import Bank
from husai_lib.errors import ParameterError
from husai_lib.measures.evaluation import measure
from husai_lib.params.conditions import Condition
from husai_lib.params.hyperparameters import ARCHITECTURES
from husai_lib.params.sections import check
from husai_lib.saes.architectures import new_sae
from husai_lib.saes.data import Data
from husai_lib.saes.stack import Stack
from husai_lib.saes.trained import Member
from husai_lib.saes.training import train_bank

assert cache  # the fixture that every test of this module uses

D, SIZES = 12, {"d_sae": 48, "k": 6, "training_samples": 16_384, "batch_size": 256, "learning_rate": 3e-3}
OTHER_SPACE = [name for name in ARCHITECTURES if "transcoder" in name]
SAME_SPACE = [name for name in ARCHITECTURES if name not in OTHER_SPACE]
L1, L0 = {"l1_coefficient": 0.05}, {"l0_coefficient": 0.05}
OWN: dict[str, dict[str, Any]] = {"standard": L1, "gated": L1, "layerwise": L1, "jumprelu": L0}


def condition(architecture: str, **changes: Any) -> Condition:
    return Condition(**SIZES | {"architecture": architecture, "aligned": True} | OWN.get(architecture, {}) | changes)


def rows(architecture: str) -> Bank:
    """Activations at one layer, or at two layers side by side where the architecture reads them."""
    layers = 2 if "layers" in ARCHITECTURES[architecture].model_fields else 1
    return bank_of(torch.cat([sparse_rows(dictionary(16, D, i), 2048, 2, i) for i in range(layers)], dim=1))


def inner_products(sae: Any) -> torch.Tensor:
    """`[d_sae]` of an exported SAE, whose encoder is transposed; the magnitudes of a gated one have a factor."""
    magnitude = sae.r_mag.exp() if hasattr(sae, "r_mag") else 1.0
    return (magnitude * (sae.W_enc.T * sae.W_dec).sum(1)).detach()


@pytest.mark.parametrize("architecture", SAME_SPACE)
def test_an_aligned_sae_is_exported_aligned_and_has_learned(architecture: str) -> None:
    data = rows(architecture)
    of = condition(architecture)
    [early] = train_bank([Member(of.model_copy(update={"training_samples": 256}), 0)], data)
    [late] = train_bank([Member(of, 0)], data)
    for trained in (early, late):
        torch.testing.assert_close(inner_products(trained.sae), torch.ones(48), rtol=0, atol=1e-5)
    gained = measure(late.sae, data).explained_variance - measure(early.sae, data).explained_variance
    assert gained > 0.1
    assert (late.sae.W_enc.T - late.sae.W_dec).abs().max() > 0.05  # aligned, not tied


@pytest.mark.parametrize("architecture", SAME_SPACE)
def test_without_the_option_the_products_drift(architecture: str) -> None:
    [free] = train_bank([Member(condition(architecture, aligned=False), 0)], rows(architecture))
    assert (inner_products(free.sae) - 1).abs().max() > 0.01


def test_the_projection_is_the_nearest_point_at_which_the_product_is_1() -> None:
    sae = new_sae(condition("topk"), D, D, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for name in ("W_enc", "W_dec"):
        sae.get_parameter(name).data = torch.randn(48, D, generator=generator)
    W_enc, W_dec = sae.W_enc.detach(), sae.W_dec.detach()
    found = sae.projected()["W_enc"].detach()
    for i in range(48):
        # the least-norm solution of W_dec[i] @ move = 1 - W_dec[i] @ W_enc[i]
        move = torch.linalg.pinv(W_dec[i : i + 1]) @ (1 - W_dec[i : i + 1] @ W_enc[i])
        torch.testing.assert_close(found[i], W_enc[i] + move, rtol=1e-4, atol=1e-4)


def test_members_of_a_stack_are_aligned_each_and_after_every_step() -> None:
    members = [Member(condition("topk"), seed) for seed in (0, 1)]
    stack = Stack(members, Data.of(rows("topk")), "cpu")
    for _, (x, target) in zip(range(3), stack.batches(), strict=False):
        stack.step(x, target)
        for sae in stack.saes:
            product = (sae.W_enc * sae.W_dec).sum(1).detach()
            torch.testing.assert_close(product, torch.ones(48), rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", OTHER_SPACE)
def test_a_transcoder_cannot_be_aligned(architecture: str) -> None:
    given = SIZES | {"architecture": architecture, "aligned": True}
    with pytest.raises(ParameterError, match="aligned: a transcoder's encoder and decoder lie in different spaces"):
        check(Condition, given, "p.yaml")
