"""Latents of a batch, sparse or dense, and the choice which of them are active."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from typing_extensions import override

from husai_lib.saes.architectures.sparse import Active, above, largest_of_batch, largest_of_each_row, sparse_decode


class Latents(ABC):
    """Latents of a batch, sparse or dense, before scaling to unit decoder rows."""

    @abstractmethod
    def decode(self, W_dec: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """`latents @ W_dec`, `[n, d_out]`, of those latents that lie between `start` and `stop`."""

    @abstractmethod
    def firing(self) -> Tensor:
        """`[d_sae]`: in how many rows each latent is positive."""

    @abstractmethod
    def total(self, weights: Tensor) -> Tensor:
        """`[]`: the sum of all latents, each times its entry of `weights [d_sae]`."""

    @abstractmethod
    def smallest(self, norms: Tensor) -> Tensor:
        """`[]`: the smallest positive latent, in units of unit decoder rows; infinite if there is none."""


@dataclass
class SparseLatents(Latents):
    """Given by the values at their active entries."""

    active: Active
    values: Tensor
    d_sae: int

    @override
    def decode(self, W_dec: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        if (start, stop) == (0, None):
            return sparse_decode(self.values, W_dec, self.active)
        keep = (self.active.column >= start) & (self.active.column < (stop or self.d_sae))
        return sparse_decode(self.values[keep], W_dec, self.active.where(keep))

    @override
    def firing(self) -> Tensor:
        return torch.bincount(self.active.column[self.values > 0], minlength=self.d_sae)

    @override
    def total(self, weights: Tensor) -> Tensor:
        return (self.values * weights[self.active.column]).sum()

    @override
    def smallest(self, norms: Tensor) -> Tensor:
        values = (self.values * norms[self.active.column]).detach()
        return torch.where(values > 0, values, torch.inf).min() if len(values) else norms.new_tensor(torch.inf)


@dataclass
class DenseLatents(Latents):
    """`[n, d_sae]`, zero where not active."""

    values: Tensor

    @override
    def decode(self, W_dec: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        return self.values[:, start:stop] @ W_dec[start:stop]

    @override
    def firing(self) -> Tensor:
        return (self.values.detach() > 0).sum(0)

    @override
    def total(self, weights: Tensor) -> Tensor:
        return (self.values * weights).sum()

    @override
    def smallest(self, norms: Tensor) -> Tensor:
        values = (self.values * norms).detach()
        return torch.where(values > 0, values, torch.inf).amin()


@dataclass
class PreActivations:
    """Pre-activations of a batch: of all latents, `[n, d_sae]`, or at the active entries alone."""

    values: Tensor
    active: Active | None
    d_sae: int
    selected: Tensor | None = None
    """`[n, d_sae]` bool, where the values are those of all latents."""

    def of(self, parameter: Tensor) -> Tensor:
        """A parameter `[d_sae]` of each latent, as it goes with `values`."""
        return parameter if self.active is None else parameter.index_select(0, self.active.column)

    def latents(self, values: Tensor) -> Latents:
        """Latents with these values at the same places."""
        return DenseLatents(values) if self.active is None else SparseLatents(self.active, values, self.d_sae)


class Selection(Protocol):
    """Which latents of a batch are active, by their scores `[n, d_sae]`: pre-activations for unit decoder rows."""

    def sparse(self, parts: Iterable[Tensor]) -> Active | None:
        """The active entries, of scores some rows at a time; None where they are so many that dense is faster."""

    def dense(self, scores: Tensor) -> Tensor:
        """`[n, d_sae]` bool."""


@dataclass(frozen=True)
class LargestOfEachRow(Selection):
    """The k largest of each row (TopK)."""

    k: int

    @override
    def sparse(self, parts: Iterable[Tensor]) -> Active:
        return largest_of_each_row(parts, self.k)

    @override
    def dense(self, scores: Tensor) -> Tensor:
        largest = scores.topk(self.k, dim=-1, sorted=False).indices
        return torch.zeros_like(scores).scatter(-1, largest, 1.0) > 0


@dataclass(frozen=True)
class LargestOfBatch(Selection):
    """The `k * n` largest positive ones of a batch of n rows (BatchTopK)."""

    k: int

    @override
    def sparse(self, parts: Iterable[Tensor]) -> Active:
        return largest_of_batch(parts, self.k)

    @override
    def dense(self, scores: Tensor) -> Tensor:
        count = self.k * len(scores)
        return scores >= scores.flatten().topk(count, sorted=False).values.amin()


@dataclass(frozen=True)
class Above(Selection):
    """All above a threshold `[]` or `[d_sae]`; above zero for ReLU."""

    threshold: Tensor

    @override
    def sparse(self, parts: Iterable[Tensor]) -> Active | None:
        return above(parts, self.threshold)

    @override
    def dense(self, scores: Tensor) -> Tensor:
        return scores > self.threshold
