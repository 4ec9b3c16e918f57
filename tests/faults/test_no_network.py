"""Cycles need no network: they run in a network namespace that has no interface, not even the loopback."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from effort import times
from faults.conftest import Tally
from faults.disturbing import NO_NETWORK, Place

from husai_lib.evidence.runs import find_run
from husai_lib.files import REPOSITORY
from husai_lib.report.audit import audit_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not NO_NETWORK, reason="this user may not open a network namespace"),
]


def test_a_namespace_without_interfaces_reaches_nothing() -> None:
    """So that the tests below mean something; the smoke cycle itself runs in one in test_smoke_cycle.py."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        script = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5)"
        assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
        alone = subprocess.run([*NO_NETWORK, sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert "Network is unreachable" in alone.stderr


def test_kernels_of_a_cycle_are_reached_without_a_network(tmp_path: Path) -> None:
    started = Place(tmp_path / "place", real=False).start(before=NO_NETWORK)
    assert started.process.wait(120) == 0, started.said


@pytest.mark.skipif(times(1, 0) == 0, reason="the quickstart takes many minutes; make faults runs it")
def test_the_quickstart_passes_without_a_network(tmp_path: Path, tally: Callable[[str], Tally]) -> None:
    row = tally("no network interface at all: the quickstart, its report and its audit")
    husai = [*NO_NETWORK, sys.executable, "-c", "from husai_lib.cli import main; main()"]
    for command in (
        ["run", str(REPOSITORY / "params" / "quickstart.yaml")],
        ["render", "--out", str(tmp_path / "site")],
    ):
        done = subprocess.run([*husai, *command, "--evidence", str(tmp_path / "evidence")], check=False,
                              cwd=REPOSITORY, capture_output=True, text=True)  # fmt: skip
        row.take(done.returncode == 0, f"{command[0]}: {done.stderr[-300:]}")
    problems = audit_run(find_run(tmp_path / "evidence", "quickstart")).problems
    row.take(not problems, f"audit: {problems[:2]}")
    assert row.failed == []
