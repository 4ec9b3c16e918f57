"""The sweep of the consistency objective: alignment with references, checkpoints by validation metrics, acceptance.

And what the objective does where the features are known: agreement of seeds beside recovery of the truth. There,
activations are those of a `sae_lens.synthetic.SyntheticModel`, the world of SynthSAEBench: a few features fire often
and most rarely (Zipf), with varying strength, and their firing is correlated.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from sae_lens import synthetic
from torch import Tensor

from husai_lib.activations.banks import Bank
from husai_lib.activations.extraction import rows_bank
from husai_lib.evidence.rows.base import Row, RunTables
from husai_lib.evidence.rows.consistency import CheckpointRow, SweepRow, TruthRow, random_of
from husai_lib.evidence.rows.measured import PairRow
from husai_lib.evidence.rows.probes import mean_over_sets
from husai_lib.intervals import between_units, mean_over_pairs, mean_within_units
from husai_lib.measures.contrastive import contrastive_scores
from husai_lib.measures.evaluation import measure
from husai_lib.measures.matching import match, pair_rows, pairwise_pwmcc, random_decoders, stability_of
from husai_lib.params.benchmarks import ContrastiveParams
from husai_lib.params.conditions import Condition, ObjectiveParams
from husai_lib.params.consistency import KnownTruthParams
from husai_lib.saes.trained import TrainedSae
from husai_lib.saes.training import frozen_references, members, train_bank
from husai_lib.tasks import Progress

HOOK = "synthetic"
HELD_OUT = 4096


def random_pairs(saes: Sequence[TrainedSae], seeds: Sequence[int]) -> list[PairRow]:
    """PW-MCC of random decoders at the seeds of a sweep, for every shape of its SAEs: what acceptance compares with."""
    shapes = dict.fromkeys(tuple(trained.sae.W_dec.shape) for trained in saes)
    tables = {random_of(shape[0]): pairwise_pwmcc(random_decoders(shape, seeds)) for shape in shapes}
    return pair_rows(tables, seeds)


def checkpoint_rows(
    saes: Sequence[TrainedSae],
    banks: Mapping[str, Bank],
    contrastive: ContrastiveParams,
    *,
    tables: Mapping[str, Sequence[Row]],
    parameters: Mapping[str, Any],
    progress: Progress | None = None,
) -> list[CheckpointRow]:
    """Every SAE of a sweep by validation metrics, with its external score.

    `banks` holds the rows `training` that the SAEs were trained on, and `validation` and `validation_stories`, of texts
    that no test metric reads. `tables` are those of the step, for validation AUCs.
    """
    stories = contrastive_scores(saes, banks["validation_stories"], contrastive, progress)
    aligned = _alignments(saes, banks["training"])
    form = "" if contrastive.independence == "as_published" else "_as_released"
    found: list[CheckpointRow] = []
    run = RunTables({("consistency", name): own for name, own in tables.items()}, parameters)
    for trained, story, alignment in zip(saes, stories, aligned, strict=True):
        about = {"condition": trained.member.condition.name, "seed": trained.member.seed, "alignment": alignment}
        about |= {"cebench": getattr(story, f"interpretability{form}")}
        probes = run.rows("consistency", "probes", condition=about["condition"], seed=about["seed"])
        about |= {"saebench": mean_over_sets(probes, "validation_auc", "drop")}
        about |= {"ev": measure(trained.sae, banks["validation"]).explained_variance}
        found.append(CheckpointRow.derive("consistency", run, **about))
    compared = RunTables({**run.tables, ("consistency", "checkpoints"): found}, parameters)
    return [row.model_copy(update=row.derived("consistency", compared)) for row in found]


def sweep_rows(tables: Mapping[str, Sequence[Row]], parameters: Mapping[str, Any]) -> list[SweepRow]:
    """A row for every weight of the objective, from the other tables of the step."""
    run = RunTables({("consistency", name): rows for name, rows in tables.items()}, parameters)
    names = dict.fromkeys(row.condition for row in run.rows("consistency", "groups"))
    return [SweepRow.derive("consistency", run, condition=name) for name in names]


def _alignments(saes: Sequence[TrainedSae], rows: Bank) -> list[float | None]:
    """Mean |cosine| of each decoder with its partners in the reference, or in the other seeds of its bank."""
    references = frozen_references([trained.member for trained in saes], rows)
    found: list[float | None] = []
    for trained, reference in zip(saes, references, strict=True):
        own = trained.member.condition.name, trained.member.bank
        others = [one for one in saes if one != trained and (one.member.condition.name, one.member.bank) == own]
        bank = [reference] if reference else others if trained.member.bank else []
        means = [float(match(trained.sae.W_dec, one.sae.W_dec).cosines.mean()) for one in bank]
        found.append(sum(means) / len(means) if means else None)
    return found


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
        stability = stability_of(saes, held_out)
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
    config = synthetic.SyntheticModelConfig(
        num_features=params.features,
        hidden_dim=params.d_in,
        firing_probability=synthetic.ZipfianFiringProbabilityConfig(max_prob=min(0.9, 6 * rate), min_prob=rate / 2),
        correlation=synthetic.LowRankCorrelationConfig(rank=8, seed=seed),
        std_firing_magnitudes=0.3,
        seed=seed,
    )
    world = synthetic.SyntheticModel(config)
    with torch.random.fork_rng(devices=[]), torch.no_grad():  # it draws from torch's global generator
        torch.manual_seed(seed)
        drawn = world.sample(params.rows + HELD_OUT).float().numpy()
    return (
        world.feature_dict.feature_vectors.detach(),
        rows_bank(drawn[: params.rows], HOOK),
        rows_bank(drawn[params.rows :], HOOK),
    )
