"""SAEBench sparse probing by the protocol of sae-probes, for many SAEs at once.

Probes train on min(n - 100, 1024) rows and are tested on the rest. Latents are ranked by their mean class difference
over their mean activation. The strength of the logistic regression is chosen by validation AUC. Splits and ranking are
sae-probes' own functions; `logistic` gives the numbers of its L1 fits. The settings `scarcity` and `imbalance` repeat
this at many sizes of the training set and shares of class 1.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_probes.run_sae_evals import get_sorted_indices, mean_act_normalization
from sae_probes.utils_data import (
    get_class_imbalance,
    get_classimabalance_num_train,
    get_train_test_indices,
    get_training_sizes,
)
from sae_probes.utils_training import find_best_reg
from sklearn.metrics import roc_auc_score

from husai_lib.activations.banks import Bank
from husai_lib.activations.texts import ProbingSet, probing_set
from husai_lib.errors import DataError
from husai_lib.evidence.cache import cached, is_cached
from husai_lib.evidence.rows import ProbeRow
from husai_lib.files import read_json, write_json
from husai_lib.measures.logistic import auc, fit_best, predict
from husai_lib.params.benchmarks import ProbingParams
from husai_lib.saes.trained import TrainedSae
from husai_lib.tasks import Progress, run_tasks

# The protocol stops at 1000 iterations and uses scikit-learn's old name of the penalty, on purpose.
warnings.filterwarnings("ignore", module=r"sklearn\.linear_model")
TRAIN_ROWS, TEST_ROWS_AT_LEAST, ROWS_AT_MOST = 1024, 100, 5000
BATCH_ROWS = 128
"""Rows encoded at a time, as in sae-probes: products of other shapes can differ in their last bits."""
SAES_AT_ONCE = 32
"""SAEs whose probes of a data set are fitted side by side."""


@dataclass(frozen=True)
class ProbeTask:
    """A data set with the raw activations of its prompts, and optionally its shifted set with those of its prompts."""

    data: ProbingSet
    bank: Bank
    shifted: tuple[ProbingSet, Bank] | None = None
    at: float | None = None
    """Training rows in the setting `scarcity`, share of class 1 in `imbalance`; None in `normal`."""


@dataclass(frozen=True)
class ProbeScore:
    """A fitted probe's AUCs; `shifted_auc` where the task has a shifted set."""

    k: int
    """How many latents, or dimensions of the raw activation, it reads."""
    validation_auc: float
    test_auc: float
    shifted_auc: float | None = None
    latents: list[int] = field(default_factory=list)
    """Which latents it reads, best first; none for the raw activation."""


@dataclass(frozen=True)
class _Split:
    """Rows and labels of a task: training, test in domain, and the whole shifted set if there is one."""

    rows: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]


def probe_tasks(names: Sequence[str], banks: Mapping[str, Bank], params: ProbingParams) -> list[ProbeTask]:
    """The benchmark's tasks, from the banks `probing/<data set>`; DataError if one is missing.

    A data set is one task in the setting `normal`, otherwise one for each size or share in the protocol.
    """
    sets = [_with_bank(probing_set(name), "probing", banks) for name in names]
    return [ProbeTask(data, bank, at=at) for data, bank in sets for at in _points(params.setting, len(data.labels))]


def _points(setting: str, size: int) -> list[Any]:
    if setting == "scarcity":
        return [rows for rows in get_training_sizes() if rows <= size - TEST_ROWS_AT_LEAST]
    return get_class_imbalance() if setting == "imbalance" else [None]


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
    """L2 logistic regression on the raw activations, one score a task, with which SAE probes are compared."""
    function = functools.partial(_llm_score, params=params)
    return run_tasks(function, tasks, "data sets probed on the raw activation", progress)


def sae_scores(
    saes: Sequence[TrainedSae], tasks: Sequence[ProbeTask], params: ProbingParams, progress: Progress | None = None
) -> list[list[ProbeScore]]:
    """The score at the best k for each SAE and task, `[saes][tasks]`, each cached by content."""
    groups = [(task, saes[i : i + SAES_AT_ONCE]) for task in tasks for i in range(0, len(saes), SAES_AT_ONCE)]
    function = functools.partial(_best_scores, params=params)
    scores = list(itertools.chain(*run_tasks(function, groups, "data sets probed", progress)))
    return [scores[i :: len(saes)] for i in range(len(saes))]


def probe_rows(
    condition: str, seed: int, tasks: Sequence[ProbeTask], scores: Sequence[ProbeScore], llm: Sequence[ProbeScore]
) -> list[ProbeRow]:
    """One SAE's scores as rows of a record, one a task."""
    return [
        ProbeRow(
            condition=condition,
            seed=seed,
            data_set=task.data.name,
            at=task.at,
            best_k=score.k,
            validation_auc=score.validation_auc,
            test_auc=score.test_auc,
            llm_auc=base.test_auc,
            delta=score.test_auc - base.test_auc,
            latents=" ".join(map(str, score.latents)),
        )
        for task, score, base in zip(tasks, scores, llm, strict=True)
    ]


def _best_scores(group: tuple[ProbeTask, Sequence[TrainedSae]], params: ProbingParams) -> list[ProbeScore]:
    """Each SAE's score on a task at the best k; scores that are not in the cache are fitted together."""
    task, saes = group
    protocol = params.model_dump(exclude={"choose_k", "seed"})
    inputs = [_inputs(task, params.seed, sae.content | protocol) for sae in saes]
    missing = [i for i, given in enumerate(inputs) if not is_cached("probes", __name__, given)]
    new = dict(zip(missing, _scores_by_k([saes[i] for i in missing], task, params), strict=True)) if missing else {}
    scores = [_kept(given, functools.partial(new.__getitem__, i)) for i, given in enumerate(inputs)]
    # max keeps the first of equal scores and ks ascend, so ties go to the smaller k
    by = "validation_auc" if params.choose_k == "validation" else "test_auc"
    return [max(by_k, key=lambda score: getattr(score, by)) for by_k in scores]


def _llm_score(task: ProbeTask, params: ProbingParams) -> ProbeScore:
    # sae-probes rounds the share of class 1 here but not for SAEs, so the two splits can differ by a row
    at = round(task.at * 20) / 20 if task.at and task.at < 1 else task.at
    inputs = _inputs(task, params.seed, {"llm": True})
    return _kept(inputs, lambda: [_fit(_split(task, at, params.seed), "l2", params.seed)])[0]


def _inputs(task: ProbeTask, seed: int, about: dict[str, Any]) -> dict[str, Any]:
    """All that determines the scores on a task: the content of its activations and labels, and `about`."""
    sets = [(task.data, task.bank), *([task.shifted] if task.shifted else [])]
    content = [[bank.sha256, data.labels.tolist()] for data, bank in sets]
    return about | {"sets": content, "at": task.at, "seed": seed}


def _kept(inputs: dict[str, Any], scores: Callable[[], list[ProbeScore]]) -> list[ProbeScore]:
    def make(folder: Path) -> None:
        write_json(folder / "scores.json", [asdict(score) for score in scores()])

    entry = cached("probes", __name__, inputs, make)
    return [ProbeScore(**score) for score in read_json(entry.path / "scores.json")]


def _scores_by_k(saes: Sequence[TrainedSae], task: ProbeTask, params: ProbingParams) -> list[list[ProbeScore]]:
    """For each SAE, a probe for each k on the k latents that best separate the classes of the training rows."""
    split = _split(task, task.at, params.seed)
    read = [_best_latents(sae, split, max(params.ks), task.data.name) for sae in saes]
    by_k = []
    for k in params.ks:
        parts = [np.stack([rows[:, :k] for rows in same]) for same in zip(*(parts for _, parts in read), strict=True)]
        fits = _fits([(rows != 0).astype(np.float32) for rows in parts] if params.binarize else parts, split, params)
        by_k.append([replace(score, latents=best[:k]) for score, (best, _) in zip(fits, read, strict=True)])
    return [list(scores) for scores in zip(*by_k, strict=True)]


@torch.inference_mode()
def _best_latents(trained: TrainedSae, split: _Split, count: int, data_set: str) -> tuple[list[int], list[np.ndarray]]:
    """The latents that best separate the classes of the training rows, and `[n, count]` of each part of the split."""

    def batches(rows: np.ndarray) -> Iterator[torch.Tensor]:
        for start in range(0, len(rows), BATCH_ROWS):
            latents = trained.sae.encode(torch.from_numpy(rows[start : start + BATCH_ROWS])).float()
            if not latents.isfinite().all():
                who = f"{trained.member.condition.name} at seed {trained.member.seed}"
                raise DataError(f"{who} has a latent that is NaN or infinite on {data_set!r}; check its weights")
            yield latents

    train = torch.cat(list(batches(split.rows[0])))
    best = get_sorted_indices(train, torch.from_numpy(split.labels[0]), mean_act_normalization)[:count]
    others = (torch.cat([latents[:, best] for latents in batches(rows)]) for rows in split.rows[1:])
    return best.tolist(), [part.numpy() for part in (train[:, best], *others)]


def _fits(parts: Sequence[np.ndarray], split: _Split, params: ProbingParams) -> list[ProbeScore]:
    """A score for each SAE from its latents `[saes, n, k]` of every part of the split."""
    if params.penalty == "l2":
        return [_fit(_Split(rows, split.labels), "l2", params.seed) for rows in zip(*parts, strict=True)]
    train, *others = parts
    coefficients, intercepts, validation = fit_best(train, split.labels[0], params.seed)
    scores = []
    for i, fit in enumerate(zip(coefficients, intercepts, strict=True)):
        tested = zip(others, split.labels[1:], strict=True)
        test, *shifted = (float(auc(predict(rows[i], *fit)[None], y)[0]) for rows, y in tested)
        scores.append(ProbeScore(train.shape[2], float(validation[i]), test, next(iter(shifted), None)))
    return scores


def _split(task: ProbeTask, at: float | None, seed: int) -> _Split:
    """The protocol's split of a task; DataError if the data set is too small."""
    name, labels, share = task.data.name, task.data.labels[:ROWS_AT_MOST], 0.5
    if at is not None and at < 1:
        share, (n_train, n_test) = at, get_classimabalance_num_train(name)
    else:
        n_train = min(len(labels) - TEST_ROWS_AT_LEAST, TRAIN_ROWS) if at is None else int(at)
        n_test = len(labels) - n_train - 1
    if at is None and n_train < 2 * TEST_ROWS_AT_LEAST:
        raise DataError(
            f"data set {name!r} has {len(labels)} rows but probing needs {3 * TEST_ROWS_AT_LEAST}; choose another"
        )
    try:
        train, test = get_train_test_indices(labels, n_train, n_test, share, seed)
    except ValueError as error:
        raise DataError(f"data set {name!r} cannot be split into its classes ({error}); choose another") from error
    rows, labels_of = [task.bank.rows[train], task.bank.rows[test]], [labels[train], labels[test]]
    if task.shifted:
        data, bank = task.shifted
        rows, labels_of = [*rows, np.array(bank.rows)], [*labels_of, data.labels]
    return _Split(tuple(rows), tuple(labels_of))


def _fit(split: _Split, penalty: str, seed: int) -> ProbeScore:
    """sae-probes' own fit: the strength by validation AUC, then all training rows."""
    # in double precision, to which scikit-learn converts the tensors of sae-probes
    (train, test, *shifted), (y_train, y_test, *y_shifted) = (rows.astype(float) for rows in split.rows), split.labels
    result = find_best_reg(train, y_train, test, y_test, penalty=penalty, seed=seed)
    predicted = [result.classifier.predict_proba(x)[:, 1] for x in shifted]
    aucs = [float(roc_auc_score(y, scores)) for scores, y in zip(predicted, y_shifted, strict=True)]
    return ProbeScore(train.shape[1], result.metrics.val_auc, result.metrics.test_auc, next(iter(aucs), None))
