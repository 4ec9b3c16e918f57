"""A cluster of two nodes with two workers each, whose workers, nodes and scheduler are killed: nothing done is lost.

Kills hit workers that are writing a cache entry. `make faults` does the full counts, `make test` a few.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from husai_lib.errors import HusaiError, StepError
from husai_lib.evidence.cache import Entry, cached, key_of, open_entry
from husai_lib.tasks import cluster, run_tasks

FULL = bool(os.environ.get("HUSAI_FAULTS"))
WORKER_KILLS, NODE_KILLS, SCHEDULER_KILLS = (30, 5, 3) if FULL else (2, 1, 1)
WORKERS, TASKS, BAD, SECONDS = 4, 24, 13, 0.4
"""Workers of both nodes, tasks of a round, the one that always fails, and how long each takes."""
pytestmark = pytest.mark.slow


class Cluster:
    """A scheduler and two nodes, as processes: each node is a process with the nannies of two workers."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        self.start()

    def start(self) -> None:
        port = self.address.rpartition(":")[2]
        self.scheduler = self._process("scheduler", "--host=127.0.0.1", f"--port={port}")
        self.nodes = [self.node() for _ in range(2)]

    def node(self) -> subprocess.Popen[bytes]:
        return self._process("worker", self.address, "--nworkers=2", "--nthreads=1", "--memory-limit=0")

    def kill(self, *processes: subprocess.Popen[bytes]) -> None:
        """Kill processes with all that they started."""
        for process in processes:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def workers(self) -> set[int]:
        """The processes of all workers."""
        running = [psutil.Process(node.pid) for node in self.nodes if node.poll() is None]
        children = [child for node in running for child in node.children(recursive=True)]
        alive = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
        return {child.pid for child in alive if "resource_tracker" not in " ".join(child.cmdline())}

    @staticmethod
    def _process(kind: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments, "--no-dashboard"]
        often = os.environ | {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "20"}  # as docs/scale.md advises
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, start_new_session=True, env=often, **quiet)


class Work:
    """Rounds of tasks, each of which makes a cache entry in two halves, and one of which always fails."""

    def __init__(self, folder: Path) -> None:
        self.running, self.made = folder / "running", folder / "made"
        for place in (self.running, self.made):
            place.mkdir()

    def task(self, name: str) -> Entry:
        """Make the entry of a task; files say which process is at it and how often it was made."""
        mark = self.running / str(os.getpid())

        def make(folder: Path) -> None:
            mark.write_text(name)
            (folder / "half").write_text(name)
            time.sleep(SECONDS)
            (folder / "whole").write_text(name * 2)
            (self.made / f"{name} {time.time_ns()}").touch()
            mark.unlink()

        if name.endswith(f" {BAD}"):
            raise StepError("it never works")
        return cached("things", "husai_lib.files", {"task": name}, make)

    def names(self, number: object) -> list[str]:
        return [f"round {number}, task {i}" for i in range(TASKS)]

    def run(self, number: object) -> str:
        """Run a round, and say with which error it ended: that of the bad task, if all went well."""
        try:
            run_tasks(self.task, self.names(number), "things")
        except HusaiError as error:
            return str(error)
        return ""

    def is_done(self, number: object) -> bool:
        """Whether every good task of a round left what it should, and only the bad one is missing."""
        good = [name for name in self.names(number) if not name.endswith(f" {BAD}")]
        for name in good:
            entry = open_entry("things", key_of("husai_lib.files", {"task": name}))
            assert entry.files["whole"] == hashlib.sha256(name.encode() * 2).hexdigest()
        return len(good) == TASKS - 1

    def finish(self, number: object) -> tuple[bool, bool]:
        """Run a round, a second time if need be; whether it took the second, and whether the bad task is named."""
        said = self.run(number)
        again = "(1 of " not in said
        said = self.run(number) if again else said
        of_bad = f"round {number}, task {BAD}: it never works (1 of {TASKS} tasks failed, the others are done; things)"
        assert said == of_bad
        return again, self.is_done(number)

    def writer(self, among: set[int]) -> int:
        """A worker that is writing an entry; 0 if there is none."""
        return random.choice(sorted({int(mark.name) for mark in self.running.iterdir()} & among) or [0])


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    cluster_ = Cluster()
    yield cluster_
    if cluster_.address in cluster._CLIENTS:
        cluster._CLIENTS.pop(cluster_.address).close(timeout=1)
    cluster_.kill(cluster_.scheduler, *cluster_.nodes)


@pytest.fixture
def work(nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    given = {"EXECUTOR": "dask", "SCHEDULER": nodes.address, "DEVICE": "cpu", "CACHE": str(tmp_path / "cache")}
    for name, value in given.items():
        monkeypatch.setenv(f"HUSAI_{name}", value)
    return Work(tmp_path)


def tell(record_property: Callable[[str, object], None], row: str, count: int, **notes: float) -> None:
    """A row of the table that `make faults` prints."""
    told = {"row": row, "count": count, "failed": [], "notes": notes}
    record_property("tally", json.dumps(told))


def test_killed_workers_and_nodes_cost_the_tasks_that_they_were_at(
    nodes: Cluster, work: Work, record_property: Callable[[str, object], None]
) -> None:
    plan = ["worker"] * WORKER_KILLS + ["node"] * NODE_KILLS
    random.Random(0).shuffle(plan)
    killed: list[str] = []
    ended = threading.Event()

    def kill_all() -> None:
        while plan and not ended.is_set():
            time.sleep(random.uniform(0, 2 * SECONDS))
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):  # it ended before it was killed
                if len(nodes.workers()) < WORKERS or not (writer := work.writer(nodes.workers())):
                    continue
                if plan[-1] == "worker":
                    os.kill(writer, signal.SIGKILL)
                else:
                    i = [node.pid for node in nodes.nodes].index(os.getpgid(writer))
                    nodes.kill(nodes.nodes[i])
                    nodes.nodes[i] = nodes.node()
                (work.running / str(writer)).unlink(missing_ok=True)
                killed.append(plan.pop())

    killer = threading.Thread(target=kill_all)
    killer.start()
    outcomes = []
    while killer.is_alive() and len(outcomes) < 20 * len(plan + killed):
        outcomes.append(work.finish(len(outcomes)))
    ended.set()
    killer.join()
    assert len(killed) == WORKER_KILLS + NODE_KILLS
    assert all(good for _, good in outcomes)
    tasks, lost = len(outcomes) * (TASKS - 1), WORKER_KILLS + 2 * NODE_KILLS
    made = len([*work.made.iterdir()])
    assert tasks <= made <= tasks + lost
    again = sum(again for again, _ in outcomes)
    row = f"{WORKER_KILLS} workers and {NODE_KILLS} nodes of a dask cluster killed, 1 task that always fails"
    tell(record_property, row, len(killed), rounds=len(outcomes), resumed=again, tasks=tasks, made_again=made - tasks)


def test_a_killed_scheduler_ends_the_step_with_one_sentence_and_the_next_attempt_does_the_rest(
    nodes: Cluster, work: Work, record_property: Callable[[str, object], None]
) -> None:
    for number in range(SCHEDULER_KILLS):
        already, ended = len([*work.made.iterdir()]), threading.Event()

        def kill(wanted: int = already + random.randrange(1, TASKS // 2), ended: threading.Event = ended) -> None:
            while len([*work.made.iterdir()]) < wanted and not ended.is_set():
                time.sleep(0.02)
            nodes.kill(nodes.scheduler)

        killer = threading.Thread(target=kill)
        killer.start()
        said = work.run(number)
        ended.set()
        killer.join()
        assert said.startswith(f"the dask scheduler {nodes.address} was lost; ")
        assert said.endswith(f" of {TASKS} things are done and kept")
        nodes.kill(*nodes.nodes)
        nodes.start()
        assert work.finish(number) == (False, True)
        assert len([*work.made.iterdir()]) - already <= TASKS - 1 + 4  # at most one task a worker was made again
    made = len([*work.made.iterdir()])
    row = "the scheduler of a dask cluster killed"
    tell(record_property, row, SCHEDULER_KILLS, made_again=made - SCHEDULER_KILLS * (TASKS - 1))
