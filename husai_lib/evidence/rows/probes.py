"""Rows of sparse probing: probes, what help would give them, and the weighted means and interval over data sets."""

from collections.abc import Iterable, Sequence
from functools import partial
from operator import attrgetter
from statistics import fmean
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from husai_lib.evidence.rows.base import Auc, MeasuredRow, RunTables
from husai_lib.intervals import LEVEL, Interval, means_by, two_way_interval
from husai_lib.params.scaling import point_of
from husai_lib.params.sections import Count

Table = NDArray[np.float64]
ENOUGH_TEST_ROWS = 200
"""A data set with fewer test rows weighs less."""
CEILINGS = ("largest_k_delta", "full_width_delta", "supervised_delta", "oracle_delta", "single_latent_delta")


class ProbeRow(MeasuredRow):
    """Sparse probing of one SAE on one data set."""

    condition: str
    seed: int
    data_set: str
    at: float | None = None
    """Training rows in the setting `scarcity`, share of class 1 in `imbalance`; null in `normal`."""
    duplicates: Literal["keep", "drop"]
    """Whether prompts that occur more than once are kept, as published, or left out."""
    split: int
    """Seed of the split into training and test rows."""
    test_rows: Count
    best_k: int
    validation_auc: Auc
    test_auc: Auc
    llm_auc: Auc
    """Test AUC of logistic regression on the raw activation."""
    delta: float
    latents: str = ""

    def _check(self) -> None:
        if self.latents and len(self.latents.split()) != self.best_k:
            raise ValueError(f"best_k = {self.best_k}, but {len(self.latents.split())} latents are listed")

    def _derived(self, step: str, run: RunTables) -> dict[str, Any]:
        # raw AUC and number of test rows are those of every SAE of the layer in the same form and split
        form = attrgetter("data_set", "at", "duplicates", "split")
        others = run.tables.get((step if step == "scaling" else "baselines", "probes"), ())
        same = (probe for probe in others if form(probe) == form(self))
        if step == "scaling":
            same = (probe for probe in same if point_of(probe.condition)[0] == point_of(self.condition)[0])
        first = next(same, self)  # the first is enough, and there can be a hundred thousand
        return {"delta": self.test_auc - self.llm_auc, "llm_auc": first.llm_auc, "test_rows": first.test_rows}


class CeilingRow(MeasuredRow):
    """What help would give the probes of one SAE on one data set, as in `GroupRow`, without duplicates.

    `full_width_delta` and `oracle_delta` are of the first split, the others means over all splits.
    """

    condition: str
    seed: int
    data_set: str
    test_rows: Count
    """The fewest of any of its probes."""
    largest_k_delta: float
    full_width_delta: float
    supervised_delta: float
    oracle_delta: float
    single_latent_delta: float

    def _derived(self, step: str, run: RunTables) -> dict[str, Any]:
        about = {"condition": self.condition, "seed": self.seed, "data_set": self.data_set, "duplicates": "drop"}
        return {"test_rows": min(probe.test_rows for probe in run.rows(step, "probes", **about))}


def mean_over_sets(probes: Iterable[ProbeRow], column: str, duplicates: str) -> float:
    """The mean over data sets of a column of the probes of one form.

    Splits are averaged within a data set, as are its sizes or shares. Without duplicates, data sets have the weights of
    `set_weight`; with them equal weights, as published.
    """
    own: dict[str, list[ProbeRow]] = {}
    for probe in probes:
        if probe.duplicates == duplicates:
            own.setdefault(probe.data_set, []).append(probe)
    weights = [set_weight(rows) if duplicates == "drop" else 1.0 for rows in own.values()]
    means = [fmean(getattr(row, column) for row in rows) for rows in own.values()]
    return fmean(means, weights)


def set_weight(probes: Sequence[ProbeRow]) -> float:
    """The weight of a data set: below 200 test rows in proportion, as its AUCs are that much less certain."""
    return min(1.0, min(probe.test_rows for probe in probes) / ENOUGH_TEST_ROWS)


def delta_table(probes: Sequence[ProbeRow]) -> tuple[Table, Table]:
    """SAEBench deltas `[seeds, data sets]` without duplicates, and the weights of the data sets."""
    dropped = [probe for probe in probes if probe.duplicates == "drop"]
    mean = means_by(((probe.seed, probe.data_set), probe.delta) for probe in dropped)
    seeds, names = (list(dict.fromkeys(column)) for column in zip(*mean, strict=True))
    weights = [set_weight([probe for probe in dropped if probe.data_set == name]) for name in names]
    return np.array([[mean[seed, name] for name in names] for seed in seeds]), np.array(weights)


def mean_delta(deltas: Table, weights: Table, seeds: Sequence[int], sets: Sequence[int]) -> float:
    """The mean of a `delta_table` over some seeds and data sets, by their positions."""
    return float(np.average(deltas[np.ix_(seeds, sets)].mean(0), weights=weights[sets]))


def saebench_interval(probes: Sequence[ProbeRow], level: float = LEVEL, sets_level: float | None = None) -> Interval:
    """The SAEBench delta of one group without duplicates, with its interval over seeds and data sets."""
    table, weights = delta_table(probes)
    return two_way_interval(partial(mean_delta, table, weights), len(table), len(weights), level, sets_level)


def mean_ceiling(rows: Sequence[CeilingRow], column: str) -> float:
    """The mean of a ceiling over SAEs and data sets, with the weights of the delta."""
    weights = [min(1.0, row.test_rows / ENOUGH_TEST_ROWS) for row in rows]
    return fmean([getattr(row, column) for row in rows], weights)
