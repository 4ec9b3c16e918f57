"""What the consistency objective does where the features are known: agreement of seeds beside recovery of the truth.

Activations are those of a `sae_lens.synthetic.SyntheticModel`, the world of SynthSAEBench: a few features fire often
and most rarely (Zipf), with varying strength, and their firing is correlated.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch
from sae_lens.synthetic import (
    LowRankCorrelationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
)
from torch import Tensor

from husai_lib.activations.banks import Bank
from husai_lib.activations.extraction import rows_bank
from husai_lib.evidence.rows.base import RunTables
from husai_lib.evidence.rows.consistency import TruthRow
from husai_lib.intervals import between_units, mean_over_pairs, mean_within_units
from husai_lib.measures.agreement import behaviour
from husai_lib.measures.evaluation import measure
from husai_lib.measures.matching import group_stability, match
from husai_lib.params.conditions import Condition, ObjectiveParams
from husai_lib.params.consistency import KnownTruthParams
from husai_lib.saes.training import members, train_bank
from husai_lib.tasks import Progress

HOOK = "synthetic"
HELD_OUT = 4096


def known_truth(params: KnownTruthParams, lambdas: Sequence[float], progress: Progress | None = None) -> list[TruthRow]:
    """TopK SAEs of synthetic activations at each weight of the objective, over seeds dealt to two references."""
    features, rows, held_out = synthetic_world(params)
    references = [max(params.seeds) + 1, max(params.seeds) + 2]
    found = []
    for weight in lambdas:
        objective = ObjectiveParams.model_validate({"lambda": weight, "references": references}) if weight else None
        condition = Condition(
            name="topk", architecture="topk", hyperparameters={}, d_sae=params.features, k=params.active,
            training_samples=params.training_samples, batch_size=512, learning_rate=3e-3, consistency=objective,
        )  # fmt: skip
        saes = train_bank(members([condition], params.seeds), rows, progress=progress)
        stability = group_stability(
            [one.sae.W_dec for one in saes],
            [one.sae.W_enc for one in saes],
            [behaviour(one.sae, held_out) for one in saes],
        )
        units = [one.member.unit for one in saes]
        row = TruthRow.derive(
            "consistency",
            RunTables({}, {}),
            weight=weight,
            recovery=fmean(float(match(features, one.sae.W_dec).cosines.mean()) for one in saes),
            pwmcc=mean_over_pairs(between_units(stability.pwmcc, units)),
            pwmcc_within=mean_within_units(stability.pwmcc, units),
            functional_agreement=mean_over_pairs(between_units(stability.functional_agreement, units)),
            explained_variance=fmean(measure(one.sae, held_out).explained_variance for one in saes),
        )
        found.append(row)
    return found


def synthetic_world(params: KnownTruthParams, seed: int = 0) -> tuple[Tensor, Bank, Bank]:
    """The true features `[features, d_in]`, and activations that consist of them: training and held-out rows."""
    # Zipf's law with these ends: the mean probability is about active / features
    rate = params.active / params.features
    world = SyntheticModel(
        SyntheticModelConfig(
            num_features=params.features,
            hidden_dim=params.d_in,
            firing_probability=ZipfianFiringProbabilityConfig(max_prob=min(0.9, 6 * rate), min_prob=rate / 2),
            correlation=LowRankCorrelationConfig(rank=8, seed=seed),
            std_firing_magnitudes=0.3,
            seed=seed,
        )
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():  # it draws from torch's global generator
        torch.manual_seed(seed)
        drawn = world.sample(params.rows + HELD_OUT).float().numpy()
    return (
        world.feature_dict.feature_vectors.detach(),
        rows_bank(drawn[: params.rows], HOOK),
        rows_bank(drawn[params.rows :], HOOK),
    )
