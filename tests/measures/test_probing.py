"""Sparse probing gives the numbers of sae-probes, chooses k without the test set and computes nothing twice."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sae_probes.utils_data import get_train_test_indices
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from small_saes import D_IN, HOOK, bank, cache, random_sae, trained

from husai_lib.activations.banks import Bank
from husai_lib.activations.extraction import prompt_banks
from husai_lib.activations.language_model import open_model
from husai_lib.activations.texts import ProbingSet, probing_set
from husai_lib.errors import DataError
from husai_lib.measures import probing
from husai_lib.measures.probing import (
    ProbeScore,
    ProbeTask,
    llm_scores,
    probe_rows,
    probe_tasks,
    sae_scores,
    shifted_tasks,
)
from husai_lib.params.benchmarks import ProbingParams
from husai_lib.params.inputs import ActivationParams, ModelParams
from husai_lib.saes.trained import TrainedSae

assert cache  # the fixture that every test of this module uses

NAMES = ["117_us_state_FL", "95_toxic_is", "133_context_type_Causality", "154_athlete_sport_football"]
MODEL = ModelParams(name="random:package:husai_lib/data/tiny_gpt_neox", prepend_bos=True)
READ = ActivationParams(hook_name=HOOK, training_rows=1, held_out_rows=1, probe_tokens=64)
PARAMS = ProbingParams()


@pytest.fixture(scope="module")
def banks(cache: Path) -> dict[str, Bank]:
    """Real activations of a tiny model on real data sets: 628, 900 and twice 1024 training rows."""
    found = prompt_banks(open_model(MODEL), [probing_set(name) for name in NAMES], READ)
    return {f"probing/{name}": bank for name, bank in zip(NAMES, found, strict=True)}


@pytest.fixture(scope="module")
def saes(cache: Path) -> list[TrainedSae]:
    return [trained(random_sae(0, "topk")), trained(random_sae(1, "standard"))]


@pytest.fixture
def small() -> ProbeTask:
    """400 rows whose first three dimensions tell the classes apart, and a shifted set of 310 that is harder."""
    return ProbeTask(*_made_up(0, 400, 0.5), shifted=_made_up(1, 310, 0.25))


def _made_up(seed: int, n: int, strength: float) -> tuple[ProbingSet, Bank]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    rows = rng.standard_normal((n, D_IN))
    rows[:, :3] += strength * labels[:, None]
    return ProbingSet("made_up", tuple(f"prompt {i}" for i in range(n)), labels, ("0", "1")), bank(rows)


class Counted:
    """Stands for the fits of SAEs on one task: given scores, and how many SAEs they were asked for."""

    def __init__(self, patch: pytest.MonkeyPatch, *scores: ProbeScore) -> None:
        self.calls, self.scores = 0, list(scores)
        patch.setattr(probing, "_scores_by_k", self)

    def __call__(self, saes: Sequence[TrainedSae], **_: Any) -> list[list[ProbeScore]]:
        self.calls += len(saes)
        return [self.scores for _ in saes]


def test_the_best_k_is_chosen_on_validation_unless_the_test_set_is_asked_for(
    small: ProbeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_validation, by_test = ProbeScore(1, 0.8, 0.6, 0.5), ProbeScore(2, 0.7, 0.9, 0.5)
    made = Counted(monkeypatch, by_validation, by_test)
    sae = trained(random_sae(10))
    assert sae_scores([sae], [small], PARAMS) == [[by_validation]]
    assert sae_scores([sae], [small], ProbingParams(choose_k="test")) == [[by_test]]
    assert made.calls == 1  # the choice is recomputed, the fits are not


def test_of_equal_scores_the_smaller_k_is_chosen(small: ProbeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    Counted(monkeypatch, ProbeScore(1, 0.7, 0.7), ProbeScore(2, 0.8, 0.5), ProbeScore(5, 0.8, 0.9))
    [[score]] = sae_scores([trained(random_sae(11))], [small], PARAMS)
    assert score.k == 2


def test_scores_are_kept_until_something_that_they_depend_on_changes(
    small: ProbeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Counted(monkeypatch, ProbeScore(1, 0.7, 0.7, 0.7))
    sae = trained(random_sae(12))
    assert small.shifted
    data, rows = small.data, np.array(small.bank.rows)
    moved = bank(rows + np.eye(1, D_IN))
    relabelled = dataclasses.replace(data, labels=1 - data.labels)
    shifted_data, shifted_bank = small.shifted
    other_shift = dataclasses.replace(shifted_data, labels=1 - shifted_data.labels)
    variants: list[tuple[TrainedSae, ProbeTask, ProbingParams]] = [
        (sae, small, PARAMS),
        (trained(random_sae(13)), small, PARAMS),
        (trained(random_sae(12, k=9)), small, PARAMS),  # the same weights, another cfg.json
        (sae, small, ProbingParams(ks=[1, 2])),
        (sae, small, ProbingParams(seed=43)),
        (sae, small, ProbingParams(binarize=True)),
        (sae, small, ProbingParams(penalty="l2")),
        (sae, dataclasses.replace(small, at=200), ProbingParams(setting="scarcity")),
        (sae, dataclasses.replace(small, kept=np.arange(398)), PARAMS),
        (sae, dataclasses.replace(small, kept=np.arange(2, 400)), PARAMS),
        (sae, dataclasses.replace(small, shifted_kept=np.arange(300)), PARAMS),
        (sae, dataclasses.replace(small, split=2), PARAMS),
        (sae, ProbeTask(relabelled, small.bank, small.shifted), PARAMS),
        (sae, ProbeTask(data, moved, small.shifted), PARAMS),
        (sae, ProbeTask(data, small.bank), PARAMS),
        (sae, ProbeTask(data, small.bank, (other_shift, shifted_bank)), PARAMS),
        (sae, ProbeTask(data, small.bank, (shifted_data, bank(np.array(shifted_bank.rows) * 2))), PARAMS),
    ]
    for variant, (one, task, params) in enumerate(variants, start=1):
        for _ in range(2):
            sae_scores([one], [task], params)
            assert made.calls == variant


def test_scores_of_other_saes_and_data_sets_in_the_cache_enter_nothing(
    banks: dict[str, Bank], saes: list[TrainedSae], cache: Path
) -> None:
    tasks = probe_tasks(NAMES[:2], banks, ProbingParams(splits=1))
    everything = sae_scores(saes, tasks, PARAMS)
    (cache / "probes" / "stray.json").write_text('[{"k": 1, "validation_auc": 1.0, "test_auc": 1.0}]', encoding="utf-8")
    assert sae_scores(saes[1:], tasks[2:3], PARAMS) == [[everything[1][2]]]
    assert llm_scores(tasks[1:2], PARAMS) == [llm_scores(tasks, PARAMS)[1]]


def test_rows_name_their_data_set_and_hold_the_difference_to_the_raw_activation(
    banks: dict[str, Bank], saes: list[TrainedSae]
) -> None:
    tasks = probe_tasks(NAMES[:2], banks, ProbingParams(splits=1))[1:3]
    scores = [ProbeScore(2, 0.7, 0.75, latents=[5, 9]), ProbeScore(1, 0.6, 0.5)]
    sae = trained(random_sae(0), 3)
    rows = probe_rows([sae], tasks, [scores], [ProbeScore(32, 0.9, 0.875), ProbeScore(32, 0.9, 0.25)], 42)
    # 740 and 728 rows, of which 100 are held back and one is lost
    assert [(row.duplicates, row.split, row.test_rows) for row in rows] == [("drop", 42, 99), ("keep", 42, 99)]
    assert {(row.condition, row.seed) for row in rows} == {("topk", 3)}
    assert [(row.data_set, row.best_k, row.test_auc, row.llm_auc, row.delta, row.latents) for row in rows] == [
        ("117_us_state_FL", 2, 0.75, 0.875, -0.125, "5 9"),
        ("95_toxic_is", 1, 0.5, 0.25, 0.25, ""),
    ]
    with pytest.raises(ValueError, match="shorter"):  # a missing score is no score
        probe_rows([sae], tasks, [scores[:1]], scores, 42)


# --- duplicates and splits -----------------------------------------------------------------------


def repeated(times: int, distinct: int = 100, labels: np.ndarray | None = None) -> tuple[ProbingSet, Bank]:
    """Noise that says nothing of its labels, each of the prompts `times` times, in random order."""
    rng = np.random.default_rng(5)
    which = rng.permutation(np.arange(distinct * times) % distinct)
    rows, of = rng.standard_normal((distinct, D_IN)), np.arange(distinct) % 2 if labels is None else labels
    return ProbingSet("repeated", tuple(f"prompt {i}" for i in which), of[which], ("0", "1")), bank(rows[which])


def tasks_of(given: tuple[ProbingSet, Bank], patch: pytest.MonkeyPatch, params: ProbingParams) -> list[ProbeTask]:
    data, rows = given
    patch.setattr(probing, "probing_set", lambda name: data)
    return probe_tasks([data.name], {f"probing/{data.name}": rows}, params)


def test_a_dense_probe_remembers_duplicates_and_without_them_is_at_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    noise = bank(np.repeat(rng.standard_normal((330, 300)), 2, axis=0))  # more dimensions than it takes to remember
    data = ProbingSet("noise", tuple(f"prompt {i // 2}" for i in range(660)), np.arange(660) // 2 % 2, ("0", "1"))
    kept, dropped = llm_scores(tasks_of((data, noise), monkeypatch, ProbingParams(splits=1)), PARAMS)
    assert kept.test_auc > 0.8
    assert abs(dropped.test_auc - 0.5) < 0.15


def test_a_task_is_one_published_split_and_several_without_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, *dropped = tasks_of(repeated(3, 400), monkeypatch, ProbingParams(splits=3, seed=7))
    assert (kept.duplicates, kept.split, len(kept.labels)) == ("keep", 0, 1200)
    assert [(task.duplicates, task.split, len(task.labels)) for task in dropped] == [("drop", i, 400) for i in range(3)]
    assert kept.sizes() == (1024, 175)
    tests = [
        get_train_test_indices(kept.data.labels[task.kept], 300, 99, 0.5, 7 + i)[1] for i, task in enumerate(dropped)
    ]
    for task, expected in zip(dropped, tests, strict=True):
        (train, _), (test, labels) = probing.split_rows(task, 7)
        assert task.kept is not None
        np.testing.assert_array_equal(test, np.array(task.bank.rows)[task.kept][expected])
        np.testing.assert_array_equal(labels, task.labels[expected])
        assert not {row.tobytes() for row in train} & {row.tobytes() for row in test}
    assert len({tuple(test) for test in tests}) == 3


def test_splits_are_probed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    _, first, second = tasks_of(_made_up(0, 400, 0.5), monkeypatch, ProbingParams(splits=2))
    sae = trained(random_sae(3, "standard"))
    [[one, other]] = sae_scores([sae], [first, second], PARAMS)
    assert one.test_auc != other.test_auc
    [[again]] = sae_scores([sae], [first], ProbingParams(seed=43))  # the second split is the first one of the next seed
    assert again == other


def test_a_data_set_of_too_few_distinct_prompts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="'repeated' has 198 rows without duplicate prompts but probing needs 200"):
        tasks_of(repeated(5, 198), monkeypatch, PARAMS)


def test_a_shifted_set_of_prompts_in_domain_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data, rows = repeated(2, 400)
    monkeypatch.setattr(probing, "probing_set", lambda name, **_: data)
    with pytest.raises(DataError, match="every prompt of the shifted set of 'repeated' is also one of its task"):
        shifted_tasks(["repeated"], {"ood/repeated": rows, "shifted/repeated": rows}, 1200)


def test_a_score_cut_off_at_zero_is_that_of_a_latent_trained_on_labels(small: ProbeTask) -> None:
    [score] = llm_scores([small], PARAMS)
    assert score.rectified_auc is not None
    assert 0.55 < score.rectified_auc < score.test_auc + 0.05
    assert score.rectified_auc != score.test_auc


def test_a_data_set_without_its_activations_is_named(banks: dict[str, Bank]) -> None:
    with pytest.raises(DataError, match=r"'89_glue_mrpc'.*are none"):
        probe_tasks([NAMES[0], "89_glue_mrpc"], banks, PARAMS)
    with pytest.raises(DataError, match=r"'117_us_state_FL' needs 1000 .* are 728"):
        probe_tasks([NAMES[0]], {f"probing/{NAMES[0]}": banks[f"probing/{NAMES[1]}"]}, PARAMS)
    with pytest.raises(DataError, match="bank ood/87_glue_cola"):
        shifted_tasks(["87_glue_cola"], banks, 1200)
    task = {"ood/87_glue_cola": bank(np.zeros((1200, 1)))}
    with pytest.raises(DataError, match="bank shifted/87_glue_cola"):
        shifted_tasks(["87_glue_cola"], task, 1200)


def test_a_shifted_set_with_other_classes_than_its_task_is_refused() -> None:
    # 90_glue_qnli has the classes 0 and 1, its shifted set '1' and 'not_entailment'
    with pytest.raises(DataError, match="'90_glue_qnli' has the classes"):
        shifted_tasks(["90_glue_qnli"], {"ood/90_glue_qnli": bank(np.zeros((1200, 1)))}, 1200)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [(np.arange(299) % 2, "299 rows but probing needs 300"), (np.arange(400) < 60, "into its classes")],
)
def test_a_data_set_that_cannot_be_split_is_refused(labels: np.ndarray, problem: str) -> None:
    data = ProbingSet("lopsided", ("prompt",) * len(labels), labels.astype(int), ("0", "1"))
    task = ProbeTask(data, bank(np.random.default_rng(0).standard_normal((len(labels), D_IN))))
    with pytest.raises(DataError, match=f"'lopsided'.*{problem}"):
        llm_scores([task], PARAMS)
    with pytest.raises(DataError, match=f"'lopsided'.*{problem}"):
        sae_scores([trained(random_sae(0))], [task], PARAMS)


def test_the_smallest_data_set_that_can_be_split_is_probed() -> None:
    [score] = llm_scores([ProbeTask(*_made_up(2, 300, 3.0))], PARAMS)
    assert score.test_auc > 0.95


def test_the_probe_fitted_in_domain_is_applied_unchanged_to_the_shifted_set(small: ProbeTask) -> None:
    assert small.shifted
    labels, rows = small.data.labels, np.array(small.bank.rows, dtype=float)
    # 400 rows: 300 to train, 99 asked for to test, of which 50 + 49 of each class
    train, test = get_train_test_indices(labels, 300, 99, 0.5, 42)
    # the last 60 of the 300 rows (20 %) validate
    strengths = np.logspace(5, -5, 10)
    aucs = []
    for C in strengths:
        fitted = LogisticRegression(C=C, random_state=42, max_iter=1000).fit(rows[train[:240]], labels[train[:240]])
        aucs.append(roc_auc_score(labels[train[240:]], fitted.predict_proba(rows[train[240:]])[:, 1]))
    best = LogisticRegression(C=strengths[np.argmax(aucs)], random_state=42, max_iter=1000).fit(
        rows[train], labels[train]
    )
    data, shifted = small.shifted
    [score] = llm_scores([small], PARAMS)
    assert score.validation_auc == pytest.approx(max(aucs), abs=1e-6)
    # the protocol shuffles the rows before this last fit, so lbfgs stops a little elsewhere
    assert score.test_auc == pytest.approx(roc_auc_score(labels[test], best.decision_function(rows[test])), abs=5e-4)
    expected = roc_auc_score(data.labels, best.decision_function(np.array(shifted.rows)))
    assert score.shifted_auc == pytest.approx(expected, abs=5e-4)


def test_labels_of_the_shifted_set_change_nothing_but_its_own_score(small: ProbeTask) -> None:
    assert small.shifted
    sae = trained(random_sae(20, "standard"))
    data, rows = small.shifted
    reversed_set = ProbeTask(small.data, small.bank, (dataclasses.replace(data, labels=1 - data.labels), rows))
    alone = ProbeTask(small.data, small.bank)
    [[a, b, c]] = sae_scores([sae], [small, reversed_set, alone], PARAMS)
    assert a.shifted_auc != 0.5
    assert b == dataclasses.replace(a, shifted_auc=pytest.approx(1 - a.shifted_auc))
    assert c == dataclasses.replace(a, shifted_auc=None)


def test_real_shifted_tasks_hold_the_same_classes_and_the_first_rows_of_each(cache: Path) -> None:
    names = ["87_glue_cola", "73_control-group"]
    made = {}
    for name in names:
        made[f"ood/{name}"] = bank(np.random.default_rng(0).standard_normal((1200, 2)))
        made[f"shifted/{name}"] = bank(np.zeros((300, 2)))
    for task in shifted_tasks(names, made, 1200):
        assert task.shifted
        assert task.data.labels.sum() == 600
        assert len(task.shifted[0].labels) == 300
        assert task.data.classes == task.shifted[0].classes
        shifted = [task.shifted[0].prompts[i] for i in task.shifted_kept]  # type: ignore[union-attr]
        assert 250 < len(set(shifted)) == len(shifted)
        assert not {*shifted} & {*task.data.prompts}
        assert len({task.data.prompts[i] for i in task.kept}) == len(task.labels)  # type: ignore[union-attr]


def test_one_thread_and_several_give_the_same_scores(
    banks: dict[str, Bank],
    saes: list[TrainedSae],
    small: ProbeTask,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = [*probe_tasks(NAMES[:2], banks, ProbingParams(splits=1)), small, small]  # two threads may work at one score
    found = []
    for n in (1, 2, 4):
        shutil.rmtree(cache / "probes", ignore_errors=True)
        monkeypatch.setenv("HUSAI_JOBS", str(n))
        found.append((sae_scores(saes, tasks, PARAMS), llm_scores(tasks, PARAMS)))
    assert found[0] == found[1] == found[2]
    assert (
        len(list((cache / "probes").iterdir())) == 15
    )  # 2 SAEs and the raw activation on 3 data sets, two in two forms


def test_only_the_saes_that_are_not_in_the_cache_are_fitted(small: ProbeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Counted(monkeypatch, ProbeScore(1, 0.7, 0.7, 0.7))
    saes = [trained(random_sae(seed)) for seed in (40, 41, 42)]
    sae_scores(saes[1:2], [small], PARAMS)
    assert sae_scores(saes, [small], PARAMS) == [[made.scores[0]]] * 3
    assert made.calls == 3


def test_progress_counts_data_sets(small: ProbeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    Counted(monkeypatch, ProbeScore(1, 0.7, 0.7, 0.7))
    seen: list[tuple[int, int]] = []
    sae_scores(
        [trained(random_sae(s)) for s in (30, 31)], [small], PARAMS, lambda done, total, _: seen.append((done, total))
    )
    assert seen == [(0, 1), (1, 1)]
