"""TopK: the k largest pre-activations of each row (arXiv 2406.04093).

Hyperparameters: `aux_loss_coefficient` (weight of the loss that revives dead latents).
"""

from husai_lib.saes.architectures.base import TrainableSae


class Sae(TrainableSae):
    """As SAELens' `TopKTrainingSAE`: the selection, loss and export that the other architectures start from."""

    exported_as = "topk"
