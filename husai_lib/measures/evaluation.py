"""Evaluation of trained SAEs: reconstruction, both benchmarks and stability, as rows of a record."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from husai_lib.activations.banks import Bank
from husai_lib.evidence.rows.base import RunTables, noted
from husai_lib.evidence.rows.measured import WITH_BASELINES, GroupRow, MemberRow, PairRow
from husai_lib.evidence.rows.probes import CeilingRow, ProbeRow
from husai_lib.intervals import Pairs, between_units, mean_over_pairs
from husai_lib.measures.ceilings import ceiling_rows
from husai_lib.measures.contrastive import contrastive_scores
from husai_lib.measures.matching import pair_rows, pairwise_pwmcc, random_decoders, stability_of
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
    mean = (total / outputs.shape[0]).float()
    error = variance = active = 0.0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    for x, y in zip(held_out.chunks(2048), map(target_of, outputs.chunks(2048)), strict=True):
        latents = sae.encode(x)
        reconstruction = sae(x) if hasattr(sae, "W_skip") else sae.decode(latents)
        error += float((reconstruction - y).double().square().sum())
        variance += float((y - mean).double().square().sum())
        active += float((latents != 0).sum())
        fired |= (latents != 0).any(0)
    return Reconstruction(1 - error / variance, active / held_out.shape[0], 1 - float(fired.double().mean()))


def member_rows(
    saes: Sequence[TrainedSae],
    benches: Benches,
    step: str,
    baselines: Sequence[MemberRow] = (),
    progress: Progress | None = None,
) -> tuple[list[MemberRow], list[ProbeRow], list[CeilingRow]]:
    """Every measurement of every SAE, its probes and their ceilings data set by data set, as rows of the step's record.

    The CE-Bench deltas are taken against the row of `baselines` with the same width, k and seed, or against a given SAE
    that is matched. They are null without either, as scores of other widths and sparsities cannot be compared.
    """
    tasks, probing = benches.tasks, benches.probing
    llm = llm_scores(tasks, probing, progress)
    probes = probe_rows(saes, tasks, sae_scores(saes, tasks, probing, progress), llm, probing.seed)
    ceilings = ceiling_rows(saes, tasks, llm, probing, progress)
    stories = contrastive_scores(saes, benches.stories, benches.contrastive, progress)
    of_baselines = step if step in WITH_BASELINES else "baselines"
    tables = {(step, "probes"): probes, (of_baselines, "members"): baselines}
    run = RunTables(tables, {"probing": probing.model_dump()})
    form = "" if benches.contrastive.independence == "as_published" else "_as_released"
    rows = []
    for trained, story in zip(saes, stories, strict=True):
        condition = trained.member.condition
        remarks = {  # they are the note of a given SAE; a trained one's is derived
            trained.note: True,
            "no calibrated CE-Bench score: its null does not vary": story.calibrated is None,
            "each best k was chosen on the test set": probing.choose_k == "test",
        }
        row = MemberRow.derive(
            step,
            run,
            condition=condition.name,
            seed=trained.member.seed,
            reference=trained.member.reference,
            **condition.model_dump(include={"architecture", "d_sae", "k"}),
            **asdict(measure(trained.sae, benches.held_out)),
            cebench_contrastive=story.contrastive,
            cebench_independence=getattr(story, f"independence{form}"),
            cebench_interpretability=getattr(story, f"interpretability{form}"),
            cebench_calibrated_contrastive=story.calibrated_contrastive,
            cebench_calibrated=story.calibrated,
            key=trained.entry.key,
            weights_sha256=trained.weights_sha256,
            note=noted(remarks),
        )
        rows.append(row)
    return rows, probes, ceilings


def group_rows(
    saes: Sequence[TrainedSae],
    gaussian: Sequence[TrainedSae],
    members: Sequence[MemberRow],
    probes: Sequence[ProbeRow],
    ceilings: Sequence[CeilingRow],
    *,
    held_out: Bank,
    step: str,
) -> tuple[list[GroupRow], list[PairRow]]:
    """The stability of each condition across seeds beside two nulls, and its SAEBench delta with its ceilings.

    The nulls are random decoders of the same shape, and `gaussian`: the same recipes trained on Gaussian activations,
    perhaps at fewer seeds. The other tables are those of `member_rows` without baselines, for the record of `step`. The
    pairs of seeds, from whose PW-MCC that of a group follows, are rows of their own. Functional agreement is measured
    on `held_out`. Means are over pairs of unrelated seeds, or over all where none are.
    """
    groups: list[GroupRow] = []
    pairs: list[PairRow] = []
    tables = {"members": members, "probes": probes, "ceilings": ceilings, "pairs": pairs}
    run = RunTables({(step, name): rows for name, rows in tables.items()}, {})
    for name in dict.fromkeys(trained.member.condition.name for trained in saes):
        own, null = ([one for one in group if one.member.condition.name == name] for group in (saes, gaussian))
        seeds = [trained.member.seed for trained in own]
        found = stability_of(own, held_out)
        pairs += pair_rows({name: found.pwmcc}, seeds)
        random = pairwise_pwmcc(random_decoders(tuple(own[0].sae.W_dec.shape), seeds))
        means = {column: _mean_unrelated(values, own) for column, values in vars(found).items()}
        means |= {
            "null_random": mean_over_pairs(random) if len(seeds) > 1 else None,
            "null_gaussian": _mean_unrelated(decoder_pairs(null), null),
        }
        groups.append(GroupRow.derive(step, run, condition=name, **means))
    return groups, pairs


def _mean_unrelated(values: Pairs, saes: Sequence[TrainedSae]) -> float | None:
    """The mean over pairs of unrelated seeds; over all pairs where all seeds are related. A single seed has none."""
    if len(saes) < 2:
        return None
    units = [one.member.unit for one in saes]
    return mean_over_pairs(between_units(values, units) if len(set(units)) > 1 else values)


def decoder_pairs(saes: Sequence[TrainedSae]) -> Pairs:
    """PW-MCC of every pair of the SAEs' decoders, `[S, S]`."""
    return pairwise_pwmcc([trained.sae.W_dec for trained in saes])
