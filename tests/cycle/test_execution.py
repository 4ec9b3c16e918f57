"""Executed notebooks are stored without what differs from one machine to the next."""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from husai_lib.cycle.execution import strip_notebook
from husai_lib.files import REPOSITORY


def executed(path: Path) -> Path:
    cell = new_code_cell(
        "1", execution_count=1,
        metadata={"tags": ["parameters"], "execution": {"iopub.status.busy": "2026"}, "papermill": {"duration": 1.5}},
        outputs=[
            new_output("stream", name="stderr", text="UserWarning: look\n"),
            new_output("stream", name="stdout", text=f"wrote {REPOSITORY}/evidence/smoke\n in {REPOSITORY}\n"),
        ],
    )  # fmt: skip
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "papermill": {"end_time": "2026"}}
    nbformat.write(new_notebook(cells=[cell, new_markdown_cell("x")], metadata=metadata), path)
    return path


def test_a_stripped_notebook_keeps_tags_outputs_and_warnings_only(tmp_path: Path) -> None:
    path = executed(tmp_path / "x.ipynb")
    strip_notebook(path)
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert notebook.metadata == {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    assert [cell.metadata for cell in notebook.cells] == [{"tags": ["parameters"]}, {}]
    assert [output.text for output in notebook.cells[0].outputs] == [
        "UserWarning: look\n",
        "wrote evidence/smoke\n in .\n",
    ]
    assert notebook.cells[0].execution_count == 1


def test_a_folder_beside_the_repository_whose_name_begins_alike_is_not_cut(tmp_path: Path) -> None:
    path = executed(tmp_path / "x.ipynb")
    beside = f"{REPOSITORY}_beside/evidence, {REPOSITORY}-old, in {REPOSITORY}."
    text = path.read_text(encoding="utf-8").replace("UserWarning: look", beside)
    path.write_text(text, encoding="utf-8")
    strip_notebook(path)
    shown = nbformat.read(path, 4).cells[0].outputs[0].text
    assert shown == f"{REPOSITORY}_beside/evidence, {REPOSITORY}-old, in ..\n"


def test_stripping_twice_changes_nothing(tmp_path: Path) -> None:
    path = executed(tmp_path / "x.ipynb")
    strip_notebook(path)
    once = path.read_bytes()
    strip_notebook(path)
    assert path.read_bytes() == once
