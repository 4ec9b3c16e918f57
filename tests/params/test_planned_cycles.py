"""The planned cycles, number by number, and their small forms: the same stages, conditions, seeds and weights."""

import json
from pathlib import Path

import pytest

from husai_lib.cycle.run import plan, steps_of
from husai_lib.files import REPOSITORY
from husai_lib.params.cycle import CycleParams, load_cycle

GOLDEN = REPOSITORY.parent / "shared" / "golden" / "cycle2" / "assignment_v2_results.json"
FIVE, SIX = [42, 123, 456, 789, 1011], [123, 456, 789, 1011, 1213, 1415]


def read(name: str) -> CycleParams:
    return load_cycle(REPOSITORY / "params" / f"{name}.yaml")


def made_by(params: CycleParams) -> dict[str, int]:
    """How many SAEs each step says that it makes."""
    return {one.step.name: int(one.makes.split()[0]) for one in plan(params) if "members" in one.makes}


@pytest.mark.parametrize("path", sorted((REPOSITORY / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_is_valid_and_named_after_its_cycle(path: Path) -> None:
    assert load_cycle(path).cycle == path.stem


def test_cycle_2_is_what_was_planned() -> None:
    params = read("cycle2")
    assert params.seeds == [42]
    assert params.contrastive.max_rows == 200
    assert [one.architecture for one in params.conditions] == ["topk", "standard", "batchtopk", "jumprelu"]
    assert {(one.d_sae, one.k) for one in params.conditions} == {(1024, 32)}
    grid = params.scaling
    assert grid is not None
    assert (grid.tokens, grid.hook_layers, grid.d_sae) == ([10000, 30000], [0, 1], [1024, 2048])
    assert len(grid.conditions()) == 8
    assert params.consistency is not None
    assert params.consistency.lambdas == [0.0, 0.01, 0.05, 0.1, 0.2]
    assert params.gates.require_random_model
    assert params.gates.require_external


def test_assignment_v2_has_the_weights_seeds_and_thresholds_of_the_time() -> None:
    if not GOLDEN.exists():
        pytest.skip("the records of earlier cycles are not here")
    config, params = json.loads(GOLDEN.read_text())["config"], read("cycle2")
    sweep = params.consistency
    assert sweep is not None
    assert sweep.lambdas == config["lambdas"]
    assert (sweep.reference, sweep.seeds) == (config["seed_ref"], config["train_seeds"])
    (condition,) = sweep.conditions
    assert (condition.d_sae, condition.k, condition.learning_rate) == (
        config["d_sae"], config["k"], config["learning_rate"],
    )  # fmt: skip
    assert condition.training_samples == config["epochs"] * params.activations.training_rows
    stated = sweep.acceptance.model_dump()
    assert {name: stated[name] for name in config["acceptance"]} == config["acceptance"]


def test_cycle_2_at_five_seeds_adds_four_architectures() -> None:
    params, before = read("cycle2_multiseed"), read("cycle2")
    assert params.seeds == FIVE
    assert params.conditions[:4] == before.conditions
    added = [one.architecture for one in params.conditions[4:]]
    assert added == ["matryoshka_batchtopk", "route_sae", "hierarchical_topk", "layerwise"]
    assert params.conditions[-1].hyperparameters["layers"] == ["topk", "standard"]
    assert params.conditions[-1].d_sae == params.conditions[0].d_sae
    assert params.scaling == before.scaling


def test_cycle_7_is_what_was_planned() -> None:
    params = read("cycle7_pareto")
    assert params.model.name.endswith("pythia-70m-deduped")
    assert params.activations.hook_name == "blocks.0.hook_resid_pre"
    assert params.seeds == FIVE
    rows = params.activations.training_rows
    routed = params.sweeps["routed"].conditions
    found = [
        (
            one.name,
            one.d_sae,
            one.k,
            one.hyperparameters["num_experts"],
            one.learning_rate,
            one.training_samples // rows,
        )
        for one in routed
    ]
    assert found == [
        ("p1", 1024, 32, 4, 1e-3, 10),
        ("p2", 2048, 48, 8, 7e-4, 12),
        ("p3", 1536, 40, 6, 8e-4, 12),
        ("p4", 2046, 40, 6, 7e-4, 12),  # planned 2048, which six experts cannot share
        ("p5", 1024, 48, 4, 8e-4, 12),
    ]
    assert {one.architecture for one in routed} == {"routed_topk"}
    sweep = params.consistency
    assert sweep is not None
    assert sweep.seeds == SIX
    assert sweep.lambdas == [0, 0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3]
    assigned = [(c.name, c.d_sae, c.k, c.training_samples // rows, c.learning_rate) for c in sweep.conditions]
    assert assigned == [("a1", 2048, 32, 20, 7e-4), ("a2", 2048, 48, 20, 6e-4), ("a3", 3072, 48, 24, 5e-4)]
    assert list(sweep.external_score.values()) == [0.70, 0.20, 0.05, 0.05]
    assert params.selection.min_seeds == 4
    assert [params.selection.weights[name] for name in ("saebench", "cebench", "train_ev")] == [0.70, 0.25, 0.05]
    assert {"routed", "consistency"} < {*params.selection.sources}
    assert params.selection.mode == "lcb"
    assert params.earlier == ["imported/cycle5", "imported/cycle6"]
    gates = params.gates
    assert (gates.basis, gates.min_saebench_delta, gates.min_cebench_delta) == ("bound", 0.0, 0.0)
    assert gates.require_random_model
    assert gates.require_transcoder
    assert gates.require_ood
    assert gates.require_external


def test_the_plan_of_cycle_7_counts_its_169_members() -> None:
    made = made_by(read("cycle7_pareto"))
    assert (made["routed"], made["consistency"]) == (25, 144)


@pytest.mark.parametrize(("small", "whole"), [("cycle2_small", "cycle2"), ("cycle7_small", "cycle7_pareto")])
def test_a_small_form_has_the_shape_of_the_whole(small: str, whole: str) -> None:
    one, other = read(small), read(whole)
    assert [step.name for step in steps_of(one.model_dump())] == [step.name for step in steps_of(other.model_dump())]
    assert made_by(one) == made_by(other)
    assert (one.seeds, one.confirmation) == (other.seeds, other.confirmation)
    assert one.selection.weights == other.selection.weights
    assert one.gates == other.gates
    for name, (conditions, seeds) in one.trained.items():
        its_conditions, its_seeds = other.trained[name]
        assert seeds == its_seeds
        assert [(c.name, c.architecture) for c in conditions] == [(c.name, c.architecture) for c in its_conditions]
        for mine, its in zip(conditions, its_conditions, strict=True):
            assert mine.d_sae < its.d_sae
            assert (mine.objective is None) == (its.objective is None)
            if mine.objective and its.objective:
                assert mine.objective == its.objective
    assert "package:" in one.model.name
    assert one.texts.stories == "offline"


def test_the_small_forms_can_be_ranked_together() -> None:
    one, other = read("cycle2_small"), read("cycle7_small")
    for section in ("model", "texts", "activations", "probing"):
        assert getattr(one, section) == getattr(other, section), section
    assert one.contrastive.max_rows == other.contrastive.max_rows
