"""Tasks on parallel threads of this process."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits

from husai_lib.tasks.options import Progress, jobs

Task = TypeVar("Task")
Result = TypeVar("Result")


def run(
    function: Callable[[Task], Result], tasks: Sequence[Task], what: str, progress: Progress | None = None
) -> list[Result]:
    """The results in the order of the tasks.

    torch, numpy and scikit-learn release the interpreter lock in their kernels, so threads suffice, and they share
    memory.
    """
    results: list[Result] = []
    with threadpool_limits(1):
        parallel = Parallel(n_jobs=min(jobs(), max(1, len(tasks))), backend="threading", return_as="generator")
        for result in parallel(delayed(on_one_thread)(function, task) for task in tasks):
            results.append(result)
            if progress:
                progress(len(results), len(tasks), what)
    return results


def on_one_thread(function: Callable[[Task], Result], task: Task) -> Result:
    """The result of one task, computed by the calling thread alone as far as torch goes."""
    torch.set_num_threads(1)  # OpenMP keeps this number for each thread, so every worker sets its own
    return function(task)
