"""What notebooks show is made again from records: which texts and figures there are, and what cannot be checked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import nbformat
import pytest
from stand_ins import notebooks_of, records_of, synthetic_run
from synthetic_rows import gates, members, ood_rows

from husai_lib import criteria, sentences, shown, tables
from husai_lib.audit import Audit
from husai_lib.evidence import Record, Run
from husai_lib.files import REPOSITORY, read_json, write_json
from husai_lib.records import Row

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def record(step: str, parameters: dict[str, Any] | None = None, summary: dict[str, Any] | None = None,
           **rows: list[Any]) -> Record:  # fmt: skip
    dumped = {name: [row.model_dump() if isinstance(row, Row) else row for row in own] for name, own in rows.items()}
    return Record(step, {"parameters": parameters or {}, "summary": summary or {}, "tables": dumped}, "")


def test_a_text_is_made_from_the_records_that_are_there_and_left_out_where_they_are_not() -> None:
    made = shown.fragments({"gate": record("gate", gates=gates()), "frontier": record("frontier", members=members())})
    assert made["verdict_sentence"] == sentences.verdict_sentence(gates())
    assert made["members_table"] == tables.members_table(members())
    assert made.keys() >= {"gates_table", "frontier_table", "matched_sentence"}
    assert not made.keys() & {"groups_table", "external_table", "ood_table", "disjoint_sentence"}


def test_parameters_and_single_values_are_taken_by_their_path() -> None:
    activations = record("activations", {"texts": {"stories": "offline"}}, {"distinct_training_texts": 5999})
    made = shown.fragments({"activations": activations})
    assert made == {
        "stories_sentence": sentences.stories_sentence("offline"),
        "disjoint_sentence": sentences.disjoint_sentence(5999),
    }


def test_what_stands_for_an_empty_table_is_shown_only_where_it_is_empty() -> None:
    full = shown.fragments({"stress": record("stress", ood=ood_rows(), controls=[])})
    assert full["ood_table"] == tables.ood_table(ood_rows())
    assert full["controls_table"] == "No control was run."
    empty = shown.fragments({"stress": record("stress", ood=[])})
    assert (empty["ood_table"], empty["ood_sentence"]) == ("No shifted set was probed.", "")


def test_every_text_is_named_by_its_function() -> None:
    for name, (make, *_) in shown.TEXTS.items():
        assert any(getattr(module, name, None) is make for module in (tables, sentences, criteria)), name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_output_of_the_notebooks_calls_a_known_function(path: Path) -> None:
    cells = ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    for source in (source for source in cells if "Markdown(" in source):
        assert shown.TEXTS.keys() & set(re.findall(r"\w+", source)), source
    for name in re.findall(r'save_figure\(.*"(\w+)"\)', "\n".join(cells)):
        assert name in shown.FIGURES


def test_the_first_difference_of_two_texts_is_told_line_by_line() -> None:
    assert shown.first_difference("a\nb", "a\nb") == ("same", "same")
    assert shown.first_difference("a\nb", "a\nc\nd") == ("b", "c")
    assert shown.first_difference("a", "a\nb") == ("no line", "b")
    assert shown.first_difference("a\n", "a") == (r"'a\n'", "'a'")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return synthetic_run(tmp_path_factory.mktemp("shown") / "evidence")


def audited(run: Run, notebooks: Path | None = None) -> Audit:
    audit = Audit()
    records = records_of(run)
    audit.take(shown.checks(run, records | {"candidate": records["frontier"]}, notebooks or notebooks_of(run)))
    return audit


def test_prose_is_not_checked_where_the_notebooks_are_of_another_version(run: Run, tmp_path: Path) -> None:
    assert (audited(run).not_checked, audited(run, tmp_path).not_checked) == (0, 7)


def test_figures_of_another_matplotlib_are_counted_as_not_checked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all of them came out otherwise here; with the version that the record names it is a problem."""
    monkeypatch.setattr(shown, "_alike", lambda picture, drawn: False)
    for version, found in (("0.1", (0, 4)), (mpl.__version__, (4, 0))):
        for path in run.path.glob("records/*.json"):
            data = read_json(path)
            data["environment"]["packages"]["matplotlib"] = version
            write_json(path, data)
        audit = audited(run)
        assert (len(audit.problems), audit.not_checked) == found


def test_one_figure_that_comes_out_alike_shows_that_the_others_must(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = (run.path / "figures" / "controls.png").read_bytes()
    monkeypatch.setattr(shown, "_alike", lambda picture, drawn: picture == saved)
    assert len(audited(run).problems) == 3


def test_pictures_are_compared_by_their_pixels() -> None:
    assert shown._alike(b"", b"") is None  # nothing was drawn
    assert shown._alike(b"a", b"a") is True
    assert shown._alike(b"a", b"b") is False


def test_lines_of_a_table_in_another_order_are_a_problem(run: Run) -> None:
    path = run.path / "notebooks" / "06_selection.ipynb"
    before = path.read_bytes()
    notebook = nbformat.read(path, 4)
    [output] = next(cell for cell in notebook.cells if "sensitivity_table" in cell.source).outputs
    head, rule, *lines = output.data["text/markdown"].splitlines()
    output.data["text/markdown"] = "\n".join([head, rule, *reversed(lines)])
    nbformat.write(notebook, path)
    assert "06_selection.ipynb" in audited(run).problems[0]
    path.write_bytes(before)
    assert audited(run).problems == []
