"""TopK: the k largest pre-activations of each row (arXiv 2406.04093).

Hyperparameters: `aux_loss_coefficient` (weight of the loss that revives dead latents).
"""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from husai_lib.saes.architectures.base import Loss, TrainableSae, TrainState, revival_loss, squared
from husai_lib.saes.architectures.selection import LargestOfEachRow


class Sae(TrainableSae):
    """As SAELens' `TopKTrainingSAE`."""

    exported_as = "topk"

    @override
    def loss(self, x: Tensor, target: Tensor, state: TrainState) -> Loss:
        """Squared error plus the revival loss of dead latents."""
        latents = self.latents(x, LargestOfEachRow(self.condition.k))
        error = target - self.b_dec - latents.decode(self.W_dec)
        return Loss(squared(error) + revival_loss(self, x, error, state.dead), latents.firing(), {})
