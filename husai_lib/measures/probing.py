"""SAEBench sparse probing by the protocol of sae-probes, for many SAEs at once.

Probes train on min(n - 100, 1024) rows and are tested on the rest. Latents are ranked by their mean class difference
over their mean activation. The strength of the logistic regression is chosen by validation AUC. Splits and ranking are
sae-probes' own functions; `logistic` gives the numbers of its L1 fits. The settings `scarcity` and `imbalance` repeat
this at many sizes of the training set and shares of class 1.

Many data sets hold prompts several times, so that a probe finds in the test set what it was trained on. So every data
set is probed in two forms: as published, and without duplicates at several splits.
"""

import functools
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sae_probes.run_sae_evals import get_sorted_indices, mean_act_normalization
from sae_probes.utils_data import get_class_imbalance, get_train_test_indices, get_training_sizes
from sae_probes.utils_training import find_best_reg
from sklearn.metrics import roc_auc_score

from husai_lib.activations.banks import Bank
from husai_lib.activations.texts import ProbingSet, distinct_rows, probing_set
from husai_lib.errors import DataError
from husai_lib.evidence.cache import cached, is_cached
from husai_lib.evidence.rows.probes import ProbeRow
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
    kept: np.ndarray | None = None
    """Positions of the prompts that are probed, without duplicates; None for all, as published."""
    shifted_kept: np.ndarray | None = None
    split: int = 0
    """Number of the split; it is added to the seed of the parameters."""

    def __str__(self) -> str:
        return f"data set {self.data.name}"

    @property
    def duplicates(self) -> Literal["drop", "keep"]:
        """The form of the data set: without duplicates, or as published."""
        return "keep" if self.kept is None else "drop"

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """The label of each prompt that is probed."""
        return self.data.labels[:ROWS_AT_MOST] if self.kept is None else self.data.labels[self.kept]

    def sizes(self) -> tuple[int, int]:
        """Numbers of training and of test rows by the protocol; in `imbalance`, those that allow every share."""
        rows = len(self.labels)
        if self.at is not None and self.at < 1:
            shares, ones = get_class_imbalance(), int(self.labels.sum())
            rows = int(min((rows - ones) / (1 - min(shares)), ones / max(shares)))
            train = min(rows - TEST_ROWS_AT_LEAST, TRAIN_ROWS)
            return train, max(TEST_ROWS_AT_LEAST, rows - train - 1)
        train = min(rows - TEST_ROWS_AT_LEAST, TRAIN_ROWS) if self.at is None else int(self.at)
        return train, rows - train - 1


@dataclass(frozen=True)
class ProbeScore:
    """A fitted probe's AUCs; `shifted_auc` where the task has a shifted set."""

    k: int
    """How many latents, or dimensions of the raw activation, it reads."""
    validation_auc: float
    test_auc: float
    shifted_auc: float | None = None
    rectified_auc: float | None = None
    """Test AUC where the score is cut off at 0, as a latent would be; only of fits on all dimensions."""
    latents: list[int] = field(default_factory=list, kw_only=True)
    """Which latents it reads, best first; none for the raw activation."""


def probe_tasks(names: Sequence[str], banks: Mapping[str, Bank], params: ProbingParams) -> list[ProbeTask]:
    """The benchmark's tasks, from the banks `probing/<data set>`; DataError if one is missing or too small.

    A data set is one task as published, and one without duplicates for each split. In the settings `scarcity` and
    `imbalance`, each of them is one task for each size or share in the protocol.
    """
    points = {"normal": [None], "scarcity": get_training_sizes(), "imbalance": get_class_imbalance()}[params.setting]
    tasks = []
    for name in names:
        data, bank = _with_bank(probing_set(name), "probing", banks)
        dropped = [ProbeTask(data, bank, kept=distinct_rows(data), split=split) for split in range(params.splits)]
        for task in [ProbeTask(data, bank), *dropped]:
            check_size(task)
            fitting = [at for at in points if at is None or at <= len(task.labels) - TEST_ROWS_AT_LEAST]
            tasks += [replace(task, at=at) for at in fitting]
    return tasks


def shifted_tasks(names: Sequence[str], banks: Mapping[str, Bank], max_rows: int) -> list[ProbeTask]:
    """Tasks of the banks `ood/<task>` and `shifted/<task>`, no prompt twice; DataError if a bank is missing."""
    tasks = []
    for name in names:
        data, bank = _with_bank(probing_set(name, max_rows=max_rows), "ood", banks)
        shifted = _with_bank(probing_set(name, shifted=True), "shifted", banks)
        apart = distinct_rows(shifted[0], {*data.prompts})
        if not len(apart):
            raise DataError(f"every prompt of the shifted set of {name!r} is also one of its task; choose another task")
        tasks.append(ProbeTask(data, bank, shifted, kept=distinct_rows(data), shifted_kept=apart))
    for task in tasks:
        check_size(task)
    return tasks


def check_size(task: ProbeTask) -> None:
    """Raises DataError if a data set has too few rows for the protocol: 200 to train on as published, 100 else."""
    needed = (3 if task.kept is None else 2) * TEST_ROWS_AT_LEAST
    rows, without = len(task.labels), "" if task.kept is None else " without duplicate prompts"
    if task.at is None and rows < needed:
        raise DataError(
            f"data set {task.data.name!r} has {rows} rows{without} but probing needs {needed}; choose another"
        )


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
    function = functools.partial(scores_by_k, saes=saes, params=params)
    by_task = run_tasks(function, tasks, "data sets probed", progress)
    # max keeps the first of equal scores and ks ascend, so ties go to the smaller k
    auc_of = operator.attrgetter(f"{params.choose_k}_auc")
    return [[max(by_sae[i], key=auc_of) for by_sae in by_task] for i in range(len(saes))]


def probe_rows(
    saes: Sequence[TrainedSae],
    tasks: Sequence[ProbeTask],
    scores: Sequence[Sequence[ProbeScore]],
    llm: Sequence[ProbeScore],
    seed: int,
) -> list[ProbeRow]:
    """Scores `[saes][tasks]` as rows of a record, beside those of the raw activation; `seed` is of the first split."""
    return [
        ProbeRow(
            condition=trained.member.condition.name,
            seed=trained.member.seed,
            data_set=task.data.name,
            at=task.at,
            duplicates=task.duplicates,
            split=seed + task.split,
            test_rows=task.sizes()[1],
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


def scores_by_k(task: ProbeTask, saes: Sequence[TrainedSae], params: ProbingParams) -> list[list[ProbeScore]]:
    """Each SAE's scores on a task, one for each k in ascending order, cached by content."""
    about = [sae.content | params.model_dump(include={"setting", "penalty", "binarize", "ks"}) for sae in saes]
    fit = functools.partial(_scores_by_k, task=task, params=params)
    return _cached_scores(task, params.seed, about, lambda missing: fit([saes[i] for i in missing]))


def _llm_score(task: ProbeTask, params: ProbingParams) -> ProbeScore:
    # sae-probes rounds the share of class 1 here but not for SAEs, so the two splits can differ by a row
    at = round(task.at * 20) / 20 if task.at and task.at < 1 else task.at

    def fit(_: list[int]) -> list[list[ProbeScore]]:
        return [[fit_l2(split_rows(replace(task, at=at), params.seed), params.seed + task.split)]]

    return _cached_scores(task, params.seed, [{"llm": True}], fit)[0][0]


def _cached_scores(
    task: ProbeTask, seed: int, about: Sequence[dict[str, Any]], fit: Callable[[list[int]], list[list[ProbeScore]]]
) -> list[list[ProbeScore]]:
    """The scores of whatever each of `about` determines; `fit` computes those that are not in the cache together."""

    def values(missing: list[int]) -> list[Any]:
        return [[asdict(score) for score in scores] for scores in fit(missing)]

    found = cached_by_content(__name__, task, seed, about, values)
    return [[ProbeScore(**score) for score in scores] for scores in found]


def cached_by_content(
    module: str, task: ProbeTask, seed: int, about: Sequence[dict[str, Any]], compute: Callable[[list[int]], list[Any]]
) -> list[Any]:
    """JSON values of a task and each of `about`; `compute`, of `module`, gives those of positions not in the cache."""
    sets = [(task.data, task.bank, task.kept)]
    sets += [(*task.shifted, task.shifted_kept)] if task.shifted else []
    content = [
        [bank.sha256, data.labels.tolist(), None if kept is None else kept.tolist()] for data, bank, kept in sets
    ]
    inputs = [own | {"sets": content, "at": task.at, "seed": seed + task.split} for own in about]
    missing = [i for i, given in enumerate(inputs) if not is_cached("probes", module, given)]
    new = dict(zip(missing, compute(missing), strict=True)) if missing else {}

    def write(folder: Path, i: int) -> None:
        write_json(folder / "scores.json", new[i])

    entries = [cached("probes", module, given, functools.partial(write, i=i)) for i, given in enumerate(inputs)]
    return [read_json(entry.path / "scores.json") for entry in entries]


def _scores_by_k(saes: Sequence[TrainedSae], task: ProbeTask, params: ProbingParams) -> list[list[ProbeScore]]:
    """For each SAE, a probe for each k on the k latents that best separate the classes of the training rows."""
    split, seed = split_rows(task, params.seed), params.seed + task.split
    labels = [y for _, y in split]
    read = [_best_latents(sae, split, max(params.ks), task.data.name) for sae in saes]
    by_k = []
    for k in params.ks:
        parts = [np.stack([rows[:, :k] for rows in same]) for same in zip(*(parts for _, parts in read), strict=True)]
        parts = [(rows != 0).astype(np.float32) for rows in parts] if params.binarize else parts
        fits = _fits(parts, labels, params.penalty, seed)
        by_k.append([replace(score, latents=best[:k]) for score, (best, _) in zip(fits, read, strict=True)])
    return [list(scores) for scores in zip(*by_k, strict=True)]


@torch.inference_mode()
def encoded(trained: TrainedSae, rows: np.ndarray, data_set: str) -> torch.Tensor:
    """The latents `[n, d_sae]` of activations; DataError if one is not finite."""
    found = []
    for start in range(0, len(rows), BATCH_ROWS):
        found.append(trained.sae.encode(torch.from_numpy(rows[start : start + BATCH_ROWS])).float())
        if not found[-1].isfinite().all():
            raise DataError(f"{trained} has a latent that is NaN or infinite on {data_set!r}; check its weights")
    return torch.cat(found)


def _best_latents(trained: TrainedSae, split: Parts, count: int, data_set: str) -> tuple[list[int], list[np.ndarray]]:
    """The latents that best separate the classes of the training rows, and `[n, count]` of each part of the split."""
    train = encoded(trained, split[0][0], data_set)
    best = get_sorted_indices(train, torch.from_numpy(split[0][1]), mean_act_normalization)[:count]
    others = [encoded(trained, rows, data_set)[:, best] for rows, _ in split[1:]]
    return best.tolist(), [part.numpy() for part in (train[:, best], *others)]


def _fits(
    parts: Sequence[np.ndarray], labels: Sequence[np.ndarray], penalty: Literal["l1", "l2"], seed: int
) -> list[ProbeScore]:
    """A score for each SAE from its latents `[saes, n, k]` of every part of the split."""
    if penalty == "l2":
        return [fit_l2(list(zip(rows, labels, strict=True)), seed) for rows in zip(*parts, strict=True)]
    train, *others = parts
    scores = []
    for i, (*fit, validation) in enumerate(zip(*fit_best(train, labels[0], seed), strict=True)):
        tested = zip(others, labels[1:], strict=True)
        aucs = (float(auc(predict(rows[i], *fit)[None], y)[0]) for rows, y in tested)
        scores.append(ProbeScore(train.shape[2], float(validation), *aucs))
    return scores


def split_rows(task: ProbeTask, seed: int) -> Parts:
    """A task's split by the protocol; DataError if the data set is too small. `seed` is that of the first split."""
    check_size(task)
    share = task.at if task.at is not None and task.at < 1 else 0.5
    try:
        split = get_train_test_indices(task.labels, *task.sizes(), share, seed + task.split)
    except ValueError as error:
        name = task.data.name
        raise DataError(f"data set {name!r} cannot be split into its classes ({error}); choose another") from error
    parts = [(task.bank.rows[part if task.kept is None else task.kept[part]], task.labels[part]) for part in split]
    if task.shifted:
        data, bank = task.shifted
        kept = slice(None) if task.shifted_kept is None else task.shifted_kept
        parts.append((np.array(bank.rows[kept]), data.labels[kept]))
    return parts


def fit_l2(split: Parts, seed: int) -> ProbeScore:
    """sae-probes' own L2 fit: the strength by validation AUC, then all training rows."""
    # in double precision, to which scikit-learn converts the tensors of sae-probes
    (train, y_train), (test, y_test), *shifted = ((rows.astype(float), labels) for rows, labels in split)
    result = find_best_reg(train, y_train, test, y_test, penalty="l2", seed=seed)
    aucs = [float(roc_auc_score(y, result.classifier.predict_proba(x)[:, 1])) for x, y in shifted]
    rectified = float(roc_auc_score(y_test, np.maximum(result.classifier.decision_function(test), 0)))
    validation = 0.5 if np.isnan(result.metrics.val_auc) else result.metrics.val_auc  # its rows may have one class
    score = ProbeScore(train.shape[1], validation, result.metrics.test_auc, *aucs)
    return replace(score, rectified_auc=rectified)
