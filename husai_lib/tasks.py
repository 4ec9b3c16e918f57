"""Independent tasks on parallel threads; results do not depend on the number of threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits

from husai_lib.errors import ParameterError

Task = TypeVar("Task")
Result = TypeVar("Result")
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


def run_tasks(
    function: Callable[[Task], Result], tasks: Sequence[Task], what: str, progress: Progress | None = None
) -> list[Result]:
    """The result of `function` for each task, in the order of the tasks.

    Each task computes on one thread, so any number of jobs gives the same bits. torch, numpy and scikit-learn release
    the interpreter lock in their kernels, so threads suffice, and they share memory.
    """
    results: list[Result] = []
    if progress:
        progress(0, len(tasks), what)
    with threadpool_limits(1):
        parallel = Parallel(n_jobs=min(jobs(), max(1, len(tasks))), backend="threading", return_as="generator")
        for result in parallel(delayed(_on_one_thread)(function, task) for task in tasks):
            results.append(result)
            if progress:
                progress(len(results), len(tasks), what)
    return results


def _on_one_thread(function: Callable[[Task], Result], task: Task) -> Result:
    torch.set_num_threads(1)  # OpenMP keeps this number for each thread, so every worker sets its own
    return function(task)
