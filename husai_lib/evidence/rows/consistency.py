"""Rows of phase 4d: the consistency objective swept over its weight, its checkpoints, the test on known features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from husai_lib.evidence.rows.base import Cosine, Count, MeasuredRow, RunTables, Similarity, Variance
from husai_lib.evidence.rows.measured import pairs_of
from husai_lib.evidence.rows.probes import mean_over_sets
from husai_lib.params.consistency import ConsistencyParams

GATES = ("delta_pwmcc", "delta_lcb", "ev_drop", "external", "cebench")
"""What a weight of the objective must meet, in the order in which tables have it."""


def random_of(d_sae: int) -> str:
    """The name under which pairs of random decoders of this width are recorded."""
    return f"random_decoder_{d_sae}"


def acceptance_verdicts(values: Mapping[str, float | None], limits: Mapping[str, Any]) -> dict[str, str]:
    """Of each gate of a sweep pass, fail, or missing where it has no value; empty where it is not asked for.

    `values` are named as GATES, and `limits` as `AcceptanceParams`. A drop of explained variance may reach its limit,
    every other value must.
    """
    thresholds = {
        "delta_pwmcc": limits["min_delta_pwmcc"],
        "delta_lcb": limits["min_delta_lcb"],
        "ev_drop": limits["max_ev_drop"],
        "external": limits["min_external_delta"],
        "cebench": limits["min_cebench_delta"],
    }
    verdicts = {}
    for gate, threshold in thresholds.items():
        value, sign = values[gate], -1 if gate == "ev_drop" else 1
        if threshold is None:
            verdicts[gate] = ""
        else:
            verdicts[gate] = "missing" if value is None else "pass" if sign * value >= sign * threshold else "fail"
    return verdicts


class SweepRow(MeasuredRow):
    """One weight of the consistency objective: what it did to the seeds, inside and outside, and whether that is
    accepted.
    """

    condition: str
    base: str
    """The same condition at weight 0."""
    weight: float
    """lambda of the objective."""
    n_seeds: Count
    pwmcc: Cosine | None
    """Over pairs of unrelated seeds, with its 95 % bounds; as in the table of groups."""
    pwmcc_low: float | None
    pwmcc_high: float | None
    pwmcc_within: Cosine | None
    """Over pairs of seeds of one reference or bank, which agree by construction."""
    random: Cosine
    """PW-MCC of random decoders of the same shape at the same seeds."""
    random_high: float | None
    """Its upper 95 % bound over seeds."""
    delta_pwmcc: float | None
    """pwmcc - random."""
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
    """Whether every gate that is asked for passes."""
    checkpoint_seed: int
    """The seed whose checkpoint stands for the group: the best by its external score."""

    def derived(self, step: str, run: RunTables) -> dict[str, Any]:
        """All of it, from the tables of groups, members, pairs and checkpoints."""
        from husai_lib.intervals import pwmcc_interval  # noqa: PLC0415 - as in rows/measured.py

        sweep = run.parameters["consistency"]
        weights = {name: (base, weight) for name, base, weight in swept_names(sweep)}
        base, weight = weights[self.condition]
        members, before = (run.rows(step, "members", condition=name) for name in (self.condition, base))
        [group] = run.rows(step, "groups", condition=self.condition)
        seeds, control = [member.seed for member in members], random_of(members[0].d_sae)
        random = pwmcc_interval(pairs_of(control, seeds, run.rows(step, "pairs")))
        checkpoints = run.rows(step, "checkpoints", condition=self.condition)
        alignments = [row.alignment for row in checkpoints if row.alignment is not None]
        ev, cebench = (_mean(members, column) for column in ("explained_variance", "cebench_delta"))
        assert ev is not None
        values = {
            "delta_pwmcc": _minus(group.pwmcc, random.mean),
            "delta_lcb": _minus(group.pwmcc_low, random.high),
            "ev_drop": fmean(member.explained_variance for member in before) - ev,
            "external": group.saebench_delta,
            "cebench": cebench,
        }
        verdicts = acceptance_verdicts(values, sweep["acceptance"])
        best = max(checkpoints, key=lambda row: row.external_score)
        return {
            "note": group.note,
            "base": base,
            "weight": weight,
            "n_seeds": len(members),
            "pwmcc": group.pwmcc,
            "pwmcc_low": group.pwmcc_low,
            "pwmcc_high": group.pwmcc_high,
            "pwmcc_within": group.pwmcc_within,
            "random": random.mean,
            "random_high": random.high,
            "delta_pwmcc": values["delta_pwmcc"],
            "delta_lcb": values["delta_lcb"],
            "alignment": fmean(alignments) if alignments else None,
            "explained_variance": ev,
            "ev_drop": values["ev_drop"],
            "external_delta": values["external"],
            "cebench_delta": cebench,
            **{f"gate_{gate}": verdict for gate, verdict in verdicts.items()},
            "accepted": {*verdicts.values()} <= {"pass", ""},
            "checkpoint_seed": best.seed,
        }


def swept_names(sweep: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Name, name of the base, and weight of every group of a sweep, from its section of the parameters."""
    params = ConsistencyParams.model_validate(sweep)
    weights = [weight for _ in params.conditions for weight in params.lambdas]
    return [(one.name, params.base_of(one.name), weight) for one, weight in zip(params.swept(), weights, strict=True)]


def _mean(members: Sequence[Any], column: str) -> float | None:
    values = [getattr(member, column) for member in members]
    return None if None in values else fmean(values)


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


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

    def derived(self, step: str, run: RunTables) -> dict[str, Any]:
        """The validation AUC from the probes, and the score."""
        weights = run.parameters["consistency"]["external_score"]
        group = run.rows(step, "checkpoints", condition=self.condition) or [self]
        probes = run.rows(step, "probes", condition=self.condition, seed=self.seed)
        score = 0.0
        for metric, weight in weights.items():
            values = [value for row in group if (value := getattr(row, metric)) is not None]
            if values and (spread := max(values) - min(values)):
                score += weight * (getattr(self, metric) - min(values)) / spread
        return {"note": "", "saebench": mean_over_sets(probes, "validation_auc", "drop"), "external_score": score}


class TruthRow(MeasuredRow):
    """SAEs of activations with known features, trained with one weight of the objective."""

    weight: float
    """lambda of the objective."""
    recovery: Cosine
    """MCC with the true features: mean |cosine| of decoder rows and features, matched one to one, over seeds."""
    pwmcc: Cosine
    """Over pairs of unrelated seeds."""
    pwmcc_within: Cosine | None
    """Over pairs of seeds of one reference; null at weight 0."""
    functional_agreement: Similarity
    """Of unrelated seeds, on held-out rows."""
    explained_variance: Variance
