"""One trained SAE as selection sees it, whichever record it comes from, and whether several may be ranked together."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite
from typing import Any

from husai_lib.errors import DataError
from husai_lib.evidence.rows import EarlierMemberRow, MemberRow, ceiling, is_matched
from husai_lib.evidence.runs import Record
from husai_lib.files import canonical_json

WHICH_TOKENS = ("probe_tokens", "skip_positions", "max_norm_ratio")
"""Parameters of the activations that decide which tokens the benchmarks see."""
WHICH_PAIRS = ("max_rows", "independence")
"""Parameters of CE-Bench that decide its plain scores."""
BASELINE = "baseline"
NOT_KNOWN = '"not known"'
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
    baselines = read(f"{prefix}baselines")
    measured = measured_on(read(f"{prefix}activations"), baselines)
    return candidates_from(source, record.table("members"), measured, baselines.table("members"))


def candidates_from(
    source: str, members: Sequence[MemberRow], measured: Mapping[str, str], baselines: Sequence[MemberRow] = ()
) -> list[Candidate]:
    """The members of one record as candidates; `source` names the record.

    Beside what all were `measured` on, each names its own baseline, so that widths may differ within a run.
    """
    shared = {"condition", "architecture", "seed", *METRICS, "l0_matched", "key", "weights_sha256"}
    return [
        Candidate(
            source,
            comparability=dict(measured)
            | {f"{BASELINE} of {row.d_sae:,} latents, k = {row.k}, seed {row.seed}": baseline_of([row], baselines)},
            **row.model_dump(include=shared),
        )
        for row in members
    ]


def candidates_from_earlier(source: str, members: Sequence[EarlierMemberRow]) -> list[Candidate]:
    """The members of an imported record as candidates; what they were measured on is as far as the record says."""
    shared = {"condition", "architecture", "seed", *METRICS, "weights_sha256", "failed", "position"}
    return [
        Candidate(
            source,
            **row.model_dump(include=shared),
            l0_matched=row.l0 is not None and bool(row.k) and is_matched(row.l0, row.k or 1),
            unmatched_baseline=_why_unmatched(row),
            comparability=earlier_settings(row),
        )
        for row in members
        if row.checkpoint  # a record without one was no candidate
    ]


def _why_unmatched(row: EarlierMemberRow) -> str:
    if row.cebench_baseline_score is None or row.d_sae is None:
        return "its record names no baseline or no width"
    if row.cebench_baseline_score <= ceiling(row.d_sae):
        return "its record does not give the baseline's width and L0"
    score, highest = f"{row.cebench_baseline_score:.2f}", f"{ceiling(row.d_sae):.2f}"
    return f"the baseline's {score} lies above {highest}, the highest score of {row.d_sae:,} latents"


def measured_on(activations: Record, baselines: Record) -> dict[str, str]:
    """Every setting that the deltas of a run depend on: its name -> its value as canonical JSON."""
    return settings_of(activations.data["parameters"] | baselines.data["parameters"])


def settings_of(sections: Mapping[str, Any]) -> dict[str, str]:
    """`measured_on` from the sections of the parameters; what only moves the calibrated CE-Bench score is left out."""
    texts, activations = sections["texts"], sections["activations"]
    parts = {
        "model": sections["model"],
        "hook": activations["hook_name"],
        "data sets": texts["probing"],
        "tokens": {key: value for key, value in activations.items() if key in WHICH_TOKENS},
        "probing": sections["probing"],
        "stories": texts["stories"],
        "pairs": {key: value for key, value in sections["contrastive"].items() if key in WHICH_PAIRS},
    }
    found: dict[str, Any] = {}
    for what, part in parts.items():
        own = {f"{what} {key}": part[key] for key in sorted(part)} if isinstance(part, dict) else {what: part}
        found |= own
    seed = found.pop("model seed", None)
    if found["model name"].startswith("random:"):
        found["model name"] += f", seed {seed}"
    return {what: _canonical(value) for what, value in found.items()}


def earlier_settings(row: EarlierMemberRow) -> dict[str, str]:
    """As far as an imported record names them, by the same names."""
    stories, _, pairs = row.pairs.removesuffix(" pairs").partition(", ")
    found = {
        "model name": row.model,
        "hook": row.hook_name,
        "data sets": [name.strip() for name in row.data_sets.split(",") if name.strip()],
        "probing ks": [int(k) for k in row.ks.split(",") if k.strip()],
        "probing choose_k": "test",  # what the row's saebench_delta is
        "stories": stories,
        "pairs max_rows": int(pairs) if pairs.isdecimal() else pairs,
        BASELINE: row.cebench_baseline,
    }
    return {what: _canonical(value) for what, value in found.items() if value not in ("", [])}


def baseline_of(members: Sequence[MemberRow], baselines: Sequence[MemberRow]) -> str:
    """The weights of the baselines that the CE-Bench deltas of these members are taken against, as canonical JSON."""
    shapes = [(row.d_sae, row.k, row.seed) for row in members]
    own = [row.weights_sha256 for row in baselines if any(row.is_baseline_of(*shape) for shape in shapes)]
    return _canonical(own)


def told(value: str) -> str:
    """A setting's value in a sentence: several names by their number, a long text by its start."""
    data = json.loads(value)
    if isinstance(data, list) and len(data) > 1 and isinstance(data[0], str):
        return str(len(data))
    text = data if isinstance(data, str) else json.dumps(data)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _canonical(value: Any) -> str:
    return canonical_json(sorted(value) if isinstance(value, list) else value).strip()


def check_finite(members: Sequence[Candidate]) -> None:
    """Raise DataError for a metric that is NaN or infinite."""
    for member in members:
        for metric in METRICS:
            value = getattr(member, metric)
            if value is not None and not isfinite(value):
                raise DataError(f"{member.name}: {metric} is {value}; a missing value is null, measure it again")


def differences(members: Sequence[Candidate]) -> dict[str, list[str]]:
    """What the members were measured on, where they differ: its values in the order of the members.

    A run's baselines count where two members name one of the same width, k and seed.
    """
    every = dict.fromkeys(what for member in members for what in member.comparability)
    found = {what: list(dict.fromkeys(_values_of(what, members))) for what in every}
    return {what: values for what, values in found.items() if len(values) > 1}


def _values_of(what: str, members: Sequence[Candidate]) -> list[str]:
    if what.startswith(f"{BASELINE} of "):
        return [member.comparability[what] for member in members if what in member.comparability]
    return [member.comparability.get(what, NOT_KNOWN) for member in members]


def check_comparable(members: Sequence[Candidate], pooled: Mapping[str, list[str]]) -> None:
    """Raise DataError where members were measured on different things, or one is given twice; names both."""
    for what, values in pooled.items():
        one, other = (next(m for m in members if m.comparability.get(what, NOT_KNOWN) == value) for value in values[:2])
        more = f" (also other: {', '.join(name for name in pooled if name != what)})" if len(pooled) > 1 else ""
        raise DataError(
            f"{one.name} and {other.name} cannot be ranked together: {what} is {told(values[0])} and "
            f"{told(values[1])}{more}; measure both on the same"
        )
    for a, b in pairwise(members):
        if (a.source, a.condition, a.seed) == (b.source, b.condition, b.seed):
            raise DataError(f"{a.name} is given twice; name each record once")
    by_weights: dict[str, Candidate] = {}
    for member in members:
        twin = by_weights.setdefault(member.weights_sha256 or member.name, member)
        if twin.source != member.source:
            raise DataError(f"{twin.name} and {member.name} are the same weights; name one of the two sources")


def check_measured_here(source: str, there: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Raise DataError for a source whose deltas were not measured on what this run measures on."""
    differing = [what for what in here if there.get(what, NOT_KNOWN) != here[what]]
    for what in sorted(differing, key=lambda what: what not in there)[:1]:
        raise DataError(
            f"selection.sources: {source} was not measured on what this cycle is: {what} is "
            f"{told(there.get(what, NOT_KNOWN))} there and {told(here[what])} here; leave it out or use the same"
        )
