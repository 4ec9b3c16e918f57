"""A careful forger of runs: copies of the committed smoke run, and changes with everything that follows from them.

Whatever is changed, hashes, journal, step keys and manifest agree with it afterwards, so that `husai verify` finds
nothing.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable, Collection
from functools import cache, partial
from pathlib import Path
from types import FunctionType
from typing import Any, cast
from unittest import mock

import nbformat
import pytest
from nbformat.v4 import new_output

from husai_lib.cycle.run import CycleStep, notebook_code, steps_of
from husai_lib.evidence.code import CHANGED, git_commit, library_hash, library_hash_at
from husai_lib.evidence.runs import Record, Run, find_run
from husai_lib.evidence.steps import environment, step_key
from husai_lib.files import REPOSITORY, canonical_json, read_json, sha256_file, sha256_text, write_bytes, write_json
from husai_lib.params.cycle import CycleParams, load_cycle
from husai_lib.params.sections import check
from husai_lib.report import consistency, figures, notebook_audit, scaling
from husai_lib.report.checks import Audited
from husai_lib.report.figures import ReportFigure
from husai_lib.report.notebook_audit import NOTEBOOKS, Reexecuted, expected_notebook, reexecute

COMMITTED = REPOSITORY / "evidence"
SMOKE = REPOSITORY / "params" / "smoke.yaml"
Change = Callable[[dict[str, Any]], object]
"""Changes a record, or other JSON values, in place."""
PARTS = ("probes", "pairs", "ood")
"""Tables that other tables of the same step are derived from."""
WHOLES = ("effects",)
"""Tables that are derived from derived columns of other tables of the same step."""
UNDERIVED = ("activations", "selection", "gate", "report")
"""Steps that measure nothing on SAEs."""
EXECUTED: dict[str, Reexecuted] = {}
"""Executions with hashes for figures, by all that they follow from."""


def fast_audits(patch: pytest.MonkeyPatch) -> None:
    """Make audits five times as fast.

    Figures are hashes of what they would be drawn from, a notebook is executed once on the same records, and no write
    waits for the disk.
    """

    def drawn(name: str, *rows: Any) -> ReportFigure:
        figure = ReportFigure()
        figure.__dict__["_image"] = sha256_text(f"{name} {rows!r}").encode()
        return figure

    for module in (figures, consistency, scaling):
        for name, make in list(vars(module).items()):
            own = isinstance(make, FunctionType) and make.__module__ == module.__name__
            if own and make.__annotations__["return"] is ReportFigure:
                patch.setattr(module, name, partial(drawn, name))
    patch.setattr(notebook_audit, "reexecute", executed_once)
    patch.setattr(os, "fsync", lambda _: None)


def executed_once(notebook: Any, run: Run, step: str, parameters: dict[str, Any]) -> Reexecuted:
    """What `reexecute` gives, remembered by the notebook, all records up to that of the step, and all imported ones."""
    names = [one.name for one in steps_in(run)]
    records = [run.path / "records" / f"{name}.json" for name in names[: names.index(step) + 1]]
    records += sorted(run.path.parent.parent.glob("imported/*/records/*.json"))
    cells = [[cell.source, cell.metadata.tags] for cell in notebook.cells]
    hashes = [sha256_file(path) for path in records if path.is_file()]
    key = canonical_json([step, parameters, cells, hashes])
    if key not in EXECUTED:
        EXECUTED[key] = reexecute(notebook, run, step, parameters)
    return EXECUTED[key]


def smoke_copy(folder: Path) -> Run:
    """The newest committed smoke run in `folder/evidence`, as the checkout's notebooks and code would have made it.

    Of the committed run only the measurements are kept; imports that it reads are copied beside it.
    """
    committed = find_run(COMMITTED, "smoke")
    run = Run(folder / "evidence" / committed.name)
    shutil.copytree(committed.path / "records", run.path / "records")
    stated = read_json(committed.path / "parameters.json")
    parameters = check(CycleParams, stated, "parameters.json").model_dump(mode="json")
    write_json(run.path / "parameters.json", parameters)
    of_file = load_cycle(SMOKE).model_dump(mode="json")  # may have sections that are newer than the run
    overrides = [f"{name}={json.dumps(value)}" for name, value in parameters.items() if value != of_file[name]]
    for name in parameters["earlier"]:
        shutil.copytree(COMMITTED / name, folder / "evidence" / name)
    place = place_of_checkout()
    run.note_attempt(place)
    for step in steps_of(parameters):
        path = run.path / "records" / f"{step.name}.json"
        write_json(path, read_json(path) | {"environment": place | {"device": "cpu"}})
    about = {"cycle": "smoke", "summary": parameters["summary"], "steps": [step.name for step in steps_of(parameters)]}
    run.write_manifest(**about, parameters_file="params/smoke.yaml", overrides=overrides, verdict="", pass_all=False)
    show_again(run)
    return run


def steps_in(run: Run) -> list[CycleStep]:
    """The steps of a run by its parameters, in order."""
    return steps_of(read_json(run.path / "parameters.json"))


@cache
def place_of_checkout() -> dict[str, Any]:
    """The environment here, at the checked-out commit, as an attempt has it."""
    commit = (git_commit() or "").removesuffix(CHANGED)
    code = {"library_sha256": library_hash_at(commit) or library_hash(), "git_commit": commit or None}
    return {name: value for name, value in environment("").items() if name != "device"} | {"code": code}


def copied(run: Run, folder: Path) -> Run:
    """A copy of a run with all that lies beside it, in `folder/evidence`."""
    shutil.copytree(run.path.parent.parent, folder / "evidence")
    return Run(folder / "evidence" / run.name)


def change_record(run: Run, step: str, change: Change) -> None:
    """Change a record, and nothing that follows from it but hashes."""
    path = run.path / "records" / f"{step}.json"
    record = read_json(path)
    change(record)
    write_json(path, record)
    forge_hashes(run)


def rewrite(run: Run, step: str, change: Change) -> None:
    """Change a record and write everything again that follows from it, as `show_again` does."""
    path = run.path / "records" / f"{step}.json"
    record = read_json(path)
    change(record)
    write_json(path, record)
    show_again(run, {step})


def derive_again(run: Run) -> None:
    """Recompute every derived column of the measuring steps, and write everything again that follows."""
    for step in [one.name for one in steps_in(run) if one.name not in UNDERIVED]:
        forge_hashes(run)
        path, tables = run.path / "records" / f"{step}.json", Audited(run).tables
        record, known = read_json(path), cast("dict[tuple[str, str], Any]", tables.tables)
        for name in sorted(record["tables"], key=lambda name: (name not in PARTS, name in WHOLES)):
            known[step, name] = [row.model_copy(update=row.derived(step, tables)) for row in known[step, name]]
            record["tables"][name] = [row.model_dump() for row in known[step, name]]
        write_json(path, record)
    show_again(run)


def show_again(run: Run, forged: Collection[str] = ()) -> None:
    """Write everything that follows from the records: decisions, published files, figures, notebooks, every hash.

    The records of the steps `forged` stay as they are, and their notebooks show them, also where they are decisions.
    """
    for step in steps_in(run):
        path = run.path / "records" / f"{step.name}.json"
        record = _with_inputs(run, read_json(path))
        if step.name in ("confirmation", "stress") and step.name not in forged:  # as if it had been made for the winner
            record["summary"]["selected"] = run.record("selection").summary["selected"]
        names = {"run": ""} | step.injected | record["parameters"]
        given = names | {"run": f"evidence/{run.name}"}
        notebook = expected_notebook((NOTEBOOKS / step.notebook).read_text(encoding="utf-8"), given)
        _note(run, step.name, record, [])
        if step.name in forged:
            with mock.patch.object(Reexecuted, "write", _write(record)):
                execution = reexecute(notebook, run, step.name, names)
        else:
            execution = notebook_audit.reexecute(notebook, run, step.name, names)
        files = execution.files
        for name, content in files.items():
            write_bytes(run.path / name, content)
        if execution.made and step.name not in forged:
            kept = {name: record[name] for name in ("environment", "finished_utc", "wall_seconds")}
            record = execution.made | kept
        before = [name for name in files if not name.startswith("figures/")]
        record["published"] = {name: sha256_file(run.path / name) for name in before}
        for number, shown in execution.outputs.items():
            notebook.cells[number].outputs = [_output(**one) for one in shown]
        del notebook.metadata["papermill"]  # as `husai run` leaves it
        write_notebook(run.path / "notebooks" / step.executed, notebook)
        _note(run, step.name, record, [*files, f"notebooks/{step.executed}"])
    forge_hashes(run)


def forge_hashes(run: Run, **about: Any) -> None:
    """Make every hash agree with the files; new files are said to be of the gate, `about` goes into the manifest."""
    known = {name for entry in run.journal.values() for name in entry["files"]}
    added = run.files().keys() - known - {"journal.json", "parameters.json"}
    for step in [step.name for step in steps_in(run) if step.name in run.journal]:
        names = [name for name in run.journal[step]["files"] if (run.path / name).is_file()]
        path = run.path / "records" / f"{step}.json"
        if path.is_file():
            record = _with_inputs(run, read_json(path))
            record["published"] = {name: sha256_file(run.path / name) for name in record["published"] if name in names}
            _note(run, step, record, [*names, *(added if step == "gate" else ())])
    if (run.path / "records" / "gate.json").is_file():
        gate = read_json(run.path / "records" / "gate.json")["summary"]
        about = {name: gate[name] for name in ("verdict", "pass_all")} | about
    run.write_manifest(**{name: value for name, value in (run.manifest() | about).items() if name != "sha256"})


def write_notebook(path: Path, notebook: Any) -> None:
    """Write an executed notebook, whether or not it is a valid one."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(nbformat.writes(notebook), encoding="utf-8")


def _with_inputs(run: Run, record: dict[str, Any]) -> dict[str, Any]:
    """A record with the hashes of the records that it read as they are now."""
    paths = {step: run.path / "records" / f"{step}.json" for step in record["inputs"]}
    return record | {"inputs": {step: sha256_file(path) for step, path in paths.items() if path.is_file()}}


def _note(run: Run, step: str, record: dict[str, Any], files: list[str]) -> None:
    """Write a record, and its step into the journal with these files."""
    name = f"records/{step}.json"
    write_json(run.path / name, record)
    hashes = {file: sha256_file(run.path / file) for file in {name, *files}}
    key = step_key(step, record["parameters"], record["environment"]["code"]["library_sha256"])
    code = notebook_code(NOTEBOOKS / next(one.notebook for one in steps_in(run) if one.name == step))
    run.note_step(step, {"files": hashes, "key": key, "notebook_code": code})


def _write(forged: dict[str, Any]) -> Callable[..., Record]:
    """A `Step.write` after which the notebook shows the forged record."""
    actual = Reexecuted.write

    def write(step: Reexecuted, *rows: Any, **summary: Any) -> Record:
        actual(step, *rows, **summary)
        return Record(step.name, forged, "")

    return write


def _output(data: dict[str, Any] | None = None, stream: str = "", text: str = "") -> Any:
    """What a cell showed, as a notebook has it."""
    if data is None:
        return new_output("stream", name=stream, text=text)
    shown = {kind: base64.b64encode(one).decode() if isinstance(one, bytes) else one for kind, one in data.items()}
    return new_output("execute_result", shown)
