"""kill -9 of a cycle or of its kernel, at any moment and during writes: what was done stays, and it is resumed."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from effort import times
from faults.conftest import Tally
from faults.disturbing import Place, Started, alive

from husai_lib.evidence.runs import Run
from husai_lib.evidence.verification import problems_beside, problems_of
from husai_lib.files import sha256_file
from husai_lib.report.audit import audit_run

pytestmark = pytest.mark.slow

DYING = str(Path(__file__).with_name("dying"))


def finished_steps(run: Run | None) -> dict[str, str]:
    """The steps of a run that are finished, with the hash of their record, which its file has."""
    steps = {step: entry["files"] for step, entry in run.journal.items() if "notebook_code" in entry} if run else {}
    assert run or not steps
    for files in steps.values():
        assert run
        assert {name: sha256_file(run.path / name) for name in files} == files
    return {step: files[f"records/{step}.json"] for step, files in steps.items()}


class Chain:
    """One cycle after the other, each killed and resumed until it is complete."""

    def __init__(self, folder: Path, tally: Tally, *, real: bool, seed: int) -> None:
        self.folder, self.tally, self.real, self.draw = folder, tally, real, random.Random(seed)
        self.place, self.cycles, self.orphans = Place(folder / "cycle0", real), 0, list[psutil.Process]()
        self.undisturbed = Place(folder / "undisturbed", real)
        began, started = time.monotonic(), self.undisturbed.start()
        assert started.process.wait(1800) == 0, started.said
        self.longest = (time.monotonic() - began) / (6 if real else 2)
        """Seconds after which a process is killed at the latest, as fast as the machine is."""

    def run(self, kills: int) -> None:
        while self.tally.count < kills:
            who = ("driver", "kernel")[self.tally.count % 2]
            how = (self.during_a_write, self.at_a_moment)[self.tally.count // 2 % 2]
            before = finished_steps(self.place.run)
            how(who)
            after = finished_steps(self.place.run)
            lost = [step for step, sha256 in before.items() if after.get(step) != sha256]
            if lost:
                self.tally.failed.append(f"finished steps were lost or made again: {lost}")
            if self.place.run and self.place.run.is_complete:
                self.next_cycle()
        while not (self.place.run and self.place.run.is_complete):
            started = self.place.start("--resume")
            assert started.process.wait(1800) == 0, started.said
        self.next_cycle()
        if left := alive(self.orphans, 10):
            self.tally.failed.append(f"{len(left)} kernels outlived their driver")

    def next_cycle(self) -> None:
        """Compare the complete run with the undisturbed one, and go on to another."""
        run, reference = self.place.run, self.undisturbed.run
        assert run
        assert reference
        self.tally.note("cycles")
        kept = "results.json"
        if (run.path / kept).read_bytes() != (reference.path / kept).read_bytes():
            self.tally.failed.append("metrics differ from those of the undisturbed run")
        problems = [*problems_of(run), *problems_beside(self.place.evidence)]
        if self.real:
            problems += audit_run(run).problems
        self.tally.failed += problems
        if not problems:
            shutil.rmtree(self.place.folder)
        self.cycles += 1
        self.place = Place(self.folder / f"cycle{self.cycles}", self.real)

    def at_a_moment(self, who: str) -> None:
        """Kill the driver or the kernel a random time after its start."""
        started = self.place.start("--resume")
        while who == "kernel" and not started.kernels and started.process.poll() is None:
            time.sleep(0.05)
        time.sleep(self.draw.uniform(0, self.longest))
        family, kernels = started.family, started.kernels
        while who == "kernel" and not kernels and started.process.poll() is None:  # between two steps
            time.sleep(0.05)
            family, kernels = started.family, started.kernels
        if started.process.poll() is not None:
            assert started.process.returncode == 0, started.said
            return
        if who == "kernel":
            kernels[0].kill()
        else:
            started.process.kill()
        self.ended(started, who, writing=False)
        self.orphans += family  # the next attempt does not wait until they notice

    def during_a_write(self, who: str) -> None:
        """Let the process kill itself where a file is opened for writing, soon after it, or before it is renamed."""
        self.folder.mkdir(exist_ok=True)
        note = self.folder / "write.txt"
        note.unlink(missing_ok=True)
        before, at = self.leftovers(), round(2 ** self.draw.uniform(0, 6.5 if self.real else 4.5))
        after = self.draw.choice([0, 0, 0, 0.0005, 0.01])
        below = f"{self.place.evidence}/:{self.place.cache}/"
        started = self.place.start(
            "--resume", PYTHONPATH=DYING, HUSAI_DEATH=f"{who} {at} {after} {note}", HUSAI_DEATH_BELOW=below
        )
        started.process.wait(1800)
        if not note.exists():  # the cycle ended before that many writes
            assert started.process.returncode == 0, started.said
            return
        self.ended(started, who, writing=after == 0 or bool(self.leftovers() - before))

    def leftovers(self) -> set[Path]:
        """What writes that did not end left behind."""
        return {path for path in self.place.folder.rglob(".*") if path.name != ".lock"}

    def ended(self, started: Started, who: str, *, writing: bool) -> None:
        """Count a kill: a killed driver is just gone, a killed kernel is told in one sentence."""
        code = started.process.wait(120)
        if who == "kernel" and code == 0:  # it was ending, its work done: nothing was disturbed, which the end compares
            self.tally.note("of a kernel that had done its work, not counted")
            return
        good = code == -signal.SIGKILL
        if who == "kernel":
            good = code == 1 and started.sentence.startswith("husai: step ") and "--resume" in started.sentence
        self.tally.take(good, f"a killed {who}: exit {code}, {started.said[-300:]}")
        self.tally.note(f"of the {who}")
        self.tally.note("during a write", writing)


Opener = Callable[[str], Tally]


def test_a_killed_short_cycle_is_resumed_with_nothing_lost(tmp_path: Path, tally: Opener) -> None:
    kills = tally("kill -9 of driver or kernel, then --resume: a cycle of seconds")
    Chain(tmp_path, kills, real=False, seed=1).run(times(100, 2))
    assert kills.failed == []
    assert kills.notes["during a write"] >= kills.count // 4


@pytest.mark.skipif(times(1, 0) == 0, reason="the smoke cycle takes minutes; make faults kills it")
def test_a_killed_smoke_cycle_is_resumed_with_nothing_lost(tmp_path: Path, tally: Opener) -> None:
    kills = tally("kill -9 of driver or kernel, then --resume: the smoke cycle")
    Chain(tmp_path, kills, real=True, seed=2).run(100)
    assert kills.failed == []
    assert kills.notes["during a write"] >= kills.count // 4
