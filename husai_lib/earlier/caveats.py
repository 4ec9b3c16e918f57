"""What is known to be wrong with numbers of earlier cycles, as their own records show it; pure, no files."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from statistics import median
from typing import Any

from scipy import stats

from husai_lib.evidence.rows import CaveatRow, EarlierGroupRow, EarlierMemberRow, Row, ceiling, is_matched

RUN_ID = re.compile(r"run_\d{8}T\d{6}Z")
"""What earlier cycles called a run, alone or within a path."""
SAME = 1e-9
"""Results closer than this are the same."""


@dataclass(frozen=True)
class Earlier:
    """One file of an earlier cycle, read."""

    kind: str
    """frontier, scaling, assignment_v2, assignment_v3, ood, transcoder_sweep, transcoder, selection or gates."""
    run_id: str
    """`run_YYYYMMDDTHHMMSSZ` it came from: as stated, else that of its first checkpoint; empty if neither is there."""
    tables: dict[str, list[Row]]
    summary: dict[str, Any]
    """What no table has, as JSON values."""


Read = Mapping[str, Earlier]
"""All files of one import, by the name of their record."""


@dataclass(frozen=True)
class Probing:
    """SAEBench of one SAE, as a record has it."""

    record: str
    sae: str
    """What sentences call the SAE."""
    trained: tuple[Any, ...] | None
    """Architecture, seed, width and training metrics, which tell SAEs apart; None where a record lacks them."""
    on: tuple[str, str, str]
    """Model, hook, data sets joined by commas."""
    ks: str
    delta: float
    llm_auc: float | None
    results_path: str
    chosen_on_test: bool
    """Whether the best k is the one that is best on the test set, of several."""


def caveats(read: Read) -> list[CaveatRow]:
    """All that the records of one import show to be wrong, by caveat and record."""
    probings = [probing for name, one in read.items() for probing in _probings(name, one)]
    rows = [row for name, one in read.items() for find in ALONE for row in find(name, one)]
    rows += [row for find in AMONG_PROBINGS for row in find(probings)]
    rows += [row for find in AMONG_RECORDS for row in find(read)]
    return sorted(rows, key=lambda row: (row.caveat, row.record, row.what))


def _caveat(caveat: str, record: str, rows: int, what: str) -> Iterator[CaveatRow]:
    if rows:
        yield CaveatRow(caveat=caveat, record=record, rows=rows, what=what)


def _members(one: Earlier) -> list[EarlierMemberRow]:
    return [row for row in one.tables.get("earlier_members", []) if isinstance(row, EarlierMemberRow)]


def _groups(one: Earlier) -> list[EarlierGroupRow]:
    return [row for row in one.tables.get("earlier_groups", []) if isinstance(row, EarlierGroupRow)]


def _probings(name: str, one: Earlier) -> Iterator[Probing]:
    for row, sae in zip(_members(one), one.summary.get("saes", []), strict=False):
        key = (row.architecture, row.seed, row.d_sae, sae["mse"], sae["explained_variance"])
        on, label = (row.model, row.hook_name, row.data_sets), f"{row.condition}, seed {row.seed}"
        if row.saebench_delta is not None and row.data_sets:
            trained = None if None in key else key
            delta, auc, path = row.saebench_delta, row.llm_auc, sae["results_path"]
            yield Probing(name, label, trained, on, row.ks, delta, auc, path, sae["chosen_on_test"])
    for part in one.summary.get("parts", {}).values():
        if part["delta"] is not None and part["data_sets"]:
            on, auc = (part["model"], part["hook_name"], part["data_sets"]), part["llm_auc"]
            path, chosen = part["results_path"], part["chosen_on_test"]
            yield Probing(name, "the tested SAE", None, on, part["ks"], part["delta"], auc, path, chosen)


def _sets(names: str) -> str:
    return f"{names.count(',') + 1} data sets"


def _range(values: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(f"{end:.4g}" for end in (min(values), max(values))))


def _listed(values: Iterable[Any], most: int = 4) -> str:
    """The first few of several values, in words."""
    words = [str(value) for value in values]
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


# ---------------------------------------------------------------------------------------------
# What one record shows
# ---------------------------------------------------------------------------------------------


def _width_ceiling(name: str, one: Earlier) -> Iterator[CaveatRow]:
    rows = [(row.d_sae, row.cebench_baseline_score) for row in _members(one)]
    low = [(d_sae, score) for d_sae, score in rows if d_sae and score and d_sae > 0 and score > ceiling(d_sae)]
    limits = _listed(f"{d_sae} latents allow at most {ceiling(d_sae):.4g}" for d_sae in sorted({d for d, _ in low}))
    what = f"The CE-Bench baseline scores {max((score for _, score in low), default=0):.4g}, but {limits}"
    yield from _caveat("width_ceiling", name, len(low), f"{what}: the delta cannot reach 0.")


def _wrong_encoder(name: str, one: Earlier) -> Iterator[CaveatRow]:
    saes = [(row.architecture, row.evaluated_as) for row in _members(one)]
    saes += [(part["architecture"], part["evaluated_as"]) for part in one.summary.get("parts", {}).values()]
    wrong = [(own, used) for own, used in saes if own and used and own != used]
    kinds = _listed(f"{own} SAEs with the encoder of {used}" for own, used in sorted(set(wrong)))
    yield from _caveat("wrong_encoder", name, len(wrong), f"The benchmarks ran {kinds}.")


def _unmatched_l0(name: str, one: Earlier) -> Iterator[CaveatRow]:
    rows = [(row.architecture, row.l0, row.k or one.summary.get("k")) for row in _members(one)]
    off = [(own, l0, k) for own, l0, k in rows if l0 is not None and k and not is_matched(l0, k)]
    by_kind: dict[tuple[str, int], list[float]] = defaultdict(list)
    for own, l0, k in off:
        by_kind[own, k].append(l0)
    kinds = _listed(f"{_range(own)} of {kind} at k = {k}" for (kind, k), own in sorted(by_kind.items()))
    yield from _caveat("unmatched_l0", name, len(off), f"L0 is more than 10 % off the target: {kinds}.")


def _normal_interval(name: str, one: Earlier) -> Iterator[CaveatRow]:
    seeds = sorted(group.n_seeds for group in _groups(one) if 0 < group.n_seeds < 30 and _is_normal(group))
    said = [f"the bound of one value is that value in {seeds.count(1)} groups"] if 1 in seeds else []
    few = [n for n in seeds if n > 1]
    if few:
        t = stats.t.ppf(0.975, few[0] - 1)
        said.append(f"bounds over {_range(few)} seeds use z = 1.96, where t is {t:.4g} at {few[0]} seeds")
    yield from _caveat("normal_interval", name, len(seeds), "; ".join(said).capitalize() + ".")


def _is_normal(group: EarlierGroupRow) -> bool:
    """Whether the lower bounds are those of z = 1.96, and t would give others."""
    metrics = ("saebench_delta", "cebench_delta", "explained_variance")
    found = [[getattr(group, metric + end) for end in ("", "_std", "_low")] for metric in metrics]
    known = [
        (mean, std, low) for mean, std, low in found if None not in (mean, std, low) and (std or group.n_seeds == 1)
    ]
    root = math.sqrt(group.n_seeds)
    return bool(known) and all(math.isclose(mean - low, 1.96 * std / root, abs_tol=SAME) for mean, std, low in known)


def _merged_conditions(name: str, one: Earlier) -> Iterator[CaveatRow]:
    for group, members in zip(_groups(one), one.summary.get("members", []), strict=False):
        seeds, runs = {member["seed"] for member in members}, {member["run_id"] for member in members} - {""}
        if len(seeds) < len(members) or len(runs) > 1:
            origin = f" from the runs {_listed(sorted(runs))}" if runs else ""
            what = f"Group {group.condition} pools {len(members)} SAEs of {len(seeds)} distinct seeds{origin}."
            yield from _caveat("merged_conditions", name, 1, what)


def _luckiest_seed(name: str, one: Earlier) -> Iterator[CaveatRow]:
    found = []
    for group, members in zip(_groups(one), one.summary.get("members", []), strict=False):
        scores = [m["joint_score"] for m in members if m["joint_score"] is not None]
        own = [m["joint_score"] for m in members if m["seed"] == group.representative_seed]
        if scores and max(scores) > min(scores) and max(scores) in own:
            of = f"the best of {len(scores)} by its own score ({max(scores):.4g}, the median is {median(scores):.4g})"
            found.append(f"The checkpoint of {group.condition} is that of seed {group.representative_seed}, {of}.")
    yield from _caveat("luckiest_seed", name, len(found), next(iter(found), ""))


def _pairs_not_seeds(name: str, one: Earlier) -> Iterator[CaveatRow]:
    sweep = one.summary.get("sweep", [])
    counts = [(row["pairs"], row["models"]) for row in sweep if row["pairs"] and row["models"]]
    more = [(pairs, models) for pairs, models in counts if pairs > models]
    sizes = _listed(f"{pairs} pairs of {models} SAEs" for pairs, models in sorted(set(more)))
    what = f"PW-MCC intervals are over {sizes}, as if pairs that share an SAE were independent."
    yield from _caveat("pairs_not_seeds", name, len(more), what)


def _one_reference(name: str, one: Earlier) -> Iterator[CaveatRow]:
    reference = one.summary.get("seed_ref")
    pulled = [row for row in one.summary.get("sweep", []) if row["lambda"]]
    drawn = f"At lambda {_listed(row['lambda'] for row in pulled)} all SAEs are drawn to the one of seed {reference}"
    rows = len(pulled) if reference is not None else 0
    yield from _caveat("one_reference", name, rows, f"{drawn}: that they agree with each other is by construction.")


def _other_model(name: str, one: Earlier) -> Iterator[CaveatRow]:
    what = f"It was measured on a transformer that adds modulo {one.summary.get('modulus')}, not on a language model."
    rows = len(one.tables.get("earlier_sweep", [])) if one.summary.get("modulus") else 0
    yield from _caveat("other_model", name, rows, what)


def _ood_is_no_shift(name: str, one: Earlier) -> Iterator[CaveatRow]:
    parts = one.summary.get("parts", {})
    if parts and all(part["setting"] == "normal" and part["data_sets"] for part in parts.values()):
        inside, other = (_sets(part["data_sets"]) for part in parts.values())
        what = f"The probes of the {other} called OOD were fitted inside them (setting 'normal')"
        yield from _caveat(
            "ood_is_no_shift", name, 1, f"{what}: {inside} are compared with others, nothing is shifted."
        )


def _best_of_many(name: str, one: Earlier) -> Iterator[CaveatRow]:
    count = one.summary.get("best_of", 0)
    what = f"The best of {count} conditions is reported, with bounds that leave out that it was chosen."
    yield from _caveat("best_of_many", name, count if count > 1 else 0, what)


def _stated_does_not_follow(name: str, one: Earlier) -> Iterator[CaveatRow]:
    for row in one.tables.get("earlier_gates", []):
        gate = row.model_dump()
        if gate["stated"] and gate["follows"] and gate["stated"] != gate["follows"]:
            numbers = f"value {gate['value']}, bound {gate['bound']}, threshold {gate['threshold']}"
            what = (
                f"Gate {gate['gate']} states {gate['stated']}, but its own numbers give {gate['follows']}: {numbers}."
            )
            yield from _caveat("stated_does_not_follow", name, 1, what)


def _stale_parts(name: str, one: Earlier) -> Iterator[CaveatRow]:
    parts = list(one.summary.get("parts", {}).values())
    aucs, sets = {part["llm_auc"] for part in parts} - {None}, {part["data_sets"] for part in parts} - {""}
    if len(parts) == 2 and len(aucs) == 1 and len(sets) == 2 and None not in {part["llm_auc"] for part in parts}:
        on = " and on other ".join(map(_sets, sorted(sets)))
        what = f"The raw activation's test AUC is {aucs.pop():.6g} both on {on}"
        yield from _caveat("stale_results", name, 1, f"{what}: both parts averaged the same results files.")


Alone = Callable[[str, Earlier], Iterator[CaveatRow]]
ALONE: tuple[Alone, ...] = (
    _width_ceiling, _wrong_encoder, _unmatched_l0, _normal_interval, _merged_conditions, _luckiest_seed,
    _pairs_not_seeds, _one_reference, _other_model, _ood_is_no_shift, _best_of_many, _stated_does_not_follow,
    _stale_parts,
)  # fmt: skip


# ---------------------------------------------------------------------------------------------
# What the records of one import show together
# ---------------------------------------------------------------------------------------------


def _chosen_on_test(probings: list[Probing]) -> Iterator[CaveatRow]:
    for name, own in _by(lambda p: p.record, [p for p in probings if p.chosen_on_test]).items():
        ks = _listed(sorted({p.ks.replace(",", ", ") for p in own}))
        yield from _caveat("k_on_test", name, len(own), f"The best of k = {ks} was chosen by the test AUC it reports.")


def _by(key: Callable[[Probing], Any], probings: Iterable[Probing]) -> dict[Any, list[Probing]]:
    groups: dict[Any, list[Probing]] = defaultdict(list)
    for probing in probings:
        groups[key(probing)].append(probing)
    return groups


def _stale_saes(probings: list[Probing]) -> Iterator[CaveatRow]:
    known = [p for p in probings if p.trained]
    yield from _disagreeing(_by(lambda p: (p.trained, p.on, p.ks), known), "delta", "The SAEBench delta of {sae}")


def _stale_llm(probings: list[Probing]) -> Iterator[CaveatRow]:
    known = [p for p in probings if p.llm_auc is not None]
    yield from _disagreeing(_by(lambda p: p.on, known), "llm_auc", "The test AUC of the raw activation")


def _disagreeing(groups: Mapping[Any, list[Probing]], column: str, named: str) -> Iterator[CaveatRow]:
    """One caveat a record whose values differ from another's in the same group, with one pair that shows it."""
    shown: dict[str, list[str]] = defaultdict(list)
    for group in groups.values():
        for own in group:
            other = next((p for p in group if abs(getattr(p, column) - getattr(own, column)) > SAME), None)
            if other:
                here, there, sets = getattr(own, column), getattr(other, column), _sets(own.on[2])
                what = f"{here:.6g} here and {there:.6g} in {other.record}, on the same {sets} of {own.on[1]}"
                shown[own.record].append(f"{named.format(sae=own.sae)} is {what}.")
    for record, what_all in shown.items():
        yield from _caveat("stale_results", record, len(what_all), what_all[0])


def _shared_results_folder(probings: list[Probing]) -> Iterator[CaveatRow]:
    for path, group in _by(lambda p: p.results_path, [p for p in probings if p.results_path]).items():
        saes = {(p.record, p.sae) for p in group}
        for record, own in _by(lambda p: p.record, group).items() if len(saes) > 1 else ():
            what = f"The SAEBench means of {len(saes)} SAEs come from the one folder {PurePosixPath(path).name}"
            what += ", in which results of another SAE would enter the mean unseen."
            yield from _caveat("shared_results_folder", record, len(own), what)


def _data_sets(read: Read) -> dict[str, dict[str, int]]:
    """How many members each record has on each set of data sets."""
    found: dict[str, dict[str, int]] = {}
    for name, one in read.items():
        for row in _members(one):
            if row.data_sets:
                counts = found.setdefault(name, {})
                counts[row.data_sets] = counts.get(row.data_sets, 0) + 1
    return found


def _unequal_data_sets(read: Read) -> Iterator[CaveatRow]:
    found = _data_sets(read)
    for name, counts in found.items():
        own = next(iter(counts))
        other = next(((there, sets) for there in found for sets in found[there] if sets != own), None)
        if other:
            what = f"Probed on {_sets(own)}, while {other[0]} has SAEs probed on {_sets(other[1])}"
            yield from _caveat("unequal_data_sets", name, sum(counts.values()), f"{what}: their means do not compare.")
    for name, one in read.items():
        ranked = _runs(one.summary.get("config") if one.kind == "selection" else None)
        inputs = {there: sets for there in found if read[there].run_id in ranked for sets in found[there]}
        if len(set(inputs.values())) > 1:
            on = _listed(sorted({f"{_sets(sets)} ({there})" for there, sets in inputs.items()}))
            what = f"It ranks SAEs together that were probed on different data sets: {on}."
            yield from _caveat("unequal_data_sets", name, len(_groups(one)), what)


def _gate_of_other_model(read: Read) -> Iterator[CaveatRow]:
    for name, one in read.items():
        for key, path in one.summary.get("inputs", {}).items():
            known = [(there, other.summary["modulus"]) for there, other in read.items()
                     if other.run_id in _runs(path) and other.summary.get("modulus")]  # fmt: skip
            for there, modulus in known[:1]:
                what = f"Its {key} are those of {there}, from a transformer that adds modulo {modulus}"
                yield from _caveat("other_model", name, 1, f"{what}, not from the candidate's model.")


def _runs(value: Any) -> set[str]:
    """The ids of all runs that a path, or paths in JSON values, name."""
    return set(RUN_ID.findall(str(value)))


AMONG_PROBINGS = (_chosen_on_test, _stale_saes, _stale_llm, _shared_results_folder)
AMONG_RECORDS = (_unequal_data_sets, _gate_of_other_model)
