"""Steps: what a record carries, what is published beside it, and who may open a step."""

from __future__ import annotations

import getpass
import math
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stand_ins import SMOKE, synthetic_run

from husai_lib.errors import ParameterError
from husai_lib.evidence import steps
from husai_lib.evidence.rows.base import Candidate
from husai_lib.evidence.rows.measured import SourceRow
from husai_lib.evidence.rows.probes import ProbeRow
from husai_lib.evidence.runs import Record, Run, new_run
from husai_lib.evidence.steps import (
    OPENER,
    Step,
    candidate_of,
    confirmed_members,
    levels_of,
    open_step,
    results,
    selected_group,
    step_key,
)
from husai_lib.files import read_json, sha256_file
from husai_lib.params.cycle import load_cycle
from husai_lib.report.figures import ReportFigure

GATES = load_cycle(SMOKE).model_dump(mode="json")["gates"]
PROBE = ProbeRow(condition="a", seed=0, data_set="d", duplicates="drop", split=42, test_rows=200, best_k=1,
                 validation_auc=0.5, test_auc=0.75, llm_auc=0.5, delta=0.25)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return new_run(tmp_path, "smoke")


def test_a_record_is_read_back_typed(run: Run) -> None:
    step = open_step("frontier", str(run.path), gates=GATES)
    assert step.params.gates.max_ood_drop == 0.10
    written = step.write({"probes": [PROBE]}, device="cpu", best=1.5)
    for read in (run.record("frontier"), step.record):
        assert read.table("probes") == [PROBE]
        assert read.summary == {"best": 1.5}
        assert read.sha256 == written.sha256 == sha256_file(run.path / "records" / "frontier.json")


def test_a_record_carries_where_it_comes_from(run: Run) -> None:
    first = open_step("baselines", str(run.path)).write()
    step = open_step("frontier", str(run.path), gates=GATES)
    step.read("baselines")
    step.publish("results.json", {"a": 1})
    data = step.write(device="cuda (H200)").data
    assert data["inputs"] == {"baselines": first.sha256}
    assert data["published"] == {"results.json": sha256_file(run.path / "results.json")}
    assert (data["step"], data["cycle"], data["parameters"]) == ("frontier", "smoke", {"gates": GATES})
    assert data["environment"]["device"] == "cuda (H200)"
    assert set(data["environment"]["packages"]) >= {"torch", "numpy", "sae-lens"}
    assert data["wall_seconds"] >= 0


def test_a_record_names_no_machine_and_no_person(run: Run) -> None:
    text = str(open_step("frontier", str(run.path)).write().data["environment"])
    assert str(run.path) not in text
    assert platform.node() not in text
    assert getpass.getuser() not in text


def test_a_record_of_an_earlier_run_is_read_with_its_hash(run: Run, tmp_path: Path) -> None:
    earlier = new_run(tmp_path, "other")
    written = open_step("gate", str(earlier.path)).write(pass_all=False, verdict="Not releasable.")
    earlier.write_manifest(steps=["gate"])
    step = open_step("gate", str(run.path))
    assert step.read(f"{earlier.name}/gate").summary == written.summary
    assert {name: record.sha256 for name, record in step.read_run(earlier.name).items()} == {"gate": written.sha256}
    assert step.write().data["earlier"] == {f"{earlier.name}/gate": written.sha256}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_number_is_not_recorded(run: Run, value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        open_step("frontier", str(run.path)).write(best=value)
    assert run.journal == {}
    with pytest.raises(ValueError, match="finite"):
        ProbeRow(**PROBE.model_dump() | {"delta": value})


def test_rows_of_another_table_are_not_taken(run: Run) -> None:
    row = SourceRow(role="training", data_set="d", texts=1, tokens=1, rows=1)
    with pytest.raises(AssertionError, match="another table"):
        open_step("frontier", str(run.path)).write({"members": [row]})


def test_a_wrong_section_is_refused_when_the_step_opens(run: Run) -> None:
    with pytest.raises(ParameterError, match=r"step frontier: gates: key 'max_ood_dropp' is unknown"):
        open_step("frontier", str(run.path), gates={"max_ood_dropp": 1.0})


def test_without_a_run_a_step_belongs_to_a_scratch_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HUSAI_SCRATCH", raising=False)
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path / "cache"))
    assert open_step("frontier").run.path == tmp_path / "cache" / "scratch" / "smoke" / "run"
    monkeypatch.setenv("HUSAI_SCRATCH", str(tmp_path / "scratch"))
    open_step("frontier").write()
    assert open_step("gate").read("frontier").step == "frontier"


def test_another_opener_takes_the_place_of_steps_that_write(run: Run) -> None:
    other = Step("gate", run, None, {})
    asked: list[tuple[object, ...]] = []

    def opener(*about: object) -> Step:
        asked.append(about)
        return other

    token = OPENER.set(opener)
    try:
        assert open_step("gate", "a folder that is not looked for", gates=GATES) is other
    finally:
        OPENER.reset(token)
    [(name, params, parameters)] = asked
    assert (name, parameters) == ("gate", {"gates": GATES})
    assert params.gates.max_ood_drop == 0.10  # type: ignore[attr-defined]
    assert open_step("gate", str(run.path)) is not other


def test_progress_says_on_what_time_was_spent_apart_from_what_lies_between(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([107.0, 110.0, 112.0, 115.0])  # one a report
    step = open_step("frontier", str(run.path))
    step.reported = 100.0
    monkeypatch.setattr(steps.time, "time", lambda: next(clock))
    for state in ((0, 2, "members"), (1, 2, "members"), (2, 2, "members"), (0, 1, "probes")):
        step.progress(*state)
    # 7 s of imports; 3 s and 2 s for the two members; 3 s until probing began
    assert read_json(run.path / "progress.json")["seconds"] == {"": 10.0, "members": 5.0}


def test_progress_is_one_file_that_is_no_evidence(run: Run) -> None:
    step = open_step("frontier", str(run.path))
    step.progress(1, 3, "members")
    step.progress(2, 3, "members")
    state = read_json(run.path / "progress.json")
    assert state.keys() == {"step", "done", "total", "what", "seconds", "peak_bytes"}
    assert (state["step"], state["done"], state["total"], state["what"]) == ("frontier", 2, 3, "members")
    run.write_manifest()
    assert run.manifest()["files"] == {}


def test_a_figure_is_kept_with_its_hash_before_or_after_the_record_was_written(run: Run) -> None:
    step, figure = open_step("stress", str(run.path)), ReportFigure()
    figure.add_subplot().plot([0, 1])
    assert step.save_figure(figure, "before") is figure
    step.write()
    step.save_figure(figure, "after")
    names = {name: sha256_file(run.path / "figures" / f"{name}.png") for name in ("before", "after")}
    assert run.record("stress").data["published"] == {"figures/before.png": names["before"]}
    assert run.journal["stress"]["files"].items() >= {"figures/after.png": names["after"]}.items()
    assert names["before"] == names["after"]


def test_a_step_key_depends_on_step_parameters_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    key = step_key("gate", {"gates": GATES})
    assert key == step_key("gate", {"gates": dict(reversed(GATES.items()))})
    assert key == step_key("gate", {"gates": GATES}, steps.library_hash())
    assert key != step_key("stress", {"gates": GATES})
    assert key != step_key("gate", {"gates": GATES | {"max_ood_drop": 0.2}})
    monkeypatch.setattr(steps, "library_hash", lambda: "other")
    assert key != step_key("gate", {"gates": GATES})


def test_results_have_no_times_versions_or_paths(run: Run) -> None:
    record = open_step("frontier", str(run.path), gates=GATES).write({"probes": [PROBE]}, best=1.5)
    assert results([record]) == {
        "frontier": {"parameters": {"gates": GATES}, "summary": {"best": 1.5}, "probes": [PROBE.model_dump()]}
    }


# The candidate


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Record]]:
    """The records of a run whose selected condition was trained again at the seeds 3, 4 and 5."""
    folder = tmp_path_factory.mktemp("steps")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUSAI_CACHE", str(folder / "cache"))
        run = synthetic_run(folder / "evidence")
        yield {step: run.record(step) for step in run.journal}


@pytest.fixture
def unconfirmed(confirmed: dict[str, Record]) -> dict[str, Record]:
    """The same records without a fresh seed."""
    data = confirmed["confirmation"].data
    nothing = data | {"tables": {table: [] for table in data["tables"]}}
    return confirmed | {"confirmation": Record("confirmation", nothing, "")}


def selected(records: dict[str, Record]) -> dict[str, Any]:
    chosen: dict[str, Any] = records["selection"].summary["selected"]
    return chosen


def compared(records: dict[str, Record], groups: int) -> dict[str, Record]:
    """The records of a run that selected one of so many groups."""
    summary = {"counts": {"compared_groups": groups}, "selected": selected(records)}
    return records | {"selection": Record("selection", records["selection"].data | {"summary": summary}, "")}


def test_the_selected_group_is_that_of_its_condition_at_the_seeds_of_the_selection(
    confirmed: dict[str, Record],
) -> None:
    group = selected_group(selected(confirmed), confirmed.__getitem__)
    assert [(row.condition, row.seed) for row in group.members] == [("topk", seed) for seed in range(3)]
    assert group.pairs == confirmed["frontier"].table("pairs")
    assert group.why_none == ""
    assert selected_group(None, confirmed.__getitem__) == Candidate()


def test_the_candidate_is_the_group_at_its_fresh_seeds(
    confirmed: dict[str, Record], unconfirmed: dict[str, Record]
) -> None:
    fresh = candidate_of(selected(confirmed), compared(confirmed, 7).__getitem__)
    assert [(row.condition, row.seed) for row in fresh.members] == [("topk", seed) for seed in (3, 4, 5)]
    assert fresh.members == confirmed_members(confirmed.__getitem__)
    assert fresh.pairs == confirmed["confirmation"].table("pairs")
    assert (fresh.why_none, fresh.level) == ("", pytest.approx(0.95))
    same = candidate_of(selected(confirmed), compared(unconfirmed, 7).__getitem__)
    assert [row.seed for row in same.members] == [0, 1, 2]
    assert same.pairs == confirmed["frontier"].table("pairs")
    assert same.level == pytest.approx(1 - 0.05 / 7)


@pytest.mark.parametrize(
    ("groups", "fresh", "chosen"),
    # two-sided intervals with 0.025 on each side, shared among all groups that were compared
    [(1, (0.95, 0.95), (0.95, 0.95)), (7, (0.95, 1 - 0.05 / 7), (1 - 0.05 / 7, 1 - 0.05 / 7)),
     (50, (0.95, 0.999), (0.999, 0.999)), (0, (0.95, 0.95), (0.95, 0.95))],
)  # fmt: skip
def test_numbers_that_selected_the_group_share_the_error_rate_and_fresh_seeds_do_not(
    confirmed: dict[str, Record], unconfirmed: dict[str, Record], groups: int, fresh: Any, chosen: Any
) -> None:
    """The data sets are those that selected it, with or without fresh seeds."""
    assert levels_of(compared(confirmed, groups).__getitem__) == pytest.approx(fresh)
    assert levels_of(compared(unconfirmed, groups).__getitem__) == pytest.approx(chosen)


@pytest.mark.parametrize(
    ("section", "change", "what"),
    [("model", {"seed": 1}, "model"), ("activations", {"training_rows": 1}, "activations"),
     ("texts", {"training": ["161_agnews_0"]}, "training texts")],
)  # fmt: skip
def test_a_group_that_was_trained_on_other_things_has_no_members_here(
    confirmed: dict[str, Record], section: str, change: dict[str, Any], what: str
) -> None:
    activations = confirmed["activations"].data
    theirs = activations["parameters"] | {section: activations["parameters"][section] | change}
    there = {"c/run_x/activations": Record("activations", activations | {"parameters": theirs}, ""),
             "c/run_x/frontier": confirmed["frontier"]}  # fmt: skip
    chosen = selected(confirmed) | {"source": "c/run_x/frontier"}
    for candidate in (selected_group, candidate_of):
        found = candidate(chosen, (confirmed | there).__getitem__)
        assert found.members == ()
        assert found.why_none == f"the candidate of c/run_x/frontier was trained on other {what} than this run's"


def test_an_import_has_no_weights_to_train_again(confirmed: dict[str, Record]) -> None:
    imported = {"imported/c/f": Record("f", {"parameters": {}, "tables": {}}, "")}
    found = selected_group({"source": "imported/c/f", "condition": "topk"}, (confirmed | imported).__getitem__)
    assert (found.members, found.why_none) == ((), "the candidate is of imported/c/f, an import without weights")
