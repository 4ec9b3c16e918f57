"""TopK transcoder: MLP input to MLP output through k latents, with optional skip (arXiv 2501.18823).

Hyperparameters: `aux_loss_coefficient` (weight of the loss that revives dead latents), `skip` (whether a linear map of
the input is added to the output).
"""

import torch
from sae_lens import SkipTranscoder, SkipTranscoderConfig, TopKSAE, Transcoder, TranscoderConfig
from torch import Tensor, nn
from typing_extensions import override

from husai_lib.params.conditions import Condition
from husai_lib.saes.architectures import topk
from husai_lib.saes.architectures.base import Loss, TrainState, register


class TopKTranscoder(Transcoder):  # type: ignore[misc]
    """SAELens' transcoder with the activation function of its TopK SAE."""

    get_activation_fn = TopKSAE.get_activation_fn


class TopKSkipTranscoder(SkipTranscoder):  # type: ignore[misc]
    """The same with a skip connection."""

    get_activation_fn = TopKSAE.get_activation_fn


register("topk_transcoder", TopKTranscoder, TranscoderConfig, k=int)
register("topk_skip_transcoder", TopKSkipTranscoder, SkipTranscoderConfig, k=int)


class Sae(topk.Sae):
    """Trained like TopK, but without a decoder bias to subtract from its input."""

    same_space = False

    def __init__(self, condition: Condition, d_in: int, d_out: int, generator: torch.Generator) -> None:
        super().__init__(condition, d_in, d_out, generator)
        self.exported_as = "topk_transcoder"
        if condition.hyperparameters["skip"]:
            self.exported_as = "topk_skip_transcoder"
            self.W_skip = nn.Parameter(torch.zeros(d_out, d_in))

    @override
    def loss(self, x: Tensor, target: Tensor, state: TrainState) -> Loss:
        return super().loss(x, target - x @ self.W_skip.T if self.option("skip") else target, state)

    @override
    def exported_tensors(self, scale_in: float, scale_out: float) -> dict[str, Tensor]:
        return {"W_skip": self.W_skip * (scale_in / scale_out)} if self.option("skip") else {}
