"""Showing cells executed again from records: what is executed, what comes of it, and what a failure says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from forging import COMMITTED, NOTEBOOKS, smoke_copy
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from husai_lib.errors import HusaiError
from husai_lib.evidence.runs import Run, find_run
from husai_lib.evidence.steps import OPENER, open_step
from husai_lib.report.audit import audit_run
from husai_lib.report.notebook_audit import expected_notebook, reexecute, stored_outputs

OPEN = "from husai_lib import open_step\nstep = open_step('gate', run, earlier=earlier)"


def test_a_run_that_is_what_it_says_has_no_problem_with_its_figures_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path / "empty"))
    run = smoke_copy(tmp_path)
    audit = audit_run(run)
    assert audit.problems == []
    assert set(audit.unchecked) <= {"cached files not here", "parameters that are not those of a committed file",
                                    "library states that no commit of this checkout has"}  # fmt: skip
    cells = sum(len(nbformat.read(path, 4).cells) for path in run.path.glob("notebooks/*.ipynb"))
    assert audit.checked > cells
    assert str(audit).endswith("cached files not here, no problem")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in run.path.glob("figures/*.png"))


def notebook(*cells: Any) -> Any:
    """The notebook that is executed, of the step `gate`, with these cells after the one that opens it."""
    parameters = new_code_cell("run = ''\nearlier = []", metadata={"tags": ["parameters"]})
    source = new_notebook(cells=[new_markdown_cell("# Title"), parameters, new_code_cell(OPEN), *cells])
    return expected_notebook(nbformat.writes(source), {"run": "here", "earlier": []})


def computing(source: str) -> Any:
    return new_code_cell(source, metadata={"tags": ["compute"]})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with a record of the step `gate`."""
    open_step("gate", str(tmp_path)).write(pass_all=False, verdict="Not releasable.")
    return Run(tmp_path)


def executed(run: Run, *cells: Any) -> Any:
    return reexecute(notebook(*cells), run, "gate", {"earlier": []})


def test_the_expected_notebook_is_the_source_with_one_injected_cell_after_the_parameters() -> None:
    made = notebook(new_code_cell("1 + 1"))
    assert [cell.metadata.tags for cell in made.cells] == [[], ["parameters"], ["injected-parameters"], [], []]
    assert made.cells[2].source == '# Parameters\nrun = "here"\nearlier = []\n'
    assert not any(cell.get("outputs") for cell in made.cells)


def test_every_cell_but_computing_ones_is_executed_and_shows_what_it_would_in_a_notebook(run: Run) -> None:
    cells = (
        computing("raise SystemExit('a computing cell was executed')"),
        new_code_cell("from IPython.display import Markdown, display\nrecord = step.record"),
        new_code_cell("print('printed')\nMarkdown(record.summary['verdict'])"),
        new_code_cell("display(Markdown('first'))\n'second'"),
        new_code_cell("import sys\nsys.stderr.write('warned\\n');"),
    )
    outputs = executed(run, *cells).outputs
    assert sorted(outputs) == [1, 3, 5, 6, 7, 8]  # neither prose, injected parameters nor what computes
    assert outputs[5] == []
    printed, verdict = outputs[6]
    assert printed == {"stream": "stdout", "text": "printed\n"}
    assert verdict["data"] == {"text/markdown": "Not releasable.", "text/plain": str(verdict["data"]["text/plain"])}
    first, second = (output["data"] for output in outputs[7])
    assert (first["text/markdown"], second["text/plain"]) == ("first", "'second'")
    assert outputs[8] == [{"stream": "stderr", "text": "warned\n"}]


def test_a_step_is_opened_on_the_records_of_the_run_and_writes_nothing(run: Run) -> None:
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    source = "step.publish('a.json', {'a': 1})\nstep.publish('a.md', 'text')\nrecord = step.write(pass_all=True)"
    made = executed(run, new_code_cell(source), new_code_cell("record.summary"))
    assert made.files == {"a.json": b'{\n "a": 1\n}\n', "a.md": b"text"}
    assert made.made is not None
    assert made.made["summary"] == {"pass_all": True}
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_the_page_of_a_cycle_without_a_frontier_shows_each_sweep_that_it_has() -> None:
    cycle7 = find_run(COMMITTED, "cycle7_small")
    source = (NOTEBOOKS / "09_report.ipynb").read_text(encoding="utf-8")
    execution = reexecute(expected_notebook(source, {"run": ""}), cycle7, "report", {"run": ""})
    shown = "".join(str(output["data"]) for outputs in execution.outputs.values() for output in outputs)
    assert (shown.count("### routed"), shown.count("### consistency"), shown.count("### frontier")) == (2, 2, 0)
    assert [*execution.inputs] == sorted(cycle7.journal.keys() - {"report"})


def test_a_failing_cell_is_an_error_that_names_it_and_leaves_no_trace(run: Run) -> None:
    with pytest.raises(HusaiError, match=r"^cell 5 fails on the records \(ZeroDivisionError: division by zero\)$"):
        executed(run, new_code_cell("a = 1"), new_code_cell("a / 0"))
    with pytest.raises(HusaiError, match=r"^cell 4 fails on the records \(SyntaxError"):
        executed(run, new_code_cell("a = = 1"))
    assert OPENER.get() is None
    assert open_step("gate", str(run.path)).run.path == run.path


def test_a_notebook_must_open_the_step_whose_record_it_shows(run: Run) -> None:
    with pytest.raises(HusaiError, match=r"opens the steps \['gate', 'report'\] where it should open 'gate'"):
        executed(run, new_code_cell("open_step('report', run)"))


def test_names_of_one_notebook_are_unknown_to_the_next(run: Run) -> None:
    executed(run, new_code_cell("leftover = 1"))
    with pytest.raises(HusaiError, match="leftover"):
        executed(run, new_code_cell("leftover"))


def test_stored_outputs_have_the_form_of_executed_ones_and_others_stay_as_they_are() -> None:
    outputs = [
        new_output("execute_result", {"text/plain": "2"}, execution_count=7),
        new_output("stream", name="stdout", text="a\n"),
        new_output("stream", name="stdout", text="b\n"),
        new_output("display_data", {"text/plain": "3"}, metadata={"hidden": True}),
        new_output("error", ename="E", evalue="", traceback=[]),
    ]
    streams, result, *others = stored_outputs(new_code_cell("", outputs=outputs))
    assert streams == {"stream": "stdout", "text": "a\nb\n"}
    assert result == {"data": {"text/plain": "2"}}
    assert [other["output"]["output_type"] for other in others] == ["display_data", "error"]
    assert stored_outputs(new_markdown_cell("")) == []
