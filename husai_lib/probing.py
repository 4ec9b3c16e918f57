"""SAEBench sparse probing by the protocol of sae-probes (setting `normal`, L1), for many SAEs at once.

Train on min(n - 100, 1024) rows and test on the rest; latents are ranked by their mean class difference
over their mean activation; L1 logistic regression, its strength chosen by validation AUC. The splits,
the ranking and the fits are sae-probes' own functions; only the reading of activations is ours.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_probes.run_sae_evals import get_sorted_indices, mean_act_normalization
from sae_probes.utils_data import get_train_test_indices
from sae_probes.utils_training import find_best_reg
from sklearn.metrics import roc_auc_score

from husai_lib.activations import Bank
from husai_lib.cache import cached
from husai_lib.errors import DataError
from husai_lib.files import read_json, write_json
from husai_lib.params import ProbingParams
from husai_lib.records import ProbeRow
from husai_lib.tasks import Progress, run_tasks
from husai_lib.texts import ProbingSet, probing_set
from husai_lib.training import TrainedSae

# The protocol stops at 1000 iterations and names the penalty in scikit-learn's old way, on purpose.
warnings.filterwarnings("ignore", module=r"sklearn\.linear_model")
TRAIN_ROWS, TEST_ROWS_AT_LEAST = 1024, 100
BATCH_ROWS = 128
"""Rows encoded at a time, as in sae-probes: products of other shapes can differ in their last bits."""


@dataclass(frozen=True)
class ProbeTask:
    """A data set with the raw activations of its prompts, and where `shifted` is given those of its shifted set."""

    data: ProbingSet
    bank: Bank
    shifted: tuple[ProbingSet, Bank] | None = None


@dataclass(frozen=True)
class ProbeScore:
    """A fitted probe's AUCs; `shifted_auc` where the task has a shifted set."""

    k: int
    """How many latents, or dimensions of the raw activation, it reads."""
    validation_auc: float
    test_auc: float
    shifted_auc: float | None = None


@dataclass(frozen=True)
class _Split:
    """Rows and labels of a task: training, test in domain, and the whole shifted set if there is one."""

    rows: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]


def probe_tasks(names: Sequence[str], banks: Mapping[str, Bank]) -> list[ProbeTask]:
    """The benchmark's tasks, from the banks called `probing/<data set>`; DataError if one is missing."""
    return [ProbeTask(*_with_bank(probing_set(name), "probing", banks)) for name in names]


def shifted_tasks(names: Sequence[str], banks: Mapping[str, Bank], max_rows: int) -> list[ProbeTask]:
    """Tasks with a shifted set, from the banks `ood/<task>` and `shifted/<task>`; DataError if one is missing."""
    return [
        ProbeTask(
            *_with_bank(probing_set(name, max_rows=max_rows), "ood", banks),
            shifted=_with_bank(probing_set(name, shifted=True), "shifted", banks),
        )
        for name in names
    ]


def _with_bank(data: ProbingSet, role: str, banks: Mapping[str, Bank]) -> tuple[ProbingSet, Bank]:
    bank = banks.get(f"{role}/{data.name}")
    if bank is None or len(bank.rows) != len(data.labels):
        found = "none" if bank is None else len(bank.rows)
        raise DataError(
            f"data set {data.name!r} needs {len(data.labels)} activations in the bank {role}/{data.name} but there are "
            f"{found}; run the step activations with this data set"
        )
    return data, bank


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


def probe_rows(
    condition: str, seed: int, tasks: Sequence[ProbeTask], scores: Sequence[ProbeScore], llm: Sequence[ProbeScore]
) -> list[ProbeRow]:
    """One SAE's scores as rows of a record, one a data set."""
    return [
        ProbeRow(
            condition=condition,
            seed=seed,
            data_set=task.data.name,
            best_k=score.k,
            validation_auc=score.validation_auc,
            test_auc=score.test_auc,
            llm_auc=base.test_auc,
            delta=score.test_auc - base.test_auc,
        )
        for task, score, base in zip(tasks, scores, llm, strict=True)
    ]


def _best_score(pair: tuple[TrainedSae, ProbeTask], params: ProbingParams) -> ProbeScore:
    sae, task = pair
    inputs = {"weights": sae.weights_sha256, "cfg": sae.entry.files["cfg.json"], "ks": params.ks}
    scores = _cached_scores(inputs, task, params.seed, lambda: _scores_by_k(sae.sae, task, params))
    # the first of equals: max keeps it, and ks ascend, so ties go to the smaller k
    return max(scores, key=lambda score: score.validation_auc if params.choose_k == "validation" else score.test_auc)


def _llm_score(task: ProbeTask, params: ProbingParams) -> ProbeScore:
    inputs = {"llm": True}
    return _cached_scores(inputs, task, params.seed, lambda: [_fit(_split(task, params.seed), "l2", params.seed)])[0]


def _cached_scores(
    inputs: dict[str, Any], task: ProbeTask, seed: int, scores: Callable[[], list[ProbeScore]]
) -> list[ProbeScore]:
    """The scores of `inputs` on a task, computed once: keyed by the content of its activations and labels."""
    sets = [(task.data, task.bank), *([task.shifted] if task.shifted else [])]
    content = [[bank.sha256, data.labels.tolist()] for data, bank in sets]

    def make(folder: Path) -> None:
        write_json(folder / "scores.json", [asdict(score) for score in scores()])

    entry = cached("probes", __name__, inputs | {"sets": content, "seed": seed}, make)
    return [ProbeScore(**score) for score in read_json(entry.path / "scores.json")]


@torch.inference_mode()
def _scores_by_k(sae: Any, task: ProbeTask, params: ProbingParams) -> list[ProbeScore]:
    """Probes on the k latents that best tell the classes of the training rows apart, for each k."""

    def latents(rows: np.ndarray) -> np.ndarray:
        starts = range(0, len(rows), BATCH_ROWS)
        return torch.cat([sae.encode(torch.from_numpy(rows[i : i + BATCH_ROWS])).float() for i in starts]).numpy()

    split = _split(task, params.seed)
    split = _Split(tuple(map(latents, split.rows)), split.labels)
    train, y_train = torch.from_numpy(split.rows[0]), torch.from_numpy(split.labels[0])
    ranked = get_sorted_indices(train, y_train, mean_act_normalization).numpy()
    best = [_Split(tuple(rows[:, ranked[:k]] for rows in split.rows), split.labels) for k in params.ks]
    return [_fit(chosen, "l1", params.seed) for chosen in best]


def _split(task: ProbeTask, seed: int) -> _Split:
    """The protocol's balanced split of a task; DataError if the data set is too small."""
    name, labels = task.data.name, task.data.labels
    n_train = min(len(labels) - TEST_ROWS_AT_LEAST, TRAIN_ROWS)
    if n_train < 2 * TEST_ROWS_AT_LEAST:
        raise DataError(
            f"data set {name!r} has {len(labels)} rows but probing needs {3 * TEST_ROWS_AT_LEAST}; choose another"
        )
    try:
        train, test = get_train_test_indices(labels, n_train, len(labels) - n_train - 1, 0.5, seed)
    except ValueError as error:
        raise DataError(f"data set {name!r} cannot be split into equal classes ({error}); choose another") from error
    rows, labels_of = [task.bank.rows[train], task.bank.rows[test]], [labels[train], labels[test]]
    if task.shifted:
        data, bank = task.shifted
        rows, labels_of = [*rows, np.array(bank.rows)], [*labels_of, data.labels]
    return _Split(tuple(rows), tuple(labels_of))


def _fit(split: _Split, penalty: str, seed: int) -> ProbeScore:
    """sae-probes' own fit: the strength by validation AUC, then all training rows."""
    # in double precision, which is what scikit-learn makes of the tensors that sae-probes hands it
    (train, test, *shifted), (y_train, y_test, *y_shifted) = (rows.astype(float) for rows in split.rows), split.labels
    result = find_best_reg(train, y_train, test, y_test, penalty=penalty, seed=seed)
    aucs = [
        float(roc_auc_score(y, result.classifier.predict_proba(x)[:, 1]))
        for x, y in zip(shifted, y_shifted, strict=True)
    ]
    return ProbeScore(train.shape[1], result.metrics.val_auc, result.metrics.test_auc, *aucs)
