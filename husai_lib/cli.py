"""The command `husai`: run a cycle, list, show, verify and render what runs left behind."""

from __future__ import annotations

import enum
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from husai_lib.cycle import NOTEBOOKS, PlannedStep, check_ready, choose_run, run_cycle
from husai_lib.errors import GateError, HusaiError, IntegrityError
from husai_lib.evidence import Run, find_run, find_runs
from husai_lib.params import REPOSITORY, load_cycle
from husai_lib.version import __version__

INTERRUPTED = 130

app = typer.Typer(
    help="May this sparse autoencoder be released, or does its evidence not hold up?",
    epilog="Exit codes: 0 done, 1 a step failed, 2 usage or parameters, 3 a gate failed (with "
    "--fail-on-gate-fail), 4 an audit failed, 130 interrupted.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class Device(enum.StrEnum):
    """Where SAEs are trained and measured."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


Evidence = Annotated[
    Path,
    typer.Option(
        "--evidence", help="Folder that holds the runs.", metavar="DIR", show_default="evidence of this repository"
    ),
]
RunName = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]", help="<cycle>/<run>, <run>, a run's folder, or <cycle> for its newest; default: newest of all."
    ),
]
EVIDENCE = REPOSITORY / "evidence"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code; a user's mistake is told in one line on stderr."""
    code, message = 0, ""
    try:
        code = app(arguments, standalone_mode=False) or 0
        message = "interrupted; finished steps are kept: run again with --resume" if code == INTERRUPTED else ""
    except HusaiError as error:
        code, message = error.exit_code, str(error)
    except typer.TyperException as error:
        code, message = 2, f"{error.format_message()} ('husai --help' tells how to use it)"
    except OSError as error:
        code, message = 1, f"{error.filename or 'input or output'}: {error.strerror or error}"
    if message:
        sys.stderr.write(f"husai: {' '.join(message.split())}\n")
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        _out().print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def husai(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Everything that holds for all commands."""


@app.command()
def run(
    params: Annotated[
        Path, typer.Argument(metavar="PARAMS", help="Parameter file of the cycle, such as params/quickstart.yaml.")
    ],
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one parameter, such as sae.k=16; may be repeated."),
    ] = None,
    *,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the newest run of this cycle; finished steps are kept.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and show what would run; write nothing.")
    ] = False,
    device: Annotated[
        Device, typer.Option(help="Where to compute; auto takes a GPU where there is one.")
    ] = Device.AUTO,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Evaluations at the same time.", show_default="one a core")
    ] = None,
    fail_on_gate_fail: Annotated[
        bool, typer.Option("--fail-on-gate-fail", help="Exit with code 3 where a required gate fails.")
    ] = False,
    evidence: Evidence = EVIDENCE,
) -> None:
    """Run a cycle: every notebook in order, from text to verdict, into evidence/<cycle>/run_<time>/."""
    source = str(params)
    cycle = load_cycle(params, assignments or [])
    if dry_run:
        check_ready(cycle, evidence, NOTEBOOKS, source)
        _show_plan(*choose_run(cycle, evidence, NOTEBOOKS, resume=resume))
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that kernels are shut down, as at Ctrl-C
    environment = {"HUSAI_DEVICE": device.value} | ({"HUSAI_JOBS": str(jobs)} if jobs else {})
    outcome = run_cycle(cycle, evidence, NOTEBOOKS, resume=resume, environment=environment, source=source)
    if outcome.was_complete:
        _out().print(f"{outcome.run.name} is complete; nothing to resume", highlight=False)
    _out().print(f"verdict: {outcome.verdict}", highlight=False, markup=False)
    _out().print(f"evidence: {_relative(outcome.run.path)}", highlight=False, markup=False)
    if fail_on_gate_fail and not outcome.pass_all:
        raise GateError(f"{outcome.run.name} does not pass its gates: {outcome.verdict}")


@app.command()
def ls(evidence: Evidence = EVIDENCE) -> None:
    """List all runs, oldest first, with their state and verdict."""
    table = Table("run", "state", "verdict", box=None)
    for each in find_runs(evidence):
        table.add_row(each.name, *_state(each))
    _out().print(table)


@app.command()
def show(run: RunName = None, evidence: Evidence = EVIDENCE) -> None:
    """Show a run: its verdict, gates, candidates and groups, verified before they are shown."""
    chosen = find_run(evidence, run)
    state, verdict = _state(chosen)
    out = _out()
    out.print(f"{chosen.name}: {state}", highlight=False, markup=False)
    if verdict:
        out.print(f"verdict: {verdict}", highlight=False, markup=False)
    for step in chosen.journal:
        for name, rows in chosen.record(step).data["tables"].items():
            if name in SHOWN and rows:
                out.print(_table(f"{name} of step {step}", rows, SHOWN[name]))
    out.print(f"evidence: {_relative(chosen.path)}", highlight=False, markup=False)


SHOWN = {
    "gates": ("gate", "value", "bound", "direction", "threshold", "required", "verdict"),
    "candidates": ("condition", "n_seeds", "saebench_delta", "saebench_delta_low", "cebench_delta", "cebench_delta_low",
                   "explained_variance", "joint_score", "on_front", "selected"),
    "groups": ("condition", "n_seeds", "pwmcc", "pwmcc_low", "pwmcc_high", "null_gaussian", "pwmcc_corrected"),
}  # fmt: skip


@app.command()
def verify(run: RunName = None, evidence: Evidence = EVIDENCE) -> None:
    """Check a complete run: every hash, every number that follows from others. Exit code 4 on a problem."""
    chosen = find_run(evidence, run)
    from husai_lib.audit import audit_run  # noqa: PLC0415 - takes a second to import

    audit = audit_run(chosen)
    for line in audit.checked:
        _out().print(line, highlight=False, markup=False)
    for problem in audit.problems:
        _out().print(f"problem: {problem}", highlight=False, markup=False)
    if audit.problems:
        more = f" (and {len(audit.problems) - 1} more)" if len(audit.problems) > 1 else ""
        raise IntegrityError(f"{audit.run} does not verify: {audit.problems[0]}{more}")
    _out().print(f"{audit.run} verifies", highlight=False, markup=False)


@app.command()
def render(
    run: RunName = None,
    out: Annotated[Path, typer.Option(help="Folder the pages are written to.", metavar="DIR")] = Path("_site"),
    evidence: Evidence = EVIDENCE,
) -> None:
    """Make the report of a run, or of all runs, as pages that open without a server."""
    name = find_run(evidence, run).name if run else None
    from husai_lib import site  # noqa: PLC0415 - takes seconds to import

    _out().print(f"report: {_relative(site.render(evidence, out, name))}", highlight=False, markup=False)


def _show_plan(run: Run | None, planned: list[PlannedStep]) -> None:
    out = _out()
    if run and run.is_complete:
        out.print(f"{run.name} is complete; nothing would run", highlight=False)
        return
    table = Table("step", "notebook", "makes", "would run", box=None)
    for step in planned:
        table.add_row(step.step.name, step.step.notebook, step.makes, step.reason or "no: kept")
    out.print(f"{f'resuming {run.name}' if run else 'new run'}; nothing was written", highlight=False)
    out.print(table)


def _state(run: Run) -> tuple[str, str]:
    """A run's state and verdict, as far as they can be read."""
    try:
        if run.is_complete:
            return "complete", str(run.manifest()["verdict"])
        return f"unfinished: {len(run.journal)} steps done", ""
    except HusaiError as error:
        return f"damaged: {error}", ""


def _table(title: str, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> Table:
    table = Table(*columns, title=title, title_justify="left", box=None)
    for row in rows:
        table.add_row(*(_cell(row[column]) for column in columns))
    return table


def _cell(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4f}"
        case None:
            return "missing"
        case _:
            return str(value)


def _relative(path: Path) -> str:
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _out() -> Console:
    """Standard output; lines and tables are not folded where nobody looks at a terminal."""
    return Console(width=None if sys.stdout.isatty() else 240, soft_wrap=not sys.stdout.isatty())
