"""How it is decided: the rules of selection and the thresholds of the release gate."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from husai_lib.params.sections import Count, Positive, Section, Weight, distinct, one_of

RUN = r"[a-z][a-z0-9_]*/[A-Za-z0-9][A-Za-z0-9_.-]*"
EarlierRun = Annotated[str, Field(pattern=rf"^{RUN}$")]
"""`<cycle>/<run>` of an earlier run, or `imported/<name>`."""
Source = Annotated[str, Field(pattern=rf"^({RUN}/)?[a-z][a-z0-9_]*$")]
"""A step of this run, or `<earlier run>/<step>`."""

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
    """`2026-02` reproduces decisions of that time: bounds are 1.96 standard errors, conditions are merged by name over
    all sources, neither L0 nor what was measured on what is checked, and the best-scoring seed represents a group."""
    sources: Annotated[list[Source], Field(min_length=1)] = ["frontier"]  # noqa: RUF012 -- pydantic copies it
    """Where candidates come from: steps of this run, and steps of earlier runs as `<cycle>/<run>/<step>`."""
    mode: Literal["lcb", "mean"] = "lcb"
    """Rank groups by the lower confidence bound of their mean, or by the mean."""
    grouping: Literal["condition", "seed"] = "condition"
    """`seed` ranks every SAE alone, by its own values: it rewards the luckiest seed, and serves only for comparison."""
    interval: Literal["t", "normal", "bootstrap"] = "t"
    """How a bound over seeds is computed; `normal` only reproduces old decisions."""
    scaling: Literal["minmax", "rank"] = "minmax"
    """How metrics become scores: min-max over the eligible groups, or the rank on the Pareto front, which no dominated
    group can change."""
    min_seeds: Positive = 3
    """Number of seeds that a group needs; smaller groups are dropped."""
    require_both_external: bool = True
    """Whether to drop members without both external deltas."""
    require_matched_l0: bool = True
    """Whether to drop groups whose L0 is more than 10 % off the target k: their CE-Bench baseline is not matched."""
    require_matched_baseline: bool = True
    """Whether to drop groups whose CE-Bench delta is against a baseline of another width or L0, or of unknown ones."""
    min_saebench_delta: float | None = None
    """Lowest SAEBench delta (AUC) that a member may have; null for none."""
    min_cebench_delta: float | None = None
    """Lowest CE-Bench delta (standard deviations over latents) that a member may have; null for none."""
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

    @model_validator(mode="after")
    def _can_rank(self) -> Self:
        distinct(self.sources, "source")
        if self.rules == "2026-02" and (self.interval, self.scaling) != ("normal", "minmax"):
            raise ValueError("the rules 2026-02 have interval: normal and scaling: minmax only; leave both out")
        if self.mode == "lcb" and self.grouping == "condition" and self.min_seeds < 2 and self.interval != "normal":
            raise ValueError("min_seeds must be at least 2 in lcb mode: one seed has no bound")
        return self


class GateParams(Section):
    """Thresholds of the release gate. A required gate without a result fails."""

    basis: Literal["bound", "value"] = "bound"
    """Whether a gate reads the conservative end of the 95 % interval or the estimate."""
    min_random_model_delta: float = 0.0
    """PW-MCC of the candidate minus that of each random control must exceed this."""
    min_transcoder_delta: float = 0.0
    """PW-MCC of the transcoder minus the candidate's must reach this."""
    max_ood_drop: float = 0.10
    """SAEBench delta (AUC) in domain minus out of domain may not exceed this."""
    min_saebench_delta: float = 0.0
    """The candidate group's SAEBench delta (AUC) must reach this."""
    min_cebench_delta: float = 0.0
    """The candidate group's CE-Bench delta against the matched baseline (standard deviations over latents) must reach
    this."""
    require_random_model: bool = True
    """Whether both random controls must pass: the model with random weights and random decoders."""
    require_transcoder: bool = True
    """Whether the transcoder control must pass."""
    require_ood: bool = True
    """Whether the out-of-distribution control must pass."""
    require_external: bool = True
    """Whether both external benchmarks must pass: SAEBench and CE-Bench."""
