"""Is a run what it says? Every hash checked, every number that follows from others recomputed; pure, no torch."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

from husai_lib import tables
from husai_lib.cache import CACHED, cache_folder, open_entry
from husai_lib.errors import EvidenceError, HusaiError, IntegrityError
from husai_lib.evidence import Record, Run
from husai_lib.files import read_json, sha256_file
from husai_lib.intervals import mean_interval
from husai_lib.params import SelectionParams
from husai_lib.records import CandidateRow, GateRow, GroupRow, MemberRow, ProbeRow
from husai_lib.selection import candidates_from, select

TOLERANCE = 1e-9
UNLISTED = {"manifest.json", "progress.json"}
SHOWN: dict[str, tuple[Callable[[Any], str], ...]] = {
    "sources": (tables.sources_table,),
    "members": (tables.members_table, tables.baseline_table),
    "groups": (tables.groups_table,),
    "probes": (tables.probes_table,),
    "candidates": (tables.candidates_table,),
    "controls": (tables.controls_table,),
    "ood": (tables.ood_table,),
    "gates": (tables.gates_table,),
}
"""How notebooks show each table of a record."""

Records = dict[str, Record]


class Check(NamedTuple):
    """One value that a run states beside what it must be."""

    what: str
    stated: Any
    expected: Any

    @property
    def holds(self) -> bool:
        """Whether they are equal; numbers within 1e-9 of the larger of 1 and their size."""
        if isinstance(self.stated, float) and isinstance(self.expected, float):
            return math.isclose(self.stated, self.expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        return bool(self.stated == self.expected)


@dataclass
class Audit:
    """What was checked in a run, and what was found wrong."""

    run: str
    checked: list[str] = field(default_factory=list)
    """One sentence a kind of check, with counts."""
    problems: list[str] = field(default_factory=list)

    def hold(self, kind: str, checks: Iterable[Check]) -> None:
        """Take in checks of one kind."""
        done = list(checks)
        wrong = [check for check in done if not check.holds]
        self.problems += [f"{c.what} is {c.stated!r} but must be {c.expected!r}" for c in wrong]
        self.checked.append(f"{kind}: {len(done)} checked, {len(wrong)} wrong")


def verify_run(run: Run) -> list[str]:
    """Everything wrong with a complete run, one sentence each; empty where it verifies."""
    return audit_run(run).problems


def audit_run(run: Run) -> Audit:
    """Check a complete run; raises EvidenceError only where there is no manifest to check it against."""
    audit = Audit(run.name)
    try:
        manifest = run.manifest()
        audit.hold("files against the manifest", _file_checks(run, manifest))
        if audit.problems:  # all other checks read these files
            return audit
        records = {step: run.record(step) for step in run.journal}
        audit.hold("records, their inputs and parameters", _chain_checks(run, manifest, records))
        _check_cache(audit, records)
        audit.hold("numbers recomputed from their records", _number_checks(records))
        audit.hold("lines of tables in executed notebooks", _table_checks(run, records))
    except IntegrityError as error:
        audit.problems.append(str(error))
    except HusaiError as error:
        if not run.is_complete:
            raise
        audit.problems.append(str(error))
    return audit


def _file_checks(run: Run, manifest: dict[str, Any]) -> Iterator[Check]:
    present = {str(p.relative_to(run.path)): p for p in run.path.rglob("*") if p.is_file() and p.name not in UNLISTED}
    for name, sha256 in manifest["files"].items():
        yield Check(f"SHA-256 of {name}", sha256_file(present[name]) if name in present else "missing", sha256)
    for name in sorted(present.keys() - manifest["files"].keys()):
        if not name.rpartition("/")[2].startswith("."):
            yield Check(f"{name}, which the manifest does not list,", "present", "absent")


def _chain_checks(run: Run, manifest: dict[str, Any], records: Records) -> Iterator[Check]:
    """What manifest, journal, parameters and records say of each other."""
    files, parameters = manifest["files"], read_json(run.path / "parameters.json")
    yield Check("run named by the manifest", manifest["run"], run.name)
    yield Check("steps of the manifest", sorted(manifest["steps"]), sorted(records))
    yield Check("parameters_sha256 of the manifest", manifest["parameters_sha256"], files.get("parameters.json"))
    recorded = {f"records/{step}.json" for step in records}
    yield Check("records of the run", sorted(name for name in files if name.startswith("records/")), sorted(recorded))
    for step, entry in run.journal.items():
        for name, sha256 in entry["files"].items():
            yield Check(f"SHA-256 of {name} in the journal", sha256, files.get(name))
        data = records[step].data
        yield Check(f"step of record {step}", (data["step"], data["cycle"]), (step, run.path.parent.name))
        for name, sha256 in data["published"].items():
            yield Check(f"SHA-256 of {name} in record {step}", sha256, files.get(name))
        for source, sha256 in data["inputs"].items():
            actual = records[source].sha256 if source in records else "no such record"
            yield Check(f"SHA-256 of record {source}, which step {step} read,", sha256, actual)
        for section, value in data["parameters"].items():
            yield Check(f"section {section} of record {step}", value, parameters.get(section))
    for name in ("verdict", "pass_all") if "gate" in records else ():
        yield Check(f"{name} of the manifest", manifest[name], records["gate"].summary[name])


def _check_cache(audit: Audit, records: Records) -> None:
    """Verify the weights and activations that are here; those that are not can't be judged."""
    rows = {(CACHED[t], row.key): row for record in records.values() for t in CACHED for row in _rows(record, t)}
    absent: Counter[str] = Counter()
    checks = []
    for (kind, key), row in rows.items():
        if not (cache_folder() / kind / key).exists():
            absent[kind] += 1
            continue
        try:
            files = open_entry(kind, key).files
        except EvidenceError as error:
            audit.problems.append(str(error))
            continue
        if kind == "saes":
            what = f"SHA-256 of the weights of {row.condition}, seed {row.seed},"
            checks.append(Check(what, files.get("sae_weights.safetensors"), row.weights_sha256))
        else:
            checks.append(Check(f"SHA-256 of bank {row.bank}", row.sha256 in files.values(), True))
    audit.hold("weights and activations in the cache", checks)
    audit.checked += [f"{kind} not here, not checked: {count}" for kind, count in absent.items()]


def _rows(record: Record | None, table: str) -> list[Any]:
    return record.table(table) if record and table in record.data["tables"] else []


def _number_checks(records: Records) -> Iterator[Check]:
    baselines = _rows(records.get("baselines"), "members")
    for step, record in records.items():
        members = _rows(record, "members")
        yield from _member_checks(step, members, _rows(record, "probes"), [] if step == "baselines" else baselines)
        yield from _group_checks(step, _rows(record, "groups"), members)
    if "selection" in records:
        yield from _candidate_checks(records)
    if "stress" in records:
        yield from _control_checks(records)
    if "gate" in records:
        yield from _gate_checks(records)


def _member_checks(
    step: str, members: list[MemberRow], probes: list[ProbeRow], baselines: list[MemberRow]
) -> Iterator[Check]:
    for probe in probes:
        where = f"of {step}/{probe.condition}, seed {probe.seed}, on {probe.data_set}"
        yield Check(f"delta {where}", probe.delta, probe.test_auc - probe.llm_auc)
    for row in members:
        where = f"of {step}/{row.condition}, seed {row.seed}"
        own = [probe for probe in probes if (probe.condition, probe.seed) == (row.condition, row.seed)]
        yield Check(f"saebench_delta {where}", row.saebench_delta, _mean(probe.delta for probe in own))
        yield Check(f"saebench_auc {where}", row.saebench_auc, _mean(probe.test_auc for probe in own))
        yield Check(f"l0_matched {where}", row.l0_matched, round(abs(row.l0 / row.k - 1), 9) <= 0.1)
        yield Check(f"cebench_ceiling {where}", row.cebench_ceiling, (row.d_sae - 1) / math.sqrt(row.d_sae))
        if row.cebench_delta is not None:
            yield Check(f"cebench_delta {where}", row.cebench_delta, _over_baseline(row, baselines))


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None


def _over_baseline(row: MemberRow, baselines: list[MemberRow]) -> float | None:
    """The member's score minus that of the baseline at its seed, of its own width and k where there are several."""
    same_seed = [other for other in baselines if other.seed == row.seed]
    same_seed.sort(key=lambda other: (other.d_sae != row.d_sae, other.k != row.k))
    return row.cebench_interpretability - same_seed[0].cebench_interpretability if same_seed else None


def _group_checks(step: str, groups: list[GroupRow], members: list[MemberRow]) -> Iterator[Check]:
    for group in groups:
        where = f"of group {step}/{group.condition}"
        yield Check(f"n_seeds {where}", group.n_seeds, sum(row.condition == group.condition for row in members))
        corrected = (group.pwmcc - group.null_gaussian) / (1 - group.null_gaussian)
        yield Check(f"pwmcc_corrected {where}", group.pwmcc_corrected, corrected)
        yield Check(
            f"'pwmcc lies in its interval' {where}", _inside(group.pwmcc_low, group.pwmcc, group.pwmcc_high), True
        )


def _inside(low: float | None, value: float | None, high: float | None) -> bool:
    return value is None or ((low is None or low <= value) and (high is None or value <= high))


def _candidate_checks(records: Records) -> Iterator[Check]:
    """Selection, done again on the members of this run; rows that come from other runs are left out."""
    record = records["selection"]
    rows: list[CandidateRow] = _rows(record, "candidates")
    sources = {row.source for row in rows}
    if not rows or not sources <= records.keys():
        return
    members = [c for source in sources for c in candidates_from(source, _rows(records[source], "members"), {})]
    again = select(members, SelectionParams.model_validate(record.data["parameters"]["selection"]))
    for step, other in records.items():
        if "selected" in other.summary:
            yield Check(f"candidate of record {step}", other.summary["selected"], again.summary()["selected"])
    expected = {(row.source, row.condition): row for row in again.rows()}
    yield Check("groups that selection saw", sorted((r.source, r.condition) for r in rows), sorted(expected))
    for row in rows:
        computed = expected.get((row.source, row.condition), row)
        for name in sorted(CandidateRow.model_fields.keys() - {"note"}):
            yield Check(f"{name} of candidate {row.condition}", getattr(row, name), getattr(computed, name))


def _selected(records: Records) -> list[CandidateRow]:
    return [row for row in _rows(records.get("selection"), "candidates") if row.selected]


def _of(candidate: CandidateRow, rows: list[Any]) -> list[Any]:
    return [row for row in rows if row.condition == candidate.condition]


def _control_checks(records: Records) -> Iterator[Check]:
    drops = _rows(records["stress"], "ood")
    groups = [group for row in _selected(records) for group in _of(row, _rows(records.get(row.source), "groups"))]
    for row in drops:
        drop = (row.in_domain_auc - row.in_domain_llm_auc) - (row.shifted_auc - row.shifted_llm_auc)
        yield Check(f"drop of task {row.task}, seed {row.seed}", row.drop, drop)
    for row in _rows(records["stress"], "controls"):
        yield Check(
            f"'delta lies in its interval' of {row.control}", _inside(row.delta_low, row.delta, row.delta_high), True
        )
        if row.delta is not None and row.candidate is not None and row.control_value is not None:
            sign = -1 if row.control == "transcoder" else 1
            yield Check(f"delta of control {row.control}", row.delta, sign * (row.candidate - row.control_value))
        if row.control == "ood" and row.delta is not None:
            yield Check("delta of control ood", row.delta, _mean(task.drop for task in drops))
        elif row.control != "ood" and row.candidate is not None and groups:
            yield Check(f"candidate's PW-MCC at control {row.control}", row.candidate, groups[0].pwmcc)


def _gate_checks(records: Records) -> Iterator[Check]:
    record = records["gate"]
    gates: list[GateRow] = _rows(record, "gates")
    basis = record.data["parameters"]["gates"]["basis"]
    controls = {row.control: row for row in _rows(records.get("stress"), "controls")}
    for gate in gates:
        if gate.verdict != "unreachable":  # stricter than its numbers, never looser
            yield Check(f"verdict of gate {gate.gate}", gate.verdict, _verdict(gate, basis))
        if gate.gate in controls:
            control = controls[gate.gate]
            bound = control.delta_high if gate.direction == "below" else control.delta_low
            yield Check(f"value of gate {gate.gate}", (gate.value, gate.bound), (control.delta, bound))
        metric = gate.gate.removeprefix("external_")
        if metric in {"saebench", "cebench"} and gate.value is not None:
            members = [m for row in _selected(records) for m in _of(row, _rows(records.get(row.source), "members"))]
            found = [getattr(member, f"{metric}_delta") for member in members]
            if found:
                interval = mean_interval(found)
                yield Check(f"value of gate {gate.gate}", gate.value, interval.mean)
                yield Check(f"bound of gate {gate.gate}", gate.bound, interval.low)
    required = [gate.verdict == "pass" for gate in gates if gate.required]
    yield Check("pass_all of the gate", record.summary["pass_all"], bool(required) and all(required))


def _verdict(gate: GateRow, basis: str) -> str:
    """A random control must be exceeded, every other threshold reached; no bound is no pass."""
    number = gate.bound if basis == "bound" else gate.value
    if gate.value is None:
        return "missing"
    if number is None:
        return "fail"
    if gate.direction == "below":
        return "pass" if number <= gate.threshold else "fail"
    strict = gate.gate.startswith("random")
    return "pass" if number > gate.threshold or (number == gate.threshold and not strict) else "fail"


def _table_checks(run: Run, records: Records) -> Iterator[Check]:
    """Every line of a table that a notebook shows, if `tables` makes tables with that heading from records."""
    lines: dict[str, set[str]] = {}
    for record in records.values():
        for name, makers in SHOWN.items():
            rows = _rows(record, name)
            for shown in [rows, *([row] for row in rows)] if rows else []:
                for make in makers:
                    heading, _, *rest = make(shown).splitlines()
                    lines.setdefault(heading, set()).update(rest)
    for path in sorted((run.path / "notebooks").glob("*.ipynb")):
        for table in _shown_tables(path.read_text(encoding="utf-8")):
            for line in table[2:] if table[0] in lines else []:
                yield Check(f"line '{line}' of {path.name}", line in lines[table[0]], True)


def _shown_tables(notebook: str) -> Iterator[list[str]]:
    """The pipe tables in the Markdown outputs of a notebook, as lists of lines."""
    for cell in json.loads(notebook)["cells"]:
        for output in cell.get("outputs", []):
            table: list[str] = []
            for line in [*"".join(output.get("data", {}).get("text/markdown", "")).splitlines(), ""]:
                if line.startswith("|"):
                    table.append(line)
                elif table:
                    yield table
                    table = []
