"""BatchTopK: the `k * n` largest pre-activations of a batch of n rows (arXiv 2412.06410).

Hyperparameters: `aux_loss_coefficient` (weight of the loss that revives dead latents), `topk_threshold_lr` (how fast
the inference threshold follows the smallest active latent; never slower than over the last tenth of the steps).
"""

import torch
from torch import Tensor
from typing_extensions import override

from husai_lib.params.conditions import Condition
from husai_lib.saes.architectures.base import TrainableSae, TrainState
from husai_lib.saes.architectures.latents import LargestOfBatch, Latents


class Sae(TrainableSae):
    """As SAELens' `BatchTopKTrainingSAE`: at inference a JumpReLU SAE with the threshold estimated here."""

    exported_as = "jumprelu"
    threshold: Tensor

    def __init__(self, condition: Condition, d_in: int, d_out: int, generator: torch.Generator) -> None:
        super().__init__(condition, d_in, d_out, generator)
        self.register_buffer("threshold", torch.zeros((), dtype=torch.float64))

    @override
    def selection(self, x: Tensor) -> LargestOfBatch:
        return LargestOfBatch(self.condition.k)

    @override
    def estimates(self, latents: Latents, state: TrainState) -> dict[str, Tensor]:
        # in a short training SAELens' slow average would lag behind the SAE, or stay near its start at 0
        rate: Tensor = self.option("topk_threshold_lr").double().clamp(min=min(1.0, 10 / state.steps))
        values = latents.values.detach() * latents.of(self.W_dec.detach().norm(dim=1))
        if not values.numel():
            return {}
        smallest = torch.where(values > 0, values, torch.inf).amin().double()
        return {"threshold": torch.where(smallest < torch.inf, self.threshold.lerp(smallest, rate), self.threshold)}

    @override
    def exported_tensors(self, scale_in: float, scale_out: float) -> dict[str, Tensor]:
        return {"threshold": (self.threshold / scale_out).expand(self.condition.d_sae)}
