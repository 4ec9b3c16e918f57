"""JumpReLU: latents pass above a learnt threshold; the penalty counts those that do (arXiv 2407.14435)."""

from __future__ import annotations

from typing import Any

import torch
from sae_lens import JumpReLUSAE
from sae_lens.saes.jumprelu_sae import JumpReLU, Step
from torch import Tensor, nn

from husai_lib.architectures.base import Loss, TrainableSae, TrainState, squared_error
from husai_lib.params import Condition


class Sae(TrainableSae):
    """As SAELens' `JumpReLUTrainingSAE` in mode `step`, with its straight-through estimators."""

    def __init__(self, condition: Condition, d_in: int, d_out: int, generator: torch.Generator) -> None:
        super().__init__(condition, d_in, d_out, generator)
        self.threshold = nn.Parameter(torch.full((condition.d_sae,), self.option("init_threshold")))

    def loss(self, x: Tensor, target: Tensor, state: TrainState) -> Loss:
        """Squared error plus `l0_coefficient` times the mean L0, warmed up linearly."""
        pre, bandwidth = self.pre_activations(x), self.option("bandwidth")
        latents = JumpReLU.apply(pre, self.threshold, bandwidth, False)
        l0 = Step.apply(pre, self.threshold, bandwidth, False).sum(-1).mean()
        reconstruction = latents @ self.W_dec + self.b_dec
        coefficient = self.option("l0_coefficient") * state.warm_up(self.option("l0_warm_up_fraction"))
        return Loss(squared_error(reconstruction, target) + coefficient * l0, (latents.detach() > 0).any(0))

    def after_step(self) -> None:
        """Keep thresholds non-negative; below zero the gate would pass negative pre-activations."""
        self.threshold.data.clamp_(min=0.0)

    def to_saelens(self) -> tuple[type[Any], dict[str, Any], dict[str, Tensor]]:
        """A SAELens `jumprelu` SAE with a threshold for each latent."""
        return JumpReLUSAE, {}, {"threshold": self.threshold.detach() * self.W_dec.detach().norm(dim=1)}
