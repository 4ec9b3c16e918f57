"""Which group goes before the gate: measured members in, one candidate and the reasons out.

Members -> groups (one condition of one source) -> eligible groups -> lower bound of each metric over seeds -> Pareto
front on (SAEBench, CE-Bench) -> weighted sum of the scaled metrics -> the best group of the front, in whatever order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from husai_lib.decisions.candidates import ENDS, METRICS, Candidate, check_comparable, differences
from husai_lib.evidence.rows.decided import CandidateRow
from husai_lib.intervals import mean_interval
from husai_lib.params.rules import WEIGHTS, Metric, SelectionParams

Scores = NDArray[np.float64]
"""`[..., groups, 3]` in the order of METRICS; -inf where a metric is missing, which is worse than any value."""
WEIGHTED: dict[Metric, str] = {"saebench": "SAEBench", "cebench": "CE-Bench", "train_ev": "explained variance"}
"""The weights of METRICS, in the same order, with their names in prose."""
SELECTED = ("source", "condition", "architecture", "seed", "key", "weights_sha256")
"""What `selected_candidate.json` says of the representative."""


class Ranking(NamedTuple):
    """What `rank` makes of scores."""

    components: NDArray[np.float64]
    """`[..., groups, 3]`: each metric as it enters the joint score, before its weight."""
    joint: NDArray[np.float64]
    """`[..., groups]`: the weighted sum of the components."""
    front: NDArray[np.bool_]
    """`[..., groups]`: whether no other group dominates it."""
    winner: NDArray[np.intp]
    """`[...]`: the position of the best group on the front."""


@dataclass(frozen=True)
class Group:
    """The members of one condition of one source that can be ranked, by seed."""

    row: CandidateRow
    members: tuple[Candidate, ...]
    dropped: str
    """Why it cannot be selected; empty if it can."""
    by_floor: bool = False
    """Whether a floor dropped it: it was compared with the others, by the numbers that the gate reads."""
    representative: Candidate | None = None

    @property
    def name(self) -> str:
        """`<source>/<condition>`, unique in a selection."""
        return f"{self.row.source}/{self.row.condition}"


@dataclass(frozen=True)
class Selection:
    """What was selected, from what, and how firmly."""

    groups: tuple[Group, ...]
    """The winner, the rest of the Pareto front, the other eligible groups by score, the dropped ones."""
    reason: str
    members: int
    sensitivity: dict[str, str | None] = field(default_factory=dict)
    """The winner's name under other rules, by what is changed."""
    by_scaling: dict[str, str | None] = field(default_factory=dict)
    """Dominated groups without which another group would win, and that group: there, min-max scaling decides."""
    pooled: dict[str, list[str]] = field(default_factory=dict)
    """Settings in which the members differ; only the rules 2026-02 rank such members together."""

    @property
    def winner(self) -> Group | None:
        """The selected group."""
        return next((group for group in self.groups if group.row.selected), None)

    def rows(self) -> list[CandidateRow]:
        """One row for each group."""
        return [group.row for group in self.groups]

    def summary(self) -> dict[str, Any]:
        """The decision as JSON values, for `selection_summary.json` (`selected` for `selected_candidate.json`)."""
        chosen = self.winner and self.winner.representative
        return {
            "selected": chosen and {name: getattr(chosen, name) for name in SELECTED},
            "reason": self.reason,
            "counts": {
                "members": self.members,
                "eligible_members": sum(row.n_seeds for row in self.rows()),
                "groups": len(self.groups),
                "eligible_groups": sum(not group.dropped for group in self.groups),
                "compared_groups": sum(not group.dropped or group.by_floor for group in self.groups),
                "pareto": sum(row.on_front for row in self.rows()),
            },
            "dropped": {group.name: group.row.note for group in self.groups if group.row.note},
            "sensitivity": self.sensitivity,
            "by_scaling": self.by_scaling,
            "pooled": self.pooled,
        }


def select(candidates: Sequence[Candidate], rules: SelectionParams) -> Selection:
    """The best group of the Pareto front under `rules`; without an eligible group, a reason and no winner.

    Raises DataError for candidates that cannot be ranked together, except under the rules 2026-02.
    """
    members = sorted(candidates, key=lambda member: member.place)
    pooled = differences([member.comparability for member in members])
    if rules.rules == "current":
        check_comparable(members, pooled)
    groups = _groups(members, rules)
    dropped = tuple(group for group in groups if group.dropped)
    eligible = [group for group in groups if not group.dropped]
    if not eligible:
        why = "; ".join(f"{group.name}: {group.dropped}" for group in groups) or "there are no candidates"
        return Selection(dropped, f"No group is eligible: {why}.", len(members), pooled=pooled)
    ranking = rank(_table([group.row for group in eligible], _ranked_by(rules)), rules)
    winner, *others = _ranked(groups, ranking, rules)
    best = f"{winner.name} has the highest joint score, {winner.row.joint_score:.4g}, of the"
    reason = f"{best} {int(ranking.front.sum())} on the Pareto front of {len(eligible)} eligible groups."
    dominated = [eligible[g] for g in np.flatnonzero(~ranking.front)]
    without = {one.name: _winner([group for group in eligible if group is not one], rules) for one in dominated}
    by_scaling = {name: other for name, other in without.items() if other != winner.name}
    sensitivity = _sensitivity(members, rules)
    return Selection((winner, *others, *dropped), reason, len(members), sensitivity, by_scaling, pooled)


def _groups(members: Sequence[Candidate], rules: SelectionParams) -> list[Group]:
    """The groups of members that are sorted by their place; the rules 2026-02 merged conditions over all sources."""

    def key(member: Candidate) -> tuple[Any, ...]:
        if rules.grouping == "seed":
            return member.place
        return (member.condition,) if rules.rules == "2026-02" else (member.source, member.condition)

    return [_group(list(own), rules) for _, own in groupby(sorted(members, key=key), key=key)]


def _group(members: list[Candidate], rules: SelectionParams) -> Group:
    """The group of these members; the rules 2026-02 leave out single members, today's drop the whole group."""
    then = rules.rules == "2026-02"
    reasons = [_lacking(member, rules) or (_below_floor(member, rules) if then else "") for member in members]
    kept = tuple(member for member, reason in zip(members, reasons, strict=True) if not reason)
    columns: dict[str, Any] = {"joint_score": None, "on_front": False, "selected": False, "selection_probability": None}
    for metric in METRICS:
        known = [value for member in kept if (value := getattr(member, metric)) is not None]
        enough = len(known) == len(kept) or then  # then, over the members that have it
        interval = mean_interval(known, rules.interval, rules.seed) if known and enough else None
        columns |= {f"{metric}{end}": interval and getattr(interval, part) for end, part in ENDS.items()}
    first, sources = members[0], dict.fromkeys(member.source for member in members)
    columns |= {"source": " + ".join(sources), "architecture": first.architecture, "n_seeds": len(kept)}
    condition = f"{first.condition}_seed{first.seed}" if rules.grouping == "seed" else first.condition
    row = CandidateRow(condition=condition, **columns)
    left_out = [f"seed {one.seed}: {reason}" for one, reason in zip(members, reasons, strict=True) if reason]
    unfit = "" if then else "; ".join(left_out)
    unfit, floor = unfit or _why_dropped(members, row, rules), "" if then else _below_floor(row, rules)
    note = "; ".join(filter(None, [unfit or floor, *(left_out if then else [])]))
    by_floor = bool(left_out if then else floor and not unfit)
    return Group(row.model_copy(update={"note": note}), kept, unfit or floor, by_floor)


def _why_dropped(members: Sequence[Candidate], row: CandidateRow, rules: SelectionParams) -> str:
    needed = 1 if rules.grouping == "seed" else rules.min_seeds
    off = [str(member.seed) for member in members if not member.l0_matched]
    baselines = [member.unmatched_baseline for member in members if member.unmatched_baseline]
    if row.n_seeds < needed:
        return f"{row.n_seeds} eligible seeds, {needed} are needed"
    if rules.require_matched_l0 and off:
        return f"L0 is not within 10 % of k at seeds {', '.join(off)}"
    if rules.require_matched_baseline and baselines and rules.rules == "current":
        return f"its CE-Bench delta is against no matched baseline: {baselines[0]}"
    if all(getattr(row, column) is None for column in _ranked_by(rules)[:2]):
        return "neither external metric has a bound over the seeds" if rules.mode == "lcb" else "no external metric"
    return ""


def _lacking(member: Candidate, rules: SelectionParams) -> str:
    for metric, floor in _floors(rules).items():
        wanted = rules.require_both_external or (floor is not None and rules.rules == "current")
        if wanted and getattr(member, metric) is None:
            return f"no {metric}"
    return member.failed


def _below_floor(row: Candidate | CandidateRow, rules: SelectionParams) -> str:
    for metric, floor in _floors(rules).items():
        value = getattr(row, metric)
        if value is not None and floor is not None and value < floor:
            return f"{metric} {value:.4g} is below {floor:.4g}"
    return ""


def _floors(rules: SelectionParams) -> dict[str, float | None]:
    return {"saebench_delta": rules.min_saebench_delta, "cebench_delta": rules.min_cebench_delta}


def _ranked_by(rules: SelectionParams) -> list[str]:
    """The columns by which groups are ranked: bounds over the seeds or means."""
    return [f"{metric}_low" if rules.mode == "lcb" and rules.grouping == "condition" else metric for metric in METRICS]


def _table(rows: Sequence[Candidate | CandidateRow], columns: Sequence[str]) -> Scores:
    values = [[getattr(row, column) for column in columns] for row in rows]
    return np.array([[-np.inf if value is None else value for value in own] for own in values])


def _winner(groups: Sequence[Group], rules: SelectionParams) -> str | None:
    eligible = [group for group in groups if not group.dropped]
    table = _table([group.row for group in eligible], _ranked_by(rules))
    return eligible[int(rank(table, rules).winner)].name if eligible else None


def _ranked(groups: Sequence[Group], ranking: Ranking, rules: SelectionParams) -> list[Group]:
    """The eligible groups with their scores, representative and chances: the front first, then by joint score.

    The representative is the member whose own joint score is the median, under the rules 2026-02 the highest.
    """
    then, eligible = rules.rules == "2026-02", [group for group in groups if not group.dropped]
    members = [member for group in (groups if then else eligible) for member in group.members]  # then, of all groups
    own = rank(_table(members, METRICS), rules.model_copy(update={"scaling": "minmax"})).joint
    score = dict(zip([member.place for member in members], own, strict=True))
    chances, ranked = _selection_probabilities(eligible, rules), []
    for g in np.lexsort((-ranking.joint, ~ranking.front)):  # of a tie, the first comes first, as in `rank`
        ordered = sorted(eligible[g].members, key=lambda member: (score[member.place], member.place))
        lucky = max(eligible[g].members, key=lambda member: score[member.place])
        chosen = lucky if then else ordered[(len(ordered) - 1) // 2]
        names = [f"{metric.removesuffix('_delta')}_score" for metric in METRICS]
        columns = dict(zip(names, map(float, ranking.components[g]), strict=True)) | {
            "joint_score": float(ranking.joint[g]),
            "on_front": bool(ranking.front[g]),
            "selected": bool(g == ranking.winner),
            "selection_probability": chances[g],
            "representative_seed": chosen.seed,
        }
        row = eligible[g].row.model_copy(update=columns)
        ranked.append(replace(eligible[g], row=row, representative=chosen))
    return ranked


def _sensitivity(members: Sequence[Candidate], rules: SelectionParams) -> dict[str, str | None]:
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
    changed = {what: rules.model_copy(update=change) for what, change in changes.items()}
    return {what: _winner(_groups(members, other), other) for what, other in changed.items()}


def _selection_probabilities(groups: Sequence[Group], rules: SelectionParams) -> list[float | None]:
    """How often each group wins over draws of its seeds; None where all draws are the same."""
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
    scores, values = np.full((rules.bootstraps, len(METRICS)), -np.inf), _table(group.members, METRICS)
    for m, (metric, column) in enumerate(zip(METRICS, _ranked_by(rules), strict=True)):
        mean, std, score = (getattr(group.row, name) for name in (metric, f"{metric}_std", column))
        if score is None:
            continue
        drawn = values[draws, m]
        scores[:, m] = drawn.mean(axis=1)
        if std:
            scores[:, m] -= (mean - score) / std * drawn.std(axis=1, ddof=1)
    return scores


def rank(scores: Scores, rules: SelectionParams) -> Ranking:
    """The groups by joint score, and which of them are on the Pareto front, which the first two metrics span.

    Of equal joint scores the first group wins; groups come in the order of their names.
    """
    front = _front(scores, rules)
    components = _ranks_on(front, scores) if rules.scaling == "rank" else minmax(scores, rules)
    joint = components @ np.array([rules.weights[name] for name in WEIGHTED])
    return Ranking(components, joint, front, np.where(front, joint, -np.inf).argmax(axis=-1))


def _front(scores: Scores, rules: SelectionParams) -> NDArray[np.bool_]:
    both = scores[..., :2]
    if rules.rules == "2026-02":  # a group without one of the two was never dominated
        both = np.where(np.isfinite(both).all(axis=-1, keepdims=True), both, np.nan)
    saebench, cebench = np.ascontiguousarray(np.moveaxis(both, -1, 0))
    front = np.ones(saebench.shape, dtype=bool)
    for g in range(saebench.shape[-1]):
        s, c = saebench[..., g : g + 1], cebench[..., g : g + 1]
        front &= ~((s >= saebench) & (c >= cebench) & ((s > saebench) | (c > cebench)))
    return front


def minmax(scores: Scores, rules: SelectionParams) -> NDArray[np.float64]:
    """Each metric scaled to 0..1 from the worst to the best of the groups, `[..., groups, 3]`; a missing one is 0."""
    values, then = np.where(np.isfinite(scores), scores, np.nan), rules.rules == "2026-02"
    low, high = (end.reduce(values, axis=-2, keepdims=True) for end in (np.fmin, np.fmax))  # both ignore NaN
    differs = high - low > (0.0 if then else 1e-12 * np.maximum(np.abs(high), np.abs(low)))
    # a metric on which all groups agree, to rounding, is 0 for all, and was 0.5
    scaled = np.where(differs, (values - low) / np.where(differs, high - low, 1.0), 0.5 * then)
    return np.where(np.isnan(values), 0.0, scaled)


def _ranks_on(front: NDArray[np.bool_], scores: Scores) -> NDArray[np.float64]:
    """The share of the front's other groups that a group exceeds, metric by metric."""
    below = np.zeros(scores.shape)
    for g in range(scores.shape[-2]):
        below += front[..., g, None, None] & (scores[..., g : g + 1, :] < scores)
    shares: NDArray[np.float64] = below / np.maximum(front.sum(axis=-1) - 1, 1)[..., None, None]
    return shares
