"""The best weight of a sweep, and its acceptance as a record states it."""

from __future__ import annotations

from typing import Any

import pytest
import synthetic_rows as made_up

from husai_lib.decisions.acceptance import acceptance, best_of
from husai_lib.params.consistency import AcceptanceParams


def row(weight: float, accepted: bool = False, **changes: Any) -> Any:
    return made_up.swept(weight, accepted=accepted, **changes)


def test_the_best_weight_is_the_accepted_one_with_the_largest_conservative_delta() -> None:
    rows = [row(0.0, delta_lcb=0.1, accepted=True), row(0.1, delta_lcb=0.2, accepted=True), row(0.3, delta_lcb=0.9)]
    assert best_of(rows).weight == 0.1
    assert best_of(rows[::-1]).weight == 0.1


def test_a_group_without_objective_is_never_the_best_weight() -> None:
    rows = [row(0.0, delta_lcb=0.9, accepted=True), row(0.3, delta_lcb=None, delta_pwmcc=0.1)]
    assert best_of(rows).weight == 0.3
    assert acceptance(rows, AcceptanceParams())["pass_all"] is False
    assert best_of(rows[:1]).weight == 0.0


def test_where_none_is_accepted_the_best_is_taken_among_all() -> None:
    rows = [row(0.0, delta_lcb=-0.2), row(0.1, delta_lcb=-0.1), row(0.3, delta_lcb=-0.3)]
    assert best_of(rows).weight == 0.1


def test_a_weight_without_a_bound_comes_after_any_that_has_one_and_its_delta_decides_among_such() -> None:
    unbounded = [row(0.1, delta_lcb=None, delta_pwmcc=0.3), row(0.3, delta_lcb=None, delta_pwmcc=0.4)]
    assert best_of(unbounded).weight == 0.3
    assert best_of([*unbounded, row(0.5, delta_lcb=-0.9)]).weight == 0.5
    negative = row(0.3, delta_lcb=None, delta_pwmcc=-0.1)
    assert best_of([row(0.1, delta_lcb=None, delta_pwmcc=None), negative]).weight == 0.3


def test_an_acceptance_has_its_limits_its_best_weight_and_every_gate() -> None:
    limits = AcceptanceParams(min_external_delta=0.01)
    best = row(0.1, accepted=True, delta_lcb=0.2, delta_pwmcc=0.25, explained_variance=0.68, ev_drop=0.04,
               external_delta=0.02, cebench_delta=0.5, checkpoint_seed=7)  # fmt: skip
    wide = row(0.0, base="wide_lambda_0", condition="wide_lambda_0", explained_variance=0.1)
    assert acceptance([wide, row(0.0, explained_variance=0.72), best], limits) == {
        "min_delta_pwmcc": 0.0, "min_delta_lcb": 0.0, "max_ev_drop": 0.05, "min_external_delta": 0.01,
        "min_cebench_delta": None, "best_condition": "topk_lambda_0_1", "best_lambda": 0.1, "best_checkpoint_seed": 7,
        "best_delta_pwmcc": 0.25, "best_delta_lcb": 0.2, "best_explained_variance": 0.68,
        "baseline_explained_variance": 0.72, "ev_drop": 0.04, "external_delta": 0.02, "cebench_delta": 0.5,
        "gate_delta_pwmcc": "pass", "gate_delta_lcb": "pass", "gate_ev_drop": "pass", "gate_external": "pass",
        "gate_cebench": "", "pass_all": True,
    }  # fmt: skip


@pytest.mark.parametrize("accepted", [True, False])
def test_an_acceptance_passes_only_with_its_best_weight(accepted: bool) -> None:
    assert acceptance([row(0.0), row(0.1, accepted=accepted)], AcceptanceParams())["pass_all"] is accepted
