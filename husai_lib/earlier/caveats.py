"""What is known to be wrong with the numbers of earlier cycles, as their own records show it; pure, no files."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import PurePosixPath
from statistics import median
from typing import Any

from husai_lib.earlier.records import RUN_ID
from husai_lib.evidence.rows import earlier
from husai_lib.evidence.rows.base import ceiling, is_matched
from husai_lib.evidence.runs import Record
from husai_lib.intervals import t_quantile

Found = Iterator[tuple[str, str, int, str]]
"""A caveat: what it is called, the record, how many rows of the record it concerns, and one sentence."""
Probed = Sequence[tuple[str, earlier.EarlierMemberRow]]
"""SAEs with a SAEBench delta on known data sets, each with the name of its record."""
SAME = 1e-9
MEASURED_ON = ("model", "hook_name", "data_sets")
STALE = {
    "saebench_delta": (*MEASURED_ON, "ks", "architecture", "seed", "d_sae", "mse", "explained_variance"),
    "llm_auc": MEASURED_ON,
}
"""Columns that must have one value wherever these others agree: SAEs with the same training result are the same."""


def caveats(records: Mapping[str, Record]) -> list[earlier.CaveatRow]:
    """All that the records of one import show to be wrong, by caveat and record."""
    found, probed = [], []
    for name, record in records.items():
        members, groups, sweep, gates = (_rows(record, of) for of in ("members", "groups", "sweep", "gates"))
        seeds, reference = record.summary.get("members", []), record.summary.get("seed_ref")
        found += [*_of_members(name, members), *_of_groups(name, groups, seeds), *_of_sweep(name, sweep, reference)]
        found += _of_gates(name, gates)
        if (n := len(groups or sweep)) > 1:
            what = f"The best of {n} conditions is reported, with bounds that leave out that it was chosen."
            found.append(("best_of_many", name, n, what))
        probed += [(name, row) for row in members if row.saebench_delta is not None and row.data_sets]
    found += [*_stale_results(probed), *_shared_results_folders(probed), *_unequal_data_sets(probed, records)]
    rows = [earlier.CaveatRow(caveat=caveat, record=name, rows=n, what=what) for caveat, name, n, what in found]
    return sorted(rows, key=lambda row: (row.caveat, row.record, row.what))


def _rows(record: Record, table: str) -> list[Any]:
    return record.table(f"earlier_{table}") if f"earlier_{table}" in record.data["tables"] else []


def _sets(names: str) -> str:
    return f"{names.count(',') + 1} data sets"


def _range(values: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(f"{end:.4g}" for end in (min(values), max(values))))


def _of_members(name: str, rows: Sequence[earlier.EarlierMemberRow]) -> Found:
    scores = [(row.d_sae, row.cebench_baseline_score) for row in rows]
    if low := [(d_sae, score) for d_sae, score in scores if d_sae and score and score > ceiling(d_sae)]:
        widths = sorted({d_sae for d_sae, _ in low})
        limits = ", ".join(f"{d_sae} latents allow at most {ceiling(d_sae):.4g}" for d_sae in widths)
        what = f"The CE-Bench baseline scores {max(score for _, score in low):.4g}, but {limits}"
        yield "width_ceiling", name, len(low), f"{what}: the delta cannot reach 0."
    encoders = [(row.architecture, row.evaluated_as) for row in rows if row.evaluated_as]
    if wrong := [(own, used) for own, used in encoders if own != used]:
        kinds = ", ".join(f"{own} SAEs with the encoder of {used}" for own, used in sorted(set(wrong)))
        yield "wrong_encoder", name, len(wrong), f"The benchmarks ran {kinds}."
    off = defaultdict(list)
    for row in rows:
        if row.l0 is not None and row.k and not is_matched(row.l0, row.k):
            off[row.architecture, row.k].append(row.l0)
    if off:
        kinds = ", ".join(f"{_range(l0)} of {kind} at k = {k}" for (kind, k), l0 in sorted(off.items()))
        yield "unmatched_l0", name, sum(map(len, off.values())), f"L0 is more than 10 % off the target: {kinds}."
    if several := [row.ks.replace(",", ", ") for row in rows if row.saebench_delta is not None and "," in row.ks]:
        what = f"The best of k = {', '.join(sorted(set(several)))} was chosen by the test AUC it reports."
        yield "k_on_test", name, len(several), what


def _of_groups(name: str, rows: Sequence[earlier.EarlierGroupRow], seeds_of: Sequence[Any]) -> Found:
    if few := sorted(row.n_seeds for row in rows if _is_normal(row)):
        t = f"{t_quantile(few[0] - 1):.4g} at {few[0]} seeds"
        yield "normal_interval", name, len(few), f"Bounds over {_range(few)} seeds use z = 1.96, where t is {t}."
    merged, lucky = [], []
    for row, members in zip(rows, seeds_of, strict=False):
        seeds, runs = {str(member["seed"]) for member in members}, {*RUN_ID.findall(str(members))}
        if len(seeds) < len(members) or len(runs) > 1:
            what = f"pools {len(members)} SAEs of {len(seeds)} distinct seeds from the runs {', '.join(sorted(runs))}"
            merged.append(f"Group {row.condition} {what}.")
        scores = sorted(member["joint_score"] for member in members if isinstance(member["joint_score"], float))
        best = [member["seed"] for member in members if scores and member["joint_score"] == scores[-1]]
        if row.representative_seed in best and scores[-1] > scores[0]:
            score = f"{scores[-1]:.4g}, the median is {median(scores):.4g}"
            what = f"is that of seed {row.representative_seed}, the best of {len(scores)} by its own score ({score})"
            lucky.append(f"The checkpoint of {row.condition} {what}.")
    for caveat, found in (("merged_conditions", merged), ("luckiest_seed", lucky)):
        yield from ((caveat, name, len(found), what) for what in found[:1])


def _is_normal(row: earlier.EarlierGroupRow) -> bool:
    """Whether its lower bound is that of z = 1.96, where t would give another."""
    mean, std, low = row.saebench_delta, row.saebench_delta_std, row.saebench_delta_low
    if mean is None or low is None or not std or not 1 < row.n_seeds < 30:
        return False
    return math.isclose(mean - low, 1.96 * std / math.sqrt(row.n_seeds), abs_tol=SAME)


def _of_sweep(name: str, rows: Sequence[earlier.EarlierSweepRow], seed: Any) -> Found:
    if more := [(row.pairs, row.n_seeds) for row in rows if row.pairs and row.n_seeds and row.pairs > row.n_seeds]:
        sizes = ", ".join(f"{pairs} pairs of {saes} SAEs" for pairs, saes in sorted(set(more)))
        what = f"PW-MCC intervals are over {sizes}, as if pairs that share an SAE were independent."
        yield "pairs_not_seeds", name, len(more), what
    if pulled := [row.lambda_consistency for row in rows if row.lambda_consistency]:
        what = f"At lambda {', '.join(map(str, pulled))} all SAEs are drawn to the one of seed {seed}"
        yield "one_reference", name, len(pulled), f"{what}: that they agree with each other is by construction."


def _of_gates(name: str, rows: Sequence[earlier.EarlierGateRow]) -> Found:
    for value, threshold in [(row.value, row.threshold) for row in rows if row.gate == "transcoder"]:
        if value is not None and threshold is not None:
            asks = f"PW-MCC(transcoder) - PW-MCC(SAE) >= {threshold:g}, which is {value:.4g}"
            why = "the less stable an SAE is, the more surely it passes, and random decoders would"
            yield "transcoder_direction", name, 1, f"The transcoder gate asks for {asks}: {why}."


def _stale_results(probed: Probed) -> Found:
    for column, same in STALE.items():
        identity, stale = attrgetter(*same), defaultdict(list)
        known = [(name, row) for name, row in probed if None not in (*identity(row), getattr(row, column))]
        for name, row in known:
            value, named = getattr(row, column), f"SAEBench delta of {row.condition}, seed {row.seed}"
            named = named if column == "saebench_delta" else "test AUC of the raw activation"
            others = [(there, getattr(other, column)) for there, other in known if identity(other) == identity(row)]
            for there, other in [(there, other) for there, other in others if abs(other - value) > SAME][:1]:
                what = f"is {value:.6g} here and {other:.6g} in {there}, on the same {_sets(row.data_sets)}"
                stale[name].append(f"The {named} {what} of {row.hook_name}.")
        yield from (("stale_results", name, len(found), found[0]) for name, found in stale.items())


def _shared_results_folders(probed: Probed) -> Found:
    for path in dict.fromkeys(row.results_path for _, row in probed if row.results_path):
        names = [name for name, row in probed if row.results_path == path]
        what = f"The SAEBench means of {len(names)} SAEs come from the one folder {PurePosixPath(path).name}, "
        what += "in which results of another SAE would enter the mean unseen."
        yield from (("shared_results_folder", name, n, what) for name, n in Counter(names).items() if len(names) > 1)


def _unequal_data_sets(probed: Probed, records: Mapping[str, Record]) -> Found:
    found = list(dict.fromkeys((name, row.data_sets) for name, row in probed))
    for name, n in Counter(name for name, _ in probed).items():
        own = next(sets for record, sets in found if record == name)
        for there, sets in [other for other in found if other[1] != own][:1]:
            what = f"Probed on {_sets(own)}, while {there} has SAEs probed on {_sets(sets)}"
            yield "unequal_data_sets", name, n, f"{what}: their means do not compare."
    for name, record in records.items():
        ranked = RUN_ID.findall(str(record.summary.get("config")))
        inputs = [(there, sets) for there, sets in found if records[there].summary["run_id"] in ranked]
        if len({sets for _, sets in inputs}) > 1:
            on = ", ".join(sorted(f"{_sets(sets)} ({there})" for there, sets in inputs))
            what = f"It ranks SAEs together that were probed on different data sets: {on}."
            yield "unequal_data_sets", name, len(_rows(record, "groups")), what
