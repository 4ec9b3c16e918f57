"""RouteSAE: a router over the residual streams of several layers, and one shared TopK SAE (arXiv 2503.08200).

A row holds L layers side by side, `[n, L * d]`. Each layer is centred by its own mean over the training rows, so that
the SAE spends no latents on telling layers apart. The sum of the layers `[n, d]` gives L logits and, by a softmax,
probabilities. The activation of the most probable layer, times its probability p, is both the input of the shared SAE
**and** what it reconstructs.

The gradient reaches the router through p. A row's squared error is divided by p^2, as the paper's error is relative to
the activation. Otherwise, as p also multiplies the error, the router would lower it by being undecided. Layers of small
norm are still cheaper to reconstruct. Explained variance is that of the weighted activations.

Hyperparameters: `layers` (L: as many hooks as `activations.hook_name` joins), `aux_loss_coefficient` (weight of the
loss that revives dead latents; it does not train the router).
"""

import torch
from sae_lens import TopKSAE, TopKSAEConfig
from torch import Tensor, nn
from torch.nn.functional import normalize
from typing_extensions import override

from husai_lib.params.conditions import Condition
from husai_lib.saes.architectures import topk
from husai_lib.saes.architectures.base import Loss, TrainState, register


def route(x: Tensor, centre: Tensor, W_router: Tensor, b_router: Tensor) -> tuple[Tensor, Tensor]:
    """The centred activation of each row's most probable layer, times its probability; and that probability.

    Returns `[..., d]` and `[..., 1]`, given `x [..., L * d]`, `centre [L * d]`, `W_router [L, d]`, `b_router [L]`.
    """
    layers = (x - centre).reshape(*x.shape[:-1], *W_router.shape)
    probability, layer = (layers.sum(-2) @ W_router.T + b_router).softmax(-1).max(-1, keepdim=True)
    chosen = layers.take_along_dim(layer[..., None], dim=-2).squeeze(-2)
    return probability * chosen, probability


class RouteSAE(TopKSAE):  # type: ignore[misc]
    """SAELens' TopK SAE behind a router: `d_in` is that of one layer; `encode` takes `[..., layers * d_in]`."""

    def initialize_weights(self) -> None:
        """Those of TopK and of the router, and the mean of each layer."""
        super().initialize_weights()
        layers, d_in, zeros = self.cfg.layers, self.cfg.d_in, self.b_dec.new_zeros
        self.W_router, self.b_router = nn.Parameter(zeros(layers, d_in)), nn.Parameter(zeros(layers))
        self.centre = nn.Parameter(zeros(layers * d_in))

    def target_of(self, x: Tensor) -> Tensor:
        """The part of `x [..., layers * d_in]` to reconstruct: the routed, weighted activation `[..., d_in]`."""
        return route(x.to(self.dtype), self.centre, self.W_router, self.b_router)[0]

    def encode(self, x: Tensor) -> Tensor:
        """Latents `[..., d_sae]`; `decode` returns `[..., d_in]`."""
        latents: Tensor = super().encode(self.target_of(x))
        return latents


register("route_sae", RouteSAE, TopKSAEConfig, layers=int)


class Sae(topk.Sae):
    """A TopK SAE of the width of one layer, behind a router whose rows start as unit vectors."""

    exported_as = "route_sae"
    centre: Tensor

    def __init__(self, condition: Condition, d_in: int, d_out: int, generator: torch.Generator) -> None:
        assert d_in == d_out, "the target is the input"
        layers = condition.hyperparameters["layers"]
        d = d_in // layers
        super().__init__(condition, d, d, generator)
        self.W_router = nn.Parameter(normalize(torch.randn(layers, d, generator=generator), dim=1))
        self.b_router = nn.Parameter(torch.zeros(layers))
        # with biases of zero the loss does not depend on the router, whose first Adam step would follow rounding errors
        self.b_enc.data.fill_(1e-3)
        self.register_buffer("centre", torch.zeros(d_in))

    @override
    def start_bias(self, mean: Tensor) -> Tensor:
        self.centre = mean
        return mean.new_zeros(self.d_in)  # routed activations are centred already

    @override
    def loss(self, x: Tensor, target: Tensor, state: TrainState) -> Loss:
        routed, probability = route(x, self.centre, self.W_router, self.b_router)
        latents = self.latents(routed)
        error = latents.error(routed + -self.b_dec, self.W_dec)
        revival = self.revival_loss(routed.detach(), error, state.dead)
        return Loss((error / probability).square().sum(-1).mean() + revival, latents.firing(), {})

    @override
    def exported_tensors(self, scale_in: float, scale_out: float) -> dict[str, Tensor]:
        return {"W_router": self.W_router * scale_in, "b_router": self.b_router, "centre": self.centre / scale_in}
