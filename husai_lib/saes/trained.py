"""A trained SAE: which condition and seed it is, its folder in the cache, and how it is loaded."""

from __future__ import annotations

import functools
import importlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE

from husai_lib.errors import IntegrityError
from husai_lib.evidence.cache import Entry, open_entry
from husai_lib.params.conditions import Condition
from husai_lib.params.hyperparameters import ARCHITECTURES


@dataclass(frozen=True)
class Member:
    """One SAE to train: a condition at a seed."""

    condition: Condition
    seed: int


@dataclass(frozen=True)
class TrainedSae:
    """A trained SAE in the cache, as a SAELens folder."""

    member: Member
    entry: Entry
    note: str = ""
    """What a reader of its measurements must know."""

    @property
    def weights_sha256(self) -> str:
        """Hash of `sae_weights.safetensors`."""
        return self.entry.files["sae_weights.safetensors"]

    @property
    def content(self) -> dict[str, str]:
        """Hashes of weights and configuration: all that determines what the SAE computes."""
        return {"weights": self.weights_sha256, "cfg": self.entry.files["cfg.json"]}

    @functools.cached_property
    def sae(self) -> Any:
        """The SAELens SAE, loaded by `SAE.load_from_disk`, with its own encoder."""
        return load_sae(self.entry.path)


def load_sae(folder: Path) -> Any:
    """The SAE of a SAELens folder, of whatever class its `cfg.json` names, in the float32 of activations."""
    for architecture in ARCHITECTURES:  # an architecture may register a class of its own with SAELens
        importlib.import_module(f"husai_lib.saes.architectures.{architecture}")
    sae = SAE.load_from_disk(folder, device="cpu", dtype="float32").eval()
    if sae.cfg.normalize_activations == "constant_norm_rescale":
        _keep_norms_by_thread(sae)
    return sae


def _keep_norms_by_thread(sae: Any) -> None:
    """SAELens leaves the norms of the rows it encodes on the SAE until it decodes them, and threads share the SAE."""
    norms = threading.local()

    def rescaled(x: torch.Tensor) -> torch.Tensor:
        norms.factor = sae.cfg.d_in**0.5 / x.norm(dim=-1, keepdim=True)
        scaled: torch.Tensor = x * norms.factor
        return scaled

    sae.run_time_activation_norm_fn_in = rescaled
    sae.run_time_activation_norm_fn_out = lambda x: x / norms.factor


def open_trained(member: Member, key: str, weights_sha256: str) -> TrainedSae:
    """The trained SAE of a record; IntegrityError if its weights are missing or other ones."""
    trained = TrainedSae(member, open_entry("saes", key))
    if trained.weights_sha256 != weights_sha256:
        who = f"{member.condition.name} at seed {member.seed}"
        raise IntegrityError(f"the weights of {who} are not those of its record; run the cycle again")
    return trained
