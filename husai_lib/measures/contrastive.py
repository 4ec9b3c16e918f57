"""CE-Bench: how clearly single latents separate two stories that differ in one concept (arXiv 2509.00691).

For a pair of stories, `V1` and `V2` are the token means of the latents over each story, `I` is the mean over both, and
`Ibar` is the mean of `I` over all pairs (as published) or 0 (as in the released code). With `z` the standardisation
over latents (n - 1), contrastive is `max z(|V1 - V2|)`, independence `max z(|I - Ibar|)` and interpretability `max z`
of their sum, each averaged over the pairs. As `max z <= (N - 1) / sqrt(N)` for N latents, scores of different widths
cannot be compared. The calibrated scores are in standard deviations of a null that deals the tokens of a pair at random
to the two stories.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from husai_lib.activations.banks import Bank
from husai_lib.errors import DataError
from husai_lib.evidence.cache import cached
from husai_lib.files import read_json, write_json
from husai_lib.params.benchmarks import ContrastiveParams
from husai_lib.randomness import numpy_generator
from husai_lib.saes.trained import TrainedSae
from husai_lib.tasks import Progress, run_tasks


@dataclass(frozen=True)
class ContrastiveScore:
    """CE-Bench scores of one SAE, averaged over the pairs; a `ContrastiveRow` explains them.

    Calibrated ones are None if the null does not vary. Independence has none, as dealing tokens leaves `I` unchanged.
    """

    contrastive: float
    independence: float
    interpretability: float
    independence_as_released: float
    interpretability_as_released: float
    calibrated_contrastive: float | None
    calibrated: float | None
    l0: float


def contrastive_scores(
    saes: Sequence[TrainedSae], stories: Bank, params: ContrastiveParams, progress: Progress | None = None
) -> list[ContrastiveScore]:
    """The scores of each SAE on `stories`, two texts a pair, cached by content; DataError if a story left no token."""
    about = {
        "stories": stories.sha256,
        "offsets": stories.offsets.tolist(),
        "params": params.model_dump(exclude={"study"}),
    }

    def score_of(trained: TrainedSae) -> ContrastiveScore:
        def make(folder: Path) -> None:
            write_json(folder / "score.json", asdict(score(trained.sae, stories, params)))

        entry = cached("contrastive", __name__, about | {"sae": trained.content}, make)
        return ContrastiveScore(**read_json(entry.path / "score.json"))

    return run_tasks(score_of, saes, "SAEs scored on stories", progress)


@torch.inference_mode()
def score(sae: Any, stories: Bank, params: ContrastiveParams) -> ContrastiveScore:
    """CE-Bench scores of any SAELens SAE; `stories` holds two texts a pair, story1 then story2.

    Every story is encoded twice, so that memory holds the latents of one pair at a time: first for `Ibar`, then for the
    scores. Raises DataError if a story left no token or a latent is not finite.
    """
    offsets, active = stories.offsets, 0
    if (empty := np.flatnonzero(np.diff(offsets) == 0)).size:
        raise DataError(
            f"story{empty[0] % 2 + 1} of pair {empty[0] // 2 + 1} has no token left after activations.skip_positions "
            "and max_norm_ratio; give longer stories"
        )
    pairs, mean_I = len(offsets) // 2, torch.zeros((), dtype=torch.float64)
    for pair in range(pairs):
        latents, firing = _encoded(sae, stories, pair)
        active += int(torch.count_nonzero(latents))
        of_pair = _mean_latents(latents, firing)
        if not of_pair.isfinite().all():
            raise DataError(f"a latent is NaN or infinite on the stories of pair {pair + 1}; check the SAE's weights")
        mean_I = mean_I + of_pair
    references = {"": mean_I / pairs, "_as_released": torch.zeros_like(mean_I)}
    calibrated_form = "" if params.independence == "as_published" else "_as_released"
    # every deal gives one average over the pairs, and the first deal is the stories as they are; sums are updated in
    # place, as small tensors allocated between large ones would keep the memory of these from being reused
    contrastive = torch.zeros(1 + params.permutations, dtype=torch.float64)
    interpretability = {form: torch.zeros_like(contrastive) for form in references}
    independence = {form: torch.zeros_like(contrastive[0]) for form in references}
    for pair in range(pairs):
        start, middle, end = offsets[2 * pair : 2 * pair + 3].tolist()
        latents, firing = _encoded(sae, stories, pair)
        generator = numpy_generator(params.seed, f"deal of the tokens of pair {pair}")
        deals = first_story_weights(middle - start, end - start, params.permutations, generator)
        difference = story_differences(latents, deals)  # of the latents that fire; those of the others are 0
        contrastive += max_z(difference, mean_I.new_zeros(len(firing) - difference.shape[1])) / pairs
        for form, reference in references.items():
            deviation = (_mean_latents(latents, firing) - reference).abs()
            dealt = difference if form == calibrated_form else difference[:1]
            independence[form] += max_z(deviation) / pairs
            interpretability[form] += max_z(dealt + deviation[firing], deviation[~firing]) / pairs
    return ContrastiveScore(
        contrastive=float(contrastive[0]),
        **{f"independence{form}": float(value) for form, value in independence.items()},
        **{f"interpretability{form}": float(values[0]) for form, values in interpretability.items()},
        calibrated_contrastive=_calibrated(contrastive),
        calibrated=_calibrated(interpretability[calibrated_form]),
        l0=active / int(offsets[-1]),
    )


def _encoded(sae: Any, stories: Bank, pair: int) -> tuple[Tensor, Tensor]:
    """The latents that fire on a pair of stories `[tokens, firing]`, float64, and which these are `[d_sae]`."""
    start, end = stories.offsets[2 * pair], stories.offsets[2 * pair + 2]
    rows = torch.from_numpy(np.array(stories.rows[start:end])).to(getattr(sae, "device", "cpu"))
    latents = sae.encode(rows).to_dense().float().cpu()
    firing = (latents != 0).any(0)
    firing[0] = True  # so that there is one
    return latents[:, firing].double(), firing


def _mean_latents(latents: Tensor, firing: Tensor) -> Tensor:
    """`I [d_sae]`, given only the latents that fire; exact in double precision where one never varies."""
    mean_of_all = torch.zeros(len(firing), dtype=latents.dtype)
    mean_of_all[firing] = latents.mean(0)
    return mean_of_all


def first_story_weights(first: int, total: int, permutations: int, generator: np.random.Generator) -> Tensor:
    """The tokens of the first story as bool `[1 + permutations, total]`: row 0 as it is, the others at random."""
    members = np.tile(np.arange(total) < first, (1 + permutations, 1))
    members[1:] = generator.permuted(members[1:], axis=1)
    return torch.from_numpy(members)


def story_differences(latents: Tensor, first: Tensor) -> Tensor:
    """`|V1 - V2| [deals, d_sae]` for latents `[tokens, d_sae]` and deals of their tokens `[deals, tokens]`."""
    in_first = first.sum(1, keepdim=True)
    sums = first.to(latents.dtype) @ latents
    return (sums / in_first - (latents.sum(0) - sums) / (first.shape[1] - in_first)).abs()


def max_z(u: Tensor, others: Tensor | None = None) -> Tensor:
    """The largest z score (n - 1) over the last axis, `u` completed by the values `others [n]`; 0 if all are equal."""
    u = u.double()  # squares of small float32 numbers underflow
    others = u.new_zeros(0) if others is None else others.double()
    count = u.shape[-1] + len(others)
    mean, lowest, highest = (u.sum(-1) + others.sum()) / count, u.amin(-1), u.amax(-1)
    squares = (u - mean[..., None]).square().sum(-1)
    if len(others):
        lowest, highest = lowest.clamp(max=others.min()), highest.clamp(min=others.max())
        squares += (others - others.mean()).square().sum() + len(others) * (others.mean() - mean).square()
    return torch.where(lowest < highest, (highest - mean) / (squares / (count - 1)).sqrt(), 0.0)


def _calibrated(scores: Tensor) -> float | None:
    """The first score in standard deviations of the others; None if these differ by rounding at most."""
    null = scores[1:]
    spread = null.std()
    return float((scores[0] - null.mean()) / spread) if spread > 1e-9 * null.abs().max() else None
