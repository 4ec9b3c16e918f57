"""Layerwise: an architecture for each layer, together within the parameter budget of one SAE on one layer.

A row holds L layers side by side, `[n, L * d]`. The `d_sae` latents, and k, are divided among L equal blocks. Each
block reads and writes only its own layer: encoder and decoder are block-diagonal, with `d_sae * d` weights each.

Hyperparameters: `layers` (the architecture of each block, `topk` or `standard`, one for each hook that
`activations.hook_name` joins), and those of these architectures: `l1_coefficient`, `l1_warm_up_fraction` (standard
blocks), `aux_loss_coefficient` (all blocks).
"""

from collections.abc import Sequence
from typing import Any

import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopK
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import relu
from typing_extensions import override

from husai_lib.params.conditions import Condition
from husai_lib.params.hyperparameters import ARCHITECTURES
from husai_lib.saes.architectures import standard, topk
from husai_lib.saes.architectures.base import Loss, TrainableSae, TrainState, register

BLOCKS: dict[str, type[TrainableSae]] = {"topk": topk.Sae, "standard": standard.Sae}


class LayerwiseSAE(StandardSAE):  # type: ignore[misc]
    """SAELens' standard SAE with block-diagonal weights; `layers` names each block's architecture, `k` is of all."""

    def encode(self, x: Tensor) -> Tensor:
        """Latents `[..., d_sae]` of `x [..., d_in]`, block by block."""
        pre = self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc + self.b_enc)
        kinds, largest = self.cfg.layers, TopK(self.cfg.k // len(self.cfg.layers))
        blocks = zip(kinds, pre.chunk(len(kinds), dim=-1), strict=True)
        active = [largest(block) if kind == "topk" else relu(block) for kind, block in blocks]
        latents: Tensor = self.hook_sae_acts_post(torch.cat(active, dim=-1))
        return latents


register("layerwise", LayerwiseSAE, StandardSAEConfig, k=int, layers=list[str])


class Sae(TrainableSae):
    """The blocks' formulas on slices of weights with the width of one layer: `W_enc`, `W_dec [d_sae, d]`."""

    exported_as = "layerwise"
    sparsity_coefficient: str | None = "l1_coefficient"

    def __init__(self, condition: Condition, d_in: int, d_out: int, generator: torch.Generator) -> None:
        own = condition.hyperparameters
        kinds: list[str] = own["layers"]
        d = d_in // len(kinds)
        super().__init__(condition, d, d, generator)
        self.d_in = self.d_out = d_in
        self.b_dec = nn.Parameter(torch.zeros(d_out))
        if "standard" not in kinds:
            self.sparsity_coefficient = None
        shared = {"d_sae": condition.d_sae // len(kinds), "k": condition.k // len(kinds)}
        self.blocks = []
        """One SAE a block, of which only the formulas are used; a list keeps their weights out of the parameters."""
        for kind in kinds:
            of_kind = {key: own[key] for key in ARCHITECTURES[kind].model_fields}
            block = condition.model_copy(update={**shared, "architecture": kind, "hyperparameters": of_kind})
            self.blocks.append(BLOCKS[kind](block, d, d, torch.Generator()))

    def of_block(self, i: int, method: str, *arguments: Any) -> Any:
        """The result of a method of block i, with its slices of the weights."""
        block, count = self.blocks[i], len(self.blocks)
        block.sparse = self.sparse
        state = {name: getattr(self, name).chunk(count)[i] for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
        options = {name: self.option(name) for name, _ in block.named_buffers()}
        return functional_call(block, state | options, (method, *arguments))

    @override
    def loss(self, x: Tensor, target: Tensor, state: TrainState) -> Loss:
        count, losses = len(self.blocks), []
        for i, (rows, wanted) in enumerate(zip(x.chunk(count, -1), target.chunk(count, -1), strict=True)):
            dead = None if state.dead is None else state.dead.chunk(count)[i]
            losses.append(self.of_block(i, "loss", rows, wanted, state._replace(dead=dead)))
        return Loss(sum(loss.total for loss in losses), torch.cat([loss.firing for loss in losses]), {})

    @override
    def start_at_l0(self, x: Tensor) -> dict[str, Tensor]:
        return self._biases("start_at_l0", x.chunk(len(self.blocks), -1))

    @override
    def nearer_to_l0(self, error: Tensor) -> dict[str, Tensor]:
        return self._biases("nearer_to_l0", [error] * len(self.blocks))

    def _biases(self, method: str, arguments: Sequence[Tensor]) -> dict[str, Tensor]:
        """`b_enc` as a method of each block returns it; unchanged for blocks that do not."""
        biases = self.b_enc.chunk(len(self.blocks))
        new = [self.of_block(i, method, given).get("b_enc", biases[i]) for i, given in enumerate(arguments)]
        return {"b_enc": torch.cat(new)}

    @override
    def exported_tensors(self, scale_in: float, scale_out: float) -> dict[str, Tensor]:
        count, norms = len(self.blocks), self.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-8)
        W_enc = self.W_enc * norms * (scale_in / scale_out)
        return {
            "W_enc": torch.block_diag(*W_enc.chunk(count)).T,  # type: ignore[no-untyped-call]
            "W_dec": torch.block_diag(*(self.W_dec / norms).chunk(count)),  # type: ignore[no-untyped-call]
        }
