"""Confirmation trains what was selected, at seeds that took no part in the choice, or says why not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import synthetic_rows as made_up
from small_saes import condition

from husai_lib.evidence.steps import condition_of, why_unconfirmed

SELECTED = {"source": "frontier", "condition": "topk", "seed": 0}
ABOUT = {"model": {"name": "tiny"}, "activations": {"training_rows": 8}, "texts": {"training": ["a"]}}

SWEEP = {
    "conditions": [condition("topk", k=8).model_dump()], "lambdas": [0.0, 0.5], "references": [100, 101],
    "assignment_interval": 2,
}  # fmt: skip
SWEPT = {"source": "consistency", "condition": "topk_lambda_0_5", "seed": 0}


def records(**changes: Any) -> Any:
    """Reads records: a frontier with topk at seeds 0 to 2, and the activations of this run and of an earlier one."""
    conditions = [condition("other", k=4).model_dump(), condition("topk", k=8).model_dump()]
    members = [made_up.member("topk", seed) for seed in range(3)]
    frontier = SimpleNamespace(
        step="frontier", data={"parameters": {"conditions": conditions}}, table=lambda name: members
    )
    swept = [made_up.member("topk_lambda_0_5", seed, reference=100 + seed % 2) for seed in range(3)]
    consistency = SimpleNamespace(
        step="consistency", data={"parameters": {"consistency": SWEEP}}, table=lambda name: swept
    )
    found = {"frontier": frontier, "old/run/frontier": frontier, "imported/old/selection": frontier}
    found |= {"consistency": consistency, "old/run/consistency": consistency}
    found["activations"] = found["old/run/activations"] = SimpleNamespace(data={"parameters": ABOUT})
    return (found | changes).__getitem__


def test_the_condition_is_the_one_that_was_selected_with_all_its_hyperparameters() -> None:
    assert condition_of(SELECTED, records()) == condition("topk", k=8)


@pytest.mark.parametrize("source", ["consistency", "old/run/consistency"])
def test_a_group_of_a_sweep_is_confirmed_with_its_objective(source: str) -> None:
    found = condition_of(SWEPT | {"source": source}, records())
    objective = {"lambda": 0.5, "references": [100, 101], "reference": None, "assignment_interval": 2}
    assert found.objective is not None
    assert found.objective.model_dump() == objective
    assert (found.name, found.k, found.architecture) == ("topk_lambda_0_5", 8, "topk")
    plain = condition_of(SWEPT | {"condition": "topk_lambda_0"}, records())
    assert (plain.name, plain.objective) == ("topk_lambda_0", None)


@pytest.mark.parametrize(
    ("selected", "seeds", "read", "why"),
    [
        (SELECTED, [3, 4, 5], records(), ""),
        (SWEPT, [3, 4, 5], records(), ""),
        (SWEPT, [2, 4, 5], records(), "it was selected at seed 2, which therefore confirms nothing"),
        (SELECTED | {"source": "old/run/frontier"}, [3, 4, 5], records(), ""),
        (SELECTED, [], records(), "the parameters name no confirmation seeds"),
        (None, [3, 4, 5], records(), "no candidate was selected"),
        (SELECTED, [2, 4, 5], records(), "it was selected at seed 2, which therefore confirms nothing"),
        (
            SELECTED | {"source": "old/run/frontier"},
            [3, 4, 5],
            records(**{"old/run/activations": SimpleNamespace(data={"parameters": ABOUT | {"model": {"name": "b"}}})}),
            "the candidate of old/run/frontier was trained on other model than this run's",
        ),
        (
            SELECTED | {"source": "imported/old/selection"},
            [3, 4, 5],
            records(**{"imported/old/selection": SimpleNamespace(data={"parameters": {}})}),
            "the candidate is of imported/old/selection, an import without weights",
        ),
    ],
)
def test_it_says_why_nothing_is_trained_again(selected: Any, seeds: list[int], read: Any, why: str) -> None:
    assert why_unconfirmed(selected, seeds, read) == why
