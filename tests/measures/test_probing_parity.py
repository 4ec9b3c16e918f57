"""On a real model and real data sets, probing gives the numbers of sae-probes itself: same splits, latents and AUCs."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMOLLM, RealBank
from threadpoolctl import threadpool_limits

from husai_lib.activations.banks import Bank
from husai_lib.activations.extraction import prompt_banks
from husai_lib.activations.language_model import open_model
from husai_lib.activations.texts import probing_set
from husai_lib.measures import logistic
from husai_lib.measures.probing import ProbeTask, _scores_by_k, fit_l2, llm_scores, probe_tasks
from husai_lib.params.benchmarks import ProbingParams
from husai_lib.params.conditions import Condition
from husai_lib.params.inputs import ActivationParams, ModelParams
from husai_lib.saes.trained import TrainedSae
from husai_lib.saes.training import members, train_bank

HOOK = "blocks.2.hook_resid_post"
NAMES = [  # short prompts of eight kinds, 728 to 2000 of them
    "41_truthqa_tf", "95_toxic_is", "114_nyc_borough_Manhattan", "117_us_state_FL", "119_us_state_TX",
    "123_world_country_United_Kingdom", "125_world_country_Italy", "130_temp_cat_Frequency",
    "131_temp_cat_Typical Time", "133_context_type_Causality", "154_athlete_sport_football",
    "156_athlete_sport_baseball",
]  # fmt: skip
KS = [1, 2, 5, 16]
WITHIN = 1e-4


@pytest.fixture(scope="module")
def banks(real_bank: RealBank) -> dict[str, Bank]:
    read = ActivationParams(hook_name=HOOK, training_rows=1, held_out_rows=1, probe_tokens=32)
    model = open_model(ModelParams(name=SMOLLM, prepend_bos=True))
    found = prompt_banks(model, [probing_set(name) for name in NAMES], read)
    return {f"probing/{name}": bank for name, bank in zip(NAMES, found, strict=True)}


@pytest.fixture(scope="module")
def saes(real_bank: RealBank) -> list[TrainedSae]:
    shared: dict[str, Any] = {"d_sae": 512, "k": 32, "training_samples": 512 * 100, "batch_size": 512}
    conditions = [Condition(architecture=name, **shared) for name in ("topk", "routed_topk")]
    return train_bank(members(conditions, [0]), real_bank.training)


@pytest.fixture(scope="module")
def folder(banks: dict[str, Bank], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The banks as the files in which sae-probes expects activations, so that it loads no model."""
    folder = tmp_path_factory.mktemp("sae_probes")
    (folder / "model_activations_real").mkdir()
    for name in NAMES:
        rows = torch.from_numpy(np.array(banks[f"probing/{name}"].rows))
        torch.save(rows, folder / "model_activations_real" / f"{name}_{HOOK}.pt")
    return folder


def by_sae_probes(sae: TrainedSae, folder: Path, names: list[str], setting: str, **options: Any) -> dict[str, Any]:
    """The rows that the package itself writes, by file name."""
    reference = importlib.import_module("sae_probes.run_sae_evals")
    results = folder / "_".join([sae.entry.key[:8], setting, *map(str, options.values())])
    with threadpool_limits(1):
        reference.run_sae_evals(
            sae=sae.sae, model_name="real", hook_name=HOOK, setting=setting, datasets=names, model_cache_path=folder,
            results_path=results, device="cpu", **options,
        )  # fmt: skip
    files = (results / "sae_probes_real" / f"{setting}_setting").glob("*.json")
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in files}


def published(names: list[str], banks: dict[str, Bank]) -> list[ProbeTask]:
    """The tasks as sae-probes has them: with duplicate prompts."""
    return [ProbeTask(probing_set(name), banks[f"probing/{name}"]) for name in names]


def assert_equal(tasks: list[ProbeTask], sae: TrainedSae, expected: list[list[dict[str, Any]]], **given: Any) -> None:
    params = ProbingParams(**given)
    for task, theirs in zip(tasks, expected, strict=True):
        [ours] = _scores_by_k([sae], task, params)
        assert [score.k for score in ours] == [row["k"] for row in theirs] == params.ks
        assert [score.latents for score in ours] == [row["indices"] for row in theirs]
        assert [score.test_auc for score in ours] == pytest.approx([row["test_auc"] for row in theirs], abs=WITHIN)
        assert [score.validation_auc for score in ours] == pytest.approx([row["val_auc"] for row in theirs], abs=WITHIN)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("which", [0, 1], ids=["topk", "routed_topk"])
def test_twelve_data_sets_give_the_latents_and_the_aucs_of_sae_probes(
    which: int, banks: dict[str, Bank], saes: list[TrainedSae], folder: Path
) -> None:
    theirs = by_sae_probes(saes[which], folder, NAMES, "normal", reg_type="l1", ks=KS)
    expected = [theirs[f"{name}_{HOOK}_l1.json"] for name in NAMES]
    assert_equal(published(NAMES, banks), saes[which], expected, ks=KS)


@pytest.mark.parametrize("options", [{"binarize": True}, {"penalty": "l2"}], ids=str)
def test_so_do_binary_latents_and_the_l2_penalty(
    options: dict[str, Any], banks: dict[str, Bank], saes: list[TrainedSae], folder: Path
) -> None:
    names, penalty, binarize = NAMES[1:4], options.get("penalty", "l1"), "binarize" in options
    theirs = by_sae_probes(saes[0], folder, names, "normal", reg_type=penalty, ks=[1, 5], binarize=binarize)
    expected = [theirs[f"{name}_{HOOK}_{penalty}{'_binarized' if binarize else ''}.json"] for name in names]
    assert_equal(published(names, banks), saes[0], expected, ks=[1, 5], **options)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("setting", ["scarcity", "imbalance"])
def test_so_does_every_point_of_the_other_settings(
    setting: Any, banks: dict[str, Bank], saes: list[TrainedSae], folder: Path
) -> None:
    name, given = "95_toxic_is", ProbingParams(setting=setting, ks=[2])
    tasks = [task for task in probe_tasks([name], banks, given) if task.duplicates == "keep"]
    assert len(tasks) == {"scarcity": 18, "imbalance": 19}[setting]
    theirs = by_sae_probes(saes[0], folder, [name], setting, reg_type="l1", ks=[2])
    middle = "" if setting == "scarcity" else "frac"
    expected = [theirs[f"{name}_{HOOK}_{middle}{task.at}_l1.json"] for task in tasks]
    assert len(theirs) == len(tasks)
    assert_equal(tasks, saes[0], expected, setting=setting, ks=[2])


@pytest.mark.timeout(600)
def test_the_baseline_on_raw_activations_is_exactly_that_of_sae_probes(banks: dict[str, Bank], folder: Path) -> None:
    names, reference = NAMES[1:4], importlib.import_module("sae_probes.run_baselines")
    with threadpool_limits(1):
        reference.run_baseline_evals(
            "real", HOOK, "normal", results_path=folder, model_cache_path=folder, datasets=names, device="cpu"
        )
    files = [folder / "baseline_results_real" / "normal_setting" / f"{name}_{HOOK}_logreg.json" for name in names]
    expected = [json.loads(path.read_text(encoding="utf-8"))[0] for path in files]
    scores = llm_scores(published(names, banks), ProbingParams())
    assert [score.test_auc for score in scores] == [row["test_auc"] for row in expected]
    assert [score.validation_auc for score in scores] == [row["val_auc"] for row in expected]


def test_a_probe_is_the_same_alone_and_among_others(banks: dict[str, Bank], saes: list[TrainedSae]) -> None:
    [task] = published(["95_toxic_is"], banks)
    params = ProbingParams(ks=KS)
    together = _scores_by_k([*saes, saes[0]], task, params)
    assert together == [*_scores_by_k([saes[0]], task, params), *_scores_by_k([saes[1]], task, params), together[0]]


def test_lanes_beyond_a_block_change_no_bit() -> None:
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((3, 200, 4)) * (rng.random((3, 200, 4)) < 0.4)).astype(np.float32)
    y = (rng.random(200) < 0.5).astype(int)
    which, C = np.arange(100) % 3, np.logspace(-2, 4, 100)
    many = logistic.saga(X, y, which, C, 7)
    for p in (0, 31, 32, 64, 99):
        one = logistic.saga(X, y, which[[p]], C[[p]], 7)
        np.testing.assert_array_equal(one[0][0], many[0][p])
        assert one[1][0] == many[1][p]


def test_validation_rows_of_one_class_say_nothing_about_the_strength() -> None:
    """In imbalanced splits the last 100 training rows may hold one class; every strength then scores 0.5."""
    rng = np.random.default_rng(3)
    y = np.zeros(300, int)
    y[:40] = 1
    rows = rng.standard_normal((300, 4)).astype(np.float32)
    rows[:40, 0] += 2
    coefficients, _, validation = logistic.fit_best(rows[None], y, 7)
    assert validation.tolist() == [0.5]
    assert coefficients[0, 0] > 1
    assert fit_l2([(rows, y), (rows, y)], 7).validation_auc == 0.5
