"""Rows of imported records of 2026-02, and of their decisions repeated."""

from typing import Annotated

from pydantic import Field

from husai_lib.evidence.rows.base import Row


class ReplayRow(Row):
    """An imported decision repeated by its own rules, and how its stated numbers compare with ours."""

    decision: str
    """Its imported record."""
    winner: str | None
    """The condition that the repeated selection chose."""
    values: int
    """Number of stated numbers and names that were compared."""
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
    model: str
    hook_name: str
    explained_variance: float | None
    """On the rows it was trained on, as are the next two; of an assignment record the mean over its seeds."""
    l0: float | None
    mse: float | None
    saebench_delta: float | None
    """Test AUC of the k that is best on the test set, minus that of the raw activation."""
    llm_auc: float | None
    """Mean test AUC of logistic regression on the raw activation."""
    data_sets: str
    ks: Annotated[str, Field(pattern=r"^([0-9]+(, ?[0-9]+)*)?$")]
    """How many latents a probe could use, joined by commas."""
    results_path: str
    """Folder from which its SAEBench means were read."""
    cebench_interpretability: float | None
    cebench_delta: float | None
    cebench_baseline: str
    """Release and id of the SAE it was compared with; empty where there was none."""
    cebench_baseline_score: float | None
    pairs: str
    """Where the stories come from and how many pairs were used."""
    evaluated_as: str
    """The architecture whose encoder the benchmarks used, where the record says so."""
    failed: str
    checkpoint: str
    """Where its weights were, on a machine of that time."""
    weights_sha256: str


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
    """95 % intervals over the seeds (z = 1.96)."""


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
    control: float | None
    delta: float | None
    delta_low: float | None
    """As they stated it: lower end of the one interval minus upper end of the other."""
    explained_variance: float | None
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
    rows: int
    """How many rows of that record it concerns."""
    what: str
    """One sentence, with the numbers that show it."""
