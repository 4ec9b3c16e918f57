"""Standard: ReLU with an L1 penalty on latents (arXiv 2309.08600)."""

from __future__ import annotations

from typing import Any

from sae_lens import StandardSAE
from torch import Tensor
from torch.nn.functional import relu

from husai_lib.architectures.base import Loss, TrainableSae, TrainState, squared_error


class Sae(TrainableSae):
    """As SAELens' `StandardTrainingSAE`: latents are weighted by their decoder row's norm in the penalty."""

    def loss(self, x: Tensor, target: Tensor, state: TrainState) -> Loss:
        """Squared error plus `l1_coefficient` times the weighted L1 norm, warmed up linearly."""
        latents = relu(self.pre_activations(x))
        reconstruction = latents @ self.W_dec + self.b_dec
        penalty = (latents * self.W_dec.norm(dim=1)).sum(-1).mean()
        coefficient = self.option("l1_coefficient") * state.warm_up(self.option("l1_warm_up_fraction"))
        return Loss(squared_error(reconstruction, target) + coefficient * penalty, (latents.detach() > 0).any(0))

    def to_saelens(self) -> tuple[type[Any], dict[str, Any], dict[str, Tensor]]:
        """A SAELens `standard` SAE with unit decoder rows."""
        return StandardSAE, {}, {}
