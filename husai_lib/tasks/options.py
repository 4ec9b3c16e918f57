"""What the command line says about tasks, as the kernels of notebooks and workers inherit it: in the environment."""

import os
from collections.abc import Callable

import torch

from husai_lib.errors import ParameterError

Progress = Callable[[int, int, str], None]


def device() -> str:
    """The device that `$HUSAI_DEVICE` names (auto, cpu, cuda); `auto` is the GPU, if there is one."""
    wanted = os.environ.get("HUSAI_DEVICE") or "auto"
    if wanted not in {"auto", "cpu", "cuda"}:
        raise ParameterError(f"--device {wanted}: unknown device; use auto, cpu or cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ParameterError("--device cuda: torch finds no CUDA device; use --device cpu or auto")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def jobs() -> int:
    """Number of parallel tasks: `$HUSAI_JOBS`, or by default one for each processor and one on a GPU."""
    wanted = os.environ.get("HUSAI_JOBS") or str(1 if device() == "cuda" else os.cpu_count())
    if not wanted.isdecimal() or int(wanted) < 1:
        raise ParameterError(f"--jobs {wanted}: not a number of tasks; use 1 or more")
    return int(wanted)


def executor() -> str:
    """Where tasks run, by `$HUSAI_EXECUTOR`: on `threads` of this process, or in the workers of a `dask` cluster."""
    wanted = os.environ.get("HUSAI_EXECUTOR") or "threads"
    if wanted not in {"threads", "dask"}:
        raise ParameterError(f"--executor {wanted}: unknown executor; use threads or dask")
    return wanted


def resources() -> dict[str, float]:
    """What a task needs of its worker, by `$HUSAI_RESOURCES`, such as `GPU=1`."""
    found = {}
    for given in filter(None, os.environ.get("HUSAI_RESOURCES", "").split(",")):
        name, _, amount = given.partition("=")
        if not name or not amount.isdecimal() or int(amount) < 1:
            raise ParameterError(f"--resources {given}: not NAME=NUMBER; use for instance GPU=1")
        found[name] = float(amount)
    return found
