"""Tasks return in order, each on one thread; invalid options are errors; each draw has its own generator."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from husai_lib.errors import DataError, ParameterError
from husai_lib.randomness import numpy_generator, torch_generator
from husai_lib.tasks import device, jobs, run_tasks


@pytest.mark.parametrize("count", ["1", "3", "8"])
def test_results_come_in_the_order_of_the_tasks_with_progress_for_each(
    monkeypatch: pytest.MonkeyPatch, count: str
) -> None:
    monkeypatch.setenv("HUSAI_JOBS", count)
    done: list[tuple[int, int, str]] = []

    def square(task: int) -> int:
        time.sleep(0.02 * (4 - task))  # later tasks end first
        return task**2

    assert run_tasks(square, range(5 - 1), "squares", lambda *state: done.append(state)) == [0, 1, 4, 9]
    assert done == [(i, 4, "squares") for i in (0, 1, 2, 3, 4)]
    assert run_tasks(square, [], "squares") == []


def test_tasks_run_in_parallel_and_no_more_than_jobs_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUSAI_JOBS", "2")
    barrier = threading.Barrier(2)  # broken unless two tasks wait at it together
    running: list[int] = []

    def wait(task: int) -> int:
        running.append(task)
        assert len(running) <= 2
        barrier.wait(timeout=10)
        running.remove(task)
        return task

    assert run_tasks(wait, range(4), "tasks") == [0, 1, 2, 3]


@pytest.mark.parametrize("count", ["1", "2"])
def test_every_task_computes_on_one_thread_and_the_caller_on_as_many_as_before(
    monkeypatch: pytest.MonkeyPatch, count: str
) -> None:
    monkeypatch.setenv("HUSAI_JOBS", count)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert run_tasks(lambda _: torch.get_num_threads(), range(3), "tasks") == [1, 1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_error_of_a_task_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUSAI_JOBS", "2")

    def fail(task: int) -> int:
        if task == 1:
            raise DataError("this one")
        return task

    with pytest.raises(DataError, match="this one"):
        run_tasks(fail, range(3), "tasks")


def test_jobs_are_as_set_or_one_for_each_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUSAI_DEVICE", "cpu")
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    for given, expected in (("3", 3), ("", 5)):
        monkeypatch.setenv("HUSAI_JOBS", given)
        assert jobs() == expected
    monkeypatch.delenv("HUSAI_JOBS")
    assert jobs() == 5


@pytest.mark.parametrize("given", ["0", "-1", "two", "1.5"])
def test_an_invalid_number_of_jobs_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("HUSAI_JOBS", given)
    with pytest.raises(ParameterError, match=f"--jobs {given}"):
        jobs()


def test_the_device_is_as_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        for wanted, expected in (
            ("cpu", "cpu"),
            ("auto", "cuda" if there else "cpu"),
            ("", "cuda" if there else "cpu"),
        ):
            monkeypatch.setenv("HUSAI_DEVICE", wanted)
            assert device() == expected
    monkeypatch.setenv("HUSAI_DEVICE", "cuda")
    with pytest.raises(ParameterError, match="--device cuda: torch finds no CUDA device; use --device cpu or auto"):
        device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device() == "cuda"
    monkeypatch.delenv("HUSAI_JOBS", raising=False)
    assert jobs() == 1  # one GPU does the work of all
    monkeypatch.setenv("HUSAI_DEVICE", "gpu")
    with pytest.raises(ParameterError, match="--device gpu"):
        device()


def test_a_generator_depends_on_seed_and_purpose_alone() -> None:
    def numbers(seed: int, purpose: str) -> tuple[float, ...]:
        return tuple(numpy_generator(seed, purpose).random(3)) + tuple(
            torch.rand(3, generator=torch_generator(seed, purpose)).tolist()
        )

    assert numbers(0, "a") == numbers(0, "a")
    drawn = [numbers(seed, purpose) for seed in (0, 1, 11) for purpose in ("a", "b", "1/a")]
    assert len({value for values in drawn for value in values}) == 9 * 6
    state = torch.random.get_rng_state()
    numbers(0, "a")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.abs(np.corrcoef([numpy_generator(s, "a").normal(size=2000) for s in (0, 1)])[0, 1]) < 0.1
