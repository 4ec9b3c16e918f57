"""Files of earlier cycles, made by hand, as typed rows; and whatever is broken."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from earlier_files import (
    EIGHT,
    FILES,
    NAN,
    RUN,
    SCALING_RUN,
    assignment_v2,
    assignment_v3,
    frontier,
    group,
    policy,
    read,
    scaling,
    selection,
)
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from husai_lib.earlier.caveats import caveats
from husai_lib.earlier.records import read_earlier
from husai_lib.earlier.replay import replays, rule_changes
from husai_lib.errors import DataError
from husai_lib.evidence.runs import Record


def rows_of(data: Any, table: str = "earlier_members") -> list[dict[str, Any]]:
    return [row.model_dump() for row in read(data)[0][table]]


def gates_of(data: Any, column: str = "stated") -> dict[str, Any]:
    return {row["gate"]: row[column] for row in rows_of(data, "earlier_gates")}


@pytest.mark.parametrize("kind", FILES)
def test_each_kind_is_recognised_by_its_content_and_names_its_run(kind: str) -> None:
    tables, summary = read(FILES[kind]())
    assert (summary["kind"], summary["run_id"]) == (kind, SCALING_RUN if kind == "scaling" else RUN)
    assert tables
    assert all(rows for rows in tables.values())


def test_a_frontier_record_is_read_as_it_stands() -> None:
    assert rows_of(frontier(7))[0] == {
        "position": 0, "condition": "topk", "architecture": "topk", "seed": 7, "d_sae": 1024, "k": 32,
        "model": "pythia", "hook_name": "blocks.0", "explained_variance": 0.75, "l0": 32.0, "mse": 0.007,
        "saebench_delta": -0.04, "llm_auc": 0.7, "data_sets": ",".join(EIGHT), "ks": "1,5", "results_path": "/t/a",
        "cebench_interpretability": 8.0, "cebench_delta": -40.0, "cebench_baseline": "res-sm blocks.0",
        "cebench_baseline_score": 48.0, "pairs": "stories, 200 pairs", "evaluated_as": "topk", "failed": "",
        "checkpoint": f"results/{RUN}/checkpoints/topk_seed7/sae.pt", "weights_sha256": "ab", "note": "",
    }  # fmt: skip


def test_a_scaling_record_takes_its_shape_from_its_own_training() -> None:
    row = rows_of(scaling())[0]
    assert (row["condition"], row["seed"], row["d_sae"], row["k"]) == ("tok10_layer0_dsae2048", 42, 2048, 32)
    assert (row["hook_name"], row["architecture"], row["explained_variance"]) == ("blocks.1", "topk", 0.99)
    assert row["note"] == "no cebench_interpretability, cebench_delta, cebench_baseline_score"


def test_what_a_record_lacks_is_null_and_noted_and_no_record_is_dropped() -> None:
    data = frontier(1, 2, 3, 4)
    data["records"][1] |= {"saebench": None, "saebench_returncode": 1}
    data["records"][2] |= {"seed": None, "train_metrics": {"explained_variance": NAN, "mse": 0.1}}
    del data["records"][3]["checkpoint"]
    rows = rows_of(data)
    assert [row["position"] for row in rows] == [0, 1, 2, 3]
    assert (rows[1]["saebench_delta"], rows[1]["failed"]) == (None, "saebench")
    assert rows[1]["note"] == "no saebench_delta, llm_auc"
    assert (rows[2]["explained_variance"], rows[2]["l0"], rows[2]["condition"]) == (None, None, "topk")
    assert rows[2]["note"] == "no seed, explained_variance, l0"
    assert rows[3]["checkpoint"] == ""


def test_a_delta_of_zero_is_a_value() -> None:
    data = frontier(1, delta=0.0)
    data["records"][0]["saebench"]["best_minus_llm_auc"] = -0.5  # an older place, read only where the first is missing
    assert rows_of(data)[0]["saebench_delta"] == 0.0


def test_the_target_of_an_sae_without_a_k_is_that_of_the_file() -> None:
    data = frontier(1)
    for bench in ("saebench", "cebench"):
        data["records"][0][bench]["sae_meta"]["k"] = None
    assert rows_of(data)[0]["k"] == 32


def test_assignment_v3_gives_one_member_a_selected_checkpoint_and_all_of_the_sweep() -> None:
    assert len(rows_of(assignment_v3(), "earlier_sweep")) == 2
    (row,) = rows_of(assignment_v3())
    assert (row["condition"], row["seed"], row["architecture"]) == ("assignv3_lambda0.0", 123, "topk")
    assert (row["explained_variance"], row["mse"], row["l0"], row["d_sae"], row["k"]) == (0.9, 0.5, 8.0, 128, 8)
    assert (row["saebench_delta"], row["cebench_delta"]) == (-0.04, -40.0)


def test_a_sweep_keeps_what_its_acceptance_rests_on() -> None:
    row = rows_of(assignment_v2(), "earlier_sweep")[1]
    expected = {"lambda_consistency": 0.2, "d_sae": 128, "k": 8, "n_seeds": 5, "pairs": 10, "pwmcc": 0.5,
                "control": 0.25, "delta": 0.25, "delta_low": 0.04, "explained_variance": 0.9,
                "alignment": 0.8}  # fmt: skip
    assert {key: row[key] for key in expected} == expected
    assert (read(assignment_v2())[1]["seed_ref"], read(assignment_v2())[1]["best_lambda"]) == (42, 0.2)


def test_an_acceptance_keeps_what_it_stated() -> None:
    stated = {"delta_pwmcc": "pass", "delta_lcb": "pass", "ev_drop": "pass", "external": "fail", "pass_all": "fail"}
    assert gates_of(assignment_v2()) == stated
    assert gates_of(assignment_v2(), "value")["external"] == -0.1
    assert gates_of(assignment_v2(), "direction")["ev_drop"] == "below"
    assert gates_of(assignment_v2(), "required")["external"] is False  # v2 required no external result
    v3 = gates_of(assignment_v3())
    assert v3 == {"internal_lcb": "pass", "ev_drop": "fail", "saebench": "pass", "cebench": "fail", "pass_all": "fail"}
    assert gates_of(assignment_v3(), "value")["ev_drop"] == 0.2
    assert gates_of(assignment_v3(), "required")["cebench"] is True


def test_a_selection_gives_its_ranked_groups_and_a_lone_candidate_one() -> None:
    rows, summary = rows_of(selection(), "earlier_groups"), read(selection())[1]
    assert [(row["rank"], row["condition"], row["n_seeds"]) for row in rows] == [(0, "topk", 3), (1, "relu", 3)]
    assert (rows[0]["saebench_delta"], rows[0]["saebench_delta_std"]) == (-0.04, 0.003)  # the mean, not the bound
    assert (rows[0]["cebench_delta"], rows[0]["cebench_delta_low"]) == (-40.0, None)
    assert summary["config"] == {"uncertainty_mode": "lcb"}
    assert summary["counts"]["total_candidates"] == 6
    assert len(rows_of(group(), "earlier_groups")) == 1
    assert "config" not in read(group())[1]


def test_a_policy_keeps_what_it_stated() -> None:
    assert gates_of(policy()) == {
        "random_model": "pass", "transcoder": "fail", "ood": "pass", "external_saebench": "fail",
        "external_cebench": "fail", "external": "fail", "pass_all": "fail",
    }  # fmt: skip
    assert "external_saebench" not in gates_of(policy(mode=None))
    bounds = gates_of(policy(), "bound")
    assert (bounds["random_model"], bounds["external_saebench"], bounds["ood"]) == (0.05, -0.04, None)
    assert gates_of(policy(), "note")["external"] == "by external_mode joint"
    assert gates_of(policy(transcoder_delta=NAN), "value")["transcoder"] is None
    assert gates_of(policy(require_ood=False), "required")["ood"] is False


def test_a_gate_judged_by_its_bound_has_the_threshold_of_bounds() -> None:
    data = policy()
    data["thresholds"] |= {"min_saebench_delta": -0.5, "min_saebench_delta_lcb": -0.1}
    assert gates_of(data, "threshold")["external_saebench"] == -0.1
    data["thresholds"]["use_external_lcb"] = False
    assert gates_of(data, "threshold")["external_saebench"] == -0.5


# Bad input


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "none of the records that can be read"),
        ("text", "none of the records that can be read"),
        (None, "none of the records that can be read"),
        ({}, "none of the records that can be read"),
        ({"records": []}, "none of the records that can be read"),
        ({"id_result": {}, "ood_result": {}, "ood_drop": 0.1}, "none of the records that can be read"),
        (frontier() | {"records": [*frontier()["records"], None]}, "a.json: records is no list of objects"),
        (assignment_v2() | {"results": [{"lambda_consistency": 0.1, "k": 1}]}, "a.json, record 0: d_sae"),
        (group() | {"selection": {}}, "joint_score"),
        (policy(ood_drop="low"), "a.json, gate ood: value = 'low'"),
    ],
)
def test_an_unknown_or_damaged_file_is_refused_in_one_sentence(data: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read(data)
    assert str(caught.value).startswith("a.json")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("seed", "42"), ("seed", 1.5), ("seed", True), ("checkpoint", 3),
                                            ("d_sae", 0), ("d_sae", 10**300)])  # fmt: skip
def test_a_value_of_a_wrong_type_is_named_with_its_record(key: str, value: Any) -> None:
    data = frontier()
    data["records"][0][key] = value
    with pytest.raises(DataError, match=rf"^a\.json, record 0: {key} = "):
        read(data)


@pytest.mark.parametrize("ks", [["x"], [[1]], "1;2"])
def test_numbers_of_latents_that_are_no_numbers_are_refused(ks: Any) -> None:
    data = frontier()
    data["records"][0]["saebench"]["config"]["ks"] = ks
    with pytest.raises(DataError, match=r"^a\.json, record 0: ks = "):
        read(data)


@pytest.mark.parametrize(
    "content", [b"", b"not JSON", b"\xff\xfe{", b"[" * 100_000, b'{"a": "\\ud800"}', b'{"a": 1e999}', b"[1,"]
)
def test_what_is_no_json_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match=r"^a\.json is empty, cut off or no JSON"):
        read_earlier(content, "a.json")


ODD = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.just([]), st.just({}),
                st.just([1]), st.just([{}]), st.just({"a": 1}), st.just(10**400))  # fmt: skip


def spoil(value: Any, data: st.DataObject) -> Any:
    """A copy with one value anywhere in it replaced by an odd one."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    children = list(inside)
    if not children or data.draw(st.integers(0, 5)) == 0:
        return data.draw(ODD)
    key, inner = data.draw(st.sampled_from(children))
    changed = copy.copy(value)
    changed[key] = spoil(inner, data)
    return changed


@settings(deadline=None, max_examples=examples(200))
@given(kind=st.sampled_from(sorted(FILES)), data=st.data())
def test_whatever_one_value_is_replaced_by_a_file_is_read_or_refused(kind: str, data: st.DataObject) -> None:
    inputs = {"frontier_results": [f"x/{RUN}/results.json"]}
    weights = {"weight_saebench": 0.5, "weight_cebench": 0.5, "weight_train_ev": 0.1}
    files = {name: make() for name, make in FILES.items()} | {"selection": selection(**inputs, **weights)}
    try:
        readings = {name: read(spoil(file, data) if name == kind else file) for name, file in files.items()}
    except DataError as error:
        assert str(error).startswith("a.json")  # noqa: PT017
        return
    records = {
        name: Record(name, {"summary": summary, "tables": {table: [row.model_dump() for row in rows]
                                                           for table, rows in tables.items()}}, "")
        for name, (tables, summary) in readings.items()
    }  # fmt: skip
    json.dumps([record.data for record in records.values()], allow_nan=False)  # raises for NaN
    assert all(row.record in records and row.rows > 0 for row in caveats(records))
    assert len(replays("imported/c", records)) <= 1
    rule_changes("imported/c", records)
