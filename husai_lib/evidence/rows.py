"""What a step leaves: the columns of every table, with their units. This is the data dictionary.

Rows are flat. A value that is missing is null, and `note` says why.
"""

from __future__ import annotations

from collections.abc import Iterable

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


class Row(Section):
    """One row of a table."""

    note: str = ""
    """Why a value is missing or cannot be compared; empty where nothing is to be said."""


class SourceRow(Row):
    """Where rows of activations come from: one data set in one role."""

    role: str
    """training, held_out, probing, ood, shifted or stories."""
    data_set: str
    texts: int
    """Texts used."""
    tokens: int
    """Token positions, skipped ones included."""
    rows: int
    """Rows of activations kept: skipped positions and outlier norms are left out."""


class BankRow(Row):
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


class MemberRow(Row):
    """One trained SAE: a condition at a seed."""

    condition: str
    architecture: str
    seed: int
    """Of weights and data order; 0 for a given SAE, which is compared at every seed."""
    d_sae: int
    k: int
    """Target L0; of a given SAE, that of the condition nearest to it."""
    explained_variance: float
    """1 - sum |x - x^|^2 / sum |x - mean x|^2 over held-out rows."""
    l0: float
    """Mean count of non-zero latents a held-out row."""
    l0_matched: bool
    """Whether l0 lies within 10 % of k."""
    dead_fraction: float
    """Share of latents that never fire on the held-out rows."""
    saebench_auc: float
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


class GroupRow(Row):
    """The members of one condition: how alike its seeds are."""

    condition: str
    architecture: str
    n_seeds: int
    pwmcc: float
    """Mean over seed pairs of the best one-to-one |cosine| of decoder rows (arXiv 2505.20254)."""
    pwmcc_low: float | None
    pwmcc_high: float | None
    """95 % interval: leave-one-seed-out jackknife, t(S - 1); two seeds have none."""
    pwmcc_max: float
    """The older statistic: mean of row and column maxima. Never mixed with pwmcc."""
    null_random: float
    """pwmcc of random unit decoders of the same shape."""
    null_gaussian: float
    """pwmcc of the same recipe trained on Gaussian activations of the same mean and covariance."""
    pwmcc_corrected: float
    """(pwmcc - null_gaussian) / (1 - null_gaussian)."""
    encoder_mcc: float
    """Mean |cosine| of the encoder columns of the pairs that the decoders matched (arXiv 2501.16615)."""
    reappearing_fraction: float
    """Mean share of the other seeds in which a latent has a partner of |cosine| above 0.7."""
    subspace_overlap: float
    """Mean squared cosine of the principal angles of the leading decoder subspaces, over seed pairs."""
    saebench_delta: float
    """SAEBench delta over all seeds and data sets."""
    sets_low: float | None
    sets_high: float | None
    """Its 95 % interval over data sets, t(D - 1): each is paired with the raw activation's AUC, its seeds averaged."""


class PairRow(Row):
    """Two seeds of one condition, or of one stress control, beside each other."""

    of: str
    """The condition, or the control: random_model, random_decoder or transcoder."""
    seed_a: int
    seed_b: int
    pwmcc: float
    """Mean |cosine| of the decoder rows under the best one-to-one assignment; groups and controls follow from it."""


class ProbeRow(Row):
    """Sparse probing of one SAE on one data set."""

    condition: str
    seed: int
    data_set: str
    at: float | None = None
    """Training rows in the setting `scarcity`, share of class 1 in `imbalance`; null in `normal`."""
    best_k: int
    validation_auc: float
    test_auc: float
    llm_auc: float
    """Test AUC of logistic regression on the raw activation."""
    delta: float
    latents: str = ""
    """The latents that the probe reads, best first."""


class ContrastiveRow(Row):
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


class ControlRow(Row):
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


class ControlSaeRow(Row):
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


class OodRow(Row):
    """One task of the out-of-distribution control at one seed of the candidate."""

    task: str
    seed: int
    best_k: int
    in_domain_auc: float
    in_domain_llm_auc: float
    shifted_auc: float
    shifted_llm_auc: float
    drop: float
    """(in-domain AUC - its LLM AUC) - (shifted AUC - its LLM AUC)."""
    weights_sha256: str
    """Hash of the weights of the candidate's SAE of this seed."""


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
    """An imported decision taken again by its own rules, and how its stated numbers compare with ours."""

    decision: str
    """The imported record of the decision."""
    winner: str | None
    """Whom the repeated selection chose."""
    values: int
    """Stated numbers and names that were compared."""
    differing: int
    """How many of them differ by more than 1e-9 of their size."""
    largest_difference: float | None
    """Between a stated number and ours."""


class RuleChangeRow(Row):
    """An imported decision under other rules: what today's make of it, one after another."""

    decision: str
    rule: str
    """What is asked, together with the rules of the rows before."""
    over: str
    """The candidates that were ranked together."""
    winner: str | None
    representative_seed: int | None
    eligible_groups: int


class EarlierMemberRow(Row):
    """One SAE as a record of cycles of 2026-02 has it, values as they stand there; nothing is recomputed."""

    position: int
    """Its place among the records of its file, from 0."""
    condition: str
    """What its group was called: its name without `_seed<N>`."""
    architecture: str
    seed: int | None
    d_sae: int | None
    k: int | None
    """Target L0."""
    model: str
    hook_name: str
    explained_variance: float | None
    """On the rows it was trained on; of an assignment record the mean over its seeds."""
    l0: float | None
    """On the rows it was trained on."""
    saebench_delta: float | None
    """Test AUC of the k that is best on the test set, minus that of the raw activation."""
    llm_auc: float | None
    """Mean test AUC of logistic regression on the raw activation."""
    data_sets: str
    """Names of the probing data sets, joined by commas."""
    ks: str
    """How many latents a probe could use, joined by commas."""
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
    """One condition of an earlier sweep: of lambda (assignment v2, v3) or of transcoders."""

    condition: str
    d_sae: int
    k: int
    n_seeds: int | None
    pwmcc: float | None
    """Of the trained SAEs."""
    control: float | None
    """PW-MCC of what they were compared with: random decoders."""
    delta: float | None
    delta_low: float | None
    """As they stated it: lower end of the one interval minus upper end of the other."""
    explained_variance: float | None
    alignment: float | None
    """Mean |cosine| to the reference seed."""
    saebench_delta: float | None
    cebench_delta: float | None


class EarlierGateRow(Row):
    """One gate, acceptance or stress value of an earlier cycle, as stated and as its own rule gives it."""

    gate: str
    value: float | None
    bound: float | None
    threshold: float | None
    direction: str
    """`above` or `below` the threshold passes; empty where nothing was judged."""
    required: bool
    stated: str
    """pass or fail; empty where it was not judged."""
    follows: str
    """What the stated numbers give by the rule of that time."""


class CaveatRow(Row):
    """What is known to be wrong with numbers of an earlier cycle."""

    caveat: str
    """stale_results, unequal_data_sets, width_ceiling, ...: see `earlier`."""
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
