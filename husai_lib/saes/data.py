"""What members learn: scaled rows and their targets, in the order of each seed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from torch import Tensor

from husai_lib.activations.banks import Bank
from husai_lib.params.conditions import SaeParams
from husai_lib.randomness import numpy_generator

DEAD_AFTER = 0.1
"""A latent that has not fired for this share of all steps counts as dead in training, of baselines too."""


@dataclass(frozen=True)
class Data:
    """Input rows and their targets, each with the factor that scales them to a mean norm of sqrt(d)."""

    rows: Bank
    target: Bank
    scale_in: float
    scale_out: float
    mean: Tensor
    """The mean scaled target, `[d_out]`, from which decoder biases start."""

    @classmethod
    def of(cls, rows: Bank, target: Bank | None = None) -> Self:
        """Rows to be reconstructed, or to be mapped to `target`."""
        outputs = target or rows
        scale_out = outputs.scale()
        return cls(rows, outputs, rows.scale(), scale_out, outputs.mean().float() * scale_out)


def batches(n_rows: int, params: SaeParams, seed: int) -> Iterator[np.ndarray]:
    """Row indices of each step: epoch after epoch, each in a new random order that depends on the seed alone."""
    generator = numpy_generator(seed, "data order")
    pending = np.empty(0, dtype=np.int64)
    for _ in range(params.training_samples // params.batch_size):
        while len(pending) < params.batch_size:
            pending = np.concatenate([pending, generator.permutation(n_rows)])
        yield pending[: params.batch_size]
        pending = pending[params.batch_size :]
