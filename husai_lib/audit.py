"""Is a run what it says? Every hash checked, every number that follows from others recomputed; pure, no torch."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from husai_lib import tables
from husai_lib.cache import CACHED, cache_folder, open_entry
from husai_lib.errors import HusaiError
from husai_lib.evidence import Record, Run, results
from husai_lib.files import canonical_json, read_json
from husai_lib.gates import evaluate_members, group_sha256
from husai_lib.intervals import mean_interval, means_by
from husai_lib.params import GateParams, SelectionParams
from husai_lib.records import is_matched
from husai_lib.selection import candidates_from, select

NOT_HERE = "not in the cache of this machine"
NAMING = {"condition", "origin", "seed", "data_set", "at", "task", "control", "gate"}
"""Columns that say which row of a table is meant."""

Check = tuple[str, Any, Any]
"""What is checked, what the run states, what it must be."""
Records = Mapping[str, Record]
Rows = Mapping[tuple[str, str], list[Any]]
"""The typed rows of (step, table); none where there is no such table."""


@dataclass
class Audit:
    """What came of checking a run."""

    checked: int = 0
    """Values that were checked."""
    not_here: int = 0
    """Weights and activations that are not in the cache of this machine and cannot be checked."""
    problems: list[str] = field(default_factory=list)
    """One sentence each."""


def audit_run(run: Run) -> Audit:
    """Check a complete run; raises EvidenceError only where there is no manifest to check it against."""
    audit = Audit()
    try:
        for what, stated, must in _checks(run):
            audit.checked += 1
            audit.not_here += stated == NOT_HERE
            close = isinstance(stated, float) and isinstance(must, float) and math.isclose(stated, must, abs_tol=1e-9)
            if stated != must and not close:
                audit.problems.append(f"{what} is {stated!r} but must be {must!r}")
    except HusaiError as error:
        if not run.is_complete:
            raise
        audit.problems.append(str(error))
    return audit


def _checks(run: Run) -> Iterator[Check]:
    manifest = run.manifest()
    files = dict.fromkeys(manifest["files"], "missing") | run.files()
    yield from _follow("SHA-256 of", files, manifest["files"])
    if files != manifest["files"]:
        return  # all other checks read these files
    records = {step: run.record(step) for step in run.journal}
    rows = defaultdict(list, {(s, table): r.table(table) for s, r in records.items() for table in r.data["tables"]})
    yield from _chain(run, manifest, records)
    yield from _cache(rows)
    yield from _numbers(rows)
    if "selection" in records:
        yield from _decisions(records, rows)
    if "report" in records:
        again = results([records[step] for step in records["report"].data["inputs"]])
        yield "results.json", canonical_json(read_json(run.path / "results.json")), canonical_json(again)
    yield from _shown(run, rows)


def _follow(what: str, stated: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[Check]:
    for name, value in stated.items():
        yield f"{what} {name}", value, known.get(name, "absent")


def _chain(run: Run, manifest: dict[str, Any], records: Records) -> Iterator[Check]:
    """What manifest, journal, parameters and records say of each other."""
    parameters = read_json(run.path / "parameters.json")
    hashes = {step: record.sha256 for step, record in records.items()}
    about = {"run": run.name, "cycle": run.path.parent.name} | records["gate"].summary
    yield from _follow("manifest:", {name: manifest[name] for name in ("run", "cycle", "verdict", "pass_all")}, about)
    yield "steps of the manifest", sorted(manifest["steps"]), sorted(records)
    for step, record in records.items():
        data = record.data
        yield f"step and cycle of record {step}", (data["step"], data["cycle"]), (step, manifest["cycle"])
        yield from _follow(f"journal of {step}: SHA-256 of", run.journal[step]["files"], manifest["files"])
        yield from _follow(f"record {step}: SHA-256 of", data["published"], manifest["files"])
        yield from _follow(f"record {step}: SHA-256 of record", data["inputs"], hashes)
        yield from _follow(f"record {step}: section", data["parameters"], parameters)


def _cache(rows: Rows) -> Iterator[Check]:
    for (step, table), own in rows.items():
        for row in own if table in CACHED else ():
            what, here = f"SHA-256 in the cache of {_name(step, table, row)}", cache_folder() / CACHED[table] / row.key
            stated = row.sha256 if table == "banks" else row.weights_sha256
            found = open_entry(CACHED[table], row.key).files.values() if here.exists() else [NOT_HERE]
            yield what, stated if here.exists() else NOT_HERE, stated if stated in found else next(iter(found))


def _name(step: str, table: str, row: Any) -> str:
    return " ".join([f"{step}/{table}", *(str(value) for column, value in row if column in NAMING)])


def _numbers(rows: Rows) -> Iterator[Check]:
    for step, table in list(rows):
        for row in rows[step, table]:
            for column, value in _recomputed(step, table, row, rows).items():
                yield f"{column} of {_name(step, table, row)}", getattr(row, column), value


def _recomputed(step: str, table: str, row: Any, rows: Rows) -> dict[str, Any]:
    """Every column of a row that follows from other numbers in the run's records, with its value."""
    if table == "members":
        probes = [p for p in rows[step, "probes"] if (p.condition, p.seed) == (row.condition, row.seed)]
        others = rows["baselines", "members"] if step != "baselines" else []
        base = [other for other in others if other.is_baseline_of(row.d_sae, row.k, row.seed)]
        return {
            "saebench_auc": _mean(means_by((probe.data_set, probe.test_auc) for probe in probes).values()),
            "saebench_delta": _mean(means_by((probe.data_set, probe.delta) for probe in probes).values()),
            "l0_matched": is_matched(row.l0, row.k),
            "cebench_ceiling": (row.d_sae - 1) / math.sqrt(row.d_sae),
            "cebench_delta": row.cebench_interpretability - base[0].cebench_interpretability if base else None,
        }
    if table == "groups":
        corrected = (row.pwmcc - row.null_gaussian) / (1 - row.null_gaussian)
        seeds = sum(member.condition == row.condition for member in rows[step, "members"])
        pwmcc = _inside(row.pwmcc, row.pwmcc_low, row.pwmcc_high)
        probes = [probe for probe in rows[step, "probes"] if probe.condition == row.condition]
        sets = mean_interval(list(means_by((probe.data_set, probe.delta) for probe in probes).values()))
        saebench = {"saebench_delta": sets.mean, "sets_low": sets.low, "sets_high": sets.high}
        return {"n_seeds": seeds, "pwmcc_corrected": corrected, "pwmcc": pwmcc} | saebench
    if table in {"controls", "control_saes"}:
        return _control(row, rows) if table == "controls" else _control_sae(row, rows)
    if table == "contrastive":
        return {"ceiling": (row.d_sae - 1) / math.sqrt(row.d_sae)}
    if table == "ood":
        inside, shifted = row.in_domain_auc - row.in_domain_llm_auc, row.shifted_auc - row.shifted_llm_auc
        weights = {member.seed: member.weights_sha256 for member in _candidate(rows)}
        return {"drop": inside - shifted, "weights_sha256": weights.get(row.seed)}
    return {"delta": row.test_auc - row.llm_auc} if table == "probes" else {}


def _candidate(rows: Rows) -> list[Any]:
    """The members of the selected condition."""
    chosen = [candidate.condition for candidate in rows["selection", "candidates"] if candidate.selected]
    return [member for member in rows["frontier", "members"] if member.condition in chosen]


def _control(row: Any, rows: Rows) -> dict[str, Any]:
    """Of a control that was not run only whose it is; the PW-MCC of a control's own SAEs takes torch."""
    members, tasks = _candidate(rows), rows["stress", "ood"]
    found: dict[str, Any] = {"candidate_sha256": group_sha256((m.seed, m.weights_sha256) for m in members)}
    if row.delta is None or (row.control == "ood" and not tasks):
        return found | dict.fromkeys(("candidate", "control_value", "delta", "delta_low", "delta_high"))
    if row.control == "ood":
        return found | _ood(tasks)
    groups = [group for group in rows["frontier", "groups"] if group.condition in [m.condition for m in members]]
    if row.control == "random_decoder":
        found["control_value"] = _mean(group.null_random for group in groups)
    else:
        made = [sae.seed for sae in rows["stress", "control_saes"] if sae.control == row.control]
        found["control"] = row.control if made == [m.seed for m in members] else f"a control at the seeds {made}"
    delta = (row.candidate - row.control_value) * (-1 if row.control == "transcoder" else 1)
    pwmcc = _mean(group.pwmcc for group in groups)
    return found | {"candidate": pwmcc, "delta": _inside(delta, row.delta_low, row.delta_high)}


def _control_sae(row: Any, rows: Rows) -> dict[str, Any]:
    """Seed, width, k and, but for a transcoder, architecture are those of a member of the candidate."""
    own = [member for member in _candidate(rows) if member.seed == row.seed]
    if not own:
        return {"seed": None}
    architecture = "topk_transcoder" if row.control == "transcoder" else own[0].architecture
    matched = is_matched(row.l0, row.k)
    return {"architecture": architecture, "d_sae": own[0].d_sae, "k": own[0].k, "l0_matched": matched}


def _ood(rows: list[Any]) -> dict[str, Any]:
    by_seed, by_task = (
        mean_interval(list(means_by((getattr(row, column), row.drop) for row in rows).values()))
        for column in ("seed", "task")
    )
    return {
        "candidate": fmean(row.in_domain_auc - row.in_domain_llm_auc for row in rows),
        "control_value": fmean(row.shifted_auc - row.shifted_llm_auc for row in rows),
        "delta": by_seed.mean, "delta_low": by_seed.low, "delta_high": by_seed.high,
        "tasks_low": by_task.low, "tasks_high": by_task.high,
    }  # fmt: skip


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None


def _inside(value: float, low: float | None, high: float | None) -> float:
    """The value, or the end of its interval that it lies beyond."""
    return min(max(value, value if low is None else low), value if high is None else high)


def _decisions(records: Records, rows: Rows) -> Iterator[Check]:
    """Selection and gates, done again on the members and controls of this run."""
    members = rows["frontier", "members"]
    rules = SelectionParams.model_validate(records["selection"].data["parameters"]["selection"])
    selection = select(candidates_from("frontier", members, {}), rules)
    chosen = [m for m in members if selection.winner and m.condition == selection.winner.condition]
    thresholds = GateParams.model_validate(records["gate"].data["parameters"]["gates"])
    policy = evaluate_members(chosen, rows["baselines", "members"], rows["stress", "controls"], thresholds)
    summary, selected = selection.summary(), {"selected": selection.summary()["selected"]}
    decided = {"verdict": policy.verdict, "pass_all": policy.pass_all}
    for step, must in (("selection", summary), ("stress", selected), ("gate", decided | selected)):
        yield from _follow(f"record {step}:", records[step].summary, must)
    for step, table, again in (("selection", "candidates", selection.rows()), ("gate", "gates", policy.gates)):
        yield f"number of {table}", len(rows[step, table]), len(again)
        for row, same in zip(rows[step, table], again, strict=False):
            yield from _follow(f"{_name(step, table, same)}:", dict(row), dict(same))


def _shown(run: Run, rows: Rows) -> Iterator[Check]:
    """Every line of a table in a notebook's output whose heading is that of a table made from records.

    `tables` shows a table of that name with its function `<name>_table`, the baseline's members with `baseline_table`;
    what is made from several tables, or shows one in another way, is named here.
    """
    makers = {name: getattr(tables, f"{name}_table", lambda _: "") for _, name in rows}
    made = [makers[name](own) for (_, name), own in rows.items() if own]
    members, groups = rows["frontier", "members"], rows["frontier", "groups"]
    made += [tables.baseline_table(rows["baselines", "members"]), tables.frontier_table(members)]
    made += [tables.external_table(groups, members), tables.data_sets_table(rows["frontier", "probes"])]
    lines = {line for table in made for line in table.splitlines()}
    for path in sorted(run.path.glob("notebooks/*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for output in [output for cell in cells for output in cell.get("outputs", ())]:
            text = "".join(output.get("data", {}).get("text/markdown", ""))
            for heading, *rest in (found.splitlines() for found in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)):
                for line in rest if heading in lines else ():
                    yield f"line '{line}' of {path.name}", line in lines, True
