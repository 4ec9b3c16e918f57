"""What the library does on a disk that fills up: run by test_robustness.py on a small disk of its own.

Prints a JSON line for each thing that is written: its name, the error, whether anything half-written stayed behind,
and whether the same call succeeds once there is space.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

DISK = Path(sys.argv[1])
os.environ |= {"HUSAI_CACHE": str(DISK / "cache"), "HUSAI_JOBS": "1", "HUSAI_DEVICE": "cpu"}

from small_saes import HOOK, bank, condition, random_sae, trained  # noqa: E402
from stand_ins import notebook  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

from husai_lib.activations.extraction import gaussian_bank, text_bank  # noqa: E402
from husai_lib.activations.language_model import open_model  # noqa: E402
from husai_lib.activations.texts import ProbingSet, Text  # noqa: E402
from husai_lib.cycle.execution import execute  # noqa: E402
from husai_lib.evidence.cache import cached  # noqa: E402
from husai_lib.evidence.runs import Run  # noqa: E402
from husai_lib.evidence.steps import open_step  # noqa: E402
from husai_lib.files import REPOSITORY, write_json  # noqa: E402
from husai_lib.measures.contrastive import contrastive_scores  # noqa: E402
from husai_lib.measures.probing import ProbeTask, llm_scores, sae_scores  # noqa: E402
from husai_lib.params.benchmarks import ContrastiveParams, ProbingParams  # noqa: E402
from husai_lib.params.inputs import ActivationParams, ModelParams  # noqa: E402
from husai_lib.report.figures import ReportFigure  # noqa: E402
from husai_lib.saes.data import Data  # noqa: E402
from husai_lib.saes.stack import Stack  # noqa: E402
from husai_lib.saes.trained import Member  # noqa: E402
from husai_lib.saes.training import train_bank  # noqa: E402

DRAW = np.random.default_rng(0)
TINY = REPOSITORY / "husai_lib" / "data" / "tiny_gpt_neox"


@contextmanager
def nearly_full(free: int) -> Iterator[None]:
    """The disk with only `free` bytes left."""
    filler = DISK / "filler"
    left = os.statvfs(DISK)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, left.f_bavail * left.f_frsize - free)
    try:
        yield
    finally:
        filler.unlink()


def listing() -> set[str]:
    """Everything on the disk but for empty folders, which take no space and hold nothing."""
    return {str(path.relative_to(DISK)) for path in DISK.rglob("*") if path.is_file() and path.name != "filler"}


def attempt(name: str, write: Callable[[], Any], free: int = 0) -> None:
    """Write with `free` bytes left, then again with all of them, and tell what came of it."""
    before = listing()
    with nearly_full(free):
        try:
            write()
            error = None
        except Exception as raised:  # noqa: BLE001 - which class it is, is what the test asks
            error = [type(raised).__name__, str(raised)]
        left = sorted(listing() - before)
    write()
    print(json.dumps({"name": name, "error": error, "left": left}), flush=True)  # noqa: T201


def main() -> None:
    model = open_model(ModelParams(name="random:package:husai_lib/data/tiny_gpt_neox", prepend_bos=True))
    read = ActivationParams(hook_name=HOOK, training_rows=1, held_out_rows=1, max_norm_ratio=50.0)
    texts = [Text("a", f"{i} " + "word " * 60) for i in range(200)]
    rows = DRAW.normal(size=(2000, 32)).astype(np.float32)
    small = bank(rows)
    sae = trained(random_sae(0))
    recipe = [Member(condition(training_samples=2048), 0)]
    labels = np.arange(2000) % 2
    task = ProbeTask(ProbingSet("set", tuple("ab" * 1000), labels, ("0", "1")), small)
    stories = bank(rows[:80], offsets=[0, 20, 40, 60, 80])
    step = open_step("activations", str(DISK / "run"))
    figure = ReportFigure()
    figure.add_subplot().plot(rows[:, 0])
    random_model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY))
    page = notebook(DISK / "page.ipynb", "x = 1", "print('x' * 200_000)")

    attempt("bank", lambda: text_bank(model, texts, read, [HOOK]), free=400_000)
    attempt("outliers of a bank", lambda: text_bank(model, texts[:150], read, [HOOK]), free=1_500_000)
    attempt("gaussian bank", lambda: gaussian_bank(small), free=100_000)
    attempt("sae", lambda: train_bank(recipe, small), free=8_000)
    attempt("checkpoint", lambda: _checkpoint(Data.of(small)), free=8_000)
    attempt("model", lambda: cached("models", "husai_lib.files", {}, random_model.save_pretrained), free=99_000)
    attempt("llm probe", lambda: llm_scores([task], ProbingParams()))
    attempt("sae probe", lambda: sae_scores([sae], [task], ProbingParams()))
    attempt("stories", lambda: contrastive_scores([sae], stories, ContrastiveParams()))
    attempt("progress", lambda: step.progress(1, 2, "texts"))
    attempt("figure", lambda: step.save_figure(figure, "figure"))
    attempt("published file", lambda: step.publish("results.json", {"x": 1}))
    attempt("record", step.write)
    attempt("manifest", lambda: Run(DISK / "run").write_manifest())
    attempt("parameters", lambda: write_json(DISK / "run" / "parameters.json", {}))
    attempt("executed notebook", lambda: execute(page, DISK / "run" / "page.unfinished.ipynb", {}), free=50_000)


def _checkpoint(data: Data) -> None:
    stack = Stack([Member(condition(training_samples=4096), 0)], data, "cpu")
    for x, target in stack.batches():
        stack.step(x, target)
    stack.save(DISK / "cache" / "checkpoints" / "x.safetensors")


if __name__ == "__main__":
    main()
