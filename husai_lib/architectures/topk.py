"""TopK: the k largest pre-activations of each row (arXiv 2406.04093)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sae_lens import TopKSAE
from torch import Tensor

from husai_lib.architectures.base import Active, Loss, TrainableSae, TrainState, sparse_loss


class Sae(TrainableSae):
    """As SAELens' `TopKTrainingSAE`, with sparse decoding and sparse gradients."""

    def loss(self, x: Tensor, target: Tensor, state: TrainState) -> Loss:
        """Squared error plus the revival loss of dead latents."""
        return sparse_loss(self, x, target, state, lambda scores: largest_of_each_row(scores, self.condition.k))[0]

    def to_saelens(self) -> tuple[type[Any], dict[str, Any], dict[str, Tensor]]:
        """A SAELens `topk` SAE with unit decoder rows."""
        return TopKSAE, {"k": self.condition.k}, {}


def largest_of_each_row(scores: Tensor, k: int) -> Active:
    """The k largest entries of each row of `scores [n, d_sae]`."""
    n = len(scores)
    if scores.device.type == "cpu":  # numpy selects several times faster than torch.topk on a CPU
        column = torch.from_numpy(np.argpartition(scores.numpy(), -k, axis=1)[:, -k:].copy())
    else:
        column = scores.topk(k, dim=1, sorted=False).indices
    row = torch.arange(n, device=scores.device).repeat_interleave(k)
    return Active(row, column.reshape(-1), torch.arange(0, n * k, k, device=scores.device))
