"""Time a few training steps on random rows: `python -m husai_lib.saes.timing`, JSON on stdin and seconds on stdout.

In: `width`, the dimensions of a row, and `stacks`, each a condition and a number of members. Out: seconds that training
takes for all of them, a condition's members together on a GPU, and shared by the jobs on a CPU. The consistency
objective is left out, as it needs references.
"""

import json
import os
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch

from husai_lib.activations.extraction import rows_bank
from husai_lib.params.conditions import Condition
from husai_lib.saes.data import Data
from husai_lib.saes.stack import Stack
from husai_lib.saes.training import members
from husai_lib.tasks import device, jobs

ROWS, WARM_UP, STEPS = 8192, 2, 10


def training_seconds(given: dict[str, Any], number: int, data: Data) -> float:
    """Seconds that training of `number` members of a condition would take, from `STEPS` steps after `WARM_UP`."""
    condition = Condition(**given)
    together = number if device() == "cuda" else 1
    stack, began = Stack(members([condition], range(together)), data, device()), 0.0
    for done, (x, target) in enumerate(stack.batches()):
        if done == WARM_UP:
            _wait()
            began = time.perf_counter()
        if done == min(WARM_UP + STEPS, stack.steps - 1):
            break
        stack.step(x, target)
    _wait()
    return (time.perf_counter() - began) / max(1, done - WARM_UP) * stack.steps * number / together


def _wait() -> None:
    if device() == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Answer the request on stdin."""
    asked = json.load(sys.stdin)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HUSAI_CACHE"] = folder
        rows = np.random.default_rng(0).standard_normal((ROWS, asked["width"]), np.float32)
        data = Data.of(rows_bank(rows, "random"))
        seconds = sum(training_seconds(given, number, data) for given, number in asked["stacks"])
        sys.stdout.write(str(seconds / (1 if device() == "cuda" else jobs())))


if __name__ == "__main__":
    main()
