"""`husai verify` finds every flipped bit and every truncation of committed evidence, and nothing where all is well."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from effort import times
from faults.conftest import Tally
from stand_ins import husai, synthetic_run

from husai_lib.evidence.runs import Run, find_imports, find_runs
from husai_lib.evidence.verification import problems_beside, problems_of
from husai_lib.files import REPOSITORY

Opener = Callable[[str], Tally]
Damage = Callable[[bytes, random.Random], bytes]


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of all committed evidence."""
    return Path(shutil.copytree(REPOSITORY / "evidence", tmp_path_factory.mktemp("damage") / "evidence"))


def kind(path: Path, run: Run) -> str:
    """What a file of a run is: the name of a file that every run has, else its folder and suffix."""
    return path.name if path.parent == run.path else f"{path.parent.name}/*{path.suffix}"


def flipped(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def truncated(content: bytes, draw: random.Random) -> bytes:
    """Cut at any byte; one time in four it lacks the last byte only, or everything."""
    return content[: draw.choice([0, len(content) - 1] + [draw.randrange(len(content)) for _ in range(6)])]


DAMAGES: dict[str, Damage] = {"single-bit flips": flipped, "truncations": truncated}


@pytest.mark.parametrize("what", DAMAGES)
def test_every_damage_to_committed_evidence_is_found_and_named(what: str, evidence: Path, tally: Opener) -> None:
    row, draw = tally(f"{what} of committed evidence, by kind of file"), random.Random(what)
    runs = [*find_runs(evidence), *find_imports(evidence)]
    files = [(run, path) for run in runs for path in sorted(run.path.rglob("*")) if path.is_file()]
    kinds = sorted({kind(path, run) for run, path in files})
    row.most("kinds of files", len(kinds))
    for number in range(times(500, 3 * len(kinds))):
        run, path = draw.choice([(r, p) for r, p in files if kind(p, r) == kinds[number % len(kinds)]])
        content = path.read_bytes()
        path.write_bytes(DAMAGES[what](content, draw))
        problems = problems_of(run)
        row.take(len(problems) == 1 and path.name in problems[0], f"{path.relative_to(evidence)}: {problems}")
        path.write_bytes(content)
    assert row.failed == []
    assert [problem for run in runs for problem in problems_of(run)] == []


def test_the_command_finds_damage_and_exits_with_4(evidence: Path) -> None:
    path = find_runs(evidence)[0].path / "figures" / "ood.png"
    content = path.read_bytes()
    path.write_bytes(flipped(content, random.Random(0)))
    said = husai("verify", "--evidence", evidence)
    path.write_bytes(content)
    assert (said.code, said.err.count("\n")) == (4, 1)
    assert "verification found 1 problem: " in said.err
    assert husai("verify", "--evidence", evidence).code == 0


def test_no_run_that_is_whole_is_called_damaged(
    evidence: Path, fresh_cache: Path, tmp_path: Path, tally: Opener
) -> None:
    """Newly written runs, and committed ones copied, moved, touched or made read-only."""
    row, draw = tally("clean runs: no false alarm"), random.Random(4)
    handled: dict[str, Callable[[Path], object]] = {
        "copied": lambda folder: shutil.copytree(evidence, folder / "evidence"),
        "moved": lambda folder: shutil.copytree(evidence, folder / "x" / "evidence") and (folder / "x").rename(
            folder / "ünï ⁄ code"),
        "copied without times": lambda folder: shutil.copytree(
            evidence, folder / "evidence", copy_function=shutil.copyfile),
        "read-only": lambda folder: [
            path.chmod(0o444) for path in Path(shutil.copytree(evidence, folder / "evidence")).rglob("*.*")],
        "beside a lock and progress": lambda folder: [
            (Path(shutil.copytree(evidence, folder / "evidence")) / "smoke" / ".lock").touch()],
        "written": lambda folder: synthetic_run(folder / "evidence"),
    }  # fmt: skip
    number = 0
    while row.count < times(100, 12):
        folder, how = tmp_path / str(number), [*handled][number % len(handled)]
        folder.mkdir()
        handled[how](folder)
        [own] = [path for path in folder.rglob("evidence") if path.is_dir()]
        chosen = [*find_runs(own), *find_imports(own)]
        os.utime(draw.choice(sorted(own.rglob("*.json"))), (0, 0))
        for run in chosen:
            row.take(not problems_of(run), f"{how}: {problems_of(run)}")
        assert problems_beside(own) == []
        shutil.rmtree(folder)
        number += 1
    assert row.failed == []
