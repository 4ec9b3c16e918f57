"""The command `husai`: run a cycle, list, show, verify and render what runs left behind."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markdown import Markdown

from husai_lib.cache import cache_folder
from husai_lib.cycle import NOTEBOOKS, cached_already, check_ready, plan, resumable_run, run_cycle
from husai_lib.errors import GateError, HusaiError, IntegrityError, ModelError
from husai_lib.evidence import Run, find_run, find_runs
from husai_lib.files import REPOSITORY
from husai_lib.params import CycleParams, load_cycle
from husai_lib.strict_yaml import override

INTERRUPTED = 130
SHOWN = {"gates": "gate", "candidates": "selection", "groups": "frontier"}
"""Tables that `show` prints, and their steps."""
EVIDENCE = REPOSITORY / "evidence"

app = typer.Typer(
    help="May this sparse autoencoder be released, or does its evidence not hold up?",
    epilog="Exit codes: 0 done, 1 a step failed, 2 usage or parameters, 3 a gate failed (with --fail-on-gate-fail), "
    "4 an audit failed, 130 interrupted.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

evaluations = typer.Typer(help="Evaluate an SAE by other benchmarks.", no_args_is_help=True)
app.add_typer(evaluations, name="eval")

Params = Annotated[Path, typer.Argument(metavar="PARAMS", help="Parameter file, such as params/quickstart.yaml.")]
RunName = Annotated[
    str | None,
    typer.Argument(metavar="[RUN]", help="<cycle>/<run>, <run>, its folder, or <cycle> or nothing for the newest."),
]
Evidence = Annotated[
    Path, typer.Option("--evidence", metavar="DIR", help="Folder that holds the runs.", show_default="evidence")
]
Assign = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a parameter, as sae.k=16; repeatable.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the cycle's newest run; finished steps are kept.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Show each step, what it makes, what is cached and why it runs; write nothing."),
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute; auto prefers a GPU.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Evaluations at the same time; default: one a core.")]
Strict = Annotated[bool, typer.Option("--fail-on-gate-fail", help="Exit with code 3 where a required gate fails.")]
Given = Annotated[str, typer.Argument(metavar="RUN|SAE_FOLDER", help="A run's candidate, or any SAELens folder.")]
Evals = Annotated[
    str, typer.Option(metavar="NAMES", help="Evaluations, as core,absorption; default: each that can run here.")
]
OfCondition = Annotated[str | None, typer.Option(metavar="NAME", help="Condition of the run, not the selected one.")]
OfSeed = Annotated[int | None, typer.Option(help="Seed of the run's SAE, not the representative one.")]
OfModel = Annotated[str | None, typer.Option(metavar="NAME", help="Language model of a folder, as model.name in YAML.")]
Bos = Annotated[bool | None, typer.Option(help="Whether texts start with BOS; default: what the folder says.")]
Setting = Annotated[
    list[str] | None, typer.Option("--set", metavar="EVAL.KEY=VALUE", help="Change a setting of an evaluation.")
]
Copies = Annotated[Path | None, typer.Option(metavar="DIR", help="Also copy the results here; default: cache only.")]
Download = Annotated[bool, typer.Option("--download", help="Let sae-bench fetch missing data from the hub.")]
Out = Annotated[Path, typer.Option(help="Folder the pages are written to.", metavar="DIR")]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code; a user's mistake is told in one line on stderr."""
    code, message = 0, ""
    try:
        code = app(arguments, standalone_mode=False) or 0
        message = "interrupted; finished steps are kept: run again with --resume" if code == INTERRUPTED else ""
    except HusaiError as error:
        code, message = error.exit_code, str(error)
    except typer.TyperException as error:
        told = error.format_message()  # empty where the help was shown instead
        code, message = 2, f"{told} ('husai --help' tells how to use it)" if told else ""
    except OSError as error:
        code, message = 1, f"{error.filename or 'input or output'}: {error.strerror or error}"
    if message:
        sys.stderr.write(f"husai: {' '.join(message.split())}\n")
    sys.exit(code)


@app.command()
def run(
    params: Params,
    assignments: Assign = None,
    *,
    resume: Resume = False,
    dry_run: DryRun = False,
    device: Device = "auto",
    jobs: Jobs = None,
    fail_on_gate_fail: Strict = False,
    evidence: Evidence = EVIDENCE,
) -> None:
    """Run a cycle: every notebook in order, from text to verdict, into evidence/<cycle>/run_<time>/."""
    cycle = load_cycle(params, assignments or [])
    if dry_run:
        check_ready(evidence, NOTEBOOKS)
        _show_plan(cycle, evidence, resumable_run(cycle, evidence) if resume else None)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that kernels are shut down, as at Ctrl-C
    os.environ |= {"HUSAI_CACHE": str(cache_folder().absolute()), "HUSAI_DEVICE": device}  # kernels inherit it
    os.environ |= {"HUSAI_JOBS": str(jobs)} if jobs else {}
    finished = run_cycle(cycle, evidence, NOTEBOOKS, resume=resume)
    manifest = finished.manifest()
    typer.echo(f"verdict: {manifest['verdict']}")
    typer.echo(f"evidence: {finished.path}")
    if fail_on_gate_fail and not manifest["pass_all"]:
        raise GateError(f"{finished.name} does not pass its gates: {manifest['verdict']}")


def _show_plan(cycle: CycleParams, evidence: Path, resumed: Run | None) -> None:
    typer.echo(f"{f'resuming {resumed.name}' if resumed else 'new run'}; nothing was written")
    for step in plan(cycle, resumed, NOTEBOOKS):
        held = cached_already(step, cycle.cycle, evidence)
        names = f"{step.step.name:11}  {step.step.notebook:20}  {step.makes:64}"
        typer.echo(f"{names}  {held:15}  {step.reason or 'kept'}".rstrip())


@app.command()
def ls(evidence: Evidence = EVIDENCE) -> None:
    """List all runs, oldest first, with their state and verdict."""
    for found in find_runs(evidence):
        typer.echo(f"{found.name}  {_state(found)}")


@app.command()
def show(run: RunName = None, evidence: Evidence = EVIDENCE) -> None:
    """Show a run: its verdict, gates, candidates and groups, verified before they are shown."""
    from husai_lib import tables  # noqa: PLC0415 - takes a second to import

    chosen, out = find_run(evidence, run), Console(width=None if sys.stdout.isatty() else 240)
    typer.echo(f"{chosen.name}: {_state(chosen)}\nevidence: {chosen.path}")
    for table, step in SHOWN.items():
        if step in chosen.journal:
            rows = chosen.record(step).table(table)
            out.print(Markdown(f"**{table} of step {step}**\n\n{getattr(tables, f'{table}_table')(rows)}"))


@app.command()
def verify(run: RunName = None, evidence: Evidence = EVIDENCE) -> None:
    """Check a complete run: every hash, every number that follows from others. Exit code 4 on a problem."""
    from husai_lib.audit import audit_run  # noqa: PLC0415 - takes a second to import

    chosen = find_run(evidence, run)
    audit = audit_run(chosen)
    for problem in audit.problems:
        typer.echo(f"problem: {problem}")
    if audit.problems:
        raise IntegrityError(f"{chosen.name} does not verify, {len(audit.problems)} problems: {audit.problems[0]}")
    typer.echo(f"{chosen.name} verifies: {audit.checked} values checked, {audit.not_here} cached files not here")


@app.command()
def render(run: RunName = None, out: Out = Path("_site"), evidence: Evidence = EVIDENCE) -> None:
    """Make the report of a run, or of all runs, as pages that open without a server."""
    name = find_run(evidence, run).name if run else None
    from husai_lib import site  # noqa: PLC0415 - takes seconds to import

    typer.echo(f"report: {site.render(evidence, out, name)}")


@evaluations.command()
def saebench(
    given: Given,
    *,
    evals: Evals = "",
    condition: OfCondition = None,
    seed: OfSeed = None,
    model: OfModel = None,
    prepend_bos: Bos = None,
    settings: Setting = None,
    out: Copies = None,
    download: Download = False,
    device: Device = "auto",
    evidence: Evidence = EVIDENCE,
) -> None:
    """Hand an SAE to the package sae-bench: absorption, SCR, TPP, RAVEL and others, as far as their data are here.

    Exit code 1 if an evaluation that was asked for by name did not run, or none did.
    """
    from husai_lib import saebench as bench  # noqa: PLC0415 - not needed by other commands

    asked = [name.strip() for name in evals.split(",") if name.strip()]
    changed = override({}, settings or [])
    bench.check_installed()
    subject = bench.subject_of(given, evidence, condition=condition, seed=seed, model=model, prepend_bos=prepend_bos)
    os.environ |= {"HUSAI_DEVICE": device}  # the evaluation's process inherits it
    plan = bench.planned(asked, changed, subject, download)
    failed = [name for name, lacking in plan.items() if lacking]
    for name in failed:
        typer.echo(f"{name}: cannot run here; it needs {'; it needs '.join(plan[name])}")
    for name in [name for name in plan if name not in failed]:
        typer.echo(f"{name}: running; what it says is in {bench.log_of(name, subject)}")
        try:
            typer.echo(f"{name}: {bench.evaluate(name, subject, changed.get(name, {}), download=download, out=out)}")
        except HusaiError as error:
            typer.echo(f"{name}: did not run; {error}")
            failed.append(name)
    if failed and (asked or len(failed) == len(plan)):
        raise ModelError(f"did not run: {', '.join(failed)}; the reasons stand above")


def _state(run: Run) -> str:
    """A run's state and verdict, as far as they can be read."""
    try:
        return f"complete: {run.manifest()['verdict']}" if run.is_complete else f"unfinished: {len(run.journal)} steps"
    except HusaiError as error:
        return f"damaged: {error}"
