"""Plans: the numbers of seeds and data sets have the stated power at the real gates, and impossible ones are named."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import stats

from husai_lib.decisions.gates import Judged, evaluate
from husai_lib.decisions.planning import Need, Spread, needs, true_values
from husai_lib.errors import ParameterError
from husai_lib.evidence.rows.decided import GateRow
from husai_lib.evidence.rows.measured import MemberRow
from husai_lib.evidence.rows.probes import ProbeRow
from husai_lib.params.rules import GateParams

ABOUT = {"d_sae": 64, "k": 8, "l0": 8.0, "dead_fraction": 0.0, "explained_variance": 0.8, "weights_sha256": ""}
THRESHOLDS = GateParams()


def judged(saebench: Any, cebench: Any = (0.1, 0.5, 0.9), *, sets_level: float = 0.95, ceiling: float = 32.0) -> Judged:
    """A group with these SAEBench deltas `[seeds, data sets]` and CE-Bench deltas, raw and calibrated alike."""
    table = np.asarray(saebench)
    members = [
        MemberRow.model_construct(condition="topk", seed=s, l0_matched=True, saebench_delta=float(table[s].mean()),
                                  cebench_delta=value, cebench_calibrated_delta=value, cebench_ceiling=ceiling, **ABOUT)
        for s, value in enumerate(map(float, cebench))
    ]  # fmt: skip
    baselines = [MemberRow.model_construct(condition="baseline", seed=one.seed, cebench_interpretability=7.0, **ABOUT)
                 for one in members]  # fmt: skip
    probes = [
        ProbeRow.model_construct(condition="topk", seed=s, data_set=f"set {d}", at=None, duplicates="drop", split=42,
                                 test_rows=200, delta=float(table[s, d]))
        for s, d in product(range(table.shape[0]), range(table.shape[1]))
    ]  # fmt: skip
    return Judged(members, baselines, probes, level=0.95, sets_level=sets_level)


def plan(group: Judged, power: float = 0.8, **values: float) -> dict[str, Need]:
    return {need.gate: need for need in needs(group, evaluate(group, [], THRESHOLDS).gates, values, power)}


def passes(group: Judged, gate: str) -> bool:
    return next(row.verdict for row in evaluate(group, [], THRESHOLDS).gates if row.gate == gate) == "pass"


FLAT = np.add.outer([-0.01, 0.0, 0.01], [-0.02, 0.0, 0.01, 0.01])
"""SAEBench deltas of three seeds on four data sets without residuals."""


def test_the_seeds_of_a_mean_are_the_fewest_whose_noncentral_t_has_the_power() -> None:
    need = plan(judged(FLAT, [0.1, 0.5, 0.9]), external_cebench=0.5)["external_cebench"]
    assert need.seeds_std == pytest.approx(0.4)
    assert need.seeds is not None

    def power(n: int) -> float:  # of a one-sided t test at 2.5 %
        return float(stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, 0.5 / 0.4 * math.sqrt(n)))

    assert power(need.seeds - 1) < 0.8 <= power(need.seeds)


@pytest.mark.parametrize("target", [0.5, 0.8])
def test_the_planned_seeds_have_their_power_at_the_real_gate(target: float) -> None:
    need = plan(judged(FLAT, [0.1, 0.5, 0.9]), target, external_cebench=0.5)["external_cebench"]
    assert need.seeds is not None
    rng, cycles = np.random.default_rng(0), 500
    values = rng.normal(0.5, 0.4, size=(cycles, need.seeds))
    share = np.mean([passes(judged(np.zeros((need.seeds, 2)), own), "external_cebench") for own in values])
    exact = Spread(0.4**2).power(0.5, need.seeds)
    assert abs(share - exact) < 3.5 * math.sqrt(exact * (1 - exact) / cycles)
    assert exact >= target


@pytest.mark.parametrize(("seed_sd", "set_sd", "probe_sd"), [(0.02, 0.01, 0.0), (0.01, 0.02, 0.0), (0.01, 0.01, 0.03)])
def test_the_power_over_seeds_and_data_sets_is_that_of_the_real_gate(
    seed_sd: float, set_sd: float, probe_sd: float
) -> None:
    shared, margin, cycles, (seeds, sets) = 1 - 0.05 / 7, 0.025, 500, (6, 12)
    rng, passed = np.random.default_rng(1), 0
    for _ in range(cycles):
        noise = rng.normal(size=(seeds, sets)) * probe_sd + rng.normal(size=(seeds, 1)) * seed_sd
        table = margin + noise + rng.normal(size=sets) * set_sd
        passed += passes(judged(table, [0.0] * seeds, sets_level=shared), "external_saebench")
    planned = Spread(seed_sd**2, set_sd**2, probe_sd**2, sets_level=shared).power(margin, seeds, sets)
    assert 0.2 < planned < 0.99
    assert abs(passed / cycles - planned) < 3.5 * math.sqrt(planned * (1 - planned) / cycles) + 0.01


def test_saebench_names_the_fewest_seeds_and_the_fewest_data_sets() -> None:
    group = judged(FLAT, sets_level=0.99)
    need = plan(group, external_saebench=0.06)["external_saebench"]
    assert need.seeds_std == pytest.approx(0.01)
    assert need.sets_std == pytest.approx(np.std([-0.02, 0.0, 0.01, 0.01], ddof=1))
    spread = Spread(need.seeds_std**2, need.sets_std**2, sets_level=0.99)
    assert spread.power(0.06, need.seeds - 1, 4) < 0.8 <= spread.power(0.06, need.seeds, 4)
    assert spread.power(0.06, 3, need.sets - 1) < 0.8 <= spread.power(0.06, 3, need.sets)


def test_where_data_sets_leave_too_much_open_no_number_of_seeds_helps_but_more_data_sets_do() -> None:
    need = plan(judged(FLAT, sets_level=0.99), external_saebench=0.04)["external_saebench"]
    assert need.seeds is None
    assert need.remark == "not by more seeds: 4 data sets alone leave too much open"
    assert need.sets is not None
    assert need.sets > 4


def test_what_a_single_probe_adds_is_part_of_neither_component() -> None:
    rng = np.random.default_rng(2)
    table = rng.normal(size=(8, 40)) * 0.04
    need = plan(judged(table, [0.0] * 8))["external_saebench"]
    assert need.seeds_std == pytest.approx(0.04 / math.sqrt(40), rel=0.6)
    assert need.sets_std == pytest.approx(0.04 / math.sqrt(8), rel=0.3)


@pytest.mark.parametrize(
    ("value", "ceiling", "remark"),
    [
        (30.0, 32.0, "not by more seeds: the assumed true value lies above 25, the largest possible"),
        (0.1, 6.0, "not by more seeds: the threshold lies above -1, the largest possible"),
        (0.0, 32.0, "not by more seeds: the assumed true value does not lie beyond the threshold"),
        (-0.2, 32.0, "not by more seeds: the assumed true value does not lie beyond the threshold"),
    ],
)  # fmt: skip
def test_what_no_number_of_seeds_can_show_is_named(value: float, ceiling: float, remark: str) -> None:
    need = plan(judged(FLAT, ceiling=ceiling), external_cebench=value)["external_cebench"]
    assert (need.seeds, need.remark) == (None, remark)


def test_without_a_true_value_the_estimate_is_assumed() -> None:
    assert plan(judged(FLAT, [0.4, 0.5, 0.6]))["external_cebench"].true_value == pytest.approx(0.5)


def test_a_control_is_planned_from_its_interval_and_one_that_did_not_run_says_so() -> None:
    half = float(stats.t.ppf(0.975, 2)) * 0.03 / math.sqrt(3)
    about = {"metric": "pwmcc", "level": 0.95, "required": True, "verdict": "fail", "source": "stress"}
    ood = GateRow(gate="ood", value=0.02, bound=0.02 + half, threshold=0.1, direction="below", **about)
    [need] = needs(judged(FLAT), [ood], {})
    assert need.seeds_std == pytest.approx(0.03)
    assert need.seeds is not None
    assert Spread(0.03**2).power(0.08, need.seeds) >= 0.8
    assert need.remark.startswith("approximate")
    missing = plan(judged(FLAT))["random_model"]
    assert (missing.seeds, missing.remark) == (None, "the control was not run")


def test_stability_with_an_objective_is_planned_over_references() -> None:
    """Seeds of one reference agree by construction: the interval has a unit for each reference, and so has the plan."""
    group = judged(FLAT)
    related = [
        member.model_copy(update={"reference": ref}) for member, ref in zip(group.members, (7, 8, 7), strict=True)
    ]
    half = float(stats.t.ppf(0.975, 1)) * 0.02 / math.sqrt(2)
    about = {"metric": "pwmcc", "level": 0.95, "required": True, "verdict": "fail", "source": "stress"}
    gate = GateRow(gate="random_model", value=0.1, bound=0.1 - half, threshold=0.0, direction="above", **about)
    [need] = needs(replace(group, members=related), [gate], {})
    assert need.seeds_std == pytest.approx(0.02)
    assert need.remark.startswith("references rather than seeds")


def test_a_group_without_spread_needs_the_fewest_seeds() -> None:
    assert plan(judged(FLAT, [0.5, 0.5, 0.5]))["external_cebench"].seeds == 3


def test_without_members_nothing_is_planned() -> None:
    found = plan(Judged())
    assert {need.seeds for need in found.values()} == {None}
    assert found["external_saebench"].remark == "no group was selected"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("external_cebnch=1", "gate 'external_cebnch' is unknown; the nearest is 'external_cebench'; write"),
        ("ood", "--delta ood: '' is no number; write GATE=VALUE"),
        ("ood=much", "--delta ood=much: 'much' is no number; write GATE=VALUE"),
        ("ood=nan", "--delta ood=nan: give each gate one finite value"),
        ("external=1", "gate 'external' is unknown"),
    ],
)  # fmt: skip
def test_a_wrong_true_value_is_one_sentence(given: str, message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        true_values([given])
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_gate_is_given_once() -> None:
    assert true_values(["ood=0.05", "external_cebench = 1"]) == {"ood": 0.05, "external_cebench": 1.0}
    with pytest.raises(ParameterError, match="one finite value"):
        true_values(["ood=0.05", "ood=0.06"])
