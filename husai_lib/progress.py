"""How far a cycle is, for the person who waits: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from husai_lib.errors import HusaiError
from husai_lib.files import read_json

POLL_SECONDS = 0.5
LINE_SECONDS = 15.0


class Watch:
    """Tells how far each step and the cycle are, from the `progress.json` that steps write."""

    def __init__(self, console: Console, run: Path, steps: Mapping[str, float], to_run: list[str]) -> None:
        """`steps` are all steps of the cycle with a rough share of work; `to_run` those that aren't kept."""
        self.console = console
        self.file = run / "progress.json"
        self.steps = dict(steps)
        self.to_run = to_run
        self.finished_work = 0.0
        self.started = time.monotonic()

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Watch one step while the block runs it."""
        self.file.unlink(missing_ok=True)
        title = f"step {list(self.steps).index(name) + 1}/{len(self.steps)} {name}"
        started, ended = time.monotonic(), threading.Event()
        follow = self._follow_bar if self.console.is_terminal else self._follow_lines
        if not self.console.is_terminal:
            self.say(f"{title} ...")
        thread = threading.Thread(target=follow, args=(name, title, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.file.unlink(missing_ok=True)
        self.finished_work += self.steps[name]
        self.say(f"{title}: done in {_duration(time.monotonic() - started)}")

    def _follow_bar(self, name: str, title: str, ended: threading.Event) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(title, total=None, state="")
            while not ended.wait(POLL_SECONDS):
                done, total, what = self._read(name)
                state = f"{done}/{total} {what}{self._left(name, done, total)}" if total else what
                bar.update(task, completed=done, total=total or None, state=state)

    def _follow_lines(self, name: str, title: str, ended: threading.Event) -> None:
        started = time.monotonic()
        while not ended.wait(LINE_SECONDS):
            done, total, what = self._read(name)
            state = f" {done}/{total} {what}{self._left(name, done, total)}" if total else ""
            self.say(f"{title}:{state} after {_duration(time.monotonic() - started)}")

    def _read(self, name: str) -> tuple[int, int, str]:
        if not self.file.exists():
            return 0, 0, ""
        try:
            state: dict[str, Any] = read_json(self.file)
        except HusaiError:  # gone or being replaced: the next poll will see it
            return 0, 0, ""
        return (state["done"], state["total"], state["what"]) if state["step"] == name else (0, 0, "")

    def _left(self, name: str, done: int, total: int) -> str:
        """The cycle's remaining time, from the share of work that is done; nothing below 5 %."""
        work = sum(self.steps[step] for step in self.to_run)
        share = (self.finished_work + self.steps[name] * done / max(total, 1)) / work
        if share < 0.05:
            return ""
        return f", {_duration((time.monotonic() - self.started) * (1 - share) / share)} left in the cycle"


def _duration(seconds: float) -> str:
    """Seconds as a person says them: `8 s`, `3 min`, `2 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
