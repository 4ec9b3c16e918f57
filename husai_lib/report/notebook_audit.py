"""Whether an executed notebook is the checkout's with its parameters, and shows what follows from the records."""

from __future__ import annotations

import ast
import base64
import io
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.image import imread

from husai_lib.evidence.code import CHANGED, file_at
from husai_lib.evidence.runs import Record, Run
from husai_lib.report.checks import UNCHECKED, Check, first_difference, follow_values
from husai_lib.report.reexecution import COMPUTE, Execution, expected_notebook, read_source, reexecute, stored_outputs
from husai_lib.report.webpages import read_notebook

INJECTED = "injected-parameters"
NOT_DERIVED = {"environment", "finished_utc", "wall_seconds", "published"}
"""Keys of a record that executing its notebook again does not give."""
OTHER_NOTEBOOKS = "notebooks of an earlier commit, held to hashes only"


def check_notebook(run: Run, step: str, notebooks: Path) -> Iterator[Check]:
    """All checks of one step's executed notebook, of what it published, and of its record where it decides.

    A notebook that is not the checkout's is held to the one of the record's own commit and is not executed.
    """
    record, path = run.record(step), executed_notebook(run, step)
    executed, name = read_notebook(path), source_name(path.name, notebooks)
    source, given = read_source(notebooks / name), _given(executed, run, record, name)
    expected = expected_notebook(source, given) if source else None
    differing = [*_differences(path.name, executed, expected)]
    if differing:
        earlier = _source_at(record, name)
        if earlier and not [*_differences(path.name, executed, expected_notebook(earlier, given))]:
            yield OTHER_NOTEBOOKS, UNCHECKED, None
            return
        yield from differing[:3]
        return
    yield f"{path.name} is the checkout's notebook", True, True
    execution = reexecute(expected, run, step, given | {"run": ""})
    same_here = _draws_as_here(record)
    for number, cell in enumerate(executed.cells):
        shown = execution.outputs.get(number, [])
        yield from _outputs(f"{path.name}, cell {number}", stored_outputs(cell), shown, same_here)
    yield from _record(step, record, execution, expected)
    yield from _files(run, run.journal[step]["files"], execution, same_here)


def executed_notebook(run: Run, step: str) -> Path:
    """The executed notebook of a step."""
    names: list[str] = [name for name in run.journal[step]["files"] if name.startswith("notebooks/")]
    return run.path / names[0]


def source_name(executed: str, notebooks: Path) -> str:
    """The file of `notebooks` that was executed: that of the same number, as a further sweep has its own name."""
    number = executed.partition("_")[0]
    return next((path.name for path in sorted(notebooks.glob(f"{number}_*.ipynb"))), executed)


def _given(executed: Any, run: Run, record: Record, source: str) -> dict[str, Any]:
    """What the notebook was given: the run, the name of a further sweep, and the sections of its record."""
    further = {"sweep": record.step} if executed_notebook(run, record.step).name != source else {}
    given: dict[str, Any] = {"run": _stated_run(executed, run)} | further | record.data["parameters"]
    return given


def is_of_checkout(run: Run, step: str, notebooks: Path) -> bool:
    """Whether a step was made by the notebook that the checkout has now."""
    path = executed_notebook(run, step)
    executed, name = read_notebook(path), source_name(path.name, notebooks)
    source, given = read_source(notebooks / name), _given(executed, run, run.record(step), name)
    return bool(source) and not [*_differences(path.name, executed, expected_notebook(source, given))]


def _source_at(record: Record, name: str) -> str | None:
    commit = record.data["environment"]["code"]["git_commit"]
    return file_at(commit.removesuffix(CHANGED), f"notebooks/{name}") if commit else None


def _stated_run(executed: Any, run: Run) -> str:
    """The folder of the run as the injected cell has it, which may be another than today's; else its name."""
    injected = [cell.source for cell in executed.cells if INJECTED in cell.metadata.get("tags", [])]
    found = re.search(r'^run = "(.*)"$', injected[0], re.MULTILINE) if injected else None
    return found[1] if found and Path(found[1]).parts[-2:] == tuple(run.name.split("/")) else run.name


def _differences(name: str, executed: Any, expected: Any) -> Iterator[Check]:
    """Where an executed notebook is not the expected one, outputs apart: cells, kinds, sources, tags, attachments."""
    if expected is None:
        yield f"{name}", "in the run", "a notebook of the checkout"
        return
    if len(executed.cells) != len(expected.cells):
        yield f"number of cells of {name}", len(executed.cells), len(expected.cells)
    for number, (cell, must) in enumerate(zip(executed.cells, expected.cells, strict=False)):
        where, tags = f"{name}, cell {number}", must.metadata.get("tags", [])
        if cell.cell_type != must.cell_type or cell.source != must.source:
            yield f"{where}", *first_difference(f"{cell.cell_type}\n{cell.source}", f"{must.cell_type}\n{must.source}")
        if dict(cell.metadata) not in ({}, {"tags": tags}) or cell.metadata.get("tags", []) != tags:
            yield f"metadata of {where}", dict(cell.metadata), {"tags": tags}
        if cell.get("attachments"):
            yield f"attachments of {where}", sorted(cell.attachments), []
    if unknown := sorted(executed.metadata.keys() - {"kernelspec", "language_info"}):
        yield f"metadata of {name}", unknown, []


# ---------------------------------------------------------------------------------------------
# Outputs
# ---------------------------------------------------------------------------------------------


def _outputs(where: str, stored: list[dict[str, Any]], shown: list[dict[str, Any]], same_here: bool) -> Iterator[Check]:
    kinds = [sorted(output.get("data", output)) for output in stored]
    yield f"kinds of outputs of {where}", kinds, [sorted(output.get("data", output)) for output in shown]
    for own, must in zip(stored, shown, strict=False):
        if "data" not in own or "data" not in must:
            yield f"output of {where}", own, must
            continue
        for kind in own["data"].keys() & must["data"].keys():
            if kind == "image/png":
                picture = base64.b64decode(own["data"][kind])
                yield from _picture(f"figure of {where}", picture, must["data"][kind], same_here)
            else:
                texts = (re.sub(r"0x[0-9a-f]{6,}", "0x…", str(data[kind])) for data in (own["data"], must["data"]))
                yield f"output of {where}", *first_difference(*texts)


def _picture(what: str, picture: bytes, drawn: Any, same_here: bool) -> Iterator[Check]:
    must = "the picture that the records give"
    if _alike(picture, drawn if isinstance(drawn, bytes) else base64.b64decode(drawn)):
        yield what, must, must
    elif same_here:
        yield what, "another picture", must
    else:
        yield "figures of another matplotlib or processor", UNCHECKED, None


def _alike(picture: bytes, drawn: bytes) -> bool:
    """Whether two PNG files have the same pixels."""
    if picture == drawn:
        return True
    try:
        return np.array_equal(imread(io.BytesIO(picture)), imread(io.BytesIO(drawn)))
    except (OSError, SyntaxError, ValueError):  # what is no picture
        return False


def _draws_as_here(record: Record) -> bool:
    """Whether figures come out alike here: the same matplotlib on the same kind of processor made the record."""
    made = record.data["environment"]
    return (made["packages"].get("matplotlib"), made["cpu"]) == (mpl.__version__, platform.machine())


# ---------------------------------------------------------------------------------------------
# Records and published files
# ---------------------------------------------------------------------------------------------


def _record(step: str, record: Record, execution: Execution, notebook: Any) -> Iterator[Check]:
    """The whole record where its notebook was executed whole; else that its values and tables are those it is given."""
    if execution.step.made is not None:
        made = {name: value for name, value in execution.step.made.items() if name not in NOT_DERIVED}
        stated = {name: value for name, value in record.data.items() if name not in NOT_DERIVED}
        yield from follow_values(f"record {step}", stated, made)
        devices = [data["environment"]["device"] for data in (record.data, execution.step.made)]
        yield f"device of record {step}", *devices
        return
    compute = [cell.source for cell in notebook.cells if COMPUTE in cell.metadata.get("tags", [])]
    nodes = [node for source in compute for node in ast.walk(ast.parse(source))]
    calls = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "step.write"]
    names = {str(word.arg) for call in calls for word in call.keywords} - {"device"}
    yield f"single values of record {step}", sorted(record.summary), sorted(names)
    strings = {node.value for node in nodes if isinstance(node, ast.Constant)}
    yield f"tables of record {step} that its notebook does not name", sorted(record.data["tables"].keys() - strings), []


def _files(run: Run, files: Mapping[str, str], execution: Execution, same_here: bool) -> Iterator[Check]:
    published = {name for name in files if not name.startswith(("records/", "notebooks/"))}
    yield f"files of step {execution.step.name}", sorted(published), sorted(execution.step.files)
    for name, must in execution.step.files.items():
        content = (run.path / name).read_bytes() if (run.path / name).is_file() else b""
        if name.endswith(".png"):
            yield from _picture(name, content, must, same_here)
        else:
            yield name, *first_difference(content.decode(errors="replace"), must.decode())
