"""How alike the dictionaries of several seeds are: one-to-one matching of latents and PW-MCC.

PW-MCC (arXiv 2505.20254) of two decoders is the mean |cosine| of their rows under the best
one-to-one assignment; of several seeds, the mean over pairs. Pairs share seeds, so uncertainty comes
from leaving out one seed at a time, never from treating pairs as independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from husai_lib.errors import DataError, ModelError
from husai_lib.evidence.rows import PairRow
from husai_lib.intervals import Interval, Pairs, mean_over_pairs, pair_table, pwmcc_interval
from husai_lib.randomness import numpy_generator

Array = NDArray[np.float32] | Tensor

REAPPEARS_ABOVE = 0.7
SUBSPACE_SHARE = 0.9


@dataclass(frozen=True)
class Matching:
    """Which latent of one dictionary is which of the other; every array has one entry a matched pair."""

    rows: NDArray[np.intp]
    """Latents of the first dictionary, ascending."""
    cols: NDArray[np.intp]
    """Their partners in the second."""
    cosines: NDArray[np.float64]
    """|cosine| of their decoder rows."""


@dataclass(frozen=True)
class PairTable:
    """Every statistic of every pair of seeds, computed once; see `pair_statistics`."""

    pwmcc: Pairs
    pwmcc_max: Pairs
    encoder_mcc: Pairs
    reappearing: Pairs
    subspace_overlap: Pairs


@dataclass(frozen=True)
class Stability:
    """How alike the seeds of one condition are: means over pairs of the statistics of `PairTable`."""

    pwmcc: Interval
    """With the interval of the leave-one-seed-out jackknife; without bounds for two seeds."""
    pwmcc_max: float
    encoder_mcc: float
    reappearing_fraction: float
    subspace_overlap: float
    pairs: PairTable


def abs_cosines(a: Array, b: Array) -> NDArray[np.float32]:
    """|cosine| of every row of `a [n, d]` with every row of `b [m, d]`, `[n, m]`; 0 for a zero row.

    One float32 matrix product on the device of `a`. Raises ModelError for NaN and infinity.
    """
    return _abs_cosines(_unit_rows(a), _unit_rows(b))


def match(a: Array, b: Array) -> Matching:
    """The one-to-one assignment of decoder rows with the largest sum of |cosine|.

    Decoders `[d_sae, d_in]`; of unequal widths the smaller one is matched whole. Exact (scipy).
    """
    return _match(abs_cosines(a, b))


def pwmcc(decoders: Sequence[Array]) -> float:
    """Mean over pairs of decoders `[d_sae, d_in]` of their matched |cosine|."""
    return mean_over_pairs(pairwise_pwmcc(decoders))


def pairwise_pwmcc(decoders: Sequence[Array]) -> Pairs:
    """PW-MCC of every pair of at least two decoders."""
    units = _unit_decoders(decoders)
    return pair_table(
        len(units), {(i, j): _match(_abs_cosines(units[i], units[j])).cosines.mean() for i, j in _pairs(units)}
    )


def pair_statistics(decoders: Sequence[Array], encoders: Sequence[Array]) -> PairTable:
    """All statistics of all pairs of seeds, from decoders `[d_sae, d_in]` and encoders `[d_in, d_sae]`.

    - pwmcc: mean |cosine| of the matched decoder rows.
    - pwmcc_max: the older statistic, mean of all row maxima and column maxima of |cosine|.
    - encoder_mcc: mean |cosine| of the encoder columns of the pairs that the *decoders* matched
      (arXiv 2501.16615).
    - reappearing: share of latents whose *matched one-to-one* partner has |cosine| > 0.7, averaged
      over both dictionaries. (The nearest neighbour would let one latent stand for many.)
    - subspace_overlap: mean squared cosine of the principal angles between the spans of the r leading
      principal directions of the unit decoder rows. r is the smaller of the two counts of directions
      that hold 90 % of the squared Frobenius norm, at most d_in // 2, since more would overlap in any
      case; two random subspaces overlap by r / d_in.
    """
    units, encoded = _unit_decoders(decoders), [_unit_rows(_tensor(encoder).T) for encoder in encoders]
    if [len(unit) for unit in units] != [len(rows) for rows in encoded]:
        raise ModelError(
            "decoders and encoders have different widths; give W_dec [d_sae, d_in] and W_enc [d_in, d_sae]"
        )
    spans = [_leading_directions(unit) for unit in units]
    values = {(i, j): _pair(units, encoded, spans, i, j) for i, j in _pairs(units)}
    return PairTable(*(pair_table(len(units), {pair: v[s] for pair, v in values.items()}) for s in range(5)))


def group_stability(decoders: Sequence[Array], encoders: Sequence[Array]) -> Stability:
    """How alike at least two seeds are, with the uncertainty of PW-MCC over seeds."""
    pairs = pair_statistics(decoders, encoders)
    return Stability(
        pwmcc=pwmcc_interval(pairs.pwmcc),
        pwmcc_max=mean_over_pairs(pairs.pwmcc_max),
        encoder_mcc=mean_over_pairs(pairs.encoder_mcc),
        reappearing_fraction=mean_over_pairs(pairs.reappearing),
        subspace_overlap=mean_over_pairs(pairs.subspace_overlap),
        pairs=pairs,
    )


def pair_rows(tables: Mapping[str, Pairs], seeds: Sequence[int]) -> list[PairRow]:
    """PW-MCC of every pair of `seeds` as rows of a record, from tables over these seeds by whose they are."""
    return [
        PairRow(of=of, seed_a=seeds[i], seed_b=seeds[j], pwmcc=float(pairs[i, j]))
        for of, pairs in tables.items()
        for i, j in _pairs(seeds)
    ]


def random_decoders(shape: tuple[int, int], seeds: Sequence[int], purpose: str = "random_decoder") -> list[Tensor]:
    """Decoders `[d_sae, d_in]` of random unit rows, one a seed, each from a generator of (seed, purpose)."""
    return [_unit_rows(numpy_generator(seed, purpose).standard_normal(shape, np.float32)) for seed in seeds]


def _pair(
    units: list[Tensor], encoded: list[Tensor], spans: list[tuple[Tensor, int]], i: int, j: int
) -> tuple[float, float, float, float, float]:
    cosines = _abs_cosines(units[i], units[j])
    matching = _match(cosines)
    encoder_cosines = (encoded[i][matching.rows] * encoded[j][matching.cols]).sum(1).abs()
    again = float((matching.cosines > REAPPEARS_ABOVE).sum())
    (basis_i, r_i), (basis_j, r_j) = spans[i], spans[j]
    r = min(r_i, r_j)
    return (
        float(matching.cosines.mean()),
        float(np.concatenate([cosines.max(axis=1), cosines.max(axis=0)]).mean(dtype=np.float64)),
        float(encoder_cosines.clamp_max(1).double().mean()),
        (again / cosines.shape[0] + again / cosines.shape[1]) / 2,
        float((basis_i[:, :r].T @ basis_j[:, :r]).square().sum() / r),
    )


def _leading_directions(unit: Tensor) -> tuple[Tensor, int]:
    """Orthonormal principal directions `[d_in, d_in]`, largest first, and how many of them count."""
    values, vectors = torch.linalg.eigh((unit.T @ unit).double())
    held = values.flip(0).clamp_min(0).cumsum(0)
    enough = int((held < SUBSPACE_SHARE * held[-1]).sum()) + 1
    return vectors.flip(1), max(1, min(enough, unit.shape[1] // 2))


def _match(cosines: NDArray[np.float32]) -> Matching:
    rows, cols = linear_sum_assignment(cosines, maximize=True)
    return Matching(rows, cols, cosines[rows, cols].astype(np.float64))


def _abs_cosines(a: Tensor, b: Tensor) -> NDArray[np.float32]:
    cosines: NDArray[np.float32] = (a @ b.T).abs_().clamp_max_(1).cpu().numpy()  # rounding can exceed 1
    return cosines


def _unit_decoders(decoders: Sequence[Array]) -> list[Tensor]:
    if len(decoders) < 2:
        raise DataError(f"stability across seeds needs at least 2 decoders, not {len(decoders)}; add seeds")
    return [_unit_rows(decoder) for decoder in decoders]


def _unit_rows(matrix: Array) -> Tensor:
    rows = _tensor(matrix)
    if not torch.isfinite(rows).all():
        raise ModelError("weights of an SAE hold NaN or infinite values; train it again with a smaller learning rate")
    tiny = torch.finfo(torch.float32).tiny
    rows = rows / rows.abs().amax(1, keepdim=True).clamp_min(tiny)  # so that no square over- or underflows
    unit: Tensor = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(tiny)
    return unit


def _tensor(matrix: Array) -> Tensor:
    """A float32 tensor; arrays are copied, as torch warns about read-only memory maps."""
    return matrix.detach().float() if isinstance(matrix, Tensor) else torch.from_numpy(np.array(matrix, np.float32))


def _pairs(seeds: Sequence[object]) -> list[tuple[int, int]]:
    return list(combinations(range(len(seeds)), 2))
