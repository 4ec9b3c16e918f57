"""The consistency section: each mistake is refused in one sentence with a remedy, and what a sweep trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from stand_ins import SMOKE, smoke_data, write_params

from husai_lib.errors import ParameterError
from husai_lib.files import canonical_json
from husai_lib.params.conditions import CONSISTENT, Condition, ObjectiveParams, SaeParams, baseline_seeds
from husai_lib.params.consistency import AcceptanceParams, ConsistencyParams
from husai_lib.params.cycle import CycleParams, check_sections, load_cycle
from husai_lib.params.hyperparameters import ARCHITECTURES
from husai_lib.params.sections import check

SHARED = {"d_sae": 64, "k": 8, "training_samples": 16384}


def of_sweep(**changes: Any) -> dict[str, Any]:
    """The smoke cycle with keys of its sweep changed; those that are None are left out."""
    sweep = smoke_data()["consistency"] | changes
    return smoke_data(consistency={key: value for key, value in sweep.items() if value is not None})


def refusal(tmp_path: Path, data: dict[str, Any]) -> str:
    """What a user reads of a parameter file, without the name of the file."""
    path = write_params(tmp_path / "p.yaml", data)
    with pytest.raises(ParameterError) as caught:
        load_cycle(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    return said.removeprefix(f"{path}: ")


NAME_ONE = "consistency: name one reference: <seed>, several references: [..], or reference: mutual"
MUTUAL = {"references": None, "reference": "mutual"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no reference": (of_sweep(references=None), NAME_ONE),
    "a reference and references": (of_sweep(reference=9), NAME_ONE),
    "a reference twice": (of_sweep(references=[9, 9]), "consistency: reference 9 is given twice; keep one"),
    "another word than mutual": (
        of_sweep(references=None, reference="mutal"),
        "consistency.reference: reference 'mutal' is unknown; the nearest is 'mutual'",
    ),
    "half a seed": (of_sweep(references=None, reference=1.5), "consistency.reference = 1.5: Input should be a valid"),
    "a training seed as a reference": (
        of_sweep(references=[1, 101]),
        "consistency: seed 1 would be its own reference; name another reference",
    ),
    "an own training seed of the sweep as the reference": (
        of_sweep(references=None, reference=7, seeds=[6, 7, 8]),
        "consistency: seed 7 would be its own reference; name another reference",
    ),
    "a confirmation seed as a reference": (
        of_sweep(references=[100, 4]),
        "consistency: seed 4 would be its own reference; name another reference",
    ),
    "three seeds in two banks": (
        of_sweep(**MUTUAL),
        "consistency: mutual needs two banks of two seeds, and there are 3 seeds; give at least 4",
    ),
    "three confirmation seeds in two banks": (
        of_sweep(**MUTUAL, seeds=[10, 11, 12, 13]),
        "consistency: mutual needs two banks of two seeds, and there are 3 seeds; give at least 4",
    ),
    "one seed": (
        of_sweep(seeds=[9]),
        "consistency: seeds: a single seed agrees with none; give at least 2, or leave them out",
    ),
    "one seed of the cycle": (
        of_sweep(seeds=[]) | {"seeds": [9], "selection": {"mode": "mean", "min_seeds": 1}},
        "consistency: a single seed agrees with none; give consistency.seeds at least 2",
    ),
    "a seed twice": (of_sweep(seeds=[9, 9]), "consistency: seed 9 is given twice; keep one"),
    "a seed that confirms": (
        of_sweep(seeds=[3, 8, 9]),
        "confirmation.seeds: 3 is also one of seeds; fresh seeds confirm, others do not",
    ),
    "lambdas that descend": (
        of_sweep(lambdas=[0.1, 0.0]),
        "consistency: lambdas = [0.1, 0.0] do not ascend from 0.0; sort them and start with it",
    ),
    "lambdas without 0": (of_sweep(lambdas=[0.1, 0.2]), "consistency: lambdas = [0.1, 0.2] do not ascend from 0.0"),
    "a lambda twice": (of_sweep(lambdas=[0.0, 0.1, 0.1]), "consistency: lambdas = [0.0, 0.1, 0.1] do not ascend"),
    "a negative lambda": (of_sweep(lambdas=[0.0, -0.1]), "consistency.lambdas.1 = -0.1: Input should be greater than"),
    "lambda 0 alone": (of_sweep(lambdas=[0.0]), "consistency.lambdas = [0.0]: List should have at least 2 items"),
    "no interval": (of_sweep(assignment_interval=0), "consistency.assignment_interval = 0: Input should be greater"),
    "an own objective": (
        of_sweep(conditions=[{"architecture": "topk", "consistency": {"lambda": 0.1, "reference": 9}}]),
        "consistency: condition 'topk' has its own consistency; leave it out of a sweep",
    ),
    "a condition twice": (
        of_sweep(conditions=[{"architecture": "topk"}, {"architecture": "topk"}]),
        "consistency: condition 'topk' is given twice; keep one",
    ),
    "the name of a baseline": (
        of_sweep(conditions=[{"architecture": "topk", "name": "baseline"}]),
        "condition 'baseline' has the name of a baseline; choose another name",
    ),
    "an unknown key": (of_sweep(lamdas=[0.0]), "consistency: key 'lamdas' is unknown; the nearest is 'lambdas'"),
    "an unknown metric of the score": (
        of_sweep(external_score={"saebench": 1.0, "recovery": 1.0}),
        "consistency.external_score.recovery = 'recovery': Input should be 'saebench', 'cebench', 'alignment' or 'ev'",
    ),
    "a score without a weight": (
        of_sweep(external_score={"saebench": 0.0, "ev": 0.0}),
        "consistency: external_score: all weights are 0, so that no seed is better; give at least one above 0",
    ),
    "an unknown gate": (
        of_sweep(acceptance={"max_ev_dropp": 0.1}),
        "consistency.acceptance: key 'max_ev_dropp' is unknown; the nearest is 'max_ev_drop'",
    ),
    "more active than true features": (
        of_sweep(known_truth={"features": 4, "active": 8}),
        "consistency.known_truth: active = 8 exceeds features = 4; lower it",
    ),
    "a seed on known features twice": (
        of_sweep(known_truth={"seeds": [0, 0, 1, 2]}),
        "consistency.known_truth: seed 0 is given twice; keep one",
    ),
    "no validation rows": (
        of_sweep() | {"activations": smoke_data()["activations"] | {"validation_rows": 0}},
        "activations.validation_rows = 0, but consistency chooses checkpoints by them; give some",
    ),
    "a source without its section": (
        smoke_data(consistency=None),
        "selection.sources: this cycle trains no 'consistency'; name frontier, or add its section",
    ),
}


@pytest.mark.parametrize(("data", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_a_mistake_in_a_sweep_is_refused_with_its_key_and_a_remedy(
    tmp_path: Path, data: dict[str, Any], said: str
) -> None:
    assert refusal(tmp_path, data).startswith(said)


@pytest.mark.parametrize("architecture", sorted({*ARCHITECTURES} - {*CONSISTENT}))
def test_an_architecture_without_the_objective_is_refused_before_anything_is_trained(
    tmp_path: Path, architecture: str
) -> None:
    known = "topk, batchtopk, matryoshka_batchtopk, hierarchical_topk, routed_topk, standard"
    said = f"{architecture} has no such objective; use {known}"
    assert refusal(tmp_path, of_sweep(conditions=[{"architecture": architecture}])) == f"consistency: {said}"
    own = {"lambda": 0.1, "reference": 9}
    one = smoke_data(conditions=[{"architecture": architecture, "consistency": own}])
    assert refusal(tmp_path, one) == f"conditions.0: consistency: {said}"


@pytest.mark.parametrize("architecture", CONSISTENT)
def test_every_member_of_the_topk_family_and_standard_can_be_swept(tmp_path: Path, architecture: str) -> None:
    path = write_params(tmp_path / "p.yaml", of_sweep(conditions=[{"architecture": architecture}]))
    sweep = load_cycle(path).consistency
    assert sweep is not None
    assert [one.objective is None for one in sweep.swept()] == [True, False, False]


# The objective of one condition


def with_objective(**objective: Any) -> dict[str, Any]:
    """The smoke cycle whose first condition has an objective of its own, without a sweep."""
    conditions = [{"architecture": "topk", "consistency": objective}]
    return smoke_data(conditions=conditions, consistency=None, selection={"sources": ["frontier"]})


def test_the_weight_of_an_objective_is_called_lambda_in_files_and_records(tmp_path: Path) -> None:
    path = write_params(tmp_path / "p.yaml", with_objective(**{"lambda": 0.25, "reference": 9}))
    params = load_cycle(path)
    assert params.conditions[0].objective == ObjectiveParams.model_validate({"lambda": 0.25, "reference": 9})
    assert params.conditions[0].objective.weight == 0.25
    written = params.model_dump(mode="json")
    assert written["conditions"][0]["consistency"] == {
        "lambda": 0.25, "reference": 9, "references": [], "assignment_interval": 4,
    }  # fmt: skip
    assert check(CycleParams, yaml.safe_load(canonical_json(written)), "again") == params


@pytest.mark.parametrize(("key", "nearest"), [("lambda_", "lambda"), ("weight", "assignment_interval")])
def test_the_weight_has_no_other_name(tmp_path: Path, key: str, nearest: str) -> None:
    said = refusal(tmp_path, with_objective(**{key: 0.25, "reference": 9}))
    assert said == f"conditions.0.consistency: key '{key}' is unknown; the nearest is '{nearest}'"


def test_an_objective_of_weight_0_is_none_and_one_without_weight_is_refused(tmp_path: Path) -> None:
    path = write_params(tmp_path / "p.yaml", with_objective(**{"lambda": 0.0, "reference": 9}))
    assert load_cycle(path).conditions[0].objective is None
    assert refusal(tmp_path, with_objective(reference=9)) == "conditions.0.consistency.lambda is missing; add it"


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ({"reference": 2}, "consistency: seed 2 would be its own reference; name another reference"),
        ({"references": [9, 5]}, "consistency: seed 5 would be its own reference; name another reference"),
        ({"reference": "mutual"}, "consistency: mutual needs two banks of two seeds, and there are 3 seeds"),
    ],
    ids=["training seed", "confirmation seed", "mutual"],
)
def test_an_objective_must_suit_the_seeds_of_the_cycle_and_of_its_confirmation(
    tmp_path: Path, objective: dict[str, Any], said: str
) -> None:
    assert refusal(tmp_path, with_objective(**{"lambda": 0.1}, **objective)).startswith(said)


# What a sweep trains


def sweep_of(lambdas: list[float], *conditions: dict[str, Any], **changes: Any) -> ConsistencyParams:
    whole = [Condition(**{"architecture": "topk", **SHARED, **one}) for one in conditions or ({},)]
    given: dict[str, Any] = {"references": [100, 101], "lambdas": lambdas} | changes
    return ConsistencyParams(conditions=whole, **given)


def test_a_sweep_trains_every_condition_at_every_weight_and_names_both() -> None:
    sweep = sweep_of([0.0, 0.05, 1.0], {}, {"name": "wide", "d_sae": 128}, assignment_interval=2)
    swept = sweep.swept()
    assert [(one.name, one.d_sae, one.consistency and one.consistency.weight) for one in swept] == [
        ("topk_lambda_0", 64, None), ("topk_lambda_0_05", 64, 0.05), ("topk_lambda_1", 64, 1.0),
        ("wide_lambda_0", 128, None), ("wide_lambda_0_05", 128, 0.05), ("wide_lambda_1", 128, 1.0),
    ]  # fmt: skip
    assert [sweep.base_of(one.name) for one in swept] == ["topk_lambda_0"] * 3 + ["wide_lambda_0"] * 3
    shared = {one.consistency.model_dump_json(exclude={"weight"}) for one in swept if one.consistency}
    assert shared == {'{"reference":null,"references":[100,101],"assignment_interval":2}'}


@pytest.mark.parametrize(
    ("weight", "name"),
    [
        (0.1, "topk_lambda_0_1"), (0.1000001, "topk_lambda_0_1000001"), (10.0, "topk_lambda_10"),
        (1e6, "topk_lambda_1000000"), (1e-5, "topk_lambda_1em05"), (1e20, "topk_lambda_1e20"),
    ],
)  # fmt: skip
def test_weights_that_differ_have_names_that_differ(weight: float, name: str) -> None:
    assert [one.name for one in sweep_of([0.0, weight]).swept()] == ["topk_lambda_0", name]


def test_a_condition_that_is_named_after_a_weight_keeps_its_own_base() -> None:
    sweep = sweep_of([0.0, 0.5], {"name": "topk_lambda_0"})
    assert [(one.name, sweep.base_of(one.name)) for one in sweep.swept()] == [
        ("topk_lambda_0_lambda_0", "topk_lambda_0_lambda_0"), ("topk_lambda_0_lambda_0_5", "topk_lambda_0_lambda_0"),
    ]  # fmt: skip


def test_conditions_of_a_sweep_take_what_they_leave_out_from_sae(tmp_path: Path) -> None:
    data = of_sweep(conditions=[{"architecture": "topk", "k": 4}])
    sweep = load_cycle(write_params(tmp_path / "p.yaml", data)).consistency
    assert sweep is not None
    assert (sweep.conditions[0].d_sae, sweep.conditions[0].k, sweep.conditions[0].match_l0) == (64, 4, "k")
    step = check_sections({"sae": data["sae"], "consistency": data["consistency"]}, "step consistency")
    assert step.consistency == sweep


def test_a_sweep_that_says_nothing_of_acceptance_asks_for_what_phase_4d_asked_for() -> None:
    limits = sweep_of([0.0, 0.1]).acceptance
    assert limits == AcceptanceParams(
        min_delta_pwmcc=0.0, min_delta_lcb=0.0, max_ev_drop=0.05, min_external_delta=0.0, min_cebench_delta=None
    )


# Whom a seed is aligned with


@pytest.mark.parametrize(
    ("given", "dealt", "banks"),
    [
        ({"references": None, "reference": 9}, [9] * 5, [()] * 5),
        ({"references": [100, 101]}, [100, 101, 100, 101, 100], [()] * 5),
        (MUTUAL, [5, 6, 5, 6, 5], [(5, 7, 9), (6, 8), (5, 7, 9), (6, 8), (5, 7, 9)]),
    ],
    ids=["one", "two", "mutual"],
)
def test_seeds_are_dealt_in_turn(given: dict[str, Any], dealt: list[int], banks: list[tuple[int, ...]]) -> None:
    sweep = sweep_of([0.0, 0.1], **{key: value for key, value in given.items() if value is not None}, **{
        key: [] for key, value in given.items() if value is None
    })  # fmt: skip
    seeds = [5, 6, 7, 8, 9]
    assert [sweep.reference_of(seeds, i) for i in range(5)] == dealt
    assert [sweep.bank_of(seeds, i) for i in range(5)] == banks


# Matched baselines of several sweeps


def shape(d_sae: int, k: int = 8, samples: int = 16384) -> SaeParams:
    return SaeParams(d_sae=d_sae, k=k, training_samples=samples)


def test_a_baseline_has_the_seeds_of_every_sweep_with_its_shape() -> None:
    sweeps = [([shape(64), shape(128)], [0, 1, 2]), ([shape(64), shape(64, 16)], [2, 7])]
    assert baseline_seeds(sweeps) == {
        "baseline_64_k8": [0, 1, 2, 7], "baseline_64_k16": [2, 7], "baseline_128_k8": [0, 1, 2],
    }  # fmt: skip


def test_the_only_shape_of_all_sweeps_has_the_plain_name_and_each_seed_once() -> None:
    longer = shape(64, samples=32768)
    assert baseline_seeds(iter([([shape(64)], [0, 1]), ([longer, shape(64)], [1, 0, 5])])) == {"baseline": [0, 1, 5]}


def test_a_cycle_needs_baselines_for_its_conditions_and_for_its_sweep(tmp_path: Path) -> None:
    data = of_sweep(conditions=[{"architecture": "topk", "d_sae": 128}], seeds=[8, 9])
    assert baseline_seeds(load_cycle(write_params(tmp_path / "p.yaml", data)).trained.values()) == {
        "baseline_64_k8": [0, 1, 2], "baseline_128_k8": [8, 9],
    }  # fmt: skip
    assert baseline_seeds(load_cycle(SMOKE).trained.values()) == {"baseline": [0, 1, 2]}
