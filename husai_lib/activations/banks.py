"""Activation banks: rows of a model's activations on disk, memory-mapped and identified by their content.

A bank is extracted once for each combination of weights, texts, hooks and arguments. All its hooks come from one
forward pass and have the same rows in the same order. A large bank consists of shards: banks of consecutive rows, each
a cache entry of its own.
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

    A bank goes to another process with its shards and without the rows that it has mapped.
    """

    entry: Entry
    hook_name: str

    def __reduce__(self) -> tuple[Any, ...]:
        return Bank, (self.entry, self.hook_name), {"_parts": self._parts} if self._parts else None

    @property
    def shards(self) -> tuple["Bank", ...]:
        """The banks that hold the rows, in order: this one itself, unless it is divided."""
        return self._parts or (self,)

    @cached_property
    def _parts(self) -> tuple["Bank", ...]:
        listed = self.entry.path / f"{self.hook_name}.json"
        shards = read_json(listed) if listed.exists() else []
        return tuple(open_bank(one["key"], self.hook_name, one["sha256"]) for one in shards)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and `d_in`."""
        return sum(len(shard.rows) for shard in self.shards), int(self.shards[0].rows.shape[1])

    @cached_property
    def rows(self) -> np.memmap:
        """`[n, d_in]` float32, memory-mapped, read-only; only a bank that is not divided has them."""
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
        """Hash of the stored rows, or of the list of the shards with theirs."""
        files = self.entry.files
        return files.get(f"{self.hook_name}.npy") or files[f"{self.hook_name}.json"]

    def at(self, hook_name: str) -> "Bank":
        """The same rows at another hook of the same pass."""
        return Bank(self.entry, hook_name)

    def chunks(self, size: int = CHUNK) -> Iterator[torch.Tensor]:
        """The rows in order, `[<= size, d_in]` at a time."""
        for shard in self.shards:
            n, d_in = shard.rows.shape
            for start in range(0, n, size):
                count, offset = min(size, n - start) * d_in, start * d_in * 4
                rows = np.fromfile(shard._file, np.float32, count, offset=shard.rows.offset + offset)
                yield torch.from_numpy(rows.reshape(-1, d_in))

    def take(self, index: np.ndarray) -> torch.Tensor:
        """The rows `index [n]`, `[n, d_in]`; those of a large bank are read one by one, in five times as long."""
        if len(self.shards) > 1:
            return self._taken_from_shards(index)
        if self.rows.nbytes <= MAPPED_BYTES:
            return torch.from_numpy(np.asarray(self.rows)[index])
        out = np.empty((len(index), self.rows.shape[1]), np.float32)
        width, start = out.shape[1] * 4, self.rows.offset
        with self._file.open("rb", buffering=0) as file:
            descriptor = file.fileno()
            for row, i in zip(out, index.tolist(), strict=True):
                os.preadv(descriptor, [row.data], start + i * width)
        return torch.from_numpy(out)

    def _taken_from_shards(self, index: np.ndarray) -> torch.Tensor:
        starts = np.cumsum([0, *(len(shard.rows) for shard in self.shards)])
        shard_of = np.searchsorted(starts, index, side="right") - 1
        out = torch.empty(len(index), self.shape[1])
        for n in np.unique(shard_of):
            here = np.flatnonzero(shard_of == n)
            out[torch.from_numpy(here)] = self.shards[n].take(index[here] - starts[n])
        return out

    def on(self, device: str) -> torch.Tensor:
        """All rows on a device."""
        return torch.cat([chunk.to(device) for chunk in self.chunks()])

    @property
    def _file(self) -> Path:
        return self.entry.path / f"{self.hook_name}.npy"

    def mean(self) -> torch.Tensor:
        """The mean row, `[d_in]` float64."""
        return sum((chunk.double().sum(0) for chunk in self.chunks()), torch.zeros(1)) / self.shape[0]

    def scale(self) -> float:
        """The factor that gives rows a mean norm of sqrt(d_in): SAELens' `expected_average_only_in`."""
        total = sum(float(chunk.norm(dim=1).double().sum()) for chunk in self.chunks())
        n, d_in = self.shape
        return float(d_in**0.5 * n / total)

    def row(self, bank: str) -> BankRow:
        """The bank, named `bank`, as a row of a record."""
        n, d_in = self.shape
        return BankRow(bank=bank, hook_name=self.hook_name, rows=n, d_in=d_in, key=self.entry.key, sha256=self.sha256)

    def sources(self, role: str) -> list[SourceRow]:
        """The data sets of the rows, as rows of a record."""
        return [SourceRow(role=role, **source) for source in self.meta["sources"]]


def open_bank(key: str, hook_name: str, sha256: str) -> Bank:
    """The verified bank of a cache key; IntegrityError if it is damaged or its content is not of this hash."""
    bank = Bank(open_entry("banks", key), hook_name)
    if bank.sha256 != sha256:
        raise IntegrityError(f"the activations in {bank.entry.path} are not those of their record; run the cycle again")
    return bank


def banks_of(record: Record) -> dict[str, Bank]:
    """The banks in the record of step `activations`, by name; IntegrityError if the content of one differs."""
    return {row.bank: open_bank(row.key, row.hook_name, row.sha256) for row in record.table("banks")}
