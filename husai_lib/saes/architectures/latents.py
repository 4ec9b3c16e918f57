"""Latents of a batch: which are active and their values, sparse on a CPU and dense on a GPU.

Latents are selected by their scores: their pre-activations for unit decoder rows. Beside the encoder's product, a dense
TopK step on a CPU is five more products of that size and passes over `[n, d_sae]`. The sparse step is a selection, one
weighted sum of decoder rows, and two sparse products. On a GPU the dense form is faster.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag
from typing_extensions import override

# --- which latents are active ----------------------------------------------------------------------


@dataclass
class Active:
    """The active entries of a batch: entry i is latent `column[i]` (int32) of row `row[i]` (int32); rows ascend."""

    row: Tensor
    column: Tensor
    scores: Tensor
    """Those by which they were selected."""
    shape: tuple[int, int]
    """Rows of the batch, and latents."""

    @cached_property
    def by_row(self) -> Tensor:
        """`[n]` int32: where each row's entries start."""
        return _starts(self.row, self.shape[0])

    @cached_property
    def by_column(self) -> tuple[Tensor, Tensor]:
        """The order that sorts the entries by latent, and `[d_sae]` where each latent's entries start in it."""
        return self.column.argsort(stable=True), _starts(self.column, self.shape[1])

    def where(self, keep: Tensor) -> "Active":
        """The entries where `keep` is true."""
        return Active(self.row[keep], self.column[keep], self.scores[keep], self.shape)

    def product(self, values: Tensor, dense: Tensor) -> Tensor:
        """`latents @ dense`, `[n, d]`, where the latents have these values at the active entries."""
        return embedding_bag(self.column, dense, self.by_row, mode="sum", per_sample_weights=values)

    def transposed_product(self, values: Tensor, dense: Tensor) -> Tensor:
        """`latents.T @ dense`, `[d_sae, d]`."""
        order, begin = self.by_column
        return embedding_bag(self.row[order], dense, begin, mode="sum", per_sample_weights=values[order])


def _starts(ids: Tensor, count: int) -> Tensor:
    """`[count]` int32: where the entries of each id start, once sorted."""
    ends = torch.bincount(ids, minlength=count).cumsum(0, dtype=torch.int32)
    return torch.cat([ends.new_zeros(1), ends[:-1]])


class Selection(ABC):
    """A rule that selects the active latents of a batch by their scores."""

    sparse_up_to = 1.0
    """Share of active latents above which dense products are faster."""

    @abstractmethod
    def mask(self, scores: Tensor) -> Tensor:
        """`[n, d_sae]` bool: the active latents, given the scores `[n, d_sae]`."""

    def positions(self, scores: np.ndarray) -> np.ndarray:
        """The positions of the active entries in the flattened `scores [n, d_sae]`; rows ascend."""
        return np.flatnonzero(self.mask(torch.from_numpy(scores)).numpy())

    def active(self, parts: Iterable[Tensor]) -> Active | None:
        """The active entries, given the scores of some rows at a time; None where dense products are faster."""
        positions, scores, n, d_sae = [], [], 0, 0
        for part in parts:
            values = part.numpy()
            found, d_sae = self.positions(values), values.shape[1]
            if n == 0 and len(found) > self.sparse_up_to * values.size:
                return None
            positions.append(found + n * d_sae)
            scores.append(values.reshape(-1)[found])
            n += len(values)
        row, column = (torch.from_numpy(ids.astype(np.int32)) for ids in np.divmod(np.concatenate(positions), d_sae))
        return Active(row, column, torch.from_numpy(np.concatenate(scores)), (n, d_sae))


@dataclass(frozen=True)
class LargestOfEachRow(Selection):
    """The k largest of each row (TopK)."""

    k: int

    @override
    def mask(self, scores: Tensor) -> Tensor:
        largest = scores.topk(self.k, dim=-1, sorted=False).indices
        return torch.zeros_like(scores).scatter(-1, largest, 1.0) > 0

    @override
    def positions(self, scores: np.ndarray) -> np.ndarray:
        n, d_sae = scores.shape  # numpy selects faster than `torch.topk` on a CPU
        split = d_sae - self.k
        found = np.flatnonzero(scores >= np.partition(scores, split, axis=1)[:, split, None])
        if len(found) == n * self.k:
            return found
        largest = np.argpartition(scores, split, axis=1)[:, split:]  # ties; takes twice as long
        return (largest + np.arange(0, n * d_sae, d_sae)[:, None]).reshape(-1)


@dataclass(frozen=True)
class LargestOfBatch(Selection):
    """The `k * n` largest positive ones of a batch of n rows (BatchTopK)."""

    k: int

    @override
    def mask(self, scores: Tensor) -> Tensor:
        return scores >= scores.flatten().topk(self.k * len(scores), sorted=False).values.amin()

    @override
    def active(self, parts: Iterable[Tensor]) -> Active | None:
        return super().active([torch.cat(list(parts))])

    @override
    def positions(self, scores: np.ndarray) -> np.ndarray:
        flat, some, count = scores.reshape(-1), scores[::16].reshape(-1), self.k * len(scores)
        wanted = max(1, min(len(some), count // 12))  # more than the sample's share, so that its bound is not too high
        bound = max(0.0, float(np.partition(some, len(some) - wanted)[len(some) - wanted]))
        found = np.flatnonzero(flat > bound)
        if bound > 0 and len(found) < count:  # an atypical sample: look at all
            found = np.flatnonzero(flat > 0)
        if len(found) > count:
            values = flat[found]
            found = found[values >= np.partition(values, len(values) - count)[len(values) - count]]
        return found


@dataclass(frozen=True)
class Above(Selection):
    """All above a threshold `[]` or `[d_sae]`; above zero for ReLU."""

    threshold: Tensor
    sparse_up_to = 0.1

    @override
    def mask(self, scores: Tensor) -> Tensor:
        return scores > self.threshold


# --- their values ----------------------------------------------------------------------------------


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

    def with_values(self, values: Tensor) -> Self:
        """The same latents with other values."""
        return replace(self, values=values)

    def error(self, target: Tensor, W_dec: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """`target - latents @ W_dec`, `[n, d_out]`, with the latents between `start` and `stop`."""
        if self.active is None:
            return target - self.values[:, start:stop] @ W_dec[start:stop]
        values, active = self.values, self.active
        if (start, stop) != (0, None):
            keep = (active.column >= start) & (active.column < (stop or len(W_dec)))
            values, active = values[keep], active.where(keep)
        error: Tensor = _SparseError.apply(target, values, W_dec, active)  # type: ignore[no-untyped-call]
        return error

    def firing(self) -> Tensor:
        """`[d_sae]`: in how many rows each latent is positive."""
        if self.active is None:
            return (self.values.detach() > 0).sum(0)
        return torch.bincount(self.active.column[self.values > 0], minlength=self.active.shape[1])


class SparsePreActivations(torch.autograd.Function):
    """`(x - b_dec) @ W_enc.T + b_enc` at the active entries; `b_dec` is None if nothing is subtracted."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, active: Active, inputs: Tensor, *parameters: Tensor) -> Tensor:
        """`values`, known already; `inputs` are `x - b_dec` without its gradient; `b_dec`, `W_enc` and `b_enc`."""
        ctx.save_for_backward(inputs, parameters[1])
        ctx.active = active
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The gradients of the inputs and the parameters."""
        inputs, W_enc = ctx.saved_tensors
        (grad,), active = grads, ctx.active
        grad_inputs = active.product(grad, W_enc) if ctx.needs_input_grad[2] else None
        grad_W_enc = active.transposed_product(grad, inputs)
        grad_b_enc = grad.new_zeros(len(W_enc)).index_add_(0, active.column, grad)
        grad_b_dec = -(grad_b_enc @ W_enc) if ctx.needs_input_grad[3] else None
        return None, None, grad_inputs, grad_b_dec, grad_W_enc, grad_b_enc


class _SparseError(torch.autograd.Function):
    """`target - latents @ W_dec` for latents given by their active entries."""

    @staticmethod
    def forward(ctx: Any, target: Tensor, values: Tensor, W_dec: Tensor, active: Active) -> Tensor:
        with torch.enable_grad():  # embedding_bag has the gradient of its weights
            minus = (-values.detach()).requires_grad_()
            decoded = active.product(minus, W_dec.detach())
        ctx.graph, ctx.active = (minus, decoded), active
        return decoded.detach().add_(target)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        minus, decoded = ctx.graph
        (grad_minus,) = torch.autograd.grad(decoded, minus, grads[0])
        return grads[0], -grad_minus, ctx.active.transposed_product(minus.detach(), grads[0]), None
