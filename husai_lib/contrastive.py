"""CE-Bench: how clearly single latents separate two stories that differ in one concept (arXiv 2509.00691).

For a pair of stories, `V1` and `V2` are the token means of the latents over each story, `I` the mean over
both and `Ibar` the mean of `I` over all pairs. With `z` the standardisation over latents (n - 1):
contrastive `max z(|V1 - V2|)`, independence `max z(|I - Ibar|)`, interpretability `max z` of their sum,
each averaged over the pairs. As `max z <= (N - 1) / sqrt(N)` for N latents, widths cannot be compared;
the calibrated scores are in units of a null that deals the tokens of a pair at random to the two stories.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from husai_lib.activations import Bank
from husai_lib.cache import cached
from husai_lib.errors import DataError
from husai_lib.files import read_json, write_json
from husai_lib.params import ContrastiveParams
from husai_lib.randomness import torch_generator
from husai_lib.tasks import Progress, run_tasks
from husai_lib.training import TrainedSae


@dataclass(frozen=True)
class ContrastiveScore:
    """CE-Bench scores of one SAE, averaged over the pairs."""

    contrastive: float
    independence: float
    interpretability: float
    calibrated_contrastive: float | None
    """(contrastive - null mean) / null std; None if the null does not vary."""
    calibrated_interpretability: float | None
    """The same for interpretability. Independence has no such form: dealing tokens leaves `I` as it is."""


def contrastive_scores(
    saes: Sequence[TrainedSae], stories: Bank, params: ContrastiveParams, progress: Progress | None = None
) -> list[ContrastiveScore]:
    """The scores of each SAE on the stories, cached by content.

    `stories` holds two texts a pair, story1 then story2. Raises DataError if a story left no token.
    """
    return run_tasks(
        functools.partial(_cached_score, stories=stories, params=params), saes, "SAEs scored on stories", progress
    )


def _cached_score(sae: TrainedSae, stories: Bank, params: ContrastiveParams) -> ContrastiveScore:
    inputs = {
        "weights": sae.weights_sha256,
        "cfg": sae.entry.files["cfg.json"],
        "stories": stories.sha256,
        "offsets": stories.offsets.tolist(),
        "params": params.model_dump(),
    }

    def make(folder: Path) -> None:
        write_json(folder / "score.json", asdict(score(sae.sae, stories, params)))

    return ContrastiveScore(**read_json(cached("contrastive", __name__, inputs, make).path / "score.json"))


@torch.inference_mode()
def score(sae: Any, stories: Bank, params: ContrastiveParams) -> ContrastiveScore:
    """CE-Bench scores of an SAE, one pair of stories in memory at a time."""
    offsets = stories.offsets
    if (empty := np.flatnonzero(np.diff(offsets) == 0)).size:
        raise DataError(
            f"story{empty[0] % 2 + 1} of pair {empty[0] // 2 + 1} has no token left after activations.skip_positions "
            "and max_norm_ratio; give longer stories"
        )
    pairs = [(offsets[i], offsets[i + 1], offsets[i + 2]) for i in range(0, len(offsets) - 1, 2)]
    # all latents are counted from those of the first token, so that constant ones differ by 0, not by rounding
    origin = _latents(sae, stories, 0, 1)[0]
    if params.independence == "as_published":
        mean_I = torch.zeros_like(origin)
        for start, _, end in pairs:
            mean_I += (_latents(sae, stories, start, end) - origin).mean(0) / len(pairs)
    else:
        mean_I = -origin
    by_deal, independence = [], 0.0
    for number, (start, middle, end) in enumerate(pairs):
        latents = _latents(sae, stories, start, end) - origin
        generator = torch_generator(params.seed, f"deal of the tokens of pair {number}")
        deals = first_story_weights(int(middle - start), int(end - start), params.permutations, generator)
        difference = story_differences(latents, deals)
        deviation = (latents.mean(0) - mean_I).abs()
        by_deal.append(torch.stack([max_z(difference), max_z(difference + deviation)]))
        independence += float(max_z(deviation)) / len(pairs)
    # [1 + permutations] each: every deal gives one average over the pairs, the first is of the stories as they are
    contrastive, interpretability = torch.stack(by_deal).mean(0)
    return ContrastiveScore(
        contrastive=float(contrastive[0]),
        independence=independence,
        interpretability=float(interpretability[0]),
        calibrated_contrastive=_calibrated(contrastive),
        calibrated_interpretability=_calibrated(interpretability),
    )


def first_story_weights(first: int, total: int, permutations: int, generator: torch.Generator) -> Tensor:
    """`[1 + permutations, total]` bool: the tokens of the first story; row 0 as it is, the others dealt at random."""
    members = torch.zeros(1 + permutations, total, dtype=torch.bool)
    members[0, :first] = True
    for deal in range(1, 1 + permutations):
        members[deal, torch.randperm(total, generator=generator)[:first]] = True
    return members


def story_differences(latents: Tensor, first: Tensor) -> Tensor:
    """`|V1 - V2| [deals, d_sae]` for latents `[tokens, d_sae]` and the deals of their tokens."""
    weights = first.float()
    in_first = weights.sum(1, keepdim=True)
    weights = weights / in_first - (1 - weights) / (weights.shape[1] - in_first)
    return (weights @ latents).abs()


def max_z(u: Tensor) -> Tensor:
    """`max z(u)` over the last axis: the largest deviation in standard deviations (n - 1); 0 if all are equal."""
    u = u.double()  # squares of small float32 numbers underflow
    return torch.where(u.amin(-1) < u.amax(-1), (u.amax(-1) - u.mean(-1)) / u.std(-1), 0.0)


def ceiling(d_sae: int) -> float:
    """The largest `max z` that N latents allow: `(N - 1) / sqrt(N)`, when one differs and all others are equal."""
    return float((d_sae - 1) / d_sae**0.5)


def _latents(sae: Any, stories: Bank, start: int, end: int) -> Tensor:
    latents: Tensor = sae.encode(torch.from_numpy(np.array(stories.rows[start:end]))).float()
    return latents


def _calibrated(scores: Tensor) -> float | None:
    """The first of the scores in standard deviations of the others."""
    null = scores[1:]
    return float((scores[0] - null.mean()) / null.std()) if null.max() > null.min() else None
