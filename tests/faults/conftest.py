"""The table that `make faults` ends with: what was done to the library, how often, and what it did not stand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from effort import times

FOUND: list[dict[str, object]] = []
"""Tallies of the finished tests, in order."""
SKIPPED: list[str] = []


@dataclass
class Tally:
    """One row of the table."""

    row: str
    count: int = 0
    failed: list[str] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)
    """Further counts and measurements, by what they are of."""

    def take(self, good: object, what: str) -> None:
        """Count one fault, and whether the library stood it."""
        self.count += 1
        if not good:
            self.failed.append(what)

    def note(self, what: str, more: float = 1) -> None:
        """Add to a further count."""
        self.notes[what] = self.notes.get(what, 0) + more

    def most(self, what: str, value: float) -> None:
        """Keep the largest value of a measurement."""
        self.notes[what] = max(value, self.notes.get(what, value))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every fault time enough: on a busy machine hundreds of them take hours."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(times(4 * 3600, 1800)))


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Iterator[Callable[[str], Tally]]:
    """Opens a row of the table; the test that fills it asserts that nothing failed."""
    opened: list[Tally] = []

    def opener(row: str) -> Tally:
        opened.append(Tally(row))
        return opened[-1]

    yield opener
    for one in opened:
        record_property("tally", json.dumps(one.__dict__))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Gather the rows, and the reasons why tests were skipped."""
    if report.when == "teardown":
        FOUND.extend(json.loads(str(value)) for name, value in report.user_properties if name == "tally")
    if report.skipped and isinstance(report.longrepr, tuple):
        SKIPPED.append(f"{report.nodeid}: {report.longrepr[2]}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if not FOUND:
        return
    terminalreporter.section("faults")
    terminalreporter.line("| fault | count | passed | failed | measured |")
    terminalreporter.line("|---|---:|---:|---|---|")
    for one in FOUND:
        failed, notes = one["failed"], one["notes"]
        assert isinstance(failed, list)
        assert isinstance(notes, dict)
        measured = ", ".join(f"{what} {value:.4g}" for what, value in notes.items())
        sound = int(str(one["count"])) - len(failed)
        why = "; ".join([*failed[:3], *(["…"] if failed[3:] else [])]).replace("\n", " ").replace("|", "¦") or "none"
        terminalreporter.line(f"| {one['row']} | {one['count']} | {sound} | {why} | {measured} |")
    for line in SKIPPED:
        terminalreporter.line(f"skipped: {line}")
