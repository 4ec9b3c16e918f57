"""A disk that is too small, or a folder that cannot be written: one sentence, and earlier evidence as it was.

What each single write does on a full disk is held by test_robustness.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from effort import times
from faults.conftest import Tally

from husai_lib.files import REPOSITORY

pytestmark = pytest.mark.slow
Opener = Callable[[str], Tally]
SIZES = (1, 5, 20)


def in_namespace(folder: Path, mount: str, *arguments: str) -> Any:
    """What in_namespace.py prints of a folder that is mounted in a namespace of its own."""
    folder.mkdir(exist_ok=True)
    own = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*own, f"{mount} && exec true"], check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    script = Path(__file__).with_name("in_namespace.py")
    command = " ".join([mount, "&& exec", sys.executable, str(script), str(folder), *arguments])
    path = os.pathsep.join((str(REPOSITORY / "tests"), str(REPOSITORY)))
    done = subprocess.run([*own, command], check=False, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": path})  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_disk_that_is_too_small_is_one_sentence_and_the_cycle_goes_on_once_it_has_grown(
    tmp_path: Path, tally: Opener
) -> None:
    row = tally("tmpfs of 1, 5 and 20 MB: refused, filled up, and resumed once it had grown")
    for size, which in [(size, "short") for size in SIZES[: times(3, 1)]] + [(5, "smoke")] * times(1, 0):
        disk = tmp_path / f"disk{size}{which}"
        got = in_namespace(disk, f"mount -t tmpfs -o size={size}m tmpfs {disk}", str(size), which)
        refused, filled, _ = got["said"]
        good = got["codes"] == [1, 1, 0] and got["kept"] and got["half"] == []
        good &= refused.startswith("husai: ") and "GB free and the cycle needs" in refused
        good &= filled.startswith("husai: ") and "No space left on device" in filled and "--resume" in filled
        row.take(good, f"{size} MB, {which}: {got}")
    assert row.failed == []


def test_a_read_only_folder_is_one_sentence_of_every_command_that_writes(tmp_path: Path, tally: Opener) -> None:
    row, folder = tally("read-only folder: every command that writes"), tmp_path / "folder"
    shutil.copytree(REPOSITORY / "evidence" / "imported", folder / "evidence" / "imported")
    got = in_namespace(folder, f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}", "read-only")
    for name, (code, said) in got["said"].items():
        one_sentence = said.startswith("husai: ") and said.count("\n") == 1
        row.take(
            code == 1 and one_sentence and "Read-only" in said.replace("read-only", "Read-only"), f"{name}: {said}"
        )
    assert got["kept"]
    assert row.failed == []
