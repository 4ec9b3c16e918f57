"""Every executed notebook, changed in each of 14 ways with all hashes made to agree: the audit finds it."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from effort import times
from faults.conftest import Tally
from forging import copied, fast_audits, forge_hashes, smoke_copy, steps_in, write_notebook
from nbformat.v4 import new_markdown_cell, new_output

from husai_lib.evidence.runs import Run
from husai_lib.report.audit import audit_run
from husai_lib.report.figures import ReportFigure
from husai_lib.report.notebook_audit import INJECTED

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The smoke run as this checkout would have made it."""
    with pytest.MonkeyPatch.context() as patch:
        fast_audits(patch)
        made = smoke_copy(tmp_path_factory.mktemp("made"))
        assert audit_run(made).problems == []
        yield copied(made, tmp_path_factory.mktemp("mutated"))


def first(notebook: Any, wanted: Callable[[Any], object]) -> Any:
    return next(cell for cell in notebook.cells if wanted(cell))


def shows(cell: Any, kind: str) -> bool:
    return any(kind in output.get("data", {}) for output in cell.get("outputs", []))


def with_text(notebook: Any) -> Any:
    """The first output of Markdown or plain text."""
    cell = first(notebook, lambda cell: shows(cell, "text/markdown"))
    return next(output.data for output in cell.outputs if "text/markdown" in output.get("data", {}))


def injected(notebook: Any) -> Any:
    return first(notebook, lambda cell: INJECTED in cell.metadata.get("tags", []))


def code(notebook: Any) -> Any:
    """The first code cell that is no parameters."""
    return first(notebook, lambda cell: cell.cell_type == "code" and "parameters" not in str(cell.metadata.get("tags")))


def change_digit(text: str) -> str:
    """A text with its last digit changed, or with a word more where there is none."""
    place = max(map(text.rfind, "0123456789"))
    return f"{text} indeed" if place < 0 else text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]


def another_output(notebook: Any) -> None:
    data = with_text(notebook)
    data["text/markdown"] = change_digit(data["text/markdown"])


def figure(notebook: Any) -> None:
    """Another picture; where a notebook shows none, one more."""
    picture = ReportFigure()
    picture.add_subplot().plot([0, 1])
    data = {"image/png": base64.b64encode(picture.png()).decode()}
    pictured = [cell for cell in notebook.cells if shows(cell, "image/png")]
    if pictured:
        next(output for output in pictured[0].outputs if "image/png" in output.get("data", {})).data.update(data)
    else:
        code(notebook).outputs.append(new_output("display_data", data))


def swapped(notebook: Any) -> None:
    cells = notebook.cells
    at = next(i for i in range(len(cells) - 1) if cells[i].source != cells[i + 1].source)
    cells[at], cells[at + 1] = cells[at + 1], cells[at]


def swapped_outputs(notebook: Any) -> None:
    """The outputs of two cells that show something exchanged; where only one does, its outputs given to another."""
    showing = [cell for cell in notebook.cells if cell.get("outputs")]
    other = [*showing[1:], code(notebook)][0]
    showing[0].outputs, other.outputs = other.outputs, showing[0].outputs


MUTATIONS: dict[str, Callable[[Any], object]] = {
    "an output changed": another_output,
    "an output removed": lambda notebook: first(notebook, lambda c: shows(c, "text/markdown")).update(outputs=[]),
    "an output added": lambda notebook: code(notebook).outputs.append(new_output("stream", text="All gates pass.\n")),
    "outputs exchanged": swapped_outputs,
    "a figure": figure,
    "code": lambda notebook: code(notebook).update(source=f"{code(notebook).source}\nx = 1"),
    "prose": lambda notebook: notebook.cells[0].update(source=f"{notebook.cells[0].source}\n\nAll gates pass."),
    "order": swapped,
    "a cell deleted": lambda notebook: notebook.cells.pop(),
    "a cell duplicated": lambda notebook: notebook.cells.append(notebook.cells[-1]),
    "a cell added": lambda notebook: notebook.cells.insert(1, new_markdown_cell("All gates pass.")),
    "a tag": lambda notebook: code(notebook).metadata.update(tags=["remove-output"]),
    "metadata": lambda notebook: notebook.metadata.update(title="All gates pass"),
    "injected parameters": lambda notebook: injected(notebook).update(
        source=f"{injected(notebook).source}\nseeds = [7]"),
}  # fmt: skip


def test_every_notebook_mutated_in_each_way_is_found(run: Run, tmp_path: Path, tally: Callable[[str], Tally]) -> None:
    row = tally(f"executed notebooks mutated in {len(MUTATIONS)} ways: the audit")
    stems = [step.notebook for step in steps_in(run)]
    row.most("notebooks", len(stems))
    cases = [(name, change, stem) for stem in stems for name, change in MUTATIONS.items()]
    for name, change, stem in cases[:: times(1, len(stems))]:  # 9 and 14 have no common divisor: each way comes up
        path = run.path / "notebooks" / stem
        kept = tmp_path / "kept"
        shutil.copytree(run.path, kept)
        notebook = nbformat.read(path, 4)
        change(notebook)
        write_notebook(path, notebook)
        forge_hashes(run)
        problems = audit_run(run).problems
        row.take(any(stem in problem for problem in problems), f"{stem}, {name}: {problems[:2]}")
        shutil.rmtree(run.path)
        kept.rename(run.path)
    assert row.failed == []
    assert audit_run(run).problems == []
