"""Which latents of a batch are active, chosen by their scores: their pre-activations for unit decoder rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from husai_lib.saes.architectures.latents import Active, starts

SCORED_TOGETHER = 256
"""Rows that are scored at once on a CPU: few enough to be selected from while they are in the cache."""
WORTH_IT = 0.1
"""Share of active latents above which dense products are faster."""


class Selection(ABC):
    """A rule that selects the active latents of a batch of n rows."""

    @abstractmethod
    def sparse(self, parts: Iterable[Tensor]) -> Active | None:
        """The active entries, given the scores `[some rows, d_sae]` at a time; None where dense is faster."""

    @abstractmethod
    def dense(self, scores: Tensor) -> Tensor:
        """`[n, d_sae]` bool, given the scores `[n, d_sae]`."""


@dataclass(frozen=True)
class LargestOfEachRow(Selection):
    """The k largest of each row (TopK)."""

    k: int

    @override
    def sparse(self, parts: Iterable[Tensor]) -> Active:
        columns, scores = [], []
        for part in parts:
            values = part.numpy()  # numpy selects faster than `torch.topk` on a CPU
            n, d_sae = values.shape
            split = d_sae - self.k
            entries = np.flatnonzero(values >= np.partition(values, split, axis=1)[:, split, None])
            if len(entries) != n * self.k:  # ties; selecting indices rather than values takes twice as long
                largest = np.argpartition(values, split, axis=1)[:, split:]
                entries = (largest + np.arange(0, n * d_sae, d_sae)[:, None]).reshape(-1)
            columns.append((entries % d_sae).astype(np.int32))
            scores.append(values.reshape(-1)[entries])
        column = torch.from_numpy(np.concatenate(columns))
        offsets = torch.arange(0, len(column), self.k, dtype=torch.int32)
        row = torch.arange(len(offsets), dtype=torch.int32).repeat_interleave(self.k)
        return Active(row, column, offsets, torch.from_numpy(np.concatenate(scores)), d_sae)

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
        scores = torch.cat(list(parts)).numpy()
        flat, some, count = scores.reshape(-1), scores[::16].reshape(-1), self.k * len(scores)
        wanted = min(len(some), count // 12)  # more than the sample's share, so that its bound is not too high
        bound = max(0.0, float(np.partition(some, len(some) - wanted)[len(some) - wanted]))
        entries = np.flatnonzero(flat > bound)
        if bound > 0 and len(entries) < count:  # an atypical sample: look at all
            entries = np.flatnonzero(flat > 0)
        if len(entries) > count:
            values = flat[entries]
            entries = entries[values >= np.partition(values, len(values) - count)[len(values) - count]]
        return _active(entries, flat[entries], *scores.shape)

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
        entries, scores, n = [], [], 0
        for part in parts:
            values = part.numpy().reshape(-1)
            found = (part > self.threshold).numpy().reshape(-1).nonzero()[0]
            if n == 0 and len(found) > WORTH_IT * len(values):
                return None
            entries.append(found + n * part.shape[1])
            scores.append(values[found])
            n += len(part)
        return _active(np.concatenate(entries), np.concatenate(scores), n, part.shape[1])

    @override
    def dense(self, scores: Tensor) -> Tensor:
        return scores > self.threshold


def _active(entries: np.ndarray, scores: np.ndarray, n: int, d_sae: int) -> Active:
    """The active entries at the flat positions `entries` of scores `[n, d_sae]`."""
    row, column = (torch.from_numpy(part.astype(np.int32)) for part in np.divmod(entries, d_sae))
    return Active(row, column, starts(row, n), torch.from_numpy(scores), d_sae)
