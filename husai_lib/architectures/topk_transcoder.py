"""TopK transcoder: MLP input to MLP output through k latents (arXiv 2501.18823)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sae_lens import Transcoder, TranscoderConfig
from sae_lens.registry import register_sae_class
from sae_lens.saes.topk_sae import TopK
from torch import Tensor

from husai_lib.architectures import topk


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


register_sae_class("topk_transcoder", TopKTranscoder, TopKTranscoderConfig)


class Sae(topk.Sae):
    """Trained as TopK is; its input has no decoder bias to subtract."""

    same_space = False

    def to_saelens(self) -> tuple[type[Any], dict[str, Any], dict[str, Tensor]]:
        """A SAELens `topk_transcoder` with unit decoder rows."""
        return TopKTranscoder, {"k": self.condition.k, "d_out": self.d_out, "apply_b_dec_to_input": False}, {}
