"""SAE architectures: one file each here, one line each in `husai_lib.params.hyperparameters.ARCHITECTURES`.

A file defines one subclass of `TrainableSae`, with its training loss and its export as a SAELens SAE. Everything after
training uses that SAELens SAE and its own encoder.
"""

import importlib

import torch

from husai_lib.params.conditions import Condition
from husai_lib.params.hyperparameters import ARCHITECTURES
from husai_lib.saes.architectures.base import TrainableSae

__all__ = ["TrainableSae", "new_sae"]


def new_sae(condition: Condition, d_in: int, d_out: int, generator: torch.Generator) -> TrainableSae:
    """An untrained SAE of a condition, its initial weights drawn from `generator`."""
    assert condition.architecture in ARCHITECTURES
    module = importlib.import_module(f"husai_lib.saes.architectures.{condition.architecture}")
    sae: TrainableSae = module.Sae(condition, d_in, d_out, generator)
    return sae
