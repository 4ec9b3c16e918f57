"""Standard: ReLU with an L1 penalty on latents (arXiv 2309.08600).

Hyperparameters: `l1_coefficient`, `l1_warm_up_fraction` (share of the steps over which the penalty grows to its full
size), `aux_loss_coefficient` (weight of the loss that revives dead latents; SAELens' recipe has none).
"""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from husai_lib.saes.architectures.base import Loss, TrainableSae, TrainState, revival_loss, squared
from husai_lib.saes.architectures.selection import Above


class Sae(TrainableSae):
    """As SAELens' `StandardTrainingSAE`: in the penalty, a latent is weighted by the norm of its decoder row."""

    exported_as = "standard"
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
        """Biases that leave k pre-activations a row of `x` positive: the penalty alone would take too long."""
        return {"b_enc": self.b_enc - self.threshold_of_k(x)}

    @override
    def nearer_to_l0(self, error: Tensor) -> dict[str, Tensor]:
        """All biases, as the penalty takes effect only after many steps."""
        return {"b_enc": self.b_enc - error}
