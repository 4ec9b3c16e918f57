"""Exact one-to-one assignment of the latents of two dictionaries, with the largest sum of |cosine|.

Cosines are whole numbers in 1/65535, so tables are small, duals have no rounding and the result does not depend on the
machine. A column has a price, and each row wants the column with the largest value minus price. First every row without
a partner bids: it raises the price of its best column until the second best is as good, and displaces the row there.
Shortest augmenting paths (Jonker and Volgenant, Computing 38, 1987) find partners for the few rows that are left. Both
keep every partner the best column of its row, which is all that optimality needs, whatever the prices at the start.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from husai_lib.activations.onednn import linear

Table = NDArray[np.uint16]
Ints = NDArray[np.int32]
Function = TypeVar("Function", bound=Callable[..., Any])

UNIT = 65535
"""The whole number that stands for |cosine| = 1."""
TOGETHER = 2**20
"""Cosines that are computed at once, in float32."""
BIDS = 100
"""Bids in a row before a shortest path takes over: without a limit, near ties would raise prices in tiny steps."""
BLOCK = 64
"""Columns that share a minimum, so that the nearest one is found without a look at all."""
FAR = 1 << 30
"""Beyond every distance. Prices stay within two `UNIT` of the largest at the start."""
LARGEST_PRICE = 1 << 28
"""Prices at the start are cut to this, so that no sum overflows."""


@dataclass(frozen=True)
class Similarity:
    """|cosine| of every row of one dictionary with every row of another."""

    table: Table
    """In 1/65535, `[n, m]`."""
    row_maxima: NDArray[np.float32]
    """Not rounded, `[n]`."""
    col_maxima: NDArray[np.float32]
    """Not rounded, `[m]`."""


def similarity(a: Tensor, b: Tensor) -> Similarity:
    """|cosine| of unit rows `a [n, d_in]` and `b [m, d_in]` of one device, float32; 0 for a zero row."""
    n, m = len(a), len(b)
    found = Similarity(np.empty((n, m), np.uint16), np.zeros(n, np.float32), np.zeros(m, np.float32))
    size = max(1, TOGETHER // max(1, n))
    for start in range(0, m, size):
        some = slice(start, start + size)  # of `b`, because oneDNN copies its right side
        cosines = linear(a.detach(), b[some].detach()).cpu().numpy()
        _round(cosines, found.table[:, some], found.row_maxima, found.col_maxima[some])
    return found


def assign(table: Table) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows, ascending, and their columns with the largest sum of `table [n, m]`; all of the smaller side."""
    wide = np.ascontiguousarray(table.T if len(table) > table.shape[1] else table)
    n, m = wide.shape
    cols = np.full(m, -1, np.int32)
    _solve(wide, np.zeros(m, np.int32), cols)
    rows, partners = np.arange(n), cols[:n].astype(np.intp)
    if wide.shape == table.shape:
        return rows, partners
    order = np.argsort(partners)
    return partners[order], rows[order]


class WarmAssignment:
    """The assignment of a square table that changes little from call to call, such as one of a decoder in training.

    `prices` and `cols`, int32 tensors `[n]`, are all of its state. A checkpoint may read them and write into them; any
    values give an optimum, and those of the last call give the next one sooner.
    """

    def __init__(self, n: int) -> None:
        self.prices = torch.zeros(n, dtype=torch.int32)
        self.cols = torch.full((n,), -1, dtype=torch.int32)

    def solve(self, table: Table) -> Tensor:
        """The column of each row, int64 `[n]`, with the largest sum of `table [n, n]`."""
        assert table.shape == (len(self.cols), len(self.cols))
        _solve(np.ascontiguousarray(table), self.prices.numpy(), self.cols.numpy())
        return self.cols.long()


def _solve(table: Table, prices: Ints, cols: Ints) -> None:
    """Improve `prices [m]` and `cols [m]` in place to an optimum of `table [n, m]`, n <= m.

    Where n < m, the last rows are missing from the table and hold zeros: their partners are the columns left over.
    """
    if prices.size:
        prices[:] = np.minimum(prices.astype(np.int64) - prices.min(), LARGEST_PRICE)
        missing, rows = np.zeros(len(prices), np.uint16), np.full(len(prices), -1, np.int32)
        _keep(table, missing, prices, cols, rows)
        _bid(table, prices, cols, rows)
        _augment(table, missing, prices, cols, rows)


# --- compiled loops; numba adds int32 to int64 unless each result is converted back ----------------------------


def _compiled(function: Function) -> Function:
    compiled: Function = njit(nogil=True, cache=True, error_model="numpy")(function)
    return compiled


@_compiled
def _round(cosines: Any, table: Any, row_maxima: Any, col_maxima: Any) -> None:
    """Write |cosine| `[n, m]` into `table`, rounded, and their maxima; rounding errors beyond 1 are cut off."""
    one, largest = np.float32(1), np.float32(UNIT)
    for i in range(len(cosines)):
        row, whole, best = cosines[i], table[i], row_maxima[i]
        for j in range(len(row)):
            value = min(abs(row[j]), one)
            whole[j] = np.uint16(np.int32(value * largest + np.float32(0.5)))
            col_maxima[j] = max(col_maxima[j], value)
        for j in range(len(row)):
            best = max(best, abs(row[j]))
        row_maxima[i] = min(best, one)


@_compiled
def _best(row: Any, prices: Any) -> Any:
    """The largest value minus price."""
    best = np.int32(-FAR)
    for j in range(len(prices)):
        best = max(best, np.int32(np.int32(row[j]) - prices[j]))
    return best


@_compiled
def _column(row: Any, prices: Any, value: Any, start: int) -> Any:
    """The first column from `start` on with this value minus price, or `m`."""
    for j in range(start, len(prices)):
        if np.int32(np.int32(row[j]) - prices[j]) == value:
            return j
    return len(prices)


@_compiled
def _keep(table: Any, missing: Any, prices: Any, cols: Any, rows: Any) -> None:
    """Part pairs that are not valid or no longer the best for their row; `rows [m]` is -1 at first."""
    for i in range(len(cols)):
        row, j = table[i] if i < len(table) else missing, cols[i]
        cols[i] = -1
        if 0 <= j < len(cols) and rows[j] < 0 and np.int32(np.int32(row[j]) - prices[j]) == _best(row, prices):
            cols[i], rows[j] = j, i


@_compiled
def _bid(table: Any, prices: Any, cols: Any, rows: Any) -> None:
    """Let each row of the table without a partner bid, and then the row it displaces, up to `BIDS` times."""
    for first in range(len(table)):
        i = first
        for _ in range(BIDS):
            if i < 0 or cols[i] >= 0:
                break
            row = table[i]
            best = _best(row, prices)
            j = _column(row, prices, best, 0)
            second = max(_best(row[:j], prices[:j]), _best(row[j + 1 :], prices[j + 1 :]))
            while second == best and j < len(rows) and rows[j] >= 0:  # equally good ones: is one without a partner?
                j = _column(row, prices, best, j + 1)
            if j == len(rows):
                break
            displaced = rows[j]
            if second > -FAR:  # there is another column
                prices[j] += np.int32(best - second)
            cols[i], rows[j], i = j, i, displaced
            if displaced >= 0:
                cols[displaced] = -1


@_compiled
def _reach(  # noqa: PLR0917 -- state of one search, in arrays for numba
    i: Any, row: Any, base: Any, prices: Any, distance: Any, before: Any, closed: Any, nearest: Any
) -> None:  # fmt: skip
    """Shorten distances `[m]` by way of row `i`; `nearest` has the smallest of each block that is not closed."""
    for j in range(len(prices)):
        new, old = np.int32(np.int32(base - np.int32(row[j])) + prices[j]), distance[j]
        distance[j] = min(new, old)
        before[j] = i if new < old else before[j]
    for block in range(len(nearest)):
        some = slice(block * BLOCK, min(len(prices), (block + 1) * BLOCK))
        far, shut, low = distance[some], closed[some], np.int32(FAR)
        for j in range(len(far)):
            low = min(low, np.int32(far[j] | shut[j]))
        nearest[block] = low


@_compiled
def _next(distance: Any, closed: Any, nearest: Any, rows: Any) -> Any:
    """The nearest column that is not closed; of several, one without a partner."""
    low, found = nearest.min(), -1
    for block in range(len(nearest)):
        if nearest[block] == low:
            for j in range(block * BLOCK, min(len(rows), (block + 1) * BLOCK)):
                if distance[j] | closed[j] == low:
                    found = j
                    if rows[j] < 0:
                        return j
    return found


@_compiled
def _augment(table: Any, missing: Any, prices: Any, cols: Any, rows: Any) -> None:
    """Give each row without a partner one, along the shortest path to a column without (Dijkstra's algorithm)."""
    m = len(prices)
    distance, before, closed, order = np.empty((4, m), np.int32)
    nearest = np.empty((m + BLOCK - 1) // BLOCK, np.int32)
    for first in np.flatnonzero(cols < 0):
        distance[:], closed[:] = FAR - 1, 0
        i, count = np.int32(first), 0
        row = table[i] if i < len(table) else missing
        base = _best(row, prices)
        while True:
            _reach(i, row, base, prices, distance, before, closed, nearest)
            j = _next(distance, closed, nearest, rows)
            if rows[j] < 0:
                break
            closed[j], order[count], i = FAR, j, rows[j]
            count += 1
            row = table[i] if i < len(table) else missing
            base = np.int32(np.int32(distance[j] + np.int32(row[j])) - prices[j])
        for scanned in order[:count]:
            prices[scanned] += np.int32(distance[j] - distance[scanned])
        while True:
            i = before[j]
            rows[j], cols[i], j = i, j, cols[i]
            if i == first:
                break
