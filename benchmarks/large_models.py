"""What a cycle on a model of 2 billion parameters needs, and what more GPUs would change: from rates measured here.

Each kind of work is measured on one core of this machine, as operations a second or as seconds at two widths. A GPU is
not measured: it is assumed to use the same share of its peak rate as this core uses of the rate of its matrix products.
What is simulated follows `husai_lib`: members and evaluations are tasks, dealt to the workers in order; the language
model, matching and reconstruction run in one process. Sizes are the library's own formulas.
"""

from __future__ import annotations

import math
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import typer
from matching import half_shared_decoders
from probing import HOOK, MODEL, READ, TRAINING
from rich.console import Console
from rich.markdown import Markdown
from threadpoolctl import threadpool_limits
from training import Work, made_up_bank

from husai_lib.activations.banks import Bank
from husai_lib.activations.extraction import rows_bank, text_bank
from husai_lib.activations.language_model import open_model
from husai_lib.activations.onednn import linear
from husai_lib.activations.texts import ProbingSet, drawn_texts
from husai_lib.files import REPOSITORY
from husai_lib.measures.contrastive import score
from husai_lib.measures.matching import match
from husai_lib.measures.probing import ProbeTask, scores_by_k
from husai_lib.params.benchmarks import ContrastiveParams, ProbingParams
from husai_lib.params.inputs import ModelParams
from husai_lib.saes.data import Data
from husai_lib.saes.stack import Stack, _bytes_of_member
from husai_lib.saes.training import train_bank

PAGE = REPOSITORY / "docs" / "scale.md"
NARROW = 2048
"""The narrower of the two widths at which evaluations are measured; the other is twice as wide."""
PAIRS, PROMPTS, DENSE_PRODUCTS = 8, 500, 5
"""Story pairs and prompts that are measured, and dense products of a training step of a TopK SAE."""


@dataclass(frozen=True)
class Plan:
    """The cycle; the defaults of the command line are Gemma-2-2B's shape."""

    d_in: int
    d_sae: int
    model_parameters: float
    """Weights that a token passes on its way to the hook."""
    rows: int
    samples: int
    batch: int
    saes: int
    pairs: int
    data_sets: int
    story_pairs: int
    held_out: int


@dataclass(frozen=True)
class Rates:
    """What one core of this machine does."""

    gemm: float
    """Operations a second of float32 matrix products."""
    training: float
    """Operations a second of dense training steps, at five products a step."""
    forward: float
    """Operations a second of the language model, at two for each weight and token."""
    probing: tuple[float, float]
    """Seconds of an SAE on a data set without duplicates: fixed, and for each latent."""
    stories: tuple[float, float]
    """Seconds of an SAE on a pair of stories: fixed, and for each latent."""
    matching: tuple[float, float]
    """Seconds of a pair of dictionaries: factor and power of d_sae."""


def seconds_of(work: Callable[[], object], times: int = 3) -> float:
    """The shortest of several times, after one that does not count: of the core, not of the clock, as others use it."""
    found = []
    for _ in range(times + 1):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found[1:])


def measured(d_in: int, narrow: int) -> Rates:
    matrix = torch.randn(1536, 1536)
    gemm = 2 * 1536**3 / seconds_of(lambda: linear(matrix, matrix), 10)
    work = Work(1, d_in, narrow, 32, 512, 4096, "cpu")
    bank = made_up_bank(work)
    stack = Stack(work.members(), Data.of(bank), "cpu", sparse=False)
    steps = stack.batches()
    training = DENSE_PRODUCTS * 2 * work.batch * d_in * narrow / seconds_of(lambda: stack.step(*next(steps)))
    widths = (narrow, 2 * narrow)
    by_width = [_evaluations(Work(1, d_in, width, 32, 512, 4096, "cpu"), bank) for width in widths]
    probing, stories = (_line(widths, [found[i] for found in by_width]) for i in (0, 1))
    dictionaries = [half_shared_decoders(2, width, d_in) for width in widths]
    one, two = (seconds_of(lambda own=own: match(*own), 2) for own in dictionaries)
    power = math.log2(two / one)
    return Rates(gemm, training, _forward_rate(), probing, stories, (one / narrow**power, power))


def _evaluations(work: Work, bank: Bank) -> tuple[float, float]:
    """Seconds of an SAE of this width on a data set, and on a pair of stories."""
    (trained,) = train_bank(work.members(1), bank)
    labels = (bank.rows[:PROMPTS, 0] > np.median(bank.rows[:PROMPTS, 0])).astype(int)
    data = ProbingSet("made up", tuple(map(str, range(PROMPTS))), labels, ("a", "b"))
    prompts = rows_bank(np.array(bank.rows[:PROMPTS]), "made_up")
    numbers = iter(range(100))  # of splits, as scores in the cache are not computed again

    def probe() -> object:
        task = ProbeTask(data, prompts, kept=np.arange(PROMPTS), split=next(numbers))
        return scores_by_k(task, [trained], ProbingParams())

    stories = rows_bank(np.array(bank.rows[: 2 * PAIRS * 64]), "made_up")
    vars(stories)["offsets"] = np.arange(0, 2 * PAIRS * 64 + 1, 64)
    return seconds_of(probe), seconds_of(lambda: score(trained.sae, stories, ContrastiveParams())) / PAIRS


def _line(widths: tuple[int, int], seconds: list[float]) -> tuple[float, float]:
    """Fixed seconds and seconds for each latent, neither below zero."""
    slope = max(0.0, (seconds[1] - seconds[0]) / (widths[1] - widths[0]))
    return max(0.0, seconds[0] - slope * widths[0]), slope


def _forward_rate() -> float:
    model = open_model(ModelParams(name=MODEL, prepend_bos=True))
    texts = drawn_texts(TRAINING, 0)
    text_bank(model, texts, READ, [HOOK], 64)  # loads the weights
    blocks = model.bridge.blocks[: int(HOOK.split(".")[1]) + 1]
    weights = sum(p.numel() for p in {id(p): p for block in blocks for p in block.parameters()}.values())
    began = time.process_time()
    text_bank(model, texts, READ, [HOOK], READ.training_rows)
    return 2 * weights * READ.training_rows / (time.process_time() - began)


# --- needs and times ---------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def training_seconds(plan: Plan, rate: float) -> float:
    """One member."""
    return DENSE_PRODUCTS * 2 * plan.samples * plan.d_in * plan.d_sae / rate


def member_bytes(plan: Plan) -> float:
    (member,) = Work(1, plan.d_in, plan.d_sae, 64, plan.batch, 1, "cpu").members(1)
    return float(_bytes_of_member(member.condition, plan.d_in, plan.d_in))


def serial_seconds(plan: Plan, rates: Rates) -> float:
    """Matching of decoders and encoders, and reconstruction of the held-out rows by every SAE, in one process."""
    factor, power = rates.matching
    reconstruction = plan.saes * 4 * plan.held_out * plan.d_in * plan.d_sae / rates.gemm
    return 2 * plan.pairs * factor * plan.d_sae**power + reconstruction


def evaluation_tasks(plan: Plan, rates: Rates) -> list[float]:
    """Seconds of each task: a data set with all SAEs, or an SAE with all stories."""
    probing, stories = (fixed + each * plan.d_sae for fixed, each in (rates.probing, rates.stories))
    return [plan.saes * probing] * plan.data_sets + [plan.story_pairs * stories] * plan.saes


def dealt(tasks: list[float], workers: int) -> float:
    """Seconds until the last of the tasks is done, each given in order to the worker that is free first."""
    free = [0.0] * workers
    for task in tasks:
        i = free.index(min(free))
        free[i] += task
    return max(free)


def needs(plans: list[Plan], rates: Rates) -> str:
    rows = []
    for plan in plans:
        weights, matched = 4 * plan.d_sae * 2 * plan.d_in, 2 * plan.d_sae**2
        factor, power = rates.matching
        rows.append([
            f"{plan.d_sae:,}", f"{weights / 1e9:.2f}", f"{member_bytes(plan) / 1e9:.1f}", f"{matched / 1e9:.1f}",
            f"{4 * plan.rows * plan.d_in / 1e9:,.0f}", f"{plan.saes * weights / 1e9:,.0f}",
            f"{training_seconds(plan, 1) / 1e15:,.0f}", f"{training_seconds(plan, rates.training) / 86400:,.0f}",
            f"{factor * plan.d_sae**power:,.0f}",
        ])  # fmt: skip
    head = ["d_sae", "weights, GB", "member in training, GB", "table of a matching, GB", "disk: one bank, GB",
            "disk: all SAEs, GB", "training of a member, PFLOP", "the same on this core, days",
            "matching of a pair, s"]  # fmt: skip
    return table(head, rows)


def simulation(plans: list[Plan], rates: Rates, gpus: tuple[int, ...], peak: float, price: float) -> str:
    rows = []
    for plan in plans:
        forward = 2 * plan.model_parameters * plan.rows / (peak * rates.forward / rates.gemm)
        member = training_seconds(plan, peak * rates.training / rates.gemm)
        for count in gpus:
            stages = [
                forward,
                dealt([member] * plan.saes, count),
                dealt(evaluation_tasks(plan, rates), count),
                serial_seconds(plan, rates),
            ]
            total = sum(stages)
            hours = [f"{seconds / 3600:,.2f}" for seconds in (*stages, total)]
            rows.append([f"{plan.d_sae:,}", f"{count}", *hours, f"{count * total / 3600 * price:,.0f}"])
    head = ["d_sae", "GPUs", "activations, h", "training, h", "evaluation, h", "one process, h", "in all, h", "cost, $"]
    return table(head, rows)


def rates_table(rates: Rates, peak: float) -> str:
    def of_gemm(rate: float) -> list[str]:
        return [
            f"{rate / 1e9:,.1f} GFLOP/s",
            f"{rate / rates.gemm:.0%}",
            f"{peak * rate / rates.gemm / 1e12:,.1f} TFLOP/s",
        ]

    lines = [
        ["matrix products, float32", *of_gemm(rates.gemm)],
        ["training steps", *of_gemm(rates.training)],
        ["language model", *of_gemm(rates.forward)],
        ["probing an SAE on a data set", "{:.2f} s + {:.2e} s a latent".format(*rates.probing), "", "not on the GPU"],
        ["a pair of stories", "{:.3f} s + {:.2e} s a latent".format(*rates.stories), "", "not on the GPU"],
        ["matching a pair of dictionaries", "{:.2e} s x d_sae^{:.2f}".format(*rates.matching), "", "not on the GPU"],
    ]
    return table(["work", "one core here", "share of its products", "assumed of a GPU"], lines)


def write_page(parts: dict[str, str]) -> None:
    """Put each part between its two marks in the page."""
    text = PAGE.read_text(encoding="utf-8")
    for name, part in parts.items():
        marks = re.compile(rf"(?s)(<!-- {name} -->\n).*?(<!-- end of {name} -->)")
        assert marks.search(text), f"{PAGE} has no place for {name}"
        text = marks.sub(lambda found, own=part: f"{found[1]}\n{own}\n\n{found[2]}", text)
    PAGE.write_text(text, encoding="utf-8")


def main(  # noqa: PLR0917 -- one an option
    d_in: int = 2304,
    d_saes: Annotated[str, typer.Option(help="Widths, separated by commas.")] = "16384,32768,65536",
    model_parameters: Annotated[float, typer.Option(help="Weights of the blocks before the hook.")] = 1.0e9,
    rows: Annotated[int, typer.Option(help="Activations to train on.")] = 20_000_000,
    samples: Annotated[int, typer.Option(help="Training samples of each member.")] = 200_000_000,
    batch: int = 4096,
    saes: Annotated[int, typer.Option(help="SAEs that are trained and evaluated.")] = 64,
    pairs: Annotated[int, typer.Option(help="Pairs of seeds that are matched.")] = 120,
    data_sets: Annotated[int, typer.Option(help="Probing tasks: data sets, as published and at each split.")] = 452,
    story_pairs: int = 200,
    held_out: Annotated[int, typer.Option(help="Held-out activations.")] = 100_000,
    gpus: Annotated[str, typer.Option(help="Numbers of GPUs, separated by commas.")] = "1,8,64",
    peak_tflops: Annotated[float, typer.Option(help="Peak rate of a GPU in the precision of training.")] = 67.0,
    price: Annotated[float, typer.Option(help="Dollars for an hour of a GPU with its share of the node.")] = 3.0,
    narrow: Annotated[int, typer.Option(hidden=True)] = NARROW,
    write: Annotated[bool, typer.Option("--write", help="Put the tables into docs/scale.md.")] = False,
) -> None:
    """Compute what a cycle on a large model needs, and simulate its time and cost on several GPUs."""
    shape = (model_parameters, rows, samples, batch, saes, pairs, data_sets, story_pairs, held_out)
    plans = [Plan(d_in, int(d_sae), *shape) for d_sae in d_saes.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"HUSAI_CACHE": folder, "HUSAI_DEVICE": "cpu"}
        torch.set_num_threads(1)
        with threadpool_limits(1):
            rates = measured(d_in, narrow)
    about = (
        f"`python benchmarks/large_models.py --write`, on one of {os.cpu_count()} cores ({platform.machine()}, torch "
        f"{torch.__version__}) in time of that core. The cycle: d_in {d_in:,}, {rows:,} "
        f"activations, {saes} SAEs of {samples:,} samples each in batches of {batch:,}, {pairs} pairs of seeds, "
        f"{data_sets} probing tasks, {story_pairs} pairs of stories; {model_parameters:.1e} weights before the hook; a "
        f"GPU with a peak of {peak_tflops:g} TFLOP/s at {price:g} $ an hour."
    )
    counts = tuple(int(count) for count in gpus.split(","))
    peak = peak_tflops * 1e12
    parts = {"about": about, "rates": rates_table(rates, peak), "needs": needs(plans, rates)}
    parts["simulation"] = simulation(plans, rates, counts, peak, price)
    for part in parts.values():
        Console(width=None if sys.stdout.isatty() else 200).print(Markdown(part))
    if write:
        write_page(parts)


if __name__ == "__main__":
    typer.run(main)
