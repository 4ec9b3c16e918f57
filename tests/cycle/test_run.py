"""A cycle runs its notebooks in order, fails in one sentence, and goes on where it stopped."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from stand_ins import BODIES, SMOKE, STEPS, notebook, short_cycle, smoke_data, write_notebooks, write_params

from husai_lib.cycle import execution
from husai_lib.cycle import run as cycle
from husai_lib.cycle.run import notebook_code, only_run_of, plan, run_cycle
from husai_lib.errors import DataError, EvidenceError, ParameterError, StepError
from husai_lib.evidence import steps
from husai_lib.evidence.runs import Run, find_runs, new_run
from husai_lib.evidence.verification import problems_of
from husai_lib.files import REPOSITORY, read_json, sha256_file, write_json, write_text
from husai_lib.params.cycle import load_cycle

pytestmark = pytest.mark.slow

PARAMS = load_cycle(SMOKE)

BANK = """
from husai_lib.evidence.cache import cached
from husai_lib.evidence.rows.measured import BankRow
entry = cached("banks", "husai_lib.files", {"name": "bank"}, lambda folder: (folder / "rows.npy").write_bytes(b"rows"))
step = open_step('activations', run, activations=activations)
record = step.write({"banks": [BankRow(bank="training", hook_name="h", rows=1, d_in=1, key=entry.key, sha256="")]})
"""


def silent() -> Console:
    return Console(file=io.StringIO(), soft_wrap=True)  # as the real one: a sentence is a line


def said(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.fixture
def notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return short_cycle(monkeypatch, tmp_path / "notebooks")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run, list[str]]:
    """One complete run of the short cycle: its folder, the run and what was said."""
    folder = tmp_path_factory.mktemp("done")
    console = silent()
    with pytest.MonkeyPatch.context() as patch:
        short_cycle(patch, folder / "notebooks", activations=BANK)
        run = run_cycle(PARAMS, folder / "evidence", folder / "notebooks", console=console)
    return folder, run, said(console)


@pytest.fixture
def unfinished(done: tuple[Path, Run, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of that run, with its notebooks and cache, that lacks only the manifest."""
    shutil.copytree(done[0], tmp_path / "copy")
    monkeypatch.setattr(cycle, "STEPS", STEPS)
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path / "copy" / "cache"))
    run = Run(tmp_path / "copy" / done[1].path.relative_to(done[0]))
    (run.path / "manifest.json").unlink()
    return run


def beside(run: Run, name: str) -> Path:
    return run.path.parent.parent.parent / name


# What a run leaves


def test_a_run_leaves_parameters_records_notebooks_and_a_manifest_and_nothing_else(
    done: tuple[Path, Run, list[str]],
) -> None:
    run = done[1]
    names = sorted(str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file())
    stems = [step.notebook for step in STEPS]
    assert names == sorted(
        ["manifest.json", "journal.json", "parameters.json", "release_policy.json"]
        + [f"records/{step.name}.json" for step in STEPS]
        + [f"notebooks/{stem}" for stem in stems]
    )
    assert read_json(run.path / "parameters.json") == PARAMS.model_dump(mode="json")
    assert problems_of(run) == []


def test_the_manifest_says_what_the_run_was_and_concluded(done: tuple[Path, Run, list[str]]) -> None:
    manifest = done[1].manifest()
    assert (manifest["verdict"], manifest["pass_all"]) == ("Not released: a stand-in.", False)
    assert (manifest["cycle"], manifest["summary"]) == ("smoke", PARAMS.summary)
    assert manifest["steps"] == ["activations", "frontier", "gate"]


def test_each_step_gets_its_sections_and_no_other(done: tuple[Path, Run, list[str]]) -> None:
    values = PARAMS.model_dump(mode="json")
    run = done[1]
    assert run.record("activations").data["parameters"] == {"activations": values["activations"]}
    assert run.record("frontier").data["parameters"] == {"seeds": [0, 1, 2]}
    assert run.record("gate").data["parameters"] == {"gates": values["gates"]}


def test_progress_without_a_terminal_is_a_line_when_a_step_starts_and_one_when_it_ends(
    done: tuple[Path, Run, list[str]],
) -> None:
    lines = done[2]
    assert lines[0] == f"new run {done[1].name}"
    assert lines[1] == "step 1/3 activations: starts, new run"
    assert lines[2].startswith("step 1/3 activations: done in ")
    assert len(lines) == 1 + 2 * 3


def test_executed_notebooks_carry_no_times_and_no_path_of_this_repository(
    done: tuple[Path, Run, list[str]],
) -> None:
    text = (done[1].path / "notebooks" / "03_frontier.ipynb").read_text()
    assert "papermill" not in json.loads(text)["metadata"]
    assert str(REPOSITORY) not in text


def test_the_plan_names_the_members_of_each_step() -> None:
    makes = {step.step.name: step.makes for step in plan(load_cycle(SMOKE))}
    assert makes["baselines"] == "3 members: topk at 3 seeds"
    assert makes["frontier"] == "12 members: topk, standard, batchtopk, jumprelu at 3 seeds"
    assert makes["stress"] == "12 controls: random_model_1, random_model_2, transcoder, ood at 3 seeds"
    assert makes["confirmation"] == "6 members: the selected condition, its baseline at 3 seeds"


def test_the_plan_names_a_baseline_of_each_shape_and_the_given_sae(tmp_path: Path) -> None:
    values = smoke_data(
        conditions=[{"architecture": "topk"}, {"architecture": "topk", "name": "wide", "d_sae": 128}],
        baseline={"release": "r", "sae_id": "a"},
    )
    made = {step.step.name: step.makes for step in plan(load_cycle(write_params(tmp_path / "p.yaml", values)))}
    trained = "6 members: topk_64_k8, topk_128_k8 at 3 seeds"
    assert made["baselines"] == f"release r, a; where it is not matched {trained}"


# The kernel


def test_a_kernel_is_of_this_interpreter_in_the_repository_with_the_environment_given(
    notebooks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/bin/false"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    body = (
        "import os, sys\nstep = open_step('activations', run, activations=activations)\n"
        "step.write(executable=sys.executable, cwd=os.getcwd(), jobs=os.environ['HUSAI_JOBS'],"
        " cache=os.environ['HUSAI_CACHE'])\nraise RuntimeError('enough')"
    )
    write_notebooks(notebooks, activations=body)
    monkeypatch.setenv("HUSAI_JOBS", "7")
    with pytest.raises(StepError, match="enough"):
        run_cycle(PARAMS, tmp_path / "evidence", notebooks, console=silent())
    [run] = find_runs(tmp_path / "evidence")
    summary = run.record("activations").summary
    assert summary["executable"] == sys.executable
    assert (summary["cwd"], summary["jobs"]) == (str(REPOSITORY), "7")
    assert summary["cache"] == str(tmp_path / "cache")


def test_a_broken_notebook_is_refused_before_anything_runs(notebooks: Path, tmp_path: Path) -> None:
    (notebooks / "08_gate.ipynb").write_text("{}")
    with pytest.raises(StepError, match=r"08_gate.ipynb is no notebook that can be read; restore it"):
        run_cycle(PARAMS, tmp_path / "evidence", notebooks, console=silent())
    assert not (tmp_path / "evidence").exists()


def test_a_notebook_that_writes_no_record_fails(notebooks: Path, tmp_path: Path) -> None:
    write_notebooks(notebooks, activations="raise SystemExit(0)")
    with pytest.raises(StepError, match=r"step activations .* ended without writing its record"):
        run_cycle(PARAMS, tmp_path / "evidence", notebooks, console=silent())


def test_an_error_of_the_library_in_a_notebook_keeps_its_class_and_sentence(notebooks: Path, tmp_path: Path) -> None:
    body = "from husai_lib.errors import DataError\nraise DataError('data set x is empty; name another')"
    write_notebooks(notebooks, activations=body)
    with pytest.raises(DataError) as caught:
        run_cycle(PARAMS, tmp_path / "evidence", notebooks, console=silent())
    assert str(caught.value) == (
        "step activations (01_activations.ipynb) failed: data set x is empty; name another; "
        "fix it and run again with --resume"
    )


# Failure and resumption


def test_a_failed_step_is_run_again_and_finished_ones_are_kept(notebooks: Path, tmp_path: Path) -> None:
    write_notebooks(notebooks, frontier="print('so far')\nraise ValueError('in a line')")
    with pytest.raises(StepError) as caught:
        run_cycle(PARAMS, tmp_path / "evidence", notebooks, console=silent())
    assert str(caught.value) == (
        "step frontier (03_frontier.ipynb) failed: ValueError: in a line; fix it and run again with --resume"
    )
    [run] = find_runs(tmp_path / "evidence")
    kept = {name: sha256_file(run.path / name) for name in run.journal["activations"]["files"]}
    assert "so far" in (run.path / "notebooks" / "03_frontier.unfinished.ipynb").read_text()
    assert set(run.journal) == {"activations"}

    write_notebooks(notebooks)
    console = silent()
    assert run_cycle(PARAMS, tmp_path / "evidence", notebooks, resume=True, console=console).path == run.path
    assert kept == {name: sha256_file(run.path / name) for name in kept}
    assert not (run.path / "notebooks" / "03_frontier.unfinished.ipynb").exists()
    assert problems_of(run) == []
    assert said(console)[:3] == [
        f"resuming {run.name}",
        "step 1/3 activations: kept",
        "step 2/3 frontier: starts, not done yet",
    ]


def reasons(run: Run) -> list[str]:
    return [step.reason for step in plan(PARAMS, run, beside(run, "notebooks"))]


def test_an_untouched_run_keeps_every_step(unfinished: Run) -> None:
    assert reasons(unfinished) == ["", "", ""]


def change_notebook(run: Run) -> None:
    write_notebooks(beside(run, "notebooks"), activations=BANK, frontier=BODIES["frontier"] + "\n1 + 1")


def lose_weights(run: Run) -> None:
    shutil.rmtree(beside(run, "cache") / "banks")


def edit_record(run: Run) -> None:
    path = run.path / "records" / "frontier.json"
    path.write_text(path.read_text().replace('"wall_seconds": ', '"wall_seconds": 1'))


def lose_notebook(run: Run) -> None:
    (run.path / "notebooks" / "03_frontier.ipynb").unlink()


def rewrite_input(run: Run) -> None:
    """The first step is done again, in the same way, so its record has another time."""
    entry = run.journal["activations"]
    path = run.path / "records" / "activations.json"
    sha256 = write_json(path, read_json(path) | {"finished_utc": "later"})
    run.note_step("activations", entry | {"files": entry["files"] | {"records/activations.json": sha256}})


RESTS = "it rests on step {}, which runs again"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (change_notebook, ["", "its notebook changed", RESTS.format("frontier")]),
        (lose_weights, ["what it made is no longer in the cache", RESTS.format("activations"),
                        RESTS.format("frontier")]),
        (edit_record, ["", "records/frontier.json is missing or changed", RESTS.format("frontier")]),
        (lose_notebook, ["", "notebooks/03_frontier.ipynb is missing or changed", RESTS.format("frontier")]),
        (rewrite_input, ["", RESTS.format("activations"), RESTS.format("frontier")]),
        (lambda run: run.drop_step("frontier"), ["", "not done yet", RESTS.format("frontier")]),
    ],
)  # fmt: skip
def test_what_no_longer_holds_runs_again_and_so_does_all_that_rests_on_it(
    unfinished: Run, damage: Callable[[Run], None], expected: list[str]
) -> None:
    damage(unfinished)
    assert reasons(unfinished) == expected


def test_a_changed_library_runs_everything_again(unfinished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "library_hash", lambda: "other code")
    assert reasons(unfinished)[0] == "its parameters or the library changed"
    assert "" not in reasons(unfinished)


def test_a_run_that_lacks_only_its_manifest_is_completed_without_a_kernel(unfinished: Run) -> None:
    console = silent()
    run = run_cycle(PARAMS, beside(unfinished, "evidence"), beside(unfinished, "notebooks"), resume=True,
                    console=console)  # fmt: skip
    assert run.is_complete
    assert [line for line in said(console) if "done in" in line] == []


def test_a_complete_run_is_not_run_again(unfinished: Run) -> None:
    folders = beside(unfinished, "evidence"), beside(unfinished, "notebooks")
    run_cycle(PARAMS, *folders, resume=True, console=silent())
    manifest = sha256_file(unfinished.path / "manifest.json")
    console = silent()
    run_cycle(PARAMS, *folders, resume=True, console=console)
    assert said(console) == [f"{unfinished.name} is complete; nothing to resume"]
    assert reasons(unfinished) == ["", "", ""]
    assert sha256_file(unfinished.path / "manifest.json") == manifest


def test_resuming_with_other_parameters_names_the_first_section_that_differs(unfinished: Run, tmp_path: Path) -> None:
    other = load_cycle(SMOKE, ["gates.max_ood_drop=0.2", "sae.k=4"])
    with pytest.raises(ParameterError) as caught:
        run_cycle(other, beside(unfinished, "evidence"), beside(unfinished, "notebooks"), resume=True, console=silent())
    assert str(caught.value) == (
        f"sae differs from that in {unfinished.path}/parameters.json; "
        "give the same values, or run without --resume for a new run"
    )


def test_with_nothing_to_resume_a_new_run_starts_and_says_so(notebooks: Path, tmp_path: Path) -> None:
    write_notebooks(notebooks, activations="raise ValueError")
    console = silent()
    with pytest.raises(StepError):
        run_cycle(PARAMS, tmp_path / "evidence", notebooks, resume=True, console=console)
    assert said(console)[0].startswith("nothing to resume: new run smoke/run_")


def test_a_step_done_again_leaves_nothing_of_its_older_version(tmp_path: Path) -> None:
    run = new_run(tmp_path, "smoke")
    old = write_text(run.path / "figures" / "old.png", "old")
    run.note_step("frontier", {"files": {"figures/old.png": old}})
    run.drop_step("frontier")
    assert not (run.path / "figures" / "old.png").exists()
    assert run.journal == {}


# One run of a cycle at a time


def test_a_second_run_of_a_cycle_is_refused_and_one_of_another_cycle_is_not(tmp_path: Path) -> None:
    with only_run_of("smoke", tmp_path):
        with (
            pytest.raises(EvidenceError, match="'smoke' is being run by another process"),
            only_run_of("smoke", tmp_path),
        ):
            pass
        with only_run_of("other", tmp_path):
            pass
    with only_run_of("smoke", tmp_path):
        pass


# Progress


def watched(console: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(execution, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(execution, "LINE_SECONDS", 0.05)
    state = {"step": "frontier", "done": 2, "total": 4, "what": "members"}
    write_json(tmp_path / "progress.json", state | {"done": 4})  # of an earlier step: not shown
    with execution.watched(console, "frontier", tmp_path):
        execution.time.sleep(0.08)
        write_json(tmp_path / "progress.json", state)
        execution.time.sleep(0.3)


def test_plain_lines_report_once_how_much_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = silent()
    watched(console, monkeypatch, tmp_path)
    assert list(said(console)) == ["step frontier: 2/4 members"]
    assert not (tmp_path / "progress.json").exists()


def test_a_terminal_gets_a_bar_for_each_thing_that_a_step_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    watched(console, monkeypatch, tmp_path)
    text = "\n".join(said(console))
    assert "step frontier: members" in text
    assert "2/4" in text
    assert "4/4" not in text


def test_notebook_code_ignores_outputs_and_prose(tmp_path: Path) -> None:
    one = notebook(tmp_path / "one.ipynb", "a = 1", "a")
    other = notebook(tmp_path / "other.ipynb", "a = 1", "a", outputs=["shown"])
    changed = notebook(tmp_path / "changed.ipynb", "a = 2", "a")
    assert notebook_code(one) == notebook_code(other) != notebook_code(changed)


def test_the_steps_are_those_of_the_design_and_their_sections_exist() -> None:
    names = [step.name for step in cycle.STEPS]
    assert names == ["activations", "baselines", "frontier", "consistency", "scaling", "selection", "confirmation",
                     "stress", "gate", "report"]  # fmt: skip
    assert {section for step in cycle.STEPS for section in step.sections} <= set(type(PARAMS).model_fields)
    assert os.path.commonpath([cycle.NOTEBOOKS, REPOSITORY]) == str(REPOSITORY)


def test_a_cycle_without_a_sweep_has_no_step_for_it(tmp_path: Path) -> None:
    both = ({"consistency": sweep} for sweep in ({"lambdas": [0.0, 0.1]}, None))
    with_it, without = ([step.name for step in cycle.steps_of(sections)] for sections in both)
    assert [name for name in with_it if name not in without] == ["consistency"]
    assert with_it.index("consistency") < with_it.index("selection")  # which may rank its groups
    smoke = smoke_data(consistency=None, conditions=[], scaling=None, selection={"sources": ["routed"]})
    smoke["sweeps"] = {"routed": {"conditions": [{"architecture": "routed_topk"}]}}
    planned = plan(load_cycle(write_params(tmp_path / "p.yaml", smoke)))
    assert [one.step.name for one in planned if one.step.name != "routed"] == without


def test_further_sweeps_are_steps_after_the_frontier_that_execute_its_notebook_under_their_own_names(
    tmp_path: Path,
) -> None:
    sweeps = {"routed": {"conditions": [{"architecture": "routed_topk", "num_experts": 4}], "seeds": [7, 8]},
              "wide": {"conditions": [{"architecture": "topk", "d_sae": 128}]}}  # fmt: skip
    params = load_cycle(write_params(tmp_path / "p.yaml", smoke_data(sweeps=sweeps)))
    planned = {one.step.name: one for one in plan(params)}
    names = [*planned]
    assert names[names.index("frontier") : names.index("consistency")] == ["frontier", "routed", "wide"]
    steps = [planned[name].step for name in ("frontier", "routed", "wide")]
    assert [step.executed for step in steps] == ["03_frontier.ipynb", "03_routed.ipynb", "03_wide.ipynb"]
    assert {step.notebook for step in steps} == {"03_frontier.ipynb"}
    assert [step.injected for step in steps] == [{}, {"sweep": "routed"}, {"sweep": "wide"}]
    assert [one.step.name for one in plan(params) if one.step.executed != one.step.notebook] == ["routed", "wide"]
    given = [planned[step.name].parameters for step in steps]
    assert [[one["name"] for one in own["conditions"]] for own in given] == [
        ["topk", "standard", "batchtopk", "jumprelu"], ["routed_topk"], ["topk"],
    ]  # fmt: skip
    assert [own["seeds"] for own in given] == [[0, 1, 2], [7, 8], [0, 1, 2]]
    assert planned["routed"].makes == "2 members: routed_topk at 2 seeds"
    assert planned["scaling"].makes.startswith("16 members: layer_0_tokens_1024_d_sae_32, ")
    assert planned["baselines"].makes == "8 members: topk_64_k8, topk_128_k8 at 3 or 5 seeds"


def test_a_plan_says_how_many_members_a_sweep_and_its_baselines_take(tmp_path: Path) -> None:
    data = smoke_data()
    data["consistency"] |= {"seeds": [7, 8, 9, 10], "conditions": [{"architecture": "topk", "d_sae": 128}]}
    planned = {one.step.name: one.makes for one in plan(load_cycle(write_params(tmp_path / "p.yaml", data)))}
    assert planned["consistency"] == "12 members: topk_lambda_0, topk_lambda_0_1, topk_lambda_0_3 at 4 seeds"
    assert planned["baselines"] == "7 members: topk_64_k8, topk_128_k8 at 3 or 4 seeds"
    assert plan(PARAMS)[3].makes == "9 members: topk_lambda_0, topk_lambda_0_1, topk_lambda_0_3 at 3 seeds"


def test_smoke_parameters_can_be_written_and_read_again(tmp_path: Path) -> None:
    assert load_cycle(write_params(tmp_path / "p.yaml", smoke_data())) == PARAMS
