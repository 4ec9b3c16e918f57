"""What all architectures share: parameters, their start, sparse decoding, dead latents, export."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, normalize, relu

from husai_lib.params import Condition

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


@dataclass
class TrainState:
    """Where training stands, as a loss may need it."""

    step: int
    steps: int
    dead: Tensor
    """`[d_sae]` bool: latents that did not fire for a while."""

    def warm_up(self, fraction: float) -> float:
        """0 to 1, linearly over the first `fraction` of the steps (SAELens' coefficient schedule)."""
        warm_steps = int(fraction * self.steps)
        return min(1.0, self.step / warm_steps) if warm_steps else 1.0


@dataclass
class Loss:
    """A training loss, `[]`, and which latents fired in the batch, `[d_sae]` bool."""

    total: Tensor
    fired: Tensor


class TrainableSae(nn.Module, ABC):
    """An SAE in training. `W_enc` is kept as `[d_sae, d_in]` (SAELens: transposed), so that its sparse
    gradient is made of whole rows.

    Decoder rows start as random unit vectors, encoder rows as their copies (science: tied start).
    """

    same_space = True
    """Whether input and target lie in the same space: then encoder rows start as the decoder's, and `b_dec` is
    subtracted from the input."""
    dead_after = 0.1
    """A latent that did not fire for this share of all steps counts as dead in training."""

    def __init__(self, condition: Condition, d_in: int, d_out: int, generator: torch.Generator) -> None:
        super().__init__()
        self.condition = condition
        self.d_in, self.d_out = d_in, d_out
        rows = normalize(torch.randn(condition.d_sae, d_out, generator=generator), dim=1)
        self.W_dec = nn.Parameter(rows)
        own = None if self.same_space else normalize(torch.randn(condition.d_sae, d_in, generator=generator), dim=1)
        self.W_enc = nn.Parameter(rows.clone() if own is None else own)
        self.b_enc = nn.Parameter(torch.zeros(condition.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_out))

    def option(self, name: str) -> float:
        """A hyperparameter that is this architecture's own."""
        return self.condition.hyperparameters[name]

    @abstractmethod
    def loss(self, x: Tensor, target: Tensor, state: TrainState) -> Loss:
        """Loss of reconstructing `target [n, d_out]` from `x [n, d_in]`.

        The error is summed over dimensions and averaged over rows, as SAELens has it.
        """

    @abstractmethod
    def to_saelens(self) -> tuple[type[Any], dict[str, Any], dict[str, Tensor]]:
        """The SAELens inference class, the fields of its config beyond the widths, and its threshold if any.

        The threshold is in units of the scaled activations, for unit decoder rows; `export` does the rest.
        """

    def centred(self, x: Tensor) -> Tensor:
        """`x` minus the decoder bias, if that lies in the same space."""
        return x - self.b_dec if self.same_space else x

    def pre_activations(self, x: Tensor) -> Tensor:
        """`[n, d_sae]` before the activation function."""
        return self.centred(x) @ self.W_enc.T + self.b_enc

    def after_step(self) -> None:
        """Projection of the parameters after an optimiser step; none by default."""

    @torch.no_grad()
    def export(self, scale_in: float, scale_out: float, metadata: dict[str, Any]) -> Any:
        """The trained SAE as a SAELens SAE for unscaled activations, with unit decoder rows.

        Training saw `scale_in * x` and `scale_out * target`. All activation functions here are
        positively homogeneous, so scales and decoder norms fold into encoder, biases and threshold.
        """
        sae_class, fields, tensors = self.to_saelens()
        norms = self.W_dec.norm(dim=1).clamp(min=1e-8)
        state = {
            "W_enc": (self.W_enc * norms[:, None] * (scale_in / scale_out)).T.contiguous(),
            "b_enc": self.b_enc * norms / scale_out,
            "W_dec": self.W_dec / norms[:, None],
            "b_dec": self.b_dec / scale_out,
            **{name: tensor / scale_out for name, tensor in tensors.items()},
        }
        config_class = next(config for known, config in SAE_CLASS_REGISTRY.values() if known is sae_class)
        config = config_class(d_in=self.d_in, d_sae=self.condition.d_sae, metadata=SAEMetadata(**metadata), **fields)
        sae = sae_class(config)
        sae.load_state_dict({name: tensor.float().cpu().contiguous() for name, tensor in state.items()})
        return sae.eval()


def squared_error(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Squared error summed over dimensions, averaged over rows."""
    return (reconstruction - target).square().sum(-1).mean()


@dataclass
class Active:
    """Which latents are active: entry i is latent `column[i]` of row `row[i]`; rows ascend."""

    row: Tensor
    column: Tensor
    offsets: Tensor
    """`[n]`: where each row's entries start."""

    @classmethod
    def of_mask(cls, mask: Tensor) -> Active:
        """The true entries of `mask [n, d_sae]`."""
        row, column = mask.nonzero(as_tuple=True)
        counts = torch.bincount(row, minlength=len(mask))
        return cls(row, column, counts.cumsum(0) - counts)


class _SelectedPreActivations(torch.autograd.Function):
    """Pre-activations at the active entries; the backward pass touches only those entries."""

    @staticmethod
    def forward(ctx: Any, sae: TrainableSae, x: Tensor, pre: Tensor, active: Active, *_: Tensor) -> Tensor:
        ctx.save_for_backward(sae.centred(x), sae.W_enc)
        ctx.active, ctx.same_space = active, sae.same_space
        return pre[active.row, active.column]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        centred, W_enc = ctx.saved_tensors
        (grad,) = grads
        grad_W_enc = _transposed_product(ctx.active, grad, centred, len(W_enc))
        grad_b_enc = grad.new_zeros(len(W_enc)).index_add_(0, ctx.active.column, grad)
        grad_b_dec = -(grad_b_enc @ W_enc) if ctx.same_space else None
        return None, None, None, None, grad_W_enc, grad_b_enc, grad_b_dec


class _SparseDecode(torch.autograd.Function):
    """`latents @ W_dec` for latents given by their active entries."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, active: Active) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.active = active
        return _weighted_rows(W_dec, values, active)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        values, W_dec = ctx.saved_tensors
        (grad,) = grads
        with torch.enable_grad():  # embedding_bag knows the gradient of its weights
            weights = values.detach().requires_grad_()
            (grad_values,) = torch.autograd.grad(_weighted_rows(W_dec.detach(), weights, ctx.active), weights, grad)
        return grad_values, _transposed_product(ctx.active, values, grad, len(W_dec)), None


def _weighted_rows(W_dec: Tensor, values: Tensor, active: Active) -> Tensor:
    return embedding_bag(active.column, W_dec, active.offsets, mode="sum", per_sample_weights=values)


def _transposed_product(active: Active, values: Tensor, dense: Tensor, d_sae: int) -> Tensor:
    """`latents.T @ dense`, `[d_sae, d]`, for latents `[n, d_sae]` given by their active entries."""
    order = active.column.argsort(stable=True)
    counts = torch.bincount(active.column, minlength=d_sae)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    latents_T = torch.sparse_csr_tensor(
        starts, active.row[order], values[order], (d_sae, len(dense)), check_invariants=False
    )
    return latents_T @ dense


def sparse_autoencode(sae: TrainableSae, x: Tensor, pre: Tensor, active: Active) -> tuple[Tensor, Tensor]:
    """Reconstruction `[n, d_out]` and latent values at the active entries, decoder rows taken as unit.

    `pre` are the pre-activations without gradient. Latents are scaled by their decoder row's norm, as
    SAELens' `rescale_acts_by_decoder_norm` has it, so norms are free and need no projection.
    """
    norms = sae.W_dec.norm(dim=1)
    selected = _SelectedPreActivations.apply(sae, x, pre, active, sae.W_enc, sae.b_enc, sae.b_dec)  # type: ignore[no-untyped-call]
    values = relu(selected * norms[active.column])
    decoded: Tensor = _SparseDecode.apply(values, sae.W_dec / norms[:, None], active)  # type: ignore[no-untyped-call]
    return decoded + sae.b_dec, values


def sparse_loss(
    sae: TrainableSae, x: Tensor, target: Tensor, state: TrainState, choose: Callable[[Tensor], Active]
) -> tuple[Loss, Tensor]:
    """Squared error plus `aux_loss_coefficient` times the revival loss, and the values of the active latents.

    `choose` picks the active ones by their scores `[n, d_sae]`: pre-activations times decoder norm.
    """
    with torch.no_grad():
        pre = sae.pre_activations(x)
        active = choose(pre * sae.W_dec.norm(dim=1))
    reconstruction, values = sparse_autoencode(sae, x, pre, active)
    fired = torch.zeros_like(state.dead).index_fill_(0, active.column[values > 0], True)
    revival = revival_loss(sae, x, target - reconstruction, state.dead)
    total = squared_error(reconstruction, target) + sae.option("aux_loss_coefficient") * revival
    return Loss(total, fired), values.detach()


def revival_loss(sae: TrainableSae, x: Tensor, error: Tensor, dead: Tensor) -> Tensor:
    """Squared error of the dead latents' attempt at the reconstruction error (arXiv 2406.04093, A.2).

    The strongest `d_in / 2` dead latents of each row decode the detached error, which pulls them
    towards what is not explained; scaled down while few are dead. As in SAELens.
    """
    count = int(dead.sum())
    if count == 0:
        return error.new_zeros(())
    k_aux = sae.d_out // 2
    scale = min(count / k_aux, 1.0)
    norms = sae.W_dec[dead].norm(dim=1)
    pre = (sae.centred(x) @ sae.W_enc[dead].T + sae.b_enc[dead]) * norms
    top = pre.topk(min(k_aux, count), dim=1, sorted=False)
    latents = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    attempt = latents @ (sae.W_dec[dead] / norms[:, None])
    return scale * squared_error(attempt, error.detach())
