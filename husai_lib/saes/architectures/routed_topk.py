"""Routed TopK: a linear router assigns each row to one of several equal blocks of latents.

The router reads the centred input, and the block with the largest logit may be active. `route_mode: expert_topk` takes
the k largest pre-activations within that block. `global_mask` takes the k largest of all and drops those of other
blocks, so its L0 lies **below** k. An argmax has no gradient: the error trains the blocks, and the losses below train
the router.

Hyperparameters: `num_experts` (blocks), `route_mode`, `aux_loss_coefficient` (weight of the loss that revives dead
latents, on rows of every block). With `p [n, num_experts]` the softmax of the logits, the weights of

- `route_balance`: `|mean over rows of p - 1 / num_experts|^2`, so that every block is used;
- `route_entropy`: **minus** the mean entropy of a row's `p`. As a loss is minimised, this rewards entropy and opposes
  an overconfident router. No loss here opposes it, so any weight ends near `p = 1 / num_experts` for every row, where
  `p` is balanced but the rows of the blocks are not; hence it is off by default;
- `route_consistency`: `|p(x) - p(x + noise)|^2`, averaged over rows, with Gaussian noise of standard deviation
  `robust_noise_std` (activations have a root mean square of about 1);
- `decoder_diversity`: squared cosine between the mean decoder directions of two blocks, averaged over pairs of blocks.
  It takes one pass over the decoder, while comparing latents would need `[d_sae, d_sae]`.
"""

from dataclasses import dataclass

import torch
from sae_lens import TopKSAE, TopKSAEConfig
from torch import Tensor, nn
from torch.nn.functional import normalize
from typing_extensions import override

from husai_lib.params.conditions import Condition
from husai_lib.saes.architectures.base import TrainableSae, TrainState, register
from husai_lib.saes.architectures.latents import Active, LargestOfEachRow, Latents, Selection


class RoutedTopKSAE(TopKSAE):  # type: ignore[misc]
    """SAELens' TopK SAE with a router: `W_router [num_experts, d_in]`, `b_router [num_experts]`."""

    def initialize_weights(self) -> None:
        """Those of TopK and of the router."""
        super().initialize_weights()
        self.W_router = nn.Parameter(self.b_dec.new_zeros(self.cfg.num_experts, self.cfg.d_in))
        self.b_router = nn.Parameter(self.b_dec.new_zeros(self.cfg.num_experts))

    def encode(self, x: Tensor) -> Tensor:
        """Latents `[..., d_sae]`; those of a row are all in one block."""
        inputs = self.process_sae_in(x)
        pre = self.hook_sae_acts_pre(inputs @ self.W_enc + self.b_enc)
        expert = (inputs @ self.W_router.T + self.b_router).argmax(-1)
        own = _own(expert, self.cfg.d_sae // self.cfg.num_experts, pre)
        allowed = pre.masked_fill(~own, -torch.inf) if self.cfg.route_mode == "expert_topk" else pre
        latents: Tensor = self.hook_sae_acts_post(self.activation_fn(allowed) * own)
        return latents


register("routed_topk", RoutedTopKSAE, TopKSAEConfig, num_experts=int, route_mode=str)


@dataclass(frozen=True)
class LargestOfBlock(LargestOfEachRow):
    """The k largest scores of each row within its block of `width` latents or, of the k largest of all, those in it."""

    expert: Tensor
    """`[n]`: the block of each row."""
    width: int
    within: bool

    @override
    def mask(self, scores: Tensor) -> Tensor:
        own = _own(self.expert, self.width, scores)
        return super().mask(scores.masked_fill(~own, -torch.inf) if self.within else scores) & own


class Sae(TrainableSae):
    """A TopK SAE in blocks, with a router whose rows start as unit vectors."""

    exported_as = "routed_topk"

    def __init__(self, condition: Condition, d_in: int, d_out: int, generator: torch.Generator) -> None:
        super().__init__(condition, d_in, d_out, generator)
        own = condition.hyperparameters
        self.num_experts: int = own["num_experts"]
        self.width = condition.d_sae // self.num_experts
        self.within = own["route_mode"] == "expert_topk"
        self.wants_noise = bool(own["robust_noise_std"] and own["route_consistency"])
        self.W_router = nn.Parameter(normalize(torch.randn(self.num_experts, d_in, generator=generator), dim=1))
        self.b_router = nn.Parameter(torch.zeros(self.num_experts))

    def logits(self, x: Tensor) -> Tensor:
        """`[n, num_experts]`; the losses of the router have no gradient to `b_dec`."""
        return self.centred(x) @ self.W_router.T + self.b_router

    @override
    def selection(self, x: Tensor) -> LargestOfBlock:
        return LargestOfBlock(self.condition.k, self.logits(x).argmax(-1), self.width, self.within)

    @override
    def penalty(self, x: Tensor, latents: Latents, state: TrainState) -> Tensor:
        logs = self.logits(x).log_softmax(-1)
        p = logs.exp()
        balance, entropy = (p.mean(0) - 1 / self.num_experts).square().sum(), -(p * logs).sum(-1).mean()
        total: Tensor = self.option("route_balance") * balance - self.option("route_entropy") * entropy
        if self.wants_noise:
            assert state.noise is not None
            moved = self.logits(x + self.option("robust_noise_std") * state.noise).softmax(-1)
            total = total + self.option("route_consistency") * (p - moved).square().sum(-1).mean()
        pairs = self.num_experts * (self.num_experts - 1)
        if self.condition.hyperparameters["decoder_diversity"] and pairs:
            rows = normalize(self.W_dec, dim=1).reshape(self.num_experts, self.width, -1)
            directions = normalize(rows.sum(1), dim=1)
            # every direction has a cosine of 1 with itself
            similarity = (directions @ directions.T).square().sum() - self.num_experts
            total = total + self.option("decoder_diversity") * similarity / pairs
        return total

    @override
    def active(self, inputs: Tensor, norms: Tensor, selection: Selection, of: slice = slice(None)) -> Active | None:
        assert isinstance(selection, LargestOfBlock)
        if not self.within:
            active = super().active(inputs, norms, selection, of)
            assert active
            return active.where(active.column // self.width == selection.expert[active.row])
        n, k = len(inputs), selection.k  # no other block of a row is scored
        columns, scores = torch.empty(n, k, dtype=torch.int32), torch.empty(n, k)
        for start in range(0, self.condition.d_sae, self.width):
            if len(rows := (selection.expert == start // self.width).nonzero()[:, 0]):
                found = super().active(inputs[rows], norms, selection, slice(start, start + self.width))
                assert found
                columns[rows] = found.column.view(-1, k) + start
                scores[rows] = found.scores.view(-1, k)
        row = torch.arange(n, dtype=torch.int32).repeat_interleave(k)
        return Active(row, columns.view(-1), scores.view(-1), (n, self.condition.d_sae))

    @override
    def exported_tensors(self, scale_in: float, scale_out: float) -> dict[str, Tensor]:
        return {"W_router": self.W_router * scale_in, "b_router": self.b_router}


def _own(expert: Tensor, width: int, scores: Tensor) -> Tensor:
    """`[..., d_sae]` bool: the latents of each row's block, for `expert [...]`."""
    return torch.arange(scores.shape[-1], device=scores.device) // width == expert[..., None]
