"""One notebook, executed by papermill and watched: how far it is, or its failure in one sentence."""

import logging
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from husai_lib import errors
from husai_lib.files import REPOSITORY, read_json, write_text
from husai_lib.report.notebook_audit import COMPUTE
from husai_lib.report.webpages import read_notebook

POLL_SECONDS = 0.5
LINE_SECONDS = 15.0

# Failures are told once, as an exception; asyncio would tell of a kernel that was stopped on purpose.
for _name in ("papermill", "asyncio"):
    logging.getLogger(_name).addHandler(logging.NullHandler())
    logging.getLogger(_name).propagate = False


class _ThisInterpreter(AsyncKernelManager):
    """A kernel of this interpreter, whatever kernels named python3 are installed.

    It is reached by sockets in a folder that only this user can open: without a network, and by nobody else.
    """

    transport = "ipc"

    def __init__(self, **options: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="husai-")  # goes with this object; its path is short
        super().__init__(connection_file=f"{self._folder.name}/kernel.json", **options)

    async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]  # an attribute there
        # A kernel that is interrupted while it starts would print a traceback beside the one sentence of this process.
        await super().start_kernel(stderr=subprocess.DEVNULL, **options)

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


@contextmanager
def watched(console: Console, step: str, run: Path) -> Iterator[dict[str, Any]]:
    """Show how far a step is while the block runs it: bars on a terminal, elsewhere what changed, every 15 seconds.

    Once the block has ended, what it was given holds the last state that the step reported.
    """
    file, ended, last = run / "progress.json", threading.Event(), dict[str, Any]()
    file.unlink(missing_ok=True)
    thread = threading.Thread(target=_follow, args=(console, step, file, ended), daemon=True)
    thread.start()
    try:
        yield last
    finally:
        ended.set()
        thread.join()
        with suppress(errors.EvidenceError):  # a step that reports nothing
            last |= read_json(file)
        file.unlink(missing_ok=True)


def _follow(console: Console, step: str, file: Path, ended: threading.Event) -> None:
    """Follow the `progress.json` that a step writes: what it does, with one bar each, and how much of it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    printed, said, bars = time.monotonic(), "", dict[str, TaskID]()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        while not ended.wait(POLL_SECONDS):
            try:
                state = read_json(file)
            except errors.EvidenceError:  # not there yet, or gone
                continue
            done, total, what = state["done"], state["total"], state["what"]
            if what not in bars:
                bars[what] = progress.add_task(f"step {step}: {what}")
            progress.update(bars[what], completed=done, total=total)
            line = f"step {step}: {done}/{total} {what}"
            if not console.is_terminal and line != said and time.monotonic() - printed > LINE_SECONDS:
                printed, said = time.monotonic(), line
                console.print(line)


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
    here = re.escape(str(REPOSITORY))
    write_text(path, re.sub(rf"{here}(?![\w-])", ".", text.replace(f"{REPOSITORY}/", "")))
    return printed
