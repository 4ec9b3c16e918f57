"""TopK transcoder: MLP input to MLP output through k latents, with optional skip (arXiv 2501.18823).

Hyperparameters: `aux_loss_coefficient` (weight of the loss that revives dead latents), `skip` (whether a linear map of
the input is added to the output).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SkipTranscoder, SkipTranscoderConfig, Transcoder, TranscoderConfig
from sae_lens.registry import register_sae_class
from sae_lens.saes.topk_sae import TopK
from torch import Tensor, nn
from typing_extensions import override

from husai_lib.params.conditions import Condition
from husai_lib.saes.architectures import topk
from husai_lib.saes.architectures.base import Loss, TrainState


@dataclass
class TopKTranscoderConfig(TranscoderConfig):  # type: ignore[misc]
    """SAELens' transcoder config with the number of active latents."""

    k: int = 32

    @classmethod
    def architecture(cls) -> str:
        """The name in SAELens' registry and in `cfg.json`."""
        return "topk_transcoder"


class TopKTranscoder(Transcoder):  # type: ignore[misc]
    """SAELens' transcoder with a TopK activation function."""

    def get_activation_fn(self) -> Callable[[Tensor], Tensor]:
        """Keep the k largest pre-activations of a row, if positive."""
        top: Callable[[Tensor], Tensor] = TopK(self.cfg.k)
        return top


@dataclass
class TopKSkipTranscoderConfig(SkipTranscoderConfig):  # type: ignore[misc]
    """SAELens' skip transcoder config with the number of active latents."""

    k: int = 32

    @classmethod
    def architecture(cls) -> str:
        """The name in SAELens' registry and in `cfg.json`."""
        return "topk_skip_transcoder"


class TopKSkipTranscoder(SkipTranscoder):  # type: ignore[misc]
    """SAELens' skip transcoder with a TopK activation function."""

    get_activation_fn = TopKTranscoder.get_activation_fn


register_sae_class("topk_transcoder", TopKTranscoder, TopKTranscoderConfig)
register_sae_class("topk_skip_transcoder", TopKSkipTranscoder, TopKSkipTranscoderConfig)


class Sae(topk.Sae):
    """Trained as TopK is; its input has no decoder bias to subtract."""

    same_space = False

    def __init__(self, condition: Condition, d_in: int, d_out: int, generator: torch.Generator) -> None:
        super().__init__(condition, d_in, d_out, generator)
        if condition.hyperparameters["skip"]:
            self.W_skip = nn.Parameter(torch.zeros(d_out, d_in))

    @override
    def loss(self, x: Tensor, target: Tensor, state: TrainState) -> Loss:
        """That of TopK; the skip connection takes its share of the target first."""
        return super().loss(x, target - x @ self.W_skip.T if self.option("skip") else target, state)

    @override
    def to_saelens(self, scale_in: float, scale_out: float) -> tuple[type[Any], dict[str, Any], dict[str, Tensor]]:
        """A SAELens `topk_transcoder`, or `topk_skip_transcoder`."""
        fields = {"k": self.condition.k, "d_out": self.d_out, "apply_b_dec_to_input": False}
        if not self.option("skip"):
            return TopKTranscoder, fields, {}
        return TopKSkipTranscoder, fields, {"W_skip": self.W_skip * (scale_in / scale_out)}
