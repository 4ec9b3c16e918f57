"""What records of earlier cycles show to be wrong with them, each caveat by a file made for it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from earlier_files import (
    CEBENCH_SCORE,
    EIGHT,
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

from husai_lib.earlier.caveats import caveats
from husai_lib.evidence.rows.earlier import CaveatRow
from husai_lib.evidence.runs import Record


def found(**files: Any) -> dict[tuple[str, str], CaveatRow]:
    records = {}
    for name, data in files.items():
        tables, summary = read(data)
        dumped = {table: [row.model_dump() for row in rows] for table, rows in tables.items()}
        records[name] = Record(name, {"tables": dumped, "summary": summary}, "")
    return {(row.caveat, row.record): row for row in caveats(records)}


def test_one_record_shows_what_is_wrong_with_it() -> None:
    data = frontier(1, 2)
    data["records"][0]["train_metrics"]["l0"] = 36.0  # 12.5 % above 32
    data["records"][1]["train_metrics"]["l0"] = 35.0  # 9.4 %: matched
    data["records"][1]["saebench"]["sae_meta"]["eval_architecture"] = "relu"
    shown = {caveat: row.rows for (caveat, _), row in found(a=data).items()}
    assert shown == {
        "k_on_test": 2, "shared_results_folder": 2, "unmatched_l0": 1, "width_ceiling": 2, "wrong_encoder": 1,
    }  # fmt: skip


def test_a_clean_record_has_no_caveat() -> None:
    data = frontier(1)
    data["records"][0]["cebench"]["matched_baseline_metrics"][CEBENCH_SCORE] = 31.9  # (1024 - 1) / 32 = 31.97 is above
    data["records"][0]["saebench"]["config"]["ks"] = [5]
    assert found(a=data) == {}


def test_the_ceiling_is_reported_with_its_numbers() -> None:
    assert found(a=frontier(1))["width_ceiling", "a"].what == (
        "The CE-Bench baseline scores 48, but 1024 latents allow at most 31.97: the delta cannot reach 0."
    )


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
    assert "The test AUC of the raw activation is 0.7 here and 0.72 in b" in shown["stale_results", "a"].what


def test_a_selection_shows_its_rules() -> None:
    shown = found(a=selection(), b=selection() | {"ranked_candidates": [group("x", (1, 1, 2), (RUN, SCALING_RUN))]})
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


def test_a_selection_over_unequal_data_sets_is_known_by_its_inputs() -> None:
    inputs = {"frontier_results": [f"x/{RUN}/results.json"], "scaling_results": [f"x/{SCALING_RUN}/results.json"]}
    shown = found(f=frontier(1), s=scaling(), a=selection(**inputs), b=selection())
    assert "16 data sets (s), 8 data sets (f)" in shown["unequal_data_sets", "a"].what
    assert ("unequal_data_sets", "b") not in shown


def test_sweeps_show_pairs_and_reference() -> None:
    shown = found(a=assignment_v2(), b=assignment_v3())
    assert "10 pairs of 5 SAEs" in shown["pairs_not_seeds", "a"].what
    assert (shown["one_reference", "a"].rows, shown["best_of_many", "a"].rows) == (1, 2)
    assert "At lambda 0.2 all SAEs are drawn to the one of seed 42" in shown["one_reference", "b"].what


@pytest.mark.parametrize("value", [-0.0027, 0.125])
def test_a_transcoder_gate_shows_that_it_rewards_unstable_saes_whether_it_passes_or_not(value: float) -> None:
    assert found(a=policy(transcoder_delta=value))["transcoder_direction", "a"].what == (
        f"The transcoder gate asks for PW-MCC(transcoder) - PW-MCC(SAE) >= 0, which is {value}: the less stable an SAE "
        "is, the more surely it passes, and random decoders would."
    )


def test_a_transcoder_gate_without_a_result_has_no_caveat() -> None:
    assert found(a=policy(transcoder_delta=None)) == {}
