"""Time the training of a bank of TopK SAEs, here and by the trainers of other projects, in one run at equal work.

Everyone trains as many SAEs for as many steps, on the same rows, at the same width, k, batch size, learning rate and
precision. In every round each takes its turn, every time in another order, so that what else the machine does hits all
alike; a ratio is the median over rounds of a peer's seconds by this project's. Set-up and the first steps are not
timed. On a CPU this project trains as `train_bank` does, one thread a member; the others have all cores for one SAE
after another, as their users run them, and rows that are scaled already.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from husai_lib.activations.banks import Bank
from husai_lib.evidence.cache import cached
from husai_lib.files import write_json
from husai_lib.params.conditions import Condition
from husai_lib.saes.data import Data, batches
from husai_lib.saes.stack import Stack, stacks_of
from husai_lib.saes.trained import Member
from husai_lib.saes.training import train_bank
from husai_lib.tasks import run_tasks

PLANNED_STEPS = 10_000
"""Length of the runs whose first steps are timed: nobody has dead latents or a decayed step size that early."""
WARM_UP = 2
"""Steps of everyone before the first that is timed."""
MEMORY_STEPS = 48
"""Steps of a member whose memory is measured: enough for dead latents and their loss."""
BF16_UNITS = re.compile(r"\b(avx512_bf16|amx_bf16|bf16)\b")
"""Flags in `/proc/cpuinfo` of processors that multiply bf16 numbers; others take eight times as long as in fp32."""
RATE = 3e-4
HOOK = "made_up"
Train = Callable[[int], None]
"""Trains every SAE of a bank for some more steps."""
warnings.filterwarnings("ignore", message="Sparse invariant checks")


@dataclass(frozen=True)
class Work:
    """What everyone does."""

    seeds: int
    d_in: int
    d_sae: int
    k: int
    batch: int
    rows: int
    device: str
    precision: Any = "float32"

    def members(self, steps: int = PLANNED_STEPS) -> list[Member]:
        sizes: Any = {
            "d_sae": self.d_sae,
            "k": self.k,
            "batch_size": self.batch,
            "training_samples": steps * self.batch,
        }
        given = sizes | {"name": "topk", "architecture": "topk", "learning_rate": RATE, "precision": self.precision}
        return [Member(Condition(**given), seed) for seed in range(self.seeds)]

    def feed(self, rows: Tensor, seed: int = 0) -> Iterator[Tensor]:
        """The batches of a peer, in the order that this project's member of that seed has them."""
        for index in batches(len(rows), self.members()[seed].condition, seed):
            yield rows[torch.from_numpy(index).to(rows.device)]


def made_up_bank(work: Work) -> Bank:
    """Rows like activations: a mean, noise of low rank, and a few of many features, some much commoner than others."""
    n, d_in = work.rows, work.d_in

    def make(folder: Path) -> None:
        generator = torch.Generator().manual_seed(0)
        draw = functools.partial(torch.randn, generator=generator)
        features, mean, noise = normalize(draw(4 * d_in, d_in), dim=1), draw(d_in), 0.1 * draw(max(1, d_in // 8), d_in)
        rates = 1 / torch.arange(1, 4 * d_in + 1) ** 0.7
        rates *= 24 / rates.sum()
        output = np.lib.format.open_memmap(folder / f"{HOOK}.npy", "w+", np.float32, (n, d_in))
        for start in range(0, n, 4096):
            count = min(4096, n - start)
            latents = (torch.rand(count, 4 * d_in, generator=generator) < rates) * (2 + draw(count, 4 * d_in))
            output[start : start + count] = (latents @ features + draw(count, len(noise)) @ noise + mean).numpy()
        output.flush()
        np.save(folder / "offsets.npy", np.array([0, n]))
        write_json(folder / "meta.json", {"norm_limit": None, "sources": []})

    return Bank(cached("banks", "husai_lib.files", {"benchmark": [n, d_in]}, make), HOOK)


# --- everyone's way to train a bank, after its set-up ------------------------------------------------


def this_project(work: Work, bank: Bank) -> Train:
    members, data = work.members(), Data.of(bank)
    dealt = stacks_of(members, work.d_in, work.d_in, work.device)
    stacks = [Stack([members[i] for i in stack], data, work.device) for stack in dealt]
    feeds = [stack.batches() for stack in stacks]

    def train(steps: int) -> None:
        def go_on(i: int) -> None:
            for x, target in itertools.islice(feeds[i], steps):
                stacks[i].step(x, target)

        run_tasks(go_on, range(len(stacks)), "stacks trained")

    return train


def saelens(work: Work, rows: Tensor, *, sparse: bool = False) -> Train:
    config = functools.partial(SAETrainer, _saelens_config(work))
    return _fitted(work, [config(_saelens_sae(work, i, sparse), work.feed(rows, i)) for i in range(work.seeds)])


def saelens_multi(work: Work, rows: Tensor) -> Train:
    module: Any = importlib.import_module("sae_lens.training.multi_sae_trainer")
    module.tqdm = functools.partial(tqdm, disable=True)  # husai_lib.saes.training does so for SAETrainer
    saes = {str(seed): _saelens_sae(work, seed) for seed in range(work.seeds)}
    feed = ({HOOK: x} for x in work.feed(rows))
    return _fitted(work, [module.MultiSAETrainer(_saelens_config(work), saes, dict.fromkeys(saes, HOOK), feed)])


def _fitted(work: Work, trainers: Sequence[Any]) -> Train:
    def train(steps: int) -> None:
        for trainer in trainers:
            trainer.cfg = replace(trainer.cfg, total_training_samples=trainer.n_training_samples + steps * work.batch)
            trainer.fit()

    return train


def _saelens_config(work: Work) -> SAETrainerConfig:
    plan = {"total_training_samples": PLANNED_STEPS * work.batch, "train_batch_size_samples": work.batch}
    return SAETrainerConfig(**plan, lr=RATE, lr_end=RATE, device=work.device, autocast=work.precision == "bfloat16")


def _saelens_sae(work: Work, seed: int, sparse: bool = False) -> Any:
    torch.manual_seed(seed)
    sizes = {"d_in": work.d_in, "d_sae": work.d_sae, "k": work.k, "device": work.device}
    # its sparse latents have no backward on a CPU once they are scaled by decoder norms
    route = {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False} if sparse else {}
    return TopKTrainingSAE(TopKTrainingSAEConfig(**sizes, **route))


def dictionary_learning(work: Work, rows: Tensor) -> Train:
    if not importlib.util.find_spec("dictionary_learning"):
        raise ImportError("not installed")
    bf16 = work.precision == "bfloat16"
    if bf16 and work.device == "cpu":
        raise NotImplementedError("its autocast is for CUDA only")
    nnsight = types.ModuleType("nnsight")  # which only its buffer of a model's activations needs
    vars(nnsight)["LanguageModel"] = object
    sys.modules.setdefault("nnsight", nnsight)
    trainer_class = importlib.import_module("dictionary_learning.trainers.top_k").TopKTrainer
    shape = {"activation_dim": work.d_in, "dict_size": work.d_sae, "k": work.k, "device": work.device}
    plan = {"steps": PLANNED_STEPS, "lr": RATE, "layer": 0, "lm_name": HOOK}
    trainers = [trainer_class(**shape, **plan, seed=seed) for seed in range(work.seeds)]
    feed = enumerate(work.feed(rows))

    def train(steps: int) -> None:
        for step, x in itertools.islice(feed, steps):
            for trainer in trainers:
                with torch.autocast(work.device, torch.bfloat16, enabled=bf16):
                    trainer.update(step, x.bfloat16() if bf16 else x)

    return train


@dataclass
class Contender:
    """A trainer, what is its own, and how long its rounds took, or why it took no part."""

    name: str
    differs: str
    start: Callable[[], Train]
    seconds: list[float] = field(default_factory=list)
    reason: str = ""


def contenders(work: Work, bank: Bank) -> list[Contender]:
    """This project first. All clip gradients at norm 1, use Adam, and know of dead latents, of which none is there."""
    rows, use = bank.on(work.device) * bank.scale(), functools.partial
    adam = "Adam not fused"
    dense = f"{adam}; firing and dead latents counted densely every step; each SAE in its own order"
    unit = f"{adam}; decoder kept at unit rows, its gradient projected; loss read every step; one order for all"
    ours = "Adam fused; firing counted from active latents, dead ones every 8 steps; each SAE in its own order"
    like = "as SAETrainer; latents chosen without decoder norms"
    return [
        Contender("this project", ours, use(this_project, work, bank)),
        Contender("SAELens SAETrainer", dense, use(saelens, work, rows)),
        Contender("SAELens SAETrainer, sparse", like, use(saelens, work, rows, sparse=True)),
        Contender("SAELens MultiSAETrainer", "as SAETrainer; one order for all", use(saelens_multi, work, rows)),
        Contender("dictionary_learning", unit, use(dictionary_learning, work, rows)),
    ]


# --- time and memory ---------------------------------------------------------------------------------


def race(work: Work, bank: Bank, rounds: int, steps: int) -> list[Contender]:
    """Everyone with the seconds of each round; a peer that cannot train here with the reason."""
    ours, *peers = everyone = contenders(work, bank)
    train = {ours.name: ours.start()}
    timed(work, train[ours.name], WARM_UP)
    for peer in peers:
        try:
            of_peer = peer.start()
            timed(work, of_peer, WARM_UP)
            train[peer.name] = of_peer
        except (ImportError, RuntimeError) as error:
            peer.reason = str(error).splitlines()[0]
    running = [one for one in everyone if one.name in train]
    for first in range(rounds):
        for one in [*running[first % len(running) :], *running[: first % len(running)]]:
            one.seconds.append(timed(work, train[one.name], steps))
    return everyone


def timed(work: Work, train: Train, steps: int) -> float:
    torch.set_num_threads(os.cpu_count() or 1)  # this project's tasks set their own number
    wait: Any = torch.cuda.synchronize if work.device == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    train(steps)
    wait()
    return time.perf_counter() - began


def ratios(peer: Contender, ours: Contender) -> list[float]:
    """A peer's seconds by this project's, round by round."""
    return [theirs / own for theirs, own in zip(peer.seconds, ours.seconds, strict=True)]


def gemm_rate(work: Work) -> float:
    """Operations a second of large bf16 products on the GPU."""
    matrix = torch.randn(8192, 8192, device=work.device, dtype=torch.bfloat16)

    def multiply(times: int) -> None:
        for _ in range(times):
            torch.mm(matrix, matrix)

    return 20 * 2 * 8192**3 / min(timed(work, multiply, 20) for _ in range(5))


def has_bf16(device: str) -> bool:
    """Whether the device multiplies bf16 numbers in hardware."""
    flags = Path("/proc/cpuinfo")
    return device == "cuda" or (flags.exists() and bool(BF16_UNITS.search(flags.read_text(encoding="ascii"))))


def peak_mb_above_imports(work: Work) -> float:
    """What training the bank by `train_bank` adds to resident memory at most, in a process of its own."""
    made_up_bank(work)
    command = [sys.executable, __file__, "--memory-of", json.dumps(asdict(work))]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def train_and_measure(work: Work) -> float:
    before = _resident_mb("VmRSS")
    train_bank(work.members(MEMORY_STEPS), made_up_bank(work))
    return _resident_mb("VmHWM") - before


def _resident_mb(which: str) -> float:
    """`VmRSS` now or `VmHWM` at most so far: `ru_maxrss`, which would start at what the parent process had."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(rf"{which}:\s+(\d+) kB", status)[0]) * 1024 / 1e6


# --- the report --------------------------------------------------------------------------------------


def table_of(work: Work, results: Sequence[Contender], steps: int, rate: float | None) -> Table:
    table = Table(title=f"{work.precision} on {work.device}, {len(results[0].seconds)} rounds of {steps} steps")
    of_gpu = ["M SAE-samples/s", "of bf16 GEMM rate"] if rate else []
    for column in ["trainer", "seconds by ours", "over the rounds", *of_gpu, "ms a SAE-step", "what is its own"]:
        table.add_column(column)
    for one in results:
        if one.reason:
            table.add_row(one.name, "not measured", *[""] * (2 + len(of_gpu)), one.reason)
            continue
        by_ours, speed = ratios(one, results[0]), work.seeds * steps / statistics.median(one.seconds)
        cells = [f"{statistics.median(by_ours):.2f}", f"{min(by_ours):.2f} to {max(by_ours):.2f}"]
        if rate:
            operations = 5 * 2 * work.batch * work.d_in * work.d_sae  # a TopK step has five dense products
            cells += [f"{work.batch * speed / 1e6:.2f}", f"{operations * speed / rate:.0%}"]
        table.add_row(one.name, *cells, f"{1e3 / speed:.1f}", one.differs)
    return table


def measure(work: Work, rounds: int, steps: int, precision: str) -> dict[str, float | None]:
    memory = peak_mb_above_imports(work)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(f"torch {torch.__version__}, {os.cpu_count()} cores, {work}")
    measured: dict[str, float | None] = {"peak_mb_above_imports": memory}
    rate = gemm_rate(work) if work.device == "cuda" else None
    for name, short in (("float32", "fp32"), ("bfloat16", "bf16")):
        if precision == "both" and name == "bfloat16" and not has_bf16(work.device):
            console.print("bfloat16: not measured, this processor has no units for it (--precision bfloat16 measures)")
        elif precision in (name, "both"):
            results = race(replace(work, precision=name), made_up_bank(work), rounds, steps)
            console.print(table_of(replace(work, precision=name), results, steps, rate))
            medians = [statistics.median(ratios(peer, results[0])) for peer in results[1:] if peer.seconds]
            measured[f"{short}_ratio_to_best_peer"] = min(medians, default=None)
    console.print(f"train_bank: {memory:.0f} MB at its peak above the imports")
    return measured


Count = typer.Option(min=1)


def main(  # noqa: PLR0917 -- one an option
    seeds: Annotated[int | None, typer.Option(min=1, help="SAEs of the bank; 6, on cuda 48.")] = None,
    d_in: Annotated[int, Count] = 576,
    d_sae: Annotated[int, Count] = 2048,
    k: Annotated[int, Count] = 32,
    batch: Annotated[int, Count] = 4096,
    rows: Annotated[int, typer.Option(min=1, help="Made-up activations.")] = 60_000,
    rounds: Annotated[int, Count] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Steps of every SAE in a round.")] = 2,
    precision: Annotated[Literal["float32", "bfloat16", "both"], typer.Option()] = "both",
    device: Annotated[Literal["cpu", "cuda"], typer.Option()] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="End with one line of JSON.")] = False,
    memory_of: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Time training a bank of TopK SAEs here and by other trainers, and what memory it takes here."""
    if memory_of:
        print(train_and_measure(Work(**json.loads(memory_of))))
        return
    measured: dict[str, float | None] = {}
    if device == "cuda" and not torch.cuda.is_available():
        print("not measured: no CUDA device")
    else:
        work = Work(seeds or (48 if device == "cuda" else 6), d_in, d_sae, k, batch, rows, device)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the rows do not stay behind
        with tempfile.TemporaryDirectory() as folder:
            os.environ |= {"HUSAI_CACHE": folder, "HUSAI_DEVICE": device}
            measured = measure(work, rounds, steps, precision)
    if as_json:
        names = ("fp32_ratio_to_best_peer", "bf16_ratio_to_best_peer", "peak_mb_above_imports")
        print(json.dumps({name: measured.get(name) for name in names}))


if __name__ == "__main__":
    typer.run(main)
