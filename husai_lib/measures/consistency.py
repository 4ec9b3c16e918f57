"""The sweep of the consistency objective: alignment with references, checkpoints by validation metrics, acceptance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from husai_lib.activations.banks import Bank
from husai_lib.evidence.rows.base import Row, RunTables
from husai_lib.evidence.rows.consistency import CheckpointRow, SweepRow, random_of
from husai_lib.evidence.rows.measured import PairRow
from husai_lib.evidence.rows.probes import mean_over_sets
from husai_lib.measures.contrastive import contrastive_scores
from husai_lib.measures.evaluation import measure
from husai_lib.measures.matching import match, pair_rows, pairwise_pwmcc, random_decoders
from husai_lib.params.benchmarks import ContrastiveParams
from husai_lib.saes.trained import TrainedSae
from husai_lib.saes.training import frozen_references
from husai_lib.tasks import Progress


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
        bank = [reference] if reference else [one for one in saes if one != trained and _is_of_bank(one, trained)]
        means = [float(match(trained.sae.W_dec, one.sae.W_dec).cosines.mean()) for one in bank]
        found.append(sum(means) / len(means) if means else None)
    return found


def _is_of_bank(one: TrainedSae, other: TrainedSae) -> bool:
    own, its = one.member, other.member
    return bool(own.bank) and (own.condition.name, own.bank) == (its.condition.name, its.bank)
