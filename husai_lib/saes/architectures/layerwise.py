"""Layerwise: another architecture at each layer, all under the parameter budget of one SAE on one layer.

A row holds L layers side by side, `[n, L * d]`. The `d_sae` latents are dealt to L equal blocks, and so is k; each
block reads and writes its own layer only: encoder and decoder are block-diagonal, with `d_sae * d` weights each.

Hyperparameters: `layers` (the architecture of each block, `topk` or `standard`, one for each hook that
`activations.hook_name` joins), and those of these architectures: `l1_coefficient`, `l1_warm_up_fraction` (standard
blocks), `aux_loss_coefficient` (all blocks).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.registry import register_sae_class
from sae_lens.saes.topk_sae import TopK
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import relu
from typing_extensions import override

from husai_lib.params.conditions import Condition
from husai_lib.params.hyperparameters import ARCHITECTURES
from husai_lib.saes.architectures import standard, topk
from husai_lib.saes.architectures.base import Loss, TrainableSae, TrainState

BLOCKS: dict[str, type[TrainableSae]] = {"topk": topk.Sae, "standard": standard.Sae}


@dataclass
class LayerwiseSAEConfig(StandardSAEConfig):  # type: ignore[misc]
    """SAELens' standard config with the architecture of each block; `k` is that of all blocks together."""

    k: int = 32
    layers: list[str] = field(default_factory=lambda: ["topk", "standard"])

    @classmethod
    def architecture(cls) -> str:
        """The name in SAELens' registry and in `cfg.json`."""
        return "layerwise"


class LayerwiseSAE(StandardSAE):  # type: ignore[misc]
    """SAELens' standard SAE with block-diagonal weights, each block with its own activation function."""

    def encode(self, x: Tensor) -> Tensor:
        """Latents `[..., d_sae]` of `x [..., d_in]`, block by block."""
        pre = self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc + self.b_enc)
        kinds, largest = self.cfg.layers, TopK(self.cfg.k // len(self.cfg.layers))
        blocks = zip(kinds, pre.chunk(len(kinds), dim=-1), strict=True)
        active = [largest(block) if kind == "topk" else relu(block) for kind, block in blocks]
        latents: Tensor = self.hook_sae_acts_post(torch.cat(active, dim=-1))
        return latents


register_sae_class("layerwise", LayerwiseSAE, LayerwiseSAEConfig)


class Sae(TrainableSae):
    """The blocks' formulas on slices of weights that have the width of one layer: `W_enc`, `W_dec [d_sae, d]`."""

    sparsity_coefficient: str | None = "l1_coefficient"

    def __init__(self, condition: Condition, d_in: int, d_out: int, generator: torch.Generator) -> None:
        own = condition.hyperparameters
        kinds: list[str] = own["layers"]
        d, left = divmod(d_in, len(kinds))
        assert left == 0, f"{d_in} dimensions in {len(kinds)} layers"
        super().__init__(condition, d, d, generator)
        self.d_in = self.d_out = d_in
        self.b_dec = nn.Parameter(torch.zeros(d_out))
        if "standard" not in kinds:
            self.sparsity_coefficient = None
        shared = {"d_sae": condition.d_sae // len(kinds), "k": condition.k // len(kinds)}
        self.blocks = []
        """What computes a block; their own weights are never used, and a list keeps them out of the parameters."""
        for kind in kinds:
            of_kind = {key: own[key] for key in ARCHITECTURES[kind].model_fields}
            block = condition.model_copy(update={**shared, "architecture": kind, "hyperparameters": of_kind})
            self.blocks.append(BLOCKS[kind](block, d, d, torch.Generator()))

    def of_block(self, i: int, method: str, *arguments: Any) -> Any:
        """A method of block i with its slices of the weights."""
        block, count = self.blocks[i], len(self.blocks)
        block.sparse = self.sparse
        state = {name: getattr(self, name).chunk(count)[i] for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
        options = {name: self.option(name) for name, _ in block.named_buffers()}
        return functional_call(block, state | options, (method, *arguments))

    @override
    def loss(self, x: Tensor, target: Tensor, state: TrainState) -> Loss:
        """The sum of the blocks' losses, each on its layer."""
        count, losses = len(self.blocks), []
        for i, (rows, wanted) in enumerate(zip(x.chunk(count, -1), target.chunk(count, -1), strict=True)):
            dead = None if state.dead is None else state.dead.chunk(count)[i]
            losses.append(self.of_block(i, "loss", rows, wanted, state._replace(dead=dead)))
        return Loss(sum(loss.total for loss in losses), torch.cat([loss.firing for loss in losses]), {})

    @override
    def encode(self, x: Tensor) -> Tensor:
        """The blocks' latents side by side."""
        rows = x.chunk(len(self.blocks), -1)
        return torch.cat([self.of_block(i, "encode", part) for i, part in enumerate(rows)], -1)

    @override
    def decode(self, latents: Tensor) -> Tensor:
        """The blocks' reconstructions side by side."""
        parts = latents.chunk(len(self.blocks), -1)
        return torch.cat([self.of_block(i, "decode", part) for i, part in enumerate(parts)], -1)

    @override
    def nearer_to_l0(self, error: Tensor) -> dict[str, Tensor]:
        """The biases of the ReLU blocks."""
        starts = self.b_enc.chunk(len(self.blocks))
        moved = [self.of_block(i, "nearer_to_l0", error).get("b_enc", bias) for i, bias in enumerate(starts)]
        return {"b_enc": torch.cat(moved)}

    @override
    def start_at_l0(self, x: Tensor) -> dict[str, Tensor]:
        """The blocks' starts with about k latents a row, each its share of them."""
        biases, rows = self.b_enc.chunk(len(self.blocks)), x.chunk(len(self.blocks), -1)
        starts = [self.of_block(i, "start_at_l0", part).get("b_enc", biases[i]) for i, part in enumerate(rows)]
        return {"b_enc": torch.cat(starts)}

    @override
    def to_saelens(self, scale_in: float, scale_out: float) -> tuple[type[Any], dict[str, Any], dict[str, Tensor]]:
        """A `LayerwiseSAE`; its weights outside the blocks are zeros."""
        count, norms = len(self.blocks), self.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-8)
        W_enc = self.W_enc * norms * (scale_in / scale_out)
        tensors = {
            "W_enc": torch.block_diag(*W_enc.chunk(count)).T,  # type: ignore[no-untyped-call]
            "W_dec": torch.block_diag(*(self.W_dec / norms).chunk(count)),  # type: ignore[no-untyped-call]
        }
        return LayerwiseSAE, {"k": self.condition.k, "layers": self.condition.hyperparameters["layers"]}, tensors
