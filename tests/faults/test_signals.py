"""Ctrl-C and SIGTERM: a cycle says that it was interrupted, exits with 130, leaves no process, and can be resumed."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from effort import times
from faults.conftest import Tally
from faults.disturbing import Place, alive

from husai_lib.cycle.run import only_run_of
from husai_lib.evidence.verification import problems_beside, problems_of

pytestmark = pytest.mark.slow


def test_an_interrupted_cycle_says_so_leaves_no_process_and_is_resumed(
    tmp_path: Path, tally: Callable[[str], Tally]
) -> None:
    row = tally("SIGINT or SIGTERM: exit 130, no process left after 5 s, then --resume")
    draw, number = random.Random(3), 0
    place = Place(tmp_path / "cycle0", real=False)
    while row.count < times(100, 2):
        began, started = time.monotonic(), place.start("--resume")
        while "step 1/3" not in started.said and started.process.poll() is None:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 2 * (time.monotonic() - began)))  # at any moment, as fast as the machine is
        family = started.family
        if started.process.poll() is None:
            how = (signal.SIGINT, signal.SIGTERM)[row.count % 2]
            started.process.send_signal(how)
            began = time.monotonic()
            code = started.process.wait(60)
            row.most("longest end in s", time.monotonic() - began)
            left = alive(family, 5)
            if code == 0:  # it had done everything
                continue
            good = code == 130 and not left and started.sentence.startswith("husai: interrupted; finished steps are")
            row.take(good, f"{how.name}: exit {code}, {len(left)} processes left, {started.said[-200:]}")
            with only_run_of("smoke", place.evidence):
                pass
        if place.run and place.run.is_complete:
            assert [*problems_of(place.run), *problems_beside(place.evidence)] == []
            row.note("cycles completed")
            place, number = Place(tmp_path / f"cycle{number + 1}", real=False), number + 1
    if place.run and not place.run.is_complete:
        started = place.start("--resume")
        assert started.process.wait(120) == 0, started.said
        assert problems_of(place.run) == []
    assert row.failed == []
