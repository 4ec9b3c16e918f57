"""Which group goes before the gate: measured members in, one candidate and the reasons out.

Members -> groups (one condition of one source) -> eligible groups -> lower bound of each metric over seeds -> Pareto
front on (SAEBench, CE-Bench) -> weighted sum of the scaled metrics -> the best group of the front.
Pure: no files, no torch; the order of the input never matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np

from husai_lib.decisions.candidates import METRICS, Candidate, check_comparable, differences
from husai_lib.decisions.ranking import WEIGHTED, Ranking, Scores, minmax, rank, weighted_sum
from husai_lib.evidence.rows import CandidateRow
from husai_lib.intervals import Interval, mean_interval
from husai_lib.params.rules import WEIGHTS, SelectionParams

SELECTED = ("source", "condition", "architecture", "seed", "key", "weights_sha256")
"""What `selected_candidate.json` says of the representative."""


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
    components: tuple[float | None, ...] = (None, None, None)
    """What each metric adds to the joint score before its weight, among eligible groups."""
    joint_score: float | None = None
    """Weighted sum of the components."""
    on_front: bool = False
    representative: Candidate | None = None
    """The member that represents the group where one checkpoint is needed."""
    selection_probability: float | None = None
    """Share of bootstraps over seeds in which the group is selected."""

    @property
    def name(self) -> str:
        """`<source>/<condition>`, unique in a selection."""
        return f"{self.source}/{self.condition}"

    @property
    def notes(self) -> str:
        """Why it was dropped, and which members were."""
        return "; ".join(filter(None, (self.dropped, self.note)))


@dataclass(frozen=True)
class Selection:
    """What was selected, from what, and how firmly."""

    groups: tuple[Group, ...]
    """The winner, the rest of the Pareto front, the other eligible groups by score, the dropped ones."""
    winner: Group | None
    reason: str
    """One sentence: why the winner, or why nobody."""
    members: int
    """Number of members given; those that passed the floors are in the groups."""
    sensitivity: dict[str, str | None] = field(default_factory=dict)
    """The winner's name under other rules, by what is changed; None where nobody wins."""
    by_scaling: dict[str, str] = field(default_factory=dict)
    """Dominated groups without which another group would win, and that group: there, min-max scaling decides."""
    pooled: dict[str, list[str]] = field(default_factory=dict)
    """Settings in which the members differ; only the rules 2026-02 rank such members together."""

    @property
    def representative(self) -> Candidate | None:
        """The representative of the winner; None without one."""
        return self.winner.representative if self.winner else None

    def rows(self) -> list[CandidateRow]:
        """One row for each group, dropped ones included with the reason as their note."""
        return [_row(group, group is self.winner) for group in self.groups]

    def summary(self) -> dict[str, Any]:
        """The decision as JSON values, for `selection_summary.json` (`selected` for `selected_candidate.json`)."""
        chosen = self.representative
        return {
            "selected": chosen and {name: getattr(chosen, name) for name in SELECTED},
            "reason": self.reason,
            "counts": {
                "members": self.members,
                "eligible_members": sum(len(group.members) for group in self.groups),
                "groups": len(self.groups),
                "eligible_groups": sum(not group.dropped for group in self.groups),
                "pareto": sum(group.on_front for group in self.groups),
            },
            "dropped": {group.name: group.notes for group in self.groups if group.notes},
            "sensitivity": self.sensitivity,
            "by_scaling": self.by_scaling,
            "pooled": self.pooled,
        }


def select(candidates: Sequence[Candidate], rules: SelectionParams) -> Selection:
    """The best group of the Pareto front under `rules`; without an eligible group, a reason and no winner.

    Raises DataError, except under the rules 2026-02, for one seed of a condition given twice and for candidates
    measured on different things, which cannot be ranked together.
    """
    members = sorted(candidates, key=lambda member: member.place)
    pooled = differences(members)
    if rules.rules == "current":
        check_comparable(members, pooled)
    groups = _groups(members, rules)
    dropped = tuple(group for group in groups if group.dropped)
    eligible = [group for group in groups if not group.dropped]
    if not eligible:
        why = "; ".join(f"{group.name}: {group.dropped}" for group in groups) or "there are no candidates"
        return Selection(dropped, None, f"No group is eligible: {why}.", len(members), pooled=pooled)
    ranking = rank(_scores(eligible, rules), rules)
    ranked = _ranked(groups, eligible, ranking, rules)
    winner = ranked[int(ranking.winner)]
    reason = (
        f"{winner.name} has the highest joint score, {winner.joint_score:.4g}, of the {int(ranking.front.sum())} on "
        f"the Pareto front of {len(eligible)} eligible groups."
    )
    ranked.sort(key=lambda g: (not g.on_front, -(g.joint_score or 0.0), g.name))
    sensitivity, by_scaling = _sensitivity(members, rules), _decided_by_scaling(eligible, ranking, rules)
    return Selection((*ranked, *dropped), winner, reason, len(members), sensitivity, by_scaling, pooled)


def _ranked(
    groups: Sequence[Group], eligible: Sequence[Group], ranking: Ranking, rules: SelectionParams
) -> list[Group]:
    """The eligible groups with their scores, representative and chances."""
    chances = _selection_probabilities(eligible, rules)
    among = groups if rules.rules == "2026-02" else eligible  # members of groups that were too small took part then
    members = [member for group in among for member in group.members]
    joint = weighted_sum(minmax(_table(map(_values, members)), rules), rules)
    own = {member.place: float(score) for member, score in zip(members, joint, strict=True)}
    return [
        replace(
            group,
            components=tuple(float(value) for value in ranking.components[g]),
            joint_score=float(ranking.joint[g]),
            on_front=bool(ranking.front[g]),
            representative=_representative(group, own, rules),
            selection_probability=chances[g],
        )
        for g, group in enumerate(eligible)
    ]


def _representative(group: Group, own: dict[tuple[Any, ...], float], rules: SelectionParams) -> Candidate:
    """The member whose own joint score is the median: the lower of two middle ones, then the lower seed.

    Under the rules 2026-02 it is the member with the highest score.
    """
    if rules.rules == "2026-02":
        return max(group.members, key=lambda member: own[member.place])
    ordered = sorted(group.members, key=lambda member: (own[member.place], member.place))
    return ordered[(len(ordered) - 1) // 2]


def _groups(members: Sequence[Candidate], rules: SelectionParams) -> list[Group]:
    """The groups of members that are sorted by their place; the rules 2026-02 merged conditions over all sources."""

    def key(member: Candidate) -> tuple[Any, ...]:
        if rules.grouping == "seed":
            return member.place
        return (member.condition,) if rules.rules == "2026-02" else (member.source, member.condition)

    return [_group(list(own), rules) for _, own in groupby(sorted(members, key=key), key=key)]


def _group(members: list[Candidate], rules: SelectionParams) -> Group:
    reasons = [(member, _ineligible(member, rules)) for member in members]
    kept = tuple(member for member, reason in reasons if not reason)
    intervals = tuple(_interval([getattr(member, metric) for member in kept], rules) for metric in METRICS)
    note = "; ".join(f"seed {member.seed}: {reason}" for member, reason in reasons if reason)
    first, sources = members[0], dict.fromkeys(member.source for member in members)
    condition = f"{first.condition}_seed{first.seed}" if rules.grouping == "seed" else first.condition
    dropped = _why_dropped(members, kept, intervals, rules)
    return Group(" + ".join(sources), condition, first.architecture, kept, intervals, dropped, note)


def _interval(column: list[float | None], rules: SelectionParams) -> Interval | None:
    """Of one metric over a group's members; under the rules 2026-02 over those that have it."""
    known = [value for value in column if value is not None]
    if not known or (len(known) < len(column) and rules.rules == "current"):
        return None
    return mean_interval(known, rules.interval, rules.seed)


def _why_dropped(
    members: Sequence[Candidate],
    kept: Sequence[Candidate],
    intervals: Sequence[Interval | None],
    rules: SelectionParams,
) -> str:
    needed = 1 if rules.grouping == "seed" else rules.min_seeds
    off = [str(member.seed) for member in members if not member.l0_matched]
    baselines = [member.unmatched_baseline for member in members if member.unmatched_baseline]
    if len(kept) < needed:
        return f"{len(kept)} eligible seeds, {needed} are needed"
    if rules.require_matched_l0 and off:
        return f"L0 is not within 10 % of k at seeds {', '.join(off)}"
    if rules.require_matched_baseline and baselines and rules.rules == "current":
        return f"its CE-Bench delta is against no matched baseline: {baselines[0]}"
    if all(_score(interval, rules) is None for interval in intervals[:2]):
        return "neither external metric has a bound over the seeds" if rules.mode == "lcb" else "no external metric"
    return ""


def _ineligible(member: Candidate, rules: SelectionParams) -> str:
    floors = {"saebench_delta": rules.min_saebench_delta, "cebench_delta": rules.min_cebench_delta}
    for metric, floor in floors.items():
        value = getattr(member, metric)
        if value is None and (rules.require_both_external or (floor is not None and rules.rules == "current")):
            return f"no {metric}"
        if value is not None and floor is not None and value < floor:
            return f"{metric} {value:.4g} is below {floor:.4g}"
    return member.failed


def _score(interval: Interval | None, rules: SelectionParams) -> float | None:
    if interval is None:
        return None
    return interval.low if rules.mode == "lcb" and rules.grouping == "condition" else interval.mean


def _scores(groups: Sequence[Group], rules: SelectionParams) -> Scores:
    return _table([_score(interval, rules) for interval in group.intervals] for group in groups)


def _values(member: Candidate) -> list[float | None]:
    return [getattr(member, metric) for metric in METRICS]


def _table(rows: Iterable[Sequence[float | None]]) -> Scores:
    return np.array([[-np.inf if value is None else value for value in row] for row in rows])


def _sensitivity(members: Sequence[Candidate], rules: SelectionParams) -> dict[str, str | None]:
    """Who wins when one rule is changed; the values of metrics do not change."""
    changes: dict[str, dict[str, Any]] = {f"at least {n} seeds": {"min_seeds": n} for n in (3, 4)}
    for name, metric in WEIGHTED.items():
        for percent in (-50, 50):
            weights = {**rules.weights, name: rules.weights[name] * (1 + percent / 100)}
            changes[f"weight of {metric} {percent:+d} %"] = {"weights": weights}
    changes["without explained variance"] = {"weights": {**rules.weights, "train_ev": 0.0}}
    others = {name: weights for name, weights in WEIGHTS.items() if weights != rules.weights}
    changes |= {f"weights {name}": {"weights": weights} for name, weights in others.items()}
    if rules.scaling == "minmax":
        changes["ranks on the front instead of min-max"] = {"scaling": "rank"}
    return {what: _winner_name(members, rules.model_copy(update=change)) for what, change in changes.items()}


def _winner_name(members: Sequence[Candidate], rules: SelectionParams) -> str | None:
    eligible = [group for group in _groups(members, rules) if not group.dropped]
    return eligible[int(rank(_scores(eligible, rules), rules).winner)].name if eligible else None


def _decided_by_scaling(groups: Sequence[Group], ranking: Ranking, rules: SelectionParams) -> dict[str, str]:
    """Each dominated group whose presence changes the winner, and the winner without it; the front is the same."""
    scores, found = _scores(groups, rules), {}
    dominated = [g for g in range(len(groups)) if not ranking.front[g]]
    for g in dominated if rules.scaling == "minmax" else ():
        rest = [i for i in range(len(groups)) if i != g]
        joint = weighted_sum(minmax(scores[rest], rules), rules)
        other = rest[int(np.where(ranking.front[rest], joint, -np.inf).argmax())]
        if other != ranking.winner:
            found[groups[g].name] = groups[other].name
    return found


def _selection_probabilities(groups: Sequence[Group], rules: SelectionParams) -> list[float | None]:
    """How often each group wins when the seeds of every group are drawn again with replacement.

    None where that shows nothing: every draw of one seed is the same, and so is every draw of two that has a bound.
    The rules 2026-02 had no such probability.
    """
    fewest = 3 if rules.mode == "lcb" else 2
    if rules.bootstraps == 0 or rules.rules == "2026-02" or min(len(group.members) for group in groups) < fewest:
        return [None] * len(groups)
    scores = np.stack([_resampled_scores(group, rules) for group in groups], axis=1)
    winners = rank(scores, rules).winner
    return [float(share) for share in np.bincount(winners, minlength=len(groups)) / rules.bootstraps]


def _resampled_scores(group: Group, rules: SelectionParams) -> Scores:
    """The group's scores `[bootstraps, 3]`; all metrics of a bootstrap come from the same seeds.

    A draw that holds only one of the seeds has no bound and is repeated. The distance from mean to bound scales with
    the standard deviation of the draw, which is exact for `t` and `normal`.
    """
    n = len(group.members)
    rng = np.random.default_rng([rules.seed, *f"selection {group.name}".encode()])
    draws = rng.integers(n, size=(rules.bootstraps, n))
    while rules.mode == "lcb" and n > 1 and (alone := (draws == draws[:, :1]).all(axis=1)).any():
        draws[alone] = rng.integers(n, size=(int(alone.sum()), n))
    scores = np.full((rules.bootstraps, len(METRICS)), -np.inf)
    values = _table(map(_values, group.members))
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
    same = ("source", "condition", "architecture", "joint_score", "on_front", "selection_probability")
    columns: dict[str, Any] = {name: getattr(group, name) for name in same}
    for metric, interval, score in zip(METRICS, group.intervals, group.components, strict=True):
        ends = {"": "mean", "_low": "low", "_high": "high", "_std": "std"}
        columns |= {f"{metric}{end}": interval and getattr(interval, name) for end, name in ends.items()}
        columns[f"{metric.removesuffix('_delta')}_score"] = score
    seed = group.representative.seed if group.representative else None
    return CandidateRow(
        n_seeds=len(group.members), representative_seed=seed, selected=selected, note=group.notes, **columns
    )
