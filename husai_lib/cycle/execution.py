"""One notebook, executed by papermill and watched: how far it is, or its failure in one sentence."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillException, PapermillExecutionError
from rich.console import Console

from husai_lib import errors
from husai_lib.files import REPOSITORY, read_json, write_text
from husai_lib.report.reexecution import COMPUTE
from husai_lib.report.webpages import read_notebook

POLL_SECONDS = 0.5
LINE_SECONDS = 15.0

# Failures are told once, as an exception; asyncio would tell of a kernel that was stopped on purpose.
for _name in ("papermill", "asyncio"):
    logging.getLogger(_name).addHandler(logging.NullHandler())
    logging.getLogger(_name).propagate = False


class _ThisInterpreter(AsyncKernelManager):
    """A kernel of this interpreter, whatever kernels named python3 are installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        # Its log would go to this process's stderr; what cells write there is in the notebook.
        spec = get_kernel_dict(extra_arguments=["--log-level=CRITICAL"], python_arguments=["-Xfrozen_modules=off"])
        return KernelSpec(**spec)


def execute(notebook: Path, output: Path, parameters: dict[str, Any]) -> None:
    """Run `notebook` with `parameters` in the repository's root and leave it, executed, at `output`.

    The kernel has ended when this returns or raises. A failing cell raises StepError, or the error
    of this library that it raised; `output` then holds what was executed so far.
    """
    options: dict[str, Any] = {"kernel_name": "python3", "language": "python", "progress_bar": False}
    try:
        papermill.execute_notebook(
            notebook, output, parameters, cwd=REPOSITORY, kernel_manager_class=_ThisInterpreter, **options
        )
    except PapermillExecutionError as error:
        raised = getattr(errors, error.ename, None)
        if isinstance(raised, type) and issubclass(raised, errors.HusaiError):  # keeps its class, and so its exit code
            raise raised(error.evalue) from error
        raise errors.StepError(f"{error.ename}: {error.evalue}") from error
    except DeadKernelError as error:
        raise errors.StepError("the kernel died (out of memory?)") from error
    except (PapermillException, RuntimeError, OSError) as error:  # the last where the disk is full
        raise errors.StepError(f"the notebook could not be executed: {error}") from error


@dataclass
class Watch:
    """Tells how far a cycle is, from the `progress.json` that its steps write.

    A terminal gets one line that changes, anything else a line every 15 seconds.
    """

    console: Console
    run: Path
    work: dict[str, int]
    """Every step of the cycle with a rough share of its work; 0 where the step is kept."""
    done: float = 0.0
    """The work of the steps that are done."""
    taken: float = 0.0
    """Seconds they took."""
    began: float = 0.0
    """When the present step began."""

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Watch one step while the block runs it."""
        self.began, ended = time.monotonic(), threading.Event()
        thread = threading.Thread(target=self._follow, args=(name, ended), daemon=True)
        (self.run / "progress.json").unlink(missing_ok=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            (self.run / "progress.json").unlink(missing_ok=True)
        seconds = time.monotonic() - self.began
        self.done, self.taken = self.done + self.work[name], self.taken + seconds
        self.console.print(f"step {name}: done in {seconds:.0f} s")

    def _follow(self, name: str, ended: threading.Event) -> None:
        told = time.monotonic()
        with self.console.status(self.state(name)) as status:  # shows nothing where there is no terminal
            while not ended.wait(POLL_SECONDS):
                status.update(self.state(name))
                if not self.console.is_terminal and time.monotonic() - told > LINE_SECONDS:
                    told = time.monotonic()
                    self.console.print(self.state(name))

    def state(self, name: str) -> str:
        """Which step of how many, how far it is and, after the first step, how long the cycle will still take.

        The time follows from what the finished steps took: a step has several phases, so its own count says little.
        """
        text = f"step {list(self.work).index(name) + 1}/{len(self.work)} {name}"
        try:
            told = read_json(self.run / "progress.json")
        except errors.EvidenceError:  # not there yet, or gone
            told = {}
        if told.get("step") == name and told["total"]:
            text += f": {told['done']}/{told['total']} {told['what']}"
        if not self.done:
            return text
        expected = self.taken / self.done * (sum(self.work.values()) - self.done)
        left = max(0.0, expected - (time.monotonic() - self.began))
        return f"{text}, about {left / 60:.1f} min left in the cycle"


def strip_notebook(path: Path) -> list[str]:
    """Make an executed notebook fit to commit: no timings or paths of this machine; doing it twice changes nothing.

    Of the metadata, cell tags, kernel and language stay. Computing cells show nothing: progress bars and printed lines
    go, and the latter are returned.
    """
    notebook = read_notebook(path)
    kept = ("kernelspec", "language_info")
    notebook.metadata = {key: value for key, value in notebook.metadata.items() if key in kept}
    printed: list[str] = []
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
        if COMPUTE in cell.metadata.get("tags", []):
            streams = (output.text for output in cell.outputs if output.output_type == "stream")
            printed += [line for text in streams for line in text.splitlines() if line.strip()]
            cell.outputs = []
    text = nbformat.writes(nbformat.from_dict(notebook)).rstrip("\n") + "\n"
    write_text(path, text.replace(f"{REPOSITORY}/", "").replace(str(REPOSITORY), "."))
    return printed
