"""The notebooks: their outputs by nbval, their defaults against the smoke cycle, their form against the style."""

import ast
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from refresh_notebooks import REPOSITORY, cpu_kind

from husai_lib.cycle.run import STEPS
from husai_lib.params.cycle import check_sections, load_cycle

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def parameters(path: Path) -> dict[str, object]:
    tagged = [c for c in nbformat.read(path, as_version=4).cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1, "one cell is tagged 'parameters'"
    return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(tagged[0].source).body}


@pytest.mark.timeout(900)
def test_committed_outputs_are_what_the_notebooks_print(tmp_path):
    # Another instruction set rounds differently and training amplifies the last digit: there nbval runs the notebooks
    # without comparing, and test_smoke_cycle compares the numbers within a tolerance.
    same_cpu = (REPOSITORY / "tests" / "notebook_outputs_cpu.txt").read_text().strip() == cpu_kind()
    rules = REPOSITORY / "tests" / "nbval_sanitize.cfg"
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-o", "addopts=", "-o", "timeout=600", "-p", "no:cacheprovider",
            "--nbval" if same_cpu else "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "300",
            "--nbval-sanitize-with", str(rules),
            *map(str, NOTEBOOKS),
        ],
        cwd=REPOSITORY, env=os.environ | {"HUSAI_SCRATCH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    assert f"{sum(len(cells(path, 'code')) for path in NOTEBOOKS)} passed" in done.stdout


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_defaults_are_the_smoke_cycle(step):
    given = parameters(REPOSITORY / "notebooks" / step.notebook)
    assert given.pop("run") == ""
    assert given.pop("sweep", step.name) == step.name
    smoke = load_cycle(REPOSITORY / "params" / "smoke.yaml")
    expected = {name: smoke.model_dump(mode="json")[name] for name in step.sections}
    assert check_sections(given, step.notebook).model_dump(mode="json") == expected


def test_every_notebook_is_a_step():
    assert [path.name for path in NOTEBOOKS] == [step.notebook for step in STEPS]


@by_name
def test_reads_like_a_report(path):
    code, prose = cells(path, "code"), cells(path, "markdown")
    lines = [len([line for line in source.splitlines() if line.strip()]) for source in code]
    assert statistics.median(lines) <= 10
    assert max(lines) <= 25
    words = sum(len(re.findall(r"\w+", text)) for text in prose)
    assert words >= 3 * sum(lines), f"{words} words of prose for {sum(lines)} lines of code"
    assert prose[0].startswith("# "), "the first cell is the title and the question"
    assert any(text.startswith("## What could be wrong") for text in prose)


@by_name
def test_cells_are_calls_not_programs(path):
    for source in cells(path, "code"):
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.FunctionDef | ast.ClassDef), "functions belong in husai_lib"
    opened = [source for source in cells(path, "code") if "open_step(" in source]
    assert len(opened) == 1
    assert sum("step.write(" in source for source in cells(path, "code")) == 1


@by_name
def test_carries_no_leftovers(path):
    notebook = nbformat.read(path, as_version=4)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
        assert "compute" not in cell.metadata.get("tags", []) or not cell.outputs, "a computing cell shows nothing"
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            assert output.get("name") != "stderr", f"a warning was left in: {output.get('text', '')[:200]}"
    assert str(REPOSITORY) not in path.read_text(encoding="utf-8")
