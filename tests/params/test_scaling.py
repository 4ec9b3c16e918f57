"""The grid of phase 4e: its points, their names, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from stand_ins import smoke_data

from husai_lib.errors import ParameterError
from husai_lib.files import REPOSITORY
from husai_lib.params.cycle import CycleParams, given_to, load_cycle
from husai_lib.params.scaling import ScalingParams, name_of, point_of

CONDITION = {"architecture": "topk", "d_sae": 64, "k": 8, "training_samples": 4096, "batch_size": 512}
GRID = {"condition": CONDITION, "tokens": [1000, 3000], "hook_layers": [0, 1], "d_sae": [32, 64], "epochs": 5}


def grid(**changes: Any) -> ScalingParams:
    return ScalingParams.model_validate(GRID | changes)


def cycle(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> CycleParams:
    data = yaml.safe_load((REPOSITORY / "params" / "smoke.yaml").read_text())
    change(data)
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(data))
    return load_cycle(tmp_path / "p.yaml")


def test_every_budget_meets_every_layer_and_width_once() -> None:
    points = [point_of(one.name) for one in grid().conditions()]
    assert points == [
        (0, 1000, 32), (0, 1000, 64), (0, 3000, 32), (0, 3000, 64),
        (1, 1000, 32), (1, 1000, 64), (1, 3000, 32), (1, 3000, 64),
    ]  # fmt: skip


def test_a_point_trains_for_its_epochs_at_its_width_and_nothing_else_differs() -> None:
    for one in grid().conditions():
        _, tokens, d_sae = point_of(one.name)
        assert (one.training_samples, one.d_sae, one.batch_size) == (5 * tokens, d_sae, 512)
        assert (one.k, one.architecture) == (8, "topk")
    assert {one.batch_size for one in grid(tokens=[100]).conditions()} == {100}


def test_the_name_of_a_baseline_gives_its_point_too() -> None:
    assert point_of(f"baseline_{name_of((3, 500, 128))}") == point_of(name_of((3, 500, 128))) == (3, 500, 128)


def test_only_axes_that_vary_have_effects() -> None:
    assert grid().effects() == ["layer", "tokens", "d_sae", "layer x tokens", "layer x d_sae", "tokens x d_sae"]
    assert grid(hook_layers=[1]).effects() == ["tokens", "d_sae", "tokens x d_sae"]
    assert grid(hook_layers=[1], tokens=[1000]).effects() == ["d_sae"]


def test_each_layer_is_read_at_the_kind_of_hook_of_the_cycle(tmp_path: Path) -> None:
    joined = "blocks.0.hook_resid_pre+blocks.1.hook_resid_pre"
    one = cycle(tmp_path, lambda data: data["activations"].update(hook_name=joined))
    assert one.scaling is not None
    read = one.scaling.read_at(one.activations)
    assert [at.hook_name for at in read] == ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"]
    assert {at.training_rows for at in read} == {2048}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": [3000, 1000]}, "scaling: tokens = [3000, 1000] do not ascend; sort them"),
        ({"d_sae": [32, 32]}, "scaling: d_sae = [32, 32] do not ascend; sort them"),
        ({"seeds": [1, 1]}, "scaling: seed 1 is given twice; keep one"),
        ({"d_sae": [4, 64]}, "k = 8 exceeds d_sae = 4"),
        ({"hook_layers": [0, 7]}, "blocks.7.hook_resid_post is beyond the model's 2 layers, 0 to 1"),
        ({"condition": {"architecture": "layerwise"}}, "layerwise reads joined layers; name one that reads one"),
        (
            {"condition": {"architecture": "topk", "consistency": {"lambda": 0.3, "reference": 9}}},
            "scaling: condition: the grid is of plain SAEs; leave out consistency, or write a sweep of it",
        ),
        ({"token": [1]}, "scaling: key 'token' is unknown; the nearest is 'tokens'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_in_a_grid_is_refused_in_one_sentence(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ParameterError) as refused:
        cycle(tmp_path, lambda data: data["scaling"].update(change))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


# --- further sweeps ------------------------------------------------------------------------------


def routed(**changes: Any) -> Callable[[dict[str, Any]], None]:
    sweep = {"conditions": [{"architecture": "routed_topk", "num_experts": 4}]} | changes
    return lambda data: data.update(sweeps={"routed": sweep})


def test_a_further_sweep_takes_shared_keys_from_sae_and_seeds_from_the_cycle(tmp_path: Path) -> None:
    one = cycle(tmp_path, routed())
    conditions, seeds = one.trained["routed"]
    assert (conditions[0].d_sae, conditions[0].k, seeds) == (64, 8, [0, 1, 2])
    assert list(one.trained) == ["frontier", "routed", "consistency"]
    assert cycle(tmp_path, routed(seeds=[7, 8])).trained["routed"][1] == [7, 8]


def test_a_step_is_given_the_conditions_and_seeds_of_its_own_sweep(tmp_path: Path) -> None:
    values = cycle(tmp_path, routed(seeds=[7, 8])).model_dump(mode="json")
    own, first = given_to("routed", values), given_to("frontier", values)
    assert ([c["name"] for c in own["conditions"]], own["seeds"]) == (["routed_topk"], [7, 8])
    assert (len(first["conditions"]), first["seeds"]) == (4, [0, 1, 2])
    assert own["probing"] == first["probing"]


def test_a_cycle_may_train_further_sweeps_only(tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        routed()(data)
        del data["conditions"]
        data["selection"] = {"sources": ["routed"]}

    assert list(cycle(tmp_path, change).trained) == ["routed", "consistency"]


def test_two_sweeps_may_use_a_name_of_a_condition_each_for_its_own(tmp_path: Path) -> None:
    one = cycle(tmp_path, routed(conditions=[{"architecture": "topk", "d_sae": 32}]))
    widths = {step: [c.d_sae for c in conditions if c.name == "topk"] for step, (conditions, _) in one.trained.items()}
    assert widths == {"frontier": [64], "routed": [32], "consistency": []}


def test_an_assignment_changes_a_sweep_and_a_grid(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        yaml.safe_dump(smoke_data(sweeps={"routed": {"conditions": [{"architecture": "topk"}]}}))
    )
    changed = ["sweeps.routed.seeds=[7, 8]", "sweeps.wide.conditions=[{architecture: topk, d_sae: 128}]",
               "scaling.tokens=[512]"]  # fmt: skip
    one = load_cycle(tmp_path / "p.yaml", changed)
    assert {name: (len(conditions), seeds) for name, (conditions, seeds) in one.trained.items()} == {
        "frontier": (4, [0, 1, 2]), "routed": (1, [7, 8]), "wide": (1, [0, 1, 2]), "consistency": (3, [0, 1, 2]),
    }  # fmt: skip
    assert one.scaling is not None
    assert one.scaling.levels["tokens"] == [512]
    with pytest.raises(ParameterError, match=r"sweeps\.routed: key 'seed' is unknown; the nearest is 'seeds'"):
        load_cycle(tmp_path / "p.yaml", ["sweeps.routed.seed=[7]"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.update(sweeps={"gate": {"conditions": [{"architecture": "topk"}]}}),
         "sweeps: 'gate' is the name of another step; choose another name"),
        (lambda data: data["selection"].update(sources=["routed"]),
         "selection.sources: this cycle trains no 'routed'; name frontier or consistency, or add its section"),
        (lambda data: [data.pop("conditions"), data.pop("consistency"), data.pop("scaling")],
         "there are no conditions, so nothing is trained; add conditions, sweeps or consistency"),
        (routed(seeds=[3]), "confirmation.seeds: 3 is also one of seeds"),
        (routed(conditions=[]), "sweeps.routed.conditions"),
        (routed(conditions=[{"architecture": "topk"}, {"architecture": "topk"}]), "condition 'topk' is given twice"),
        (routed(seeds=[7, 7]), "seed 7 is given twice; keep one"),
        (routed(conditions=[{"architecture": "topk", "name": "baseline_64_k8"}]), "has the name of a baseline"),
        (lambda data: data.update(sweeps={"Routed": {"conditions": [{"architecture": "topk"}]}}), "sweeps"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_further_sweep_is_refused(tmp_path: Path, change: Callable[[Any], Any], said: str) -> None:
    with pytest.raises(ParameterError) as refused:
        cycle(tmp_path, change)
    assert said in str(refused.value)
