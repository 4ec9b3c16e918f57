"""SAEBench sparse probing by the protocol of sae-probes (setting `normal`, L1), for many SAEs at once.

Train on min(n - 100, 1024) rows and test on the rest; latents are ranked by their mean class difference
over their mean activation; L1 logistic regression, its strength chosen by validation AUC. The splits,
the ranking and the fits are sae-probes' own functions; only the reading of activations is ours.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from husai_lib.activations import Bank
from husai_lib.cache import cached
from husai_lib.errors import DataError
from husai_lib.params import ProbingParams
from husai_lib.records import ProbeRow
from husai_lib.tasks import Progress, run_tasks
from husai_lib.texts import ProbingSet, probing_set
from husai_lib.training import TrainedSae

# The protocol stops at 1000 iterations and names the penalty in scikit-learn's old way, on purpose.
warnings.filterwarnings("ignore", module=r"sklearn\.linear_model")
TRAIN_ROWS, TEST_ROWS_AT_LEAST = 1024, 100


@dataclass(frozen=True)
class ProbeTask:
    """A data set with the raw activations of its prompts; `test` may be a shifted set of the same task."""

    data: ProbingSet
    bank: Bank
    shifted: tuple[ProbingSet, Bank] | None = None


@dataclass(frozen=True)
class ProbeScore:
    """A fitted probe's AUCs; `shifted_auc` where the task has a shifted set."""

    k: int
    validation_auc: float
    test_auc: float
    shifted_auc: float | None = None


@dataclass(frozen=True)
class _Split:
    """Rows of a task: training, test in domain, and the whole shifted set if there is one."""

    train: np.ndarray
    y_train: np.ndarray
    tests: tuple[np.ndarray, ...]
    y_tests: tuple[np.ndarray, ...]


def probe_tasks(names: Sequence[str], banks: Mapping[str, Bank]) -> list[ProbeTask]:
    """The benchmark's tasks, from the banks called `probing/<data set>`."""
    return [ProbeTask(probing_set(name), banks[f"probing/{name}"]) for name in names]


def shifted_tasks(names: Sequence[str], banks: Mapping[str, Bank], max_rows: int) -> list[ProbeTask]:
    """Tasks with a shifted counterpart, from the banks called `ood/<task>` and `shifted/<task>`."""
    return [
        ProbeTask(
            probing_set(name, max_rows=max_rows), banks[f"ood/{name}"], (probing_set(name, shifted=True), banks[f"shifted/{name}"])
        )
        for name in names
    ]


def llm_scores(tasks: Sequence[ProbeTask], params: ProbingParams, progress: Progress | None = None) -> list[ProbeScore]:
    """Logistic regression on the raw activations, one score a task: what SAE probes are held against."""
    function = functools.partial(_llm_score, params=params)
    return run_tasks(function, tasks, "data sets probed on the raw activation", progress)


def sae_scores(
    saes: Sequence[TrainedSae], tasks: Sequence[ProbeTask], params: ProbingParams, progress: Progress | None = None
) -> list[list[ProbeScore]]:
    """For each SAE and task, the score at the best k; `[saes][tasks]`. Each is cached by content."""
    pairs = [(sae, task) for sae in saes for task in tasks]
    function = functools.partial(_best_score, params=params)
    scores = run_tasks(function, pairs, "probes (SAE x data set)", progress)
    return [scores[i : i + len(tasks)] for i in range(0, len(scores), len(tasks))]


def probe_rows(condition: str, seed: int, tasks: Sequence[ProbeTask], scores: Sequence[ProbeScore], llm: Sequence[ProbeScore]) -> list[ProbeRow]:
    """One SAE's scores as rows of a record, one a data set."""
    return [
        ProbeRow(
            condition=condition, seed=seed, data_set=task.data.name, best_k=score.k, validation_auc=score.validation_auc,
            test_auc=score.test_auc, llm_auc=base.test_auc, delta=score.test_auc - base.test_auc,
        )
        for task, score, base in zip(tasks, scores, llm, strict=True)
    ]


def _best_score(pair: tuple[TrainedSae, ProbeTask], params: ProbingParams) -> ProbeScore:
    sae, task = pair
    inputs = {"weights": sae.weights_sha256, "cfg": sae.entry.files["cfg.json"], **_task_inputs(task, params), "ks": params.ks}

    def make(folder: Path) -> None:
        _save(folder, _scores_by_k(sae.sae, task, params))

    scores = _load(cached("probes", __name__, inputs, make).path)
    # the first of equals: max keeps it, and ks ascend, so ties go to the smaller k
    return max(scores, key=lambda score: score.validation_auc if params.choose_k == "validation" else score.test_auc)


def _llm_score(task: ProbeTask, params: ProbingParams) -> ProbeScore:
    def make(folder: Path) -> None:
        split = _split(task, lambda rows: rows, params.seed)
        _save(folder, [_fit(split, 0, "l2", params.seed)])

    return _load(cached("probes", __name__, {"llm": True, **_task_inputs(task, params)}, make).path)[0]


def _task_inputs(task: ProbeTask, params: ProbingParams) -> dict[str, Any]:
    shifted = task.shifted and [task.shifted[1].sha256, task.shifted[0].labels.tolist()]
    return {"bank": task.bank.sha256, "labels": task.data.labels.tolist(), "shifted": shifted, "seed": params.seed}


@torch.inference_mode()
def _scores_by_k(sae: Any, task: ProbeTask, params: ProbingParams) -> list[ProbeScore]:
    """Probes on the k latents that best tell the classes of the training rows apart, for each k."""
    from sae_probes.run_sae_evals import get_sorted_indices, mean_act_normalization

    def latents(rows: np.ndarray) -> np.ndarray:
        batches = torch.from_numpy(np.array(rows)).split(512)
        return torch.cat([sae.encode(batch).float() for batch in batches]).numpy()

    split = _split(task, latents, params.seed)
    ranked = get_sorted_indices(torch.from_numpy(split.train), torch.from_numpy(split.y_train), mean_act_normalization).numpy()
    chosen = [ranked[:k] for k in params.ks]
    return [
        _fit(_Split(split.train[:, top], split.y_train, tuple(t[:, top] for t in split.tests), split.y_tests), len(top), "l1", params.seed)
        for top in chosen
    ]


def _split(task: ProbeTask, encode: Any, seed: int) -> _Split:
    """The protocol's balanced split of a task, encoded; DataError if the data set is too small."""
    from sae_probes.utils_data import get_train_test_indices

    labels = task.data.labels
    n_train = min(len(labels) - TEST_ROWS_AT_LEAST, TRAIN_ROWS)
    if n_train < 2 * TEST_ROWS_AT_LEAST:
        raise DataError(f"data set {task.data.name!r} has only {len(labels)} rows; probing needs at least {3 * TEST_ROWS_AT_LEAST}")
    try:
        train, test = get_train_test_indices(labels, n_train, len(labels) - n_train - 1, 0.5, seed)
    except ValueError as error:
        raise DataError(f"data set {task.data.name!r} cannot be split into equal classes ({error}); choose another") from error
    rows = np.asarray(task.bank.rows)
    tests, y_tests = [encode(rows[test])], [labels[test]]
    if task.shifted:
        data, bank = task.shifted
        tests.append(encode(np.asarray(bank.rows)))
        y_tests.append(data.labels)
    return _Split(encode(rows[train]), labels[train], tuple(tests), tuple(y_tests))


def _fit(split: _Split, k: int, penalty: str, seed: int) -> ProbeScore:
    """sae-probes' own fit: the strength by validation AUC, then all training rows."""
    from sae_probes.utils_training import find_best_reg
    from sklearn.metrics import roc_auc_score

    result = find_best_reg(split.train, split.y_train, split.tests[0], split.y_tests[0], penalty=penalty, seed=seed)
    shifted = None
    if len(split.tests) > 1:
        shifted = float(roc_auc_score(split.y_tests[1], result.classifier.predict_proba(split.tests[1])[:, 1]))
    return ProbeScore(k, result.metrics.val_auc, result.metrics.test_auc, shifted)


def _save(folder: Path, scores: list[ProbeScore]) -> None:
    (folder / "scores.json").write_text(json.dumps([asdict(score) for score in scores], indent=1), encoding="utf-8")


def _load(folder: Path) -> list[ProbeScore]:
    return [ProbeScore(**score) for score in json.loads((folder / "scores.json").read_text(encoding="utf-8"))]
