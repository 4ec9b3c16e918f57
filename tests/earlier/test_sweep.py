"""The acceptance of earlier sweeps follows from their own rows: by hand, and of both golden files number by number."""

from __future__ import annotations

import json
from typing import Any

import pytest
from earlier.earlier_acceptance import sweep_acceptance

from husai_lib.earlier.records import read_earlier
from husai_lib.evidence.rows.earlier import EarlierSweepRow
from husai_lib.files import REPOSITORY
from husai_lib.params.consistency import AcceptanceParams

GOLDEN = REPOSITORY.parent / "shared" / "golden"
V2, V3 = "cycle2/assignment_v2_results.json", "schema_examples/assignment_v3_results.json"
VERDICTS = {True: "pass", False: "fail"}


def golden(name: str) -> tuple[list[EarlierSweepRow], dict[str, Any]]:
    """The rows of a golden sweep, and its acceptance as its file states it."""
    path = GOLDEN / name
    if not path.is_file():
        pytest.skip("the golden files of earlier cycles are not here")
    tables, _ = read_earlier(path.read_bytes(), name)
    return tables["earlier_sweep"], json.loads(path.read_text(encoding="utf-8"))["acceptance"]


def test_every_number_and_gate_of_the_golden_acceptance_of_v2_follows_from_its_rows() -> None:
    rows, stated = golden(V2)
    limits = AcceptanceParams(**{name: stated.pop(name) for name in [*stated] if name[:4] in ("min_", "max_")})
    assert limits == AcceptanceParams()  # phase 4d as it was is what a sweep asks for by default
    found = sweep_acceptance(rows, limits, stated["external_delta"])
    assert stated.keys() - found.keys() == set()
    for name, value in stated.items():
        expected = VERDICTS[value] if name.startswith("gate_") else value
        assert found[name] == (pytest.approx(expected, abs=1e-12) if isinstance(expected, float) else expected), name
    assert (found["best_lambda"], found["gate_cebench"]) == (0.2, "")


def test_the_gates_of_the_golden_acceptance_of_v3_that_have_the_same_definition_follow_from_its_rows() -> None:
    rows, stated = golden(V3)
    limits = AcceptanceParams(
        min_delta_lcb=stated["min_internal_lcb"], max_ev_drop=stated["max_ev_drop"],
        min_external_delta=stated["min_saebench_delta"], min_cebench_delta=stated["min_cebench_delta"],
    )  # fmt: skip
    found = sweep_acceptance(rows, limits)
    same = {"internal_lcb": "delta_lcb", "ev_drop": "ev_drop", "saebench": "external", "cebench": "cebench"}
    for theirs, ours in same.items():
        assert found[f"gate_{ours}"] == VERDICTS[stated[f"gate_{theirs}"]], theirs
    assert (found["best_lambda"], found["pass_all"]) == (stated["best_lambda"], stated["pass_all"])
    [best] = [row for row in rows if row.lambda_consistency == stated["best_lambda"]]
    assert found["external_delta"] == best.saebench_delta
    assert found["cebench_delta"] == best.cebench_delta


def strength(weight: float, delta_low: float | None, **changes: Any) -> EarlierSweepRow:
    values: dict[str, Any] = {
        "lambda_consistency": weight, "d_sae": 128, "k": 8, "n_seeds": 5, "pairs": 10, "pwmcc": 0.5, "control": 0.25,
        "delta": 0.25, "delta_low": delta_low, "explained_variance": 0.9 - weight / 10, "alignment": 0.8,
        "saebench_delta": 0.01, "cebench_delta": None,
    }  # fmt: skip
    return EarlierSweepRow(**values | changes)


def test_a_strength_that_fails_a_gate_is_left_out_before_the_largest_bound_wins() -> None:
    # explained variance drops by 0.06 at lambda 0.6, which is beyond 0.05
    rows = [strength(0.0, 0.1), strength(0.4, 0.2), strength(0.6, 0.9)]
    found = sweep_acceptance(rows, AcceptanceParams())
    assert (found["best_lambda"], found["best_delta_lcb"], found["pass_all"]) == (0.4, 0.2, True)
    assert found["ev_drop"] == pytest.approx(0.04)
    lenient = sweep_acceptance(rows, AcceptanceParams(max_ev_drop=0.1))
    assert (lenient["best_lambda"], lenient["pass_all"]) == (0.6, True)


def test_where_all_strengths_fail_the_largest_bound_is_the_best_and_says_at_what_it_fails() -> None:
    rows = [strength(0.0, -0.2), strength(0.4, None), strength(0.3, -0.1, saebench_delta=-0.02)]
    found = sweep_acceptance(rows, AcceptanceParams())
    gates = {name: verdict for name, verdict in found.items() if name.startswith("gate_")}
    assert (found["best_lambda"], found["pass_all"]) == (0.3, False)
    assert gates == {"gate_delta_pwmcc": "pass", "gate_delta_lcb": "fail", "gate_ev_drop": "pass",
                     "gate_external": "fail", "gate_cebench": ""}  # fmt: skip


def test_a_strength_without_a_bound_or_an_external_delta_passes_neither_gate() -> None:
    found = sweep_acceptance([strength(0.0, None, saebench_delta=None)], AcceptanceParams(min_cebench_delta=0.0))
    assert [found[f"gate_{name}"] for name in ("delta_lcb", "external", "cebench")] == ["missing"] * 3
    given = sweep_acceptance([strength(0.0, 0.1, saebench_delta=None)], AcceptanceParams(), external=0.0)
    assert (given["external_delta"], given["gate_external"], given["pass_all"]) == (0.0, "pass", True)
