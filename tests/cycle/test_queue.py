"""A queue runs cycles one after another; `newest` becomes the name of a run, which everything that is kept names."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from stand_ins import husai, short_cycle, smoke_data, synthetic_run, write_params

from husai_lib.cycle.queue import Queued, check_queue, read_queue, run_queue
from husai_lib.errors import GateError, HusaiError, ParameterError, StepError
from husai_lib.evidence.runs import Run, new_run
from husai_lib.files import write_json

OLD, NEW = "run_20260101T000000Z", "run_20260102T000000Z"


def made(evidence: Path, name: str, *, complete: bool = True) -> Run:
    """A run of a cycle, with nothing in it."""
    run = Run(evidence / name)
    run.path.mkdir(parents=True)
    if complete:
        run.write_manifest()
    return run


def queued(folder: Path, cycle: str = "later", **sections: Any) -> Queued:
    path = write_params(folder / f"{cycle}.yaml", smoke_data(cycle=cycle, **sections))
    return read_queue([path], [])[0]


def on_first(folder: Path, cycle: str = "later") -> Queued:
    return queued(folder, cycle, earlier=["first/newest"],
                  selection={"sources": ["frontier", "first/newest/frontier"]})  # fmt: skip


# Which run is the newest


def test_newest_is_the_newest_complete_run_of_that_cycle(tmp_path: Path) -> None:
    made(tmp_path, f"first/{OLD}")
    made(tmp_path, f"first/{NEW}", complete=False)
    made(tmp_path, f"other/{NEW}")
    resolved = on_first(tmp_path).resolved(tmp_path, {})
    assert resolved.params.earlier == [f"first/{OLD}"]
    assert resolved.params.selection.sources == ["frontier", f"first/{OLD}/frontier"]


def test_the_assignments_that_name_the_run_give_the_same_parameters_from_the_file(tmp_path: Path) -> None:
    """They are the overrides of the manifest, from which the audit repeats the parameters."""
    made(tmp_path, f"first/{OLD}")
    one = on_first(tmp_path)
    resolved = one.resolved(tmp_path, {})
    assert resolved.assignments == (
        f"earlier=[first/{OLD}]", f"selection.sources=[frontier, first/{OLD}/frontier]",
    )  # fmt: skip
    assert read_queue([one.file], resolved.assignments)[0].params == resolved.params


def test_names_without_newest_stay_as_they_are(tmp_path: Path) -> None:
    one = queued(tmp_path, earlier=["imported/newest", f"first/{OLD}"])
    assert one.resolved(tmp_path, {}) is one


def test_without_a_complete_run_the_key_and_the_remedy_are_named(tmp_path: Path) -> None:
    made(tmp_path, f"first/{OLD}", complete=False)
    with pytest.raises(ParameterError) as caught:
        on_first(tmp_path).resolved(tmp_path, {})
    assert str(caught.value) == (
        f"earlier: first/newest: {tmp_path} holds no complete run of first; run it first, or before in the queue"
    )


def test_a_resumed_run_keeps_the_names_that_it_resolved(tmp_path: Path) -> None:
    made(tmp_path, f"first/{OLD}")
    before = on_first(tmp_path).resolved(tmp_path, {}).params.model_dump(mode="json")
    made(tmp_path, f"first/{NEW}")
    assert on_first(tmp_path).resolved(tmp_path, {}, before).params.earlier == [f"first/{OLD}"]
    assert on_first(tmp_path).resolved(tmp_path, {}).params.earlier == [f"first/{NEW}"]


def test_what_the_queue_made_goes_before_what_is_kept(tmp_path: Path) -> None:
    made(tmp_path, f"first/{OLD}")
    before = on_first(tmp_path).resolved(tmp_path, {}).params.model_dump(mode="json")
    assert on_first(tmp_path).resolved(tmp_path, {"first": f"first/{NEW}"}, before).params.earlier == [f"first/{NEW}"]


# Checks before the first starts


def test_a_cycle_may_name_what_the_queue_has_yet_to_make(tmp_path: Path) -> None:
    checked = check_queue([queued(tmp_path, "first", earlier=[]), on_first(tmp_path)], tmp_path)
    assert [one.params.earlier for one in checked] == [[], ["first/newest"]]


def test_a_step_that_no_cycle_of_the_queue_has_is_refused(tmp_path: Path) -> None:
    later = queued(tmp_path, earlier=[], selection={"sources": ["first/newest/routed"]})
    with pytest.raises(ParameterError, match="first/newest/routed: cycle first of the queue trains no 'routed'"):
        check_queue([queued(tmp_path, "first", earlier=[]), later], tmp_path)


def test_two_files_of_one_cycle_are_refused(tmp_path: Path) -> None:
    paths = [write_params(tmp_path / name, smoke_data()) for name in ("a.yaml", "b.yaml")]
    with pytest.raises(ParameterError, match=r"a.yaml and .*b.yaml are both of cycle smoke; queue them apart"):
        read_queue(paths, [])


def test_a_wrong_file_of_a_queue_is_a_usage_error_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_cycle(monkeypatch, tmp_path / "notebooks")
    good = write_params(tmp_path / "good.yaml", smoke_data(earlier=[]))
    wrong = write_params(tmp_path / "wrong.yaml", smoke_data(cycle="wrong", earlier=[], seeds=[0, 0]))
    said = husai("run", good, wrong, "--evidence", tmp_path / "evidence")
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "wrong.yaml: seed 0 is given twice" in said.err
    assert not (tmp_path / "evidence").exists()


def test_a_change_of_a_parameter_applies_to_every_file(tmp_path: Path) -> None:
    paths = [write_params(tmp_path / f"{name}.yaml", smoke_data(cycle=name)) for name in ("a", "b")]
    assert [one.params.sae.k for one in read_queue(paths, ["sae.k=4"])] == [4, 4]


# One after another


class Runner:
    """Stands for running a cycle: leaves a complete run, or fails with what it was told to."""

    def __init__(self, evidence: Path, **errors: HusaiError) -> None:
        self.evidence, self.errors = evidence, errors
        self.ran: list[tuple[str, list[str], bool]] = []
        self.console = Console(file=io.StringIO(), width=200)

    def run(self, one: Queued, resumed: bool) -> Run:
        self.ran.append((one.params.cycle, one.params.earlier, resumed))
        if one.params.cycle in self.errors:
            raise self.errors[one.params.cycle]
        return made(self.evidence, f"{one.params.cycle}/{NEW}")

    def all(self, *queue: Queued, resume: bool = False, judge: Callable[[Run], None] = lambda run: None) -> None:
        run_queue(queue, self.evidence, self.run, judge, resume=resume, console=self.console)

    @property
    def said(self) -> str:
        assert isinstance(self.console.file, io.StringIO)
        return self.console.file.getvalue()


def test_a_later_cycle_gets_the_run_that_the_queue_just_made(tmp_path: Path) -> None:
    made(tmp_path, f"first/{OLD}")
    runner = Runner(tmp_path)
    runner.all(queued(tmp_path, "first", earlier=[]), on_first(tmp_path))
    assert runner.ran == [("first", [], False), ("later", [f"first/{NEW}"], False)]


def test_a_failure_stops_what_names_its_results_and_nothing_else(tmp_path: Path) -> None:
    made(tmp_path, f"first/{OLD}")  # an older result does not stand in for the one that failed
    runner = Runner(tmp_path, first=StepError("step gate failed"))
    queue = [queued(tmp_path, "first", earlier=[]), on_first(tmp_path), queued(tmp_path, "apart", earlier=[])]
    with pytest.raises(StepError) as caught:
        runner.all(*queue)
    assert [cycle for cycle, _, _ in runner.ran] == ["first", "apart"]
    assert str(caught.value) == "2 of 3 cycles failed (first, later); the reasons stand above"
    assert "cycle first failed: step gate failed" in runner.said
    assert "cycle later failed: it names results of first, which failed" in runner.said


def test_the_exit_code_is_that_of_the_first_failure(tmp_path: Path) -> None:
    runner = Runner(tmp_path, b=ParameterError("two"), c=StepError("one"))
    with pytest.raises(ParameterError) as caught:
        runner.all(*(queued(tmp_path, name, earlier=[]) for name in "abc"))
    assert caught.value.exit_code == 2


def test_results_of_a_cycle_whose_gates_failed_can_be_named(tmp_path: Path) -> None:
    def judge(run: Run) -> None:
        if run.name.startswith("first/"):
            raise GateError("no")

    runner = Runner(tmp_path)
    with pytest.raises(GateError, match=r"1 of 2 cycles failed \(first\)"):
        runner.all(queued(tmp_path, "first", earlier=[]), on_first(tmp_path), judge=judge)
    assert [cycle for cycle, _, _ in runner.ran] == ["first", "later"]


def test_a_cycle_alone_fails_with_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"^as it is$"):
        Runner(tmp_path, a=StepError("as it is")).all(queued(tmp_path, "a", earlier=[]))


def started(evidence: Path, one: Queued) -> None:
    """An unfinished run of a cycle."""
    run = new_run(evidence, one.params.cycle)
    write_json(run.path / "parameters.json", one.params.model_dump(mode="json"))


def test_a_resumed_queue_goes_on_with_the_run_that_rests_on_the_same_results(tmp_path: Path) -> None:
    one = on_first(tmp_path)
    started(tmp_path, one.resolved(tmp_path, {"first": f"first/{NEW}"}))
    runner = Runner(tmp_path)
    runner.all(queued(tmp_path, "first", earlier=[]), one, resume=True)
    assert runner.ran[1] == ("later", [f"first/{NEW}"], True)


def test_a_resumed_queue_does_not_take_a_run_on_older_results_for_its_own(tmp_path: Path) -> None:
    one = on_first(tmp_path)
    started(tmp_path, one.resolved(tmp_path, {"first": f"first/{OLD}"}))
    runner = Runner(tmp_path)
    runner.all(queued(tmp_path, "first", earlier=[]), one, resume=True)
    assert runner.ran[1] == ("later", [f"first/{NEW}"], False)
    assert "the newest run of later rests on other results than this queue's: new run" in runner.said


@pytest.mark.slow
def test_a_queue_of_cycles_leaves_records_of_the_run_that_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two real runs of the short cycle, the second on the first one's evidence, stopped and resumed."""
    short_cycle(monkeypatch, tmp_path / "notebooks")
    evidence = tmp_path / "evidence"
    shutil.copytree(synthetic_run(tmp_path / "made").path, evidence / "first" / OLD)
    later = write_params(tmp_path / "later.yaml", smoke_data(cycle="later", earlier=["first/newest"]))
    said = husai("run", later, "--evidence", evidence)
    assert said.code == 0, said.err
    [run] = (evidence / "later").glob("run_*")
    manifest = Run(run).manifest()
    assert manifest["overrides"] == [f"earlier=[first/{OLD}]"]
    shutil.copytree(evidence / "first" / OLD, evidence / "first" / NEW)
    (run / "manifest.json").unlink()
    other = write_params(tmp_path / "apart.yaml", smoke_data(cycle="apart", earlier=[]))
    assert husai("run", later, other, "--resume", "--evidence", evidence).code == 0
    assert Run(run).manifest()["overrides"] == manifest["overrides"]
    said = husai("run", later, other, "--resume", "--evidence", evidence)
    assert said.err.count("is complete; nothing to resume") == 2
