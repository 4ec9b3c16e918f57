"""Gated: one linear map decides which latents are active, another how strongly (arXiv 2404.16014).

Hyperparameters: `l1_coefficient`, `l1_warm_up_fraction` (share of the steps over which the penalty grows to its full
size), `aux_loss_coefficient` (weight of the loss that revives dead latents; SAELens' recipe has none).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from typing_extensions import override

from husai_lib.params.conditions import Condition
from husai_lib.saes.architectures import standard
from husai_lib.saes.architectures.base import Loss, TrainState, squared


class Sae(standard.Sae):
    """As SAELens' `GatedTrainingSAE`: the gate's reconstruction also trains the decoder, which the paper keeps fixed.

    `W_enc` and `b_enc` are those of the gate, so dead latents are revived, and L0 is matched, by their gate. The
    magnitude is the gate's map scaled by `exp(r_mag)`, with a bias of its own.
    """

    exported_as = "gated"

    def __init__(self, condition: Condition, d_in: int, d_out: int, generator: torch.Generator) -> None:
        super().__init__(condition, d_in, d_out, generator)
        self.r_mag = nn.Parameter(torch.zeros(condition.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(condition.d_sae))

    @override
    def loss(self, x: Tensor, target: Tensor, state: TrainState) -> Loss:
        gate = self.selected(x)
        magnitude = (gate.values - gate.of(self.b_enc)) * gate.of(self.r_mag).exp() + gate.of(self.b_mag)
        opened, latents = gate.with_values(relu(gate.values)), gate.with_values((gate.values > 0) * relu(magnitude))
        error, of_gate = (part.error(target + -self.b_dec, self.W_dec) for part in (latents, opened))
        total = squared(error) + squared(of_gate) + self.penalty(x, opened, state)
        return Loss(total + self.revival_loss(x, error, state.dead), latents.firing(), {})

    @override
    def projected(self) -> dict[str, Tensor]:
        # if aligned, magnitudes have the directions of the gate
        return super().projected() | ({"r_mag": torch.zeros_like(self.r_mag)} if self.condition.aligned else {})

    @override
    def exported_tensors(self, scale_in: float, scale_out: float) -> dict[str, Tensor]:
        norms = self.W_dec.norm(dim=1) / scale_out
        return {"b_gate": self.b_enc * norms, "b_mag": self.b_mag * norms, "r_mag": self.r_mag}
