"""L1 logistic regression for many sets of features at once, with the iterates of scikit-learn's `saga`.

The probing protocol stops `saga` after 1000 epochs or once the largest weight moves by less than 1e-4 of itself, often
far from the optimum: exact fits change a probe's test AUC by up to 0.07. So this module runs SAGA itself (Defazio et
al., arXiv 1407.0202), in scikit-learn's order of samples and of updates. Problems that share rows and labels share that
order and run side by side, as lanes of one compiled loop. Lanes do not interact: alone or among others, a problem gets
the same bits.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from sae_probes.utils_training import get_cv, get_splits
from scipy.special import expit
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

Floats = NDArray[np.float64]

MAX_EPOCHS, TOLERANCE = 1000, 1e-4
STRENGTHS = np.logspace(5, -5, 10)
"""The inverse penalties C that the protocol tries, strongest fit first."""
LANES = 32
"""Problems in a block, few enough for the processor's cache."""


def fit_best(X: NDArray[np.float32], y: NDArray[Any], seed: int) -> tuple[Floats, Floats, Floats]:
    """Fits of the features `X [problems, n, k]` to the labels `y [n]`, each at the C of best validation AUC.

    Returns the coefficients `[problems, k]`, the intercepts and the validation AUCs `[problems]`. C is chosen as in
    sae-probes: on the last 100 rows, on six folds below 128 rows, on every pair of up to 12. Then all rows are fitted.
    """
    problems = len(X)
    C, validation = np.ones(problems), None
    if len(y) > 3:
        folds = get_splits(get_cv(X[0], seed), X[0], y)
        scores = np.mean([_fold_scores(X, y, train, held_out, seed) for train, held_out in folds], axis=0)
        C, validation = STRENGTHS[scores.argmax(1)], scores.max(1)
    order = np.random.RandomState(seed).permutation(len(y))
    coefficients, intercepts = saga(X[:, order], y[order], np.arange(problems), C, seed)
    if validation is None:  # too few rows to hold any back
        validation = np.array([auc(predict(*fit)[None], y)[0] for fit in zip(X, coefficients, intercepts, strict=True)])
    return coefficients, intercepts, validation


def _fold_scores(X: NDArray[np.float32], y: NDArray[Any], train: Any, held_out: Any, seed: int) -> Floats:
    """Validation AUC `[problems, strengths]` of fits to the rows `train`; 0.5 where either part has one class."""
    problems, strengths = len(X), len(STRENGTHS)
    if min(len(np.unique(y[part])) for part in (train, held_out)) < 2:
        return np.full((problems, strengths), 0.5)
    # strength by strength, as problems of one strength take a similar number of epochs
    which, C = np.tile(np.arange(problems), strengths), np.repeat(STRENGTHS, problems)
    fits = saga(X[:, train], y[train], which, C, seed)
    coefficients, intercepts = (values.reshape(strengths, problems, *values.shape[1:]) for values in fits)
    rows, labels = X[:, held_out], y[held_out]
    return np.array(
        [
            auc(np.array([predict(rows[p], coefficients[c, p], intercepts[c, p]) for c in range(strengths)]), labels)
            for p in range(problems)
        ]
    )


def predict(rows: NDArray[Any], coefficients: Floats, intercept: float) -> Floats:
    """The probability of class 1 of each row `[n, k]`, by scikit-learn's operations, so that ties stay ties."""
    probabilities: Floats = expit((rows.astype(float) @ coefficients[:, None]).ravel() + intercept)
    return probabilities


def auc(scores: Floats, y: NDArray[Any]) -> Floats:
    """Area under the ROC curve of each row of `scores [m, n]`; scikit-learn's where the best differ by rounding."""
    ranks = rankdata(scores, axis=1)
    positive = int(y.sum())
    areas: Floats = (ranks[:, y == 1].sum(1) - positive * (positive + 1) / 2) / (positive * (len(y) - positive))
    best = np.flatnonzero(areas >= areas.max() - 1e-12)
    _, curves, curve_of = np.unique(ranks[best], axis=0, return_index=True, return_inverse=True)
    if len(curves) > 1:  # of equal areas under different curves, the rounding of the protocol's own function decides
        areas[best] = np.array([roc_auc_score(y, scores[best[i]]) for i in curves])[curve_of]
    return areas


def saga(X: NDArray[np.float32], y: NDArray[Any], which: NDArray[Any], C: Floats, seed: int) -> tuple[Floats, Floats]:
    """Weights `[problems, k]` and intercepts of fits of `X[which[p]] [n, k]` to `y [n]` at inverse penalties `C[p]`."""
    (n, k), problems = X.shape[1:], len(which)
    largest = np.array([np.einsum("nk,nk->n", rows, rows).max() for rows in X.astype(float)])
    step = (1 / (0.5 * (largest + 1)))[which]
    lanes = {"rows": X[which].transpose(1, 2, 0), "step": step, "threshold": step / (C * n)}
    lanes |= {name: np.zeros((k, problems)) for name in ("weights", "before", "gradients")}
    lanes |= {name: np.zeros(problems) for name in ("intercept", "intercept_gradient")}
    lanes |= {"memory": np.zeros((n, problems)), "fitted": np.zeros((k + 1, problems))}
    lanes |= {"problem": np.arange(problems), "active": np.ones(problems, bool)}
    fitted, labels = np.empty((problems, k + 1)), y.astype(float)
    # random state, rows seen, epochs done: the same for all lanes
    clock, seen = np.array([np.random.RandomState(seed).randint(1, np.iinfo(np.int32).max), 0, 0]), np.zeros(n, bool)
    blocks = _blocks(lanes)
    while active := sum(int(block["active"].sum()) for block in blocks):
        if active <= 0.9 * sum(block["active"].size for block in blocks):  # drop the lanes that have converged
            merged = {name: [block[name][..., block["active"]] for block in blocks] for name in lanes}
            blocks = _blocks({name: np.concatenate(parts, axis=-1) for name, parts in merged.items()})
        before, turn = (clock, seen), 2 + clock[2] // 50
        for block in blocks:
            clock, seen = (array.copy() for array in before)
            _epochs(turn, labels, clock, seen, **{name: block[name] for name in lanes if name != "problem"})
            done = ~block["active"]
            fitted[block["problem"][done]] = block["fitted"][:, done].T
    return fitted[:, :k], fitted[:, k]


def _blocks(lanes: dict[str, NDArray[Any]]) -> list[dict[str, NDArray[Any]]]:
    """Lanes in blocks of `LANES`, the rest in the last one."""
    starts = range(0, lanes["problem"].size, LANES)
    return [{name: np.ascontiguousarray(values[..., i : i + LANES]) for name, values in lanes.items()} for i in starts]


def _run_epochs(  # noqa: PLR0912, PLR0917 -- one loop, which numba compiles
    turn: int, y: Any, clock: Any, seen: Any, rows: Any, step: Any, threshold: Any, weights: Any, before: Any,
    gradients: Any, intercept: Any, intercept_gradient: Any, memory: Any, fitted: Any, active: Any,
) -> None:  # fmt: skip
    """SAGA on a block of lanes for `turn` epochs; arrays are changed in place.

    `rows [n, k, lanes]`; `step`, `threshold`, `intercept`, `intercept_gradient`, `active` `[lanes]`; `weights`,
    `gradients` (their sum over the rows) and `before` `[k, lanes]`; `memory [n, lanes]`, the last gradient of each row;
    `clock`: random state, rows seen, epochs done; `fitted [k + 1, lanes]`, the weights and the intercept with which a
    lane converged.
    """
    n, k, lanes = rows.shape
    random, seen_rows = np.uint32(clock[0]), clock[1]
    value, delta, leap, pull = np.empty(lanes), np.empty(lanes), np.empty(lanes), np.empty(lanes)
    last = 0
    for epoch in range(clock[2] + 1, min(clock[2] + turn, MAX_EPOCHS) + 1):
        for sample in range(n):
            random ^= np.uint32(random << np.uint32(13))
            random ^= np.uint32(random >> np.uint32(17))
            random ^= np.uint32(random << np.uint32(5))
            i = np.int64(random % np.uint32(2147483648)) % n
            if not seen[i]:
                seen[i] = True
                seen_rows += 1
            value[:] = intercept
            if sample == 0:
                for j in range(k):
                    for lane in range(lanes):
                        value[lane] += rows[i, j, lane] * weights[j, lane]
            else:
                for j in range(k):
                    for lane in range(lanes):  # the step of the previous sample, then the prediction of this one
                        moved = weights[j, lane] - pull[lane] * gradients[j, lane] - rows[last, j, lane] * leap[lane]
                        moved -= min(max(moved, -threshold[lane]), threshold[lane])
                        gradients[j, lane] += rows[last, j, lane] * delta[lane]
                        weights[j, lane] = moved
                        value[lane] += rows[i, j, lane] * moved
            share = 1.0 / seen_rows
            for lane in range(lanes):
                odds = _exp(min(max(-value[lane], -708.0), 708.0))
                gradient = ((1.0 - y[i]) - y[i] * odds) / (1.0 + odds)
                delta[lane] = gradient - memory[i, lane]
                memory[i, lane] = gradient
                leap[lane] = delta[lane] * step[lane]  # the sample's gradient counts itself and in the mean
                pull[lane] = step[lane] * share
                intercept[lane] -= pull[lane] * intercept_gradient[lane] + leap[lane]
                intercept_gradient[lane] += delta[lane]
            last = i
        for lane in range(lanes):
            largest = change = 0.0
            for j in range(k):
                moved = weights[j, lane] - pull[lane] * gradients[j, lane] - rows[last, j, lane] * leap[lane]
                gradients[j, lane] += rows[last, j, lane] * delta[lane]
                weights[j, lane] = moved - min(max(moved, -threshold[lane]), threshold[lane])
                largest = max(largest, abs(weights[j, lane]))
                change = max(change, abs(weights[j, lane] - before[j, lane]))
                before[j, lane] = weights[j, lane]
            if active[lane] and (change <= TOLERANCE * largest or epoch == MAX_EPOCHS):
                active[lane] = False
                fitted[:k, lane], fitted[k, lane] = weights[:, lane], intercept[lane]
    clock[0], clock[1], clock[2] = random, seen_rows, epoch


def _exponential(x: float) -> Any:
    """exp(x), |x| <= 708, as 2^n exp(r) with a Taylor polynomial: without a call, the loop over lanes is vectorised."""
    n = np.floor(x * 1.4426950408889634 + 0.5)
    r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10
    p = 1.0 / 6227020800
    for factorial in (479001600, 39916800, 3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2, 1, 1):
        p = p * r + 1.0 / factorial
    return p * np.int64((np.int64(n) + 1023) << 52).view(np.float64)


_exp = njit(inline="always")(_exponential)
_epochs = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})(_run_epochs)
