"""BatchTopK: the k x n largest pre-activations of a batch of n rows (arXiv 2412.06410)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sae_lens import JumpReLUSAE
from torch import Tensor

from husai_lib.architectures.base import Active, Loss, TrainableSae, TrainState, sparse_loss
from husai_lib.params import Condition


class Sae(TrainableSae):
    """As SAELens' `BatchTopKTrainingSAE`: at inference a JumpReLU SAE with the threshold learnt here."""

    threshold: Tensor

    def __init__(self, condition: Condition, d_in: int, d_out: int, generator: torch.Generator) -> None:
        super().__init__(condition, d_in, d_out, generator)
        self.register_buffer("threshold", torch.zeros((), dtype=torch.float64))

    def loss(self, x: Tensor, target: Tensor, state: TrainState) -> Loss:
        """Squared error plus the revival loss; the inference threshold follows the smallest active value."""
        k = self.condition.k
        loss, values = sparse_loss(self, x, target, state, lambda scores: largest_of_batch(scores.relu(), k))
        # SAELens' slow average would lag behind the SAE, or near its start at 0, when a short training ends
        rate = max(self.option("topk_threshold_lr"), min(1.0, 10 / state.steps))
        if len(values):
            self.threshold.lerp_(values.min().double(), rate)
        return loss

    def to_saelens(self) -> tuple[type[Any], dict[str, Any], dict[str, Tensor]]:
        """A SAELens `jumprelu` SAE whose latents share one threshold."""
        return JumpReLUSAE, {}, {"threshold": self.threshold.float().expand(self.condition.d_sae).clone()}


def largest_of_batch(scores: Tensor, k: int) -> Active:
    """The `k * n` largest positive entries of `scores [n, d_sae]`."""
    count = k * len(scores)
    if scores.device.type == "cpu":
        flat = scores.numpy().reshape(-1)
        smallest = float(np.partition(flat, len(flat) - count)[len(flat) - count])
    else:
        smallest = float(scores.flatten().topk(count, sorted=False).values.min())
    return Active.of_mask((scores >= smallest) & (scores > 0))
