"""Small SAEs and banks in the cache, for tests of what measures them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

from husai_lib.activations.banks import Bank
from husai_lib.evidence.cache import cached
from husai_lib.files import write_json
from husai_lib.params.conditions import Condition
from husai_lib.saes.trained import Member, TrainedSae

HOOK = "blocks.0.hook_resid_post"
D_IN = 32


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the module's own; import it to have it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUSAI_CACHE", str(folder))
        yield folder


def condition(name: str = "topk", **changes: Any) -> Condition:
    values: dict[str, Any] = {"architecture": "topk", "d_sae": 64, "k": 8, "training_samples": 1024}
    return Condition(name=name, **values | changes)


def random_sae(seed: int, architecture: str = "topk", d_in: int = D_IN, d_sae: int = 64, k: int = 8) -> Any:
    """A SAELens SAE with random weights, encoder biases included."""
    shape = {"d_in": d_in, "d_sae": d_sae}
    sae = TopKSAE(TopKSAEConfig(k=k, **shape)) if architecture == "topk" else StandardSAE(StandardSAEConfig(**shape))
    generator = torch.Generator().manual_seed(seed)
    for weights in sae.parameters():
        weights.data = torch.randn(weights.shape, generator=generator) * 0.3
    return sae


def trained(sae: Any, seed: int = 0, of: Condition | None = None) -> TrainedSae:
    """The SAE in the cache, as if training had put it there."""
    content = {name: tensor.tolist() for name, tensor in sae.state_dict().items()} | {"cfg": str(sae.cfg)}
    return TrainedSae(Member(of or condition(), seed), cached("saes", "husai_lib.files", content, sae.save_model))


def random_saes(seeds: list[int], of: Condition | None = None, start: int = 0) -> list[TrainedSae]:
    """One random SAE a seed; `start` gives other weights at the same seeds."""
    return [trained(random_sae(start + seed), seed, of) for seed in seeds]


def bank(rows: np.ndarray, offsets: list[int] | None = None) -> Bank:
    """A bank in the cache that holds these rows; one row a text where no offsets are given."""
    offsets = offsets or list(range(len(rows) + 1))

    def make(folder: Path) -> None:
        np.save(folder / f"{HOOK}.npy", rows.astype(np.float32))
        np.save(folder / "offsets.npy", np.array(offsets))
        write_json(folder / "meta.json", {"norm_limit": None, "sources": []})

    inputs = {"rows": rows.astype(np.float32).tolist(), "offsets": offsets}
    return Bank(cached("banks", "husai_lib.files", inputs, make), HOOK)
