"""Stability across seeds: one-to-one matching of latents, PW-MCC and functional agreement.

PW-MCC (arXiv 2505.20254) of two decoders is the mean |cosine| of their rows under the best one-to-one assignment; that
of several seeds is the mean over pairs. Pairs share seeds, so uncertainty comes from leaving out one seed at a time,
never from treating pairs as independent.

Functional agreement asks whether matched latents also do the same. It is the substitution test: on held-out rows, one
latent's contribution `f_i w_i` to the reconstruction is swapped for that of its partner.
`R = sum <f_i w_i, f_j w_j> / sqrt(sum |f_i w_i|^2 sum |f_j w_j|^2)` is 1 if the reconstruction stays the same up to one
factor, and 0 if the two never fire together. `|cos(w_i, w_j)|`, which PW-MCC averages, bounds it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_array
from torch import Tensor

from husai_lib.activations.banks import Bank
from husai_lib.errors import ModelError
from husai_lib.evidence.rows.measured import PairRow
from husai_lib.intervals import Pairs, pair_table
from husai_lib.randomness import numpy_generator
from husai_lib.saes.assignment import assign, similarity
from husai_lib.saes.trained import TrainedSae

Array = NDArray[np.float32] | Tensor

REAPPEARS_ABOVE = 0.7
SUBSPACE_SHARE = 0.9
ROWS = 64
"""Matched rows that are copied at once."""
BEHAVIOUR_ROWS = 4096
"""Held-out rows that are encoded for functional agreement."""


@dataclass(frozen=True)
class Matching:
    """The assignment of latents of two dictionaries, `n` and `m`; all of the smaller one are matched."""

    rows: NDArray[np.intp]
    """Matched latents of the first dictionary, ascending; `cols` are their partners in the second."""
    cols: NDArray[np.intp]
    cosines: NDArray[np.float64]
    """|cosine| of each matched pair; 0 for a zero row."""
    row_maxima: NDArray[np.float32]
    """Largest |cosine| of each latent of the first dictionary with any of the second, `[n]`, and in reverse, `[m]`."""
    col_maxima: NDArray[np.float32]


@dataclass(frozen=True)
class Stability:
    """Statistics of every pair of seeds, each a table `[S, S]`, whose mean is the column of this name in `GroupRow`."""

    pwmcc: Pairs
    pwmcc_max: Pairs
    encoder_mcc: Pairs
    reappearing_fraction: Pairs
    """Share of latents whose *matched* partner has |cosine| > 0.7, averaged over both dictionaries. (With the nearest
    neighbour, one latent could stand for many.)"""
    subspace_overlap: Pairs
    """Mean squared cosine of the principal angles between the spans of the r leading principal directions of the unit
    decoder rows. r is the smaller of the two counts of directions that hold 90 % of the squared Frobenius norm, at most
    d_in // 2, since more would overlap in any case; two random subspaces overlap by r / d_in."""
    functional_agreement: Pairs
    functional_rare: Pairs
    functional_frequent: Pairs


class Agreement(NamedTuple):
    """The mean R of matched pairs: of all, and of the thirds that fire most rarely and most often."""

    functional: float
    functional_rare: float
    functional_frequent: float


class Behaviour(NamedTuple):
    """What one SAE does on held-out rows: latents `[n, d_sae]`; its decoder `[d_sae, d_out]`."""

    latents: csc_array
    decoder: NDArray[np.float32]


def match(a: Array, b: Array) -> Matching:
    """The one-to-one assignment of the rows of two decoders `[d_sae, d_in]` with the largest sum of |cosine|.

    Float32 matrix products on the device of `a`, then an exact algorithm on cosines rounded to 1/65535, so that the
    mean |cosine| is within 1/65535 of the largest, and in practice within 1e-7. Raises ModelError for NaN and infinity.
    """
    first, second = _unit_rows(a), _unit_rows(b)
    similar = similarity(first, second)
    rows, cols = assign(similar.table)
    maxima = similar.row_maxima, similar.col_maxima
    return Matching(rows, cols, _row_cosines(first, second, rows, cols), *maxima)


def pairwise_pwmcc(decoders: Sequence[Array]) -> Pairs:
    """PW-MCC of every pair of decoders `[d_sae, d_in]`."""
    pairs = combinations(range(len(decoders)), 2)
    return pair_table(len(decoders), {(i, j): match(decoders[i], decoders[j]).cosines.mean() for i, j in pairs})


def stability_of(saes: Sequence[TrainedSae], held_out: Bank) -> Stability:
    """The statistics of every pair of trained SAEs, functional agreement on `held_out`."""
    decoders, encoders = [one.sae.W_dec for one in saes], [one.sae.W_enc for one in saes]
    return group_stability(decoders, encoders, [behaviour(one.sae, held_out) for one in saes])


def group_stability(decoders: Sequence[Array], encoders: Sequence[Array], behaviours: Sequence[Behaviour]) -> Stability:
    """Statistics of pairs of seeds, from decoders `[d_sae, d_in]`, encoders `[d_in, d_sae]` and what they do."""
    rows = [_unit_rows(_tensor(encoder).T) for encoder in encoders]
    if list(map(len, decoders)) != list(map(len, rows)):
        raise ModelError("decoders and encoders differ in width; give W_dec [d_sae, d_in] and W_enc [d_in, d_sae]")
    leading, values = [_leading_directions(decoder) for decoder in decoders], {}
    for i, j in combinations(range(len(rows)), 2):
        found, r = match(decoders[i], decoders[j]), min(leading[i][1], leading[j][1])
        again = float((found.cosines > REAPPEARS_ABOVE).sum())
        values[i, j] = (
            found.cosines.mean(),
            np.concatenate([found.row_maxima, found.col_maxima]).mean(dtype=np.float64),
            _row_cosines(rows[i], rows[j], found.rows, found.cols).mean(),
            (again / len(rows[i]) + again / len(rows[j])) / 2,
            float((leading[i][0][:, :r].T @ leading[j][0][:, :r]).square().sum() / r),
            *agreement(behaviours[i], behaviours[j], found.rows, found.cols),
        )
    return Stability(*(pair_table(len(rows), {pair: of[s] for pair, of in values.items()}) for s in range(8)))


@torch.inference_mode()
def behaviour(sae: Any, held_out: Bank) -> Behaviour:
    """The latents of an SAE on the first rows of `held_out`, by its own encoder, and its decoder."""
    latents = sae.encode(next(held_out.chunks(BEHAVIOUR_ROWS))).to_dense().float().cpu().numpy()
    return Behaviour(csc_array(latents), sae.W_dec.float().cpu().numpy())


def agreement(a: Behaviour, b: Behaviour, rows: NDArray[np.intp], cols: NDArray[np.intp]) -> Agreement:
    """The agreement of latents `rows` of one SAE with their partners `cols` in another.

    A pair of which one never fires has R = 0; pairs of which neither fires are left out. 0 if none is left.
    """
    mine, other = a.latents[:, rows], b.latents[:, cols]
    fired = mine.count_nonzero(0) + other.count_nonzero(0)
    directions, partners = a.decoder[rows].astype(np.float64), b.decoder[cols].astype(np.float64)
    together = _sums(mine.multiply(other)) * (directions * partners).sum(1)
    alone = [_sums(f.multiply(f)) * np.square(w).sum(1) for f, w in ((mine, directions), (other, partners))]
    norm = np.sqrt(alone[0] * alone[1])
    R = np.divide(together, norm, out=np.zeros_like(together), where=norm > 0)
    by_firing = R[np.argsort(fired, kind="stable")][np.count_nonzero(fired == 0) :]
    third = -(-len(by_firing) // 3)
    parts = (by_firing, by_firing[:third], by_firing[len(by_firing) - third :])
    return Agreement(*(float(part.mean()) if len(part) else 0.0 for part in parts))


def _sums(values: Any) -> NDArray[np.float64]:
    return np.asarray(values.sum(0, dtype=np.float64)).ravel()


def pair_rows(tables: Mapping[str, Pairs], seeds: Sequence[int]) -> list[PairRow]:
    """PW-MCC of every pair of `seeds` as rows of a record, from the tables of conditions or controls by their names."""
    return [
        PairRow(of=of, seed_a=seeds[i], seed_b=seeds[j], pwmcc=float(pairs[i, j]))
        for of, pairs in tables.items()
        for i, j in combinations(range(len(seeds)), 2)
    ]


def random_decoders(shape: tuple[int, int], seeds: Sequence[int]) -> list[Tensor]:
    """Decoders `[d_sae, d_in]` of random unit rows, one a seed."""
    return [_unit_rows(numpy_generator(seed, "random_decoder").standard_normal(shape, np.float32)) for seed in seeds]


def _leading_directions(decoder: Array) -> tuple[Tensor, int]:
    """Orthonormal principal directions `[d_in, d_in]`, largest first, and how many of them count."""
    unit = _unit_rows(decoder)
    values, vectors = torch.linalg.eigh((unit.T @ unit).double())
    held = values.flip(0).clamp_min(0).cumsum(0)
    enough = int((held < SUBSPACE_SHARE * held[-1]).sum()) + 1
    return vectors.flip(1), max(1, min(enough, unit.shape[1] // 2))


def _unit_rows(matrix: Array) -> Tensor:
    rows = _tensor(matrix)
    largest = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True)
    if not torch.isfinite(largest).all():
        raise ModelError("weights of an SAE hold NaN or infinite values; train it again with a smaller learning rate")
    tiny = torch.finfo(torch.float32).tiny
    unit: Tensor = rows / largest.clamp_min(tiny)  # so that no square over- or underflows
    return unit.div_(torch.linalg.vector_norm(unit, dim=1, keepdim=True).clamp_min(tiny))


def _row_cosines(a: Tensor, b: Tensor, rows: NDArray[np.intp], cols: NDArray[np.intp]) -> NDArray[np.float64]:
    """|cosine| of the unit rows `a[rows]` with `b[cols]`, in chunks; rounding errors are cut at 1."""
    pairs = zip(torch.split(torch.from_numpy(rows), ROWS), torch.split(torch.from_numpy(cols), ROWS), strict=True)
    cosines = torch.cat([torch.linalg.vecdot(a[some], b[partners]) for some, partners in pairs])
    return cosines.abs().clamp_max(1).cpu().numpy().astype(np.float64)


def _tensor(matrix: Array) -> Tensor:
    """A float32 tensor; arrays are copied, as torch warns about read-only memory maps."""
    return matrix.detach().float() if isinstance(matrix, Tensor) else torch.from_numpy(np.array(matrix, np.float32))
