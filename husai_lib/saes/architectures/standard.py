"""Standard: ReLU with an L1 penalty on latents (arXiv 2309.08600).

Hyperparameters: `l1_coefficient`, `l1_warm_up_fraction` (share of the steps over which the penalty grows to its full
size), `aux_loss_coefficient` (weight of the loss that revives dead latents; SAELens' recipe has none).
"""

from __future__ import annotations

from typing import Any

from sae_lens import StandardSAE
from torch import Tensor
from torch.nn.functional import relu
from typing_extensions import override

from husai_lib.saes.architectures.base import Loss, TrainableSae, TrainState, revival_loss, squared
from husai_lib.saes.architectures.latents import Above


class Sae(TrainableSae):
    """As SAELens' `StandardTrainingSAE`: latents are weighted by their decoder row's norm in the penalty."""

    sparsity_coefficient = "l1_coefficient"

    @override
    def loss(self, x: Tensor, target: Tensor, state: TrainState) -> Loss:
        """Squared error plus `l1_coefficient` times the weighted L1 norm, warmed up linearly."""
        latents = self.latents(x, Above(x.new_zeros(())))
        error = target - self.b_dec - latents.decode(self.W_dec)
        penalty = latents.total(self.W_dec.norm(dim=1)) / len(x)
        coefficient = self.option("l1_coefficient") * state.warm_up(self.option("l1_warm_up_fraction"))
        total = squared(error) + coefficient * penalty + revival_loss(self, x, error, state.dead)
        return Loss(total, latents.firing(), {})

    @override
    def start_at_l0(self, x: Tensor) -> dict[str, Tensor]:
        """Biases such that k pre-activations a row of `x` are positive; the penalty is slow to push down the rest."""
        return {"b_enc": self.b_enc - self.threshold_of_k(x)}

    @override
    def nearer_to_l0(self, error: Tensor) -> dict[str, Tensor]:
        """All biases: what the penalty does takes many steps to show."""
        return {"b_enc": self.b_enc - error}

    @override
    def encode(self, x: Tensor) -> Tensor:
        """Positive pre-activations."""
        return relu(self.pre_activations(x))

    @override
    def to_saelens(self, scale_in: float, scale_out: float) -> tuple[type[Any], dict[str, Any], dict[str, Tensor]]:
        """A SAELens `standard` SAE."""
        return StandardSAE, {}, {}
