"""Rows of the stress controls: each beside the candidate, and what was trained and probed for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from husai_lib.evidence.rows.base import (
    Auc,
    MeasuredRow,
    RunTables,
    group_sha256,
    is_matched,
    noted,
)
from husai_lib.evidence.rows.measured import pairs_of


class ControlRow(MeasuredRow):
    """One stress control beside the candidate; the statistic is named by `metric`."""

    control: str
    """random_model, random_decoder, transcoder or ood."""
    metric: str
    candidate: float | None
    control_value: float | None
    delta: float | None
    delta_low: float | None
    delta_high: float | None
    """95 % interval of the delta over seeds, t(S - 1): of the jackknife for pwmcc, of the mean for ood."""
    tasks_low: float | None = None
    tasks_high: float | None = None
    """95 % interval of the mean over tasks, t(T - 1), each task averaged over its seeds; null except for ood."""
    candidate_sha256: str
    """Hash of the candidate's weights at all its seeds: the weights that the row holds for."""

    def derived(self, step: str, run: RunTables) -> dict[str, Any]:
        """All of it: from pairs of seeds, from tasks under shift, or why it was not run.

        For random_model and random_decoder the delta is PW-MCC of the candidate minus that of the control, for the
        transcoder the reverse; its interval leaves the same seed out of both. For ood it is the probing delta in domain
        minus that out of domain, over the same tasks; a second interval is over tasks, each averaged over the seeds.
        """
        sha256 = group_sha256((member.seed, member.weights_sha256) for member in run.candidate.members)
        about = {"metric": "saebench_delta" if self.control == "ood" else "pwmcc", "candidate_sha256": sha256}
        if self.control == "ood" and run.rows(step, "ood"):
            return about | self._of_shift(run.rows(step, "ood"), run)
        if run.candidate.members and run.rows(step, "pairs", of=self.control):
            return about | self._of_pairs(step, run)
        switch = "random_model" if self.control == "random_decoder" else self.control
        off = (
            "the control was not run" if run.parameters["stress"][switch] else f"switched off by stress.{switch}: false"
        )
        values = dict.fromkeys(("candidate", "control_value", "delta", "delta_low", "delta_high"))
        return about | values | {"note": off if run.candidate.members else run.candidate.why_none}

    def _of_pairs(self, step: str, run: RunTables) -> dict[str, Any]:
        from husai_lib.intervals import mean_over_pairs, pwmcc_difference  # noqa: PLC0415 - as above

        seeds, hook_name = [member.seed for member in run.candidate.members], run.parameters["activations"]["hook_name"]
        own = pairs_of(run.candidate.members[0].condition, seeds, run.candidate.pairs)
        other, transcoder = pairs_of(self.control, seeds, run.rows(step, "pairs")), self.control == "transcoder"
        delta = pwmcc_difference(other, own) if transcoder else pwmcc_difference(own, other)
        saes = run.rows(step, "control_saes", control=self.control)
        off = [f"{row.l0:.1f} at seed {row.seed}" for row in saes if not row.l0_matched]
        notes = {
            "too few seeds for an interval": delta.low is None,
            f"the control's L0 is more than 10 % off k = {run.candidate.members[0].k}: {', '.join(off)}": bool(off),
            "the transcoder is at the last of the joined layers only": transcoder and "+" in hook_name,
        }
        return _estimate(mean_over_pairs(own), mean_over_pairs(other), delta, notes)

    def _of_shift(self, tasks: Sequence[OodRow], run: RunTables) -> dict[str, Any]:
        from husai_lib.intervals import mean_interval, means_by  # noqa: PLC0415 - as above

        by_seed, by_task = (
            mean_interval(list(means_by((getattr(row, column), row.drop) for row in tasks).values()))
            for column in ("seed", "task")
        )
        notes = {
            "too few seeds for an interval": by_seed.low is None,
            "each best k was chosen on the test set": run.parameters["probing"]["choose_k"] == "test",
        }
        inside = fmean(row.in_domain_auc - row.in_domain_llm_auc for row in tasks)
        shifted = fmean(row.shifted_auc - row.shifted_llm_auc for row in tasks)
        return _estimate(inside, shifted, by_seed, notes) | {"tasks_low": by_task.low, "tasks_high": by_task.high}


def _estimate(candidate: float, control: float, delta: Any, notes: Mapping[str, bool]) -> dict[str, Any]:
    values = {"candidate": candidate, "control_value": control, "delta": delta.mean, "note": noted(notes)}
    return values | {"delta_low": delta.low, "delta_high": delta.high}


class ControlSaeRow(MeasuredRow):
    """One SAE that was trained for a control."""

    control: str
    """random_model or transcoder."""
    architecture: str
    seed: int
    d_sae: int
    k: int
    """Target L0."""
    l0: float
    """Mean count of non-zero latents on the first rows of its own training bank."""
    l0_matched: bool
    """Whether l0 lies within 10 % of k."""
    key: str
    """Cache key of the weights."""
    weights_sha256: str

    def derived(self, step: str, run: RunTables) -> dict[str, Any]:  # noqa: ARG002 -- of the step stress alone
        """Width, k and, but for a transcoder, architecture are those of the candidate's member of its seed."""
        own = next(member for member in run.candidate.members if member.seed == self.seed)
        architecture = "topk_transcoder" if self.control == "transcoder" else own.architecture
        matched = is_matched(self.l0, own.k)
        return {"note": "", "architecture": architecture, "d_sae": own.d_sae, "k": own.k, "l0_matched": matched}


class OodRow(MeasuredRow):
    """One task of the out-of-distribution control at one seed of the candidate."""

    task: str
    seed: int
    best_k: int
    in_domain_auc: Auc
    in_domain_llm_auc: Auc
    shifted_auc: Auc
    shifted_llm_auc: Auc
    drop: float
    """(in-domain AUC - its LLM AUC) - (shifted AUC - its LLM AUC)."""
    weights_sha256: str
    """Hash of the weights of the candidate's SAE of this seed."""

    def derived(self, step: str, run: RunTables) -> dict[str, Any]:
        """The drop; the raw activation's AUCs are one number a task; the weights are those of the candidate."""
        first = next(iter(run.rows(step, "ood", task=self.task)), self)
        raw = {name: getattr(first, name) for name in ("in_domain_llm_auc", "shifted_llm_auc")}
        inside, shifted = (self.in_domain_auc - self.in_domain_llm_auc, self.shifted_auc - self.shifted_llm_auc)
        own = next(member for member in run.candidate.members if member.seed == self.seed)
        return raw | {"note": "", "drop": inside - shifted, "weights_sha256": own.weights_sha256}
