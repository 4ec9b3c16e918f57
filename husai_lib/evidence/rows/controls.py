"""Rows of the stress controls: each beside the candidate, and what was trained and probed for it."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from husai_lib.evidence.rows.base import CONTROLS, Auc, MeasuredRow, RunTables, group_sha256, is_matched, noted
from husai_lib.evidence.rows.measured import pairs_of
from husai_lib.intervals import between_units, jackknife_interval, mean_over_pairs, pwmcc_difference

NUMBERS = ("candidate", "control_value", "delta", "delta_low", "delta_high", "tasks_low", "tasks_high")
"""Columns of a control that are null where it was not run."""
CHANCE = 0.5
"""The AUC of a probe that knows nothing."""
PROBED = {"in_domain": "in_domain_auc", "ood": "retained_auc"}
"""The controls that are about probes, with their metrics; the others compare PW-MCC."""


def control_names(parameters: Mapping[str, Any]) -> list[str]:
    """The controls of a run by its parameters, in the order of their table: as many random models as it has."""
    models = [f"random_model_{number + 1}" for number in range(parameters["stress"]["random_models"])]
    return [*models, *CONTROLS[1:]]


class ControlSaeRow(MeasuredRow):
    """One SAE that was trained for a control."""

    control: str
    """random_model_1 and so on, or transcoder."""
    architecture: str
    seed: int
    d_sae: int
    k: int
    """Target L0."""
    l0: float
    """Mean count of non-zero latents a held-out row of the activations that it reads."""
    l0_matched: bool
    key: str
    weights_sha256: str

    def _derived(self, step: str, run: RunTables) -> dict[str, Any]:  # noqa: ARG002 -- of the step stress alone
        # width, k and, but for a transcoder, architecture are those of the candidate's member of its seed
        own = next(member for member in run.candidate.members if member.seed == self.seed)
        architecture = "topk_transcoder" if self.control == "transcoder" else own.architecture
        matched = is_matched(self.l0, own.k)
        return {"architecture": architecture, "d_sae": own.d_sae, "k": own.k, "l0_matched": matched}


class OodRow(MeasuredRow):
    """One task of the out-of-distribution control at one seed of the candidate."""

    task: str
    seed: int
    best_k: int
    in_domain_auc: Auc
    in_domain_llm_auc: Auc
    shifted_auc: Auc
    shifted_llm_auc: Auc
    weights_sha256: str
    """Hash of the weights of the candidate's SAE of this seed."""

    def _derived(self, step: str, run: RunTables) -> dict[str, Any]:
        # the raw activation's AUCs are one number a task
        first = next(iter(run.rows(step, "ood", task=self.task)), self)
        raw = {name: getattr(first, name) for name in ("in_domain_llm_auc", "shifted_llm_auc")}
        own = next(member for member in run.candidate.members if member.seed == self.seed)
        return raw | {"weights_sha256": own.weights_sha256}


class ControlRow(MeasuredRow):
    """One stress control beside the candidate; the statistic is named by `metric`."""

    control: str
    """random_model_1 and so on, random_decoder, transcoder, in_domain or ood."""
    metric: str
    """pwmcc, in_domain_auc or retained_auc."""
    candidate: float | None
    control_value: float | None
    """Of the control; for in_domain that of chance, for ood that of the raw activation."""
    delta: float | None
    """The candidate minus the control; for ood the reverse, which is what the SAE loses beyond the raw activation."""
    delta_low: float | None
    delta_high: float | None
    """Interval of the delta over seeds: jackknife, t(S - 1)."""
    tasks_low: float | None = None
    tasks_high: float | None = None
    """Interval over tasks instead, t(T - 1), each with all seeds; null except for in_domain and ood."""
    level: float
    l0_matched: bool
    """Whether the L0 of every SAE of the control lies within 10 % of k; true where it has none."""
    candidate_sha256: str
    """Hash of the candidate's weights at all its seeds: the weights that the row holds for."""

    def _derived(self, step: str, run: RunTables) -> dict[str, Any]:
        """All of it: from pairs of seeds, from tasks under shift, or why it was not run.

        What is retained under shift is a ratio of means over tasks and seeds, so a task at chance does not dominate it.
        """
        sha256 = group_sha256((member.seed, member.weights_sha256) for member in run.candidate.members)
        saes = run.rows(step, "control_saes", control=self.control)
        about: dict[str, Any] = {"metric": PROBED.get(self.control, "pwmcc"), "candidate_sha256": sha256}
        about |= {"level": run.candidate.level, "l0_matched": all(sae.l0_matched for sae in saes)}
        about |= dict.fromkeys(NUMBERS)
        if self.control not in PROBED and len(run.candidate.members) == 1:
            return about | {"note": "a single seed has no PW-MCC to compare"}
        if self.control in PROBED and run.rows(step, "ood"):
            return about | self._of_shift(run.rows(step, "ood"), run)
        if run.candidate.members and run.rows(step, "pairs", of=self.control):
            return about | self._of_pairs(run.rows(step, "pairs"), saes, run)
        random = "random_model" if self.control.startswith("random_") else self.control
        switch = "ood" if self.control in PROBED else random
        runs = run.parameters["stress"][switch]
        off = "the control was not run" if runs else f"switched off by stress.{switch}: false"
        return about | {"note": off if run.candidate.members else run.candidate.why_none}

    def _of_pairs(self, pairs: Sequence[Any], saes: Sequence[ControlSaeRow], run: RunTables) -> dict[str, Any]:
        members, joined = run.candidate.members, "+" in run.parameters["activations"]["hook_name"]
        seeds, units = [member.seed for member in members], [member.unit for member in members]
        if len(set(units)) < 2:
            return {"note": "all seeds have one reference, so none of them are unrelated"}
        own = between_units(pairs_of(members[0].condition, seeds, run.candidate.pairs), units)
        other = between_units(pairs_of(self.control, seeds, pairs), units)
        off = [f"{sae.l0:.1f} at seed {sae.seed}" for sae in saes if not sae.l0_matched]
        notes = {
            f"the control's L0 is more than 10 % off k = {members[0].k}: {', '.join(off)}": bool(off),
            "the transcoder is at the last of the joined layers only": self.control == "transcoder" and joined,
        }
        delta = pwmcc_difference(own, other, run.candidate.level)
        of = "seeds" if all(member.reference is None for member in members) else "references"
        return _estimate(mean_over_pairs(own), mean_over_pairs(other), delta, notes, of)

    def _of_shift(self, tasks: Sequence[OodRow], run: RunTables) -> dict[str, Any]:
        statistic = _above_chance if self.control == "in_domain" else _lost_beyond_raw
        by_seed, by_task = (_interval(statistic, tasks, column, run.candidate.level) for column in ("seed", "task"))
        on_test = {"each best k was chosen on the test set": run.parameters["probing"]["choose_k"] == "test"}
        if by_seed is None:
            return {"note": noted({"nothing is above chance in domain, so no share of it is retained": True} | on_test)}
        values = (retained(tasks), retained(tasks, "llm_auc"))
        if self.control == "in_domain":
            values = (fmean(task.in_domain_auc for task in tasks), CHANCE)
        notes = {"no interval over tasks: without one of them nothing is above chance": by_task is None} | on_test
        over_tasks = {"tasks_low": by_task.low, "tasks_high": by_task.high} if by_task else {}
        return _estimate(*values, by_seed, notes) | over_tasks


def _estimate(candidate: Any, control: Any, delta: Any, notes: dict[str, bool], of: str = "seeds") -> dict[str, Any]:
    values = {"candidate": candidate, "control_value": control, "delta": delta.mean}
    note = noted({f"too few {of} for an interval": delta.low is None} | notes)
    return values | {"delta_low": delta.low, "delta_high": delta.high, "note": note}


def _interval(statistic: Callable[[Sequence[OodRow]], float], tasks: Sequence[OodRow], by: str, level: float) -> Any:
    """The jackknife interval over groups of tasks, of one seed or one name each; None where it is not defined."""
    names = list(dict.fromkeys(getattr(row, by) for row in tasks))

    def value(some: Sequence[int]) -> float:
        kept = {names[i] for i in some}
        return statistic([row for row in tasks if getattr(row, by) in kept])

    try:
        return jackknife_interval(value, len(names), 1, level)
    except ValueError:  # NaN
        return None


def _above_chance(rows: Sequence[OodRow], column: str = "in_domain_auc") -> float:
    return fmean(getattr(row, column) for row in rows) - CHANCE


def retained(rows: Sequence[OodRow], of: str = "auc") -> float | None:
    """The share of `auc` or `llm_auc` above chance that is left under shift, over all rows; None without any."""
    inside, shifted = (_above_chance(rows, f"{at}_{of}") for at in ("in_domain", "shifted"))
    return shifted / inside if round(inside, 9) > 0 else None


def _lost_beyond_raw(rows: Sequence[OodRow]) -> float:
    """The share that the raw activation retains minus the share that the SAE retains; NaN where either has none."""
    raw, own = retained(rows, "llm_auc"), retained(rows)
    return math.nan if raw is None or own is None else raw - own
