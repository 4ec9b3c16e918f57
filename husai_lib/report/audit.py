"""Is a run what it says? Every hash checked, every number that follows from others recomputed; pure, no torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product, zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

from safetensors import SafetensorError

from husai_lib.decisions import of_run as decisions
from husai_lib.decisions.gates import Policy, release_policy
from husai_lib.earlier.imports import audit_import
from husai_lib.earlier.replay import replays, rule_changes
from husai_lib.errors import HusaiError
from husai_lib.evidence.cache import CACHED, cache_folder, open_entry
from husai_lib.evidence.rows import GIVEN, IMPORTED
from husai_lib.evidence.runs import Record, Run
from husai_lib.evidence.steps import results
from husai_lib.files import REPOSITORY, canonical_json, read_json, sha256_text
from husai_lib.params.conditions import Condition, baseline_shapes
from husai_lib.report import tables
from husai_lib.report.recomputed import NOT_HERE, Rows, recomputed

NOT_CHECKED = "not checked"
Check = tuple[str, Any, Any]
Records = Mapping[str, Record]
NOTEBOOKS = REPOSITORY / "notebooks"
NAMING = {"condition", "origin", "seed", "data_set", "at", "task", "control", "gate", "bank", "of", "seed_a", "seed_b"}
"""Columns that say which row of a table is meant."""


@dataclass
class Audit:
    """What came of checking a run or a site."""

    checked: int = 0
    """Values that were checked."""
    not_here: int = 0
    """Weights, pairs of them, and activations that are not in the cache of this machine and cannot be checked."""
    not_checked: int = 0
    """What cannot be made again here: figures of another matplotlib, prose of another version of a notebook, files of
    unknown content, pairs of random decoders or of wide SAEs, intervals of PW-MCC in records without pairs."""
    problems: list[str] = field(default_factory=list)
    """One sentence each."""

    def __str__(self) -> str:
        """The counts, in words."""
        counts = [f"{self.checked:,} values checked", f"{self.not_here} cached files not here"]
        if self.not_checked:
            counts.append(f"{self.not_checked} not checked")
        return ", ".join([*counts, f"{len(self.problems)} problems" if self.problems else "no problem"])

    def take(self, checks: Iterable[Check]) -> None:
        """Count every check; one that finds another value is a problem."""
        for what, stated, must in checks:
            self.not_here += stated == NOT_HERE
            self.not_checked += stated == NOT_CHECKED
            self.checked += stated not in (NOT_HERE, NOT_CHECKED)
            close = isinstance(stated, float) and isinstance(must, float) and math.isclose(stated, must, abs_tol=1e-9)
            if stated != must and not close:
                self.problems.append(f"{what} is {stated!r} but must be {must!r}")


def audit_run(run: Run, notebooks: Path = NOTEBOOKS) -> Audit:
    """Check a complete run and all that its notebooks show; raises EvidenceError only where it has no manifest.

    Its prose is held to the notebooks of the folder `notebooks`, where these have the same code.
    """
    audit = Audit()
    try:
        audit.take(_checks(run, notebooks))
    except HusaiError as error:
        if not run.is_complete:
            raise
        audit.problems.append(str(error))
    except (ArithmeticError, LookupError, OSError, SyntaxError, SafetensorError, TypeError, ValueError) as error:
        # Whoever makes all hashes agree can write anything into a record, and then nothing can be computed from it.
        audit.problems.append(f"the records of {run.name} do not fit together ({type(error).__name__}: {error})")
    return audit


def _checks(run: Run, notebooks: Path) -> Iterator[Check]:
    manifest = run.manifest()
    if run.path.parent.name == IMPORTED:
        yield from audit_import(run)
        return
    files = dict.fromkeys(manifest["files"], "missing") | run.files()
    yield from _follow("SHA-256 of", files, manifest["files"])
    if files != manifest["files"]:
        return  # all other checks read these files
    records = {step: run.record(step) for step in run.journal}
    rows = defaultdict(list, {(s, table): r.table(table) for s, r in records.items() for table in r.data["tables"]})
    yield from _chain(run, manifest, records)
    yield from _cache(rows)
    if "selection" in records:
        rows |= _candidate(run, records["selection"].summary["selected"])
    yield from _saes(records, rows)
    yield from _pairs(run, records, rows)
    yield from _numbers(rows)
    if "selection" in records:
        yield from _decisions(run, records, rows)
        yield from _published(run, records)


def _candidate(run: Run, chosen: dict[str, Any] | None) -> dict[tuple[str, str], list[Any]]:
    """The selected group, of this run or of an earlier one: its SAEs, and how alike they are."""
    saes, _ = decisions.selected_group(chosen, run.find_record)
    record = run.find_record(chosen["source"] if chosen else "frontier")
    groups = record.table("groups") if "groups" in record.data["tables"] else []
    own = [row for row in groups if row.condition in {sae.condition for sae in saes}]
    pairs = record.table("pairs") if "pairs" in record.data["tables"] else []
    return {("candidate", "saes"): saes, ("candidate", "stability"): own, ("candidate", "pwmcc"): pairs}


def _follow(what: str, stated: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[Check]:
    for name, value in stated.items():
        yield f"{what} {name}", value, known.get(name, "absent")


def _same(what: str, stated: Mapping[str, Any], must: Mapping[str, Any]) -> Iterator[Check]:
    """As `_follow`, and nothing that must be stated is left out."""
    yield from _follow(what, dict.fromkeys(must, "absent") | dict(stated), must)


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
        key = {"step": step, "parameters": data["parameters"], "code": data["environment"]["code"]["library_sha256"]}
        yield f"journal of {step}: key", run.journal[step]["key"], sha256_text(canonical_json(key))
        times = [records[other].data["finished_utc"] for other in data["inputs"]]
        yield f"record {step}: finished_utc", data["finished_utc"], max([data["finished_utc"], *times])
        made = [name for name in run.journal[step]["files"] if name.startswith("notebooks/")]
        yield f"number of notebooks of step {step}", len(made), 1
    times = [record.data["finished_utc"] for record in records.values()]
    yield "manifest: finished_utc", manifest["finished_utc"], max([manifest["finished_utc"], *times])
    written = {name for entry in run.journal.values() for name in entry["files"]}
    others = {name for name in manifest["files"].keys() - written if not name.startswith("figures/")}
    yield "files of no step", sorted(others), ["journal.json", "parameters.json"]


def _saes(records: Records, rows: Rows) -> Iterator[Check]:
    """Which SAEs, groups, probes and tasks there must be by the parameters, no more and no less."""
    if "frontier" not in records or "conditions" not in records["frontier"].data["parameters"]:
        return
    asked = records["frontier"].data["parameters"]
    conditions, seeds = [Condition(**given) for given in asked["conditions"]], asked["seeds"]
    names = records["activations"].data["parameters"]["texts"]["probing"]
    ats = {(probe.data_set, str(probe.at)) for probe in rows["baselines", "probes"]}
    yield "data sets that are probed", sorted({name for name, _ in ats}), sorted(names)
    must = {"baselines": _baselines(records, rows, conditions)}
    must["frontier"] = [(c.name, c.architecture, seed, c.d_sae, c.k) for c in conditions for seed in seeds]
    for step, saes in must.items():
        made = [(m.condition, m.architecture, m.seed, m.d_sae, m.k) for m in rows[step, "members"]]
        for stated, sae in zip_longest(made, saes, fillvalue="no SAE"):
            yield f"SAE of {step}", stated, sae
        probed = sorted((p.condition, p.seed, p.data_set, str(p.at)) for p in rows[step, "probes"])
        yield f"probes of {step}", probed, sorted((sae[0], sae[2], *at) for sae, at in product(saes, ats))
    yield "conditions of groups", [g.condition for g in rows["frontier", "groups"]], [c.name for c in conditions]
    tasks = sorted((row.task, row.seed) for row in rows["stress", "ood"])
    if tasks:
        ood = records["stress"].data["parameters"]["texts"]["ood"]
        yield "tasks of the OOD control", tasks, sorted(product(ood, [m.seed for m in rows["candidate", "saes"]]))


def _pairs(run: Run, records: Records, rows: Rows) -> Iterator[Check]:
    """Every pair of seeds of each condition and each control, once; records made before there were pairs have none."""
    having = {step for step, record in records.items() if record.data["tables"].keys() & {"groups", "controls"}}
    held = {step for step in having if "pairs" in records[step].data["tables"]}
    asked = having if held or any(_writes_pairs(run, step) for step in having) else held
    yield "steps with a table of pairs", sorted(held), sorted(asked)
    seeds: dict[str, list[int]] = {group.condition: [] for group in rows["frontier", "groups"]}
    for member in rows["frontier", "members"]:
        seeds.setdefault(member.condition, []).append(member.seed)
    own = [member.seed for member in rows["candidate", "saes"]]
    controls = [row.control for row in rows["stress", "controls"] if row.metric == "pwmcc" and row.delta is not None]
    must = {"frontier": seeds, "stress": dict.fromkeys(controls, own)}
    for step in sorted(held):
        made = sorted((row.of, row.seed_a, row.seed_b) for row in rows[step, "pairs"])
        pairs = [(of, *pair) for of, those in must[step].items() for pair in combinations(those, 2)]
        yield f"pairs of {step}", made, sorted(pairs)
    random = [row.pwmcc for row in rows["stress", "pairs"] if row.of == "random_decoder"]
    if random:
        yield "mean of the random decoders", fmean(random), fmean(g.null_random for g in rows["candidate", "stability"])


def _writes_pairs(run: Run, step: str) -> bool:
    """Whether the executed notebook of a step has the code that writes its pairs."""
    paths = [run.path / name for name in run.journal[step]["files"] if name.startswith("notebooks/")]
    return any('\\"pairs\\"' in path.read_text(encoding="utf-8") for path in paths)


def _baselines(records: Records, rows: Rows, conditions: Sequence[Condition]) -> list[tuple[Any, ...]]:
    """The given SAE, if there is one, and a trained one for each seed and shape that it does not match."""
    asked = records["baselines"].data["parameters"]
    given = [row for row in rows["baselines", "members"][:1] if row.condition == GIVEN]
    shapes = baseline_shapes(conditions)
    free = {n: s for n, s in shapes.items() if not any(row.is_baseline_of(s.d_sae, s.k, 0) for row in given)}
    architecture = asked["baseline"]["architecture"]
    trained = [(name, architecture, seed, s.d_sae, s.k) for name, s in free.items() for seed in asked["seeds"]]
    return [*((row.condition, row.architecture, 0, row.d_sae, row.k) for row in given), *trained]


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
            for column, value in recomputed(step, table, row, rows).items():
                stated = value if value in (NOT_CHECKED, NOT_HERE) else getattr(row, column)
                yield f"{column} of {_name(step, table, row)}", stated, value


def _decisions(run: Run, records: Records, rows: Rows) -> Iterator[Check]:
    """Selection, gates and the comparison with earlier runs, done again on the records that they were made from."""
    selection, policy = decisions.selection_of(run.find_record), decisions.policy_of(run.find_record)
    selected = {"selected": selection.summary()["selected"]}
    decided = {"verdict": policy.verdict, "pass_all": policy.pass_all}
    for step, must in (("selection", selection.summary()), ("stress", selected), ("gate", decided | selected)):
        yield from _same(f"record {step}:", records[step].summary, must)
    again: dict[tuple[str, str], list[Any]] = {("selection", "candidates"): selection.rows()}
    again |= {("gate", "gates"): list(policy.gates)} | _against_earlier(run, records, policy)
    for (step, table), made in again.items():
        yield f"number of {table}", len(rows[step, table]), len(made)
        for row, same in zip(rows[step, table], made, strict=False):
            yield from _follow(f"{_name(step, table, same)}:", dict(row), dict(same))


def _against_earlier(run: Run, records: Records, policy: Policy) -> dict[tuple[str, str], list[Any]]:
    """The tables that rest on earlier runs, as far as these records have them."""
    made: dict[tuple[str, str], list[Any]] = {}
    if "criteria" in records["gate"].data["tables"]:
        earlier = records["gate"].data["parameters"].get("earlier", [])
        made["gate", "criteria"] = decisions.against(earlier, policy, run.find_record, run.read_run)
    if "replays" in records["selection"].data["tables"]:
        names = [name for name in records["selection"].data["parameters"]["earlier"] if name.startswith("imported/")]
        imported = {name: run.read_run(name) for name in names}
        made["selection", "replays"] = [row for name, those in imported.items() for row in replays(name, those)]
        made["selection", "rule_changes"] = [r for name, those in imported.items() for r in rule_changes(name, those)]
        made["selection", "caveats"] = [row for those in imported.values() for row in those["caveats"].table("caveats")]
    return made


def _published(run: Run, records: Records) -> Iterator[Check]:
    """The files under well-known names, written again from the records, which were checked by themselves."""
    selection, gate = records["selection"], records["gate"]
    basis = gate.data["parameters"]["gates"]["basis"]
    policy = Policy(tuple(gate.table("gates")), gate.summary["pass_all"], gate.summary["verdict"], basis)
    selected = {"selected": selection.summary["selected"]}
    criteria = {"criteria": gate.data["tables"]["criteria"]} if "criteria" in gate.data["tables"] else {}
    front = {"groups": [row for row in selection.data["tables"]["candidates"] if row["on_front"]]}
    known: dict[str, Any] = {
        "selection_summary.json": selection.summary, "selected_candidate.json": selected, "pareto_front.json": front,
        "release_policy.json": release_policy(policy) | selected | criteria,
        "release_policy.md": f"{policy.verdict}\n\n{tables.gates_table(policy.gates)}\n",
    }  # fmt: skip
    if "report" in records:
        known["results.json"] = results([records[step] for step in records["report"].data["inputs"]])
    published = {name for record in records.values() for name in record.data["published"]}
    yield "published files that are missing", sorted(name for name in known.keys() - published if ".json" in name), []
    for step, record in records.items():
        rows = {tables.csv_table(record.table(name)) for name in record.data["tables"]}
        for name in [name for name in record.data["published"] if not name.startswith("figures/")]:
            text = (run.path / name).read_bytes().decode()
            if name.endswith(".csv"):
                yield f"{name} is a table of record {step}", text in rows, True
            elif name in known:
                must = known[name] if isinstance(known[name], str) else canonical_json(known[name])
                yield name, *first_difference(text, must)
            else:
                yield name, NOT_CHECKED, NOT_CHECKED


def first_difference(text: str, must: str) -> tuple[str, str]:
    """The first lines in which two texts differ, twice the same where they are equal."""
    pairs = zip_longest(text.splitlines(), must.splitlines(), fillvalue="no line")
    spaces = (repr(text), repr(must)) if text != must else ("same", "same")
    return next(((stated, line) for stated, line in pairs if stated != line), spaces)
