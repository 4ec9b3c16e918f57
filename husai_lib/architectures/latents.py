"""Latents of a batch, sparse or dense, and the choice which of them are active."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from typing_extensions import override

from husai_lib.architectures.sparse import Active, largest_of_batch, largest_of_each_row, sparse_decode


class Latents(ABC):
    """Latents of a batch, sparse or dense, before scaling to unit decoder rows."""

    @abstractmethod
    def decode(self, W_dec: Tensor) -> Tensor:
        """`latents @ W_dec`, `[n, d_out]`."""

    @abstractmethod
    def firing(self) -> Tensor:
        """`[d_sae]`: in how many rows each latent is positive."""

    @abstractmethod
    def between(self, start: int, stop: int) -> Latents:
        """The same latents, those outside `start <= column < stop` set to zero."""

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
    def decode(self, W_dec: Tensor) -> Tensor:
        return sparse_decode(self.values, W_dec, self.active)

    @override
    def firing(self) -> Tensor:
        return torch.bincount(self.active.column[self.values > 0], minlength=self.d_sae)

    @override
    def between(self, start: int, stop: int) -> Latents:
        keep = (self.active.column >= start) & (self.active.column < stop)
        return SparseLatents(self.active.where(keep), self.values[keep], self.d_sae)

    @override
    def smallest(self, norms: Tensor) -> Tensor:
        values = (self.values * norms[self.active.column]).detach()
        return torch.where(values > 0, values, torch.inf).min() if len(values) else norms.new_tensor(torch.inf)


@dataclass
class DenseLatents(Latents):
    """`[n, d_sae]`, zero where not active."""

    values: Tensor

    @override
    def decode(self, W_dec: Tensor) -> Tensor:
        return self.values @ W_dec

    @override
    def firing(self) -> Tensor:
        return (self.values.detach() > 0).sum(0)

    @override
    def between(self, start: int, stop: int) -> Latents:
        columns = torch.arange(self.values.shape[1], device=self.values.device)
        return DenseLatents(self.values * ((columns >= start) & (columns < stop)))

    @override
    def smallest(self, norms: Tensor) -> Tensor:
        values = (self.values * norms).detach()
        return torch.where(values > 0, values, torch.inf).amin()


class Selection(Protocol):
    """Which latents of a batch are active, by their scores `[n, d_sae]`: pre-activations for unit decoder rows."""

    def sparse(self, parts: Iterable[Tensor]) -> Active:
        """The active entries, of scores some rows at a time."""

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
