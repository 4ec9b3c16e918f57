"""Cycles as processes that are disturbed: the real smoke cycle, or a short one that takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
from stand_ins import SMOKE, start_husai, write_notebooks

from husai_lib.evidence.runs import Run, find_runs
from husai_lib.files import REPOSITORY

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

    def start(self, *arguments: str, **environment: str) -> Started:
        """Start `husai run`, its output in a file, so that no process that is left behind holds a pipe open."""
        self.folder.mkdir(parents=True, exist_ok=True)
        environment |= {"HUSAI_CACHE": str(self.cache)}
        given = ("run", str(SMOKE), "--evidence", str(self.evidence), *arguments)
        log = self.folder / "log.txt"
        with log.open("w") as out:
            if self.real:
                script = "import sys; from husai_lib.cli import main; main(sys.argv[1:])"
                path = os.pathsep.join(filter(None, (environment.pop("PYTHONPATH", ""), str(REPOSITORY))))
                started = subprocess.Popen(
                    [sys.executable, "-c", script, *given],
                    stdout=out, stderr=out, env=os.environ | environment | {"PYTHONPATH": path},
                    cwd=REPOSITORY, start_new_session=True,
                )  # fmt: skip
            else:
                notebooks = self.folder / "notebooks"
                if not notebooks.exists():
                    write_notebooks(notebooks, activations=BANK)
                started = start_husai(notebooks, *given, out=out, **environment)
        return Started(started, log)


@dataclass(frozen=True)
class Started:
    """A cycle's process."""

    process: subprocess.Popen[str] | subprocess.Popen[bytes]
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
