"""TopK: the k largest pre-activations of each row (arXiv 2406.04093).

Hyperparameters: `aux_loss_coefficient` (weight of the loss that revives dead latents).
"""

from __future__ import annotations

from typing import Any

from sae_lens import TopKSAE
from torch import Tensor
from torch.nn.functional import relu
from typing_extensions import override

from husai_lib.saes.architectures.base import Loss, TrainableSae, TrainState, revival_loss, squared
from husai_lib.saes.architectures.latents import LargestOfEachRow


class Sae(TrainableSae):
    """As SAELens' `TopKTrainingSAE`."""

    @override
    def loss(self, x: Tensor, target: Tensor, state: TrainState) -> Loss:
        """Squared error plus the revival loss of dead latents."""
        latents = self.latents(x, LargestOfEachRow(self.condition.k))
        error = target - self.b_dec - latents.decode(self.W_dec)
        return Loss(squared(error) + revival_loss(self, x, error, state.dead), latents.firing(), {})

    @override
    def encode(self, x: Tensor) -> Tensor:
        """The k largest pre-activations of each row, if positive."""
        pre = self.pre_activations(x)
        return relu(pre) * LargestOfEachRow(self.condition.k).dense(pre * self.W_dec.norm(dim=1))

    @override
    def to_saelens(self, scale_in: float, scale_out: float) -> tuple[type[Any], dict[str, Any], dict[str, Tensor]]:
        """A SAELens `topk` SAE."""
        return TopKSAE, {"k": self.condition.k}, {}
