"""Stress controls on the candidate's own model, hook, width, k and seeds: what a lesser thing would score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from husai_lib.activations.banks import Bank
from husai_lib.activations.extraction import text_bank
from husai_lib.activations.language_model import open_model
from husai_lib.activations.texts import drawn_texts
from husai_lib.errors import DataError
from husai_lib.evidence.rows.base import CONTROLS, Candidate, Row, RunTables
from husai_lib.evidence.rows.controls import ControlRow, ControlSaeRow, OodRow
from husai_lib.evidence.runs import Record
from husai_lib.evidence.steps import candidate_of
from husai_lib.measures.probing import ProbeScore, ProbeTask
from husai_lib.params.conditions import Condition
from husai_lib.params.inputs import ActivationParams, ModelParams, TextParams
from husai_lib.saes.trained import Member, TrainedSae, open_trained
from husai_lib.tasks import Progress, device


@dataclass(frozen=True)
class Stressed:
    """What is put under stress: the SAEs of the selected condition, one a seed; none where `candidate` says why."""

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


def open_candidate(selected: dict[str, Any] | None, read: Callable[[str], Record]) -> Stressed:
    """The selected condition's SAEs at all their seeds, weights verified; none without a selection, or of an import.

    `read` gives the record that the selection names as its source. Raises DataError if it holds other weights than the
    selected, and IntegrityError for weights that are not those of the record.
    """
    candidate = candidate_of(selected, read)
    if not selected or candidate.why_none:
        return Stressed(candidate, [])
    if selected["weights_sha256"] not in [row.weights_sha256 for row in candidate.members]:
        raise DataError(
            f"the selected {selected['source']}/{selected['condition']} has no such weights in the record of frontier; "
            "stress a candidate in the run that trained it"
        )
    given = {one["name"]: one for one in read(selected["source"]).data["parameters"]["conditions"]}
    condition = Condition(**given[selected["condition"]])
    saes = [open_trained(Member(condition, row.seed), row.key, row.weights_sha256) for row in candidate.members]
    return Stressed(candidate, saes)


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
def control_sae_rows(control: str, stressed: Stressed, saes: Sequence[TrainedSae], rows: Bank) -> list[ControlSaeRow]:
    """The SAEs trained for a control, as rows of a record; `rows` is the bank that they read."""
    first, run = next(rows.chunks()), RunTables({}, {}, stressed.candidate)
    found = []
    for trained in saes:
        l0 = float((trained.sae.encode(first) != 0).sum(1).double().mean())
        about = {"seed": trained.member.seed, "key": trained.entry.key, "weights_sha256": trained.weights_sha256}
        found.append(ControlSaeRow.derive("stress", run, control=control, l0=l0, **about))
    return found


def ood_rows(
    stressed: Stressed, tasks: Sequence[ProbeTask], scores: Sequence[Sequence[ProbeScore]], llm: Sequence[ProbeScore]
) -> list[OodRow]:
    """Probes fitted in domain, in and out of domain: a row for each seed and task; `scores` is `[seeds][tasks]`.

    The drop is what the SAE loses beyond what the raw activation loses under the same shift.
    """
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
    return [ControlRow.derive("stress", run, control=control) for control in CONTROLS]
