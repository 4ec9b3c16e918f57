"""Stress controls: what weaker comparisons score with the candidate's own model, hook, width, k and seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import torch

from husai_lib.activations.banks import Bank
from husai_lib.activations.extraction import text_bank
from husai_lib.activations.language_model import open_model
from husai_lib.activations.texts import drawn_texts
from husai_lib.errors import DataError
from husai_lib.evidence.rows import CONTROLS, ControlRow, ControlSaeRow, OodRow, group_sha256, is_matched
from husai_lib.evidence.runs import Record
from husai_lib.intervals import Interval, Pairs, mean_interval, mean_over_pairs, means_by, pwmcc_difference
from husai_lib.measures.evaluation import decoder_pairs
from husai_lib.measures.probing import ProbeScore, ProbeTask
from husai_lib.params.benchmarks import ProbingParams, StressParams
from husai_lib.params.conditions import Condition
from husai_lib.params.inputs import ActivationParams, ModelParams, TextParams
from husai_lib.saes.trained import Member, TrainedSae, open_trained
from husai_lib.tasks import Progress, device


@dataclass(frozen=True)
class Candidate:
    """The SAEs of the selected condition, one a seed."""

    saes: Sequence[TrainedSae]
    why_none: str = "no candidate was selected"
    """The reason, if there are none."""

    @property
    def condition(self) -> Condition:
        """The condition of all its SAEs."""
        return self.saes[0].member.condition

    @property
    def seeds(self) -> list[int]:
        """The seed of each SAE; those of controls are the same."""
        return [trained.member.seed for trained in self.saes]

    @property
    def sha256(self) -> str:
        """One hash of the weights of all its SAEs; every control carries it."""
        return group_sha256((trained.member.seed, trained.weights_sha256) for trained in self.saes)

    @cached_property
    def pairs(self) -> Pairs:
        """PW-MCC of every pair of its SAEs, `[S, S]`."""
        return decoder_pairs(self.saes)


def open_candidate(selected: dict[str, Any] | None, read: Callable[[str], Record]) -> Candidate:
    """The SAEs of the selected condition at all seeds, weights verified; none without a selection or of an import.

    `read` returns the record that the selection names as its source. Raises DataError if that record lacks the selected
    weights, IntegrityError if the weights in the cache are not those of the record.
    """
    if not selected:
        return Candidate([])
    source, name = selected["source"], selected["condition"]
    frontier = read(source)
    if "conditions" not in frontier.data["parameters"]:
        return Candidate([], f"the candidate is of {source}, an import without weights")
    if differing := _trained_on_other(source, read):
        return Candidate([], f"the candidate of {source} was trained on other {differing} than this run's")
    rows = [row for row in frontier.table("members") if row.condition == name]
    if selected["weights_sha256"] not in [row.weights_sha256 for row in rows]:
        remedy = "stress a candidate in the run that trained it"
        raise DataError(f"the selected {source}/{name} has no such weights in the record of frontier; {remedy}")
    [condition] = [Condition(**one) for one in frontier.data["parameters"]["conditions"] if one["name"] == name]
    return Candidate([open_trained(Member(condition, row.seed), row.key, row.weights_sha256) for row in rows])


def _trained_on_other(source: str, read: Callable[[str], Record]) -> str:
    """What determines the training rows and differs in the run of a source, as controls need the same; or ''."""
    run = source.rpartition("/")[0]
    if not run:
        return ""
    theirs, ours = (read(name).data["parameters"] for name in (f"{run}/activations", "activations"))
    for what in ("model", "activations"):
        if theirs[what] != ours[what]:
            return what
    return "training texts" if theirs["texts"]["training"] != ours["texts"]["training"] else ""


def random_model_bank(
    model: ModelParams, texts: TextParams, params: ActivationParams, progress: Progress | None = None
) -> Bank:
    """The cycle's training rows, read from the same architecture with re-initialised weights."""
    name = model.name if model.name.startswith("random:") else f"random:{model.name}"
    # the model of a smoke cycle is random itself, so the control uses other random weights
    untrained = open_model(model.model_copy(update={"name": name, "seed": model.seed + 1}), device())
    drawn = drawn_texts(texts.training, params.seed)
    return text_bank(untrained, drawn, params, [params.hook_name], params.training_rows, progress=progress)


def transcoder_of(condition: Condition) -> Condition:
    """A TopK transcoder with the width, k and training of a condition."""
    shared = condition.model_dump(exclude={"name", "architecture", "hyperparameters", "match_l0", "aligned"})
    name = "topk_transcoder"
    return Condition(**shared, name="transcoder", architecture=name, hyperparameters={})


@torch.no_grad()
def control_sae_rows(control: str, saes: Sequence[TrainedSae], rows: Bank) -> list[ControlSaeRow]:
    """The SAEs trained for a control, as rows of a record; `rows` is the bank that they read."""
    first = next(rows.chunks())
    found = []
    for trained in saes:
        condition = trained.member.condition
        l0 = float((trained.sae.encode(first) != 0).sum(1).double().mean())
        found.append(
            ControlSaeRow(
                control=control,
                architecture=condition.architecture,
                seed=trained.member.seed,
                d_sae=condition.d_sae,
                k=condition.k,
                l0=l0,
                l0_matched=is_matched(l0, condition.k),
                key=trained.entry.key,
                weights_sha256=trained.weights_sha256,
            )
        )
    return found


def pwmcc_control(
    control: str, candidate: Candidate, other: Pairs, saes: Iterable[ControlSaeRow] = (), hook_name: str = ""
) -> ControlRow:
    """PW-MCC of the candidate minus that of a control over the same seeds; for the transcoder the reverse.

    The interval leaves the same seed out of both. The note names those of `saes`, trained for the control, whose L0 is
    not matched, and a transcoder whose candidate reads several layers joined in `hook_name`.
    """
    pairs = (other, candidate.pairs) if control == "transcoder" else (candidate.pairs, other)
    off = [f"{row.l0:.1f} at seed {row.seed}" for row in saes if not row.l0_matched]
    notes = [f"the control's L0 is more than 10 % off k = {candidate.condition.k}: {', '.join(off)}"] if off else []
    if control == "transcoder" and "+" in hook_name:
        notes.append("the transcoder is at the last of the joined layers only")
    values = mean_over_pairs(candidate.pairs), mean_over_pairs(other)
    return _row(control, values, pwmcc_difference(*pairs), candidate.sha256, notes)


def ood_rows(
    candidate: Candidate, tasks: Sequence[ProbeTask], scores: Sequence[Sequence[ProbeScore]], llm: Sequence[ProbeScore]
) -> list[OodRow]:
    """Probes fitted in domain, in and out of domain: a row for each seed and task; `scores` is `[seeds][tasks]`.

    The drop is what the SAE loses beyond what the raw activation loses under the same shift.
    """
    rows = []
    for trained, seed_scores in zip(candidate.saes, scores, strict=True):
        for task, score, base in zip(tasks, seed_scores, llm, strict=True):
            assert score.shifted_auc is not None
            assert base.shifted_auc is not None
            rows.append(
                OodRow(
                    task=task.data.name,
                    seed=trained.member.seed,
                    best_k=score.k,
                    in_domain_auc=score.test_auc,
                    in_domain_llm_auc=base.test_auc,
                    shifted_auc=score.shifted_auc,
                    shifted_llm_auc=base.shifted_auc,
                    drop=(score.test_auc - base.test_auc) - (score.shifted_auc - base.shifted_auc),
                    weights_sha256=trained.weights_sha256,
                )
            )
    return rows


def ood_control(rows: Sequence[OodRow], params: ProbingParams) -> ControlRow:
    """`ood_drop`: delta in domain minus delta out of domain over the same tasks.

    Its interval is over seeds, each averaged over the tasks; a second one is over tasks, each averaged over the seeds.
    """
    inside = fmean(row.in_domain_auc - row.in_domain_llm_auc for row in rows)
    outside = fmean(row.shifted_auc - row.shifted_llm_auc for row in rows)
    by_seed, by_task = _drop(rows, "seed"), _drop(rows, "task")
    weights = group_sha256({(row.seed, row.weights_sha256) for row in rows})
    notes = ["each best k was chosen on the test set"] if params.choose_k == "test" else []
    row = _row("ood", (inside, outside), by_seed, weights, notes)
    return row.model_copy(update={"tasks_low": by_task.low, "tasks_high": by_task.high})


def not_run(candidate: Candidate, rows: Sequence[ControlRow], params: StressParams) -> list[ControlRow]:
    """A row without values for every control that is not among `rows`; its note says why."""
    values = dict.fromkeys(("candidate", "control_value", "delta", "delta_low", "delta_high"))
    missing = []
    for name in [name for name in CONTROLS if name not in {row.control for row in rows}]:
        switch = "random_model" if name == "random_decoder" else name
        why = "the control was not run" if getattr(params, switch) else f"switched off by stress.{switch}: false"
        note = why if candidate.saes else candidate.why_none
        missing.append(
            ControlRow(control=name, metric=_metric(name), **values, candidate_sha256=candidate.sha256, note=note)
        )
    return missing


def _drop(rows: Sequence[OodRow], column: str) -> Interval:
    """The mean drop with its t interval over the values of a column, `seed` or `task`."""
    return mean_interval(list(means_by((getattr(row, column), row.drop) for row in rows).values()))


def _metric(control: str) -> str:
    return "saebench_delta" if control == "ood" else "pwmcc"


def _row(
    control: str, values: tuple[float, float], delta: Interval, candidate_sha256: str, notes: Sequence[str] = ()
) -> ControlRow:
    few = [] if delta.low is not None else ["too few seeds for an interval"]
    return ControlRow(
        control=control,
        metric=_metric(control),
        candidate=values[0],
        control_value=values[1],
        delta=delta.mean,
        delta_low=delta.low,
        delta_high=delta.high,
        candidate_sha256=candidate_sha256,
        note="; ".join([*few, *notes]),
    )
