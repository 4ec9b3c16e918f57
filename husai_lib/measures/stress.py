"""Stress controls on the candidate's own model, hook, width, k and seeds: what a lesser thing would score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from husai_lib.activations.banks import Bank
from husai_lib.activations.extraction import scaled_bank, text_bank
from husai_lib.activations.language_model import open_model
from husai_lib.activations.texts import Text, drawn_texts
from husai_lib.errors import DataError
from husai_lib.evidence.rows.base import Candidate, Row, RunTables
from husai_lib.evidence.rows.controls import ControlRow, ControlSaeRow, OodRow, control_names
from husai_lib.evidence.rows.measured import BankRow
from husai_lib.evidence.steps import Read, candidate_of, condition_of, confirmed_members
from husai_lib.measures.probing import ProbeScore, ProbeTask
from husai_lib.params.conditions import Condition
from husai_lib.params.inputs import ActivationParams, ModelParams, TextParams
from husai_lib.saes.trained import Member, TrainedSae, open_trained
from husai_lib.tasks import Progress, device

HELD_OUT_AT_MOST = 4096
"""Held-out rows that the L0 of a control's SAEs is measured on."""


@dataclass(frozen=True)
class Stressed:
    """What is put under stress: the SAEs of the candidate, one a seed; none where `candidate` says why."""

    candidate: Candidate
    saes: Sequence[TrainedSae]

    @property
    def condition(self) -> Condition:
        """The condition of all its SAEs."""
        return self.saes[0].member.condition

    @property
    def seeds(self) -> list[int]:
        """The seed of each SAE; controls are trained at the same."""
        return [trained.member.seed for trained in self.saes]


@dataclass(frozen=True)
class RandomModel:
    """The activations of one model with random weights."""

    control: str
    """random_model_1 and so on."""
    rows: Bank
    """On the cycle's training texts."""
    held_out: Bank
    """On further texts of the training data sets or, where they have no more, on held-out texts, scaled alike: it is of
    the training texts' kind that the SAEs of a control must be matched in sparsity."""

    def bank_rows(self) -> list[BankRow]:
        """Both banks as rows of a record."""
        return [self.rows.row(self.control), self.held_out.row(f"{self.control}_held_out")]


def open_candidate(selected: dict[str, Any] | None, read: Read) -> Stressed:
    """The candidate's SAEs at all its seeds, weights verified; none without a selection, or of an import.

    They are those of the confirmation, where there is one, and those that were selected otherwise. `read` gives a
    record by its name. Raises DataError if the record of the selected SAEs holds other weights, and IntegrityError for
    weights that are not those of the record.
    """
    candidate = candidate_of(selected, read)
    if not selected or candidate.why_none:
        return Stressed(candidate, [])
    known = {row.weights_sha256 for row in candidate.members}
    if not confirmed_members(read) and selected["weights_sha256"] not in known:
        raise DataError(
            f"the selected {selected['source']}/{selected['condition']} has no such weights in its record; "
            "stress a candidate in the run that trained it"
        )
    condition = condition_of(selected, read)
    saes = [open_trained(Member(condition, row.seed), row.key, row.weights_sha256) for row in candidate.members]
    return Stressed(candidate, saes)


def random_model(
    model: ModelParams,
    texts: TextParams,
    params: ActivationParams,
    *,
    number: int,
    like: Bank,
    progress: Progress | None = None,
) -> RandomModel:
    """The texts read by the re-initialisation `number`, from 1; rows are scaled to the mean norm of the rows `like`."""
    name = model.name if model.name.startswith("random:") else f"random:{model.name}"
    # the model of a smoke cycle is random itself, so that the controls have the seeds after its own
    untrained = open_model(model.model_copy(update={"name": name, "seed": model.seed + number}), device())

    def read(drawn: list[Text], count: int, limit: float | None = None) -> Bank:
        return text_bank(untrained, drawn, params, [params.hook_name], count, norm_limit=limit, progress=progress)

    drawn, others = (drawn_texts(names, params.seed) for names in (texts.training, texts.held_out))
    rows = read(drawn, params.training_rows)
    further = [*drawn[len(rows.offsets) - 1 :], *others]
    held_out = read(further, min(params.held_out_rows, HELD_OUT_AT_MOST), rows.meta["norm_limit"])
    factor = rows.scale() / like.scale()  # the reverse ratio of mean norms
    return RandomModel(f"random_model_{number}", scaled_bank(rows, factor), scaled_bank(held_out, factor))


def transcoder_of(condition: Condition) -> Condition:
    """A TopK transcoder with the width, k and training of a condition."""
    shared = condition.model_dump(
        exclude={"name", "architecture", "hyperparameters", "match_l0", "aligned", "consistency"}
    )
    name = "topk_transcoder"
    return Condition(**shared, name="transcoder", architecture=name, hyperparameters={})


@torch.no_grad()
def control_sae_rows(
    control: str, stressed: Stressed, saes: Sequence[TrainedSae], held_out: Bank
) -> list[ControlSaeRow]:
    """The SAEs trained for a control, as rows of a record, with their L0 on the first 4,096 rows of `held_out`."""
    first, run = next(held_out.chunks(HELD_OUT_AT_MOST)), RunTables({}, {}, stressed.candidate)
    found = []
    for trained in saes:
        l0 = float((trained.sae.encode(first) != 0).sum(1).double().mean())
        about = {"seed": trained.member.seed, "key": trained.entry.key, "weights_sha256": trained.weights_sha256}
        found.append(ControlSaeRow.derive("stress", run, control=control, l0=l0, **about))
    return found


def ood_rows(
    stressed: Stressed, tasks: Sequence[ProbeTask], scores: Sequence[Sequence[ProbeScore]], llm: Sequence[ProbeScore]
) -> list[OodRow]:
    """Probes fitted in domain, in and out of domain: a row for each seed and task; `scores` is `[seeds][tasks]`."""
    run = RunTables({}, {}, stressed.candidate)
    return [
        OodRow.derive(
            "stress",
            run,
            task=task.data.name,
            seed=seed,
            best_k=score.k,
            in_domain_auc=score.test_auc,
            in_domain_llm_auc=base.test_auc,
            shifted_auc=score.shifted_auc,
            shifted_llm_auc=base.shifted_auc,
        )
        for seed, of_seed in zip(stressed.seeds, scores, strict=True)
        for task, score, base in zip(tasks, of_seed, llm, strict=True)
    ]


def control_rows(
    stressed: Stressed, tables: Mapping[str, Sequence[Row]], parameters: Mapping[str, Any]
) -> list[ControlRow]:
    """A row for every control, from the tables `pairs`, `control_saes` and `ood`; one that was not run says why."""
    run = RunTables({("stress", name): rows for name, rows in tables.items()}, parameters, stressed.candidate)
    return [ControlRow.derive("stress", run, control=control) for control in control_names(parameters)]
