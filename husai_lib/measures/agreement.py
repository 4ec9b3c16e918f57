"""Functional agreement: whether matched latents of two seeds do the same, beside pointing in the same direction.

The substitution test: on held-out rows, one latent's contribution `f_i w_i` to the reconstruction is swapped for that
of its partner. `R = sum <f_i w_i, f_j w_j> / sqrt(sum |f_i w_i|^2 sum |f_j w_j|^2)` is 1 if the reconstruction stays
the same up to one factor, and 0 if the two never fire together. `|cos(w_i, w_j)|`, which PW-MCC averages, bounds it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_array

from husai_lib.activations.banks import Bank

ROWS = 4096
"""Held-out rows that are encoded."""


class Agreement(NamedTuple):
    """The mean R of matched pairs: of all, and of the thirds that fire most rarely and most often.

    A pair of which one never fires has R = 0; pairs of which neither fires are left out. 0 if none is left.
    """

    functional: float
    functional_rare: float
    functional_frequent: float


class Behaviour(NamedTuple):
    """What one SAE does on held-out rows."""

    latents: csc_array
    """`[n, d_sae]`."""
    decoder: NDArray[np.float32]
    """`[d_sae, d_out]`."""


@torch.inference_mode()
def behaviour(sae: Any, held_out: Bank) -> Behaviour:
    """The latents of an SAE on the first rows of `held_out`, by its own encoder, and its decoder."""
    latents = sae.encode(next(held_out.chunks(ROWS))).to_dense().float().cpu().numpy()
    return Behaviour(csc_array(latents), sae.W_dec.float().cpu().numpy())


def agreement(a: Behaviour, b: Behaviour, rows: NDArray[np.intp], cols: NDArray[np.intp]) -> Agreement:
    """The agreement of latents `rows` of one SAE with their partners `cols` in another."""
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
    """The sum of each column of a sparse array."""
    return np.asarray(values.sum(0, dtype=np.float64)).ravel()
