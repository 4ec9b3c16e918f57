"""JumpReLU: latents pass above a learned threshold; the penalty counts those that do (arXiv 2407.14435).

Hyperparameters: `l0_coefficient`, `l0_warm_up_fraction` (share of the steps over which the penalty grows to its full
size), `bandwidth` (width of the straight-through estimator's kernel), `init_threshold`, `aux_loss_coefficient`
(weight of the loss that revives dead latents; SAELens' recipe has none).
"""

import torch
from torch import Tensor, nn
from typing_extensions import override

from husai_lib.params.conditions import Condition
from husai_lib.saes.architectures.base import Loss, TrainableSae, TrainState, squared
from husai_lib.saes.architectures.latents import Above


class Sae(TrainableSae):
    """As SAELens' `JumpReLUTrainingSAE` in mode `step`: the threshold's gradient comes from a rectangular kernel."""

    exported_as = "jumprelu"
    sparsity_coefficient = "l0_coefficient"

    def __init__(self, condition: Condition, d_in: int, d_out: int, generator: torch.Generator) -> None:
        super().__init__(condition, d_in, d_out, generator)
        start = condition.hyperparameters["init_threshold"]
        self.threshold = nn.Parameter(torch.full((condition.d_sae,), start))

    @override
    def selection(self, x: Tensor) -> Above:
        lowest = self.threshold.detach() - self.option("bandwidth") / 2  # there is no gradient below the kernel
        return Above(lowest * self.W_dec.detach().norm(dim=1))

    @override
    def loss(self, x: Tensor, target: Tensor, state: TrainState) -> Loss:
        near, width = self.selected(x), self.option("bandwidth")
        pre, threshold = near.values, near.of(self.threshold)
        fixed = threshold.detach()
        passed = (pre > fixed).float()
        # its value is zero and its gradient that of the kernel, equations 11 and 12 of the paper
        moved = ((pre - fixed).abs() < width / 2) * ((threshold - fixed) / width)
        latents = near.with_values(pre * passed - fixed * moved)
        l0 = (passed - moved).sum() / len(x)
        error = latents.error(target + -self.b_dec, self.W_dec)
        coefficient = self.option("l0_coefficient") * state.warm_up(self.option("l0_warm_up_fraction"))
        total = squared(error) + coefficient * l0 + self.revival_loss(x, error, state.dead)
        return Loss(total, latents.firing(), {})

    @override
    def projected(self) -> dict[str, Tensor]:
        # a negative threshold would pass negative pre-activations
        return super().projected() | {"threshold": self.threshold.clamp(min=0.0)}

    @override
    def start_at_l0(self, x: Tensor) -> dict[str, Tensor]:
        # one threshold for all latents, as Adam alone would take too long
        return {"threshold": torch.ones_like(self.threshold) * self.threshold_of_k(x)}

    @override
    def nearer_to_l0(self, error: Tensor) -> dict[str, Tensor]:
        return {"threshold": self.threshold * error.exp()}

    @override
    def exported_tensors(self, scale_in: float, scale_out: float) -> dict[str, Tensor]:
        return {"threshold": self.threshold * self.W_dec.norm(dim=1) / scale_out}
