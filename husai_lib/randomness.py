"""Random generators: every draw has its own, seeded from (seed, purpose), so no draw disturbs another."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def _state(seed: int, purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:7], "little")


def numpy_generator(seed: int, purpose: str) -> np.random.Generator:
    """A numpy generator for one purpose, such as `data order`."""
    return np.random.default_rng(_state(seed, purpose))


def torch_generator(seed: int, purpose: str, device: str = "cpu") -> torch.Generator:
    """A torch generator for one purpose; those on the CPU draw the same whatever device computes."""
    return torch.Generator(device).manual_seed(_state(seed, purpose))
