"""The showing cells of a run's notebooks, executed again from its records by the notebooks of the checkout.

A cell tagged `compute` is left out; every other cell must follow from records. A notebook without such a cell is
executed whole, so that its decision is retaken. Nothing is written, and no code is ever taken from evidence.
"""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from IPython.core.displayhook import CapturingDisplayHook, DisplayHook
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from papermill.parameterize import parameterize_notebook
from traitlets.config import Config

from husai_lib.errors import HusaiError
from husai_lib.evidence.rows.base import Row
from husai_lib.evidence.runs import Record, Run
from husai_lib.evidence.steps import OPENER, Step
from husai_lib.files import canonical_json, content_of

COMPUTE = "compute"
"""The tag of cells that compute: they need a model, SAEs or activations, show nothing, and are not executed again."""


@dataclass
class Reexecuted(Step):
    """A step of a finished run: it reads the run's records, keeps what it is given to write, and writes nothing."""

    files: dict[str, bytes] = field(default_factory=dict)
    """What was published, by name."""
    made: dict[str, Any] | None = None
    """The record, where the cell that writes it was executed."""

    def progress(self, done: int, total: int, what: str) -> None:
        """Nobody watches."""

    def publish(self, name: str, data: Any) -> None:
        """Keep a file's content."""
        self.files[name] = content_of(data)

    def write(self, tables: dict[str, list[Row]] | None = None, device: str = "cpu", **summary: Any) -> Record:
        """Keep the record; what follows is shown from it."""
        self.made = self.content(tables or {}, device, summary)
        return Record(self.name, json.loads(canonical_json(self.made)), "")


@dataclass(frozen=True)
class Execution:
    """What a notebook of the checkout gives on the records of a run."""

    step: Reexecuted
    outputs: dict[int, list[dict[str, Any]]]
    """Of each cell that was executed, by its position: outputs as a notebook has them."""


def expected_notebook(source: str, parameters: dict[str, Any]) -> Any:
    """The notebook that papermill executes: that of the text `source` with one cell of parameters injected."""
    notebook = nbformat.reads(source, as_version=4)
    notebook.metadata.setdefault("papermill", {})  # as papermill's own reader does
    for cell in notebook.cells:
        cell.metadata.setdefault("tags", [])
    return parameterize_notebook(notebook, parameters, kernel_name="python3", language="python")


def reexecute(notebook: Any, run: Run, step: str, parameters: dict[str, Any]) -> Execution:
    """Execute the showing cells of a notebook of the checkout on the records of `run`.

    Raises HusaiError where a cell fails, with the number of the cell.
    """
    opened: list[Reexecuted] = []

    def opener(name: str, params: Any, given: dict[str, Any]) -> Step:
        opened.append(Reexecuted(name, run, params, given))
        return opened[-1]

    outputs: dict[int, list[dict[str, Any]]] = {}
    token, around = OPENER.set(opener), InteractiveShell._instance
    try:
        shell = _shell(parameters)
        InteractiveShell._instance = shell  # type: ignore[assignment]  # the one that `display` shows in
        for number, cell in enumerate(notebook.cells):
            tags = cell.metadata.get("tags", [])
            if cell.cell_type == "code" and COMPUTE not in tags and "injected-parameters" not in tags:
                outputs[number] = _run_cell(shell, cell.source, f"cell {number}")
                shell.user_ns.update(parameters if "parameters" in tags else {})
    finally:
        InteractiveShell._instance = around
        OPENER.reset(token)
    if [one.name for one in opened] != [step]:
        raise HusaiError(f"it opens the steps {[one.name for one in opened]} where it should open {step!r}")
    return Execution(opened[0], outputs)


def _shell(names: dict[str, Any]) -> InteractiveShell:
    """A fresh IPython that keeps no history and starts with these names."""
    config = Config()
    config.HistoryManager.enabled = False
    return InteractiveShell(config=config, user_ns=dict(names))  # type: ignore[no-untyped-call]


def _run_cell(shell: InteractiveShell, source: str, where: str) -> list[dict[str, Any]]:
    """The outputs of a cell, streams first."""
    shell.display_pub = CapturingDisplayPublisher()  # type: ignore[no-untyped-call]
    shown = CapturingDisplayHook(shell, shell.display_pub.outputs)  # type: ignore[no-untyped-call]
    is_quiet = DisplayHook.semicolon_at_end_of_expression(source)  # type: ignore[no-untyped-call]
    shell.display_trap.hook = (lambda _: None) if is_quiet else shown
    streams = {"stdout": io.StringIO(), "stderr": io.StringIO()}
    with redirect_stdout(streams["stdout"]), redirect_stderr(streams["stderr"]):
        result = shell.run_cell(source, store_history=False)  # type: ignore[no-untyped-call]
    if error := result.error_before_exec or result.error_in_exec:
        raise HusaiError(f"{where} fails on the records ({type(error).__name__}: {error})") from error
    printed = [{"stream": name, "text": stream.getvalue()} for name, stream in streams.items() if stream.getvalue()]
    return [*printed, *({"data": output["data"]} for output in shell.display_pub.outputs)]


def stored_outputs(cell: Any) -> list[dict[str, Any]]:
    """The outputs of an executed notebook's cell in the form of `Execution.outputs`; others as they are."""
    streams: dict[str, str] = {}
    others: list[dict[str, Any]] = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            streams[output.name] = streams.get(output.name, "") + output.text
        elif output.output_type in {"execute_result", "display_data"} and not output.metadata:
            others.append({"data": dict(output.data)})
        else:
            others.append({"output": dict(output)})
    return [{"stream": name, "text": streams[name]} for name in ("stdout", "stderr") if name in streams] + others


def read_source(path: Path) -> str:
    """The text of a notebook of the checkout; empty where there is none."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""
