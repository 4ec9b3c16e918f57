"""The grid of phase 4e, trained and measured: every point on its own rows beside a baseline of its own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache as remembered
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from small_saes import bank, cache
from stand_ins import smoke_data
from synthetic_banks import bank_of, dictionary, sparse_rows

from husai_lib.activations.banks import Bank
from husai_lib.activations.extraction import text_bank
from husai_lib.activations.language_model import LanguageModel
from husai_lib.activations.texts import ProbingSet, drawn_texts
from husai_lib.cycle.run import STEPS
from husai_lib.evidence.rows.measured import MemberRow
from husai_lib.evidence.rows.scaling import EFFECTS_ON
from husai_lib.measures import probing, scaling
from husai_lib.measures.contrastive import contrastive_scores
from husai_lib.measures.probing import llm_scores, probe_tasks
from husai_lib.measures.scaling import Tables, effect_rows, grid_tables, read_layer
from husai_lib.params.cycle import check_sections
from husai_lib.params.scaling import name_of, point_of
from husai_lib.saes.baseline import train_baseline
from husai_lib.saes.training import members, train_bank

assert cache  # the fixture that every test of this module uses

DATA_SET = "7_hist_fig_ispolitician"
GRID = {"condition": {"architecture": "topk"}, "tokens": [256, 512], "hook_layers": [0, 1], "d_sae": [16, 24],
        "epochs": 2, "seeds": [5, 8]}  # fmt: skip


PROMPTS = ProbingSet(DATA_SET, tuple(f"prompt {i}" for i in range(300)), np.arange(300) % 2, ("0", "1"))


@pytest.fixture(scope="module", autouse=True)
def few_prompts() -> Iterator[None]:
    """A probing data set of 300 prompts in place of one of thousands."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (probing, scaling):
            patch.setattr(module, "probing_set", lambda _: PROMPTS)
        yield


def given(**changes: Any) -> dict[str, Any]:
    """The sections of the step, of the smoke cycle but for a smaller grid and one data set."""
    data = smoke_data(scaling=GRID | changes)
    data["texts"] |= {"probing": [DATA_SET]}
    data["probing"] = {"ks": [1], "splits": 1}
    data["sae"] |= {"k": 4, "batch_size": 128}
    return {name: data[name] for name in next(step for step in STEPS if step.name == "scaling").sections}


def sections(**changes: Any) -> Any:
    return check_sections(given(**changes), "a test")


def parameters(**changes: Any) -> dict[str, Any]:
    """The same as JSON values, as a record has them."""
    values: dict[str, Any] = sections(**changes).model_dump(mode="json")
    return values


@remembered
def layer(number: int) -> dict[str, Bank]:
    """Made-up banks of one layer, whose features are its own; classes of the prompts can be told apart."""
    features = dictionary(24, 32, seed=number)
    training, held_out, stories, prompts = (
        sparse_rows(features, n, 3, seed=4 * number + i) for i, n in enumerate((512, 200, 80, 300))
    )
    return {
        "training/256": bank_of(training[:256]),
        "training/512": bank_of(training),
        "held_out": bank_of(held_out),
        "stories": bank(stories.numpy(), list(range(0, 81, 10))),
        f"probing/{DATA_SET}": bank_of(prompts + 0.5 * torch.from_numpy(PROMPTS.labels)[:, None] * features[0]),
    }


@pytest.fixture(scope="module")
def made(cache: Any, few_prompts: None) -> Tables:
    """All tables of two layers, two budgets and two widths at two seeds."""
    return grid_tables(sections(), {number: layer(number) for number in (0, 1)})


POINTS = [*product((0, 1), (256, 512), (16, 24))]


def by_name(rows: list[MemberRow]) -> dict[tuple[str, int], MemberRow]:
    return {(row.condition, row.seed): row for row in rows}


def test_every_point_has_an_sae_and_a_baseline_of_its_own_at_every_seed(made: Tables) -> None:
    saes = [(name_of(point), seed) for point in POINTS for seed in (5, 8)]
    baselines = [(f"baseline_{name}", seed) for name, seed in saes]
    rows = by_name(made["members"])
    assert len(rows) == len(made["members"])
    assert [*rows] == saes + baselines
    assert len({row.weights_sha256 for row in made["members"]}) == 32
    assert {(probe.condition, probe.seed) for probe in made["probes"]} == {*saes, *baselines}
    assert {(limit.condition, limit.seed) for limit in made["ceilings"]} == {*saes, *baselines}


def test_saes_and_baselines_of_a_point_are_those_of_its_rows_width_and_epochs(made: Tables) -> None:
    rows, params = by_name(made["members"]), sections()
    for one in params.scaling.conditions():
        number, tokens, d_sae = point_of(one.name)
        own = layer(number)[f"training/{tokens}"]
        assert (len(own.rows), one.training_samples) == (tokens, 2 * tokens)
        for sae in train_bank(members([one], [5, 8]), own):
            found = rows[one.name, sae.member.seed]
            assert (found.weights_sha256, found.d_sae, found.k) == (sae.weights_sha256, d_sae, 4)
        for sae in train_baseline(params.baseline, one, [5, 8], own):
            assert rows[f"baseline_{one.name}", sae.member.seed].weights_sha256 == sae.weights_sha256


def test_external_deltas_are_against_the_baseline_of_the_point_and_the_raw_activation_of_the_layer(
    made: Tables,
) -> None:
    rows, params = by_name(made["members"]), sections()
    raw = {
        number: llm_scores(probe_tasks([DATA_SET], layer(number), params.probing), params.probing) for number in (0, 1)
    }
    assert raw[0][1].test_auc != raw[1][1].test_auc
    for one in params.scaling.conditions():
        number, tokens, _ = point_of(one.name)
        [baseline] = train_baseline(params.baseline, one, [8], layer(number)[f"training/{tokens}"])
        [score] = contrastive_scores([baseline], layer(number)["stories"], params.contrastive)
        own = rows[one.name, 8]
        assert own.cebench_delta == pytest.approx(own.cebench_interpretability - score.interpretability)
        assert own.saebench_delta == pytest.approx(own.saebench_auc - raw[number][1].test_auc)
        assert rows[f"baseline_{one.name}", 8].cebench_delta is None


def test_banks_are_named_by_their_layer(made: Tables) -> None:
    named = {row.bank: row.sha256 for row in made["banks"]}
    assert named == {f"layer_{n}/{name}": one.sha256 for n in (0, 1) for name, one in layer(n).items()}


def test_every_point_has_pairs_of_its_seeds_and_both_nulls(made: Tables) -> None:
    assert [(row.of, row.seed_a, row.seed_b) for row in made["pairs"]] == [(name_of(point), 5, 8) for point in POINTS]
    assert [row.condition for row in made["groups"]] == [name_of(point) for point in POINTS]
    for row in made["groups"]:
        assert (row.n_seeds, row.pwmcc_low) == (2, None)
        assert None not in (row.pwmcc, row.null_random, row.null_gaussian, row.pwmcc_corrected)


def test_effects_are_of_every_metric_and_follow_from_the_tables(made: Tables) -> None:
    rows = effect_rows(made, parameters())
    of = ["layer", "tokens", "d_sae", "layer x tokens", "layer x d_sae", "tokens x d_sae"]
    assert [(row.metric, row.of) for row in rows] == [*product(EFFECTS_ON, of)]
    table = by_name(made["members"])
    ends = [np.mean([table[name_of(point), seed].saebench_delta for point in POINTS if point[1] == tokens
                     for seed in (5, 8)]) for tokens in (256, 512)]  # fmt: skip
    found = next(row for row in rows if (row.metric, row.of) == ("saebench_delta", "tokens"))
    assert found.effect == pytest.approx(ends[1] - ends[0])


def test_a_single_seed_trains_no_nulls_and_has_no_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Bank] = []
    monkeypatch.setattr(scaling, "gaussian_bank", asked.append)
    small = {"tokens": [256], "hook_layers": [0], "seeds": [5]}
    found = grid_tables(sections(**small), {0: layer(0)})
    assert (asked, found["pairs"]) == ([], [])
    for row in found["groups"]:
        assert (row.n_seeds, row.note) == (1, "a single seed has no agreement across seeds")
        assert {row.pwmcc, row.null_random, row.null_gaussian, row.pwmcc_corrected} == {None}
        [probe] = [one for one in found["probes"] if (one.condition, one.duplicates) == (row.condition, "drop")]
        assert row.saebench_delta == pytest.approx(probe.delta)
    of_width = [row for row in effect_rows(found, parameters(**small)) if row.of == "d_sae"]
    assert [row.effect is None for row in of_width] == [metric == "pwmcc" for metric in EFFECTS_ON]
    assert {row.low for row in of_width} == {None}


# Banks of a layer


@pytest.fixture(scope="module")
def read(cache: Any, few_prompts: None, tiny_model: LanguageModel) -> tuple[Any, dict[int, dict[str, Bank]]]:
    """The sections, and the banks of both layers of the tiny model; a tenth of the rows are outliers."""
    asked = given()
    asked["activations"] |= {"max_norm_ratio": 1.15, "held_out_rows": 256}
    params = check_sections(asked, "a test")
    ats = params.scaling.read_at(params.activations)
    return params, {at.layer: read_layer(tiny_model, params, at) for at in ats}


def test_a_smaller_budget_is_the_beginning_of_the_largest(read: tuple[Any, dict[int, dict[str, Bank]]]) -> None:
    for banks in read[1].values():
        few, many = banks["training/256"].rows, banks["training/512"].rows
        assert 0 < len(few) <= 256
        assert len(few) < len(many) < 512, "outliers count towards the budget and are left out"
        assert np.array_equal(few, many[: len(few)])


def test_all_banks_of_a_layer_but_prompts_have_the_norm_limit_of_the_largest_budget(
    read: tuple[Any, dict[int, dict[str, Bank]]], tiny_model: LanguageModel
) -> None:
    params, layers = read
    for at in params.scaling.read_at(params.activations):
        banks = layers[at.layer]
        texts = drawn_texts(params.texts.training, at.seed)
        own = [text_bank(tiny_model, texts, at, [at.hook_name], rows).meta["norm_limit"] for rows in (256, 512)]
        assert own[0] != own[1]
        limited = ("training/256", "training/512", "held_out", "stories")
        assert {banks[name].meta["norm_limit"] for name in limited} == {own[1]}
        for name in limited:
            assert np.linalg.norm(banks[name].rows, axis=1).max() <= own[1]


def test_layers_read_the_same_positions_at_their_own_hook(read: tuple[Any, dict[int, dict[str, Bank]]]) -> None:
    _, layers = read
    assert {n: {bank.hook_name for bank in banks.values()} for n, banks in layers.items()} == {
        n: {f"blocks.{n}.hook_resid_post"} for n in (0, 1)
    }
    prompts = [layers[n][f"probing/{DATA_SET}"] for n in (0, 1)]
    assert len(prompts[0].rows) == len(prompts[1].rows) == 300
    assert not np.array_equal(prompts[0].rows, prompts[1].rows)
