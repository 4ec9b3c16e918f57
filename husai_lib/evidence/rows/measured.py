"""Rows of the measuring wing: activations, trained SAEs, their stability, their probes and CE-Bench scores."""

from collections.abc import Iterable, Sequence
from typing import Any

from husai_lib.evidence.rows.base import (
    GIVEN,
    Auc,
    Cosine,
    MeasuredRow,
    RunTables,
    Similarity,
    Variance,
    ceiling,
    is_matched,
    minus,
    noted,
)
from husai_lib.evidence.rows.probes import CEILINGS, mean_ceiling, mean_over_sets, saebench_interval
from husai_lib.intervals import Pairs, between_units, mean_within_units, pair_table, pwmcc_interval
from husai_lib.params.conditions import baseline_name, is_baseline_name
from husai_lib.params.sections import Count, Share

WITH_BASELINES = ("confirmation", "scaling")
"""Steps whose tables hold the baselines of their own SAEs; those of other steps are in the record `baselines`."""


class SourceRow(MeasuredRow):
    """Where rows of activations come from: one data set in one role."""

    role: str
    """training, held_out, probing, ood, shifted or stories."""
    data_set: str
    texts: Count
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
    sha256: str
    """Hash of the stored activations."""

    def _derived(self, step: str, run: RunTables) -> dict[str, Any]:
        # a bank has the rows of its sources; those of a transcoder are the training rows and the held-out rows
        of_transcoder = {"mlp_in": "training", "mlp_out": "training", "mlp_in_held_out": "held_out"}
        role, _, name = of_transcoder.get(self.bank, self.bank).partition("/")
        kept = [source.rows for source in run.rows(step, "sources", role=role) if name in {"", source.data_set}]
        return {"rows": sum(kept) if kept else self.rows}


class MemberRow(MeasuredRow):
    """One trained SAE: a condition at a seed."""

    condition: str
    architecture: str
    seed: int
    """Of weights and data order; 0 for a given SAE, which is compared at every seed."""
    reference: int | None = None
    """What the consistency objective aligned it with: the seed of a frozen reference or, under `mutual`, the first of
    its bank. Seeds with the same are related; null without objective."""
    d_sae: int
    k: int
    """Target L0; of a given SAE, that of the condition nearest to it."""
    explained_variance: Variance
    """1 - sum |x - x^|^2 / sum |x - mean x|^2 over held-out rows."""
    l0: float
    """Mean count of non-zero latents a held-out row."""
    l0_matched: bool
    dead_fraction: Share
    """Share of latents that never fire on the held-out rows."""
    saebench_auc: Auc
    """Mean over the probing data sets of the test AUC at the best k, in the form that `probing.duplicates` names; a set
    of several sizes or shares counts once."""
    saebench_delta: float
    """saebench_auc minus the same mean of logistic regression on the raw activation."""
    saebench_delta_keep: float
    """As published: duplicate prompts kept, one split, every data set with equal weight."""
    cebench_contrastive: float
    cebench_independence: float
    cebench_interpretability: float
    """In standard deviations over the latents."""
    cebench_calibrated_contrastive: float | None
    cebench_calibrated: float | None
    """Contrastive and interpretability in standard deviations of their permutation null."""
    cebench_delta: float | None
    cebench_calibrated_delta: float | None
    """cebench_interpretability and cebench_calibrated minus those of the matched baseline at the same seed."""
    cebench_ceiling: float
    """(d_sae - 1) / sqrt(d_sae): no SAE of this width can score higher."""
    key: str
    weights_sha256: str

    @property
    def unit(self) -> tuple[bool, int]:
        """Equal for related seeds: those of one reference, or the seed alone."""
        return (False, self.seed) if self.reference is None else (True, self.reference)

    @property
    def is_baseline(self) -> bool:
        """Whether CE-Bench deltas of others are taken against it."""
        return is_baseline_name(self.condition)

    def is_baseline_of(self, d_sae: int, k: int, seed: int) -> bool:
        """Whether CE-Bench deltas of SAEs of this width, target L0 and seed are taken against this baseline."""
        if self.condition == GIVEN:
            return is_matched(self.d_sae, d_sae) and is_matched(self.l0, k)
        return (self.d_sae, self.k, self.seed) == (d_sae, k, seed)

    def _check(self) -> None:
        highest = self.cebench_ceiling * (1 + 1e-5)  # scores are float32
        scores = (self.cebench_contrastive, self.cebench_independence, self.cebench_interpretability)
        if not 0 <= self.l0 <= self.d_sae:
            raise ValueError(f"l0 = {self.l0} is impossible for {self.d_sae} latents")
        if max(scores) > highest:
            raise ValueError(f"a CE-Bench score of {max(scores)} lies above {self.cebench_ceiling}, the ceiling")

    def _derived(self, step: str, run: RunTables) -> dict[str, Any]:
        """All but what was measured.

        CE-Bench's delta is over the baseline of the same width, k and seed, or over a given SAE that is matched: scores
        of other widths and sparsities cannot be compared. The note of a given SAE says what its metadata do.
        """
        probes = run.rows(step, "probes", condition=self.condition, seed=self.seed)
        record = step if step in WITH_BASELINES else "baselines"
        compared = [] if self.is_baseline else [row for row in run.rows(record, "members") if row.is_baseline]
        if step == "scaling":  # each cell of the grid has its own
            compared = [row for row in compared if row.condition == baseline_name(self.condition)]
        base = next((row for row in compared if row.is_baseline_of(self.d_sae, self.k, self.seed)), None)
        notes = {
            "no CE-Bench delta: no baseline has this width, k and seed": base is None and not self.is_baseline,
            "CE-Bench deltas are measured against this baseline": self.is_baseline,
            "no calibrated CE-Bench score: its null does not vary": self.cebench_calibrated is None,
            "each best k was chosen on the test set": run.parameters["probing"]["choose_k"] == "test",
        }
        duplicates = run.parameters["probing"]["duplicates"]
        return {
            "saebench_auc": mean_over_sets(probes, "test_auc", duplicates),
            "saebench_delta": mean_over_sets(probes, "delta", duplicates),
            "saebench_delta_keep": mean_over_sets(probes, "delta", "keep"),
            "l0_matched": is_matched(self.l0, self.k),
            "cebench_delta": base and self.cebench_interpretability - base.cebench_interpretability,
            "cebench_calibrated_delta": base and minus(self.cebench_calibrated, base.cebench_calibrated),
            "cebench_ceiling": ceiling(self.d_sae),
            "note": self.note if self.condition == GIVEN else noted(notes),
        }


class GroupRow(MeasuredRow):
    """The members of one condition: how alike its seeds are."""

    condition: str
    architecture: str
    n_seeds: int
    pwmcc: Cosine | None
    """Mean over pairs of unrelated seeds of the best one-to-one |cosine| of decoder rows (arXiv 2505.20254). Without
    consistency objective all pairs are unrelated; null where all seeds have one reference, and, as all statistics of
    pairs are, where there is a single seed."""
    pwmcc_low: float | None
    pwmcc_high: float | None
    """95 % interval: leave-one-seed-out jackknife, t(S - 1); two seeds have none. With a consistency objective, a
    reference is left out with all its seeds: S is the number of references."""
    pwmcc_within: Cosine | None = None
    """Over pairs of related seeds, which agree by construction; null where there are none."""
    pwmcc_max: Cosine | None
    """The older statistic: mean of row and column maxima, over the pairs of pwmcc as are the next ones. Never mixed
    with pwmcc."""
    null_random: Cosine | None
    """pwmcc of random unit decoders of the same shape."""
    null_gaussian: Cosine | None
    """pwmcc of the same recipe trained on Gaussian activations of the same mean and covariance; in a sweep of the
    consistency objective, of the recipe without it."""
    pwmcc_corrected: float | None
    """(pwmcc - null_gaussian) / (1 - null_gaussian)."""
    encoder_mcc: Cosine | None
    """Mean |cosine| of the encoder columns of the pairs that the decoders matched (arXiv 2501.16615)."""
    reappearing_fraction: Share | None
    """Mean share of the other seeds in which a latent has a partner of |cosine| above 0.7."""
    subspace_overlap: Share | None
    """Mean squared cosine of the principal angles of the leading decoder subspaces, over seed pairs."""
    functional_agreement: Similarity | None = None
    """Mean R of the contributions of matched latents to held-out reconstructions: 1 if one can stand for the other.
    Null in records that are older than this measure."""
    functional_rare: Similarity | None = None
    functional_frequent: Similarity | None = None
    """The same of the third of the matched latents that fire most rarely, and of the third that fire most often."""
    saebench_delta: float
    """Over all seeds and data sets, duplicate prompts left out."""
    saebench_low: float | None
    saebench_high: float | None
    """Its two-way 95 % interval, over seeds and data sets."""
    saebench_delta_keep: float
    """As published, duplicate prompts kept."""
    largest_k_delta: float
    """The delta of probes that read as many latents as the parameters allow."""
    full_width_delta: float
    """The delta of L2 probes on all latents at once."""
    supervised_delta: float
    """The delta of a latent that is trained on the labels: the raw activation's score, cut off at 0; the same for every
    SAE."""
    oracle_delta: float
    """The delta of probes whose latents and weights are fitted on the test rows, latent by latent: no exact bound."""
    single_latent_delta: float
    """The delta of the best single latent by its test AUC: exact, no probe of one latent exceeds it."""

    def _check(self) -> None:
        if self.pwmcc is not None and self.pwmcc_max is not None and self.pwmcc > self.pwmcc_max + 1e-6:
            raise ValueError(f"pwmcc = {self.pwmcc} lies above {self.pwmcc_max}, the mean of the maxima")

    def _derived(self, step: str, run: RunTables) -> dict[str, Any]:
        members = run.rows(step, "members", condition=self.condition)
        pairs = pairs_of(self.condition, [member.seed for member in members], run.rows(step, "pairs"))
        units = [member.unit for member in members]
        found = pwmcc_interval(between_units(pairs, units)) if len(set(units)) > 1 else None
        mean, null = found.mean if found else None, self.null_gaussian
        what = "seeds" if all(member.reference is None for member in members) else "references"
        notes = {
            "a single seed has no agreement across seeds": len(members) == 1,
            "all seeds have one reference, so none of them are unrelated": found is None and len(members) > 1,
            f"too few {what} for an interval": found is not None and found.low is None,
        }
        probes = run.rows(step, "probes", condition=self.condition)
        limits, sets = run.rows(step, "ceilings", condition=self.condition), saebench_interval(probes)
        return {
            "architecture": members[0].architecture,
            "n_seeds": len(members),
            "pwmcc": mean,
            "pwmcc_low": found and found.low,
            "pwmcc_high": found and found.high,
            "pwmcc_within": mean_within_units(pairs, units),
            "pwmcc_corrected": None if mean is None or null is None else (mean - null) / (1 - null),
            "saebench_delta": sets.mean,
            "saebench_low": sets.low,
            "saebench_high": sets.high,
            "saebench_delta_keep": mean_over_sets(probes, "delta", "keep"),
            **{column: mean_ceiling(limits, column) for column in CEILINGS},
            "note": noted(notes),
        }


class PairRow(MeasuredRow):
    """Two seeds of one condition, or of one stress control, beside each other."""

    of: str
    """The condition, or the control: random_model, random_decoder or transcoder."""
    seed_a: int
    seed_b: int
    pwmcc: Cosine
    """Mean |cosine| of the decoder rows under the best one-to-one assignment; groups and controls follow from it."""


def pairs_of(of: str, seeds: Sequence[int], rows: Iterable[PairRow]) -> Pairs:
    """The table `[S, S]` of PW-MCC of the pairs of these seeds; KeyError where one is missing."""
    known = {(row.seed_a, row.seed_b): row.pwmcc for row in rows if row.of == of}
    pairs = {(i, j): known[seeds[i], seeds[j]] for i in range(len(seeds)) for j in range(i + 1, len(seeds))}
    return pair_table(len(seeds), pairs)


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

    def _check(self) -> None:
        scores = (self.contrastive, self.interpretability, self.interpretability_as_released)
        if not 0 <= self.l0 <= self.d_sae or max(scores) > self.ceiling * (1 + 1e-5):
            raise ValueError(f"l0 = {self.l0} or a score of {max(scores)} is impossible for {self.d_sae} latents")

    def _derived(self, step: str, run: RunTables) -> dict[str, Any]:  # noqa: ARG002 -- from the row alone
        constant = "no calibrated score: its null does not vary"
        return {"ceiling": ceiling(self.d_sae), "note": noted({constant: self.calibrated is None})}
