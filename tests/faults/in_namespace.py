"""Cycles and commands on a disk that is too small or read-only: run by test_disks.py in a mount namespace of its own.

Takes the folder of the disk, and its size in MB and which cycle is run (`short` or `smoke`), or `read-only`. Prints a
JSON line of what was said, with which exit codes, and what became of the files.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from earlier_files import policy, save
from faults.disturbing import BANK, Place, contents
from stand_ins import SMOKE, husai, write_notebooks

from husai_lib.files import REPOSITORY

ANY_DISK = "cycle.EVIDENCE_BYTES = 0; cycle.cache_bytes = lambda *_: 0"
"""Lets a cycle begin although the disk is too small for one."""


def small(disk: Path, size: int, which: str) -> dict[str, Any]:
    """A cycle that is refused, one that fills the disk, and its resumption on a larger disk."""
    place = Place(disk, which == "smoke")
    earlier = Path(shutil.copytree(REPOSITORY / "evidence" / "imported", place.evidence / "imported"))
    before = contents(earlier)
    if which == "short":  # its first step writes more than the disk holds
        write_notebooks(disk / "notebooks", activations=BANK.replace("100_000", f"{size}00_000"))
    codes, said, log = [], [], str(disk.parent / f"{disk.name}.log")
    for arguments, first in (((), ""), ((), ANY_DISK), (("--resume",), ANY_DISK)):
        if arguments:
            half = [str(path) for path in disk.rglob(".*") if path.name != ".lock"]
            subprocess.run(["mount", "-o", "remount,size=400m", str(disk)], check=True)
        started = place.start(*arguments, log=log, first=first)
        codes.append(started.process.wait(900))
        said.append(started.sentence)
    return {"codes": codes, "said": said, "kept": contents(earlier) == before, "half": half}


def read_only(folder: Path) -> dict[str, Any]:
    """Every command that writes, on a folder that cannot be written."""
    evidence, before = folder / "evidence", contents(folder)
    record = save(folder.parent / "earlier", release_policy=policy())
    commands: dict[str, tuple[Any, ...]] = {
        "run": ("run", SMOKE, "--evidence", evidence),
        "run --resume": ("run", SMOKE, "--resume", "--evidence", evidence),
        "import": ("import", record, "--as", "again", "--evidence", evidence),
        "render": ("render", "--out", folder / "site", "--evidence", REPOSITORY / "evidence"),
    }
    said = {name: husai(*arguments) for name, arguments in commands.items()}
    return {"said": {name: (one.code, one.err) for name, one in said.items()}, "kept": contents(folder) == before}


if __name__ == "__main__":
    where, what, *more = sys.argv[1:]
    told = read_only(Path(where)) if what == "read-only" else small(Path(where), int(what), *more)
    print(json.dumps(told))  # noqa: T201
