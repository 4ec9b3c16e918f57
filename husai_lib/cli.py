"""The command `husai`: run a cycle, list, show, verify and render what runs left behind."""

import json
import os
import signal
import sys
from collections.abc import Sequence, Sized
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markdown import Markdown

from husai_lib import options
from husai_lib.cycle.queue import Queued, check_queue, read_queue, run_queue
from husai_lib.cycle.run import NOTEBOOKS, check_ready, is_running, plain_console, resumable_run, run_cycle
from husai_lib.errors import EvidenceError, GateError, HusaiError, IntegrityError, ModelError, ParameterError
from husai_lib.evidence.cache import cache_folder, further_disks
from husai_lib.evidence.runs import Run, find_imports, find_run, find_runs
from husai_lib.evidence.verification import problems_beside, problems_of
from husai_lib.files import REPOSITORY
from husai_lib.params.strict_yaml import override

INTERRUPTED = 130
SHOWN = ("gates", "criteria", "candidates", "groups")
"""Tables that `show` prints, of every step that has one."""
EVIDENCE = REPOSITORY / "evidence"

app = typer.Typer(
    help="May this sparse autoencoder be released, or does its evidence not hold up?",
    epilog="Exit codes: 0 done, 1 a step failed, 2 usage or parameters, 3 a gate failed (with --fail-on-gate-fail, "
    "or at export) or no weight of the consistency objective was accepted (with --fail-on-acceptance-fail), "
    "4 an audit failed, 130 interrupted.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

evaluations = typer.Typer(help="Evaluate an SAE by other benchmarks.", no_args_is_help=True)
app.add_typer(evaluations, name="eval")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code; a user's mistake is reported in one line on stderr."""
    code, message = 0, ""
    try:
        code = app(arguments, standalone_mode=False) or 0
        if code == INTERRUPTED:
            run = next(iter(sys.argv[1:] if arguments is None else arguments), "") == "run"
            message = f"interrupted; {'finished steps are kept: run again with --resume' if run else 'run it again'}"
    except HusaiError as error:
        code, message = error.exit_code, str(error)
    except typer.TyperException as error:
        what = error.format_message()  # empty where the help was shown instead
        code, message = 2, f"{what} ('husai --help' shows the usage)" if what else ""
    except OSError as error:
        code, message = 1, f"{error.filename or 'input or output'}: {error.strerror or error}"
    if message:
        line = " ".join(message.split())  # one, and nothing in it that a terminal would obey
        sys.stderr.write(f"husai: {''.join(c if c.isprintable() else '?' for c in line)}\n")
    if arguments is None:  # everything is done and said: a signal must not change the exit code while Python ends
        for ending in (signal.SIGINT, signal.SIGTERM):
            signal.signal(ending, signal.SIG_IGN)
    sys.exit(code)


@app.command()
def run(
    params: options.Params,
    assignments: options.Assign = None,
    *,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    device: options.Device = "auto",
    jobs: options.Jobs = None,
    executor: options.Executor = None,
    scheduler: options.Scheduler = None,
    resources: options.Resources = None,
    fail_on_gate_fail: options.Strict = False,
    fail_on_acceptance_fail: options.Accepting = False,
    evidence: options.Evidence = EVIDENCE,
) -> None:
    """Run cycles: every notebook in order, from text to verdict, into evidence/<cycle>/run_<time>/.

    All files are checked before the first cycle starts. A later cycle may name an earlier one's results, as
    cycle2/newest/frontier. One that fails stops those that name its results and no others; the exit code is that of the
    first failure. --set applies to every file. With --resume, cycles that are complete are skipped.
    """
    queue = read_queue(params, assignments or [])
    if fail_on_acceptance_fail and (lacking := [one.file for one in queue if not one.params.consistency]):
        raise ParameterError(f"{lacking[0]} has no section consistency; add it, or leave out --fail-on-acceptance-fail")
    _compute_on(device, jobs)
    check_ready(evidence, NOTEBOOKS)
    known, problem = queue, None
    try:
        known = check_queue(queue, evidence, resume=resume)
    except ParameterError as error:
        problem = error
    if dry_run:  # a plan is worth seeing before what it rests on is there
        _show_plans(known, evidence, resume=resume and not problem)
    if problem:
        raise problem
    if dry_run:
        return
    _use_executor(executor, scheduler, resources)
    console = plain_console()

    def run_one(one: Queued, resumed: bool) -> Run:
        about: dict[str, Any] = {"parameters_file": one.parameters_file, "overrides": one.assignments}
        return run_cycle(one.params, evidence, NOTEBOOKS, resume=resumed, console=console, **about)

    def judge(finished: Run) -> None:
        _judge(finished, strict=fail_on_gate_fail, accepting=fail_on_acceptance_fail)

    run_queue(queue, evidence, run_one, judge, resume=resume, console=console)


def _show_plans(queue: Sequence[Queued], evidence: Path, *, resume: bool) -> None:
    from husai_lib.cycle.needs import plan_lines  # noqa: PLC0415 - not needed by other commands

    for one in queue:
        resumed = resumable_run(one.params, evidence) if resume else None
        for line in plan_lines(one.params, evidence, resumed, NOTEBOOKS):
            typer.echo(line)


def _judge(finished: Run, *, strict: bool, accepting: bool) -> None:
    """Say the verdict of a run; GateError where a flag makes it an error."""
    manifest = finished.manifest()
    typer.echo(f"verdict: {manifest['verdict']}")
    typer.echo(f"evidence: {finished.path}")
    if strict and not manifest["pass_all"]:
        raise GateError(f"{finished.name} does not pass its gates: {manifest['verdict']}")
    if accepting:
        from husai_lib.report.consistency import why_not_accepted  # noqa: PLC0415 - takes a second to import

        if why := why_not_accepted(finished.record("consistency").summary["acceptance"]):
            raise GateError(f"{finished.name} {why}")


def _compute_on(device: str, jobs: int | None) -> None:
    """Set what the kernels of notebooks inherit, and let SIGTERM shut them down as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ |= {"HUSAI_CACHE": str(cache_folder().absolute()), "HUSAI_DEVICE": device}
    os.environ |= {"HUSAI_DISKS": os.pathsep.join(str(disk.absolute()) for disk in further_disks())}
    os.environ |= {"HUSAI_JOBS": str(jobs)} if jobs else {}


def _use_executor(executor: str | None, scheduler: str | None, resources: str | None) -> None:
    """Set where the kernels of notebooks run their tasks; a cluster of this machine ends with this process."""
    given = {"HUSAI_EXECUTOR": executor, "HUSAI_SCHEDULER": scheduler, "HUSAI_RESOURCES": resources}
    os.environ |= {name: value for name, value in given.items() if value}
    if os.environ.get("HUSAI_EXECUTOR") == "dask":
        from husai_lib.tasks import cluster  # noqa: PLC0415 - takes seconds to import

        os.environ["HUSAI_SCHEDULER"] = cluster.address()
    elif scheduler or resources:
        raise ParameterError("--scheduler and --resources are for clusters; give --executor dask too")


@app.command()
def ls(evidence: options.Evidence = EVIDENCE) -> None:
    """List all runs, oldest first, with their state and verdict, and before them the imports of earlier cycles."""
    for found in [*find_imports(evidence), *find_runs(evidence)]:
        typer.echo(f"{found.name}  {_state(found)}")


@app.command()
def show(run: options.RunName = None, evidence: options.Evidence = EVIDENCE) -> None:
    """Show a run: its verdict, gates, candidates and groups, verified before they are shown."""
    from husai_lib.report import tables  # noqa: PLC0415 - takes a second to import

    chosen = find_run(evidence, run)
    typer.echo(f"{chosen.name}: {_state(chosen)}\nevidence: {chosen.path}")
    records = [chosen.record(step) for step in chosen.journal]
    for table, record in ((table, record) for table in SHOWN for record in records):
        if table in record.data["tables"]:
            rows, step = record.table(table), record.step
            _print(f"**{table} of step {step}**\n\n{tables.table_of(rows)}")


@app.command()
def gate(
    run: options.RunName = None, *, fail_on_gate_fail: options.Strict = False, evidence: options.Evidence = EVIDENCE
) -> None:
    """Evaluate a run's gates from its records, and give the verdict. For CI, with --fail-on-gate-fail."""
    from husai_lib.decisions import of_run  # noqa: PLC0415 - takes a second to import
    from husai_lib.report import sentences, tables  # noqa: PLC0415 - takes a second to import

    chosen = _verified(find_run(evidence, run))
    policy = of_run.policy_of(chosen.find_record)
    _print(tables.table_of(policy.gates))
    record = chosen.record("gate")
    if "criteria" in record.data["tables"]:
        criteria = record.table("criteria")
        _print(f"{sentences.outcome_sentence(criteria)}\n\n{tables.table_of(criteria)}")
    typer.echo(f"{chosen.name}: {policy.verdict}")
    if policy.gates != tuple(record.table("gates")):
        raise IntegrityError(
            f"{chosen.name}: its gate record states other gates than its inputs give; 'husai audit' lists them"
        )
    if fail_on_gate_fail and not policy.pass_all:
        raise GateError(f"{chosen.name} does not pass its gates: {policy.verdict}")


@app.command()
def compare(runs: options.Compared, *, as_json: options.AsJson = False, evidence: options.Evidence = EVIDENCE) -> None:
    """Show what differs between runs: parameters, data, code and environment, metrics, verdicts."""
    from husai_lib.report import comparison, tables  # noqa: PLC0415 - takes a second to import

    chosen = [find_run(evidence, name) for name in runs]
    if len(chosen) < 2:
        raise ParameterError("there is nothing to compare one run with; name two runs or more")
    found, names = comparison.differences(chosen), [run.name for run in chosen]
    if as_json:
        typer.echo(json.dumps({"runs": names, "differing": [asdict(one) for one in found]}, indent=1))
        return
    _print(tables.comparison_table(found, names))
    typer.echo(f"{len(found)} values differ")


@app.command(name="plan")
def plan_(
    run: options.Judged,
    *,
    deltas: options.Deltas = None,
    power: options.Power = 0.8,
    as_json: options.PlanJson = False,
    evidence: options.Evidence = EVIDENCE,
) -> None:
    """Say how many fresh seeds or data sets each gate of a run would need to pass, by the run's own spread."""
    from husai_lib.decisions import of_run, planning  # noqa: PLC0415 - takes a second to import
    from husai_lib.report.tables import plan_table  # noqa: PLC0415 - as above

    values, chosen = planning.true_values(deltas or []), _verified(find_run(evidence, run))
    judged = of_run.judged_group(chosen.record("selection").summary["selected"], chosen.find_record)
    needs = [asdict(need) for need in planning.needs(judged, of_run.policy_of(chosen.find_record).gates, values, power)]
    if as_json:
        typer.echo(json.dumps(needs, indent=1))
        return
    _print(plan_table(needs))
    typer.echo(f"{chosen.name}: to pass with a probability of {power:.0%}, each gate by itself")


@app.command()
def export(
    run: options.Judged,
    folder: options.Into,
    *,
    even_if_failed: options.Failed = False,
    push: options.Push = None,
    evidence: options.Evidence = EVIDENCE,
) -> None:
    """Write a run's candidate as a folder that SAELens loads, with a model card. Exit code 3 if it failed its gate."""
    from husai_lib.report import export as release  # noqa: PLC0415 - takes a second to import

    if push:
        release.check_ready(push)
    typer.echo(f"exported: {release.export(find_run(evidence, run), folder, even_if_failed=even_if_failed)}")
    if push:
        typer.echo(f"uploaded: {release.push(folder, push)}")


@app.command(name="import")
def import_(
    paths: options.Records,
    name: options.ImportName,
    evidence: options.Evidence = EVIDENCE,
) -> None:
    """Read records of cycles of 2026-02 into evidence/imported/NAME/, with what is known to be wrong with them."""
    from husai_lib.earlier import imports, replay  # noqa: PLC0415 - takes a second to import
    from husai_lib.report import sentences  # noqa: PLC0415 - takes a second to import

    run = imports.import_earlier(paths, name, evidence)
    records = {step: run.record(step) for step in run.manifest()["steps"]}
    for step, record in records.items():
        typer.echo(f"{step}: {record.summary.get('kind', '')} {record.summary.get('source', '')}".rstrip())
    for row in records["caveats"].table("caveats"):
        typer.echo(f"caveat: {row.record}, {row.rows} rows, {row.caveat}: {row.what}")
    typer.echo(sentences.replays_sentence(replay.replays(run.name, records)).replace("**", ""))
    typer.echo(f"imported: {run.path}")


@app.command()
def verify(run: options.AnyRun = None, evidence: options.Evidence = EVIDENCE) -> None:
    """Check that evidence is complete and is what was written: hashes, nothing else. Exit code 4 on a problem.

    Without RUN every run, every import and what lies beside them is checked.
    """
    found = [find_run(evidence, run)] if run else [*find_runs(evidence), *find_imports(evidence)]
    if not found:
        raise EvidenceError(f"{evidence} holds nothing to verify; name another folder with --evidence")
    problems = [problem for one in found for problem in problems_of(one)] + ([] if run else problems_beside(evidence))
    if run and not problems:
        found[0].manifest()  # raises for an unfinished run, which alone there is nothing to verify of
    for problem in problems:
        typer.echo(f"problem: {problem}")
    for one in found:
        typer.echo(f"{one.name}: {f'{len(one.files())} files' if one.is_complete else 'unfinished'}")
    if problems:
        raise IntegrityError(f"verification found {_count(problems)}: {problems[0]}")


@app.command()
def audit(
    run: options.AnyRun = None, *, site: options.SiteFolder = None, evidence: options.Evidence = EVIDENCE
) -> None:
    """Check that what runs, imports and pages show follows from their records. Exit code 4 where anything differs.

    The showing cells of the notebooks are executed again from the records, decisions are retaken and derived columns
    recomputed. A run that another version of this code made is audited by that version. Without RUN every complete
    run, every import, the front page and the site are checked.
    """
    from husai_lib.report.audit import audit_as_made  # noqa: PLC0415 - takes a second to import
    from husai_lib.report.checks import Audit  # noqa: PLC0415 - as above
    from husai_lib.report.site import check_front_page, check_site  # noqa: PLC0415 - takes seconds to import

    found = [find_run(evidence, run)] if run else [*find_runs(evidence), *find_imports(evidence)]
    if not found:
        raise EvidenceError(f"{evidence} holds nothing to audit; name another folder with --evidence")
    unfinished = [one.name for one in found if not run and not one.is_complete and not problems_of(one)]
    audits = {one.name: audit_as_made(one) for one in found if one.name not in unfinished}
    if run is None:
        audits["beside the runs"] = Audit(problems=problems_beside(evidence))
        audits["front page"] = check_front_page(evidence)
    pages = site or Path("_site")
    if site or (run is None and evidence == EVIDENCE and pages.exists()):
        audits[str(pages)] = check_site(pages, evidence)
    for name in unfinished:
        typer.echo(f"{name}: unfinished, not audited")
    for name, one in audits.items():
        for problem in one.problems:
            typer.echo(f"problem: {name}: {problem}")
        typer.echo(f"{name}: {one}")
    if count := sum(len(one.problems) for one in audits.values()):
        raise IntegrityError(f"the audit found {_count(range(count))}, listed above")


@app.command()
def reproduce(
    run: options.Judged,
    *,
    with_cache: options.WithCache = False,
    tolerance: options.Tolerance = 0.0,
    device: options.Device = "auto",
    jobs: options.Jobs = None,
    as_json: options.AsJson = False,
    evidence: options.Evidence = EVIDENCE,
) -> None:
    """Execute a run again from its parameters and compare its results number by number. Exit code 4 where they differ.

    It takes as long as the run took: the cache is empty unless --with-cache.
    """
    from husai_lib.cycle.reproduce import reproduce as again  # noqa: PLC0415 - as above
    from husai_lib.report.tables import reproduction_table  # noqa: PLC0415 - takes a second to import

    chosen = _verified(find_run(evidence, run))
    _compute_on(device, jobs)
    compared = again(chosen, tolerance=tolerance, with_cache=with_cache)
    if as_json:
        typer.echo(json.dumps(compared.as_json(), indent=1))
    else:
        if differing := compared.as_json()["differing"][:20]:
            _print(reproduction_table(differing))
        typer.echo(f"{chosen.name}: {', '.join(f'{n:,} {outcome}' for outcome, n in compared.counts.items())}")
    if not compared.is_reproduced:
        raise IntegrityError(f"{chosen.name} is not reproduced: {compared.counts['different']} values are different")


@app.command()
def render(
    run: options.RunName = None, out: options.Out = Path("_site"), evidence: options.Evidence = EVIDENCE
) -> None:
    """Make the report of a run, or of all runs, as pages that open without a server."""
    name = find_run(evidence, run).name if run else None
    from husai_lib.report import site  # noqa: PLC0415 - takes seconds to import

    typer.echo(f"report: {site.render(evidence, out, name)}")


@evaluations.command()
def saebench(
    given: options.Given,
    *,
    evals: options.Evals = "",
    model: options.OfModel = None,
    prepend_bos: options.Bos = None,
    settings: options.Setting = None,
    out: options.Copies = None,
    download: options.Download = False,
    device: options.Device = "auto",
    evidence: options.Evidence = EVIDENCE,
) -> None:
    """Hand an SAE to the package sae-bench: absorption, SCR, TPP and others, as far as their data are here.

    Exit code 1 if an evaluation that was asked for by name did not run, or none did.
    """
    from husai_lib.measures import saebench as bench  # noqa: PLC0415 - not needed by other commands

    asked = [name.strip() for name in evals.split(",") if name.strip()]
    changed = override({}, settings or [])
    subject = bench.subject_of(given, evidence, model, prepend_bos)
    os.environ |= {"HUSAI_DEVICE": device}  # the evaluation's process inherits it
    plan = bench.planned(asked, changed, subject, download)
    failed = [name for name, lacking in plan.items() if lacking]
    for name in failed:
        typer.echo(f"{name}: cannot run here; it needs {plan[name]}")
    for name in [name for name in plan if name not in failed]:
        typer.echo(f"{name}: running; what it says is in {bench.log_of(name, subject)}")
        try:
            typer.echo(f"{name}: {bench.evaluate(name, subject, changed.get(name, {}), download=download, out=out)}")
        except HusaiError as error:
            typer.echo(f"{name}: did not run; {error}")
            failed.append(name)
    if failed and (asked or len(failed) == len(plan)):
        raise ModelError(f"did not run: {', '.join(failed)}; the reasons stand above")


def _print(markdown: str) -> None:
    """Show Markdown, as wide as the terminal; elsewhere so wide that no table is cut."""
    Console(width=None if sys.stdout.isatty() else 240).print(Markdown(markdown))


def _verified(run: Run) -> Run:
    """The run, if it is complete and as it was written; raises EvidenceError or IntegrityError."""
    run.manifest()
    if problems := problems_of(run):
        raise IntegrityError(f"{run.name} does not verify: {problems[0]}")
    return run


def _count(problems: Sized) -> str:
    return f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"


def _state(run: Run) -> str:
    """A run's state and verdict, as far as they can be read."""
    from husai_lib.decisions.gates import verdict_sentence  # noqa: PLC0415 - takes a second to import

    try:
        if not run.is_complete:
            return f"{'running' if is_running(run) else 'interrupted'}: {len(run.journal)} steps are done"
        stated = run.manifest()["verdict"]  # that of an older run may count the joint gate, too
        return f"complete: {verdict_sentence(run.record('gate').table('gates')) if 'gate' in run.journal else stated}"
    except (HusaiError, OSError) as error:
        return f"damaged: {error}"
