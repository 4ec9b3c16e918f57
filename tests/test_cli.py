"""The commands: what they print, where they print it and with which code they exit."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import forging
import pytest
from stand_ins import SMOKE, Said, husai, notebook, short_cycle, smoke_data, synthetic_run, write_params

from husai_lib.cycle import reproduce
from husai_lib.cycle import run as cycle
from husai_lib.cycle.planned import PlannedStep, cached_already
from husai_lib.evidence.runs import Run

COMMANDS = {
    "run": (
        "PARAMS",
        "--set",
        "--resume",
        "--dry-run",
        "--device",
        "--jobs",
        "--executor",
        "--scheduler",
        "--resources",
        "--fail-on-gate-fail",
        "--fail-on-acceptance-fail",
        "--evidence",
    ),
    "ls": ("--evidence",),
    "show": ("RUN", "--evidence"),
    "verify": ("RUN", "--evidence"),
    "gate": ("RUN", "--fail-on-gate-fail", "--evidence"),
    "plan": ("RUN", "--delta", "--power", "--json", "--evidence"),
    "audit": ("RUN", "--site", "--evidence"),
    "reproduce": ("RUN", "--with-cache", "--tolerance", "--json", "--device", "--jobs", "--evidence"),
    "export": ("RUN", "DIR", "--even-if-failed", "--push", "--evidence"),
    "import": ("FILE", "--as", "--evidence"),
    "render": ("RUN", "--out", "--evidence"),
    "eval": ("saebench",),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUSAI_CACHE", str(folder / "cache"))
        return synthetic_run(folder / "evidence")


@pytest.fixture
def evidence(made: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = made.path.parent.parent
    monkeypatch.setenv("HUSAI_CACHE", str(folder.parent / "cache"))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[int, str, str]]:
    """The folder of a run made by the command, and what the command said."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        short_cycle(patch, folder / "notebooks")
        said = husai("run", SMOKE, "--evidence", folder / "evidence", "--fail-on-gate-fail", "--jobs", "1")
    return folder, (said.code, said.out, said.err)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_argument_and_says_what_it_is_for(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")  # at 80 columns the longest option is cut, and only the general help names it
    said = husai(command, "--help")
    assert (said.code, said.err) == (0, "")
    for name in COMMANDS[command]:
        line = next(line for line in said.out.splitlines() if re.search(rf"(^|[^-\w]){name}\b", line[2:]))
        assert len(re.findall(r"[A-Za-z]{2,}", line)) >= 3, line


def test_the_general_help_lists_all_commands_and_exit_codes() -> None:
    said = husai("--help")
    assert said.code == 0
    assert all(command in said.out for command in COMMANDS)
    assert "130 interrupted" in said.out
    assert "--fail-on-acceptance-fail" in said.out


def test_a_run_tells_its_verdict_and_place_on_stdout_and_its_progress_on_stderr(
    finished: tuple[Path, tuple[int, str, str]],
) -> None:
    folder, (_, out, err) = finished
    [run] = (folder / "evidence" / "smoke").glob("run_*")
    assert out.splitlines() == ["verdict: Not released: a stand-in.", f"evidence: {run}"]
    assert err.splitlines()[0] == f"new run smoke/{run.name}"


def test_a_failed_gate_is_exit_code_3_only_where_asked_for_and_the_run_is_complete(
    finished: tuple[Path, tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, (code, _, err) = finished
    [run] = (folder / "evidence" / "smoke").glob("run_*")
    assert code == 3
    assert err.splitlines()[-1] == f"husai: smoke/{run.name} does not pass its gates: Not released: a stand-in."
    assert (run / "manifest.json").exists()
    short_cycle(monkeypatch, folder / "notebooks")
    again = husai("run", SMOKE, "--evidence", folder / "evidence", "--resume")
    assert again.code == 0
    assert again.err.splitlines() == [f"smoke/{run.name} is complete; nothing to resume"]


ACCEPTANCE = {
    "best_lambda": 0.1, "best_condition": "topk_lambda_0_1", "gate_delta_pwmcc": "pass", "gate_delta_lcb": "missing",
    "gate_ev_drop": "pass", "gate_external": "fail", "gate_cebench": "", "pass_all": False,
}  # fmt: skip


def swept_run(folder: Path, patch: pytest.MonkeyPatch, acceptance: dict[str, Any], *options: str) -> tuple[Said, Path]:
    """Run a short cycle with a step `consistency` that comes to this acceptance; what the command said, and the run."""
    notebooks = short_cycle(patch, folder / "notebooks")
    step = cycle.CycleStep("consistency", "04_consistency.ipynb", ("consistency",), "consistency")
    patch.setattr(cycle, "STEPS", (*cycle.STEPS[:2], step, *cycle.STEPS[2:]))
    body = f"step = open_step('consistency', run, consistency=consistency)\nstep.write(acceptance={acceptance})"
    code = f"from husai_lib import open_step\n{body};"
    notebook(notebooks / step.notebook, "run = ''\nconsistency: dict = {}", code)
    said = husai("run", SMOKE, "--evidence", folder / "evidence", "--jobs", "1", *options)
    [run] = (folder / "evidence" / "smoke").glob("run_*")
    return said, run


def test_a_sweep_without_an_accepted_weight_is_exit_code_3_where_asked_for_and_the_run_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, run = swept_run(tmp_path, monkeypatch, ACCEPTANCE, "--fail-on-acceptance-fail")
    assert said.code == 3
    assert said.err.splitlines()[-1] == (
        f"husai: smoke/{run.name} accepts no weight of the consistency objective: the best, lambda = 0.1 "
        "(topk_lambda_0_1), does not pass agreement by its lower bound (missing), SAEBench (fail)"
    )
    assert said.out.splitlines() == ["verdict: Not released: a stand-in.", f"evidence: {run}"]
    assert (run / "manifest.json").exists()
    assert husai("run", SMOKE, "--evidence", tmp_path / "evidence", "--resume").code == 0
    resumed = ("run", SMOKE, "--evidence", tmp_path / "evidence", "--resume", "--fail-on-acceptance-fail")
    assert husai(*resumed).code == 3
    both = husai(*resumed, "--fail-on-gate-fail")
    assert (both.code, "does not pass its gates" in both.err) == (3, True)


def test_an_accepted_weight_is_exit_code_0_whatever_the_gates_of_the_cycle_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, _ = swept_run(tmp_path, monkeypatch, ACCEPTANCE | {"pass_all": True}, "--fail-on-acceptance-fail")
    assert said.code == 0


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_an_acceptance_without_a_sweep_is_a_usage_error_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dry: list[str]
) -> None:
    short_cycle(monkeypatch, tmp_path / "notebooks")
    path = write_params(tmp_path / "p.yaml", smoke_data(consistency=None, selection={"sources": ["frontier"]}))
    said = husai("run", path, "--fail-on-acceptance-fail", "--evidence", tmp_path / "evidence", *dry)
    assert (said.code, said.out) == (2, "")
    assert said.err == f"husai: {path} has no section consistency; add it, or leave out --fail-on-acceptance-fail\n"
    assert not (tmp_path / "evidence").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--scheduler", "tcp://127.0.0.1:9"],
            "--scheduler and --resources are for clusters; give --executor dask too",
        ),
        (["--executor", "dask", "--scheduler", "tcp://127.0.0.1:9"], "tcp://127.0.0.1:9: no dask scheduler answers"),
        (["--executor", "dask", "--resources", "GPU"], "--resources GPU: not NAME=NUMBER; use for instance GPU=1"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_a_usage_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    from husai_lib.tasks import cluster  # imports torch

    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.2)
    done = husai("run", SMOKE, "--evidence", str(tmp_path), *options)
    assert done.code == 2
    assert said in done.err
    assert not [*tmp_path.iterdir()]


def test_a_dry_run_shows_the_plan_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_cycle(monkeypatch, tmp_path / "notebooks")
    said = husai("run", SMOKE, "--dry-run", "--evidence", tmp_path / "evidence")
    assert (said.code, said.err) == (0, "")
    line = next(line for line in said.out.splitlines() if line.strip().startswith("frontier"))
    assert "03_frontier.ipynb" in line
    assert "12 members: topk, standard, batchtopk, jumprelu at 3 seeds" in line
    assert "new run" in line
    assert not (tmp_path / "evidence").exists()


def test_a_dry_run_says_what_of_the_newest_run_is_still_in_the_cache(
    evidence: Path, made: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = made.record("frontier").data["parameters"]
    step = next(step for step in cycle.STEPS if step.name == "frontier")
    planned = PlannedStep(step, given, "", "new run")
    assert cached_already(planned, made.path.parent.name, evidence) == "6 of 6 cached"
    assert cached_already(planned, "another", evidence) == ""
    changed = replace(planned, parameters=given | {"seeds": [7]})
    assert cached_already(changed, made.path.parent.name, evidence) == ""
    monkeypatch.setenv("HUSAI_CACHE", str(evidence / "empty cache"))
    assert cached_already(planned, made.path.parent.name, evidence) == "0 of 6 cached"


def test_the_bare_command_shows_its_help_and_complains_of_nothing() -> None:
    said = husai()
    assert (said.code, said.err) == (2, "")
    assert "COMMAND [ARGS]" in said.out


def test_a_dry_run_of_a_complete_run_says_that_nothing_would_run(
    finished: tuple[Path, tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished[0]
    short_cycle(monkeypatch, folder / "notebooks")
    said = husai("run", SMOKE, "--dry-run", "--resume", "--evidence", folder / "evidence")
    assert f"resuming smoke/{next((folder / 'evidence' / 'smoke').glob('run_*')).name}; nothing was written" in said.out
    assert "new run" not in said.out
    assert "not done yet" not in said.out


def test_ls_lists_runs_with_state_and_verdict(evidence: Path, made: Run) -> None:
    said = husai("ls", "--evidence", evidence)
    assert (said.code, said.err) == (0, "")
    line = next(line for line in said.out.splitlines() if made.name in line)
    assert "complete" in line
    assert "Not releasable: 1 of 8 required gates fails (transcoder)." in line


def test_ls_says_whether_a_run_without_a_manifest_is_running_or_was_interrupted(smoke: Run) -> None:
    evidence = smoke.path.parent.parent
    (smoke.path / "manifest.json").unlink()
    done = f"{len(smoke.journal)} steps are done"
    assert f"{smoke.name}  interrupted: {done}" in husai("ls", "--evidence", evidence).out.splitlines()
    with cycle.only_run_of("smoke", evidence):
        assert f"{smoke.name}  running: {done}" in husai("ls", "--evidence", evidence).out.splitlines()
    assert f"{smoke.name}  interrupted: {done}" in husai("ls", "--evidence", evidence).out.splitlines()


def test_ls_of_nothing_is_no_error(tmp_path: Path) -> None:
    assert husai("ls", "--evidence", tmp_path).code == 0


def test_show_prints_gates_candidates_and_groups(evidence: Path, made: Run) -> None:
    said = husai("show", made.name, "--evidence", evidence)
    assert (said.code, said.err) == (0, "")
    for words in ("gates of step gate", "candidates of step selection", "groups of step frontier", "transcoder"):
        assert words in said.out
    line = next(line for line in said.out.splitlines() if line.strip().startswith("random model"))
    assert "0.25" in line
    assert "pass" in line


@pytest.mark.parametrize("form", ["cycle/run", "run", "cycle", "path"])
def test_a_run_may_be_named_in_several_ways(evidence: Path, made: Run, form: str) -> None:
    names = {"cycle/run": made.name, "run": made.path.name, "cycle": "smoke", "path": str(made.path)}
    said = husai("verify", names[form], "--evidence", evidence)
    assert (said.code, said.err) == (0, "")
    assert said.out == f"{made.name}: {len(made.files())} files\n"


# The three levels of trust


@pytest.fixture(scope="module")
def forged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with pytest.MonkeyPatch.context() as patch:
        forging.fast_audits(patch)
        yield forging.smoke_copy(tmp_path_factory.mktemp("trust"))


@pytest.fixture
def smoke(forged: Run, tmp_path: Path) -> Run:
    """A copy of the committed smoke run, with the import that it reads, to be changed."""
    return forging.copied(forged, tmp_path)


def test_verify_checks_every_run_and_import_and_what_lies_beside_them(smoke: Run) -> None:
    evidence = smoke.path.parent.parent
    said = husai("verify", "--evidence", evidence)
    assert (said.code, said.err) == (0, "")
    assert [line.partition(":")[0] for line in said.out.splitlines()] == [smoke.name, "imported/cycle3"]
    (evidence / "smoke" / "README.md").touch()
    (smoke.path / "results.json").unlink()
    said = husai("verify", "--evidence", evidence)
    assert said.code == 4
    problems = [line for line in said.out.splitlines() if line.startswith("problem: ")]
    assert len(problems) == 2
    assert said.err == f"husai: verification found 2 problems: {problems[0].removeprefix('problem: ')}\n"
    assert husai("verify", smoke.name, "--evidence", evidence).err.startswith("husai: verification found 1 problem:")


def test_an_audit_says_of_each_run_what_was_checked_and_what_is_wrong(smoke: Run) -> None:
    evidence = smoke.path.parent.parent
    said = husai("audit", "--evidence", evidence)
    assert (said.code, said.err) == (0, "")
    audited = dict(line.split(": ") for line in said.out.splitlines())
    assert list(audited) == [smoke.name, "imported/cycle3", "beside the runs", "front page"]
    assert all(counts.endswith("no problem") for counts in audited.values())
    forging.rewrite(smoke, "gate", lambda record: record["summary"].update(pass_all=True))
    said = husai("audit", smoke.name, "--evidence", evidence)
    assert said.code == 4
    assert f"problem: {smoke.name}: record gate.summary.pass_all is True but must be False" in said.out.splitlines()
    assert said.err.startswith("husai: the audit found ")


def test_a_damaged_run_hides_no_problem_of_another(smoke: Run) -> None:
    evidence = smoke.path.parent.parent
    for name, change in (("run_20200101T000000Z", "manifest.json"), ("run_20200102T000000Z", "records/gate.json")):
        shutil.copytree(smoke.path, smoke.path.with_name(name))
        (smoke.path.with_name(name) / change).write_text("no JSON", encoding="utf-8")
    forging.rewrite(smoke, "gate", lambda record: record["summary"].update(pass_all=True))
    for command in ("verify", "audit"):
        said = husai(command, "--evidence", evidence)
        assert (said.code, said.err.count("\n")) == (4, 1)
        assert "run_20200101T000000Z/manifest.json is damaged" in said.out
        assert "run_20200102T000000Z/records/gate.json was changed" in said.out
    assert f"problem: {smoke.name}: record gate.summary.pass_all is True" in said.out


def test_an_unfinished_run_that_nothing_shows_is_named_and_no_problem(smoke: Run) -> None:
    evidence = smoke.path.parent.parent
    unfinished = smoke.path.with_name("run_20200101T000000Z")
    shutil.copytree(smoke.path, unfinished)
    (unfinished / "manifest.json").unlink()
    name = f"smoke/{unfinished.name}"
    assert f"{name}: unfinished" in husai("verify", "--evidence", evidence).out.splitlines()
    said = husai("audit", "--evidence", evidence)
    assert (said.code, said.out.splitlines()[0]) == (0, f"{name}: unfinished, not audited")
    said = husai("audit", name, "--evidence", evidence)
    assert (said.code, "is unfinished: it has no manifest" in said.err) == (1, True)


@pytest.mark.parametrize("command", ["verify", "audit"])
def test_nothing_to_check_is_an_error(tmp_path: Path, command: str) -> None:
    said = husai(command, "--evidence", tmp_path)
    assert said.code == 1
    assert f"{tmp_path} holds nothing to {command}" in said.err


def test_a_damaged_run_is_not_reproduced(smoke: Run) -> None:
    (smoke.path / "results.json").unlink()
    said = husai("reproduce", smoke.name, "--evidence", smoke.path.parent.parent)
    assert (said.code, said.out) == (4, "")
    assert said.err.startswith(f"husai: {smoke.name} does not verify: ")


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "table"])
def test_a_reproduction_says_how_many_values_are_equal_and_which_are_not(
    smoke: Run, forged: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    again = forged
    monkeypatch.setattr(reproduce, "run_cycle", lambda *_, **__: again)
    arguments = ("reproduce", smoke.name, *(["--json"] if as_json else []), "--evidence", smoke.path.parent.parent)
    said = husai(*arguments)
    assert (said.code, said.err) == (0, "")
    equal = json.loads(said.out)["counts"]["equal"] if as_json else int(said.out.split()[-2].replace(",", ""))
    assert equal > 1000
    again = forging.copied(forged, tmp_path / "again")

    def change(record: dict[str, Any]) -> None:
        record["tables"]["members"][0]["explained_variance"] += 0.25

    forging.change_record(again, "frontier", change)
    said = husai(*arguments)
    assert said.code == 4
    assert said.err == f"husai: {smoke.name} is not reproduced: 1 values are different\n"
    assert "frontier.members.0.explained_variance" in said.out


def test_the_command_line_starts_without_the_heavy_packages() -> None:
    script = (
        "import sys, husai_lib.cli; heavy = {'torch', 'sae_lens', 'transformers', 'transformer_lens', 'sae_probes',"
        "'papermill', 'nbconvert', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# The gate for CI


def test_the_gate_is_judged_again_and_told_with_its_verdict(made: Run, evidence: Path) -> None:
    said = husai("gate", "smoke", "--evidence", evidence)
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[-1] == f"{made.name}: {made.manifest()['verdict']}"
    assert "random model" in said.out
    assert "transcoder" in said.out


def test_a_failed_gate_is_an_error_only_where_it_is_asked_for(evidence: Path) -> None:
    said = husai("gate", "--fail-on-gate-fail", "--evidence", evidence)
    assert said.code == 3
    assert re.fullmatch(r"husai: smoke/run_\w+ does not pass its gates: Not releasable: .*\n", said.err)


def test_a_gate_record_that_its_inputs_contradict_is_an_integrity_error(smoke: Run) -> None:
    def pass_all(record: dict[str, Any]) -> None:
        for row in record["tables"]["gates"]:
            row["verdict"] = "pass"

    evidence, path = smoke.path.parent.parent, smoke.path / "records" / "gate.json"
    forging.rewrite(smoke, "gate", pass_all)  # by a forger who makes all hashes agree
    said = husai("gate", "--evidence", evidence)
    assert said.code == 4
    assert "its gate record states other gates than its inputs give" in said.err
    path.write_text(path.read_text(encoding="utf-8").replace("pass", "fail"), encoding="utf-8")
    said = husai("gate", "--evidence", evidence)
    assert (said.code, "records/gate.json was changed after it was written" in said.err) == (4, True)


def test_a_plan_names_seeds_and_data_sets_gate_by_gate_and_says_why_there_are_none(made: Run, evidence: Path) -> None:
    said = husai("plan", "smoke", "--delta", "external_cebench=-1", "--power", "0.9", "--evidence", evidence)
    assert (said.code, said.err) == (0, "")
    [line] = [line for line in said.out.splitlines() if "external CE-Bench " in line and "calibrated" not in line]
    assert "does not lie beyond the threshold" in line
    assert said.out.endswith(f"{made.name}: to pass with a probability of 90%, each gate by itself\n")
    told = husai("plan", "smoke", "--delta", "external_cebench=1e6", "--json", "--evidence", evidence)
    needs = {need["gate"]: need for need in json.loads(told.out)}
    assert needs.keys() == {row.gate for row in made.record("gate").table("gates")} - {"external"}
    assert needs["external_cebench"]["seeds"] is None  # above the ceiling


def test_a_plan_for_an_unknown_gate_is_a_usage_error(evidence: Path) -> None:
    said = husai("plan", "smoke", "--delta", "cebench=1", "--evidence", evidence)
    assert said.code == 2
    assert "gate 'cebench' is unknown; the nearest is 'external_cebench'" in said.err


def test_a_run_without_a_gate_step_has_no_gate(tmp_path: Path) -> None:
    (tmp_path / "smoke" / "run_x").mkdir(parents=True)
    said = husai("gate", "--evidence", tmp_path)
    assert said.code == 1
    assert "run smoke/run_x is unfinished" in said.err


# Earlier cycles


def test_an_import_tells_what_was_read_and_what_is_wrong_with_it(tmp_path: Path) -> None:
    sae = {"architecture": "topk", "seed": 42, "checkpoint": "results/run_20260101T000000Z/checkpoints/a/sae.pt",
           "train_metrics": {"explained_variance": 0.7, "l0": 650.0}, "saebench": None, "cebench": None}  # fmt: skip
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"config": {"k": 32, "d_sae": 1024}, "records": [sae], "aggregate": {}}))
    said = husai("import", file, "--as", "old", "--evidence", tmp_path / "evidence")
    assert (said.code, said.err) == (0, "")
    first, *_, last = said.out.splitlines()
    assert first == "results: frontier results.json"
    assert last == f"imported: {tmp_path / 'evidence' / 'imported' / 'old'}"
    assert "caveat: results, 1 rows, unmatched_l0" in said.out
    again = husai("import", file, "--as", "old", "--evidence", tmp_path / "evidence")
    assert again.code != 0
    assert "old" in again.err


@pytest.mark.parametrize("text", ["{}", "[]", "not JSON", ""])
def test_what_is_no_record_of_an_earlier_cycle_is_refused_and_leaves_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    said = husai("import", tmp_path / "x.json", "--as", "old", "--evidence", tmp_path / "evidence")
    assert said.code == 1
    assert "x.json" in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "evidence" / "imported" / "old").exists()


@pytest.mark.parametrize(
    "assignment", ["earlier=[imported/nowhere]", "selection.sources=[frontier, imported/nowhere/frontier]"]
)
def test_an_earlier_run_that_is_not_there_is_told_before_anything_runs(tmp_path: Path, assignment: str) -> None:
    said = husai("run", SMOKE, "--set", assignment, "--evidence", tmp_path)
    assert said.code == 2
    assert said.err.startswith(f"husai: {assignment.partition('=')[0]}: no earlier run is called 'imported/nowhere'")
    assert not list(tmp_path.glob("smoke/run_*"))


@pytest.mark.parametrize("ending", ["SIGINT", "SIGTERM"])
def test_a_signal_that_comes_when_all_is_said_changes_no_exit_code(ending: str) -> None:
    script = (
        "import atexit, os, signal, sys; from husai_lib import cli; sys.argv = ['husai', 'ls'];"
        f"atexit.register(os.kill, os.getpid(), signal.{ending}); cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
