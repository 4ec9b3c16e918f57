"""Matryoshka BatchTopK: nested prefixes of the latents each reconstruct (arXiv 2503.17547).

Hyperparameters: `widths` (the nested prefixes as shares of `d_sae`, ascending to 1; shares that round to the same
width for a small `d_sae` are one level), `aux_loss_coefficient` and `topk_threshold_lr` (those of BatchTopK).
"""

from torch import Tensor
from typing_extensions import override

from husai_lib.saes.architectures import batchtopk
from husai_lib.saes.architectures.base import Loss, TrainState, squared


class Sae(batchtopk.Sae):
    """As SAELens' `MatryoshkaBatchTopKTrainingSAE`: at inference a JumpReLU SAE with the threshold estimated here.

    As in its default, dead latents are revived by the error of the whole SAE rather than that of their own level.
    """

    @override
    def loss(self, x: Tensor, target: Tensor, state: TrainState) -> Loss:
        latents = self.latents(x)
        error, total, start = target + -self.b_dec, x.new_zeros(()), 0
        for stop in self.widths():
            error = latents.error(error, self.W_dec, start, stop)
            total = total + squared(error)
            start = stop
        total = total + self.revival_loss(x, error, state.dead)
        return Loss(total, latents.firing(), self.estimates(latents, state))

    def widths(self) -> list[int]:
        """The number of latents of each level, ascending to `d_sae`."""
        return sorted({max(1, round(share * self.condition.d_sae)) for share in self.option("widths")})
