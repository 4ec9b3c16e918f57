"""Rows of phase 4d: the consistency objective swept over its weight, its checkpoints, the test on known features."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from husai_lib.evidence.rows.base import Cosine, MeasuredRow, RunTables, Similarity, Variance, minus
from husai_lib.evidence.rows.measured import pairs_of
from husai_lib.evidence.rows.probes import mean_over_sets
from husai_lib.intervals import pwmcc_interval
from husai_lib.params.consistency import ConsistencyParams
from husai_lib.params.sections import Count

GATES = {
    "delta_pwmcc": "min_delta_pwmcc", "delta_lcb": "min_delta_lcb", "ev_drop": "max_ev_drop",
    "external": "min_external_delta", "cebench": "min_cebench_delta",
}  # fmt: skip
"""What a weight of the objective must meet, in the order of tables, and the field of `AcceptanceParams` for each."""


OF_GROUP = ("note", "pwmcc", "pwmcc_low", "pwmcc_high", "pwmcc_within")
"""Columns that a weight has from its row in the table of groups."""


def random_of(d_sae: int) -> str:
    """The name under which pairs of random decoders of this width are recorded."""
    return f"random_decoder_{d_sae}"


def acceptance_verdicts(values: Mapping[str, float | None], limits: Mapping[str, Any]) -> dict[str, str]:
    """Of each gate of a sweep pass, fail, or missing where it has no value; empty where it is not asked for."""

    def verdict(gate: str, value: float | None, threshold: float | None) -> str:
        if threshold is None or value is None:
            return "" if threshold is None else "missing"
        return "pass" if (value <= threshold if gate == "ev_drop" else value >= threshold) else "fail"

    return {gate: verdict(gate, values[gate], limits[limit]) for gate, limit in GATES.items()}


class SweepRow(MeasuredRow):
    """One weight of the consistency objective: what it did to the seeds, and whether that is accepted."""

    condition: str
    base: str
    """The same condition at weight 0."""
    weight: float
    n_seeds: Count
    pwmcc: Cosine | None
    pwmcc_low: float | None
    pwmcc_high: float | None
    pwmcc_within: Cosine | None
    """As in the table of groups."""
    random: Cosine
    """PW-MCC of random decoders of the same shape at the same seeds."""
    random_high: float | None
    delta_pwmcc: float | None
    delta_lcb: float | None
    """pwmcc_low - random_high; null where either has no bound."""
    alignment: Cosine | None
    """Mean |cosine| of the decoder rows with their partners in the reference, over seeds; null at weight 0."""
    explained_variance: Variance
    ev_drop: float
    """That of the group at weight 0 minus this."""
    external_delta: float
    """Mean SAEBench delta (AUC)."""
    cebench_delta: float | None
    gate_delta_pwmcc: str
    gate_delta_lcb: str
    gate_ev_drop: str
    gate_external: str
    gate_cebench: str
    """pass, fail or missing; empty where the parameters do not ask for it."""
    accepted: bool
    checkpoint_seed: int
    """The seed whose checkpoint stands for the group: the best by its external score."""

    def _derived(self, step: str, run: RunTables) -> dict[str, Any]:
        sweep = run.parameters["consistency"]
        params = ConsistencyParams.model_validate(sweep)
        objective = next(one.consistency for one in params.swept() if one.name == self.condition)
        base = params.base_of(self.condition)
        members, before = (run.rows(step, "members", condition=name) for name in (self.condition, base))
        [group] = run.rows(step, "groups", condition=self.condition)
        seeds, control = [member.seed for member in members], random_of(members[0].d_sae)
        random = pwmcc_interval(pairs_of(control, seeds, run.rows(step, "pairs")))
        checkpoints = run.rows(step, "checkpoints", condition=self.condition)
        alignments = [row.alignment for row in checkpoints if row.alignment is not None]
        ev, deltas = fmean(member.explained_variance for member in members), [one.cebench_delta for one in members]
        cebench = None if None in deltas else fmean(deltas)
        values = {
            "delta_pwmcc": minus(group.pwmcc, random.mean),
            "delta_lcb": minus(group.pwmcc_low, random.high),
            "ev_drop": fmean(member.explained_variance for member in before) - ev,
            "external": group.saebench_delta,
            "cebench": cebench,
        }
        verdicts = acceptance_verdicts(values, sweep["acceptance"])
        return {column: getattr(group, column) for column in OF_GROUP} | {
            "base": base,
            "weight": objective.weight if objective else 0.0,
            "n_seeds": len(members),
            "random": random.mean,
            "random_high": random.high,
            **{gate: values[gate] for gate in ("delta_pwmcc", "delta_lcb", "ev_drop")},
            "alignment": fmean(alignments) if alignments else None,
            "explained_variance": ev,
            "external_delta": values["external"],
            "cebench_delta": cebench,
            **{f"gate_{gate}": verdict for gate, verdict in verdicts.items()},
            "accepted": {*verdicts.values()} <= {"pass", ""},
            "checkpoint_seed": max(checkpoints, key=lambda row: row.external_score).seed,
        }


class CheckpointRow(MeasuredRow):
    """One seed of a group of the sweep by validation metrics, which decide the checkpoint; gates read test metrics."""

    condition: str
    seed: int
    saebench: float
    """Mean validation AUC of its probes, without duplicate prompts."""
    cebench: float
    """CE-Bench interpretability on further pairs of stories (standard deviations over latents)."""
    alignment: Cosine | None
    """Mean |cosine| of the decoder rows with their partners in the reference; null without one."""
    ev: Variance
    """Explained variance on further held-out texts."""
    external_score: float
    """Weighted sum of the four, each scaled to 0 for the worst seed of the group and 1 for the best."""

    def _derived(self, step: str, run: RunTables) -> dict[str, Any]:
        weights = run.parameters["consistency"]["external_score"]
        group = run.rows(step, "checkpoints", condition=self.condition) or [self]
        probes = run.rows(step, "probes", condition=self.condition, seed=self.seed)
        score = 0.0
        for metric, weight in weights.items():
            values = [value for row in group if (value := getattr(row, metric)) is not None]
            if values and (spread := max(values) - min(values)):
                score += weight * (getattr(self, metric) - min(values)) / spread
        return {"saebench": mean_over_sets(probes, "validation_auc", "drop"), "external_score": score}


class TruthRow(MeasuredRow):
    """SAEs of activations with known features, trained with one weight of the objective."""

    weight: float
    recovery: Cosine
    """MCC with the true features: mean |cosine| of decoder rows and features, matched one to one, over seeds."""
    pwmcc: Cosine
    pwmcc_within: Cosine | None
    """Over pairs of seeds of one reference; null at weight 0."""
    functional_agreement: Similarity
    """Of unrelated seeds, on held-out rows."""
    explained_variance: Variance
