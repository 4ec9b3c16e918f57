"""A cycle: parameters in, every step's notebook executed in order, evidence and a verdict out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from husai_lib.cache import CACHED, cache_folder
from husai_lib.errors import HusaiError, ParameterError, StepError
from husai_lib.evidence import Run, find_runs, new_run, step_key
from husai_lib.files import read_json, sha256_file, write_json, write_text
from husai_lib.params import REPOSITORY, CycleParams
from husai_lib.preflight import check_layer, check_notebook, check_space, notebook_code, only_run_of
from husai_lib.progress import Watch

NOTEBOOKS = REPOSITORY / "notebooks"
NEW_RUN = "new run"


@dataclass(frozen=True)
class CycleStep:
    """One step of every cycle."""

    name: str
    notebook: str
    """File name in `notebooks/`."""
    sections: tuple[str, ...]
    """Sections of the parameters that the notebook is given; nothing else can change its result."""


STEPS = (
    CycleStep("activations", "01_activations.ipynb", ("model", "texts", "activations", "contrastive", "stress")),
    CycleStep("baselines", "02_baselines.ipynb", ("seeds", "sae", "baseline", "probing", "contrastive")),
    CycleStep("frontier", "03_frontier.ipynb", ("seeds", "sae", "conditions", "probing", "contrastive")),
    CycleStep("selection", "06_selection.ipynb", ("selection",)),
    CycleStep("stress", "07_stress.ipynb", ("model", "texts", "activations", "probing", "stress")),
    CycleStep("gate", "08_gate.ipynb", ("gates",)),
    CycleStep("report", "09_report.ipynb", ()),
)


@dataclass(frozen=True)
class PlannedStep:
    """A step with the parameters of one cycle."""

    step: CycleStep
    parameters: dict[str, Any]
    """Its sections as JSON values."""
    makes: str
    """What it makes, in words."""
    work: float
    """A rough share of the cycle's work; only their ratios mean anything."""
    reason: str | None = NEW_RUN
    """Why it runs; None where its result of an earlier attempt is kept."""

    @property
    def notebook(self) -> str:
        """Path of the executed notebook in the run."""
        return f"notebooks/{self.step.notebook}"


@dataclass(frozen=True)
class Outcome:
    """A complete run and what it concluded."""

    run: Run
    verdict: str
    pass_all: bool
    was_complete: bool
    """Whether there was nothing to do."""


def plan(params: CycleParams) -> list[PlannedStep]:
    """Every step of the cycle, in order, as a new run would execute it."""
    values = params.model_dump(mode="json")
    seeds, conditions = len(params.seeds), len(params.conditions)
    controls = [name for name in ("random_model", "transcoder", "ood") if getattr(params.stress, name)]
    makes = {
        "activations": (f"banks of {params.activations.hook_name}", 6),
        "baselines": (f"{seeds} members: {params.baseline.architecture} x {seeds} seeds", seeds),
        "frontier": (f"{conditions * seeds} members: {conditions} conditions x {seeds} seeds", conditions * seeds),
        "selection": ("candidate of the Pareto front", 1),
        "stress": (f"controls: {', '.join(controls) or 'none'}", 1 + 2 * seeds * len(controls)),
        "gate": ("verdicts", 1),
        "report": ("results.json", 1),
    }
    return [PlannedStep(step, {name: values[name] for name in step.sections}, *makes[step.name]) for step in STEPS]


def plan_resumed(params: CycleParams, run: Run, notebooks: Path) -> list[PlannedStep]:
    """Every step of the cycle, in order, with why it runs again in `run`, or that it is kept."""
    planned: list[PlannedStep] = []
    for step in plan(params):
        kept = {earlier.step.name for earlier in planned if earlier.reason is None}
        reason = next(_reasons_to_run(step, run, kept, notebooks), None)
        planned.append(PlannedStep(step.step, step.parameters, step.makes, step.work, reason))
    return planned


def _reasons_to_run(planned: PlannedStep, run: Run, kept: set[str], notebooks: Path) -> Iterator[str]:
    name = planned.step.name
    entry = run.journal.get(name)
    if entry is None or planned.notebook not in entry["files"]:
        yield "not done yet"
        return
    if entry["key"] != step_key(name, planned.parameters):
        yield "its parameters or the library changed"
    if entry["notebook_code"] != notebook_code(notebooks / planned.step.notebook):
        yield "its notebook changed"
    for file, sha256 in entry["files"].items():
        if not (run.path / file).exists() or sha256_file(run.path / file) != sha256:
            yield f"{file} is missing or changed"
    record = run.record(name).data
    for step, sha256 in record["inputs"].items():
        if step not in kept or run.record(step).sha256 != sha256:
            yield f"it rests on step {step}, which runs again"
    for kind, key in _cache_entries(record):
        if not (cache_folder() / kind / key / "entry.json").exists():
            yield f"{kind} it made are no longer in the cache"


def _cache_entries(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for table, kind in CACHED.items():
        for row in record["tables"].get(table, []):
            yield kind, row["key"]


def resumable_run(params: CycleParams, evidence: Path) -> Run | None:
    """The newest run of the cycle, complete or not; None if there is none.

    Raises ParameterError where it was made with other parameters.
    """
    runs = [run for run in find_runs(evidence) if run.path.parent.name == params.cycle]
    runs = [run for run in runs if (run.path / "parameters.json").exists()]
    if not runs:
        return None
    before, now = read_json(runs[-1].path / "parameters.json"), params.model_dump(mode="json")
    differences = _differences(before, now)
    if differences:
        key, old, new = differences[0]
        raise ParameterError(
            f"{key} is {new!r} but {runs[-1].name} was made with {old!r}; "
            f"run without --resume for a new run, or give the old value"
        )
    return runs[-1]


def _differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """The keys, dotted, at which two JSON values differ, in the order of the parameter models."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*new, *(k for k in old if k not in new)]
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{key}.{k}".lstrip("."))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, pair in enumerate(zip(old, new, strict=True)) for d in _differences(*pair, f"{key}.{i}")]
    return [] if old == new else [(key, old, new)]


def check_ready(params: CycleParams, evidence: Path, notebooks: Path = NOTEBOOKS, source: str = "parameters") -> None:
    """Check all that can be checked without running a step; `source` is what messages call the parameters."""
    check_layer(params, source)
    check_space(evidence)
    for step in plan(params):
        check_notebook(notebooks / step.step.notebook, ["run", *step.parameters])


def choose_run(
    params: CycleParams, evidence: Path, notebooks: Path = NOTEBOOKS, *, resume: bool = False
) -> tuple[Run | None, list[PlannedStep]]:
    """The run to resume (None for a new one) and what to do in it; writes nothing."""
    run = resumable_run(params, evidence) if resume else None
    return run, plan_resumed(params, run, notebooks) if run else plan(params)


def run_cycle(
    params: CycleParams,
    evidence: Path,
    notebooks: Path = NOTEBOOKS,
    *,
    resume: bool = False,
    environment: dict[str, str] | None = None,
    console: Console | None = None,
    source: str = "parameters",
) -> Outcome:
    """Run a cycle, or what is left of its newest run, to a complete run under `evidence`.

    `environment` goes to the notebooks' kernels beside this process's own; progress goes to `console`
    (stderr by default). Raises ParameterError or EvidenceError before anything is written, and
    StepError (or the error of this library a notebook raised) when a step fails.
    """
    evidence = evidence.absolute()
    console = console or Console(stderr=True)
    check_ready(params, evidence, notebooks, source)
    with only_run_of(params.cycle, evidence):
        run, planned = choose_run(params, evidence, notebooks, resume=resume)
        if run and run.is_complete:
            return _outcome(run, was_complete=True)
        if run is None:
            run = new_run(evidence, params.cycle)
            write_json(run.path / "parameters.json", params.model_dump(mode="json"))
            began = f"nothing to resume: new run {run.name}" if resume else f"new run {run.name}"
        else:
            began = f"resuming {run.name}"
        to_run = [step.step.name for step in planned if step.reason]
        watch = Watch(console, run.path, {step.step.name: step.work for step in planned}, to_run)
        watch.say(began)
        for step in planned:
            if step.reason is None:
                watch.say(f"step {step.step.name}: kept")
                continue
            if step.reason != NEW_RUN:
                watch.say(f"step {step.step.name}: runs, {step.reason}")
            with watch.step(step.step.name):
                _run_step(step, run, notebooks, environment or {})
        return _complete(run, params)


def _complete(run: Run, params: CycleParams) -> Outcome:
    outcome = _outcome(run)
    run.write_manifest(
        {
            "cycle": params.cycle,
            "summary": params.summary,
            "verdict": outcome.verdict,
            "pass_all": outcome.pass_all,
            "steps": [step.name for step in STEPS],
            "parameters_sha256": sha256_file(run.path / "parameters.json"),
        }
    )
    return outcome


def _outcome(run: Run, *, was_complete: bool = False) -> Outcome:
    gate = run.record("gate").summary
    return Outcome(run, gate["verdict"], gate["pass_all"], was_complete)


def _run_step(planned: PlannedStep, run: Run, notebooks: Path, environment: dict[str, str]) -> None:
    """Execute one notebook and take its record, and the executed notebook, into the journal."""
    from husai_lib import site  # noqa: PLC0415 - takes seconds to import, and mistakes are told without it

    name, source = planned.step.name, notebooks / planned.step.notebook
    failed = run.path / "notebooks" / f"{source.stem}.failed.ipynb"
    code = notebook_code(source)
    run.drop_step(name)
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary) / source.name
        try:
            _execute(planned, run, source, output, environment)
        except BaseException as error:
            if output.exists():
                write_text(failed, output.read_text(encoding="utf-8"))
            if isinstance(error, HusaiError):
                sentence = f"step {name} ({source.name}) failed: {error}; fix it and run again with --resume"
                raise type(error)(sentence) from error
            raise
        site.strip_notebook(output)
        sha256 = write_text(run.path / planned.notebook, output.read_text(encoding="utf-8"))
    failed.unlink(missing_ok=True)
    run.note_notebook(name, planned.notebook, sha256, code)


def _execute(planned: PlannedStep, run: Run, source: Path, output: Path, environment: dict[str, str]) -> None:
    from husai_lib.execution import execute  # noqa: PLC0415 - as above

    folder = run.path.relative_to(REPOSITORY) if run.path.is_relative_to(REPOSITORY) else run.path
    cache = {"HUSAI_CACHE": str(cache_folder().absolute())}
    execute(source, output, {"run": str(folder)} | planned.parameters, environment | cache)
    if planned.step.name not in run.journal:
        raise StepError("it ended without writing its record")
