"""Records of earlier cycles, made by hand and golden, as rows, caveats and evidence; and whatever is broken."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from husai_lib.earlier.imports import Earlier, audit_import, caveats, import_earlier, read_earlier
from husai_lib.errors import DataError, EvidenceError, HusaiError, ParameterError
from husai_lib.evidence.rows import CaveatRow
from husai_lib.evidence.runs import Run, earlier_run
from husai_lib.files import REPOSITORY

RUN = "run_20260214T000000Z"
EIGHT = [f"set_{n}" for n in range(8)]
NAN = float("nan")
CEBENCH_SCORE = "interpretability_score_mean_max"
GOLDEN = REPOSITORY.parent / "shared" / "golden"


# ---------------------------------------------------------------------------------------------
# Hand-made files
# ---------------------------------------------------------------------------------------------


def probing(
    delta: float | None = -0.04,
    llm: float = 0.7,
    names: list[str] | None = None,
    used: str = "topk",
    folder: str = "/t/a",
) -> dict[str, Any]:
    names = EIGHT if names is None else names
    return {
        "config": {"model_name": "pythia", "hook_name": "blocks.0", "ks": [1, 5], "dataset_names": names,
                   "results_path": folder, "setting": "normal"},
        "sae_meta": {"architecture": "topk", "eval_architecture": used, "d_sae": 1024, "k": 32},
        "summary": {
            "llm_metrics": {"llm_test_auc": llm},
            "sae_metrics_by_k": [{"k": 1, "test_auc": 0.6}, {"k": 5, "test_auc": 0.66}],
            "best_by_auc": {"k": 5, "test_auc": 0.66},
            "best_minus_llm_auc": delta,
        },
    }  # fmt: skip


def contrastive(score: float = 8.0, baseline: float = 48.0, sha256: str | None = "ab") -> dict[str, Any]:
    return {
        "config": {"model_name": "pythia", "hook_name": "blocks.0", "dataset_name": "stories", "dataset_rows_used": 200,
                   "checkpoint_sha256": sha256},
        "sae_meta": {"architecture": "topk", "d_sae": 1024, "k": 32},
        "custom_metrics": {CEBENCH_SCORE: score},
        "matched_baseline_metrics": {CEBENCH_SCORE: baseline},
        "matched_baseline_payload": {"sae_release": "res-sm", "sae_id": "blocks.0"},
        "delta_vs_matched_baseline": {CEBENCH_SCORE: score - baseline},
    }  # fmt: skip


def frontier(*seeds: int, **probed: Any) -> dict[str, Any]:
    records = [
        {
            "architecture": "topk", "seed": seed, "checkpoint": f"results/{RUN}/checkpoints/topk_seed{seed}/sae.pt",
            "train_metrics": {"mse": seed / 1000, "explained_variance": 0.75, "l0": 32.0},
            "saebench": probing(**probed), "cebench": contrastive(), "saebench_returncode": 0, "cebench_returncode": 0,
        }
        for seed in seeds or (42,)
    ]  # fmt: skip
    return {"config": {"run_id": RUN, "k": 32, "d_sae": 1024}, "records": records, "aggregate": {}}


def scaling() -> dict[str, Any]:
    record = {
        "condition_id": "tok10_layer0_dsae2048_seed42", "hook_name": "blocks.1", "d_sae": 2048, "seed": 42,
        "train_summary": {"config": {"k": 16}, "final_metrics": {"mse": 0.1, "explained_variance": 0.99, "l0": 16.0}},
        "saebench": probing(names=[*EIGHT, *(f"more_{n}" for n in range(8))]), "cebench": None,
        "checkpoint": "results/run_20260215T000000Z/sae.pt",
    }  # fmt: skip
    return {"config": {"k": 32}, "records": [record], "aggregates": {}}


def lambdas(key: str = "records") -> dict[str, Any]:
    sweep = [
        {
            "lambda_consistency": strength, "d_sae": 128, "k": 8, "n_models": 5,
            "trained_pwmcc": {"mean": 0.3 + strength, "n": 10}, "random_pwmcc": {"mean": 0.25, "n": 10},
            "delta_pwmcc": 0.05 + strength, "delta_pwmcc_ci_low_conservative": 0.04,
            "explained_variance": {"mean": 0.9}, "alignment_to_ref": {"mean": 0.8},
        }
        for strength in (0.0, 0.2)
    ]  # fmt: skip
    return {"run_metadata": {"run_id": RUN}, "config": {"seed_ref": 42, "modulus": 113, "k": 8}, key: sweep}


def assignment_v2(external: float | None = -0.1, **stated: Any) -> dict[str, Any]:
    acceptance = {
        "best_lambda": 0.2, "best_delta_pwmcc": 0.25, "best_delta_lcb": 0.04, "ev_drop": 0.01,
        "external_delta": external, "min_delta_pwmcc": 0.0, "min_delta_lcb": 0.0, "max_ev_drop": 0.05,
        "min_external_delta": 0.0, "gate_delta_pwmcc": True, "gate_delta_lcb": True, "gate_ev_drop": True,
        "gate_external": False, "pass_all": False,
    }  # fmt: skip
    return lambdas("results") | {"acceptance": acceptance | stated}


def assignment_v3() -> dict[str, Any]:
    data = lambdas()
    data["config"]["activation_source"] = {"source": "external_cache"}
    for record, checkpoint in zip(data["records"], (f"results/{RUN}/lambda_0.0/sae_seed123.pt", None), strict=True):
        record["selected_checkpoint"] = checkpoint
        record["per_seed_metrics"] = [{"seed": 123, "mse": 0.5, "explained_variance": 0.91, "l0": 8.0}]
        record["external_eval"] = {"saebench": probing(), "cebench": contrastive()}
        record["selection_metrics"] = {"internal_lcb": 0.04, "ev_drop": 0.2, "saebench_delta": 0.0}
    acceptance = {
        "best_lambda": 0.2, "require_external": True, "min_internal_lcb": 0.0, "max_ev_drop": 0.05,
        "min_saebench_delta": 0.0, "min_cebench_delta": 0.0, "gate_internal_lcb": True, "gate_ev_drop": False,
        "gate_saebench": True, "gate_cebench": False, "pass_all": False,
    }  # fmt: skip
    return data | {"acceptance": acceptance}


def transcoder_sweep() -> dict[str, Any]:
    records: list[dict[str, Any]] = [
        {"condition_id": "a", "d_sae": 128, "k": 16, "returncode": 0, "delta": -0.1, "delta_lcb": -0.2},
        {"condition_id": "b", "d_sae": 128, "k": 32, "returncode": 0, "delta": 0.02, "delta_lcb": 0.01},
        {"condition_id": "c", "d_sae": 256, "k": 32, "returncode": 1, "delta": None, "delta_lcb": None},
    ]
    config = {"seeds": "42,123,456", "modulus": 113, "min_delta_lcb": 0.0}
    gates = {"has_valid_condition": True, "gate_delta_lcb": True, "pass_all": True}
    about = {"run_metadata": {"run_id": RUN}, "config": config, "records": records}
    return about | {"best_condition": records[1], "gates": gates}


def transcoder() -> dict[str, Any]:
    return {
        "config": {"run_id": RUN, "d_sae": 128, "k": 32, "epochs": 12, "learning_rate": 0.0003, "modulus": 113,
                   "seeds": [1, 2, 3]},
        "transcoder": {"summary": {"mean": 0.26, "ci95_low": 0.25, "n": 3}},
        "sae": {"summary": {"mean": 0.27, "ci95_high": 0.29}},
        "delta": -0.01,
    }  # fmt: skip


def ood(**other: Any) -> dict[str, Any]:
    parts = {
        key: {"summary": probing(**about), "best_minus_llm_auc": about["delta"]}
        for key, about in {
            "id_result": {"delta": -0.04, "used": "topk"},
            "ood_result": {"delta": -0.06, "names": ["spanish", "french"]} | other,
        }.items()
    }
    return {"run_metadata": {"run_id": RUN}, "ood_drop": 0.02, **parts}


def group(name: str = "topk", seeds: tuple[int, ...] = (1, 2, 3), runs: tuple[str, ...] = (RUN,)) -> dict[str, Any]:
    half = 1.96 * 0.003 / math.sqrt(3)
    members = [
        {"seed": seed, "condition_id": f"{name}_seed{seed}", "checkpoint": f"results/{runs[n % len(runs)]}/sae.pt",
         "joint_score": 0.1 * seed}
        for n, seed in enumerate(seeds)
    ]  # fmt: skip
    metrics = {
        "saebench_delta": -0.04 - half, "saebench_delta_mean": -0.04, "saebench_delta_std": 0.003,
        "saebench_delta_ci95_low": -0.04 - half, "saebench_delta_ci95_high": -0.04 + half,
        "cebench_interp_delta_vs_baseline": -40.0, "train_explained_variance": 0.7,
    }  # fmt: skip
    return {
        "condition_id": name, "group_id": name, "architecture": "topk", "seed": max(seeds), "seed_count": len(seeds),
        "checkpoint": f"results/{runs[0]}/sae.pt", "metrics": metrics, "seed_candidates": members,
        "selection": {"joint_score": 0.9, "is_pareto": True, "normalized_components": {"saebench_norm": 0.5}},
    }  # fmt: skip


def selection(**config: Any) -> dict[str, Any]:
    groups = [group(), group("relu")]
    counts = {"total_candidates": 6, "pareto_count": 1}
    about = {"run_metadata": {"run_id": RUN}, "config": {"uncertainty_mode": "lcb"} | config, "counts": counts}
    return about | {"selected_candidate": groups[0], "ranked_candidates": groups, "pareto_front": groups[:1]}


def policy(mode: str | None = "joint", **changes: Any) -> dict[str, Any]:
    """The gates pass, but for the transcoder's and the external ones; `changes` go to whichever part has the key."""
    parts: dict[str, dict[str, Any]] = {
        "thresholds": {
            "min_trained_random_delta": 0.0, "min_trained_random_lcb": 0.0, "min_transcoder_delta": 0.0,
            "max_ood_drop": 0.1, "min_external_delta": 0.0, "require_transcoder": True, "require_ood": True,
            "require_external": True,
        },
        "metrics": {
            "trained_random_delta": 0.1, "trained_random_delta_lcb": 0.05, "transcoder_delta": -0.01, "ood_drop": 0.02,
            "external_delta": -0.04, "saebench_delta": 0.01, "saebench_delta_ci95_low": -0.04,
            "cebench_interp_delta_vs_baseline": 1.0, "cebench_interp_delta_vs_baseline_ci95_low": -40.0,
        },
        "gates": {"random_model": True, "transcoder": False, "ood": True, "external": False, "pass_all": False},
    }  # fmt: skip
    if mode:
        parts["thresholds"] |= {"external_mode": mode, "use_external_lcb": True, "min_saebench_delta": 0.0,
                                "min_cebench_delta": 0.0}  # fmt: skip
        parts["gates"] |= {"external_saebench": False, "external_cebench": False}
    for part in parts.values():
        part.update({key: value for key, value in changes.items() if key in part})
    return {"run_metadata": {"run_id": RUN}, "inputs": {}, **parts}


FILES: dict[str, Callable[[], dict[str, Any]]] = {
    "frontier": frontier, "scaling": scaling, "assignment_v2": assignment_v2, "assignment_v3": assignment_v3,
    "ood": ood, "transcoder_sweep": transcoder_sweep, "transcoder": transcoder, "selection": selection, "gates": policy,
}  # fmt: skip


def read(data: Any) -> Earlier:
    """As from a file: through JSON text, NaN included."""
    return read_earlier(json.loads(json.dumps(data)), "a.json")


def gates_of(data: Any, column: str = "follows") -> dict[str, Any]:
    return {row.gate: getattr(row, column) for row in read(data).tables["earlier_gates"]}  # type: ignore[attr-defined]


def found(**files: Any) -> dict[tuple[str, str], CaveatRow]:
    rows = caveats({name: read(data) for name, data in files.items()})
    return {(row.caveat, row.record): row for row in rows}


def save(folder: Path, **files: Any) -> Path:
    for name, data in files.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data))
    return folder


# ---------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FILES)
def test_each_kind_is_recognised_by_its_content_and_names_its_run(kind: str) -> None:
    one = read(FILES[kind]())
    run = "run_20260215T000000Z" if kind == "scaling" else RUN  # scaling: only its checkpoint says it
    assert (one.kind, one.run_id) == (kind, run)
    assert all(rows for rows in one.tables.values())


def test_a_frontier_record_is_read_as_it_stands() -> None:
    row = read(frontier(7)).tables["earlier_members"][0]
    assert row.model_dump() == {
        "position": 0, "condition": "topk", "architecture": "topk", "seed": 7, "d_sae": 1024, "k": 32,
        "model": "pythia", "hook_name": "blocks.0", "explained_variance": 0.75, "l0": 32.0, "saebench_delta": -0.04,
        "llm_auc": 0.7, "data_sets": ",".join(EIGHT), "ks": "1,5", "cebench_interpretability": 8.0,
        "cebench_delta": -40.0, "cebench_baseline": "res-sm blocks.0", "cebench_baseline_score": 48.0,
        "pairs": "stories, 200 pairs", "evaluated_as": "topk", "failed": "",
        "checkpoint": f"results/{RUN}/checkpoints/topk_seed7/sae.pt", "weights_sha256": "ab", "note": "",
    }  # fmt: skip


def test_a_scaling_record_takes_its_shape_from_its_own_training() -> None:
    row = read(scaling()).tables["earlier_members"][0].model_dump()
    assert (row["condition"], row["seed"], row["d_sae"], row["k"]) == ("tok10_layer0_dsae2048", 42, 2048, 32)
    assert (row["hook_name"], row["architecture"], row["explained_variance"]) == ("blocks.1", "topk", 0.99)
    assert row["note"] == "no cebench_interpretability, cebench_delta, weights_sha256"


def test_what_a_record_lacks_is_null_and_noted_and_no_record_is_dropped() -> None:
    data = frontier(1, 2, 3, 4)
    data["records"][1] |= {"saebench": None, "saebench_returncode": 1}
    data["records"][2] |= {"seed": None, "train_metrics": {"explained_variance": NAN, "l0": 10**400}}
    del data["records"][3]["checkpoint"]
    rows = [row.model_dump() for row in read(data).tables["earlier_members"]]
    assert [row["position"] for row in rows] == [0, 1, 2, 3]
    assert (rows[1]["saebench_delta"], rows[1]["failed"]) == (None, "saebench")
    assert rows[1]["note"] == "no saebench_delta, llm_auc; saebench ended with return code 1"
    assert (rows[2]["explained_variance"], rows[2]["l0"], rows[2]["condition"]) == (None, None, "topk")
    assert rows[2]["note"].startswith("no seed, explained_variance, l0; ")
    assert "train_metrics.explained_variance is nan" in rows[2]["note"]
    assert rows[3]["note"] == "no checkpoint, so it was no candidate"


def test_a_delta_of_zero_is_a_value() -> None:
    data = frontier(1, delta=0.0)
    data["records"][0]["saebench"]["best_minus_llm_auc"] = -0.5  # an older place, read only where the first is missing
    assert read(data).tables["earlier_members"][0].model_dump()["saebench_delta"] == 0.0


def test_assignment_v3_gives_one_member_a_selected_checkpoint_and_all_of_the_sweep() -> None:
    tables = read(assignment_v3()).tables
    assert len(tables["earlier_sweep"]) == 2
    (row,) = (member.model_dump() for member in tables["earlier_members"])
    assert (row["condition"], row["seed"], row["architecture"]) == ("assignv3_lambda0.0", 123, "topk")
    assert (row["explained_variance"], row["l0"], row["d_sae"], row["k"]) == (0.9, 8.0, 128, 8)
    assert row["saebench_delta"] == 0.0  # of selection_metrics, where it is a value
    assert row["cebench_delta"] == -40.0  # which selection_metrics lacks: from the evaluation


def test_a_lambda_sweep_keeps_its_numbers() -> None:
    row = read(assignment_v2()).tables["earlier_sweep"][1].model_dump()
    expected = {"condition": "assignv2_lambda0.2", "d_sae": 128, "k": 8, "n_seeds": 5, "pwmcc": 0.5, "control": 0.25,
                "delta": 0.25, "delta_low": 0.04, "alignment": 0.8}  # fmt: skip
    assert {key: row[key] for key in expected} == expected


def test_acceptance_follows_from_its_numbers() -> None:
    expected = dict.fromkeys(("delta_pwmcc", "delta_lcb", "ev_drop"), "pass")
    assert gates_of(assignment_v2()) == expected | {"external": "fail", "pass_all": "fail"}
    assert gates_of(assignment_v2(external=None)) == expected | {"external": "pass", "pass_all": "pass"}
    assert gates_of(assignment_v2(ev_drop=NAN))["ev_drop"] == "fail"
    v3 = gates_of(assignment_v3())
    assert v3 == {"internal_lcb": "pass", "ev_drop": "fail", "saebench": "pass", "cebench": "fail", "pass_all": "fail"}


def test_transcoders_are_read_from_a_sweep_and_alone() -> None:
    sweep, alone = read(transcoder_sweep()), read(transcoder())
    rows = [row.model_dump() for row in sweep.tables["earlier_sweep"]]
    assert [(row["condition"], row["n_seeds"], row["delta_low"]) for row in rows] == [
        ("a", 3, -0.2), ("b", 3, 0.01), ("c", 3, None),
    ]  # fmt: skip
    assert rows[2]["note"] == "ended with return code 1"
    assert gates_of(transcoder_sweep()) == dict.fromkeys(("has_valid_condition", "delta_lcb", "pass_all"), "pass")
    row = alone.tables["earlier_sweep"][0].model_dump()
    assert (row["condition"], row["delta"]) == ("dsae128_k32_ep12_lr0.0003", -0.01)
    assert row["delta_low"] == pytest.approx(0.25 - 0.29)
    assert gates_of(transcoder(), "stated") == {"transcoder": ""}


def test_an_ood_summary_was_not_judged() -> None:
    (row,) = (gate.model_dump() for gate in read(ood()).tables["earlier_gates"])
    assert (row["gate"], row["value"], row["stated"], row["direction"]) == ("ood", 0.02, "", "")
    assert read(ood()).summary["parts"]["ood"]["data_sets"] == "spanish,french"


def test_a_selection_gives_its_ranked_groups_and_a_lone_candidate_one() -> None:
    one = read(selection())
    rows = [row.model_dump() for row in one.tables["earlier_groups"]]
    assert [(row["rank"], row["condition"], row["n_seeds"]) for row in rows] == [(0, "topk", 3), (1, "relu", 3)]
    assert (rows[0]["saebench_delta"], rows[0]["saebench_delta_std"]) == (-0.04, 0.003)  # the mean, not the bound
    assert (rows[0]["cebench_delta"], rows[0]["cebench_delta_low"]) == (-40.0, None)
    assert one.summary["config"] == {"uncertainty_mode": "lcb"}
    assert one.summary["counts"]["total_candidates"] == 6
    assert "grouping_diagnostics" not in one.summary
    alone = read(group())
    assert (alone.kind, alone.run_id, len(alone.tables["earlier_groups"])) == ("selection", RUN, 1)


BOTH = {"saebench_delta_ci95_low": 0.0, "cebench_interp_delta_vs_baseline_ci95_low": 0.5}


@pytest.mark.parametrize(
    ("changes", "gate", "follows"),
    [
        ({}, "random_model", "pass"),
        ({"trained_random_delta_lcb": -0.01}, "random_model", "fail"),
        ({"trained_random_delta_lcb": None}, "random_model", "fail"),
        ({}, "transcoder", "fail"),
        ({"transcoder_delta": 0.0}, "transcoder", "pass"),
        ({"transcoder_delta": None}, "transcoder", "fail"),
        ({"transcoder_delta": None, "require_transcoder": False}, "transcoder", "pass"),
        ({"transcoder_delta": NAN, "require_transcoder": False}, "transcoder", "fail"),
        ({"ood_drop": 0.1}, "ood", "pass"),
        ({"ood_drop": 0.11}, "ood", "fail"),
        ({"mode": None}, "external", "fail"),
        ({"mode": None, "external_delta": 0.0}, "external", "pass"),
        ({"mode": "joint"}, "external", "fail"),
        ({"mode": "joint", "use_external_lcb": False}, "external", "pass"),
        ({"mode": "joint"} | BOTH, "external", "pass"),
        ({"mode": "saebench", "saebench_delta_ci95_low": 0.0}, "external", "pass"),
        ({"mode": "cebench", "saebench_delta_ci95_low": 0.0}, "external", "fail"),
        ({"mode": "auto"} | BOTH, "external", "pass"),
        ({"mode": "auto", "saebench_delta_ci95_low": None}, "external", "fail"),
        ({"mode": "auto", "saebench_delta_ci95_low": None, "require_external": False}, "external", "pass"),
        ({"mode": "auto", "use_external_lcb": False, "saebench_delta": None}, "external", "fail"),
        (
            {"mode": "auto", "use_external_lcb": False, "saebench_delta": None, "external_delta": 0.3},
            "external",
            "pass",
        ),
        ({"transcoder_delta": 0.0} | BOTH, "pass_all", "pass"),
        ({"transcoder_delta": 0.0}, "pass_all", "fail"),
    ],
)
def test_a_policy_gate_follows_by_the_rule_of_its_time(changes: dict[str, Any], gate: str, follows: str) -> None:
    assert gates_of(policy(**changes))[gate] == follows


def test_a_policy_keeps_what_it_stated() -> None:
    assert gates_of(policy(), "stated") == {
        "random_model": "pass", "transcoder": "fail", "ood": "pass", "external_saebench": "fail",
        "external_cebench": "fail", "external": "fail", "pass_all": "fail",
    }  # fmt: skip
    assert "external_saebench" not in gates_of(policy(mode=None))
    rows = {row.gate: row for row in read(policy(transcoder_delta=NAN)).tables["earlier_gates"]}  # type: ignore[attr-defined]
    assert (rows["transcoder"].model_dump()["value"], rows["transcoder"].note) == (None, "value is nan")


# ---------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "no JSON object"),
        ("text", "no JSON object"),
        (None, "no JSON object"),
        ({}, "no record of an earlier cycle"),
        ({"records": []}, "no record of an earlier cycle"),
        ({"records": {"architecture": 1}, "best_condition": 0}, "no record of an earlier cycle"),
        (frontier() | {"config": [1]}, "a.json.config is [1], not an object"),
        (frontier() | {"records": [*frontier()["records"], None]}, "a.json.records.1 is None, not an object"),
        (transcoder_sweep() | {"records": [{"condition_id": "a", "k": 1}]}, "a.json.records.0.d_sae is missing"),
        (group() | {"selection": {}}, "joint_score is missing"),
        (policy(ood_drop="low"), "a.json.metrics.ood_drop is 'low', not a number"),
        (policy(require_ood="yes"), "require_ood is 'yes', not true or false"),
    ],
)
def test_an_unknown_or_damaged_file_is_refused_in_one_sentence(data: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read(data)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("seed", "42"), ("seed", 1.5), ("seed", True), ("checkpoint", 3),
                                            ("saebench", []), ("train_metrics", "good")])  # fmt: skip
def test_a_value_of_a_wrong_type_is_named_with_its_place(key: str, value: Any) -> None:
    data = frontier()
    data["records"][0][key] = value
    with pytest.raises(DataError, match=rf"^a\.json\.records\.0\.{key} is "):
        read(data)


PLACES = st.sampled_from(sorted(FILES))
ODD = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.just([]), st.just({}),
                st.just([1]), st.just([{}]), st.just({"a": 1}))  # fmt: skip


def spoil(value: Any, data: st.DataObject) -> Any:
    """A copy with one value anywhere in it replaced by an odd one."""
    children = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    if not children or data.draw(st.integers(0, 5)) == 0:
        return data.draw(ODD)
    key, inner = data.draw(st.sampled_from(children))
    changed = copy.copy(value)
    changed[key] = spoil(inner, data)
    return changed


@settings(deadline=None, max_examples=200)
@given(kind=PLACES, data=st.data())
def test_whatever_one_value_is_replaced_by_a_file_is_read_or_refused(kind: str, data: st.DataObject) -> None:
    spoilt = spoil(FILES[kind](), data)
    try:
        one = read_earlier(spoilt, "a.json")
    except DataError as error:
        assert str(error).startswith("a.json")  # noqa: PT017
    else:
        again = json.dumps([one.summary, [row.model_dump() for rows in one.tables.values() for row in rows]],
                           allow_nan=False)  # fmt: skip
        assert "NaN" not in again
        assert all(row.record == "a" and row.rows > 0 for row in caveats({"a": one}))


# ---------------------------------------------------------------------------------------------
# Caveats
# ---------------------------------------------------------------------------------------------


def test_one_record_shows_what_is_wrong_with_it() -> None:
    data = frontier(1, 2)
    data["records"][0]["train_metrics"]["l0"] = 36.0  # 12.5 % above 32
    data["records"][1]["train_metrics"]["l0"] = 35.0  # 9.4 %: matched
    data["records"][1]["saebench"]["sae_meta"]["eval_architecture"] = "relu"
    shown = {caveat: row.rows for (caveat, _), row in found(a=data).items()}
    assert shown == {
        "k_on_test": 2,
        "shared_results_folder": 2,
        "unmatched_l0": 1,
        "width_ceiling": 2,
        "wrong_encoder": 1,
    }


def test_a_clean_record_has_no_caveat() -> None:
    data = frontier(1)
    data["records"][0]["cebench"]["matched_baseline_metrics"][CEBENCH_SCORE] = 31.9  # (1024 - 1) / 32 = 31.97 is above
    data["records"][0]["saebench"]["summary"]["sae_metrics_by_k"] = [{"k": 5, "test_auc": 0.66}]
    assert found(a=data) == {}


def test_the_ceiling_is_told_with_its_numbers() -> None:
    row = found(a=frontier(1))["width_ceiling", "a"]
    assert row.what == (
        "The CE-Bench baseline scores 48, but 1024 latents allow at most 31.97: the delta cannot reach 0."
    )


def test_the_target_of_a_null_k_is_that_of_the_file() -> None:
    data = frontier(1)
    for bench in ("saebench", "cebench"):
        data["records"][0][bench]["sae_meta"]["k"] = None
    data["records"][0]["train_metrics"]["l0"] = 650.0
    assert "650 of topk at k = 32" in found(a=data)["unmatched_l0", "a"].what


def test_one_sae_with_two_deltas_is_stale() -> None:
    shown = found(a=frontier(1, 2, folder="/t/a"), b=frontier(1, delta=-0.13, folder="/t/b"))
    assert {key for key in shown if key[0] == "stale_results"} == {("stale_results", "a"), ("stale_results", "b")}
    row = shown["stale_results", "a"]
    assert row.rows == 1
    assert row.what == (
        "The SAEBench delta of topk, seed 1 is -0.04 here and -0.13 in b, on the same 8 data sets of blocks.0."
    )


@pytest.mark.parametrize("other", [{"names": EIGHT[:7], "delta": -0.13}, {"delta": -0.04}])
def test_other_data_sets_or_the_same_delta_are_not_stale(other: dict[str, Any]) -> None:
    shown = found(a=frontier(1), b=frontier(1, **other))
    assert not [key for key in shown if key[0] == "stale_results"]
    assert (("unequal_data_sets", "a") in shown) == ("names" in other)


def test_a_raw_activation_with_two_aucs_on_the_same_sets_is_stale() -> None:
    shown = found(a=frontier(1), b=frontier(2, llm=0.72))
    assert "0.7 here and 0.72 in b" in shown["stale_results", "a"].what


def test_ood_parts_that_share_an_auc_are_stale_and_no_shift_is_told() -> None:
    shown = found(a=ood())
    assert "0.7 both on" in shown["stale_results", "a"].what
    assert "2 data sets" in shown["ood_is_no_shift", "a"].what
    assert ("stale_results", "a") not in found(a=ood(llm=0.65))
    assert ("stale_results", "a") not in found(a=ood(names=EIGHT))


def test_a_selection_shows_its_rules() -> None:
    shown = found(a=selection(), b=selection() | {"ranked_candidates": [group("x", (1, 1, 2), (RUN, RUN[:-2] + "1Z"))]})
    assert (shown["normal_interval", "a"].rows, shown["luckiest_seed", "a"].rows) == (2, 2)
    assert "t is 4.303 at 3 seeds" in shown["normal_interval", "a"].what
    assert "seed 3, the best of 3" in shown["luckiest_seed", "a"].what
    assert shown["best_of_many", "a"].rows == 2
    assert ("best_of_many", "b") not in shown
    assert ("merged_conditions", "a") not in shown
    assert "pools 3 SAEs of 2 distinct seeds" in shown["merged_conditions", "b"].what


def test_a_wider_interval_or_a_median_seed_has_no_caveat() -> None:
    data = group()
    data["metrics"]["saebench_delta_ci95_low"] = -0.04 - 4.303 * 0.003 / math.sqrt(3)
    data["seed"] = 2
    assert found(a=data) == {}


def test_a_bound_of_one_seed_is_told() -> None:
    data = group(seeds=(1,))
    data["metrics"] |= {"saebench_delta_std": 0.0, "saebench_delta_ci95_low": -0.04}
    assert "one value" in found(a=data)["normal_interval", "a"].what


def test_a_selection_over_unequal_data_sets_is_told_by_its_inputs() -> None:
    inputs = {"frontier_results": [f"x/{RUN}/results.json"], "scaling_results": ["x/run_20260215T000000Z/results.json"]}
    shown = found(f=frontier(1), s=scaling(), a=selection(**inputs), b=selection())
    assert "16 data sets (s), 8 data sets (f)" in shown["unequal_data_sets", "a"].what
    assert ("unequal_data_sets", "b") not in shown


def test_sweeps_show_pairs_reference_and_model() -> None:
    shown = found(a=assignment_v2(), b=assignment_v3(), t=transcoder(), s=transcoder_sweep())
    assert "10 pairs of 5 SAEs" in shown["pairs_not_seeds", "a"].what
    assert (shown["one_reference", "a"].rows, shown["best_of_many", "a"].rows) == (1, 2)
    assert "modulo 113" in shown["other_model", "a"].what
    assert ("other_model", "b") not in shown  # it has a modulus, but was trained on cached activations
    assert ("pairs_not_seeds", "t") not in shown  # 3 pairs of 3 SAEs
    assert shown["best_of_many", "s"].rows == 3


def test_a_gate_is_traced_to_a_stress_result_of_another_model() -> None:
    data = policy() | {"inputs": {"transcoder_results": f"results/{RUN}/summary.json", "ood_results": None}}
    del data["run_metadata"]
    shown = found(gate=data, t=transcoder())
    assert "transcoder_results are those of t" in shown["other_model", "gate"].what


def test_a_gate_that_its_numbers_do_not_give_is_told() -> None:
    row = found(a=policy(transcoder=True))["stated_does_not_follow", "a"]
    assert row.what == (
        "Gate transcoder states pass, but its own numbers give fail: value -0.01, bound None, threshold 0.0."
    )


# ---------------------------------------------------------------------------------------------
# Importing
# ---------------------------------------------------------------------------------------------


def audited(run: Run) -> list[str]:
    return [what for what, stated, must in audit_import(run) if stated != must]


def test_a_folder_becomes_evidence_with_provenance(tmp_path: Path) -> None:
    given_files = save(tmp_path / "given", **{f"cycle 1/{kind}": make() for kind, make in FILES.items()})
    run = import_earlier([given_files], "Cycle_1", tmp_path / "evidence")
    assert run.path == tmp_path / "evidence" / "imported" / "Cycle_1"
    manifest = earlier_run(tmp_path / "evidence", "imported/Cycle_1").manifest()
    assert manifest["steps"] == [*(f"cycle_1_{kind}" for kind in sorted(FILES)), "caveats"]
    assert (manifest["cycle"], manifest["verdict"], manifest["pass_all"]) == ("imported", "imported", False)
    summary = run.record("cycle_1_ood").summary
    content = (given_files / "cycle 1" / "ood.json").read_bytes()
    assert (summary["kind"], summary["run_id"], summary["source"]) == ("ood", RUN, "cycle 1/ood.json")
    assert (run.path / "originals" / "cycle_1_ood.json").read_bytes() == content
    assert summary["bytes"] == len(content)
    assert manifest["files"]["originals/cycle_1_ood.json"] == summary["sha256"]
    assert run.record("cycle_1_frontier").table("earlier_members") == read(frontier()).tables["earlier_members"]
    assert len({row.caveat for row in run.record("caveats").table("caveats")}) > 10
    assert audited(run) == []
    assert str(tmp_path) not in "".join(path.read_text() for path in (run.path / "records").iterdir())


def test_nothing_is_left_beside_the_import(tmp_path: Path) -> None:
    import_earlier([save(tmp_path / "given", a=ood())], "x", tmp_path / "evidence")
    assert [path.name for path in (tmp_path / "evidence").iterdir()] == ["imported"]
    assert [path.name for path in (tmp_path / "evidence" / "imported").iterdir()] == ["x"]


def test_unknown_files_and_copies_of_a_folder_are_skipped_and_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "given", a=ood(), b=ood(), other={"x": 1})
    (folder / "c.json").write_bytes(b"")
    (folder / "notes.txt").write_text("no JSON")
    run = import_earlier([folder], "x", tmp_path)
    assert list(run.journal) == ["a", "caveats"]
    skipped = {entry["source"]: entry["reason"] for entry in run.record("caveats").summary["skipped"]}
    assert list(skipped) == ["b.json", "c.json", "other.json"]
    assert skipped["b.json"] == "b.json has the same bytes as a.json"
    assert "no record of an earlier cycle" in skipped["other.json"]
    assert audited(run) == []


def test_record_names_are_unique_identifiers(tmp_path: Path) -> None:
    names = {"A-b": 0.01, "a b": 0.02, "caveats": 0.03, "7": 0.04, "é": 0.05, "x" * 150: 0.06}
    folder = save(tmp_path / "given", **{name: ood() | {"ood_drop": drop} for name, drop in names.items()})
    run = import_earlier([folder], "x", tmp_path)
    assert set(run.journal) == {"a_b", "a_b_2", "caveats_2", "record_7", "record", "x" * 100, "caveats"}


HALF = json.dumps(frontier())[:200].encode()


@pytest.mark.parametrize(
    "content", [b"", b"not JSON", b"[]", b"{}", HALF, b"\xff\xfe{", b"[" * 100_000, b'{"a": "\\ud800"}']
)
def test_a_file_that_cannot_be_read_is_an_error_and_leaves_nothing(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    for given_path in (path, tmp_path):
        with pytest.raises(DataError, match=r"bad\.json"):
            import_earlier([given_path], "x", tmp_path / "evidence")
    assert not (tmp_path / "evidence").exists()


def test_a_missing_path_and_an_empty_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json cannot be read \(No such file"):
        import_earlier([tmp_path / "none.json"], "x", tmp_path / "evidence")
    (tmp_path / "empty").mkdir()
    for paths in ([tmp_path / "empty"], []):
        with pytest.raises(DataError, match="nothing to import"):
            import_earlier(paths, "x", tmp_path / "evidence")


@pytest.mark.parametrize("name", ["", ".x", "a/b", "../x", "a b", "é", "x\n"])
def test_a_name_that_is_no_folder_of_an_import_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="is no name of an import"):
        import_earlier([save(tmp_path / "given", a=ood())], name, tmp_path)


def test_an_existing_import_is_never_touched(tmp_path: Path) -> None:
    folder = save(tmp_path / "given", a=ood())
    before = import_earlier([folder], "x", tmp_path).files()
    with pytest.raises(ParameterError, match="exists; name the import otherwise"):
        import_earlier([folder], "x", tmp_path)
    assert Run(tmp_path / "imported" / "x").files() == before


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "given", a=ood(), b=frontier())
    monkeypatch.setattr(Run, "write_manifest", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(EvidenceError, match="No space left"):
        import_earlier([folder], "x", tmp_path / "evidence")
    assert list((tmp_path / "evidence").rglob("*")) == []


def test_a_name_that_the_disk_refuses_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HusaiError):
        import_earlier([save(tmp_path / "given", a=ood())], "x" * 300, tmp_path)


def test_the_audit_finds_a_changed_original_and_a_record_that_says_otherwise(tmp_path: Path) -> None:
    run = import_earlier([save(tmp_path / "given", a=ood(), b=frontier())], "x", tmp_path)
    other = Run(tmp_path / "imported" / "y")
    shutil.copytree(run.path, other.path)
    original = other.path / "originals" / "a.json"
    original.write_text(json.dumps(ood() | {"ood_drop": 0.5}))
    assert audited(other) == ["SHA-256 of originals/a.json"]
    (other.path / "manifest.json").unlink()
    other.write_manifest(
        cycle="imported", steps=["a", "b", "caveats"]
    )  # whoever hashes again is found by reading again
    assert audited(other) == [
        "sha256 of record a", "bytes of record a", "value of row 0 of a/earlier_gates"
    ]  # fmt: skip


def test_the_audit_tells_of_an_original_that_is_gone(tmp_path: Path) -> None:
    run = import_earlier([save(tmp_path / "given", a=ood())], "x", tmp_path)
    (run.path / "originals" / "a.json").unlink()
    assert audited(run) == ["SHA-256 of originals/a.json"]
    run.write_manifest(cycle="imported", steps=["a", "caveats"])
    assert audited(run)[0] == "original of record a"


# ---------------------------------------------------------------------------------------------
# Golden files
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Run:
    if not GOLDEN.is_dir():
        pytest.skip("the golden files of earlier cycles are not here")
    return import_earlier([GOLDEN], "golden", tmp_path_factory.mktemp("evidence"))


def test_every_golden_file_is_read_and_audits(golden: Run) -> None:
    kinds = {step: golden.record(step).summary.get("kind") for step in golden.journal}
    assert kinds == {
        "cycle2_assignment_v2_results": "assignment_v2", "cycle2_release_policy": "gates",
        "cycle3_frontier_results": "frontier", "cycle3_release_policy": "gates",
        "cycle3_scaling_results": "scaling", "cycle3_selection_summary": "selection",
        "schema_examples_assignment_v3_results": "assignment_v3", "schema_examples_ood_stress_summary": "ood",
        "schema_examples_transcoder_sweep_results": "transcoder_sweep", "caveats": None,
    }  # fmt: skip
    assert audited(golden) == []


def test_every_gate_that_a_golden_file_states_follows(golden: Run) -> None:
    rows = [row for step in golden.journal if "earlier_gates" in golden.record(step).data["tables"]
            for row in golden.record(step).table("earlier_gates")]  # fmt: skip
    judged = [row for row in rows if row.stated]
    assert len(judged) == 5 + 7 + 5 + 5 + 3
    assert [row for row in judged if row.stated != row.follows] == []


def test_the_golden_members_are_those_that_the_golden_selection_ranked(golden: Run) -> None:
    members = [*golden.record("cycle3_frontier_results").table("earlier_members"),
               *golden.record("cycle3_scaling_results").table("earlier_members")]  # fmt: skip
    complete = [row for row in members if None not in (row.saebench_delta, row.cebench_delta) and not row.failed]
    counts = golden.record("cycle3_selection_summary").summary["counts"]
    assert (len(members), len(complete)) == (counts["total_candidates"], counts["eligible_seed_candidates"])
    for group_row in golden.record("cycle3_selection_summary").table("earlier_groups"):
        own = [row for row in complete if row.condition == group_row.condition]
        assert len(own) == group_row.n_seeds
        assert sum(row.saebench_delta for row in own) / len(own) == pytest.approx(group_row.saebench_delta)
        assert sum(row.cebench_delta for row in own) / len(own) == pytest.approx(group_row.cebench_delta)


def test_the_golden_files_show_what_is_known_to_be_wrong_with_them(golden: Run) -> None:
    shown = {(row.caveat, row.record): row for row in golden.record("caveats").table("caveats")}
    assert shown["width_ceiling", "cycle3_frontier_results"].rows == 20
    assert shown["unmatched_l0", "cycle3_frontier_results"].rows == 15
    assert ("stale_results", "schema_examples_ood_stress_summary") in shown
    assert "8 data sets" in shown["unequal_data_sets", "cycle3_selection_summary"].what
    assert ("other_model", "schema_examples_transcoder_sweep_results") in shown
    assert not [key for key in shown if key[0] == "stated_does_not_follow"]
