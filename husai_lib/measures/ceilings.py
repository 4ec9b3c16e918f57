"""Ceilings of sparse probing: what more latents, labels or a look at the test rows would give.

A negative SAEBench delta has two causes: the latents do not hold the concept, or the probe may read too few of them.
Ceilings tell them apart. All but the best single latent are fits, so another fit might give a little more.
"""

import functools
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from husai_lib.evidence.rows.probes import CeilingRow
from husai_lib.measures import probing
from husai_lib.measures.logistic import STRENGTHS, Floats, auc
from husai_lib.measures.probing import ProbeScore, ProbeTask
from husai_lib.params.benchmarks import ProbingParams
from husai_lib.saes.trained import TrainedSae
from husai_lib.tasks import Progress, run_tasks

ORACLE_AT_MOST = 20
"""Latents that the oracle adds at most, one fit each."""
Limits = dict[str, float]
"""Test AUCs of one SAE on one task by ceiling; those that take long only at the first split."""


def ceiling_rows(
    saes: Sequence[TrainedSae],
    tasks: Sequence[ProbeTask],
    llm: Sequence[ProbeScore],
    params: ProbingParams,
    progress: Progress | None = None,
) -> list[CeilingRow]:
    """A row for each SAE and data set, from the tasks without duplicates; `llm` scores the raw activation `[tasks]`."""
    dropped = [(task, base) for task, base in zip(tasks, llm, strict=True) if task.duplicates == "drop"]
    function = functools.partial(_limits, saes=saes, params=params)
    limits = run_tasks(function, [task for task, _ in dropped], "data sets with ceilings", progress)
    rows = []
    for i, trained in enumerate(saes):
        for name in dict.fromkeys(task.data.name for task, _ in dropped):
            of_set = [n for n, (task, _) in enumerate(dropped) if task.data.name == name]
            fewest = min(dropped[n][0].sizes()[1] for n in of_set)
            about = {"condition": trained.member.condition.name, "seed": trained.member.seed, "data_set": name}
            deltas = _deltas([limits[n][i] for n in of_set], [dropped[n][1] for n in of_set])
            rows.append(CeilingRow.model_validate(about | {"test_rows": fewest} | deltas))
    return rows


def _deltas(limits: Sequence[Limits], llm: Sequence[ProbeScore]) -> dict[str, float]:
    """Each ceiling's mean delta over the raw activation at the same split."""
    of_splits = [
        own | {"supervised": base.rectified_auc or 0.5, "raw": base.test_auc}
        for own, base in zip(limits, llm, strict=True)
    ]
    names = of_splits[0].keys() - {"raw"}
    return {f"{name}_delta": fmean(own[name] - own["raw"] for own in of_splits if name in own) for name in names}


def _limits(task: ProbeTask, saes: Sequence[TrainedSae], params: ProbingParams) -> list[Limits]:
    """The ceilings of each SAE on a task, cached by content."""
    count = max(params.ks)
    what = {"count": count, "binarize": params.binarize, "first_split": task.split == 0}  # only it has all ceilings
    about: list[dict[str, Any]] = [sae.content | what for sae in saes]

    def limits(missing: list[int]) -> list[Limits]:
        return [_of_sae(saes[i], task, params) for i in missing]

    found = probing.cached_by_content(__name__, task, params.seed, about, limits)
    by_k = probing.scores_by_k(task, saes, params)
    return [{"largest_k": scores[-1].test_auc} | own for scores, own in zip(by_k, found, strict=True)]


def _of_sae(trained: TrainedSae, task: ProbeTask, params: ProbingParams) -> Limits:
    split, name = probing.split_rows(task, params.seed)[:2], task.data.name
    latents = [probing.encoded(trained, rows, name).numpy() for rows, _ in split]
    (train, test), (y_train, y_test) = latents, (labels for _, labels in split)
    if params.binarize:
        train, test = train != 0, test != 0
    singles = single_latent_aucs(test, y_test)
    limits = {"single_latent": float(singles.max())}
    if task.split == 0:
        limits["full_width"] = full_width_auc(train, y_train, test, y_test, params.seed)
        limits["oracle"] = oracle_auc(test, y_test, max(params.ks), singles)
    return limits


def single_latent_aucs(latents: np.ndarray, labels: np.ndarray) -> Floats:
    """The AUC of each latent `[n, d_sae]` read upwards or downwards: no probe of one latent exceeds the largest."""
    areas, fires = np.full(latents.shape[1], 0.5), latents.any(0)
    if fires.any():
        areas[fires] = auc(latents[:, fires].T.astype(float), labels)
    either: Floats = np.maximum(areas, 1 - areas)
    return either


def full_width_auc(train: np.ndarray, y_train: np.ndarray, test: np.ndarray, y_test: np.ndarray, seed: int) -> float:
    """Test AUC of an L2 probe on all latents, each scaled to at most 1; fitted as that of the raw activation is."""
    largest = np.abs(train).max(0).astype(float)
    fires = largest > 0
    if not fires.any():
        return 0.5
    scaled = [(part[:, fires] / largest[fires], y) for part, y in ((train, y_train), (test, y_test))]
    return probing.fit_l2(scaled, seed).test_auc


def oracle_auc(latents: np.ndarray, labels: np.ndarray, count: int, singles: Floats) -> float:
    """Test AUC where up to `count` latents, at most 20, and their weights are fitted on the test rows themselves.

    Starts from the best single latent and adds the one along which the fit would change most; the best fit counts.
    """
    rows = latents / np.maximum(np.abs(latents).max(0), 1e-12)
    spread, best = rows.std(0), float(singles.max())
    chosen = [int(singles.argmax())]
    fitted = _fitted(rows[:, chosen], labels)
    while len(chosen) < min(count, ORACLE_AT_MOST, int((spread > 0).sum())) and best < 1:
        slope = np.abs((labels - fitted).astype(rows.dtype) @ rows) / np.where(spread > 0, spread, np.inf)
        slope[chosen] = -1
        chosen.append(int(slope.argmax()))
        fitted = _fitted(rows[:, chosen], labels)
        best = max(best, float(roc_auc_score(labels, fitted)))
    return best


def _fitted(rows: np.ndarray, labels: np.ndarray) -> Floats:
    """The probability of class 1 by a fit that is hardly penalised."""
    model = LogisticRegression(C=STRENGTHS[0], solver="newton-cholesky").fit(rows, labels)
    probabilities: Floats = model.predict_proba(rows)[:, 1]
    return probabilities
