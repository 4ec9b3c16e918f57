"""Banks of activations that are made up, so that what is in them is known."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from husai_lib.activations.banks import Bank
from husai_lib.evidence.cache import cached
from husai_lib.files import write_json

HOOK = "blocks.0.hook_resid_post"


def bank_of(rows: np.ndarray | torch.Tensor, hook_name: str = HOOK) -> Bank:
    """A bank in the cache that holds these rows, as those of one text."""
    values = np.asarray(rows, dtype=np.float32)

    def make(folder: Path) -> None:
        np.save(folder / f"{hook_name}.npy", values)
        np.save(folder / "offsets.npy", np.array([0, len(values)]))
        write_json(folder / "meta.json", {"norm_limit": None, "sources": []})

    content = hashlib.sha256(values.tobytes()).hexdigest()
    return Bank(cached("banks", "husai_lib.files", {"made up": content, "hook": hook_name}, make), hook_name)


def dictionary(d_true: int, d_in: int, seed: int = 0) -> torch.Tensor:
    """`[d_true, d_in]` random unit directions: the features that made-up activations consist of."""
    return normalize(torch.randn(d_true, d_in, generator=torch.Generator().manual_seed(seed)), dim=1)


def sparse_rows(features: torch.Tensor, n: int, active: int, seed: int = 0) -> torch.Tensor:
    """`[n, d_in]` sums of `active` random features with weights between 1 and 2, off-centre as activations are."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(n, len(features), generator=generator).topk(active, dim=1).indices
    weights = 1 + torch.rand(n, active, generator=generator)
    latents = torch.zeros(n, len(features)).scatter(1, chosen, weights)
    return latents @ features + 0.5
