"""How it is decided: the rules of selection and the thresholds of the release gate."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from husai_lib.params.sections import Count, Positive, Section, Weight, distinct, one_of

RUN = r"[a-z][a-z0-9_]{0,99}/[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
EarlierRun = Annotated[str, Field(pattern=rf"^{RUN}$")]
"""`<cycle>/<run>` of an earlier run, `<cycle>/newest` for its newest complete one, or `imported/<name>`."""
Source = Annotated[str, Field(pattern=rf"^({RUN}/)?[a-z][a-z0-9_]{{0,99}}$")]
"""A step of this run, or `<earlier run>/<step>`."""

FEW_SEEDS = 10
"""Below this number of seeds only t intervals cover as often as they state."""
Metric = Literal["saebench", "cebench", "train_ev"]
WEIGHTS: dict[str, dict[Metric, float]] = {
    "balanced": {"saebench": 0.5, "cebench": 0.5, "train_ev": 0.1},
    "probing_first": {"saebench": 0.70, "cebench": 0.25, "train_ev": 0.05},
}
"""Named sets of selection weights; earlier cycles used both."""


def _named_weights(given: Any) -> Any:
    return WEIGHTS[one_of(given, WEIGHTS, "set of weights")] if isinstance(given, str) else given


class SelectionParams(Section):
    """How one group is chosen among all that were measured."""

    rules: Literal["current", "2026-02"] = "current"
    """`2026-02` reproduces decisions of that time: bounds are 1.96 standard errors, floors drop single seeds,
    conditions are merged by name over all sources, neither L0 nor what was measured on what is checked, SAEBench deltas
    keep duplicate prompts, and the best-scoring seed represents a group."""
    sources: Annotated[list[Source], Field(min_length=1)] = ["frontier"]  # noqa: RUF012 -- pydantic copies it
    """Where candidates come from: steps of this run, and steps of earlier runs as `<cycle>/<run>/<step>`,
    where `newest` stands for the newest complete run."""
    mode: Literal["lcb", "mean"] = "lcb"
    """Rank groups by the lower confidence bound of their mean, or by the mean."""
    grouping: Literal["condition", "seed"] = "condition"
    """`seed` ranks every SAE alone, by its own values: it rewards the luckiest seed, and serves only for comparison."""
    interval: Literal["t", "normal", "bootstrap"] = "t"
    """How a bound over seeds is computed. `bootstrap` and `normal` are too narrow for few seeds (with 3, their lower
    bounds lie above the truth in 13 % and 10 % of cases instead of 2.5 %), so they need min_seeds of 10 or more;
    `normal` also reproduces old decisions."""
    scaling: Literal["minmax", "rank"] = "minmax"
    """How metrics become scores: min-max over the eligible groups, or the rank on the Pareto front, which no dominated
    group can change."""
    min_seeds: Positive = 3
    """Number of seeds that a group needs; smaller groups are dropped."""
    require_both_external: bool = True
    """Whether to drop groups with a member that lacks an external delta."""
    require_matched_l0: bool = True
    """Whether to drop groups whose L0 is more than 10 % off the target k: their CE-Bench baseline is not matched."""
    require_matched_baseline: bool = True
    """Whether to drop groups whose CE-Bench delta is against a baseline of another width or L0, or of unknown ones."""
    min_saebench_delta: float | None = None
    """Lowest mean SAEBench delta (AUC) that a group may have; null for none."""
    min_cebench_delta: float | None = None
    """Lowest mean CE-Bench delta (standard deviations over latents) that a group may have; null for none."""
    weights: Annotated[dict[Metric, Weight], BeforeValidator(_named_weights), Field(min_length=3)] = WEIGHTS["balanced"]
    """Weights of the scaled metrics in the joint score, or the name of a set: `balanced` (0.5, 0.5, 0.1) or
    `probing_first` (0.70, 0.25, 0.05)."""
    bootstraps: Count = 2000
    """Number of bootstraps over seeds behind each group's selection probability."""
    seed: int = 0
    """Seed of the bootstraps."""

    @model_validator(mode="before")
    @classmethod
    def _default_rules_of_2026_02(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("rules") == "2026-02":
            return {"interval": "normal", "require_matched_l0": False, **data}
        return data

    def _check(self) -> None:
        distinct(self.sources, "source")
        if not any(self.weights.values()):
            raise ValueError("weights are all 0, so that no group is better than another; give at least one above 0")
        if self.rules == "2026-02" and (self.interval, self.scaling) != ("normal", "minmax"):
            raise ValueError("the rules 2026-02 have interval: normal and scaling: minmax only; leave both out")
        if self.rules == "current" and self.interval != "t" and self.min_seeds < FEW_SEEDS:
            narrow = f"interval: {self.interval} is too narrow for fewer than {FEW_SEEDS} seeds"
            raise ValueError(f"{narrow}, and min_seeds is {self.min_seeds}; write interval: t")
        if self.mode == "lcb" and self.grouping == "condition" and self.min_seeds < 2 and self.interval != "normal":
            raise ValueError("min_seeds must be at least 2 in lcb mode: one seed has no bound")


class ConfirmationParams(Section):
    """Fresh seeds of the selected condition and its baselines, trained after selection: the gate reads only these."""

    seeds: list[Count] = []  # noqa: RUF012 -- pydantic copies it
    """Seeds that no SAE of the selection has, at least 3. Without any, the gate reads the seeds that were selected, by
    bounds whose error rate is shared among all groups that were compared."""

    def _check(self) -> None:
        distinct(self.seeds, "confirmation seed")
        if 0 < len(self.seeds) < 3:
            raise ValueError(f"confirmation.seeds: {len(self.seeds)} give PW-MCC no bound; give at least 3, or none")


class GateParams(Section):
    """Thresholds of the release gate. A required gate without a result fails."""

    basis: Literal["bound", "value"] = "bound"
    """Whether a gate reads the conservative end of the interval or the estimate."""
    min_random_model_delta: float = 0.0
    """PW-MCC of the candidate minus that of each random control must exceed this."""
    min_transcoder_delta: float = -0.05
    """PW-MCC of the candidate minus the transcoder's must reach this: below 0, it may be that much less stable."""
    max_ood_drop: float = 0.10
    """The share of its AUC above chance that the raw activation retains under shift, minus the share that the SAE
    retains, may not exceed this."""
    min_saebench_delta: float = 0.0
    """The candidate group's SAEBench delta (AUC) must reach this."""
    min_cebench_delta: float = 0.0
    """The candidate group's CE-Bench delta against the matched baseline (standard deviations over latents) must reach
    this."""
    min_cebench_calibrated_delta: float = 0.0
    """The same of the calibrated score (standard deviations of its permutation null)."""
    require_random_model: bool = True
    """Whether both random controls must pass: every model with random weights, and random decoders."""
    require_transcoder: bool = True
    """Whether the transcoder control must pass."""
    require_ood: bool = True
    """Whether the out-of-distribution control must pass, and probes in domain must exceed chance."""
    require_external: bool = True
    """Whether both external benchmarks must pass: SAEBench, and CE-Bench raw and calibrated."""
