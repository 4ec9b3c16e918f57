"""SAEBench sparse probing by the protocol of sae-probes, for many SAEs at once.

Probes train on min(n - 100, 1024) rows and are tested on the rest. Latents are ranked by their mean class difference
over their mean activation. The strength of the logistic regression is chosen by validation AUC. Splits and ranking are
sae-probes' own functions; `logistic` gives the numbers of its L1 fits. The settings `scarcity` and `imbalance` repeat
this at many sizes of the training set and shares of class 1.
"""

from __future__ import annotations

import functools
import operator
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
from husai_lib.evidence.rows.measured import ProbeRow
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
Parts = Sequence[tuple[np.ndarray, np.ndarray]]
"""Rows and labels of a task: for training, for the test in domain, and the whole shifted set if there is one."""


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
    latents: list[int] = field(default_factory=list, kw_only=True)
    """Which latents it reads, best first; none for the raw activation."""


def probe_tasks(names: Sequence[str], banks: Mapping[str, Bank], params: ProbingParams) -> list[ProbeTask]:
    """The benchmark's tasks, from the banks `probing/<data set>`; DataError if one is missing.

    A data set is one task in the setting `normal`, otherwise one for each size or share in the protocol.
    """
    points = {"normal": [None], "scarcity": get_training_sizes(), "imbalance": get_class_imbalance()}[params.setting]
    return [
        ProbeTask(data, bank, at=at)
        for data, bank in (_with_bank(probing_set(name), "probing", banks) for name in names)
        for at in points
        if at is None or at <= len(data.labels) - TEST_ROWS_AT_LEAST
    ]


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
    function = functools.partial(_best_scores, saes=saes, params=params)
    by_task = run_tasks(function, tasks, "data sets probed", progress)
    return [[scores[i] for scores in by_task] for i in range(len(saes))]


def probe_rows(
    saes: Sequence[TrainedSae],
    tasks: Sequence[ProbeTask],
    scores: Sequence[Sequence[ProbeScore]],
    llm: Sequence[ProbeScore],
) -> list[ProbeRow]:
    """Scores `[saes][tasks]` as rows of a record, beside those of the raw activation `[tasks]`."""
    return [
        ProbeRow(
            condition=trained.member.condition.name,
            seed=trained.member.seed,
            data_set=task.data.name,
            at=task.at,
            best_k=score.k,
            validation_auc=score.validation_auc,
            test_auc=score.test_auc,
            llm_auc=base.test_auc,
            delta=score.test_auc - base.test_auc,
            latents=" ".join(map(str, score.latents)),
        )
        for trained, own in zip(saes, scores, strict=True)
        for task, score, base in zip(tasks, own, llm, strict=True)
    ]


def _best_scores(task: ProbeTask, saes: Sequence[TrainedSae], params: ProbingParams) -> list[ProbeScore]:
    """Each SAE's score on a task at the best k."""
    about = [sae.content | params.model_dump(exclude={"choose_k", "seed"}) for sae in saes]
    scores = _cached_scores(
        task, params.seed, about, lambda missing: _scores_by_k([saes[i] for i in missing], task, params)
    )
    # max keeps the first of equal scores and ks ascend, so ties go to the smaller k
    return [max(by_k, key=operator.attrgetter(f"{params.choose_k}_auc")) for by_k in scores]


def _llm_score(task: ProbeTask, params: ProbingParams) -> ProbeScore:
    # sae-probes rounds the share of class 1 here but not for SAEs, so the two splits can differ by a row
    at = round(task.at * 20) / 20 if task.at and task.at < 1 else task.at
    split = functools.partial(_split, task, at, params.seed)
    return _cached_scores(task, params.seed, [{"llm": True}], lambda _: [[_fit(split(), params.seed)]])[0][0]


def _cached_scores(
    task: ProbeTask, seed: int, about: Sequence[dict[str, Any]], fit: Callable[[list[int]], list[list[ProbeScore]]]
) -> list[list[ProbeScore]]:
    """The scores of whatever each of `about` determines; `fit` computes those that are not in the cache together."""
    sets = [(task.data, task.bank), *([task.shifted] if task.shifted else [])]
    content = [[bank.sha256, data.labels.tolist()] for data, bank in sets]
    inputs = [own | {"sets": content, "at": task.at, "seed": seed} for own in about]
    missing = [i for i, given in enumerate(inputs) if not is_cached("probes", __name__, given)]
    new = dict(zip(missing, fit(missing), strict=True)) if missing else {}

    def write(folder: Path, i: int) -> None:
        write_json(folder / "scores.json", [asdict(score) for score in new[i]])

    entries = [cached("probes", __name__, given, functools.partial(write, i=i)) for i, given in enumerate(inputs)]
    return [[ProbeScore(**score) for score in read_json(entry.path / "scores.json")] for entry in entries]


def _scores_by_k(saes: Sequence[TrainedSae], task: ProbeTask, params: ProbingParams) -> list[list[ProbeScore]]:
    """For each SAE, a probe for each k on the k latents that best separate the classes of the training rows."""
    split = _split(task, task.at, params.seed)
    labels = [y for _, y in split]
    read = [_best_latents(sae, split, max(params.ks), task.data.name) for sae in saes]
    by_k = []
    for k in params.ks:
        parts = [np.stack([rows[:, :k] for rows in same]) for same in zip(*(parts for _, parts in read), strict=True)]
        parts = [(rows != 0).astype(np.float32) for rows in parts] if params.binarize else parts
        fits = _fits(parts, labels, params)
        by_k.append([replace(score, latents=best[:k]) for score, (best, _) in zip(fits, read, strict=True)])
    return [list(scores) for scores in zip(*by_k, strict=True)]


@torch.inference_mode()
def _best_latents(trained: TrainedSae, split: Parts, count: int, data_set: str) -> tuple[list[int], list[np.ndarray]]:
    """The latents that best separate the classes of the training rows, and `[n, count]` of each part of the split."""

    def batches(rows: np.ndarray) -> Iterator[torch.Tensor]:
        for start in range(0, len(rows), BATCH_ROWS):
            latents = trained.sae.encode(torch.from_numpy(rows[start : start + BATCH_ROWS])).float()
            if not latents.isfinite().all():
                who = f"{trained.member.condition.name} at seed {trained.member.seed}"
                raise DataError(f"{who} has a latent that is NaN or infinite on {data_set!r}; check its weights")
            yield latents

    (rows, labels), *tested = split
    train = torch.cat(list(batches(rows)))
    best = get_sorted_indices(train, torch.from_numpy(labels), mean_act_normalization)[:count]
    others = (torch.cat([latents[:, best] for latents in batches(rows)]) for rows, _ in tested)
    return best.tolist(), [part.numpy() for part in (train[:, best], *others)]


def _fits(parts: Sequence[np.ndarray], labels: Sequence[np.ndarray], params: ProbingParams) -> list[ProbeScore]:
    """A score for each SAE from its latents `[saes, n, k]` of every part of the split."""
    if params.penalty == "l2":
        return [_fit(list(zip(rows, labels, strict=True)), params.seed) for rows in zip(*parts, strict=True)]
    train, *others = parts
    scores = []
    for i, (*fit, validation) in enumerate(zip(*fit_best(train, labels[0], params.seed), strict=True)):
        tested = zip(others, labels[1:], strict=True)
        aucs = (float(auc(predict(rows[i], *fit)[None], y)[0]) for rows, y in tested)
        scores.append(ProbeScore(train.shape[2], float(validation), *aucs))
    return scores


def _split(task: ProbeTask, at: float | None, seed: int) -> Parts:
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
    parts = [(task.bank.rows[part], labels[part]) for part in (train, test)]
    if task.shifted:
        data, bank = task.shifted
        parts.append((np.array(bank.rows), data.labels))
    return parts


def _fit(split: Parts, seed: int) -> ProbeScore:
    """sae-probes' own L2 fit: the strength by validation AUC, then all training rows."""
    # in double precision, to which scikit-learn converts the tensors of sae-probes
    (train, y_train), (test, y_test), *shifted = ((rows.astype(float), labels) for rows, labels in split)
    result = find_best_reg(train, y_train, test, y_test, penalty="l2", seed=seed)
    aucs = (float(roc_auc_score(y, result.classifier.predict_proba(x)[:, 1])) for x, y in shifted)
    return ProbeScore(train.shape[1], result.metrics.val_auc, result.metrics.test_auc, *aucs)
