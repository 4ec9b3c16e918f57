"""Sparse latents on a CPU: only the active entries are decoded, and only they get a gradient.

Beside the encoder's product, a dense TopK step on a CPU is five more products of that size and passes over
`[n, d_sae]`; here it is a selection, one weighted sum of decoder rows, and two sparse products. On a GPU the
dense form is faster (`architectures.base`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

SCORED_TOGETHER = 256
"""Rows that are scored at once."""
WORTH_IT = 0.1
"""Share of active latents above which dense products are faster."""


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
    """What they were chosen by."""
    _by_column: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def by_column(self, d_sae: int) -> tuple[Tensor, Tensor]:
        """The order that sorts the entries by latent, and `[d_sae]` where each latent's entries start in it."""
        if self._by_column is None:  # both weight gradients ask
            self._by_column = self.column.argsort(stable=True), _starts(self.column, d_sae)[:-1]
        return self._by_column

    def where(self, keep: Tensor) -> Active:
        """The entries where `keep` is true."""
        row = self.row[keep]
        return Active(row, self.column[keep], _starts(row, len(self.offsets))[:-1], self.scores[keep])


def largest_of_each_row(parts: Iterable[Tensor], k: int) -> Active:
    """The k largest scores of each row; numpy selects faster than `torch.topk` on a CPU.

    `parts` are the scores, `[some rows, d_sae]` at a time: so few that they are selected from while in the cache.
    """
    columns, scores = [], []
    for part in parts:
        values = part.numpy()
        n, d_sae = values.shape
        entries = np.flatnonzero(values >= np.partition(values, d_sae - k, axis=1)[:, d_sae - k, None])
        if len(entries) != n * k:  # ties; selecting indices rather than values takes twice as long
            largest = np.argpartition(values, d_sae - k, axis=1)[:, d_sae - k :]
            entries = (largest + np.arange(0, n * d_sae, d_sae)[:, None]).reshape(-1)
        columns.append((entries % d_sae).astype(np.int32))
        scores.append(values.reshape(-1)[entries])
    column = torch.from_numpy(np.concatenate(columns))
    offsets = torch.arange(0, len(column), k, dtype=torch.int32)
    row = torch.arange(len(offsets), dtype=torch.int32).repeat_interleave(k)
    return Active(row, column, offsets, torch.from_numpy(np.concatenate(scores)))


def largest_of_batch(parts: Iterable[Tensor], k: int) -> Active:
    """The `k * n` largest positive of all n rows of scores, `[some rows, d_sae]` at a time."""
    scores = torch.cat(list(parts))
    (n, d_sae), flat = scores.shape, scores.numpy().reshape(-1)
    some, count = scores[::16].numpy().reshape(-1), k * n
    wanted = min(len(some), count // 12)  # more than the sample's share, so that its bound lies below the right one
    bound = max(0.0, float(np.partition(some, len(some) - wanted)[len(some) - wanted]))
    entries = np.flatnonzero(flat > bound)
    if bound > 0 and len(entries) < count:  # an untypical sample: look at all
        entries = np.flatnonzero(flat > 0)
    if len(entries) > count:
        values = flat[entries]
        entries = entries[values >= np.partition(values, len(values) - count)[len(values) - count]]
    row, column = (torch.from_numpy(part.astype(np.int32)) for part in np.divmod(entries, d_sae))
    return Active(row, column, _starts(row, n)[:-1], torch.from_numpy(flat[entries]))


def above(parts: Iterable[Tensor], threshold: Tensor) -> Active | None:
    """All scores above a threshold `[]` or `[d_sae]`, or None where more than `WORTH_IT` of the first part are."""
    entries, scores, n = [], [], 0
    for part in parts:
        values = part.numpy().reshape(-1)
        found = (part > threshold).numpy().reshape(-1).nonzero()[0]
        if n == 0 and len(found) > WORTH_IT * len(values):
            return None
        entries.append(found + n * part.shape[1])
        scores.append(values[found])
        n += len(part)
    row, column = (torch.from_numpy(ids.astype(np.int32)) for ids in np.divmod(np.concatenate(entries), part.shape[1]))
    return Active(row, column, _starts(row, n)[:-1], torch.from_numpy(np.concatenate(scores)))


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
        grad_inputs = weighted_rows(W_enc, grad, active) if ctx.needs_input_grad[2] else None
        grad_W_enc = transposed_product(active, grad, inputs, len(W_enc))
        grad_b_enc = grad.new_zeros(len(W_enc)).index_add_(0, active.column, grad)
        return None, None, grad_inputs, -(grad_b_enc @ W_enc), grad_W_enc, grad_b_enc


class _SparseDecode(torch.autograd.Function):
    """`latents @ W_dec` for latents given by their active entries."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, active: Active) -> Tensor:
        with torch.enable_grad():  # embedding_bag knows the gradient of its weights
            weights = values.detach().requires_grad_()
            decoded = weighted_rows(W_dec.detach(), weights, active)
        ctx.graph, ctx.active, ctx.d_sae = (weights, decoded), active, len(W_dec)
        return decoded.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        weights, decoded = ctx.graph
        (grad_values,) = torch.autograd.grad(decoded, weights, grads[0])
        return grad_values, transposed_product(ctx.active, weights.detach(), grads[0], ctx.d_sae), None


def pre_activations_at(active: Active, values: Tensor, inputs: Tensor, *parameters: Tensor) -> Tensor:
    """`values` of `inputs @ W_enc.T + b_enc` at the active entries, where `inputs = x - b_dec` without its gradient.

    The parameters are `b_dec [d_in]` (zeros where it is not subtracted), `W_enc [d_sae, d_in]` and `b_enc [d_sae]`.
    """
    found: Tensor = _SelectedPreActivations.apply(values, active, inputs, *parameters)  # type: ignore[no-untyped-call]
    return found


def sparse_decode(values: Tensor, W_dec: Tensor, active: Active) -> Tensor:
    """`latents @ W_dec`, `[n, d_out]`, for latents given by the values at their active entries."""
    decoded: Tensor = _SparseDecode.apply(values, W_dec, active)  # type: ignore[no-untyped-call]
    return decoded


def weighted_rows(rows: Tensor, values: Tensor, active: Active) -> Tensor:
    """`latents @ rows` by gathering, `[n, d]`."""
    return embedding_bag(active.column, rows, active.offsets, mode="sum", per_sample_weights=values)


def transposed_product(active: Active, values: Tensor, dense: Tensor, d_sae: int) -> Tensor:
    """`latents.T @ dense`, `[d_sae, d]`, for latents `[n, d_sae]` given by their active entries."""
    order, starts = active.by_column(d_sae)
    return embedding_bag(active.row[order], dense, starts, mode="sum", per_sample_weights=values[order])


def _starts(ids: Tensor, count: int) -> Tensor:
    """`[count + 1]`: where the entries of each id start, once sorted."""
    starts = torch.zeros(count + 1, dtype=torch.int32)
    torch.cumsum(torch.bincount(ids, minlength=count), 0, out=starts[1:])
    return starts
