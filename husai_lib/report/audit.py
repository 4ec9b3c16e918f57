"""Audit: whether what a run shows follows from its records.

Decisions are retaken, derived columns recomputed, and the showing cells of the notebooks executed again. A run that
another version of this code made is audited by that version: tables, columns and notebooks change, so another one
cannot say whether they follow.
It takes the records' measurements as given: only `husai reproduce` finds one that somebody invented.
"""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from husai_lib.earlier.imports import audit_import
from husai_lib.errors import EvidenceError
from husai_lib.evidence.cache import CACHED, cache_folder
from husai_lib.evidence.code import CHANGED, checkout_of, file_at, library_hash, library_hash_at
from husai_lib.evidence.rows.base import IMPORTED
from husai_lib.evidence.runs import Run
from husai_lib.evidence.steps import step_key
from husai_lib.evidence.verification import problems_of
from husai_lib.params.cycle import CycleParams, given_to
from husai_lib.params.sections import check
from husai_lib.params.strict_yaml import override, parse_yaml
from husai_lib.report.checks import UNCHECKED, Audit, Audited, Check, follow
from husai_lib.report.completeness import completeness
from husai_lib.report.notebook_audit import check_notebook
from husai_lib.report.recomputed import check_cached, check_seeded

COMMAND = "from husai_lib.cli import main; main()"
COUNTED = re.compile(r"([\d,]+) (.+)")
WELL_KNOWN = {"results.json", "selection_summary.json", "selected_candidate.json", "pareto_front.json",
              "release_policy.json"}  # fmt: skip
"""Files that people and scripts look for in every complete run."""
NAMING = {"condition", "origin", "seed", "data_set", "at", "duplicates", "split", "task", "control", "bank",
          "metric", "of", "seed_a", "seed_b", "role"}  # fmt: skip
"""Columns that say which row of a table is meant."""


def audit_as_made(run: Run) -> Audit:
    """The audit of a run by the code that made it: this one or, where the libraries differ, that of its commit.

    A run of changed files, or of a commit that this checkout does not have, is audited by this code.
    """
    code = run.attempts[-1]["code"] if run.is_complete and run.attempts else {}
    commit = code.get("git_commit") or CHANGED
    if commit.endswith(CHANGED) or code["library_sha256"] == library_hash():
        return audit_run(run)
    with checkout_of(commit) as folder:
        if folder is None:
            return audit_run(run)
        evidence = str(run.path.parent.parent.absolute())
        command = [sys.executable, "-c", COMMAND, "audit", run.name, "--evidence", evidence]
        place = os.environ | {"PYTHONPATH": str(folder), "HUSAI_CACHE": str(cache_folder().absolute())}
        done = subprocess.run(command, cwd=folder, env=place, capture_output=True, text=True, check=False)
    audit = _read(done.stdout, run.name)
    audit.by = commit
    if not audit.checked and not audit.problems:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        audit.problems.append(f"the code of commit {commit} cannot audit it: {last}")
    return audit


def _read(output: str, name: str) -> Audit:
    """The audit of a run as the command line prints it."""
    start, lines = f"problem: {name}: ", output.splitlines()
    problems = [line.removeprefix(start) for line in lines if line.startswith(start)]
    counts = next((line for line in lines if line.startswith(f"{name}: ")), "").removeprefix(f"{name}: ")
    found = {what: int(n.replace(",", "")) for n, what in COUNTED.findall(counts.replace(", ", "\n"))}
    unchecked = {what: n for what, n in found.items() if what not in {"values checked", "problems"}}
    return Audit(found.get("values checked", 0), Counter(unchecked), problems)


def audit_run(run: Run) -> Audit:
    """Check a complete run, or an import, against its records and the notebooks of the checkout.

    Raises EvidenceError for an unfinished run that nothing shows.
    """
    audit = Audit(problems=problems_of(run))
    if run.path.parent.name == IMPORTED:
        audit.take(audit_import(run), f"the import {run.name}")
        return audit
    if not run.is_complete:
        if not audit.problems:
            raise EvidenceError(f"run {run.name} is unfinished: it has no manifest; finish it with --resume")
        return audit
    one = Audited(run)
    parts: dict[str, Iterable[Check]] = {
        "the manifest": _manifest(one),
        "the environment": _environment(one),
        "the parameters": _parameters(one),
        "the tables": completeness(one),
        "a derived column": _derived(one),
        "a random decoder": check_seeded(one),
        "a cache entry": check_cached(one),
    }
    for path in sorted(run.path.glob("records/*.json")):
        parts[f"the notebook of step {path.stem}"] = check_notebook(run, path.stem)
    for what, part in parts.items():
        audit.take(part, f"{what} of {run.name}")
    return audit


def _manifest(one: Audited) -> Iterator[Check]:
    """What the manifest, the journal and the records say of each other, their hashes apart."""
    known = {"run", "cycle", "summary", "steps", "verdict", "pass_all", "files", "finished_utc", "sha256",
             "parameters_file", "overrides"}  # fmt: skip
    manifest, journal = one.run.manifest(), one.run.journal
    yield "keys of the manifest", sorted(manifest.keys() - known), []
    names = {name for entry in journal.values() for name in entry["files"]}
    yield "well-known files that are missing", sorted(WELL_KNOWN - names), []
    gate, cycle = one.records["gate"].summary, one.run.path.parent.name
    must = {"run": one.run.name, "cycle": cycle, "verdict": gate["verdict"], "pass_all": gate["pass_all"]}
    must |= {"summary": one.parameters["summary"]}
    yield from follow("manifest:", {name: manifest[name] for name in must}, must)
    for step, record in one.records.items():
        data, entry = record.data, journal[step]
        yield f"step and cycle of record {step}", (data["step"], data["cycle"]), (step, cycle)
        asked = {section: given_to(step, one.parameters).get(section) for section in data["parameters"]}
        yield from follow(f"record {step}: section", data["parameters"], asked)
        key = step_key(step, data["parameters"], data["environment"]["code"]["library_sha256"])
        yield f"journal: key of step {step}", entry["key"], key
        before = [one.records[other].data["finished_utc"] for other in data["inputs"]]
        ended, *earlier = (re.sub(r"\D", "", utc)[:14] for utc in (data["finished_utc"], one.run.path.name, *before))
        yield f"record {step} was finished after the run began and after what it read", ended >= max(earlier), True
        yield f"notebooks of step {step}", sum(name.startswith("notebooks/") for name in entry["files"]), 1
    latest = max(record.data["finished_utc"] for record in one.records.values())
    yield "manifest: finished_utc is after every record's", manifest["finished_utc"] >= latest, True


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
    manifest = one.run.manifest()
    path, commit = manifest["parameters_file"] or "", one.run.attempts[-1]["code"]["git_commit"] or ""
    text = file_at(commit.removesuffix(CHANGED), path) if path and commit else None
    must = None if text is None else _dump(override(parse_yaml(text, path), manifest["overrides"]), path)
    if must is None or (commit.endswith(CHANGED) and must != one.parameters):
        yield "parameters that are not those of a committed file", UNCHECKED, None
        return
    for section in must:
        yield f"section {section}, against {path} of commit {commit},", one.parameters.get(section), must[section]


def _dump(data: dict[str, Any], source: str) -> dict[str, Any]:
    return check(CycleParams, data, source).model_dump(mode="json")


def _derived(one: Audited) -> Iterator[Check]:
    """Every column that follows from other numbers, recomputed by its row class."""
    for (step, table), rows in one.tables.tables.items():
        for row in rows:
            name = " ".join([f"{step}/{table}", *(str(value) for column, value in row if column in NAMING)])
            for column, value in row.derived(step, one.tables).items():
                yield f"{column} of {name}", getattr(row, column), value
