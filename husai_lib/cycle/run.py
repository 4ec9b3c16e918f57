"""A cycle: parameters in, every step's notebook executed in order, evidence and a verdict out."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from husai_lib.cycle.estimates import TimeLeft
from husai_lib.cycle.planned import CycleStep, PlannedStep, cached_already, cached_entries, is_cached
from husai_lib.cycle.work import disk_of
from husai_lib.errors import DataError, EvidenceError, HusaiError, ParameterError, StepError
from husai_lib.evidence.cache import cache_folder, further_disks
from husai_lib.evidence.runs import Run, find_runs, new_run
from husai_lib.evidence.steps import environment, step_key
from husai_lib.files import REPOSITORY, canonical_json, explained, read_json, sha256_file, sha256_text, write_json
from husai_lib.params.conditions import baseline_seeds
from husai_lib.params.cycle import CycleParams, given_to

NOTEBOOKS = REPOSITORY / "notebooks"
EVIDENCE_BYTES = 100 * 10**6
"""Room for the evidence of a run, whose records and figures are a few megabytes."""
LOCK = ".lock"
OTHER_FOLDER = "name another folder with --evidence or in HUSAI_CACHE"


STEPS = (
    CycleStep("activations", "01_activations.ipynb", ("model", "texts", "activations", "contrastive", "stress")),
    CycleStep(
        "baselines",
        "02_baselines.ipynb",
        ("seeds", "sae", "conditions", "sweeps", "baseline", "probing", "contrastive", "consistency"),
    ),
    CycleStep("frontier", "03_frontier.ipynb", ("seeds", "sae", "conditions", "probing", "contrastive"), "conditions"),
    CycleStep(
        "consistency", "04_consistency.ipynb", ("seeds", "sae", "probing", "contrastive", "consistency"), "consistency"
    ),
    CycleStep(
        "scaling",
        "05_scaling.ipynb",
        ("model", "texts", "activations", "seeds", "sae", "baseline", "probing", "contrastive", "scaling"),
        "scaling",
    ),
    CycleStep("selection", "06_selection.ipynb", ("selection", "earlier")),
    CycleStep("confirmation", "06b_confirmation.ipynb", ("confirmation", "baseline", "probing", "contrastive")),
    CycleStep("stress", "07_stress.ipynb", ("model", "texts", "activations", "probing", "stress")),
    CycleStep("gate", "08_gate.ipynb", ("gates", "earlier")),
    CycleStep("report", "09_report.ipynb", ()),
)


def steps_of(parameters: dict[str, Any]) -> list[CycleStep]:
    """The steps of a cycle by its sections: one whose section is absent is left out."""
    found: list[CycleStep] = []
    for step in STEPS:
        found += [step] if not step.only_with or parameters.get(step.only_with) else []
        if step.name == "frontier":
            found += [replace(step, name=name, only_with="sweeps") for name in parameters.get("sweeps") or {}]
    return found


def check_earlier(params: CycleParams, evidence: Path) -> None:
    """Raise ParameterError for an earlier run or record that the parameters name and that cannot serve."""
    from husai_lib.decisions import candidates, of_run  # noqa: PLC0415 - take a second to import

    later, key = Run(evidence / params.cycle / "later"), "earlier"
    try:
        for name in params.earlier:
            of_run.earlier_standing(name, later.read_run)
        key = "selection.sources"
        here = candidates.settings_of(params.model_dump(mode="json")) if params.selection.rules == "current" else None
        for source in (source for source in params.selection.sources if "/" in source):
            candidates.candidates_of(source, later.find_record, here)
    except (DataError, EvidenceError) as error:
        raise ParameterError(f"{key}: {str(error).removeprefix(f'{key}: ')}") from error


def plan(params: CycleParams, run: Run | None = None, notebooks: Path = NOTEBOOKS) -> list[PlannedStep]:
    """Every step of the cycle in order, with why it runs, or that it is kept as it is in `run`; writes nothing."""
    values = params.model_dump(mode="json")
    planned: list[PlannedStep] = []
    for step in steps_of(values):
        given = {name: value for name, value in given_to(step.name, values).items() if name in step.sections}
        kept = {earlier.step.name for earlier in planned if not earlier.reason}
        reason = next(_reasons_to_run(step, given, run, kept, notebooks), "") if run else "new run"
        makes = _makes(step.name, params)
        planned.append(PlannedStep(step, given, makes, reason))
    return planned


def _makes(step: str, params: CycleParams) -> str:
    """Which SAEs or controls a step makes, in words; empty for a step that makes none."""
    fresh = len(params.confirmation.seeds)
    grid, seeds, at_last = params.scaling, len(params.seeds), fresh or len(params.seeds)
    models = range(1, params.stress.random_models + 1) if params.stress.random_model else ()
    controls = [name for name in ("transcoder", "ood") if getattr(params.stress, name)]
    of_baselines = {name: len(own) for name, own in baseline_seeds(params.trained.values()).items()}
    trained: dict[str, dict[str, int]] = {
        "baselines": {name.replace("baseline", params.baseline.architecture): n for name, n in of_baselines.items()},
        **{name: {one.name: len(own) for one in conditions} for name, (conditions, own) in params.trained.items()},
        "scaling": {one.name: len(grid.seeds) or seeds for one in grid.conditions()} if grid else {},
        "confirmation": dict.fromkeys(("the selected condition", "its baseline") if fresh else (), fresh),
        "stress": dict.fromkeys([*(f"random_model_{number}" for number in models), *controls], at_last),
    }
    if not (names := trained.get(step, {})):
        return ""
    what, numbers = "controls" if step == "stress" else "members", sorted({*names.values()})
    makes = f"{sum(names.values())} {what}: {', '.join(names)} at {' or '.join(map(str, numbers))} seeds"
    given = params.baseline.given if step == "baselines" else ""
    return f"{given}; where it is not matched {makes}" if given else makes


def _reasons_to_run(step: CycleStep, given: dict[str, Any], run: Run, kept: set[str], notebooks: Path) -> Iterator[str]:
    if run.is_complete:
        return
    entry = run.journal.get(step.name)
    if entry is None or "notebook_code" not in entry:
        yield "not done yet"
        return
    if entry["key"] != step_key(step.name, given):
        yield "its parameters or the library changed"
    if entry["notebook_code"] != notebook_code(notebooks / step.notebook):
        yield "its notebook changed"
    for file, sha256 in entry["files"].items():
        if not (run.path / file).exists() or sha256_file(run.path / file) != sha256:
            yield f"{file} is missing or changed"
    record = run.record(step.name).data
    for earlier, sha256 in record["inputs"].items():
        if earlier not in kept or run.record(earlier).sha256 != sha256:
            yield f"it rests on step {earlier}, which runs again"
    for name, sha256 in record.get("earlier", {}).items():
        if run.find_record(name).sha256 != sha256:
            yield f"{name} is another record now"
    if not all(cached_entries(record)):
        yield "what it made is no longer in the cache"


def cache_bytes(params: CycleParams, evidence: Path) -> int:
    """Bytes that a run puts into the cache, at most and as far as they are known: of steps that are not cached yet."""
    steps = [step for step in plan(params) if not is_cached(cached_already(step, params.cycle, evidence))]
    return sum(disk_of(step.step.name, params) or 0 for step in steps)


def newest_started(params: CycleParams, evidence: Path) -> tuple[Run, dict[str, Any]] | None:
    """The newest run of the cycle, complete or not, and its parameters; None if there is none."""
    runs = [run for run in find_runs(evidence) if run.path.parent.name == params.cycle]
    started = [run for run in runs if (run.path / "parameters.json").exists()]
    return (started[-1], read_json(started[-1].path / "parameters.json")) if started else None


def resumable_run(params: CycleParams, evidence: Path) -> Run | None:
    """The newest run of the cycle, complete or not; None if there is none.

    Raises ParameterError where it was made with other parameters.
    """
    run, before = newest_started(params, evidence) or (None, {})
    for section, value in params.model_dump(mode="json").items() if run else ():
        if run and before.get(section) != value:
            remedy = "give the same values, or run without --resume for a new run"
            raise ParameterError(f"{section} differs from that in {run.path}/parameters.json; {remedy}")
    return run


def check_ready(evidence: Path, notebooks: Path = NOTEBOOKS, cache_bytes: int = 0) -> None:
    """Raise EvidenceError or StepError where the machine or the notebooks cannot carry a cycle.

    `cache_bytes` is what it puts into the cache.
    """
    for step in STEPS:
        notebook_code(notebooks / step.notebook)
    for folder, needed in ((evidence, EVIDENCE_BYTES), (cache_folder(), EVIDENCE_BYTES + cache_bytes)):
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise EvidenceError(f"{folder} cannot be written ({existing} is read-only or no folder); {OTHER_FOLDER}")
        further = [disk for disk in further_disks() if disk.is_dir()] if folder != evidence else []
        disks = {disk.stat().st_dev: disk for disk in (existing, *further)}  # folders may lie on the same one
        if (free := sum(shutil.disk_usage(disk).free for disk in disks.values())) < needed:
            lack = f"{free / 1e9:.2f} GB free and the cycle needs {needed / 1e9:.1f} GB"
            raise EvidenceError(f"{folder} has {lack}; free some or {OTHER_FOLDER}")


def notebook_code(path: Path) -> str:
    """Hash of a notebook's cells, outputs apart, which decides whether an execution of it is still current."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [[cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", [])] for cell in cells]
    except (OSError, ValueError, KeyError, TypeError):
        raise StepError(f"{path} is no notebook that can be read; restore it") from None
    return sha256_text(canonical_json(code))


@contextmanager
def only_run_of(cycle: str, evidence: Path) -> Iterator[None]:
    """Hold the cycle's lock, which the system takes back when the process ends, however it ends."""
    path = evidence / cycle / LOCK
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    with file:
        for tries_left in reversed(range(10)):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not tries_left:
                    sentence = f"cycle {cycle!r} is being run by another process; wait until it ends"
                    raise EvidenceError(sentence) from None
                time.sleep(0.1)  # `is_running` holds it for a moment
        yield


def is_running(run: Run) -> bool:
    """Whether a process holds the lock of the run's cycle, and this is the run that it is at: the newest."""
    lock = run.path.parent / LOCK
    if not lock.exists() or run.path != max(run.path.parent.glob("run_*")):
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def plain_console() -> Console:
    """Where progress goes by default: stderr, as it is."""
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def run_cycle(
    params: CycleParams,
    evidence: Path,
    notebooks: Path = NOTEBOOKS,
    *,
    resume: bool = False,
    console: Console | None = None,
    parameters_file: str | None = None,
    overrides: Sequence[str] = (),
) -> Run:
    """Run a cycle, or what is left of its newest run, to a complete run under `evidence`.

    The manifest names `parameters_file`, if it lies within the repository, and the `overrides` of the command line.
    Progress goes to `console` (stderr by default). Raises ParameterError or EvidenceError before anything is written,
    and StepError (or the error of this library a notebook raised) when a step fails.
    """
    evidence, console = evidence.absolute(), console or plain_console()
    check_ready(evidence, notebooks, cache_bytes(params, evidence))
    check_earlier(params, evidence)
    with only_run_of(params.cycle, evidence):
        run = resumable_run(params, evidence) if resume else None
        planned = plan(params, run, notebooks)
        began = "resuming" if run else "nothing to resume: new run" if resume else "new run"
        run = run or new_run(evidence, params.cycle)
        if run.is_complete:
            console.print(f"{run.name} is complete; nothing to resume")
            return run
        write_json(run.path / "parameters.json", params.model_dump(mode="json"))
        run.note_attempt({name: value for name, value in environment("").items() if name != "device"})
        console.print(f"{began} {run.name}")
        _run_steps(planned, run, notebooks, TimeLeft(params, run, evidence), console)
        gate = run.record("gate").summary
        about = {"cycle": params.cycle, "summary": params.summary, "steps": [step.step.name for step in planned]}
        origin = {"parameters_file": parameters_file, "overrides": list(overrides)}
        run.write_manifest(**about, **origin, verdict=gate["verdict"], pass_all=gate["pass_all"])
        return run


def _run_steps(
    planned: Sequence[PlannedStep], run: Run, notebooks: Path, time_left: TimeLeft, console: Console
) -> None:
    """Run the steps that have a reason to, and say how far the cycle is."""
    from husai_lib.cycle.execution import watched  # noqa: PLC0415 - takes seconds to import; mistakes are told without it

    for number, step in enumerate(planned, 1):
        called = f"step {number}/{len(planned)} {step.step.name}"
        console.print(f"{called}: {f'starts, {step.reason}' if step.reason else 'kept'}")
        if not step.reason:
            continue
        time_left.begin(step)
        with watched(console, step.step.name, run.path) as last:
            printed = _run_step(step, run, notebooks)
        for line in printed:
            console.print(f"step {step.step.name} printed: {line}")
        seconds = time_left.end(step, last)
        left = time_left.sentence([later for later in planned[number:] if later.reason])
        console.print(f"{called}: done in {seconds:.0f} s{left}")


def _run_step(planned: PlannedStep, run: Run, notebooks: Path) -> list[str]:
    """Execute one notebook and take its record, and the executed notebook, into the journal.

    Returns what its computing cells printed, such as warnings, which is not kept in the notebook.
    """
    from husai_lib.cycle.execution import execute, strip_notebook  # noqa: PLC0415 - as in run_cycle

    step = planned.step
    source, executed = notebooks / step.notebook, run.path / "notebooks" / step.executed
    unfinished = executed.with_suffix(".unfinished.ipynb")
    code = notebook_code(source)
    folder = run.path.relative_to(REPOSITORY) if run.path.is_relative_to(REPOSITORY) else run.path
    run.drop_step(step.name)
    executed.parent.mkdir(exist_ok=True)
    try:
        # in the order in which the record has them, so that the injected cell follows from the record
        execute(
            source, unfinished, {"run": str(folder)} | step.injected | json.loads(canonical_json(planned.parameters))
        )
        if step.name not in run.journal:
            raise StepError("it ended without writing its record")
    except HusaiError as error:
        sentence = f"step {step.name} ({source.name}) failed: {error}; fix it and run again with --resume"
        raise type(error)(sentence) from error
    printed = strip_notebook(unfinished)
    unfinished.replace(executed)
    entry = run.journal[step.name]
    files = entry["files"] | {f"notebooks/{step.executed}": sha256_file(executed)}
    run.note_step(step.name, entry | {"files": files, "notebook_code": code})
    return printed
