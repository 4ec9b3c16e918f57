"""Rows of the measuring wing: activations, trained SAEs, their stability, their probes and CE-Bench scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any, Self

from pydantic import model_validator

from husai_lib.evidence.rows.base import (
    GIVEN,
    Auc,
    Cosine,
    Count,
    MeasuredRow,
    RunTables,
    Share,
    Variance,
    ceiling,
    is_matched,
    noted,
)


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


def mean_over_sets(probes: Iterable[ProbeRow], column: str) -> float:
    """The mean over data sets of a column of probes; a set of several sizes or shares counts once."""
    from husai_lib.intervals import means_by  # noqa: PLC0415 - numpy, which `husai verify` does without

    return fmean(means_by((probe.data_set, getattr(probe, column)) for probe in probes).values())


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
