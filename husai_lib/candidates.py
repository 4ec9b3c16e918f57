"""One trained SAE as selection sees it, whichever record it comes from, and whether several may be ranked together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite
from typing import Any

from husai_lib.errors import DataError
from husai_lib.evidence import Record
from husai_lib.files import canonical_json
from husai_lib.records import EarlierMemberRow, MemberRow, ceiling, is_matched

WHICH_TOKENS = ("probe_tokens", "skip_positions", "max_norm_ratio")
"""Parameters of the activations that decide which tokens the benchmarks see."""
METRICS = ("saebench_delta", "cebench_delta", "explained_variance")


@dataclass(frozen=True)
class Candidate:
    """One member as selection sees it."""

    source: str
    """The record it comes from: a step, with cycle and run before it where that is another one."""
    condition: str
    architecture: str
    seed: int | None
    """None where an imported record does not say."""
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
    failed: str = ""
    """Which of its evaluations ended with an error; it is not eligible then."""
    unmatched_baseline: str = ""
    """Why its CE-Bench delta is against no matched baseline; empty if it is."""
    position: int = 0
    """Its row in an imported record, which may hold one seed of a condition several times."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.source}/{self.condition}, seed {self.seed}"

    @property
    def place(self) -> tuple[Any, ...]:
        """Where it stands among others, so that their order never matters."""
        return (self.source, self.condition, self.seed is None, self.seed or 0, self.position)


def candidates_of(source: str, read: Callable[[str], Record]) -> list[Candidate]:
    """The candidates of a source as parameters name it; `read` gives the record of a step of this or another run."""
    run = source.rpartition("/")[0]
    record, prefix = read(source), f"{run}/" if run else ""
    if "earlier_members" in record.data["tables"]:
        return candidates_from_earlier(source, record.table("earlier_members"))
    if "members" not in record.data["tables"]:
        raise DataError(f"selection.sources: {source} holds no SAEs; name a step such as frontier")
    return candidates_from(
        source, record.table("members"), measured_on(read(f"{prefix}activations"), read(f"{prefix}baselines"))
    )


def candidates_from(source: str, members: Sequence[MemberRow], comparability: Mapping[str, str]) -> list[Candidate]:
    """The members of one record as candidates; `source` names the record."""
    shared = ("condition", "architecture", "seed", *METRICS, "l0_matched", "key", "weights_sha256")
    return [
        Candidate(source, comparability=comparability, **member.model_dump(include=set(shared))) for member in members
    ]


def candidates_from_earlier(source: str, members: Sequence[EarlierMemberRow]) -> list[Candidate]:
    """The members of an imported record as candidates; what they were measured on is as far as the record says."""
    shared = ("condition", "architecture", "seed", *METRICS, "weights_sha256", "failed", "position")
    return [
        Candidate(
            source,
            **row.model_dump(include=set(shared)),
            l0_matched=row.l0 is not None and bool(row.k) and is_matched(row.l0, row.k or 1),
            unmatched_baseline=_why_unmatched(row),
            comparability={
                "model": row.model, "hook": row.hook_name, "data sets": row.data_sets, "ks": row.ks,
                "pairs": row.pairs, "baseline": row.cebench_baseline,
            },
        )
        for row in members
        if row.checkpoint  # a record without one was no candidate
    ]  # fmt: skip


def _why_unmatched(row: EarlierMemberRow) -> str:
    if row.cebench_baseline_score is None or row.d_sae is None:
        return "its record names no baseline or no width"
    if row.cebench_baseline_score <= ceiling(row.d_sae):
        return "its record does not give the baseline's width and L0"
    score, highest = f"{row.cebench_baseline_score:.2f}", f"{ceiling(row.d_sae):.2f}"
    return f"the baseline's {score} lies above {highest}, the highest score of {row.d_sae:,} latents"


def measured_on(activations: Record, baselines: Record, group: Sequence[MemberRow] = ()) -> dict[str, str]:
    """What the members of a run were measured on, for `Candidate.comparability`.

    The baselines are those of every width and k of the run, as deltas against them are ranked together; with a `group`,
    those that its own deltas are taken against.
    """
    given, bench = activations.data["parameters"], baselines.data["parameters"]
    every = [(c["d_sae"], c["k"], seed) for c in bench["conditions"] for seed in bench["seeds"]]
    shapes = [(row.d_sae, row.k, row.seed) for row in group] or every
    rows = [row for row in baselines.table("members") if any(row.is_baseline_of(*shape) for shape in shapes)]
    parts = {
        "model": given["model"], "hook": given["activations"]["hook_name"], "data sets": given["texts"]["probing"],
        "tokens": {key: value for key, value in given["activations"].items() if key in WHICH_TOKENS},
        "probing": bench["probing"], "stories": given["texts"]["stories"],
        "pairs": {key: value for key, value in bench["contrastive"].items() if key != "study"},
        "baseline": sorted(row.weights_sha256 for row in rows),
    }  # fmt: skip
    return {what: canonical_json(part).strip() for what, part in parts.items()}


def check_finite(members: Sequence[Candidate]) -> None:
    """Raise DataError for a metric that is NaN or infinite."""
    for member in members:
        for metric in METRICS:
            value = getattr(member, metric)
            if value is not None and not isfinite(value):
                raise DataError(f"{member.name}: {metric} is {value}; a missing value is null, measure it again")


def differences(members: Sequence[Candidate]) -> dict[str, list[str]]:
    """What the members were measured on, where they differ: its values in the order of the members."""
    every = sorted({what for member in members for what in member.comparability})
    found = {what: list(dict.fromkeys(m.comparability.get(what, "not known") for m in members)) for what in every}
    return {what: values for what, values in found.items() if len(values) > 1}


def check_comparable(members: Sequence[Candidate], pooled: Mapping[str, list[str]]) -> None:
    """Raise DataError where members were measured on different things, or one is given twice; names both."""
    for what, values in pooled.items():
        holders = [next(m for m in members if m.comparability.get(what, "not known") == value) for value in values[:2]]
        raise DataError(
            f"{holders[0].name} and {holders[1].name} cannot be ranked together: {what} is {_told(values[0])} and "
            f"{_told(values[1])}; measure both on the same"
        )
    for a, b in pairwise(members):
        if (a.source, a.condition, a.seed) == (b.source, b.condition, b.seed):
            raise DataError(f"{a.name} is given twice; name each record once")


def _told(value: str) -> str:
    """A value of `comparability` in an error: a long list by its number and its ends."""
    text = " ".join(value.split())
    parts = text.strip("[]").split(",")
    return f"{text!r}" if len(text) <= 60 else f"{len(parts)} entries from {parts[0].strip()} to {parts[-1].strip()}"
