"""Decisions taken again from the records of a run, and compared with those of earlier ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stand_ins import synthetic_run

from husai_lib.decisions import of_run as decisions
from husai_lib.decisions.selection import select
from husai_lib.earlier.imports import import_earlier
from husai_lib.errors import DataError
from husai_lib.evidence.runs import Record, Run
from husai_lib.params.rules import SelectionParams


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("decisions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUSAI_CACHE", str(folder / "cache"))
        return synthetic_run(folder / "evidence")


def records(run: Run) -> dict[str, Record]:
    return {step: run.record(step) for step in run.journal}


def test_selection_and_gates_come_out_as_they_are_recorded(run: Run) -> None:
    rules = SelectionParams.model_validate(run.record("selection").data["parameters"]["selection"])
    selection, policy = (
        select(decisions.candidates_for(rules, run.find_record), rules),
        decisions.policy_of(run.find_record),
    )
    assert selection.rows() == run.record("selection").table("candidates")
    assert list(policy.gates) == run.record("gate").table("gates")
    assert policy.verdict == run.record("gate").summary["verdict"]


def test_the_selected_group_is_that_of_its_condition_with_the_baselines_of_its_run(run: Run) -> None:
    chosen = run.record("selection").summary["selected"]
    group, baselines = decisions.selected_group(chosen, run.find_record)
    assert [(row.condition, row.seed) for row in group] == [(chosen["condition"], seed) for seed in range(3)]
    assert baselines == run.record("baselines").table("members")
    assert decisions.selected_group(None, run.find_record) == ([], baselines)


def test_a_candidate_of_an_earlier_run_brings_that_runs_members_and_baselines(run: Run, tmp_path: Path) -> None:
    chosen = run.record("selection").summary["selected"]
    later = Run(run.path.parent.parent / "later" / "run_x")
    there = chosen | {"source": f"{run.name}/frontier"}
    assert decisions.selected_group(there, later.find_record) == decisions.selected_group(chosen, run.find_record)


def test_a_candidate_of_an_import_has_no_members_of_ours(run: Run) -> None:
    chosen = {"source": "imported/c/frontier", "condition": "topk"}
    assert decisions.selected_group(chosen, run.find_record)[0] == []


def test_a_cycle_does_not_improve_on_itself_and_loses_no_control(run: Run) -> None:
    rows = decisions.against(
        [run.name], decisions.policy_of(run.find_record), run.find_record, lambda name: records(run)
    )
    deltas = [row for row in rows if row.criterion == 1]
    assert [(row.metric, row.difference, row.outcome) for row in deltas] == [
        ("saebench_delta", 0.0, "not met"), ("cebench_delta", 0.0, "not met"),
    ]  # fmt: skip
    assert all(row.difference_low < 0 < row.difference_high for row in deltas)
    assert {row.verdict_here == row.verdict_there for row in rows if row.criterion == 2} == {True}


def test_only_the_gates_that_were_required_stand(run: Run) -> None:
    there = records(run)
    there["gate"] = Record("gate", json.loads(json.dumps(there["gate"].data)), "0")
    rows = there["gate"].data["tables"]["gates"]
    rows[0]["required"] = False
    found = decisions.earlier_standing(run.name, lambda name: there)
    assert found.gates == {row["gate"]: (row["verdict"], row["threshold"]) for row in rows[1:]}


def imported(tmp_path: Path, **files: object) -> dict[str, Record]:
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    made = import_earlier([tmp_path / f"{name}.json" for name in files], "old", tmp_path / "evidence")
    return records(made)


POLICY = {
    "run_metadata": {"run_id": "run_20260101T000000Z"},
    "inputs": {},
    "thresholds": {"min_trained_random_delta": 0.0, "min_trained_random_lcb": 0.0, "min_transcoder_delta": 0.0,
                   "max_ood_drop": 0.1, "min_external_delta": 0.0, "require_transcoder": True, "require_ood": True,
                   "require_external": True},
    "metrics": {"trained_random_delta": 0.001, "trained_random_delta_lcb": 0.0001, "transcoder_delta": None,
                "ood_drop": None, "external_delta": -0.13},
    "gates": {"random_model": True, "transcoder": False, "ood": False, "external": False, "pass_all": False},
}  # fmt: skip


def test_an_import_stands_by_its_stated_gates_and_has_no_delta_without_a_selection(run: Run, tmp_path: Path) -> None:
    old = imported(tmp_path, policy=POLICY)
    rows = decisions.against(["imported/old"], decisions.policy_of(run.find_record), run.find_record, lambda name: old)
    assert {row.outcome for row in rows if row.criterion == 1} == {"not comparable"}
    there = {row.metric: row.verdict_there for row in rows if row.criterion == 2}
    assert there["random_model"] == "pass"
    assert there["external"] == "fail"


def test_an_import_of_two_policies_cannot_be_compared_with(tmp_path: Path) -> None:
    other = POLICY | {"run_metadata": {"run_id": "run_20260102T000000Z"}}
    with pytest.raises(DataError, match="several verdicts"):
        decisions.earlier_standing("imported/old", lambda name: imported(tmp_path, a=POLICY, b=other))


def test_a_source_of_another_run_must_be_measured_on_what_this_run_measures_on(run: Run) -> None:
    rules = SelectionParams(sources=["frontier", f"{run.name}/frontier"])
    assert len(decisions.candidates_for(rules, run.find_record)) == 12
    other = dict(records(run))
    other["baselines"] = Record("baselines", json.loads(json.dumps(other["baselines"].data)), "0")
    other["baselines"].data["parameters"]["probing"]["ks"] = [1]
    with pytest.raises(DataError, match=r"probing ks is \[1, 2, 5\] there and \[1\] here"):
        decisions.candidates_for(rules, lambda name: run.find_record(name) if "/" in name else other[name])


def test_gates_name_the_record_of_the_candidate(run: Run) -> None:
    chosen = run.record("selection").summary["selected"]
    moved = Record("selection", {"summary": {"selected": chosen | {"source": f"{run.name}/frontier"}}}, "0")

    def read(name: str) -> Record:
        return moved if name == "selection" else run.find_record(name)

    sources = {row.gate: row.source for row in decisions.policy_of(read).gates}
    assert sources["external_saebench"] == f"{run.name}/frontier"
    assert sources["ood"] == "stress"
