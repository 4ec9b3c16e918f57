"""Stress controls on the candidate's own model, hook, width, k and seeds: what a lesser thing would score."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from husai_lib.activations import Bank, text_bank
from husai_lib.errors import DataError
from husai_lib.evidence import Record
from husai_lib.intervals import Interval, mean_interval
from husai_lib.language_model import open_model
from husai_lib.matching import Pairs, mean_over_pairs, pairwise_pwmcc, pwmcc_difference
from husai_lib.params import ActivationParams, Condition, ModelParams, TextParams
from husai_lib.probing import ProbeScore, ProbeTask
from husai_lib.records import ControlRow, OodRow
from husai_lib.stack import Member
from husai_lib.tasks import Progress, device
from husai_lib.texts import drawn_texts
from husai_lib.training import TrainedSae, open_trained


def candidate_saes(frontier: Record, selected: dict[str, Any] | None) -> list[TrainedSae]:
    """The selected condition's SAEs at all their seeds, weights verified; none without a selection.

    Raises DataError if the selection is of another record than `frontier`, and IntegrityError for
    weights that are not those of the record.
    """
    if not selected:
        return []
    conditions = {given["name"]: Condition(**given) for given in frontier.data["parameters"]["conditions"]}
    rows = [row for row in frontier.table("members") if row.condition == selected["condition"]]
    if selected["weights_sha256"] not in [row.weights_sha256 for row in rows]:
        raise DataError(
            f"the selected {selected['source']}/{selected['condition']} has no such weights in the record of frontier; "
            "stress a candidate in the run that trained it"
        )
    return [open_trained(Member(conditions[row.condition], row.seed), row.key, row.weights_sha256) for row in rows]


def random_model_bank(
    model: ModelParams, texts: TextParams, params: ActivationParams, progress: Progress | None = None
) -> Bank:
    """The cycle's training rows, read from the same architecture with re-initialised weights."""
    name = model.name if model.name.startswith("random:") else f"random:{model.name}"
    # a smoke cycle's model is random itself, so the control takes other random weights
    untrained = open_model(model.model_copy(update={"name": name, "seed": model.seed + 1}), device())
    drawn = drawn_texts(texts.training, params.seed)
    return text_bank(untrained, drawn, params, [params.hook_name], params.training_rows, progress=progress)


def transcoder_of(condition: Condition) -> Condition:
    """A TopK transcoder with the width, k and training of a condition."""
    shared = condition.model_dump(exclude={"name", "architecture", "hyperparameters", "match_l0", "aligned"})
    name = "topk_transcoder"
    return Condition(**shared, name="transcoder", architecture=name, hyperparameters={})


def decoder_pairs(saes: Sequence[TrainedSae]) -> Pairs:
    """PW-MCC of every pair of the SAEs' decoders, `[S, S]`."""
    return pairwise_pwmcc([trained.sae.W_dec.detach() for trained in saes])


def pwmcc_control(control: str, candidate: Pairs, other: Pairs) -> ControlRow:
    """PW-MCC of the candidate minus that of a control over the same seeds; for the transcoder the reverse.

    The interval leaves the same seed out of both.
    """
    delta = pwmcc_difference(*((other, candidate) if control == "transcoder" else (candidate, other)))
    return _row(control, "pwmcc", mean_over_pairs(candidate), mean_over_pairs(other), delta)


def ood_rows(
    seeds: Sequence[int], tasks: Sequence[ProbeTask], scores: Sequence[Sequence[ProbeScore]], llm: Sequence[ProbeScore]
) -> list[OodRow]:
    """Probes fitted in domain, in and out of domain: a row for each seed and task.

    The drop is what the SAE loses beyond what the raw activation loses under the same shift.
    """
    rows = []
    for seed, seed_scores in zip(seeds, scores, strict=True):
        for task, score, base in zip(tasks, seed_scores, llm, strict=True):
            assert score.shifted_auc is not None
            assert base.shifted_auc is not None
            rows.append(
                OodRow(
                    task=task.data.name,
                    seed=seed,
                    best_k=score.k,
                    in_domain_auc=score.test_auc,
                    in_domain_llm_auc=base.test_auc,
                    shifted_auc=score.shifted_auc,
                    shifted_llm_auc=base.shifted_auc,
                    drop=(score.test_auc - base.test_auc) - (score.shifted_auc - base.shifted_auc),
                )
            )
    return rows


def ood_control(rows: Sequence[OodRow]) -> ControlRow:
    """`ood_drop`: delta in domain minus delta out of domain over the same tasks, its interval over seeds."""
    seeds = sorted({row.seed for row in rows})
    by_seed = [[row for row in rows if row.seed == seed] for seed in seeds]
    inside = fmean(row.in_domain_auc - row.in_domain_llm_auc for row in rows)
    outside = fmean(row.shifted_auc - row.shifted_llm_auc for row in rows)
    drop = mean_interval([fmean(row.drop for row in group) for group in by_seed])
    return _row("ood", "saebench_delta", inside, outside, drop)


def _row(control: str, metric: str, candidate: float, other: float, delta: Interval) -> ControlRow:
    return ControlRow(
        control=control,
        metric=metric,
        candidate=candidate,
        control_value=other,
        delta=delta.mean,
        delta_low=delta.low,
        delta_high=delta.high,
        note="" if delta.low is not None else "too few seeds for an interval",
    )
