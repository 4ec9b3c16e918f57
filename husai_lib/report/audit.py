"""Audit: whether what a run shows follows from its records.

Decisions are retaken, derived columns recomputed, and the showing cells of the notebooks executed again.

It takes the records' measurements as given: only `husai reproduce` finds one that somebody invented.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations, product
from pathlib import Path
from typing import Any

from husai_lib.decisions.acceptance import acceptance
from husai_lib.earlier.imports import audit_import
from husai_lib.errors import EvidenceError
from husai_lib.evidence.cache import CACHED
from husai_lib.evidence.code import CHANGED, file_at, library_hash_at
from husai_lib.evidence.rows.base import GIVEN, IMPORTED, RunTables
from husai_lib.evidence.rows.consistency import random_of
from husai_lib.evidence.rows.controls import PROBED, control_names
from husai_lib.evidence.runs import Record, Run
from husai_lib.evidence.steps import candidate_of, condition_of, step_key, why_unconfirmed
from husai_lib.evidence.verification import problems_of
from husai_lib.files import REPOSITORY, read_json
from husai_lib.params.conditions import Condition, baseline_seeds, baseline_shapes
from husai_lib.params.consistency import ConsistencyParams
from husai_lib.params.cycle import CycleParams
from husai_lib.params.sections import check
from husai_lib.params.strict_yaml import override, parse_yaml
from husai_lib.report.checks import UNCHECKED, Audit, Check, follow
from husai_lib.report.notebook_audit import check_notebook
from husai_lib.report.recomputed import check_cached, check_seeded

NOTEBOOKS = REPOSITORY / "notebooks"
WELL_KNOWN = {"results.json", "selection_summary.json", "selected_candidate.json", "pareto_front.json",
              "release_policy.json"}  # fmt: skip
"""Files that people and scripts look for in every complete run."""
NAMING = {"condition", "origin", "seed", "data_set", "at", "duplicates", "split", "task", "control", "bank", "of",
          "seed_a", "seed_b", "role"}  # fmt: skip
"""Columns that say which row of a table is meant."""


@dataclass(frozen=True)
class Audited:
    """A run under audit: its records, read once."""

    run: Run

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest."""
        return self.run.manifest()

    @cached_property
    def journal(self) -> dict[str, dict[str, Any]]:
        """The journal's steps."""
        return self.run.journal

    @cached_property
    def records(self) -> dict[str, Record]:
        """Every record, by step."""
        return {step: self.run.record(step) for step in self.journal}

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """All sections of the cycle."""
        parameters: dict[str, Any] = read_json(self.run.path / "parameters.json")
        return parameters

    @cached_property
    def tables(self) -> RunTables:
        """The typed tables, with the selected group beside them."""
        tables = {(s, table): r.table(table) for s, r in self.records.items() for table in r.data["tables"]}
        chosen = self.records["selection"].summary["selected"]
        return RunTables(tables, self.parameters, candidate_of(chosen, self.run.find_record))


def audit_run(run: Run, notebooks: Path = NOTEBOOKS) -> Audit:
    """Check a complete run, or an import, against its records and the notebooks of the folder `notebooks`.

    Raises EvidenceError for an unfinished run that nothing shows.
    """
    audit = Audit(problems=problems_of(run))
    if run.path.parent.name == IMPORTED:
        audit.take(lambda: audit_import(run), f"the import {run.name}")
        return audit
    if not run.is_complete:
        if not audit.problems:
            raise EvidenceError(f"run {run.name} is unfinished: it has no manifest; finish it with --resume")
        return audit
    one = Audited(run)
    parts: dict[str, Callable[[], Iterable[Check]]] = {
        "the manifest": lambda: _manifest(one),
        "the environment": lambda: _environment(one),
        "the parameters": lambda: _parameters(one),
        "the tables": lambda: _completeness(one),
        "a derived column": lambda: _derived(one),
        "a random decoder": lambda: check_seeded(one.tables),
        "a cache entry": lambda: check_cached(one.tables),
        "a published file": lambda: _well_known(one),
    }
    for path in sorted(run.path.glob("records/*.json")):
        parts[f"the notebook of step {path.stem}"] = partial(check_notebook, run, path.stem, notebooks)
    for what, part in parts.items():
        audit.take(part, f"{what} of {run.name}")
    return audit


# ---------------------------------------------------------------------------------------------
# Where, when and with which parameters the run was made
# ---------------------------------------------------------------------------------------------


def _manifest(one: Audited) -> Iterator[Check]:
    """What the manifest, the journal and the records say of each other, their hashes apart."""
    known = {"run", "cycle", "summary", "steps", "verdict", "pass_all", "files", "finished_utc", "sha256",
             "parameters_file", "overrides"}  # fmt: skip
    yield "keys of the manifest", sorted(one.manifest.keys() - known), []
    gate, cycle = one.records["gate"].summary, one.run.path.parent.name
    must = {"run": one.run.name, "cycle": cycle, "verdict": gate["verdict"], "pass_all": gate["pass_all"]}
    must |= {"summary": one.parameters["summary"]}
    yield from follow("manifest:", {name: one.manifest[name] for name in must}, must)
    began = one.run.path.name.removeprefix("run_")
    for step, record in one.records.items():
        data, entry = record.data, one.journal[step]
        yield f"step and cycle of record {step}", (data["step"], data["cycle"]), (step, cycle)
        asked = {section: one.parameters.get(section) for section in data["parameters"]}
        yield from follow(f"record {step}: section", data["parameters"], asked)
        key = step_key(step, data["parameters"], data["environment"]["code"]["library_sha256"])
        yield f"journal: key of step {step}", entry["key"], key
        before = [one.records[other].data["finished_utc"] for other in data["inputs"]]
        ordered = _compact(data["finished_utc"]) >= max([began, *map(_compact, before)])
        yield f"record {step} was finished after the run began and after what it read", ordered, True
        yield f"notebooks of step {step}", sum(name.startswith("notebooks/") for name in entry["files"]), 1
    latest = max(record.data["finished_utc"] for record in one.records.values())
    yield "manifest: finished_utc is after every record's", one.manifest["finished_utc"] >= latest, True


def _compact(utc: str) -> str:
    """An ISO time as a run's folder has it."""
    return utc.replace("-", "").replace(":", "").replace("+0000", "Z")


def _environment(one: Audited) -> Iterator[Check]:
    """Every record was made where an attempt of the journal began, by the library of the stated commit."""
    places = [{name: value for name, value in attempt.items() if name != "device"} for attempt in one.run.attempts]
    for step, record in one.records.items():
        place = {name: value for name, value in record.data["environment"].items() if name != "device"}
        nearest = place if place in places else (places or [{}])[-1]
        yield from follow(f"environment of record {step}:", place, nearest)
    computed = [record.data for record in one.records.values() if record.data["tables"].keys() & CACHED.keys()]
    devices = sorted({data["environment"]["device"] for data in computed})
    yield "devices beyond one an attempt", devices[len(places) :], []
    for commit, stated in {(place["code"]["git_commit"], place["code"]["library_sha256"]) for place in places}:
        must = library_hash_at(commit) if commit and not commit.endswith(CHANGED) else None
        if must is None:
            yield "library states that no commit of this checkout has", UNCHECKED, None
        else:
            yield f"library_sha256 of the library of commit {commit}", stated, must


def _parameters(one: Audited) -> Iterator[Check]:
    """The parameters are those of the committed file with the stated overrides."""
    yield "parameters.json as checked parameters", one.parameters, _dump(one.parameters, "parameters.json")
    path, assignments = one.manifest["parameters_file"] or "", one.manifest["overrides"]
    commit = one.run.attempts[-1]["code"]["git_commit"] or ""
    text = file_at(commit.removesuffix(CHANGED), path) if path and commit else None
    if text is None or (commit.endswith(CHANGED) and _of_file(text, path, assignments) != one.parameters):
        yield "parameters that are not those of a committed file", UNCHECKED, None
        return
    must = _of_file(text, path, assignments)
    for section in must:
        yield f"section {section}, against {path} of commit {commit},", one.parameters.get(section), must[section]


def _of_file(text: str, path: str, assignments: list[str]) -> dict[str, Any]:
    return _dump(override(parse_yaml(text, path), assignments), path)


def _dump(data: dict[str, Any], source: str) -> dict[str, Any]:
    return check(CycleParams, data, source).model_dump(mode="json")


# ---------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------


def _completeness(one: Audited) -> Iterator[Check]:
    """Which SAEs, groups, pairs, probes and tasks there must be by the parameters, no more and no less."""
    rows, asked = one.tables.rows, one.parameters
    conditions, seeds = [Condition(**given) for given in asked["conditions"]], asked["seeds"]
    ats = {(probe.data_set, str(probe.at), probe.duplicates, probe.split) for probe in rows("baselines", "probes")}
    yield "data sets that are probed", sorted({at[0] for at in ats}), sorted(asked["texts"]["probing"])
    forms = {("keep", asked["probing"]["seed"])} | {
        ("drop", asked["probing"]["seed"] + n) for n in range(asked["probing"]["splits"])
    }
    yield "forms and splits of probes", sorted({at[2:] for at in ats}), sorted(forms)
    cycle = check(CycleParams, asked, "parameters.json")
    must = {"baselines": _baselines(one, "baselines", cycle.sweeps)}
    must["frontier"] = [(c.name, c.architecture, seed, c.d_sae, c.k) for c in conditions for seed in seeds]
    sweep = ConsistencyParams.model_validate(asked["consistency"]) if asked["consistency"] else None
    swept, train_seeds = (sweep.swept(), sweep.seeds or seeds) if sweep else ([], [])
    if sweep:
        must["consistency"] = [(c.name, c.architecture, seed, c.d_sae, c.k) for c in swept for seed in train_seeds]
    must["confirmation"] = _confirmed(one)
    for step, saes in must.items():
        members = rows(step, "members")
        yield f"SAEs of {step}", [(m.condition, m.architecture, m.seed, m.d_sae, m.k) for m in members], saes
        weights = Counter(member.weights_sha256 for member in members)
        yield f"weights of several SAEs of {step}", [sha256 for sha256, n in weights.items() if n > 1], []
        probed = sorted(
            (p.condition, p.seed, p.data_set, str(p.at), p.duplicates, p.split) for p in rows(step, "probes")
        )
        yield f"probes of {step}", probed, sorted((sae[0], sae[2], *at) for sae, at in product(saes, ats))
        limits = sorted((row.condition, row.seed, row.data_set) for row in rows(step, "ceilings"))
        yield (
            f"ceilings of {step}",
            limits,
            sorted((sae[0], sae[2], name) for sae in saes for name in asked["texts"]["probing"]),
        )
    fresh = {one.condition for one in rows("confirmation", "members") if not one.is_baseline}
    yield "conditions of groups", [g.condition for g in rows("frontier", "groups")], [c.name for c in conditions]
    yield "conditions of swept groups", [g.condition for g in rows("consistency", "groups")], [c.name for c in swept]
    yield from _sweep(one, sweep, [(c.name, seed) for c in swept for seed in train_seeds])
    yield from _references(one, {"frontier": (conditions, seeds), "consistency": (swept, train_seeds)})
    yield "conditions of confirmed groups", [g.condition for g in rows("confirmation", "groups")], sorted(fresh)
    own = [member.seed for member in one.tables.candidate.members]
    switches = {name: "transcoder" if name == "transcoder" else "random_model" for name in control_names(asked)}
    run = [name for name, switch in switches.items() if own and asked["stress"][switch] and name not in PROBED]
    pairs = {"frontier": {c.name: seeds for c in conditions}, "stress": dict.fromkeys(run, own)}
    pairs["consistency"] = dict.fromkeys([*(c.name for c in swept), *(random_of(c.d_sae) for c in swept)], train_seeds)
    pairs["confirmation"] = dict.fromkeys(fresh, own)
    for step, of in pairs.items():
        made = sorted((row.of, row.seed_a, row.seed_b) for row in rows(step, "pairs"))
        yield f"pairs of {step}", made, sorted((name, *pair) for name in of for pair in combinations(of[name], 2))
    trained = [name for name in run if name != "random_decoder"]
    of_controls = sorted((sae.control, sae.seed) for sae in rows("stress", "control_saes"))
    yield "SAEs of controls", of_controls, sorted(product(trained, own))
    tasks = sorted((row.task, row.seed) for row in rows("stress", "ood"))
    yield "tasks of the OOD control", tasks, sorted(product(asked["texts"]["ood"], own)) if tasks else []
    yield "controls", [row.control for row in rows("stress", "controls")], control_names(asked)
    study = asked["contrastive"]["study"]
    grids = {"random": study["widths"] + study["random_widths"], "trained": study["widths"]}
    shapes = sorted((origin, seeds[0], d_sae, k) for origin in grids for d_sae in grids[origin] for k in study["ks"])
    scored = [(row.origin, row.seed, row.d_sae, row.k) for row in rows("baselines", "contrastive")]
    yield "SAEs of the width study", scored, shapes
    yield from _inputs(one)


def _sweep(one: Audited, sweep: ConsistencyParams | None, saes: list[tuple[str, int]]) -> Iterator[Check]:
    """The sweep of the consistency objective: its checkpoints, its weights, and its acceptance."""
    rows = one.tables.rows
    groups = list(dict.fromkeys(name for name, _ in saes))
    yield "checkpoints", [(row.condition, row.seed) for row in rows("consistency", "checkpoints")], saes
    yield "weights of the sweep", [row.condition for row in rows("consistency", "sweep")], groups
    if not sweep:
        return
    truth = [row.weight for row in rows("consistency", "known_truth")]
    yield "weights on known features", truth, sweep.lambdas
    stated = one.records["consistency"].summary["acceptance"]
    yield from follow("acceptance:", stated, acceptance(rows("consistency", "sweep"), sweep.acceptance))


def _references(one: Audited, trained: dict[str, tuple[list[Condition], list[int]]]) -> Iterator[Check]:
    """What each seed was aligned with, of `trained` conditions and of the confirmed one: it says which are related."""
    chosen, fresh = one.records["selection"].summary["selected"], one.parameters["confirmation"]["seeds"]
    if not why_unconfirmed(chosen, fresh, one.run.find_record):
        trained = trained | {"confirmation": ([condition_of(chosen, one.run.find_record)], fresh)}
    for step, (conditions, seeds) in trained.items():
        dealt = {
            (condition.name, seed): condition.objective.reference_of(seeds, i)
            for condition in conditions if condition.objective for i, seed in enumerate(seeds)
        }  # fmt: skip
        for row in one.tables.rows(step, "members"):
            must = dealt.get((row.condition, row.seed))
            yield f"reference of {step}/members {row.condition} {row.seed}", row.reference, must


def _inputs(one: Audited) -> Iterator[Check]:
    """Which data sets were read, for which banks, and how many story pairs."""
    texts, stress, rows = one.parameters["texts"], one.parameters["stress"], one.tables.rows
    tasks = {"probing": texts["probing"]} | ({"ood": texts["ood"], "shifted": texts["ood"]} if stress["ood"] else {})
    read = [(row.role, row.data_set) for row in rows("activations", "sources")]
    drawn = {(role, name) for role in ("training", "held_out") for name in texts[role]}
    drawn |= {("validation", name) for name in texts["held_out"]}
    of_tasks = [(role, name) for role in tasks for name in tasks[role]]
    yield "data sets of tasks", sorted({*read} - drawn), sorted(of_tasks)
    yield "data sets that are listed twice", [source for source, n in Counter(read).items() if n > 1], []
    further = {"validation"} if one.parameters["activations"]["validation_rows"] else set()
    yield "roles of data sets", sorted({role for role, _ in read}), sorted({"training", "held_out", *further, *tasks})
    of_transcoder = ("mlp_in", "mlp_out", "mlp_in_held_out") if stress["transcoder"] else ()
    of_validation = ("validation", "validation_stories") if further else ()
    banks = ["training", "held_out", "stories", *of_validation, *of_transcoder]
    made = [row.bank for row in rows("activations", "banks")]
    yield "banks of activations", sorted(made), sorted([*banks, *("/".join(task) for task in of_tasks)])
    models = [row.control for row in rows("stress", "controls") if row.control.startswith("random_model")]
    run = [row.of for row in rows("stress", "pairs")]
    must = [name for model in models if model in run for name in (model, f"{model}_held_out")]
    yield "banks of controls", [row.bank for row in rows("stress", "banks")], must
    pairs = one.records["activations"].summary["story_pairs"]
    yield "story pairs are at most max_rows", pairs <= one.parameters["contrastive"]["max_rows"], True


def _baselines(one: Audited, step: str, sweeps: list[tuple[list[Condition], list[int]]]) -> list[tuple[Any, ...]]:
    """The given SAE, if there is one, and a trained one for each seed and shape that it does not match."""
    given = [row for row in one.tables.rows(step, "members") if row.condition == GIVEN][:1]
    shapes, seeds = baseline_shapes(c for conditions, _ in sweeps for c in conditions), baseline_seeds(sweeps)
    free = {n: s for n, s in shapes.items() if not any(row.is_baseline_of(s.d_sae, s.k, 0) for row in given)}
    architecture = one.parameters["baseline"]["architecture"]
    trained = [(name, architecture, seed, s.d_sae, s.k) for name, s in free.items() for seed in seeds[name]]
    return [*((row.condition, row.architecture, 0, row.d_sae, row.k) for row in given), *trained]


def _confirmed(one: Audited) -> list[tuple[Any, ...]]:
    """The selected condition and its baselines at the confirmation seeds; nothing where the run cannot train them."""
    chosen, seeds = one.records["selection"].summary["selected"], one.parameters["confirmation"]["seeds"]
    if why_unconfirmed(chosen, seeds, one.run.find_record):
        return []
    condition = condition_of(chosen, one.run.find_record)
    own = [(condition.name, condition.architecture, seed, condition.d_sae, condition.k) for seed in seeds]
    return own + _baselines(one, "confirmation", [([condition], seeds)])


def _derived(one: Audited) -> Iterator[Check]:
    """Every column that follows from other numbers, recomputed by its row class."""
    for (step, table), rows in one.tables.tables.items():
        for row in rows:
            name = " ".join([f"{step}/{table}", *(str(value) for column, value in row if column in NAMING)])
            for column, value in row.derived(step, one.tables).items():
                yield f"{column} of {name}", getattr(row, column), value


def _well_known(one: Audited) -> Iterator[Check]:
    """The files under well-known names are there."""
    names = {name for entry in one.journal.values() for name in entry["files"]}
    yield "well-known files that are missing", sorted(WELL_KNOWN - names), []
