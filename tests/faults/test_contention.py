"""Eight processes run the same cycle on one evidence folder: one wins, the others say so, nothing earlier changes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from effort import times
from faults.conftest import Tally
from faults.disturbing import BANK, Place, contents
from stand_ins import write_notebooks

from husai_lib.evidence.runs import find_runs
from husai_lib.evidence.verification import problems_beside, problems_of
from husai_lib.files import REPOSITORY

pytestmark = pytest.mark.slow
PROCESSES = 8
BUSY = "husai: cycle 'smoke' is being run by another process; wait until it ends"


def test_of_eight_processes_one_wins_a_round(tmp_path: Path, tally: Callable[[str], Tally]) -> None:
    row = tally(
        f"{times(PROCESSES, 3)} processes on one evidence folder, a round: one winner, the others told in one sentence"
    )
    place = Place(tmp_path / "place", real=False)
    shutil.copytree(REPOSITORY / "evidence" / "imported", place.evidence / "imported")
    go = tmp_path / "go"
    wait = f"from pathlib import Path\nimport time\nwhile not Path({str(go)!r}).exists():\n    time.sleep(0.05)\n"
    write_notebooks(place.folder / "notebooks", activations=wait + BANK)  # the winner holds on until the others ended
    for number in range(times(20, 1)):
        go.unlink(missing_ok=True)
        before = contents(place.evidence)
        started = [place.start(log=f"log{one}.txt") for one in range(times(PROCESSES, 3))]
        while sum(one.process.poll() is None for one in started) > 1:
            time.sleep(0.05)
        go.touch()
        codes = [one.process.wait(120) for one in started]
        said = [one.said.strip() for one, code in zip(started, codes, strict=True) if code]
        now = contents(place.evidence)
        kept = {name: now.get(name) for name in before} == before
        good = kept and codes.count(0) == 1 and said == [BUSY] * (len(started) - 1)
        row.take(good, f"round {number}: exit codes {codes}, {said}, earlier evidence kept: {kept}")
    runs = find_runs(place.evidence)
    assert [problem for run in runs for problem in problems_of(run)] == []
    assert problems_beside(place.evidence) == []
    assert len(runs) == row.count
    assert row.failed == []
