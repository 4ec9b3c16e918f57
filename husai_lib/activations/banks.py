"""Activation banks: rows of a model's activations on disk, memory-mapped and identified by their content.

A bank is extracted once for each combination of weights, texts, hooks and arguments. All its hooks come from one
forward pass and have the same rows in the same order.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from husai_lib.errors import IntegrityError
from husai_lib.evidence.cache import Entry, open_entry
from husai_lib.evidence.rows.measured import BankRow, SourceRow
from husai_lib.evidence.runs import Record
from husai_lib.files import read_json

CHUNK = 8192
MAPPED_BYTES = 160e6
"""Up to this size, random rows are read through the memory map of a bank, whose pages then count as memory in use."""


@dataclass(frozen=True)
class Bank:
    """Activations at one hook, or side by side at several joined by `+`: a view of a cache entry.

    A bank goes to another process without the rows that it has mapped.
    """

    entry: Entry
    hook_name: str

    def __reduce__(self) -> tuple[Any, ...]:
        return Bank, (self.entry, self.hook_name)

    @cached_property
    def rows(self) -> np.memmap:
        """`[n, d_in]` float32, memory-mapped, read-only."""
        rows: np.memmap = np.load(self._file, mmap_mode="r")
        return rows

    @cached_property
    def offsets(self) -> np.ndarray:
        """`[texts + 1]`: rows `offsets[i]:offsets[i + 1]` are those of text i."""
        offsets: np.ndarray = np.load(self.entry.path / "offsets.npy")
        return offsets

    @property
    def meta(self) -> dict[str, Any]:
        """The norm limit that was applied, and counts of texts, tokens and rows by data set."""
        meta: dict[str, Any] = read_json(self.entry.path / "meta.json")
        return meta

    @property
    def sha256(self) -> str:
        """Hash of the stored rows."""
        return self.entry.files[f"{self.hook_name}.npy"]

    def at(self, hook_name: str) -> "Bank":
        """The same rows at another hook of the same pass."""
        return Bank(self.entry, hook_name)

    def chunks(self, size: int = CHUNK) -> Iterator[torch.Tensor]:
        """The rows in order, `[<= size, d_in]` at a time."""
        d_in = self.rows.shape[1]
        for start in range(0, len(self.rows), size):
            count, offset = min(size, len(self.rows) - start) * d_in, start * d_in * 4
            rows = np.fromfile(self._file, np.float32, count, offset=self.rows.offset + offset)
            yield torch.from_numpy(rows.reshape(-1, d_in))

    def take(self, index: np.ndarray) -> torch.Tensor:
        """The rows `index [n]`, `[n, d_in]`; those of a large bank are read one by one, in five times as long."""
        if self.rows.nbytes <= MAPPED_BYTES:
            return torch.from_numpy(np.asarray(self.rows)[index])
        out = np.empty((len(index), self.rows.shape[1]), np.float32)
        width, start = out.shape[1] * 4, self.rows.offset
        with self._file.open("rb", buffering=0) as file:
            descriptor = file.fileno()
            for row, i in zip(out, index.tolist(), strict=True):
                os.preadv(descriptor, [row.data], start + i * width)
        return torch.from_numpy(out)

    def on(self, device: str) -> torch.Tensor:
        """All rows on a device."""
        return torch.cat([chunk.to(device) for chunk in self.chunks()])

    @property
    def _file(self) -> Path:
        return self.entry.path / f"{self.hook_name}.npy"

    def mean(self) -> torch.Tensor:
        """The mean row, `[d_in]` float64."""
        return sum((chunk.double().sum(0) for chunk in self.chunks()), torch.zeros(1)) / len(self.rows)

    def scale(self) -> float:
        """The factor that gives rows a mean norm of sqrt(d_in): SAELens' `expected_average_only_in`."""
        total = sum(float(chunk.norm(dim=1).double().sum()) for chunk in self.chunks())
        return float(self.rows.shape[1] ** 0.5 * len(self.rows) / total)

    def row(self, bank: str) -> BankRow:
        """The bank, named `bank`, as a row of a record."""
        n, d_in = self.rows.shape
        return BankRow(bank=bank, hook_name=self.hook_name, rows=n, d_in=d_in, key=self.entry.key, sha256=self.sha256)

    def sources(self, role: str) -> list[SourceRow]:
        """The data sets of the rows, as rows of a record."""
        return [SourceRow(role=role, **source) for source in self.meta["sources"]]


def open_bank(key: str, hook_name: str) -> Bank:
    """The verified bank of a cache key; IntegrityError if it is damaged."""
    return Bank(open_entry("banks", key), hook_name)


def banks_of(record: Record) -> dict[str, Bank]:
    """The banks in the record of step `activations`, by name; IntegrityError if the content of one differs."""
    banks = {}
    for row in record.table("banks"):
        banks[row.bank] = open_bank(row.key, row.hook_name)
        if banks[row.bank].sha256 != row.sha256:
            raise IntegrityError(f"the activations of bank {row.bank} are not those of its record; run the cycle again")
    return banks
