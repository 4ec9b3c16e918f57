"""The audit of a run that another version of this code made, by that version: its journal names the commit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter

from husai_lib.evidence.cache import cache_folder
from husai_lib.evidence.code import CHANGED, checkout_of, library_hash
from husai_lib.evidence.runs import Run
from husai_lib.report.audit import audit_run
from husai_lib.report.checks import Audit

COMMAND = "from husai_lib.cli import main; main()"
COUNTED = re.compile(r"([\d,]+) (.+)")


def audit_as_made(run: Run) -> Audit:
    """The audit of a run by the code that made it: this one or, where the libraries differ, that of its commit.

    Tables, columns and notebooks change from version to version, so another one cannot say whether they follow from the
    records. A run of changed files, or of a commit that this checkout does not have, is audited by this code.
    """
    code = run.attempts[-1]["code"] if run.is_complete and run.attempts else {}
    commit = code.get("git_commit") or CHANGED
    if commit.endswith(CHANGED) or code["library_sha256"] == library_hash():
        return audit_run(run)
    with checkout_of(commit) as folder:
        if folder is None:
            return audit_run(run)
        command = [
            sys.executable,
            "-c",
            COMMAND,
            "audit",
            run.name,
            "--evidence",
            str(run.path.parent.parent.absolute()),
        ]
        place = os.environ | {"PYTHONPATH": str(folder), "HUSAI_CACHE": str(cache_folder().absolute())}
        done = subprocess.run(command, cwd=folder, env=place, capture_output=True, text=True, check=False)
    audit = _read(done.stdout, run.name)
    audit.by = commit
    if not audit.checked and not audit.problems:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        audit.problems.append(f"the code of commit {commit} cannot audit it: {last}")
    return audit


def _read(output: str, name: str) -> Audit:
    """The audit of a run as the command line prints it."""
    start, lines = f"problem: {name}: ", output.splitlines()
    problems = [line.removeprefix(start) for line in lines if line.startswith(start)]
    counts = next((line for line in lines if line.startswith(f"{name}: ")), "").removeprefix(f"{name}: ")
    found = {what: int(n.replace(",", "")) for n, what in COUNTED.findall(counts.replace(", ", "\n"))}
    unchecked = {what: n for what, n in found.items() if what not in {"values checked", "problems"}}
    return Audit(found.get("values checked", 0), Counter(unchecked), problems)
