"""A trained SAE: its condition and seed, its folder in the cache, and how it is loaded."""

import functools
import importlib
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.registry import SAE_CLASS_REGISTRY

from husai_lib.errors import IntegrityError
from husai_lib.evidence.cache import Entry, code_hash, open_entry
from husai_lib.params.conditions import Condition
from husai_lib.params.hyperparameters import ARCHITECTURES


@dataclass(frozen=True)
class Member:
    """One SAE to train: a condition at a seed."""

    condition: Condition
    seed: int
    reference: int | None = None
    """What the consistency objective aligns it with: the seed of its reference or, under `mutual`, the first of its
    bank. Seeds with the same are related."""
    bank: tuple[int, ...] = ()
    """The seeds that it is trained together with under `mutual`."""

    @property
    def unit(self) -> tuple[bool, int]:
        """Equal for related seeds: those of one reference or bank, or the seed alone."""
        return (False, self.seed) if self.reference is None else (True, self.reference)

    def __str__(self) -> str:
        return f"{self.condition.name} at seed {self.seed}"


@dataclass(frozen=True)
class TrainedSae:
    """A trained SAE in the cache, as a SAELens folder. It goes to another process without its loaded weights."""

    member: Member
    entry: Entry
    note: str = ""
    """A remark that belongs to its measurements."""

    def __str__(self) -> str:
        return str(self.member)

    def __reduce__(self) -> tuple[Any, ...]:
        return TrainedSae, (self.member, self.entry, self.note)

    @property
    def weights_sha256(self) -> str:
        """Hash of `sae_weights.safetensors`."""
        return self.entry.files["sae_weights.safetensors"]

    @functools.cached_property
    def content(self) -> dict[str, str]:
        """Hashes of all that determines what the SAE computes: weights, configuration and its own inference code."""
        return {"weights": self.weights_sha256, "cfg": self.entry.files["cfg.json"]} | inference_code(self.entry.path)

    @functools.cached_property
    def sae(self) -> Any:
        """The SAELens SAE, loaded by `SAE.load_from_disk`, with its own encoder."""
        return load_sae(self.entry.path)


def load_sae(folder: Path) -> Any:
    """The SAE of a SAELens folder, of the class that its `cfg.json` names, in the float32 of activations."""
    _register_own_classes()
    sae = SAE.load_from_disk(folder, device="cpu", dtype="float32").eval()
    if sae.cfg.normalize_activations == "constant_norm_rescale":
        _keep_norms_by_thread(sae)
    return sae


def inference_code(folder: Path) -> dict[str, str]:
    """The hash of the code of an SAE's class as `code`; none for SAELens' own, whose version is in every key."""
    _register_own_classes()
    architecture = json.loads((folder / "cfg.json").read_text(encoding="utf-8")).get("architecture")
    module = SAE_CLASS_REGISTRY[architecture][0].__module__ if architecture in SAE_CLASS_REGISTRY else ""
    return {"code": code_hash(module)} if module.startswith("husai_lib.") else {}


def _register_own_classes() -> None:
    for architecture in ARCHITECTURES:  # its module may register a class with SAELens
        importlib.import_module(f"husai_lib.saes.architectures.{architecture}")


def _keep_norms_by_thread(sae: Any) -> None:
    """Keep norms apart by thread: SAELens stores those of the encoded rows on the SAE, which threads share."""
    norms = threading.local()

    def rescaled(x: torch.Tensor) -> torch.Tensor:
        norms.factor = sae.cfg.d_in**0.5 / x.norm(dim=-1, keepdim=True)
        scaled: torch.Tensor = x * norms.factor
        return scaled

    sae.run_time_activation_norm_fn_in = rescaled
    sae.run_time_activation_norm_fn_out = lambda x: x / norms.factor


def open_trained(member: Member, key: str, weights_sha256: str) -> TrainedSae:
    """The trained SAE of a record; IntegrityError if its weights are missing or differ from the record."""
    trained = TrainedSae(member, open_entry("saes", key))
    if trained.weights_sha256 != weights_sha256:
        raise IntegrityError(f"the weights of {member} are not those of its record; run the cycle again")
    return trained
