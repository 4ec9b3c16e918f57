"""Independent tasks, on threads or in the worker processes of a dask cluster: the same results, bit for bit.

In: a function, its tasks and what the command line says about them.
Out: the results in the order of the tasks. What a task makes goes into the cache, so none is done twice.
Rooms: known by those that measure; knows the cache.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from husai_lib.tasks import threads
from husai_lib.tasks.options import Progress, device, executor, jobs

__all__ = ["Progress", "device", "executor", "jobs", "run_tasks", "workers"]
Task = TypeVar("Task")
Result = TypeVar("Result")


def run_tasks(
    function: Callable[[Task], Result], tasks: Sequence[Task], what: str, progress: Progress | None = None
) -> list[Result]:
    """The result of `function` for each task, in the order of the tasks.

    Each task computes on one thread, so any number of threads or workers gives the same bits on one kind of processor.
    In workers, all tasks are done before the error of one is raised; on threads, the first error ends the rest.
    """
    if progress:
        progress(0, len(tasks), what)
    if executor() == "threads":
        return threads.run(function, tasks, what, progress)
    from husai_lib.tasks import cluster  # noqa: PLC0415 - takes a second to import

    return cluster.run(function, tasks, what, progress)


def workers() -> int:
    """Number of worker processes; 1 without a cluster."""
    if executor() == "threads":
        return 1
    from husai_lib.tasks import cluster  # noqa: PLC0415 - as above

    return cluster.count()
