"""The revival loss revives dead latents in every architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic_banks import bank_of, dictionary, sparse_rows

from husai_lib.activations.banks import Bank
from husai_lib.measures.evaluation import measure
from husai_lib.params.conditions import Condition
from husai_lib.params.hyperparameters import ARCHITECTURES
from husai_lib.saes import stack
from husai_lib.saes.architectures import TrainableSae, new_sae
from husai_lib.saes.trained import Member
from husai_lib.saes.training import train_bank

D_IN, D_SAE, K = 32, 64, 4
DEAD = 20 / D_SAE
"""Share of the latents that are dead at the start, about 30 %."""
OWN: dict[str, dict[str, Any]] = {"routed_topk": {"num_experts": 2}}


def with_dead_latents(*args: Any) -> TrainableSae:
    """A start at which 20 of 64 latents, some of every block, are too low to be chosen, or to pass ReLU or gate."""
    sae = new_sae(*args)
    for name, bias in sae.named_parameters():
        if name in ("b_enc", "b_mag"):  # a gate's and its magnitude's
            bias.data[torch.arange(len(bias)) % 16 > 10] = -3.0
    return sae


def banks(architecture: str, n: int) -> tuple[Bank, Bank | None]:
    """Rows and targets. As many features as latents: the living ones leave something for the dead to explain."""
    first, second = (sparse_rows(dictionary(D_SAE, D_IN, seed), n, active=4, seed=n) for seed in (0, 1))
    match architecture:
        case "topk_transcoder":
            return bank_of(first), bank_of(second)
        case "route_sae" | "layerwise":
            return bank_of(torch.cat([first, second], 1)), None
        case _:
            return bank_of(first), None


@pytest.fixture(autouse=True)
def a_start_with_dead_latents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For whatever is trained in the test, in a cache of its own."""
    monkeypatch.setattr(stack, "new_sae", with_dead_latents)
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HUSAI_JOBS", "1")
    monkeypatch.setenv("HUSAI_DEVICE", "cpu")


def dead_at_the_end(architecture: str, aux_loss_coefficient: float) -> float:
    """The share of latents that never fire on held-out rows after 200 steps; after 20 without firing they are dead."""
    layers = 2 if architecture == "layerwise" else 1  # it has latents and an L0 for each
    condition = Condition(
        architecture=architecture, d_sae=layers * D_SAE, k=layers * K, match_l0="k",
        training_samples=200 * 128, batch_size=128, learning_rate=1e-2,
        hyperparameters={"aux_loss_coefficient": aux_loss_coefficient} | OWN.get(architecture, {}),
    )  # fmt: skip
    [trained] = train_bank([Member(condition, 0)], *banks(architecture, 4096))
    return measure(trained.sae, *banks(architecture, 2048)).dead_fraction


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_with_the_revival_loss_fewer_latents_are_dead_at_the_end_than_without_it(architecture: str) -> None:
    without = dead_at_the_end(architecture, 0.0)
    assert without >= DEAD
    assert dead_at_the_end(architecture, 1.0) < 0.75 * without  # half of it for the slowest


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_loss_that_pushes_dead_latents_down_leaves_them_dead(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the same loss with its sign reversed: the test above would notice it
    right = TrainableSae.revival_loss
    monkeypatch.setattr(TrainableSae, "revival_loss", lambda *given: -right(*given))
    assert dead_at_the_end(architecture, 1.0) >= DEAD
