"""Rows of a sweep of the consistency objective, derived by hand, and the verdicts at the edges of every gate."""

from __future__ import annotations

from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import synthetic_rows as made_up
from scipy import stats

from husai_lib.evidence.rows.base import RunTables
from husai_lib.evidence.rows.consistency import (
    GATES,
    CheckpointRow,
    SweepRow,
    TruthRow,
    acceptance_verdicts,
    random_of,
)
from husai_lib.evidence.rows.measured import PairRow
from husai_lib.params.consistency import AcceptanceParams, ConsistencyParams

SEEDS = [4, 2, 7, 0]
RANDOM = [0.20, 0.22, 0.24, 0.26, 0.28, 0.30]
CONDITION = {"architecture": "topk", "d_sae": 64, "k": 8, "training_samples": 16384}


def sweep(**changes: Any) -> dict[str, Any]:
    """The section of the parameters as a record has it."""
    given = {"conditions": [CONDITION], "lambdas": [0.0, 0.5], "references": [100, 101]} | changes
    return ConsistencyParams.model_validate(given).model_dump(mode="json")


def checkpoint(condition: str, seed: int, **changes: Any) -> CheckpointRow:
    values = {"saebench": 0.8, "cebench": 5.0, "alignment": None, "ev": 0.7, "external_score": 0.5} | changes
    return CheckpointRow(condition=condition, seed=seed, **values)


def tables_of(**changes: Any) -> RunTables:
    """Four seeds of topk without objective and at lambda 0.5; `changes` are of the group at lambda 0.5."""
    members, checkpoints = [], []
    for name, evs in (("topk_lambda_0", [0.7, 0.72, 0.74, 0.76]), ("topk_lambda_0_5", [0.66, 0.68, 0.70, 0.76])):
        for seed, ev in zip(SEEDS, evs, strict=True):
            aligned = name != "topk_lambda_0"
            members.append(made_up.member(name, seed, explained_variance=ev, cebench_delta=seed / 8,
                                          reference=100 + seed % 2 if aligned else None))  # fmt: skip
            checkpoints.append(checkpoint(name, seed, alignment=0.9 + seed / 100 if aligned else None,
                                          external_score=0.7 if seed == 2 else 0.6))  # fmt: skip
    of_group: dict[str, Any] = {"pwmcc": 0.5, "pwmcc_low": 0.4, "pwmcc_high": 0.6, "saebench_delta": 0.01}
    groups = [
        made_up.group("topk_lambda_0", pwmcc=0.4, pwmcc_low=0.35, pwmcc_high=0.45),
        made_up.group("topk_lambda_0_5", **of_group | {"pwmcc_within": 0.9, "note": "as the group"} | changes),
    ]
    pairs = [PairRow(of=random_of(64), seed_a=a, seed_b=b, pwmcc=value)
             for (a, b), value in zip(combinations(SEEDS, 2), RANDOM, strict=True)]  # fmt: skip
    tables = {"members": members, "groups": groups, "pairs": pairs, "checkpoints": checkpoints}
    return RunTables({("consistency", name): rows for name, rows in tables.items()}, {"consistency": sweep()})


def swept(condition: str = "topk_lambda_0_5", **changes: Any) -> SweepRow:
    return SweepRow.derive("consistency", tables_of(**changes), condition=condition)


def of_random() -> tuple[float, float]:
    """The mean of RANDOM with its upper bound: the jackknife that leaves out one of four seeds."""
    of = dict(zip(combinations(range(4), 2), RANDOM, strict=True))
    thetas = np.array([np.mean([value for pair, value in of.items() if out not in pair]) for out in range(4)])
    half = stats.t.ppf(0.975, 3) * np.sqrt(3 / 4 * ((thetas - thetas.mean()) ** 2).sum())
    return 0.25, float(0.25 + half)


def test_a_weight_of_the_objective_has_what_its_group_and_its_seeds_show() -> None:
    row = swept()
    random, high = of_random()
    assert (row.base, row.weight, row.n_seeds, row.note) == ("topk_lambda_0", 0.5, 4, "as the group")
    assert (row.pwmcc, row.pwmcc_low, row.pwmcc_high, row.pwmcc_within) == (0.5, 0.4, 0.6, 0.9)
    assert (row.random, row.random_high) == pytest.approx((random, high))
    assert row.delta_pwmcc == pytest.approx(0.5 - 0.25)
    assert row.delta_lcb == pytest.approx(0.4 - high)
    assert row.explained_variance == pytest.approx(0.70)
    assert row.ev_drop == pytest.approx(0.73 - 0.70)
    assert row.alignment == pytest.approx(fmean([0.94, 0.92, 0.97, 0.90]))
    assert (row.external_delta, row.cebench_delta) == (0.01, pytest.approx(13 / 8 / 4))
    assert row.checkpoint_seed == 2
    assert (row.gate_delta_pwmcc, row.gate_ev_drop, row.gate_external, row.gate_cebench) == ("pass", "pass", "pass", "")
    assert (row.gate_delta_lcb, row.accepted) == ("pass", True)


def test_weight_0_is_compared_with_itself_and_is_aligned_with_nothing() -> None:
    row = swept("topk_lambda_0")
    assert (row.base, row.weight, row.ev_drop, row.alignment) == ("topk_lambda_0", 0.0, 0.0, None)
    assert (row.pwmcc_within, row.delta_pwmcc) == (None, pytest.approx(0.15))


def test_without_a_bound_on_unrelated_seeds_the_conservative_gate_is_missing() -> None:
    row = swept(pwmcc_low=None, pwmcc_high=None)
    assert (row.delta_lcb, row.gate_delta_lcb, row.accepted) == (None, "missing", False)
    assert row.gate_delta_pwmcc == "pass"


def test_seeds_of_one_reference_pass_no_gate_on_agreement_however_alike_they_are() -> None:
    none = dict.fromkeys(("pwmcc", "pwmcc_low", "pwmcc_high", "pwmcc_corrected"))
    row = swept(pwmcc_within=0.999, pwmcc_max=1.0, **none)
    assert (row.pwmcc, row.delta_pwmcc, row.delta_lcb, row.pwmcc_within) == (None, None, None, 0.999)
    assert (row.gate_delta_pwmcc, row.gate_delta_lcb, row.accepted) == ("missing", "missing", False)


def test_a_cebench_delta_that_one_seed_lacks_is_missing() -> None:
    run = tables_of()
    members = run.rows("consistency", "members")
    members[-1] = members[-1].model_copy(update={"cebench_delta": None})
    asked = {"consistency": sweep(acceptance={"min_cebench_delta": 0.0})}
    row = SweepRow.derive("consistency", RunTables({**run.tables, ("consistency", "members"): members}, asked),
                          condition="topk_lambda_0_5")  # fmt: skip
    assert (row.cebench_delta, row.gate_cebench, row.accepted) == (None, "missing", False)


def test_every_group_of_a_sweep_has_its_weight_and_its_base() -> None:
    conditions = [CONDITION, CONDITION | {"name": "wide", "d_sae": 128}]
    given = ConsistencyParams.model_validate(sweep(conditions=conditions))
    found = [
        (one.name, given.base_of(one.name), one.consistency.weight if one.consistency else 0.0) for one in given.swept()
    ]
    assert found == [
        ("topk_lambda_0", "topk_lambda_0", 0.0), ("topk_lambda_0_5", "topk_lambda_0", 0.5),
        ("wide_lambda_0", "wide_lambda_0", 0.0), ("wide_lambda_0_5", "wide_lambda_0", 0.5),
    ]  # fmt: skip


# --- verdicts ------------------------------------------------------------------------------------

LIMITS = AcceptanceParams(min_cebench_delta=0.5, min_external_delta=-0.01, min_delta_pwmcc=0.1).model_dump()
AT_THE_LIMITS = {"delta_pwmcc": 0.1, "delta_lcb": 0.0, "ev_drop": 0.05, "external": -0.01, "cebench": 0.5}


def test_a_value_that_equals_its_limit_passes_every_gate() -> None:
    assert acceptance_verdicts(AT_THE_LIMITS, LIMITS) == dict.fromkeys(GATES, "pass")


@pytest.mark.parametrize("gate", GATES)
def test_a_value_just_beyond_its_limit_fails_its_own_gate_alone(gate: str) -> None:
    worse = 1e-12 if gate == "ev_drop" else -1e-12
    found = acceptance_verdicts(AT_THE_LIMITS | {gate: AT_THE_LIMITS[gate] + worse}, LIMITS)
    assert found == dict.fromkeys(GATES, "pass") | {gate: "fail"}


@pytest.mark.parametrize("gate", GATES)
def test_a_value_that_is_missing_is_no_pass(gate: str) -> None:
    assert acceptance_verdicts(AT_THE_LIMITS | {gate: None}, LIMITS)[gate] == "missing"


def test_zero_is_a_value_and_a_gate_that_is_not_asked_for_has_no_verdict() -> None:
    values: dict[str, float | None] = dict.fromkeys(GATES, 0.0)
    found = acceptance_verdicts(values | {"cebench": None}, AcceptanceParams().model_dump())
    assert found == dict.fromkeys(GATES, "pass") | {"cebench": ""}


def test_a_gain_of_explained_variance_passes() -> None:
    assert acceptance_verdicts(AT_THE_LIMITS | {"ev_drop": -0.3}, LIMITS)["ev_drop"] == "pass"


# --- checkpoints ---------------------------------------------------------------------------------


def scored(weights: dict[str, float], *values: tuple[float, float, float | None, float]) -> list[float]:
    """External scores of the seeds 0, 1, ... with these validation AUCs, CE-Bench scores, alignments and EVs."""
    columns = ("saebench", "cebench", "alignment", "ev")
    rows = [checkpoint("topk_lambda_0_5", seed, **dict(zip(columns, own, strict=True)))
            for seed, own in enumerate(values)]  # fmt: skip
    probes = [made_up.probe(condition="topk_lambda_0_5", seed=seed, validation_auc=own[0])
              for seed, own in enumerate(values)]  # fmt: skip
    others = [checkpoint("topk_lambda_0", 0, saebench=0.0, cebench=99.0)]  # of another group, so of no account
    tables = {"checkpoints": [*rows, *others], "probes": probes}
    run = RunTables({("consistency", name): of for name, of in tables.items()},
                    {"consistency": sweep(external_score=weights)})  # fmt: skip
    return [row.derived("consistency", run)["external_score"] for row in rows]


def test_the_external_score_scales_each_metric_over_the_seeds_of_its_group() -> None:
    weights = {"saebench": 0.7, "cebench": 0.2, "alignment": 0.05, "ev": 0.05}
    found = scored(weights, (0.6, 4.0, 0.9, 0.7), (0.8, 3.0, 0.7, 0.6), (0.7, 5.0, 0.8, 0.8))
    # saebench 0, 1, 1/2; cebench 1/2, 0, 1; alignment 1, 0, 1/2; ev 1/2, 0, 1
    assert found == pytest.approx([0.2 / 2 + 0.05 + 0.05 / 2, 0.7, 0.7 / 2 + 0.2 + 0.05 / 2 + 0.05])


def test_a_metric_that_no_seed_has_or_all_share_adds_nothing_to_the_score() -> None:
    weights = {"saebench": 0.5, "alignment": 0.3, "ev": 0.2}
    assert scored(weights, (0.6, 1.0, None, 0.7), (0.8, 2.0, None, 0.7)) == pytest.approx([0.0, 0.5])
    assert scored({"saebench": 1.0}, (0.6, 9.0, None, 0.9), (0.6, 1.0, None, 0.1)) == [0.0, 0.0]


def test_a_metric_that_the_parameters_leave_out_has_no_weight() -> None:
    assert scored({"ev": 2.0}, (0.9, 9.0, 0.9, 0.1), (0.1, 1.0, 0.1, 0.3)) == pytest.approx([0.0, 2.0])


def test_a_checkpoint_is_chosen_by_validation_and_not_by_test_metrics() -> None:
    probes = [made_up.probe(name, condition="topk_lambda_0_5", duplicates=form, validation_auc=auc, test_auc=0.99)
              for name, form, auc in (("a", "drop", 0.7), ("b", "drop", 0.8), ("a", "keep", 0.1))]  # fmt: skip
    run = RunTables({("consistency", "probes"): probes}, {"consistency": sweep()})
    stated = checkpoint("topk_lambda_0_5", 0, saebench=0.99)
    assert stated.derived("consistency", run)["saebench"] == pytest.approx((0.7 + 0.8) / 2)


def test_the_seed_with_the_best_score_stands_for_its_weight_and_the_first_of_equals() -> None:
    run = tables_of()
    equal = [row.model_copy(update={"external_score": 0.5}) for row in run.rows("consistency", "checkpoints")]
    tables = {**run.tables, ("consistency", "checkpoints"): equal}
    row = SweepRow.derive("consistency", RunTables(tables, run.parameters), condition="topk_lambda_0_5")
    assert row.checkpoint_seed == SEEDS[0]


# --- values that cannot be -----------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"recovery": 1.1}, {"pwmcc_within": -0.1}, {"functional_agreement": -1.1}])
def test_impossible_values_on_known_features_are_refused(change: dict[str, float]) -> None:
    values: dict[str, Any] = {"weight": 0.1, "recovery": 0.5, "pwmcc": 0.5, "pwmcc_within": None,
                              "functional_agreement": -0.2, "explained_variance": 0.5}  # fmt: skip
    assert TruthRow(**values).functional_agreement == -0.2
    with pytest.raises(ValueError, match=next(iter(change))):
        TruthRow(**values | change)


def test_deriving_the_columns_of_a_sweep_again_changes_nothing() -> None:
    run = tables_of()
    for name in ("topk_lambda_0", "topk_lambda_0_5"):
        row = SweepRow.derive("consistency", run, condition=name)
        assert row.model_copy(update=row.derived("consistency", run)) == row
