"""One trained SAE as selection sees it, whichever record it comes from, and whether several may be ranked together."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from statistics import fmean
from typing import Any

from husai_lib.errors import DataError
from husai_lib.evidence.rows.base import IMPORTED, ceiling, is_matched
from husai_lib.evidence.rows.earlier import EarlierMemberRow
from husai_lib.evidence.rows.measured import MemberRow
from husai_lib.evidence.steps import Read
from husai_lib.files import canonical_json

Members = Sequence[MemberRow]
METRICS = ("saebench_delta", "cebench_delta", "explained_variance")
ENDS = {"": "mean", "_low": "low", "_high": "high", "_std": "std"}
"""The columns that a row has of each metric, by the end of their names, and the part of an Interval that each holds."""
TOKENS = ("probe_tokens", "skip_positions", "max_norm_ratio")
"""Parameters of the activations that decide which tokens the benchmarks see."""
PAIRS = ("max_rows", "independence")
"""Parameters of CE-Bench that decide its plain scores."""
NO_CANDIDATES = ("baselines", "confirmation", "scaling")
"""Steps whose SAEs others are compared with, repeat what was selected, or read other layers and rows."""
BASELINE = "baseline"
UNKNOWN = '"not known"'


@dataclass(frozen=True)
class Candidate:
    """One member as selection sees it; a metric that was not measured is None."""

    source: str
    """The record it comes from: a step, preceded by cycle and run if that is another run."""
    condition: str
    architecture: str
    seed: int | None
    """None where an imported record does not state it."""
    saebench_delta: float | None
    cebench_delta: float | None
    explained_variance: float | None
    l0_matched: bool
    key: str = ""
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
        """Its sort key, so that the order of the input never matters."""
        return (self.source, self.condition, self.seed is None, self.seed or 0, self.position)


def candidates_of(
    source: str, read: Read, here: Mapping[str, str] | None = None, *, duplicates: bool = False
) -> list[Candidate]:
    """The candidates of a source; with `duplicates`, by the SAEBench deltas that keep duplicate prompts.

    Raises DataError for a source without SAEs, and for one that was measured on other things than `here`.
    """
    record = read(source)
    if "earlier_members" in record.data["tables"]:
        found = candidates_from_earlier(source, record.table("earlier_members"))
    elif "members" in record.data["tables"] and record.step not in NO_CANDIDATES:
        baselines = read(beside(source, "baselines")).table("members")
        found = candidates_from(source, record.table("members"), measured_on(source, read), baselines)
        if duplicates:
            kept = {(row.condition, row.seed): row.saebench_delta_keep for row in record.table("members")}
            found = [replace(one, saebench_delta=kept[one.condition, one.seed or 0]) for one in found]
    else:
        raise DataError(f"selection.sources: {source} holds no SAEs; name a step such as frontier")
    if here and found:
        there = found[0].comparability
        differing = differences([there, here])
        if named := sorted((what for what in here if what in differing), key=lambda what: what not in there):
            theirs, ours = map(describe_setting, differing[named[0]])
            where = f"{named[0]} is {theirs} there and {ours} here; leave it out or use the same"
            raise DataError(f"selection.sources: {source} was measured on other things than this cycle: {where}")
    return found


def beside(source: str, step: str) -> str:
    """Another step of the run that a source belongs to; for an import, which has no steps, that of this run."""
    run = "" if source.startswith(f"{IMPORTED}/") else source.rpartition("/")[0]
    return f"{run}/{step}" if run else step


def candidates_from(
    source: str, members: Members, measured: dict[str, str], baselines: Members = ()
) -> list[Candidate]:
    """The members of the record `source` as candidates, with their baselines beside what all were `measured` on."""
    found = []
    unmatched = {name: _why_other_l0([row for row in members if row.condition == name], baselines)
                 for name in {row.condition for row in members}}  # fmt: skip
    for row in members:
        own = {f"{BASELINE} of {row.d_sae:,} latents, k = {row.k}, seed {row.seed}": baseline_of([row], baselines)}
        found.append(_candidate(source, row, measured | own, unmatched_baseline=unmatched[row.condition]))
    return found


def _why_other_l0(group: Members, baselines: Members) -> str:
    """Why the baselines of a group are not matched, although they have its width and target; empty where they are."""
    if not (own := matched_baselines(group, baselines)):
        return ""
    l0, other = (fmean(row.l0 for row in rows) for rows in (group, own))
    return "" if l0 and is_matched(other, l0) else f"the baseline's L0 is {other:.4g}, the candidate's {l0:.4g}"


def candidates_from_earlier(source: str, members: Sequence[EarlierMemberRow]) -> list[Candidate]:
    """The members of an imported record as candidates; those without a checkpoint were none."""
    found = []
    for row in members:
        if row.checkpoint:
            matched = row.l0 is not None and row.k is not None and is_matched(row.l0, row.k)
            about = {"l0_matched": matched, "unmatched_baseline": _why_unmatched(row)}
            found.append(_candidate(source, row, earlier_settings(row), **about))
    return found


def _candidate(source: str, row: MemberRow | EarlierMemberRow, measured: dict[str, str], **more: Any) -> Candidate:
    """The columns that a row and a candidate have in common, and `more`."""
    shared = row.model_dump(include={column.name for column in fields(Candidate)})
    return Candidate(source, comparability=measured, **shared | more)


def _why_unmatched(row: EarlierMemberRow) -> str:
    if row.cebench_baseline_score is None or row.d_sae is None:
        return "its record names no baseline or no width"
    if row.cebench_baseline_score <= ceiling(row.d_sae):
        return "its record does not give the baseline's width and L0"
    score, highest = f"{row.cebench_baseline_score:.2f}", f"{ceiling(row.d_sae):.2f}"
    return f"the baseline's {score} lies above {highest}, the highest score of {row.d_sae:,} latents"


def measured_on(source: str, read: Read) -> dict[str, str]:
    """Every setting that the deltas of the run of `source` depend on, as canonical JSON by its name; "" is this run."""
    activations, baselines = (read(beside(source, step)) for step in ("activations", "baselines"))
    return settings_of(activations.data["parameters"] | baselines.data["parameters"])


def settings_of(sections: Mapping[str, Any]) -> dict[str, str]:
    """`measured_on` from the sections of the parameters, without what affects only the calibrated CE-Bench score."""
    texts, activations = sections["texts"], sections["activations"]
    parts = {
        "model": sections["model"],
        "hook": activations["hook_name"],
        "data sets": texts["probing"],
        "tokens": {key: value for key, value in activations.items() if key in TOKENS},
        "probing": sections["probing"],
        "stories": texts["stories"],
        "pairs": {key: value for key, value in sections["contrastive"].items() if key in PAIRS},
    }
    found: dict[str, Any] = {}
    for what, part in parts.items():
        found |= {f"{what} {key}": part[key] for key in sorted(part)} if isinstance(part, dict) else {what: part}
    seed = found.pop("model seed", None)
    if found["model name"].startswith("random:"):
        found["model name"] += f", seed {seed}"
    return {what: _canonical(value) for what, value in found.items()}


def earlier_settings(row: EarlierMemberRow) -> dict[str, str]:
    """The same settings, as far as an imported record states them."""
    stories, _, pairs = row.pairs.removesuffix(" pairs").partition(", ")
    found = {
        "model name": row.model,
        "hook": row.hook_name,
        "data sets": [name.strip() for name in row.data_sets.split(",") if name.strip()],
        "probing ks": [int(k) for k in row.ks.split(",") if k.strip()],
        "probing choose_k": "test",  # the saebench_delta of the row is at the k that is best on the test rows
        "stories": stories,
        "pairs max_rows": int(pairs) if pairs.isdecimal() else pairs,
        BASELINE: row.cebench_baseline,
    }
    return {what: _canonical(value) for what, value in found.items() if value not in ("", [])}


def baseline_of(members: Members, baselines: Members) -> str:
    """The weights of the baselines that the CE-Bench deltas of these members are taken against, as canonical JSON."""
    return _canonical([row.weights_sha256 for row in matched_baselines(members, baselines)])


def matched_baselines(members: Members, baselines: Members) -> list[MemberRow]:
    """The baselines themselves."""
    return [row for row in baselines if any(row.is_baseline_of(m.d_sae, m.k, m.seed) for m in members)]


def _canonical(value: Any) -> str:
    return canonical_json(sorted(value) if isinstance(value, list) else value).strip()


def describe_setting(value: str) -> str:
    """The value of a setting in messages: of several names their number, of a long text the start."""
    data = json.loads(value)
    if isinstance(data, list) and len(data) > 1 and isinstance(data[0], str):
        return str(len(data))
    text = data if isinstance(data, str) else json.dumps(data)
    return text if len(text) <= 60 else f"{text[:59]}…"


def differences(settings: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """The settings that differ, with their values in the order in which they are given.

    The baseline of a width, k and seed is compared only among those that name it.
    """
    found: dict[str, list[str]] = {}
    for what in dict.fromkeys(what for each in settings for what in each):
        compared = [each for each in settings if what in each or not what.startswith(f"{BASELINE} of ")]
        values = list(dict.fromkeys(each.get(what, UNKNOWN) for each in compared))
        found |= {what: values} if len(values) > 1 else {}
    return found


def check_comparable(members: Sequence[Candidate], pooled: Mapping[str, list[str]]) -> None:
    """Raise DataError where members were measured on different things, or one is given twice; names both."""
    for what, values in pooled.items():
        one, other = (next(m for m in members if m.comparability.get(what, UNKNOWN) == value) for value in values[:2])
        more = f" (also different: {', '.join(name for name in pooled if name != what)})" if len(pooled) > 1 else ""
        settings = " and ".join(map(describe_setting, values[:2]))
        together = f"{one.name} and {other.name} cannot be ranked together"
        raise DataError(f"{together}: {what} is {settings}{more}; measure both on the same")
    for a, b in pairwise(members):
        if a.name == b.name:
            raise DataError(f"{a.name} is given twice; name each record once")
    by_weights: dict[str, Candidate] = {}
    for member in members:
        twin = by_weights.setdefault(member.weights_sha256 or member.name, member)
        if twin.source != member.source:
            raise DataError(f"{twin.name} and {member.name} are the same weights; name one of the two sources")
