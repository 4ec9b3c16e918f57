"""Rows of the judging wing: candidates, gates and decision criteria."""

from husai_lib.evidence.rows.base import Row


class CandidateRow(Row):
    """A group as selection sees it: bounds, ranks and what became of it."""

    source: str
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


class GateRow(Row):
    """One requirement of the release gate."""

    gate: str
    metric: str
    value: float | None
    bound: float | None
    """The conservative end of the value's two-sided interval."""
    level: float | None = None
    """Confidence of the interval: 0.95, or higher if the group was selected by these seeds."""
    sets_level: float | None = None
    """Confidence of its part over data sets; null but for SAEBench."""
    ceiling: float | None = None
    """The largest value that this group can reach; null where it is not known exactly."""
    threshold: float
    direction: str
    """`above` or `below` the threshold passes."""
    required: bool
    verdict: str
    """pass, fail, missing or unreachable."""
    source: str


class CriterionRow(Row):
    """One comparison of this cycle's candidate with that of an earlier run: a part of a decision criterion."""

    criterion: int
    """1: both external deltas improve jointly, by their bounds; 2: a better outcome of the gate, no control lost."""
    earlier: str
    metric: str
    """saebench_delta, cebench_delta, or a gate."""
    here: float | None
    there: float | None
    difference: float | None
    """Of the candidates of this cycle and of the earlier run: here minus there."""
    difference_low: float | None
    difference_high: float | None
    """95 % interval of the difference: Welch's, never narrower than either side's own."""
    verdict_here: str = ""
    verdict_there: str = ""
    """Of a gate: pass, fail, missing or unreachable; empty for a metric."""
    outcome: str
    """met, not met, or not comparable."""
