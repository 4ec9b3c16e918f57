"""What a step leaves: the columns of every table, with their units. This is the data dictionary.

Rows are flat. A value that is missing is null, and `note` says why. Columns that follow from other numbers of a run are
computed here, once, by `derived`: when a row is made, and again when it is audited.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from husai_lib.files import canonical_json, sha256_text
from husai_lib.params.sections import Section

MATCHED_WITHIN = 0.10
"""Widths and L0s are matched within this share: an SAE's L0 with its target k, the baseline's with the candidate's."""
IMPORTED = "imported"
"""The folder of `evidence/` that holds records of earlier cycles, in place of a cycle's name."""
GIVEN = "given"
"""The condition of the SAE that the parameters name as a baseline, in the tables of the step `baselines`."""
CONTROLS = ("random_model", "random_decoder", "transcoder", "ood")
"""The stress controls, in the order in which tables and gates have them."""
EARLIER_BASELINE, EARLIER_D_SAE = 47.95, 32768
"""CE-Bench interpretability that the gate of earlier cycles asked for: that of a public SAE, and its width."""


def is_matched(value: float, target: float) -> bool:
    """Whether a width or an L0 lies within 10 % of its target."""
    return round(abs(value / target - 1), 9) <= MATCHED_WITHIN  # 1.1 - 1 > 0.1 in floats


def ceiling(d_sae: int) -> float:
    """The largest CE-Bench score that N latents allow: `(N - 1) / sqrt(N)`, where one differs and all others are equal.

    It is the largest `max z` of N numbers.
    """
    return float((d_sae - 1) / d_sae**0.5)


def group_sha256(weights: Iterable[tuple[int, str]]) -> str:
    """One hash of a group's weights, given the seed and the SHA-256 of the weights of each of its SAEs."""
    return sha256_text(canonical_json(sorted(weights)))


Auc = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Cosine = Annotated[float, Field(ge=0, le=1)]
Variance = Annotated[float, Field(le=1)]
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Candidate:
    """The selected group as stress controls need it."""

    members: Sequence[Any] = ()
    """Its `MemberRow`s, of this run or of an earlier one."""
    pairs: Sequence[Any] = ()
    """The `PairRow`s of the record that it is from."""
    why_none: str = "no candidate was selected"
    """Why it has no members that can be stressed in this run; empty if it has."""


@dataclass(frozen=True)
class RunTables:
    """The typed tables of a run and its parameters: what derived columns follow from."""

    tables: Mapping[tuple[str, str], Sequence[Any]]
    """Rows by step and table."""
    parameters: Mapping[str, Any]
    """The sections of the cycle."""
    candidate: Candidate = Candidate()

    def rows(self, step: str, table: str, **columns: Any) -> list[Any]:
        """The rows of a table that have these values; none where there is no such table."""
        found = self.tables.get((step, table), ())
        return [row for row in found if all(getattr(row, name) == value for name, value in columns.items())]


def mean_over_sets(probes: Iterable[ProbeRow], column: str) -> float:
    """The mean over data sets of a column of probes; a set of several sizes or shares counts once."""
    from husai_lib.intervals import means_by  # noqa: PLC0415 - numpy, which `husai verify` does without

    return fmean(means_by((probe.data_set, getattr(probe, column)) for probe in probes).values())


def noted(notes: Mapping[str, bool]) -> str:
    """The notes that apply, joined."""
    return "; ".join(note for note, applies in notes.items() if note and applies)


class Row(Section):
    """One row of a table."""

    note: str = ""
    """Why a value is missing or cannot be compared; empty where nothing is to be said."""

    @classmethod
    def derive(cls, step: str, run: RunTables, **measured: Any) -> Self:
        """The row of what was measured, its other columns derived from it and from tables of the run."""
        return cls(**measured | cls.model_construct(**measured).derived(step, run))

    def derived(self, step: str, run: RunTables) -> dict[str, Any]:  # noqa: ARG002 -- rows with such columns use them
        """Every column that follows from other numbers of the run; `step` is that of the row's record."""
        return {}


class MeasuredRow(Row):
    """A row that the measuring wing made; it carries a note only where its `derived` says which."""

    def derived(self, step: str, run: RunTables) -> dict[str, Any]:  # noqa: ARG002 -- as above
        """That there is no note."""
        return {"note": ""}


class SourceRow(MeasuredRow):
    """Where rows of activations come from: one data set in one role."""

    role: str
    """training, held_out, probing, ood, shifted or stories."""
    data_set: str
    texts: Count
    """Texts used."""
    tokens: Count
    """Token positions, skipped ones included."""
    rows: Count
    """Rows of activations kept: skipped positions and outlier norms are left out."""


class BankRow(MeasuredRow):
    """A memory-mapped bank of activations in the cache."""

    bank: str
    """What the bank serves for, such as `training`."""
    hook_name: str
    rows: int
    d_in: int
    key: str
    """Cache key: hash of all that determines the content."""
    sha256: str
    """Hash of the stored activations."""

    def derived(self, step: str, run: RunTables) -> dict[str, Any]:
        """A bank has the rows of its sources; those of a transcoder are the training rows."""
        role, _, name = ("training" if self.bank.startswith("mlp_") else self.bank).partition("/")
        kept = [source.rows for source in run.rows(step, "sources", role=role) if name in {"", source.data_set}]
        return {"note": "", "rows": sum(kept) if kept else self.rows}


class MemberRow(MeasuredRow):
    """One trained SAE: a condition at a seed."""

    condition: str
    architecture: str
    seed: int
    """Of weights and data order; 0 for a given SAE, which is compared at every seed."""
    d_sae: int
    k: int
    """Target L0; of a given SAE, that of the condition nearest to it."""
    explained_variance: Variance
    """1 - sum |x - x^|^2 / sum |x - mean x|^2 over held-out rows."""
    l0: float
    """Mean count of non-zero latents a held-out row."""
    l0_matched: bool
    """Whether l0 lies within 10 % of k."""
    dead_fraction: Share
    """Share of latents that never fire on the held-out rows."""
    saebench_auc: Auc
    """Mean over the probing data sets of the test AUC at the best k; a set of several sizes or shares counts once."""
    saebench_delta: float
    """saebench_auc minus the mean test AUC of logistic regression on the raw activation."""
    cebench_contrastive: float
    cebench_independence: float
    cebench_interpretability: float
    """CE-Bench scores in standard deviations over the latents."""
    cebench_calibrated_contrastive: float | None
    """Contrastive in standard deviations of its permutation null; independence has no such form."""
    cebench_calibrated: float | None
    """Interpretability in standard deviations of its permutation null."""
    cebench_delta: float | None
    """cebench_interpretability minus the matched baseline's at the same seed; null for the baseline."""
    cebench_ceiling: float
    """(d_sae - 1) / sqrt(d_sae): no SAE of this width can score higher."""
    key: str
    """Cache key of the weights."""
    weights_sha256: str

    def is_baseline_of(self, d_sae: int, k: int, seed: int) -> bool:
        """Whether CE-Bench deltas of SAEs of this width, target L0 and seed are taken against this baseline."""
        if self.condition == GIVEN:
            return is_matched(self.d_sae, d_sae) and is_matched(self.l0, k)
        return (self.d_sae, self.k, self.seed) == (d_sae, k, seed)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        highest = self.cebench_ceiling * (1 + 1e-5)  # scores are float32
        scores = (self.cebench_contrastive, self.cebench_independence, self.cebench_interpretability)
        if not 0 <= self.l0 <= self.d_sae:
            raise ValueError(f"l0 = {self.l0} is impossible for {self.d_sae} latents")
        if max(scores) > highest:
            raise ValueError(f"a CE-Bench score of {max(scores)} lies above {self.cebench_ceiling}, the ceiling")
        return self

    def derived(self, step: str, run: RunTables) -> dict[str, Any]:
        """Means over its probes, whether its L0 is matched, CE-Bench's ceiling and delta, and the note.

        The delta is over the baseline of the same width, k and seed, or over a given SAE that is matched; null where
        there is neither: scores of other widths and sparsities cannot be compared. The note of a given SAE says what
        its metadata do, which no record has.
        """
        probes = run.rows(step, "probes", condition=self.condition, seed=self.seed)
        baselines = run.rows("baselines", "members") if step != "baselines" else []
        matched = [row for row in baselines if row.is_baseline_of(self.d_sae, self.k, self.seed)]
        score, base = self.cebench_interpretability, matched[0].cebench_interpretability if matched else None
        notes = {
            "no CE-Bench delta: no baseline has this width, k and seed": base is None and bool(baselines),
            "CE-Bench deltas are measured against this baseline": not baselines,
            "no calibrated CE-Bench score: its null does not vary": self.cebench_calibrated is None,
            "each best k was chosen on the test set": run.parameters["probing"]["choose_k"] == "test",
        }
        return {
            "saebench_auc": mean_over_sets(probes, "test_auc"),
            "saebench_delta": mean_over_sets(probes, "delta"),
            "l0_matched": is_matched(self.l0, self.k),
            "cebench_delta": None if base is None else score - base,
            "cebench_ceiling": ceiling(self.d_sae),
            "note": self.note if self.condition == GIVEN else noted(notes),
        }


class GroupRow(MeasuredRow):
    """The members of one condition: how alike its seeds are."""

    condition: str
    architecture: str
    n_seeds: int
    pwmcc: Cosine
    """Mean over seed pairs of the best one-to-one |cosine| of decoder rows (arXiv 2505.20254)."""
    pwmcc_low: float | None
    pwmcc_high: float | None
    """95 % interval: leave-one-seed-out jackknife, t(S - 1); two seeds have none."""
    pwmcc_max: Cosine
    """The older statistic: mean of row and column maxima. Never mixed with pwmcc."""
    null_random: Cosine
    """pwmcc of random unit decoders of the same shape."""
    null_gaussian: Cosine
    """pwmcc of the same recipe trained on Gaussian activations of the same mean and covariance."""
    pwmcc_corrected: float
    """(pwmcc - null_gaussian) / (1 - null_gaussian)."""
    encoder_mcc: Cosine
    """Mean |cosine| of the encoder columns of the pairs that the decoders matched (arXiv 2501.16615)."""
    reappearing_fraction: Share
    """Mean share of the other seeds in which a latent has a partner of |cosine| above 0.7."""
    subspace_overlap: Share
    """Mean squared cosine of the principal angles of the leading decoder subspaces, over seed pairs."""
    saebench_delta: float
    """SAEBench delta over all seeds and data sets."""
    sets_low: float | None
    sets_high: float | None
    """Its 95 % interval over data sets, t(D - 1): each is paired with the raw activation's AUC, its seeds averaged."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.pwmcc > self.pwmcc_max + 1e-6:
            raise ValueError(f"pwmcc = {self.pwmcc} lies above {self.pwmcc_max}, the mean of the maxima")
        return self

    def derived(self, step: str, run: RunTables) -> dict[str, Any]:
        """PW-MCC and its interval from the pairs of seeds, what exceeds the null, and the mean over data sets."""
        from husai_lib.intervals import mean_interval, means_by, pwmcc_interval  # noqa: PLC0415 - as above

        members = run.rows(step, "members", condition=self.condition)
        pairs = pairs_of(self.condition, [member.seed for member in members], run.rows(step, "pairs"))
        probes, found = run.rows(step, "probes", condition=self.condition), pwmcc_interval(pairs)
        sets = mean_interval(list(means_by((probe.data_set, probe.delta) for probe in probes).values()))
        return {
            "architecture": members[0].architecture,
            "n_seeds": len(members),
            "pwmcc": found.mean,
            "pwmcc_low": found.low,
            "pwmcc_high": found.high,
            "pwmcc_corrected": (found.mean - self.null_gaussian) / (1 - self.null_gaussian),
            "saebench_delta": sets.mean,
            "sets_low": sets.low,
            "sets_high": sets.high,
            "note": "" if found.low is not None else "too few seeds for an interval",
        }


class PairRow(MeasuredRow):
    """Two seeds of one condition, or of one stress control, beside each other."""

    of: str
    """The condition, or the control: random_model, random_decoder or transcoder."""
    seed_a: int
    seed_b: int
    pwmcc: Cosine
    """Mean |cosine| of the decoder rows under the best one-to-one assignment; groups and controls follow from it."""


def pairs_of(of: str, seeds: Sequence[int], rows: Iterable[PairRow]) -> Any:
    """The table `[S, S]` of PW-MCC of the pairs of these seeds; KeyError where one is missing."""
    from husai_lib.intervals import pair_table  # noqa: PLC0415 - as above

    known = {(row.seed_a, row.seed_b): row.pwmcc for row in rows if row.of == of}
    pairs = {(i, j): known[seeds[i], seeds[j]] for i in range(len(seeds)) for j in range(i + 1, len(seeds))}
    return pair_table(len(seeds), pairs)


class ProbeRow(MeasuredRow):
    """Sparse probing of one SAE on one data set."""

    condition: str
    seed: int
    data_set: str
    at: float | None = None
    """Training rows in the setting `scarcity`, share of class 1 in `imbalance`; null in `normal`."""
    best_k: int
    validation_auc: Auc
    test_auc: Auc
    llm_auc: Auc
    """Test AUC of logistic regression on the raw activation."""
    delta: float
    latents: str = ""
    """The latents that the probe reads, best first."""

    @model_validator(mode="after")
    def _reads_k_latents(self) -> Self:
        if self.latents and len(self.latents.split()) != self.best_k:
            raise ValueError(f"best_k = {self.best_k}, but {len(self.latents.split())} latents are listed")
        return self

    def derived(self, step: str, run: RunTables) -> dict[str, Any]:  # noqa: ARG002 -- the same in every step
        """The delta; the raw activation's AUC is one number a data set, whatever SAE is beside it."""
        raw = [probe.llm_auc for probe in run.rows("baselines", "probes", data_set=self.data_set, at=self.at)]
        return {"note": "", "delta": self.test_auc - self.llm_auc, "llm_auc": (raw or [self.llm_auc])[0]}


class ContrastiveRow(MeasuredRow):
    """CE-Bench scores of one TopK SAE of the width study, in every form, with its ceiling."""

    origin: str
    """trained, or random: unit decoder rows, the encoder their transpose, the bias the mean training row."""
    seed: int
    d_sae: int
    k: int
    l0: float
    """Mean count of non-zero latents a token of the stories."""
    contrastive: float
    """In standard deviations over the latents, as are the next four; the same as published and as released."""
    independence: float
    interpretability: float
    """As published: from the mean over all pairs."""
    independence_as_released: float
    interpretability_as_released: float
    """As the released code has it: from zero."""
    calibrated_contrastive: float | None
    calibrated: float | None
    """Interpretability, in the form of `contrastive.independence`, in standard deviations of its permutation null."""
    ceiling: float
    """(d_sae - 1) / sqrt(d_sae): no SAE of this width can score higher, but for the calibrated scores."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        scores = (self.contrastive, self.interpretability, self.interpretability_as_released)
        if not 0 <= self.l0 <= self.d_sae or max(scores) > self.ceiling * (1 + 1e-5):
            raise ValueError(f"l0 = {self.l0} or a score of {max(scores)} is impossible for {self.d_sae} latents")
        return self

    def derived(self, step: str, run: RunTables) -> dict[str, Any]:  # noqa: ARG002 -- from the row alone
        """The ceiling of its width, and the note."""
        constant = "no calibrated score: its null does not vary"
        return {"ceiling": ceiling(self.d_sae), "note": noted({constant: self.calibrated is None})}


class CandidateRow(Row):
    """A group as selection sees it: bounds, ranks and what became of it."""

    source: str
    """The step whose record it comes from."""
    condition: str
    architecture: str
    n_seeds: int
    saebench_delta: float | None
    saebench_delta_low: float | None
    cebench_delta: float | None
    cebench_delta_low: float | None
    explained_variance: float | None
    explained_variance_low: float | None
    saebench_delta_high: float | None = None
    cebench_delta_high: float | None = None
    explained_variance_high: float | None = None
    saebench_delta_std: float | None = None
    cebench_delta_std: float | None = None
    explained_variance_std: float | None = None
    """Standard deviations over the seeds, with n - 1."""
    representative_seed: int | None = None
    """The seed that stands for the group: the median one by its own joint score."""
    saebench_score: float | None = None
    cebench_score: float | None = None
    explained_variance_score: float | None = None
    """What each metric adds to the joint score before its weight: 0 for the worst group, 1 for the best."""
    joint_score: float | None
    on_front: bool
    selected: bool
    selection_probability: float | None


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


class GateRow(Row):
    """One requirement of the release gate."""

    gate: str
    metric: str
    value: float | None
    bound: float | None
    """The conservative end of the value's 95 % interval."""
    threshold: float
    direction: str
    """`above` or `below` the threshold passes."""
    required: bool
    verdict: str
    """pass, fail, missing or unreachable."""
    source: str
    """The record the value comes from."""


class CriterionRow(Row):
    """One comparison of this cycle's candidate with that of an earlier run: a part of a decision criterion."""

    criterion: int
    """1: both external deltas improve jointly, by their bounds; 2: a better outcome of the gate, no control lost."""
    earlier: str
    """The earlier run."""
    metric: str
    """saebench_delta, cebench_delta, or a gate."""
    here: float | None
    """The value of this cycle's candidate."""
    there: float | None
    """The value of the earlier candidate."""
    difference: float | None
    """here minus there."""
    difference_low: float | None
    difference_high: float | None
    """95 % interval of the difference: Welch's, never narrower than either side's own."""
    verdict_here: str = ""
    verdict_there: str = ""
    """Of a gate: pass, fail, missing or unreachable; empty for a metric."""
    outcome: str
    """met, not met, or not comparable."""


class ReplayRow(Row):
    """An imported decision repeated by its own rules, and how its stated numbers compare with ours."""

    decision: str
    """The imported record of the decision."""
    winner: str | None
    """The condition that the repeated selection chose."""
    values: int
    """Stated numbers and names that were compared."""
    differing: int
    """How many of them differ by more than 1e-9 of their size."""
    largest_difference: float | None
    """Between a stated number and ours."""


class RuleChangeRow(Row):
    """An imported decision under today's rules, added one after another."""

    decision: str
    rule: str
    """The rule that this row adds to those of the rows before."""
    over: str
    """The candidates that were ranked together."""
    winner: str | None
    representative_seed: int | None
    eligible_groups: int


class EarlierMemberRow(Row):
    """One SAE as a file of February 2026 has it; nothing is recomputed."""

    position: int
    """Its place among the records of its file, from 0."""
    condition: str
    """Name of its group: its own without `_seed<N>`."""
    architecture: str
    seed: int | None
    d_sae: Annotated[int, Field(gt=0, lt=2**31)] | None
    k: Annotated[int, Field(gt=0, lt=2**31)] | None
    """Target L0."""
    model: str
    hook_name: str
    explained_variance: float | None
    """On the rows it was trained on; of an assignment record the mean over its seeds."""
    l0: float | None
    """On the rows it was trained on."""
    mse: float | None
    """On the rows it was trained on."""
    saebench_delta: float | None
    """Test AUC of the k that is best on the test set, minus that of the raw activation."""
    llm_auc: float | None
    """Mean test AUC of logistic regression on the raw activation."""
    data_sets: str
    """Names of the probing data sets, joined by commas."""
    ks: Annotated[str, Field(pattern=r"^([0-9]+(, ?[0-9]+)*)?$")]
    """How many latents a probe could use, joined by commas."""
    results_path: str
    """Folder from which its SAEBench means were read."""
    cebench_interpretability: float | None
    cebench_delta: float | None
    """cebench_interpretability minus the baseline's."""
    cebench_baseline: str
    """Release and id of the SAE it was compared with; empty where there was none."""
    cebench_baseline_score: float | None
    pairs: str
    """Where the stories come from and how many pairs were used."""
    evaluated_as: str
    """The architecture whose encoder the benchmarks used, where the record says so."""
    failed: str
    """Which evaluation ended with an error; empty if none did."""
    checkpoint: str
    """Where its weights were, on a machine of that time."""
    weights_sha256: str
    """Where the record holds it; else empty."""


class EarlierGroupRow(Row):
    """One ranked group of an earlier selection: its own numbers, to be compared with ours."""

    rank: int
    """From 0, the selected one."""
    condition: str
    architecture: str
    n_seeds: int
    representative_seed: int | None
    on_front: bool
    joint_score: float
    saebench_score: float | None
    cebench_score: float | None
    explained_variance_score: float | None
    """Normalised components of the joint score."""
    saebench_delta: float | None
    saebench_delta_std: float | None
    saebench_delta_low: float | None
    saebench_delta_high: float | None
    cebench_delta: float | None
    cebench_delta_std: float | None
    cebench_delta_low: float | None
    cebench_delta_high: float | None
    explained_variance: float | None
    explained_variance_std: float | None
    explained_variance_low: float | None
    explained_variance_high: float | None
    """Means, standard deviations and 95 % intervals over the seeds (z = 1.96)."""


class EarlierSweepRow(Row):
    """One strength of the consistency loss in an earlier sweep (assignment v2 and v3)."""

    lambda_consistency: float | None
    """Weight of the loss that pulls SAEs to the one of the reference seed; 0 is the baseline."""
    d_sae: int
    k: int
    n_seeds: int | None
    pairs: int | None
    """Pairs of SAEs that the PW-MCC interval was computed over."""
    pwmcc: float | None
    """Of the trained SAEs."""
    control: float | None
    """PW-MCC of random decoders."""
    delta: float | None
    delta_low: float | None
    """As they stated it: lower end of the one interval minus upper end of the other."""
    explained_variance: float | None
    """Mean over the seeds."""
    alignment: float | None
    """Mean |cosine| to the reference seed."""
    saebench_delta: float | None
    cebench_delta: float | None


class EarlierGateRow(Row):
    """One gate of an earlier release policy, or one part of the acceptance of a sweep, as stated."""

    gate: str
    value: float | None
    bound: float | None
    threshold: float | None
    direction: str
    """`above` or `below` the threshold passes."""
    required: bool
    stated: str
    """pass or fail; empty where the file has no verdict."""


class CaveatRow(Row):
    """What is known to be wrong with numbers of an earlier cycle."""

    caveat: str
    """width_ceiling, unequal_data_sets, stale_results, ...: see `husai_lib/earlier/caveats.py`."""
    record: str
    """The record it concerns."""
    rows: int
    """How many of its rows."""
    what: str
    """One sentence, with the numbers that show it."""


TABLES: dict[str, type[Row]] = {
    "sources": SourceRow, "banks": BankRow, "members": MemberRow, "groups": GroupRow, "probes": ProbeRow,
    "pairs": PairRow,
    "candidates": CandidateRow, "controls": ControlRow, "control_saes": ControlSaeRow, "ood": OodRow, "gates": GateRow,
    "contrastive": ContrastiveRow, "criteria": CriterionRow, "replays": ReplayRow, "rule_changes": RuleChangeRow,
    "earlier_members": EarlierMemberRow, "earlier_groups": EarlierGroupRow, "earlier_sweep": EarlierSweepRow,
    "earlier_gates": EarlierGateRow, "caveats": CaveatRow,
}  # fmt: skip
