"""Latents of a batch: sparse on a CPU, where only the active entries are computed, decoded and differentiated.

Beside the encoder's product, a dense TopK step on a CPU is five more products of that size and passes over
`[n, d_sae]`. The sparse step is a selection, one weighted sum of decoder rows, and two sparse products. On a GPU the
dense form is faster.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


@dataclass
class Active:
    """Which latents are active: entry i is latent `column[i]` of row `row[i]`; rows ascend."""

    row: Tensor
    """int32"""
    column: Tensor
    """int32"""
    offsets: Tensor
    """`[n]` int32: where each row's entries start."""
    scores: Tensor
    """The scores by which they were selected."""
    d_sae: int
    _by_column: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def by_column(self) -> tuple[Tensor, Tensor]:
        """The order that sorts the entries by latent, and `[d_sae]` where each latent's entries start in it."""
        if self._by_column is None:  # both weight gradients need it
            self._by_column = self.column.argsort(stable=True), starts(self.column, self.d_sae)
        return self._by_column

    def where(self, keep: Tensor) -> Active:
        """The entries where `keep` is true."""
        row = self.row[keep]
        return Active(row, self.column[keep], starts(row, len(self.offsets)), self.scores[keep], self.d_sae)


@dataclass
class Latents:
    """Latents of a batch of n rows, before or after their activation function, not scaled to unit decoder rows."""

    values: Tensor
    """At the active entries or, where `active` is None, of all latents `[n, d_sae]`."""
    active: Active | None = None
    selected: Tensor | None = None
    """`[n, d_sae]` bool: the active latents, where the values are those of all."""

    def of(self, parameter: Tensor) -> Tensor:
        """A parameter `[d_sae]`, matched to `values`."""
        return parameter if self.active is None else parameter.index_select(0, self.active.column)

    def with_values(self, values: Tensor) -> Latents:
        """The same latents with other values."""
        return replace(self, values=values)

    def decode(self, W_dec: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """`latents @ W_dec`, `[n, d_out]`, of the latents between `start` and `stop`."""
        if self.active is None:
            return self.values[:, start:stop] @ W_dec[start:stop]
        values, active = self.values, self.active
        if (start, stop) != (0, None):
            keep = (active.column >= start) & (active.column < (stop or len(W_dec)))
            values, active = values[keep], active.where(keep)
        decoded: Tensor = _SparseDecode.apply(values, W_dec, active)  # type: ignore[no-untyped-call]
        return decoded

    def firing(self) -> Tensor:
        """`[d_sae]`: in how many rows each latent is positive."""
        if self.active is None:
            return (self.values.detach() > 0).sum(0)
        return torch.bincount(self.active.column[self.values > 0], minlength=self.active.d_sae)

    def total(self, weights: Tensor) -> Tensor:
        """`[]`: the sum of all latents, each times its entry of `weights [d_sae]`."""
        return (self.values * self.of(weights)).sum()

    def smallest(self, norms: Tensor) -> Tensor:
        """`[]`: the smallest positive latent, in units of unit decoder rows; infinite if there is none."""
        values = (self.values * self.of(norms)).detach()
        return torch.where(values > 0, values, torch.inf).amin() if values.numel() else norms.new_tensor(torch.inf)


class _SelectedPreActivations(torch.autograd.Function):
    """`(x - b_dec) @ W_enc.T + b_enc` at the active entries, whose values are known already."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, active: Active, inputs: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, parameters[1])
        ctx.active = active
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        inputs, W_enc = ctx.saved_tensors
        (grad,), active = grads, ctx.active
        grad_inputs = _weighted_rows(W_enc, grad, active) if ctx.needs_input_grad[2] else None
        grad_W_enc = _transposed_product(active, grad, inputs)
        grad_b_enc = grad.new_zeros(len(W_enc)).index_add_(0, active.column, grad)
        return None, None, grad_inputs, -(grad_b_enc @ W_enc), grad_W_enc, grad_b_enc


class _SparseDecode(torch.autograd.Function):
    """`latents @ W_dec` for latents given by their active entries."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, active: Active) -> Tensor:
        with torch.enable_grad():  # embedding_bag has the gradient of its weights
            weights = values.detach().requires_grad_()
            decoded = _weighted_rows(W_dec.detach(), weights, active)
        ctx.graph, ctx.active = (weights, decoded), active
        return decoded.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        weights, decoded = ctx.graph
        (grad_values,) = torch.autograd.grad(decoded, weights, grads[0])
        return grad_values, _transposed_product(ctx.active, weights.detach(), grads[0]), None


def sparse_pre_activations(active: Active, norms: Tensor, inputs: Tensor, *parameters: Tensor) -> Latents:
    """`inputs @ W_enc.T + b_enc` at the active entries, given `inputs = x - b_dec` without its gradient.

    `active.scores` are these values for unit decoder rows; `norms [d_sae]` are those of the decoder rows. The
    parameters are `b_dec [d_in]` (zeros where it is not subtracted), `W_enc [d_sae, d_in]` and `b_enc [d_sae]`.
    """
    values = active.scores / norms[active.column]
    return Latents(_SelectedPreActivations.apply(values, active, inputs, *parameters), active)  # type: ignore[no-untyped-call]


def _weighted_rows(rows: Tensor, values: Tensor, active: Active) -> Tensor:
    """`latents @ rows` by gathering, `[n, d]`."""
    return embedding_bag(active.column, rows, active.offsets, mode="sum", per_sample_weights=values)


def _transposed_product(active: Active, values: Tensor, dense: Tensor) -> Tensor:
    """`latents.T @ dense`, `[d_sae, d]`, for latents `[n, d_sae]` given by their active entries."""
    order, begin = active.by_column()
    return embedding_bag(active.row[order], dense, begin, mode="sum", per_sample_weights=values[order])


def starts(ids: Tensor, count: int) -> Tensor:
    """`[count]` int32: where the entries of each id start, once sorted."""
    ends = torch.bincount(ids, minlength=count).cumsum(0, dtype=torch.int32)
    return torch.cat([ends.new_zeros(1), ends[:-1]])
