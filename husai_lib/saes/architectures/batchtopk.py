"""BatchTopK: the `k * n` largest pre-activations of a batch of n rows (arXiv 2412.06410).

Hyperparameters: `aux_loss_coefficient` (weight of the loss that revives dead latents), `topk_threshold_lr` (how fast
the inference threshold follows the smallest active latent; never slower than over the last tenth of the steps).
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from husai_lib.params.conditions import Condition
from husai_lib.saes.architectures.base import Loss, TrainableSae, TrainState, revival_loss, squared
from husai_lib.saes.architectures.latents import Latents
from husai_lib.saes.architectures.selection import LargestOfBatch


class Sae(TrainableSae):
    """As SAELens' `BatchTopKTrainingSAE`: at inference a JumpReLU SAE with the threshold estimated here."""

    exported_as = "jumprelu"
    threshold: Tensor

    def __init__(self, condition: Condition, d_in: int, d_out: int, generator: torch.Generator) -> None:
        super().__init__(condition, d_in, d_out, generator)
        self.register_buffer("threshold", torch.zeros((), dtype=torch.float64))

    @override
    def loss(self, x: Tensor, target: Tensor, state: TrainState) -> Loss:
        """Squared error plus the revival loss; the inference threshold follows the smallest active latent."""
        latents = self.latents(x, LargestOfBatch(self.condition.k))
        error = target - self.b_dec - latents.decode(self.W_dec)
        total = squared(error) + revival_loss(self, x, error, state.dead)
        return Loss(total, latents.firing(), {"threshold": self.followed(latents, state)})

    def followed(self, latents: Latents, state: TrainState) -> Tensor:
        """`[]`: the threshold, moved towards the smallest active latent of this batch."""
        # in a short training SAELens' slow average would lag behind the SAE, or stay near its start at 0
        rate: Tensor = self.option("topk_threshold_lr").double().clamp(min=min(1.0, 10 / state.steps))
        smallest = latents.smallest(self.W_dec.detach().norm(dim=1)).double()
        followed = self.threshold.lerp(smallest, rate)
        return torch.where(smallest < torch.inf, followed, self.threshold)

    @override
    def exported_tensors(self, scale_in: float, scale_out: float) -> dict[str, Tensor]:
        """One threshold, shared by all latents, so that a row's latents do not depend on other rows."""
        return {"threshold": (self.threshold / scale_out).expand(self.condition.d_sae)}
