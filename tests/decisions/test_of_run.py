"""Decisions taken again from the records of a run, and compared with those of earlier ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stand_ins import synthetic_run

from husai_lib.decisions import of_run as decisions
from husai_lib.decisions.gates import Judged, evaluate
from husai_lib.decisions.selection import select
from husai_lib.earlier.imports import import_earlier
from husai_lib.errors import DataError
from husai_lib.evidence.rows.base import RunTables
from husai_lib.evidence.rows.controls import ControlRow, control_names
from husai_lib.evidence.runs import Record, Run
from husai_lib.evidence.steps import baseline_sweep, candidate_of, condition_of
from husai_lib.params.conditions import baseline_shapes
from husai_lib.params.rules import GateParams, SelectionParams


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


def changed(run: Run, **steps: Any) -> Any:
    """Read as `run.find_record` does, but give these records as changed by a function of their data."""

    def read(name: str) -> Record:
        record = run.find_record(name)
        if name not in steps:
            return record
        data = json.loads(json.dumps(record.data))
        steps[name](data)
        return Record(record.step, data, record.sha256)

    return read


def without_rows(data: dict[str, Any]) -> None:
    """The record of a confirmation that trained nothing."""
    data["tables"] = {table: [] for table in data["tables"]}


def chosen_of(run: Run) -> dict[str, Any]:
    selected: dict[str, Any] = run.record("selection").summary["selected"]
    return selected


def test_the_gates_judge_the_fresh_seeds_of_the_selected_condition_and_nothing_else(run: Run) -> None:
    judged, fresh = decisions.judged_group(chosen_of(run), run.find_record), run.record("confirmation")
    assert [(row.condition, row.seed) for row in judged.members] == [("topk", 3), ("topk", 4), ("topk", 5)]
    assert [(row.condition, row.seed) for row in judged.baselines] == [
        ("baseline", 3),
        ("baseline", 4),
        ("baseline", 5),
    ]
    assert {*judged.members, *judged.baselines} == {*fresh.table("members")}
    assert {(row.condition, row.seed) for row in judged.probes} == {("topk", 3), ("topk", 4), ("topk", 5)}
    assert judged.group == fresh.table("groups")[0]
    assert (judged.source, judged.ks) == ("confirmation", [1, 2, 5])
    # Two conditions were compared, on the same data sets: 1 - 0.05 / 2
    assert (judged.level, judged.sets_level) == pytest.approx((0.95, 0.975))


def test_fresh_seeds_are_judged_by_the_settings_they_were_probed_with(run: Run) -> None:
    def probed_otherwise(data: dict[str, Any]) -> None:
        data["parameters"]["probing"] |= {"choose_k": "test", "ks": [1]}

    judged = decisions.judged_group(chosen_of(run), changed(run, confirmation=probed_otherwise))
    assert (judged.choose_k, judged.ks) == ("test", [1])
    judged = decisions.judged_group(chosen_of(run), changed(run, baselines=probed_otherwise))
    assert (judged.choose_k, judged.ks) == ("validation", [1, 2, 5])


def test_without_fresh_seeds_the_gates_judge_the_selected_ones_at_a_higher_level(run: Run) -> None:
    judged = decisions.judged_group(chosen_of(run), changed(run, confirmation=without_rows))
    assert [(row.condition, row.seed) for row in judged.members] == [("topk", seed) for seed in range(3)]
    assert judged.baselines == run.record("baselines").table("members")
    assert {(row.condition, row.seed) for row in judged.probes} == {("topk", seed) for seed in range(3)}
    assert judged.group == run.record("frontier").table("groups")[0]
    assert (judged.source, judged.level, judged.sets_level) == ("frontier", pytest.approx(0.975), pytest.approx(0.975))


def test_luck_of_the_selected_seeds_does_not_pass_a_gate_that_fresh_seeds_fail(run: Run) -> None:
    """The winner's curse: the selection saw +0.5, fresh seeds see nothing."""

    def unlucky(data: dict[str, Any]) -> None:
        for row, delta in zip(data["tables"]["members"][:3], (-0.1, 0.0, 0.1), strict=True):
            row["cebench_delta"] = delta

    def verdict(read: Any) -> tuple[str, float | None]:
        policy = evaluate(decisions.judged_group(chosen_of(run), read), [], GateParams())
        [row] = [row for row in policy.gates if row.gate == "external_cebench"]
        return row.verdict, row.value

    assert verdict(run.find_record) == ("pass", pytest.approx(0.46))
    assert verdict(changed(run, confirmation=unlucky)) == ("fail", pytest.approx(0.0))


# A sweep of the consistency objective as a source

SWEPT = {"topk_lambda_0": 0.0, "topk_lambda_0_5": 0.001}
"""The groups of a sweep: the same SAEs as those of the frontier without objective, and better ones with it."""


def with_sweep(run: Run, **steps: Any) -> Any:
    """Read as `run.find_record` does, with a record of a sweep beside the frontier."""
    read = changed(run, **steps)

    def sweep() -> Record:
        record = run.find_record("frontier")
        data = json.loads(json.dumps(record.data))
        tables: dict[str, list[Any]] = {"members": []}
        for name, better in SWEPT.items():
            for row in data["tables"]["members"][:3]:
                other = {column: row[column] + better for column in ("saebench_delta", "cebench_delta")}
                if better:
                    other |= {"reference": 100 + row["seed"], "weights_sha256": row["weights_sha256"][::-1]}
                tables["members"].append(row | other | {"condition": name})
        [condition] = [one for one in data["parameters"].pop("conditions") if one["name"] == "topk"]
        data["parameters"]["consistency"] = {"conditions": [condition], "lambdas": [0.0, 0.5],
                                             "references": [100, 101, 102]}  # fmt: skip
        return Record("consistency", data | {"tables": tables}, record.sha256)

    return lambda name: sweep() if name == "consistency" else read(name)


BOTH = SelectionParams(sources=["frontier", "consistency"], bootstraps=0)


def test_saes_that_the_frontier_and_a_sweep_share_are_candidates_once(run: Run) -> None:
    found = decisions.candidates_for(BOTH, with_sweep(run))
    assert sorted({(one.source, one.condition) for one in found}) == [
        ("consistency", "topk_lambda_0_5"), ("frontier", "standard"), ("frontier", "topk"),
    ]  # fmt: skip
    assert len({one.weights_sha256 for one in found}) == len(found) == 9
    assert select(found, BOTH).summary()["counts"]["compared_groups"] == 3
    alone = decisions.candidates_for(BOTH.model_copy(update={"sources": ["consistency"]}), with_sweep(run))
    assert {one.condition for one in alone} == {*SWEPT}


def test_a_group_is_left_out_whole_or_not_at_all(run: Run) -> None:
    """A sweep that has the SAEs of the frontier and further seeds of them takes their place."""

    def read(name: str) -> Record:
        record = run.find_record("frontier" if name == "long" else name)
        if name != "long":
            return record
        data = json.loads(json.dumps(record.data))
        rows = [row for row in data["tables"]["members"] if row["condition"] == "topk"]
        more = [row | {"seed": row["seed"] + 10, "weights_sha256": row["weights_sha256"][::-1]} for row in rows[:2]]
        return Record("long", data | {"tables": {"members": [*rows, *more]}}, record.sha256)

    rules = SelectionParams(sources=["frontier", "long"], bootstraps=0)
    found = decisions.candidates_for(rules, read)
    assert {(one.source, one.condition) for one in found} == {("frontier", "standard"), ("long", "topk")}
    assert sorted(one.seed or 0 for one in found if one.condition == "topk") == [0, 1, 2, 10, 11]
    each = decisions.candidates_for(rules.model_copy(update={"grouping": "seed", "mode": "mean"}), read)
    assert len({one.weights_sha256 for one in each}) == len(each) == 8


def test_the_baselines_of_fresh_seeds_have_the_recipe_of_those_of_the_selection(run: Run) -> None:
    """Those are trained as long as the longest condition of their width and k."""

    def longer(data: dict[str, Any]) -> None:
        for one in data["parameters"]["conditions"]:
            one["training_samples"] *= 1 if one["name"] == "topk" else 3

    read = changed(run, baselines=longer)
    chosen = chosen_of(run)
    conditions, seeds = baseline_sweep(chosen, [7, 8], read)
    own = condition_of(chosen, read)
    [shape] = baseline_shapes(conditions).values()
    assert seeds == [7, 8]
    assert shape.training_samples == 3 * own.training_samples
    assert (shape.d_sae, shape.k) == (own.d_sae, own.k)


def test_a_group_of_a_sweep_can_be_selected(run: Run) -> None:
    selected = select(decisions.candidates_for(BOTH, with_sweep(run)), BOTH).summary()["selected"]
    assert (selected["source"], selected["condition"]) == ("consistency", "topk_lambda_0_5")
    objective = condition_of(selected, with_sweep(run)).objective
    assert objective is not None
    assert (objective.weight, objective.references) == (0.5, [100, 101, 102])


def test_the_gates_judge_the_fresh_seeds_of_a_group_of_a_sweep(run: Run) -> None:
    def confirmed(data: dict[str, Any]) -> None:
        for row in [row for rows in data["tables"].values() for row in rows]:
            if row.get("condition") == "topk":
                row.update({"condition": "topk_lambda_0_5"} | ({"reference": 100} if "k" in row else {}))

    chosen = select(decisions.candidates_for(BOTH, with_sweep(run)), BOTH).summary()["selected"]
    judged = decisions.judged_group(chosen, with_sweep(run, confirmation=confirmed))
    assert [(row.condition, row.seed, row.reference) for row in judged.members] == [
        ("topk_lambda_0_5", seed, 100) for seed in (3, 4, 5)
    ]
    assert judged.group is not None
    assert (judged.group.condition, judged.source, len(judged.baselines)) == ("topk_lambda_0_5", "confirmation", 3)


def test_the_gates_on_pwmcc_read_unrelated_seeds_only(run: Run) -> None:
    """Seeds that all copy one reference agree by construction, so every gate on stability is missing."""
    candidate = candidate_of(chosen_of(run), run.find_record)

    def verdicts(references: list[int | None]) -> dict[str, str]:
        members = [row.model_copy(update={"reference": reference})
                   for row, reference in zip(candidate.members, references, strict=True)]  # fmt: skip
        stress = run.record("stress")
        tables = {("stress", name): stress.table(name) for name in stress.data["tables"]}
        parameters = json.loads((run.path / "parameters.json").read_text())
        of = RunTables(tables, parameters, replace(candidate, members=members))
        controls = [ControlRow.derive("stress", of, control=name) for name in control_names(of.parameters)]
        judged = replace(decisions.judged_group(chosen_of(run), run.find_record), members=members)
        found = evaluate(judged, controls, GateParams()).gates
        return {row.gate: row.verdict for row in found if row.metric == "pwmcc"}

    assert verdicts([None, None, None]) == {"random_model": "pass", "random_decoder": "pass", "transcoder": "fail"}
    assert verdicts([100, 101, 102]) == verdicts([None, None, None])
    assert {*verdicts([100, 100, 100]).values()} == {"missing"}
    assert "pass" not in verdicts([100, 101, 100]).values()  # two references give no bound


def test_nothing_is_judged_without_a_selection(run: Run) -> None:
    assert decisions.judged_group(None, run.find_record) == Judged(level=0.95, sets_level=pytest.approx(0.975))


def test_a_candidate_of_an_earlier_run_brings_that_runs_members_and_baselines(run: Run) -> None:
    read = changed(run, confirmation=without_rows)
    there = chosen_of(run) | {"source": f"{run.name}/frontier"}
    own = decisions.judged_group(chosen_of(run), read)
    assert decisions.judged_group(there, read) == replace(own, source=f"{run.name}/frontier")


def test_a_candidate_of_an_import_has_no_members_of_ours(run: Run) -> None:
    chosen = {"source": "imported/c/frontier", "condition": "topk"}
    judged = decisions.judged_group(chosen, run.find_record)
    assert (judged.members, judged.probes, judged.group) == ((), (), None)
    notes = {row.note for row in evaluate(judged, [], GateParams()).gates if row.gate.startswith("external_")}
    assert notes == {"the candidate is of an import: its numbers are no measurements of ours"}


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
    def moved(data: dict[str, Any]) -> None:
        data["summary"]["selected"]["source"] = f"{run.name}/frontier"

    for read, source in (
        (run.find_record, "confirmation"),
        (changed(run, selection=moved), "confirmation"),
        (changed(run, selection=moved, confirmation=without_rows, stress=without_rows), f"{run.name}/frontier"),
    ):
        sources = {row.gate: row.source for row in decisions.policy_of(read).gates}
        assert {sources[name] for name in sources if name.startswith("external")} == {source}
        assert sources["ood"] == "stress"


def test_only_the_rules_of_2026_02_keep_duplicate_prompts(run: Run) -> None:
    def duplicated(data: dict[str, Any]) -> None:
        for row in data["tables"]["members"]:
            row["saebench_delta_keep"] = -0.5

    read = changed(run, frontier=duplicated)
    now, then = (
        decisions.candidates_for(rules, read) for rules in (SelectionParams(), SelectionParams(rules="2026-02"))
    )
    assert {one.saebench_delta for one in then} == {-0.5}
    assert [one.saebench_delta for one in now] == [row.saebench_delta for row in read("frontier").table("members")]
    assert [replace(one, saebench_delta=0.0) for one in now] == [replace(one, saebench_delta=0.0) for one in then]


def test_a_run_of_before_confirmation_cannot_be_compared_with(run: Run) -> None:
    there = {name: record for name, record in records(run).items() if name != "confirmation"}
    with pytest.raises(DataError, match=f"{run.name} has no record of step 'confirmation'"):
        decisions.earlier_standing(run.name, lambda name: there)
