"""Standard: ReLU with an L1 penalty on latents (arXiv 2309.08600).

Hyperparameters: `l1_coefficient`, `l1_warm_up_fraction` (share of the steps over which the penalty grows to its full
size), `aux_loss_coefficient` (weight of the loss that revives dead latents; SAELens' recipe has none).
"""

from torch import Tensor
from typing_extensions import override

from husai_lib.saes.architectures.base import TrainableSae, TrainState
from husai_lib.saes.architectures.latents import Above, Latents


class Sae(TrainableSae):
    """As SAELens' `StandardTrainingSAE`: in the penalty, a latent is weighted by the norm of its decoder row."""

    exported_as = "standard"
    sparsity_coefficient = "l1_coefficient"

    @override
    def selection(self, x: Tensor) -> Above:
        return Above(x.new_zeros(()))

    @override
    def penalty(self, x: Tensor, latents: Latents, state: TrainState) -> Tensor:
        norm = (latents.values * latents.of(self.W_dec.norm(dim=1))).sum() / len(x)
        coefficient: Tensor = self.option("l1_coefficient") * state.warm_up(self.option("l1_warm_up_fraction"))
        return coefficient * norm

    @override
    def start_at_l0(self, x: Tensor) -> dict[str, Tensor]:
        # biases that leave k pre-activations a row positive, as the penalty alone would take too long
        return {"b_enc": self.b_enc - self.threshold_of_k(x)}

    @override
    def nearer_to_l0(self, error: Tensor) -> dict[str, Tensor]:
        return {"b_enc": self.b_enc - error}
