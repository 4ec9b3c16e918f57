"""Evaluation of trained SAEs: reconstruction, both benchmarks and stability, as rows of a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from husai_lib.activations.banks import Bank
from husai_lib.evidence.rows import GroupRow, MemberRow, PairRow, ProbeRow, ceiling, is_matched
from husai_lib.intervals import Pairs, mean_interval, mean_over_pairs, means_by, pwmcc_interval
from husai_lib.measures.contrastive import ContrastiveScore, contrastive_scores
from husai_lib.measures.matching import Stability, group_stability, pair_rows, pairwise_pwmcc, random_decoders
from husai_lib.measures.probing import ProbeTask, llm_scores, probe_rows, sae_scores
from husai_lib.params.benchmarks import ContrastiveParams, ProbingParams
from husai_lib.saes.trained import TrainedSae
from husai_lib.tasks import Progress


@dataclass(frozen=True)
class Reconstruction:
    """How well an SAE reconstructs held-out rows, and how sparsely."""

    explained_variance: float
    l0: float
    dead_fraction: float


@dataclass(frozen=True)
class Benches:
    """What every SAE of a cycle is measured on."""

    held_out: Bank
    stories: Bank
    tasks: Sequence[ProbeTask]
    probing: ProbingParams
    contrastive: ContrastiveParams


@torch.inference_mode()
def measure(sae: Any, held_out: Bank, target: Bank | None = None) -> Reconstruction:
    """Reconstruction of held-out rows by the SAE's own encoder and decoder, a chunk at a time.

    Explained variance is `1 - sum |y - y^|^2 / sum |y - mean y|^2`; L0 is the mean count of non-zero latents per row; a
    latent is dead if it never fires on these rows. An SAE that reconstructs a part of a row has the method `target_of`,
    which returns this part.
    """
    outputs, target_of = target or held_out, getattr(sae, "target_of", lambda rows: rows)
    total = sum((target_of(rows).double().sum(0) for rows in outputs.chunks(2048)), torch.zeros(1))
    mean = (total / len(outputs.rows)).float()
    error = variance = active = 0.0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    for x, y in zip(held_out.chunks(2048), map(target_of, outputs.chunks(2048)), strict=True):
        latents = sae.encode(x)
        reconstruction = sae(x) if hasattr(sae, "W_skip") else sae.decode(latents)
        error += float((reconstruction - y).double().square().sum())
        variance += float((y - mean).double().square().sum())
        active += float((latents != 0).sum())
        fired |= (latents != 0).any(0)
    return Reconstruction(1 - error / variance, active / len(held_out.rows), 1 - float(fired.double().mean()))


def member_rows(
    saes: Sequence[TrainedSae], benches: Benches, baseline: Sequence[MemberRow], progress: Progress | None = None
) -> tuple[list[MemberRow], list[ProbeRow]]:
    """Every measurement of every SAE, and its probes data set by data set.

    The CE-Bench delta is taken against the row of `baseline` with the same width, k and seed, or against a given SAE
    that is matched. It is null without either, as scores of other widths and sparsities cannot be compared.
    """
    llm = llm_scores(benches.tasks, benches.probing, progress)
    probed = sae_scores(saes, benches.tasks, benches.probing, progress)
    contrastive = contrastive_scores(saes, benches.stories, benches.contrastive, progress)
    rows, probes = [], []
    for trained, scores, story in zip(saes, probed, contrastive, strict=True):
        condition, seed = trained.member.condition, trained.member.seed
        own = probe_rows(condition.name, seed, benches.tasks, scores, llm)
        shape = condition.d_sae, condition.k, seed
        reference = next((row.cebench_interpretability for row in baseline if row.is_baseline_of(*shape)), None)
        notes = {
            trained.note: True,
            "no CE-Bench delta: no baseline has this width, k and seed": reference is None and bool(baseline),
            "CE-Bench deltas are measured against this baseline": not baseline and not trained.note,
            "no calibrated CE-Bench score: its null does not vary": story.calibrated_interpretability is None,
            "each best k was chosen on the test set": benches.probing.choose_k == "test",
        }
        note = "; ".join(note for note, applies in notes.items() if note and applies)
        rows.append(_member_row(trained, own, story, measure(trained.sae, benches.held_out), reference, note=note))
        probes += own
    return rows, probes


def _member_row(
    trained: TrainedSae,
    probes: Sequence[ProbeRow],
    story: ContrastiveScore,
    quality: Reconstruction,
    reference: float | None,
    *,
    note: str,
) -> MemberRow:
    """`reference` is the CE-Bench interpretability that the delta is taken over."""
    condition = trained.member.condition
    return MemberRow(
        condition=condition.name,
        architecture=condition.architecture,
        seed=trained.member.seed,
        d_sae=condition.d_sae,
        k=condition.k,
        explained_variance=quality.explained_variance,
        l0=quality.l0,
        l0_matched=is_matched(quality.l0, condition.k),
        dead_fraction=quality.dead_fraction,
        saebench_auc=fmean(means_by((row.data_set, row.test_auc) for row in probes).values()),
        saebench_delta=fmean(means_by((row.data_set, row.delta) for row in probes).values()),
        cebench_contrastive=story.contrastive,
        cebench_independence=story.independence,
        cebench_interpretability=story.interpretability,
        cebench_calibrated_contrastive=story.calibrated_contrastive,
        cebench_calibrated=story.calibrated_interpretability,
        cebench_delta=None if reference is None else story.interpretability - reference,
        cebench_ceiling=ceiling(condition.d_sae),
        key=trained.entry.key,
        weights_sha256=trained.weights_sha256,
        note=note,
    )


def group_rows(
    saes: Sequence[TrainedSae], gaussian: Sequence[TrainedSae], probes: Sequence[ProbeRow]
) -> tuple[list[GroupRow], list[PairRow]]:
    """The stability of each condition across seeds beside two nulls, and its SAEBench delta over data sets.

    The nulls are random decoders of the same shape, and `gaussian`: the same recipes trained on Gaussian activations.
    The pairs of seeds, from whose PW-MCC that of a group follows, are rows of their own.
    """
    groups, pairs = [], []
    for own, null in zip(by_condition(saes), by_condition(gaussian), strict=True):
        found = group_stability([trained.sae.W_dec for trained in own], [trained.sae.W_enc for trained in own])
        groups.append(_group_row(own, null, found, probes))
        pairs += pair_rows({groups[-1].condition: found.pwmcc}, [trained.member.seed for trained in own])
    return groups, pairs


def _group_row(
    saes: Sequence[TrainedSae], gaussian: Sequence[TrainedSae], found: Stability, probes: Sequence[ProbeRow]
) -> GroupRow:
    condition, shape = saes[0].member.condition, tuple(saes[0].sae.W_dec.shape)
    random = random_decoders(shape, [trained.member.seed for trained in saes])
    null, pwmcc = mean_over_pairs(decoder_pairs(gaussian)), pwmcc_interval(found.pwmcc)
    by_set = means_by((row.data_set, row.delta) for row in probes if row.condition == condition.name)
    saebench = mean_interval(list(by_set.values()))
    return GroupRow(
        condition=condition.name,
        architecture=condition.architecture,
        n_seeds=len(saes),
        pwmcc=pwmcc.mean,
        pwmcc_low=pwmcc.low,
        pwmcc_high=pwmcc.high,
        pwmcc_max=mean_over_pairs(found.pwmcc_max),
        null_random=mean_over_pairs(pairwise_pwmcc(random)),
        null_gaussian=null,
        pwmcc_corrected=(pwmcc.mean - null) / (1 - null),
        encoder_mcc=mean_over_pairs(found.encoder_mcc),
        reappearing_fraction=mean_over_pairs(found.reappearing),
        subspace_overlap=mean_over_pairs(found.subspace_overlap),
        saebench_delta=saebench.mean,
        sets_low=saebench.low,
        sets_high=saebench.high,
        note="" if pwmcc.low is not None else "too few seeds for an interval",
    )


def decoder_pairs(saes: Sequence[TrainedSae]) -> Pairs:
    """PW-MCC of every pair of the SAEs' decoders, `[S, S]`."""
    return pairwise_pwmcc([trained.sae.W_dec for trained in saes])


def by_condition(saes: Sequence[TrainedSae]) -> list[list[TrainedSae]]:
    """The SAEs of each condition together, in the order in which conditions first appear."""
    names = dict.fromkeys(trained.member.condition.name for trained in saes)
    return [[trained for trained in saes if trained.member.condition.name == name] for name in names]
