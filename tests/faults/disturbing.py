"""Cycles as processes that are disturbed: the real smoke cycle, or a short one that takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from stand_ins import SMOKE, write_notebooks

from husai_lib.evidence.runs import Run, find_runs
from husai_lib.files import REPOSITORY

ALONE = ["unshare", "--map-root-user", "--net"]
NO_NETWORK = ALONE if subprocess.run([*ALONE, "true"], check=False, capture_output=True).returncode == 0 else []
"""Begins a command that has no network interface, not even the loopback; empty where this user may not do that."""
BANK = """
from husai_lib.evidence.cache import cached
from husai_lib.evidence.rows.measured import BankRow
def fill(folder):
    for part in range(3):
        step.progress(part, 3, 'parts')
        (folder / f'rows{part}.npy').write_bytes(b'rows' * 100_000)
step = open_step('activations', run, activations=activations)
entry = cached('banks', 'husai_lib.files', {'name': 'bank'}, fill)
step.publish('results.json', {'rows': entry.files})
record = step.write({'banks': [BankRow(bank='training', hook_name='h', rows=1, d_in=1, key=entry.key, sha256='')]})
"""
"""A first step that reports progress, fills the cache and publishes a file, as real ones do."""


@dataclass(frozen=True)
class Place:
    """Where a cycle runs: evidence and cache of its own."""

    folder: Path
    real: bool
    """The smoke cycle, not the short one."""

    @property
    def evidence(self) -> Path:
        return self.folder / "evidence"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def run(self) -> Run | None:
        """The newest run that has begun."""
        begun = [run for run in find_runs(self.evidence) if (run.path / "parameters.json").exists()]
        return begun[-1] if begun else None

    def start(
        self, *arguments: str, log: str = "log.txt", first: str = "", before: Sequence[str] = (), **environment: str
    ) -> Started:
        """Start `husai run`, by the command `before`, after the statements `first`.

        Its output goes into a file, so that no process that is left behind holds a pipe open. It hears Ctrl-C even
        where the tests run in the background.
        """
        notebooks, file = self.folder / "notebooks", self.folder / log
        script = ["import signal, sys", "signal.signal(signal.SIGINT, signal.default_int_handler)"]
        script += ["from husai_lib import cli", "from husai_lib.cycle import run as cycle"]
        if not self.real:
            if not notebooks.exists():
                write_notebooks(notebooks, activations=BANK)
            script += ["import stand_ins, pathlib", "cycle.STEPS = stand_ins.STEPS"]
            script += [f"cli.NOTEBOOKS = pathlib.Path({str(notebooks)!r})"]
        self.folder.mkdir(parents=True, exist_ok=True)
        code = "; ".join([*script, *filter(None, [first]), "cli.main()"])
        command = [*before, sys.executable, "-c", code, "run", str(SMOKE), "--evidence", str(self.evidence), *arguments]
        paths = environment.pop("PYTHONPATH", ""), str(REPOSITORY / "tests"), str(REPOSITORY)
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HUSAI_CACHE": str(self.cache)}
        with file.open("w") as out:
            started = subprocess.Popen(
                command, stdout=out, stderr=out, env=os.environ | environment, cwd=REPOSITORY, start_new_session=True
            )
        return Started(started, file)


@dataclass(frozen=True)
class Started:
    """A cycle's process."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def sentence(self) -> str:
        """What it said at its end: one line, else everything."""
        lines = self.said.splitlines()
        last = lines[-1] if lines else ""
        others = [line for line in lines[:-1] if not line.startswith(("new run ", "resuming ", "nothing to ", "step "))]
        return last if not others else self.said

    @property
    def family(self) -> list[psutil.Process]:
        """The processes that it started."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    @property
    def kernels(self) -> list[psutil.Process]:
        """The kernels among them."""
        return [one for one in self.family if is_kernel(one)]


def is_kernel(process: psutil.Process) -> bool:
    """Whether a process is a kernel; one that has just ended is none."""
    try:
        return any("ipykernel_launcher" in word for word in process.cmdline())
    except psutil.Error:
        return False


def alive(processes: list[psutil.Process], within: float) -> list[psutil.Process]:
    """Which processes are still there after so many seconds."""
    _, left = psutil.wait_procs([one for one in processes if is_alive(one)], timeout=within)
    return [one for one in left if is_alive(one)]


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but locks, which hold nothing."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
