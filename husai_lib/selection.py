"""Which group goes before the gate: measured members in, one candidate and its reasons out.

Members -> groups (one condition of one source) -> eligible groups -> lower bound of each metric over
seeds -> Pareto front on (SAEBench, CE-Bench) -> weighted sum of min-max normalised metrics -> the best
group of the front. Pure: no files, no torch; the order of the input never matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from math import isfinite
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from husai_lib.errors import DataError
from husai_lib.evidence import Record
from husai_lib.files import canonical_json
from husai_lib.intervals import Interval, mean_interval
from husai_lib.params import SelectionParams
from husai_lib.records import CandidateRow, MemberRow

METRICS = ("saebench_delta", "cebench_delta", "explained_variance")
WEIGHTS: tuple[Literal["saebench", "cebench", "train_ev"], ...] = ("saebench", "cebench", "train_ev")

Scores = NDArray[np.float64]
"""`[..., groups, 3]` in the order of METRICS; -inf where a metric is missing, which is worse than any value."""


@dataclass(frozen=True)
class Candidate:
    """One member as selection sees it."""

    source: str
    """The record it comes from: its step, with cycle and run where that is another one."""
    condition: str
    architecture: str
    seed: int
    saebench_delta: float | None
    """None if it was not measured; 0.0 is a measurement. The same for the two below."""
    cebench_delta: float | None
    explained_variance: float | None
    l0_matched: bool
    key: str = ""
    """Cache key of the weights."""
    weights_sha256: str = ""
    comparability: Mapping[str, str] = field(default_factory=dict)
    """What must be equal among all candidates: model, hook, data sets, ks, pairs, baseline."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.source}/{self.condition}, seed {self.seed}"


@dataclass(frozen=True)
class Group:
    """The members of one condition of one source that passed the floors, by seed."""

    source: str
    condition: str
    architecture: str
    members: tuple[Candidate, ...]
    intervals: tuple[Interval | None, ...]
    """Of each of METRICS over the members; None where one of them lacks it."""
    dropped: str
    """Why it cannot be selected; empty if it can."""
    note: str
    """Which members failed the floors, and why."""
    joint_score: float | None = None
    """Weighted sum of the normalised metrics, among eligible groups."""
    on_front: bool = False
    selection_probability: float | None = None
    """Share of bootstraps over seeds in which the group is selected."""

    @property
    def name(self) -> str:
        """`<source>/<condition>`, unique in a selection."""
        return f"{self.source}/{self.condition}"


@dataclass(frozen=True)
class Selection:
    """What was selected, from what, and how firmly."""

    groups: tuple[Group, ...]
    """The winner, the rest of the Pareto front, the other eligible groups by score, the dropped ones."""
    winner: Group | None
    representative: Candidate | None
    """The median seed of the winner, not its luckiest; see `representative_of`."""
    reason: str
    """One sentence: why the winner, or why nobody."""
    sensitivity: dict[str, str | None]
    """The winner's name under other rules, by what is changed; None where nobody wins."""
    members: int
    """Members given; those that passed the floors are in the groups."""

    @property
    def front(self) -> tuple[Group, ...]:
        """The Pareto front, the winner first."""
        return tuple(group for group in self.groups if group.on_front)

    def rows(self) -> list[CandidateRow]:
        """One row a group, dropped ones included with the reason as their note."""
        return [_row(group, group is self.winner) for group in self.groups]

    def summary(self) -> dict[str, Any]:
        """The decision as JSON values, for `selection_summary.json` (`selected` for `selected_candidate.json`)."""
        chosen = self.representative
        return {
            "selected": chosen and {
                "source": chosen.source, "condition": chosen.condition, "architecture": chosen.architecture,
                "seed": chosen.seed, "key": chosen.key, "weights_sha256": chosen.weights_sha256,
            },
            "reason": self.reason,
            "counts": {
                "members": self.members,
                "eligible_members": sum(len(group.members) for group in self.groups),
                "groups": len(self.groups),
                "eligible_groups": sum(not group.dropped for group in self.groups),
                "pareto": len(self.front),
            },
            "dropped": {group.name: "; ".join(filter(None, (group.dropped, group.note)))
                        for group in self.groups if group.dropped or group.note},
            "sensitivity": self.sensitivity,
        }  # fmt: skip


def candidates_from(source: str, members: Sequence[MemberRow], comparability: Mapping[str, str]) -> list[Candidate]:
    """The members of one record as candidates; `source` names the record."""
    shared = ("condition", "architecture", "seed", *METRICS, "l0_matched", "key", "weights_sha256")
    return [
        Candidate(source, comparability=comparability, **member.model_dump(include=set(shared))) for member in members
    ]


def measured_on(activations: Record, baselines: Record) -> dict[str, str]:
    """What the members of a run were measured on, for `Candidate.comparability`."""
    given, bench = activations.data["parameters"], baselines.data["parameters"]
    shapes = [(c["d_sae"], c["k"], seed) for c in bench["conditions"] for seed in bench["seeds"]]
    rows = [row for row in baselines.table("members") if any(row.is_baseline_of(*shape) for shape in shapes)]
    weights = sorted(row.weights_sha256 for row in rows)
    parts = {
        "model": given["model"], "hook": given["activations"]["hook_name"], "data sets": given["texts"]["probing"],
        "probing": bench["probing"], "stories": given["texts"]["stories"],
        "pairs": {key: value for key, value in bench["contrastive"].items() if key != "study"},
        "baseline": weights,
    }  # fmt: skip
    return {what: canonical_json(part).strip() for what, part in parts.items()}


def select(candidates: Sequence[Candidate], rules: SelectionParams) -> Selection:
    """The best group of the Pareto front under `rules`; without an eligible group, a reason and no winner.

    Raises DataError for values that are not finite, for one seed of a condition given twice and for
    candidates measured on different things, which cannot be ranked together.
    """
    members = sorted(candidates, key=lambda c: (c.source, c.condition, c.seed))
    _check(members)
    groups = _groups(members, rules)
    eligible = [group for group in groups if not group.dropped]
    if not eligible:
        why = "; ".join(f"{group.name}: {group.dropped}" for group in groups) or "there are no candidates"
        return Selection(tuple(groups), None, None, f"No group is eligible: {why}.", {}, len(members))
    scores = _scores(eligible, rules)
    joint, front, best = rank(scores, _weights(rules))
    chances = _selection_probabilities(eligible, rules)
    ranked = [
        replace(group, joint_score=float(joint[g]), on_front=bool(front[g]), selection_probability=chances[g])
        for g, group in enumerate(eligible)
    ]
    winner = ranked[int(best)]
    ranked.sort(key=lambda g: (not g.on_front, -(g.joint_score or 0.0), g.name))
    reason = (
        f"{winner.name} has the highest joint score, {winner.joint_score:.4g}, of the {int(front.sum())} on the "
        f"Pareto front of {len(eligible)} eligible groups."
    )
    return Selection(
        groups=(*ranked, *(group for group in groups if group.dropped)),
        winner=winner,
        representative=representative_of(winner, eligible, rules),
        reason=reason,
        sensitivity=_sensitivity(members, rules),
        members=len(members),
    )


def rank(scores: Scores, weights: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.intp]]:
    """Joint score and Pareto membership `[..., groups]` and the winner's position `[...]`.

    The first two metrics span the front: a group is off it if another is at least as good in both and
    better in one. Of equal joint scores the first group wins; groups come in the order of their names.
    """
    saebench, cebench = np.ascontiguousarray(scores[..., 0]), np.ascontiguousarray(scores[..., 1])
    front = np.ones(saebench.shape, dtype=bool)
    for g in range(saebench.shape[-1]):
        s, c = saebench[..., g : g + 1], cebench[..., g : g + 1]
        front &= ~((s >= saebench) & (c >= cebench) & ((s > saebench) | (c > cebench)))
    joint = joint_scores(scores, weights)
    return joint, front, np.where(front, joint, -np.inf).argmax(axis=-1)


def joint_scores(scores: Scores, weights: Sequence[float]) -> NDArray[np.float64]:
    """Weighted sum of the metrics, each scaled to 0..1 from the worst to the best of the groups.

    A metric on which all groups agree, to rounding, gives 0 to all, and a missing one gives 0.
    """
    present = np.isfinite(scores)
    low = np.where(present, scores, np.inf).min(axis=-2, keepdims=True)
    high = np.where(present, scores, -np.inf).max(axis=-2, keepdims=True)
    span = np.where(high > low, high - low, 0.0)
    differs = span > 1e-12 * np.maximum(np.abs(high), np.abs(low))
    scaled = np.where(present & differs, (scores - low) / np.where(differs, span, 1.0), 0.0)
    total: NDArray[np.float64] = scaled @ np.asarray(weights)
    return total


def representative_of(winner: Group, eligible: Sequence[Group], rules: SelectionParams) -> Candidate:
    """The winner's member whose own joint score is the median: the lower of two middle ones, then the lower seed.

    Own joint scores come from the members' values, normalised over the members of all eligible groups.
    """
    everyone = [member for group in eligible for member in group.members]
    joint = joint_scores(np.array([_values(member) for member in everyone]), _weights(rules))
    own = [(joint[i], m.seed, m) for i, m in enumerate(everyone) if m in winner.members]
    return sorted(own, key=lambda entry: entry[:2])[(len(own) - 1) // 2][2]


def _check(members: Sequence[Candidate]) -> None:
    for member in members:
        for metric in METRICS:
            value = getattr(member, metric)
            if value is not None and not isfinite(value):
                raise DataError(f"{member.name}: {metric} is {value}; a missing value is null, measure it again")
        first = members[0]
        for what in sorted({*first.comparability, *member.comparability}):
            mine, other = member.comparability.get(what), first.comparability.get(what)
            if mine != other:
                raise DataError(
                    f"{first.name} and {member.name} cannot be ranked together: {what} is {other!r} and {mine!r}; "
                    "measure both on the same"
                )
    for a, b in pairwise(members):
        if a.name == b.name:
            raise DataError(f"{a.name} is given twice; name each record once")


def _groups(members: Sequence[Candidate], rules: SelectionParams) -> list[Group]:
    by_group = groupby(members, key=lambda c: (c.source, c.condition))
    return [_group(list(those), rules) for _, those in by_group]


def _group(members: list[Candidate], rules: SelectionParams) -> Group:
    reasons = {member.seed: _ineligible(member, rules) for member in members}
    kept = tuple(member for member in members if not reasons[member.seed])
    columns = [[getattr(member, metric) for member in kept] for metric in METRICS]
    intervals = tuple(
        None if not column or None in column else mean_interval(column, rules.interval, rules.seed)
        for column in columns
    )
    unmatched = [member.seed for member in members if not member.l0_matched]
    if len(kept) < rules.min_seeds:
        dropped = f"{len(kept)} eligible seeds, {rules.min_seeds} are needed"
    elif rules.require_matched_l0 and unmatched:
        dropped = f"L0 is not within 10 % of k at seeds {', '.join(map(str, unmatched))}"
    elif all(_score(interval, rules) is None for interval in intervals[:2]):
        dropped = "neither external metric has a bound over the seeds" if rules.mode == "lcb" else "no external metric"
    else:
        dropped = ""
    note = "; ".join(f"seed {seed}: {reason}" for seed, reason in reasons.items() if reason)
    first = members[0]
    return Group(first.source, first.condition, first.architecture, kept, intervals, dropped, note)


def _ineligible(member: Candidate, rules: SelectionParams) -> str:
    floors = {"saebench_delta": rules.min_saebench_delta, "cebench_delta": rules.min_cebench_delta}
    for metric, floor in floors.items():
        value = getattr(member, metric)
        if value is None and (rules.require_both_external or floor is not None):
            return f"no {metric}"
        if value is not None and floor is not None and value < floor:
            return f"{metric} {value:.4g} is below {floor:.4g}"
    return ""


def _score(interval: Interval | None, rules: SelectionParams) -> float | None:
    if interval is None:
        return None
    return interval.low if rules.mode == "lcb" else interval.mean


def _scores(groups: Sequence[Group], rules: SelectionParams) -> Scores:
    table = [[_score(interval, rules) for interval in group.intervals] for group in groups]
    return np.array([[-np.inf if score is None else score for score in row] for row in table])


def _values(member: Candidate) -> list[float]:
    values = [getattr(member, metric) for metric in METRICS]
    return [-np.inf if value is None else value for value in values]


def _weights(rules: SelectionParams) -> list[float]:
    return [rules.weights[name] for name in WEIGHTS]


def _sensitivity(members: Sequence[Candidate], rules: SelectionParams) -> dict[str, str | None]:
    changes: dict[str, dict[str, Any]] = {f"min_seeds {n}": {"min_seeds": n} for n in (3, 4)}
    for name in WEIGHTS:
        for percent in (-50, 50):
            weights = {**rules.weights, name: rules.weights[name] * (1 + percent / 100)}
            changes[f"weight {name} {percent:+d} %"] = {"weights": weights}
    return {what: _winner_name(members, rules.model_copy(update=change)) for what, change in changes.items()}


def _winner_name(members: Sequence[Candidate], rules: SelectionParams) -> str | None:
    eligible = [group for group in _groups(members, rules) if not group.dropped]
    return eligible[int(rank(_scores(eligible, rules), _weights(rules))[2])].name if eligible else None


def _selection_probabilities(groups: Sequence[Group], rules: SelectionParams) -> list[float | None]:
    """How often each group wins when the seeds of every group are drawn again with replacement."""
    if rules.bootstraps == 0:
        return [None] * len(groups)
    scores = np.stack([_resampled_scores(group, rules) for group in groups], axis=1)
    winners = rank(scores, _weights(rules))[2]
    return [float(share) for share in np.bincount(winners, minlength=len(groups)) / rules.bootstraps]


def _resampled_scores(group: Group, rules: SelectionParams) -> Scores:
    """The group's scores `[bootstraps, 3]`; all metrics of a bootstrap come from the same seeds.

    A draw of one seed alone has no bound and is drawn again. The distance from mean to bound scales
    with the standard deviation of the draw, which is exact for `t` and `normal`.
    """
    n = len(group.members)
    rng = np.random.default_rng([rules.seed, *f"selection {group.name}".encode()])
    draws = rng.integers(n, size=(rules.bootstraps, n))
    while rules.mode == "lcb" and n > 1 and (alone := (draws == draws[:, :1]).all(axis=1)).any():
        draws[alone] = rng.integers(n, size=(int(alone.sum()), n))
    scores = np.full((rules.bootstraps, len(METRICS)), -np.inf)
    values = np.array([_values(member) for member in group.members])
    for m, interval in enumerate(group.intervals):
        score = _score(interval, rules)
        if interval is None or score is None:
            continue
        drawn = values[draws, m]
        scores[:, m] = drawn.mean(axis=1)
        if interval.std:
            scores[:, m] -= (interval.mean - score) / interval.std * drawn.std(axis=1, ddof=1)
    return scores


def _row(group: Group, selected: bool) -> CandidateRow:
    means = [interval.mean if interval else None for interval in group.intervals]
    lows = [interval.low if interval else None for interval in group.intervals]
    return CandidateRow(
        source=group.source,
        condition=group.condition,
        architecture=group.architecture,
        n_seeds=len(group.members),
        saebench_delta=means[0],
        saebench_delta_low=lows[0],
        cebench_delta=means[1],
        cebench_delta_low=lows[1],
        explained_variance=means[2],
        explained_variance_low=lows[2],
        joint_score=group.joint_score,
        on_front=group.on_front,
        selected=selected,
        selection_probability=group.selection_probability,
        note="; ".join(filter(None, (group.dropped, group.note))),
    )
