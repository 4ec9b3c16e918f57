"""Whether an executed notebook is the checkout's with its parameters, and shows what follows from the records.

The notebook of the checkout is executed again on the records, in this process. A cell tagged `compute` is left out;
every other cell must follow from records. A notebook without such a cell is executed whole, so that its decision is
retaken. Nothing is written, and no code is ever taken from evidence.
"""

import ast
import base64
import io
import json
import platform
import re
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import nbformat
import numpy as np
from IPython.core.displayhook import CapturingDisplayHook, DisplayHook
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.image import imread
from papermill.parameterize import parameterize_notebook
from traitlets.config import Config

from husai_lib.errors import HusaiError
from husai_lib.evidence.code import CHANGED, file_at
from husai_lib.evidence.rows.base import Row
from husai_lib.evidence.runs import Record, Run
from husai_lib.evidence.steps import OPENER, Step
from husai_lib.files import REPOSITORY, canonical_json, content_of
from husai_lib.report.checks import UNCHECKED, Check, first_difference, follow_values
from husai_lib.report.webpages import read_notebook

NOTEBOOKS = REPOSITORY / "notebooks"
COMPUTE = "compute"
"""The tag of cells that compute: they need a model, SAEs or activations, show nothing, and are not executed again."""
INJECTED = "injected-parameters"
NOT_DERIVED = {"environment", "finished_utc", "wall_seconds", "published"}
"""Keys of a record that executing its notebook again does not give."""
OTHER_NOTEBOOKS = "notebooks of an earlier commit, held to hashes only"


def check_notebook(run: Run, step: str) -> Iterator[Check]:
    """All checks of one step's executed notebook, of what it published, and of its record where it decides.

    A notebook that is not the checkout's is held to the one of the record's own commit and is not executed.
    """
    record, path = run.record(step), _executed(run, step)
    executed = read_notebook(path)
    source, given = _source(run, step)
    expected = expected_notebook(source.read_text(encoding="utf-8"), given) if source.is_file() else None
    if differing := [*_differences(path.name, executed, expected)]:
        commit = record.data["environment"]["code"]["git_commit"]
        earlier = file_at(commit.removesuffix(CHANGED), f"notebooks/{source.name}") if commit else None
        if earlier and not [*_differences(path.name, executed, expected_notebook(earlier, given))]:
            yield OTHER_NOTEBOOKS, UNCHECKED, None
        else:
            yield from differing[:3]
        return
    yield f"{path.name} is the checkout's notebook", True, True
    again = reexecute(expected, run, step, given | {"run": ""})
    made = record.data["environment"]  # figures come out alike by the same matplotlib on the same kind of processor
    same_here = (made["packages"].get("matplotlib"), made["cpu"]) == (mpl.__version__, platform.machine())
    for number, cell in enumerate(executed.cells):
        shown = again.outputs.get(number, [])
        yield from _outputs(f"{path.name}, cell {number}", stored_outputs(cell), shown, same_here)
    yield from _record(record, again, expected)
    published = {name for name in run.journal[step]["files"] if not name.startswith(("records/", "notebooks/"))}
    yield f"files of step {step}", sorted(published), sorted(again.files)
    for name, must in again.files.items():
        content = (run.path / name).read_bytes() if (run.path / name).is_file() else b""
        if name.endswith(".png"):
            yield from _picture(name, content, must, same_here)
        else:
            yield name, *first_difference(content.decode(errors="replace"), must.decode())


def is_of_checkout(run: Run, step: str) -> bool:
    """Whether a step was made by the notebook that the checkout has now."""
    path = _executed(run, step)
    source, given = _source(run, step)
    expected = expected_notebook(source.read_text(encoding="utf-8"), given) if source.is_file() else None
    return not [*_differences(path.name, read_notebook(path), expected)]


def _executed(run: Run, step: str) -> Path:
    """The executed notebook of a step."""
    names: list[str] = [name for name in run.journal[step]["files"] if name.startswith("notebooks/")]
    return run.path / names[0]


def _source(run: Run, step: str) -> tuple[Path, dict[str, Any]]:
    """The notebook of the checkout that was executed, and what it was given.

    It has the same number; a further sweep has a name of its own, which it was given.
    """
    path = _executed(run, step)
    source = next(iter(sorted(NOTEBOOKS.glob(f"{path.name.partition('_')[0]}_*.ipynb"))), NOTEBOOKS / path.name)
    further = {"sweep": step} if path.name != source.name else {}
    injected = [cell.source for cell in read_notebook(path).cells if INJECTED in cell.metadata.get("tags", [])]
    found = re.search(r'^run = "(.*)"$', injected[0], re.MULTILINE) if injected else None
    as_stated = found and Path(found[1]).parts[-2:] == tuple(run.name.split("/"))  # in another folder than today's
    given = {"run": found[1] if found and as_stated else run.name}
    return source, given | further | run.record(step).data["parameters"]


def _differences(name: str, executed: Any, expected: Any) -> Iterator[Check]:
    """Where an executed notebook is not the expected one, outputs apart: cells, kinds, sources, tags, attachments."""
    if expected is None:
        yield name, "in the run", "a notebook of the checkout"
        return
    if len(executed.cells) != len(expected.cells):
        yield f"number of cells of {name}", len(executed.cells), len(expected.cells)
    for number, (cell, must) in enumerate(zip(executed.cells, expected.cells, strict=False)):
        where, tags = f"{name}, cell {number}", must.metadata.get("tags", [])
        if cell.cell_type != must.cell_type or cell.source != must.source:
            yield where, *first_difference(f"{cell.cell_type}\n{cell.source}", f"{must.cell_type}\n{must.source}")
        if dict(cell.metadata) not in ({}, {"tags": tags}) or cell.metadata.get("tags", []) != tags:
            yield f"metadata of {where}", dict(cell.metadata), {"tags": tags}
        if cell.get("attachments"):
            yield f"attachments of {where}", sorted(cell.attachments), []
    if unknown := sorted(executed.metadata.keys() - {"kernelspec", "language_info"}):
        yield f"metadata of {name}", unknown, []


@dataclass
class Reexecuted(Step):
    """A step of a finished run: it reads the run's records, keeps what it is given to write, and writes nothing."""

    files: dict[str, bytes] = field(default_factory=dict)
    """What was published, by name."""
    made: dict[str, Any] | None = None
    """The record, where the cell that writes it was executed."""
    outputs: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """Of each cell that was executed, by its position: outputs as a notebook has them."""

    def progress(self, done: int, total: int, what: str) -> None:
        """Nobody watches."""

    def publish(self, name: str, data: Any) -> None:
        """Keep a file's content."""
        self.files[name] = content_of(data)

    def write(self, tables: dict[str, list[Row]] | None = None, device: str = "cpu", **summary: Any) -> Record:
        """Keep the record; what follows is shown from it."""
        self.made = self.content(tables or {}, device, summary)
        return Record(self.name, json.loads(canonical_json(self.made)), "")


def expected_notebook(source: str, parameters: dict[str, Any]) -> Any:
    """The notebook that papermill executes: that of the text `source` with one cell of parameters injected."""
    notebook = nbformat.reads(source, as_version=4)
    notebook.metadata.setdefault("papermill", {})  # as papermill's own reader does
    for cell in notebook.cells:
        cell.metadata.setdefault("tags", [])
    return parameterize_notebook(notebook, parameters, kernel_name="python3", language="python")


def reexecute(notebook: Any, run: Run, step: str, parameters: dict[str, Any]) -> Reexecuted:
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
        config = Config()
        config.HistoryManager.enabled = False
        shell = InteractiveShell(config=config, user_ns=dict(parameters))  # type: ignore[no-untyped-call]
        InteractiveShell._instance = shell  # type: ignore[assignment]  # the one that `display` shows in
        for number, cell in enumerate(notebook.cells):
            tags = cell.metadata.get("tags", [])
            if cell.cell_type == "code" and COMPUTE not in tags and INJECTED not in tags:
                outputs[number] = _run_cell(shell, cell.source, f"cell {number}")
                shell.user_ns.update(parameters if "parameters" in tags else {})
    finally:
        InteractiveShell._instance = around
        OPENER.reset(token)
    if [one.name for one in opened] != [step]:
        raise HusaiError(f"it opens the steps {[one.name for one in opened]} where it should open {step!r}")
    opened[0].outputs = outputs
    return opened[0]


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
    """The outputs of an executed notebook's cell in the form of `Reexecuted.outputs`; others as they are."""
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


def _outputs(where: str, stored: list[dict[str, Any]], shown: list[dict[str, Any]], same_here: bool) -> Iterator[Check]:
    kinds, must_be = ([sorted(output.get("data", output)) for output in outputs] for outputs in (stored, shown))
    yield f"kinds of outputs of {where}", kinds, must_be
    for own, other in zip(stored, shown, strict=False):
        if "data" not in own or "data" not in other:
            yield f"output of {where}", own, other
            continue
        for kind in own["data"].keys() & other["data"].keys():
            pair = own["data"][kind], other["data"][kind]
            if kind == "image/png":
                stated, must = (one if isinstance(one, bytes) else base64.b64decode(one) for one in pair)
                yield from _picture(f"figure of {where}", stated, must, same_here)
            else:
                yield f"output of {where}", *first_difference(*(re.sub(r"0x[0-9a-f]{6,}", "0x…", str(t)) for t in pair))


def _picture(what: str, picture: bytes, drawn: bytes, same_here: bool) -> Iterator[Check]:
    """Whether two PNG files have the same pixels."""
    try:
        alike = picture == drawn or np.array_equal(imread(io.BytesIO(picture)), imread(io.BytesIO(drawn)))
    except (OSError, SyntaxError, ValueError):  # what is no picture
        alike = False
    if alike or same_here:
        must = "the picture that the records give"
        yield what, must if alike else "another picture", must
    else:
        yield "figures of another matplotlib or processor", UNCHECKED, None


def _record(record: Record, again: Reexecuted, notebook: Any) -> Iterator[Check]:
    """The whole record where its notebook was executed whole; else that its values and tables are those it is given."""
    what = f"record {record.step}"
    if again.made is not None:
        stated, made = ({k: v for k, v in of.items() if k not in NOT_DERIVED} for of in (record.data, again.made))
        yield from follow_values(what, stated, made)
        yield f"device of {what}", *(of["environment"]["device"] for of in (record.data, again.made))
        return
    compute = [cell.source for cell in notebook.cells if COMPUTE in cell.metadata.get("tags", [])]
    nodes = [node for source in compute for node in ast.walk(ast.parse(source))]
    calls = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "step.write"]
    names = {str(word.arg) for call in calls for word in call.keywords} - {"device"}
    yield f"single values of {what}", sorted(record.summary), sorted(names)
    strings = {node.value for node in nodes if isinstance(node, ast.Constant)}
    yield f"tables of {what} that its notebook does not name", sorted(record.data["tables"].keys() - strings), []
