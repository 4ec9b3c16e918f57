"""How CE-Bench scores depend on width and L0 alone: random and trained TopK SAEs over a grid of both."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence

from sae_lens import TopKSAE, TopKSAEConfig
from torch import Tensor

from husai_lib.activations.banks import Bank
from husai_lib.evidence.rows import ContrastiveRow, RunTables
from husai_lib.measures.contrastive import ContrastiveScore, cached_score, contrastive_scores
from husai_lib.measures.matching import random_decoders
from husai_lib.params.benchmarks import ContrastiveParams
from husai_lib.params.conditions import Condition, SaeParams
from husai_lib.saes.training import members, train_bank
from husai_lib.tasks import Progress, run_tasks


def width_study(
    params: ContrastiveParams,
    sae_params: SaeParams,
    seed: int,
    banks: Mapping[str, Bank],
    progress: Progress | None = None,
) -> list[ContrastiveRow]:
    """Scores of random and of trained TopK SAEs on the bank `stories`, a row for each width and k of `params`.

    Trained ones are the candidates' TopK recipe at another width and k, trained on the bank `training`; random ones are
    what this training starts from.
    """
    study, training, stories = params.study, banks["training"], banks["stories"]
    bias = training.mean().float()

    def score_random(shape: tuple[int, int]) -> ContrastiveScore:
        sae = random_topk(*shape, seed, bias)
        weights = [hashlib.sha256(part.detach().numpy().tobytes()).hexdigest() for part in (sae.W_dec, bias)]
        return cached_score({"random_topk": shape[1], "weights": weights}, lambda: sae, stories, params)

    shapes = _longest_first([*study.widths, *study.random_widths], study.ks)
    random = run_tasks(score_random, shapes, "random SAEs scored on stories", progress)
    learned = _longest_first(study.widths, study.ks)
    shared = sae_params.model_dump(exclude={"d_sae", "k"})
    conditions = [Condition(name="topk", architecture="topk", d_sae=d_sae, k=k, **shared) for d_sae, k in learned]
    saes = train_bank(members(conditions, [seed]), training, progress=progress)
    trained = contrastive_scores(saes, stories, params, progress)
    rows = _rows("random", shapes, random, seed) + _rows("trained", learned, trained, seed)
    return sorted(rows, key=lambda row: (row.origin, row.d_sae, row.k))


def random_topk(d_sae: int, k: int, seed: int, bias: Tensor) -> TopKSAE:
    """A SAELens TopK SAE with random unit decoder rows, their transpose as encoder, and `bias [d_in]`."""
    sae = TopKSAE(TopKSAEConfig(d_in=len(bias), d_sae=d_sae, k=k, apply_b_dec_to_input=True))
    [rows] = random_decoders((d_sae, len(bias)), [seed])
    sae.load_state_dict({"W_dec": rows, "W_enc": rows.T.contiguous(), "b_dec": bias, "b_enc": rows.new_zeros(d_sae)})
    return sae.eval()


def _longest_first(widths: Sequence[int], ks: Sequence[int]) -> list[tuple[int, int]]:
    """Every width and k; those that take longest come first."""
    return sorted(itertools.product(widths, ks), reverse=True)


def _rows(
    origin: str, shapes: Sequence[tuple[int, int]], scores: Sequence[ContrastiveScore], seed: int
) -> list[ContrastiveRow]:
    return [
        ContrastiveRow.derive(
            "baselines",
            RunTables({}, {}),
            origin=origin,
            seed=seed,
            d_sae=d_sae,
            k=k,
            l0=found.l0,
            contrastive=found.contrastive,
            independence=found.independence_as_published,
            interpretability=found.interpretability_as_published,
            independence_as_released=found.independence_as_released,
            interpretability_as_released=found.interpretability_as_released,
            calibrated_contrastive=found.calibrated_contrastive,
            calibrated=found.calibrated_interpretability,
        )
        for (d_sae, k), found in zip(shapes, scores, strict=True)
    ]
