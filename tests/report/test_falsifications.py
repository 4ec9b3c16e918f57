"""Falsifications by a forger who makes every hash agree: the audit finds each of them.

Whoever changes a record also writes everything again that follows from it (`rewrite`); whoever changes what is shown
leaves the records as they are (`forge_hashes`). Falsified measurements are found by a reproduction alone: see
tests/cycle/test_reproduce.py. Damage without new hashes is found by hashes: see tests/evidence/test_verification.py.
"""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from forging import (
    Change,
    change_record,
    copied,
    derive_again,
    fast_audits,
    forge_hashes,
    rewrite,
    show_again,
    smoke_copy,
    write_notebook,
)
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output, new_raw_cell

from husai_lib.evidence.runs import Run
from husai_lib.files import read_json, write_json
from husai_lib.report import figures, tables
from husai_lib.report.audit import audit_run
from husai_lib.report.notebook_audit import INJECTED

pytestmark = pytest.mark.slow

Plant = Callable[[Run], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with pytest.MonkeyPatch.context() as patch:
        fast_audits(patch)
        yield smoke_copy(tmp_path_factory.mktemp("falsified"))


@pytest.fixture
def run(made: Run, tmp_path: Path) -> Run:
    """A copy of the run, to be falsified."""
    return copied(made, tmp_path)


# ---------------------------------------------------------------------------------------------
# What a forger does to an executed notebook
# ---------------------------------------------------------------------------------------------


def in_notebook(stem: str, change: Callable[[Any], object]) -> Plant:
    """Change an executed notebook."""

    def plant(run: Run) -> None:
        path = run.path / "notebooks" / f"{stem}.ipynb"
        notebook = nbformat.read(path, 4)
        change(notebook)
        write_notebook(path, notebook)
        forge_hashes(run)

    return plant


def cell_of(notebook: Any, text: str) -> Any:
    """The first cell that has a text in its source or in the Markdown that it shows, but the injected one."""

    def has(cell: Any) -> bool:
        shown = [output.data.get("text/markdown", "") for output in cell.get("outputs", []) if "data" in output]
        return any(text in one for one in (cell.source, *shown)) and INJECTED not in cell.metadata.tags

    return next(cell for cell in notebook.cells if has(cell))


def cell(stem: str, text: str, change: Callable[[Any], object]) -> Plant:
    """Change the first cell that has a text."""
    return in_notebook(stem, lambda notebook: change(cell_of(notebook, text)))


def lines(stem: str, text: str, change: Callable[[list[str]], object]) -> Plant:
    """Change the lines of the first Markdown output that has a text."""

    def in_output(one: Any) -> None:
        data = one.outputs[0].data
        shown = data["text/markdown"].split("\n")
        change(shown)
        assert data["text/markdown"] != "\n".join(shown)
        data["text/markdown"] = "\n".join(shown)

    return cell(stem, text, in_output)


def output(stem: str, text: str, old: str, new: str) -> Plant:
    """Replace a part of the first Markdown output that has a text."""
    return lines(stem, text, lambda shown: shown.__setitem__(slice(None), ["\n".join(shown).replace(old, new, 1)]))


def source(stem: str, old: str, new: str) -> Plant:
    """Replace a part of the source of the first cell that has it."""
    return cell(stem, old, lambda one: one.update(source=one.source.replace(old, new, 1)))


def tagged(tag: str, change: Callable[[Any], object], stem: str = "08_gate") -> Plant:
    """Change the first cell with a tag."""
    return in_notebook(stem, lambda notebook: change(next(c for c in notebook.cells if tag in c.metadata.tags)))


def prose(change: Callable[[Any], object]) -> Plant:
    """Change the first paragraph of the notebook of the gate."""
    return in_notebook("08_gate", lambda notebook: change(notebook.cells[0]))


def verdict(change: Callable[[Any], object]) -> Plant:
    """Change the cell that shows the verdict."""
    return cell("08_gate", "**Not releasable**", change)


def beside(new: Any) -> Plant:
    """Let the cell of the verdict show something else beside it."""
    return verdict(lambda one: one.outputs.append(new))


def cells(change: Callable[[list[Any]], object]) -> Plant:
    """Change the list of cells of the notebook of the gate."""
    return in_notebook("08_gate", lambda notebook: change(notebook.cells))


def markdown(text: str) -> Any:
    return new_output("display_data", {"text/markdown": text, "text/plain": text})


def display(kind: str, text: str) -> Any:
    return new_output("display_data", {kind: text})


def injected_as_markdown(cells: list[Any]) -> None:
    """A heading that Python would read as a comment."""
    claim = "# This SAE is releasable: all 7 required gates pass"
    cells.insert(0, new_markdown_cell(claim, metadata={"tags": [INJECTED]}))


def another_true_text(notebook: Any) -> None:
    cell_of(notebook, "| SAEBench delta, duplicates kept |").outputs = cell_of(notebook, "| Random null |").outputs


def picture(change: Callable[[bytes], bytes]) -> Plant:
    """Change the figure of the controls, in the notebook alone."""

    def in_output(one: Any) -> None:
        data = one.outputs[0].data
        data["image/png"] = base64.b64encode(change(base64.b64decode(data["image/png"]))).decode()

    return cell("07_stress", "figures.controls", in_output)


def another_figure(run: Run) -> None:
    """Another figure of the run in place of one, in the notebook and as a file."""
    other = (run.path / "figures" / "ood.png").read_bytes()
    (run.path / "figures" / "controls.png").write_bytes(other)
    picture(lambda _: other)(run)


def better_figure(run: Run) -> None:
    """A figure drawn from better numbers than the record's, in the notebook and as a file."""
    better = {"delta": 0.5, "delta_low": 0.4, "delta_high": 0.6}
    drawn = figures.controls([row.model_copy(update=better) for row in run.record("stress").table("controls")]).png()
    (run.path / "figures" / "controls.png").write_bytes(drawn)
    picture(lambda _: drawn)(run)


SIGNS = str.maketrans("+-", "-+")
WIDGET = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "All gates pass"}
ERROR = new_output("error", ename="Releasable", evalue="", traceback=[])
KINDS = "kinds of outputs of 08_gate.ipynb, cell"
CELLS = "number of cells of 08_gate.ipynb"
METADATA = "metadata of 08_gate.ipynb, cell"
SHOWN: dict[str, tuple[Plant, str]] = {
    "a digit of a table": (output("03_frontier", "| Random null |", " 0.", " 9."), "output of 03_frontier.ipynb"),
    "a digit of a sentence": (output("03_frontier", " of 12 SAEs", "12", "13"), "output of 03_frontier.ipynb"),
    "a sign": (lines("07_stress", "| random model 1 |", lambda x: x.append(x.pop().translate(SIGNS))), "output of 07_"),
    "a unit": (output("02_baselines", "CE-Bench ceiling (SD)", "(SD)", "(%)"), "output of 02_baselines.ipynb"),
    "a heading": (output("03_frontier", "| Target k |", "Explained variance", "Truth"), "output of 03_frontier.ipynb"),
    "a name in a table": (output("03_frontier", "| Target k |", "topk", "gated"), "output of 03_frontier.ipynb"),
    "a row removed": (lines("06_selection", "| Standing |", lambda x: x.pop(2)), "output of 06_selection.ipynb"),
    "a row doubled": (lines("06_selection", "| Standing |", lambda x: x.insert(3, x[2])), "output of 06_selection"),
    "rows swapped": (lines("06_selection", "| Standing |", lambda x: x.insert(2, x.pop(3))), "output of 06_selection"),
    "a threshold": (output("08_gate", "| Must be |", "&gt; 0 ", "&gt; -1 "), "output of 08_gate.ipynb"),
    "a verdict": (output("08_gate", "**Not releasable**", "**Not r", "**R"), "output of 08_gate.ipynb"),
    "a verdict of one gate": (output("08_gate", "| Must be |", "**FAIL**", "pass"), "output of 08_gate.ipynb"),
    "a verdict in the report alone": (output("09_report", "**Not releasable**", "**Not r", "**R"), "output of 09_"),
    "a caveat removed": (output("09_report", "**cannot be compared", "cannot", "can"), "output of 09_report.ipynb"),
    "a sentence added": (lines("08_gate", "| Must be |", lambda x: x.append("So it is good.")), "'So it is good.'"),
    "another true text": (in_notebook("03_frontier", another_true_text), "output of 03_frontier.ipynb"),
    "plain text": (verdict(lambda one: one.outputs[0].data.update({"text/plain": "Releasable"})), "'Releasable' but"),
    "an output removed": (verdict(lambda one: one.outputs.clear()), KINDS),
    "an output added": (beside(markdown("All gates pass.")), KINDS),
    "HTML": (beside(display("text/html", "<b>All gates pass.</b>")), KINDS),
    "a drawing": (beside(display("image/svg+xml", "<svg/>")), KINDS),
    "a printed line": (beside(new_output("stream", text="All gates pass.\n")), KINDS),
    "an error that claims": (beside(ERROR), KINDS),
    "plain text of a widget": (beside(new_output("display_data", WIDGET)), KINDS),
    "hidden text of an output": (verdict(lambda one: one.outputs[0].metadata.update(alt="All pass")), "output of 08_"),
    "a computing cell that shows something": (
        tagged("compute", lambda one: one.outputs.append(markdown("All seeds agree.")), "03_frontier"),
        "kinds of outputs of 03_frontier.ipynb, cell",
    ),
    "an output of the injected cell": (tagged(INJECTED, lambda one: one.outputs.append(markdown("All pass."))), KINDS),
    "an output of prose": (prose(lambda one: one.update(outputs=[markdown("All gates pass.")])), "08_gate.ipynb"),
    "a figure that is no picture": (picture(lambda _: b"none"), "figure of 07_stress.ipynb, cell"),
    "a figure in the notebook alone": (picture(lambda _: figures.stability([]).png()), "figure of 07_stress.ipynb"),
    "another figure of the run": (another_figure, "figures/controls.png is 'another picture'"),
    "a figure of better numbers": (better_figure, "figures/controls.png is 'another picture'"),
    "prose edited": (prose(lambda one: one.update(source=f"{one.source}\nAll gates pass.")), "'All gates pass.'"),
    "prose added": (cells(lambda all_cells: all_cells.insert(1, new_markdown_cell("All gates pass."))), CELLS),
    "prose removed": (cells(lambda all_cells: all_cells.pop()), CELLS),
    "a raw cell": (cells(lambda all_cells: all_cells.append(new_raw_cell("<b>All gates pass.</b>"))), CELLS),
    "prose as a raw cell": (prose(lambda one: one.update(cell_type="raw")), "08_gate.ipynb, cell 0 is 'raw'"),
    "an attachment": (
        prose(lambda one: one.update(attachments={"a.png": {"image/png": "AA=="}})),
        "attachments of 08_",
    ),
    "the verdict's cell removed": (
        in_notebook("08_gate", lambda notebook: notebook.cells.remove(cell_of(notebook, "**Not releasable**"))),
        CELLS,
    ),
    "a comment in code": (
        source("08_gate", "record = step.write(", "# All pass.\nrecord = step.write("),
        "'# All pass.'",
    ),
    "a caption": (source("07_stress", 'fig-cap: "', 'fig-cap: "All pass. '), "All pass. "),
    "a cell hidden by a tag": (verdict(lambda one: one.metadata.update(tags=["remove-output"])), METADATA),
    "a cell hidden by metadata": (verdict(lambda one: one.metadata.update(jupyter={"source_hidden": True})), METADATA),
    "metadata of the notebook": (
        in_notebook("08_gate", lambda notebook: notebook.metadata.update(title="x")),
        "['title']",
    ),
    "an injected cell of Markdown": (cells(injected_as_markdown), "This SAE is releasable"),
    "the injected cell as Markdown": (tagged(INJECTED, lambda one: one.update(cell_type="markdown")), "is 'markdown'"),
    "a comment in the injected cell": (tagged(INJECTED, lambda one: one.update(source=f"# x\n{one.source}")), "'# x'"),
    "a second injected cell": (
        cells(lambda all_cells: all_cells.insert(3, new_code_cell("gates = {}", metadata={"tags": [INJECTED]}))),
        CELLS,
    ),
    "no injected cell": (cells(lambda all_cells: all_cells.pop(2)), CELLS),
    "an injected parameter": (
        tagged(INJECTED, lambda one: one.update(source=one.source.replace("0.1", "0.5", 1))),
        "08_gate.ipynb, cell 2",
    ),
    "the injected run": (
        tagged(INJECTED, lambda one: one.update(source=one.source.replace("run_2", "run_1", 1))),
        "08_gate.ipynb, cell 2",
    ),
    "no notebook": (
        in_notebook("08_gate", lambda notebook: notebook.clear()),
        "08_gate.ipynb is not a readable notebook",
    ),
}


# ---------------------------------------------------------------------------------------------
# What a forger does to published files
# ---------------------------------------------------------------------------------------------


def published(name: str, change: Change) -> Plant:
    """Change a published JSON file."""

    def plant(run: Run) -> None:
        content = read_json(run.path / name)
        change(content)
        write_json(run.path / name, content)
        forge_hashes(run)

    return plant


def text(name: str, old: str, new: str) -> Plant:
    """Replace a text in a published file."""

    def plant(run: Run) -> None:
        before = (run.path / name).read_text(encoding="utf-8")
        assert old in before
        (run.path / name).write_text(before.replace(old, new, 1), encoding="utf-8")
        forge_hashes(run)

    return plant


def another_table(run: Run) -> None:
    rows = run.record("gate").table("gates")
    (run.path / "candidate_table.csv").write_text(tables.csv_table(rows), encoding="utf-8")
    forge_hashes(run)


def new_file(name: str, like: str) -> Plant:
    """Add a file to the run, as if the gate had written it."""

    def plant(run: Run) -> None:
        shutil.copy(run.path / like, run.path / name)
        forge_hashes(run)

    return plant


def without_file(name: str) -> Plant:
    """Remove a file from the run and from everything that names it."""

    def plant(run: Run) -> None:
        (run.path / name).unlink()
        forge_hashes(run)

    return plant


FILES: dict[str, tuple[Plant, str]] = {
    "selected_candidate.json": (
        published("selected_candidate.json", lambda data: data["selected"].update(seed=7)),
        "selected_candidate.json is",
    ),
    "pareto_front.json": (published("pareto_front.json", lambda data: data["groups"].pop()), "pareto_front.json is"),
    "selection_summary.json": (
        published("selection_summary.json", lambda data: data.update(reason="It is best.")),
        "It is best.",
    ),
    "release_policy.json": (published("release_policy.json", lambda data: data.update(pass_all=True)), '"pass_all"'),
    "an unknown key of release_policy.json": (
        published("release_policy.json", lambda data: data.update(audited=True)),
        "release_policy.json is",
    ),
    "results.json": (
        published("results.json", lambda data: data["gate"]["gates"][0].update(verdict="pass")),
        "results.json is",
    ),
    "release_policy.md": (
        text("release_policy.md", "Not releasable", "Releasable"),
        "release_policy.md is 'Releasable",
    ),
    "candidate_table.csv": (text("candidate_table.csv", "topk", "gated"), "candidate_table.csv is"),
    "another table as candidate_table.csv": (another_table, "candidate_table.csv is"),
    "an unknown file": (new_file("summary.md", "release_policy.md"), "files of step gate is"),
    "an unknown figure": (new_file("figures/better.png", "figures/ood.png"), "files of step gate is"),
    "an unknown notebook": (
        new_file("notebooks/10_more.ipynb", "notebooks/09_report.ipynb"),
        "notebooks of step gate is 2",
    ),
    "an unknown record": (new_file("records/more.json", "records/gate.json"), "no record of step 'more'"),
    "no release_policy.json": (without_file("release_policy.json"), "files of step gate is"),
    "no results.json": (without_file("results.json"), "well-known files that are missing"),
    "no figure": (without_file("figures/ood.png"), "files of step stress is"),
    "no notebook": (without_file("notebooks/08_gate.ipynb"), "notebooks of step gate is 0"),
    "no record": (without_file("records/gate.json"), "records/gate.json"),
}


# ---------------------------------------------------------------------------------------------
# What a forger does to records and parameters, with all that follows from them
# ---------------------------------------------------------------------------------------------


def record(step: str, change: Change) -> Plant:
    return lambda run: rewrite(run, step, change)


def value(step: str, table: str, number: int = 0, **columns: Any) -> Plant:
    """Change values of one row of a table."""

    def change(data: dict[str, Any]) -> None:
        row = data["tables"][table][number]
        assert all(row[name] != new for name, new in columns.items())
        row.update(columns)

    return record(step, change)


def moved(row: dict[str, Any], **by: float) -> None:
    """Move numbers of a row by little enough that the same group is selected."""
    row.update({name: row[name] + step for name, step in by.items()})


def without(step: str, table: str, number: int = 0) -> Plant:
    return record(step, lambda data: data["tables"][table].pop(number))


def swapped_conditions(data: dict[str, Any]) -> None:
    """Two conditions under each other's names, in every table."""
    names = {"batchtopk": "jumprelu", "jumprelu": "batchtopk"}
    for row in [row for rows in data["tables"].values() for row in rows]:
        column = "of" if "of" in row else "condition"
        row[column] = names.get(row[column], row[column])


def of_one_seed(data: dict[str, Any], seed: int, change: Callable[[list[Any], list[Any]], None]) -> None:
    """Change each table of the frontier by its rows of one seed of a condition that cannot win."""
    for rows in data["tables"].values():
        own = [row for row in rows if seed in (row.get("seed"), row.get("seed_a"), row.get("seed_b"))]
        change(rows, [row for row in own if row.get("of", row.get("condition")) == "standard"])


def without_a_seed(run: Run) -> None:
    """The last seed of a condition, with every number that follows."""

    def drop(rows: list[Any], own: list[Any]) -> None:
        rows[:] = [row for row in rows if row not in own]

    rewrite(run, "frontier", lambda data: of_one_seed(data, 2, drop))
    derive_again(run)


def with_a_seed(run: Run) -> None:
    """A fourth seed that does as the third, with every number that follows."""

    def add(rows: list[Any], own: list[Any]) -> None:
        for row in own:
            seeds = {name: 3 for name, value in row.items() if name in ("seed", "seed_b") and value == 2}
            rows.append(row | seeds | ({"weights_sha256": "3" * 64} if "key" in row else {}))
        rows.extend([own[-1] | {"seed_a": 2, "seed_b": 3}] if own and "of" in own[-1] else [])

    rewrite(run, "frontier", lambda data: of_one_seed(data, 2, add))
    derive_again(run)


def swapped_references(run: Run) -> None:
    """Two seeds aligned with each other's reference, with every number that follows: others are then unrelated."""

    def swap(data: dict[str, Any]) -> None:
        first, second = [row for row in data["tables"]["members"] if row["reference"] is not None][:2]
        assert first["reference"] != second["reference"]
        first["reference"], second["reference"] = second["reference"], first["reference"]

    rewrite(run, "consistency", swap)
    derive_again(run)


def unrelated_seeds(run: Run) -> None:
    """Seeds that are said to be aligned with nothing, so that agreement by construction counts as agreement."""

    def change(data: dict[str, Any]) -> None:
        for row in data["tables"]["members"]:
            row["reference"] = None

    rewrite(run, "consistency", change)
    derive_again(run)


def less_random_at(d_sae: int) -> Plant:
    """Random decoders of a sweep that agree less, with the gates that then follow."""

    def plant(run: Run) -> None:
        def change(data: dict[str, Any]) -> None:
            for row in data["tables"]["pairs"]:
                row["pwmcc"] -= 0.1 if row["of"] == f"random_decoder_{d_sae}" else 0

        rewrite(run, "consistency", change)
        derive_again(run)

    return plant


def accepted(data: dict[str, Any]) -> None:
    """A weight that passes all gates, in the record of the sweep and in all that shows it."""
    row = data["tables"]["sweep"][1]
    row |= {name: "pass" for name in row if name.startswith("gate_")} | {"accepted": True}
    data["summary"]["acceptance"] |= {"best_condition": row["condition"], "pass_all": True}


def one_weights_file(data: dict[str, Any]) -> None:
    for row in data["tables"]["members"][:3]:
        row["weights_sha256"] = "0" * 64


def less_random(run: Run) -> None:
    """Random decoders that agree less, with the control and the gate that then follow."""

    def change(data: dict[str, Any]) -> None:
        for row in data["tables"]["pairs"]:
            row["pwmcc"] -= 0.1 if row["of"] == "random_decoder" else 0

    rewrite(run, "stress", change)
    derive_again(run)


def decided(data: dict[str, Any]) -> None:
    """All gates pass, in the gate's record and all that shows it."""
    for row in data["tables"]["gates"]:
        row["verdict"] = "pass"
    data["summary"] |= {"pass_all": True, "verdict": "Releasable: all 7 required gates pass."}


def another_winner(data: dict[str, Any]) -> None:
    first, second = data["tables"]["candidates"][:2]
    first["selected"], second["selected"] = second["selected"], first["selected"]
    chosen = {name: second[name] for name in ("condition", "architecture", "source")}
    data["summary"]["selected"] |= chosen | {"seed": second["representative_seed"]}


def another_representative(run: Run) -> None:
    """Another seed than the median one stands for the winner, in every record."""
    for step in ("selection", "stress"):
        path = run.path / "records" / f"{step}.json"
        data = read_json(path)
        data["summary"]["selected"]["seed"] = 0
        write_json(path, data)
    show_again(run, {"selection"})


def parameters(section: str, **change: Any) -> Plant:
    """Change a section of the parameters after the fact, in the run and in every record, with all that follows."""

    def plant(run: Run) -> None:
        asked = read_json(run.path / "parameters.json")
        asked[section] |= change
        write_json(run.path / "parameters.json", asked)
        for step in run.journal:
            path = run.path / "records" / f"{step}.json"
            data = read_json(path)
            data["parameters"] |= {section: asked[section]} if section in data["parameters"] else {}
            write_json(path, data)
        show_again(run)

    return plant


def earlier_hash(data: dict[str, Any]) -> None:
    data["earlier"] = dict.fromkeys(data["earlier"], "0" * 64)


def only_hashes(step: str, change: Change) -> Plant:
    """Change a record and nothing that follows from it but hashes."""
    return lambda run: change_record(run, step, change)


def impossible(step: str, table: str, **columns: Any) -> Plant:
    """A value that no row can have, so that nothing can be shown that follows from it."""
    return only_hashes(step, lambda data: data["tables"][table][0].update(columns))


def environment_of(step: str, **change: Any) -> Plant:
    return record(step, lambda data: data["environment"].update(change))


def other_library(run: Run) -> None:
    """Another library than that of the stated commit, in all records and in the journal."""

    def change(environment: dict[str, Any]) -> dict[str, Any]:
        return environment | {"code": environment["code"] | {"library_sha256": "0" * 64}}

    for step in run.journal:
        path = run.path / "records" / f"{step}.json"
        data = read_json(path)
        write_json(path, data | {"environment": change(data["environment"])})
    run._write_journal(attempts=[change(attempt) for attempt in run.attempts])
    show_again(run)


def other_key(run: Run) -> None:
    run.note_step("gate", run.journal["gate"] | {"key": "0" * 64})
    run.write_manifest(**{name: value for name, value in run.manifest().items() if name != "sha256"})


def in_manifest(**change: Any) -> Plant:
    return lambda run: forge_hashes(run, **change)


def began_later(run: Run) -> None:
    """A run whose name says that it began after it ended."""
    run.path = run.path.rename(run.path.with_name("run_29991231T235959Z"))
    show_again(run)


BETTER = {"value": 0.2, "bound": 0.1, "verdict": "pass"}
RECORDS: dict[str, tuple[Plant, str]] = {
    # derived columns
    "a mean AUC": (value("frontier", "members", saebench_auc=0.9), "saebench_auc of frontier/members topk 0"),
    "a SAEBench delta": (
        record("frontier", lambda data: moved(data["tables"]["members"][0], saebench_delta=1e-4)),
        "saebench_delta of frontier/members topk 0",
    ),
    "a CE-Bench delta": (value("frontier", "members", cebench_delta=0.3), "cebench_delta of frontier/members topk 0"),
    "a ceiling": (value("frontier", "members", cebench_ceiling=9.0), "cebench_ceiling of frontier/members topk 0"),
    "a matched L0": (value("frontier", "members", l0=7.0), "l0_matched of frontier/members topk 0"),
    "a delta of a probe": (value("frontier", "probes", delta=0.3), "delta of frontier/probes topk 0"),
    "a weaker raw activation": (value("frontier", "probes", llm_auc=0.5, delta=0.1), "llm_auc of frontier/probes topk"),
    "a PW-MCC": (value("frontier", "groups", pwmcc=0.46), "pwmcc of frontier/groups topk"),
    "a bound of a PW-MCC": (value("frontier", "groups", pwmcc_low=0.44), "pwmcc_low of frontier/groups topk"),
    "a corrected PW-MCC": (value("frontier", "groups", pwmcc_corrected=0.2), "pwmcc_corrected of frontier/groups topk"),
    "a bound over data sets": (value("frontier", "groups", saebench_low=-0.2), "saebench_low of frontier/groups topk"),
    "a pair of a condition": (value("frontier", "pairs", pwmcc=0.47), "pwmcc of frontier/groups topk"),
    "rows of a bank": (value("activations", "banks", rows=9), "rows of activations/banks training"),
    "rows of a source": (value("activations", "sources", rows=9), "rows of activations/banks training"),
    "a control's value": (value("stress", "controls", control_value=0.2), "control_value of stress/controls"),
    "a control's delta": (value("stress", "controls", delta=0.3), "delta of stress/controls random_model"),
    "a control's bound": (value("stress", "controls", delta_low=0.01), "delta_low of stress/controls random_model"),
    "a control of other weights": (
        only_hashes("stress", lambda data: data["tables"]["controls"][0].update(candidate_sha256="0" * 64)),
        "candidate_sha256 of stress",
    ),
    "a shift over tasks": (value("stress", "controls", -1, tasks_high=0.05), "tasks_high of stress/controls ood"),
    "a shift of a task": (value("stress", "ood", shifted_auc=0.9), "delta of stress/controls ood"),
    "a task of other weights": (value("stress", "ood", weights_sha256="0" * 64), "weights_sha256 of stress/ood"),
    "a control's SAE of another width": (value("stress", "control_saes", d_sae=128), "d_sae of stress/control_saes"),
    "a score of the width study's ceiling": (value("baselines", "contrastive", ceiling=9.0), "ceiling of baselines/"),
    # the sweep of the consistency objective
    "an agreement within a reference": (
        value("consistency", "groups", 1, pwmcc_within=0.5),
        "pwmcc_within of consistency/groups topk_lambda_0_1",
    ),
    "an agreement within that a weight has": (
        value("consistency", "sweep", 2, pwmcc_within=0.5),
        "pwmcc_within of consistency/sweep topk_lambda_0_3",
    ),
    "agreement within in place of that of unrelated seeds": (
        record(
            "consistency",
            lambda data: [row.update(pwmcc=row["pwmcc_within"], pwmcc_max=1.0) for row in data["tables"]["groups"][1:]],
        ),
        "pwmcc of consistency/groups topk_lambda_0_1",
    ),
    "a drop of explained variance": (value("consistency", "sweep", 1, ev_drop=-0.1), "ev_drop of consistency/sweep"),
    "an alignment of a weight": (value("consistency", "sweep", 1, alignment=0.1), "alignment of consistency/sweep"),
    "a conservative delta": (value("consistency", "sweep", delta_lcb=0.2), "delta_lcb of consistency/sweep topk_lam"),
    "another checkpoint": (value("consistency", "sweep", 1, checkpoint_seed=7), "checkpoint_seed of consistency/sweep"),
    "a verdict on a weight": (
        value("consistency", "sweep", 1, gate_external="pass"),
        "gate_external of consistency/sweep topk_lambda_0_1",
    ),
    "a weight that is accepted": (record("consistency", accepted), "accepted of consistency/sweep topk_lambda_0_1"),
    "an acceptance": (
        record("consistency", lambda data: data["summary"]["acceptance"].update(pass_all=True)),
        "acceptance: pass_all is True",
    ),
    "a number of the acceptance": (
        record("consistency", lambda data: data["summary"]["acceptance"].update(best_delta_lcb=0.3)),
        "acceptance: best_delta_lcb is 0.3",
    ),
    "a limit of the acceptance": (
        record("consistency", lambda data: data["summary"]["acceptance"].update(max_ev_drop=0.5)),
        "acceptance: max_ev_drop is 0.5",
    ),
    "a number more in the acceptance": (
        record("consistency", lambda data: data["summary"]["acceptance"].update(stable=True)),
        "acceptance: stable is True",
    ),
    "a validation AUC of a checkpoint": (
        value("consistency", "checkpoints", saebench=0.9),
        "saebench of consistency/checkpoints topk_lambda_0 0",
    ),
    "a score of a checkpoint": (
        value("consistency", "checkpoints", 4, external_score=0.99),
        "external_score of consistency/checkpoints topk_lambda_0_1 1",
    ),
    "a checkpoint left out": (without("consistency", "checkpoints", -1), "checkpoints is"),
    "a weight left out": (without("consistency", "sweep", 1), "weights of the sweep is"),
    "a weight left out on known features": (without("consistency", "known_truth", 1), "weights on known features is"),
    "a swept group left out": (
        only_hashes("consistency", lambda data: data["tables"]["groups"].pop(1)),
        "conditions of groups of consistency is",
    ),
    "a swept SAE left out": (
        only_hashes("consistency", lambda data: data["tables"]["members"].pop(4)),
        "SAEs of consistency is",
    ),
    "references swapped": (swapped_references, "reference of consistency/members topk_lambda_0_1 0 is 101"),
    "related seeds as unrelated ones": (unrelated_seeds, "reference of consistency/members topk_lambda_0_1 0 is None"),
    "a reference of a seed without objective": (
        value("frontier", "members", reference=100),
        "reference of frontier/members topk 0 is 100",
    ),
    "random decoders of a sweep": (less_random_at(64), "PW-MCC of the random decoders of seeds 0 and 1 is"),
    "the random null of a swept group": (
        value("consistency", "groups", 1, null_random=0.3),
        "null_random of topk_lambda_0_1 is 0.3",
    ),
    "references after the fact": (
        parameters("consistency", references=[100, 102]),
        "section consistency, against params/smoke.yaml",
    ),
    "an agreement above 1 on known features": (impossible("consistency", "known_truth", recovery=1.1), "recovery"),
    # decisions
    "all gates pass": (record("gate", decided), "record gate.summary.pass_all is True"),
    "a gate that passes": (value("gate", "gates", **BETTER), "record gate.tables.gates.0.verdict is 'pass'"),
    "a threshold of a gate": (value("gate", "gates", 3, threshold=0.5), "record gate.tables.gates.3.threshold is 0.5"),
    "a gate that is not required": (value("gate", "gates", required=False), "record gate.tables.gates.0.required"),
    "a gate left out": (without("gate", "gates"), "record gate.tables.gates is"),
    "an outcome against an earlier cycle": (value("gate", "criteria", outcome="met"), "record gate.tables.criteria.0"),
    "another winner": (only_hashes("selection", another_winner), "record selection.summary.selected.condition"),
    "another representative": (another_representative, "record selection.summary.selected.seed is 0"),
    "a candidate's bound": (value("selection", "candidates", saebench_delta_low=0.1), "record selection.tables"),
    "a candidate left out": (without("selection", "candidates", 3), "record selection.tables.candidates is"),
    "a selection probability": (value("selection", "candidates", selection_probability=1.0), "selection_probability"),
    "a reason": (record("selection", lambda data: data["summary"].update(reason="It is best.")), "It is best."),
    "a caveat left out": (without("selection", "caveats"), "record selection.tables.caveats is"),
    "an imported decision that is reproduced": (value("selection", "replays", values=999), "replays.0.values is 999"),
    # which rows there are
    "a seed left out": (without_a_seed, "SAEs of frontier is"),
    "a seed added": (with_a_seed, "SAEs of frontier is"),
    "an SAE left out": (without("frontier", "members", 6), "SAEs of frontier is"),
    "an SAE twice": (
        only_hashes("frontier", lambda data: data["tables"]["members"].append(data["tables"]["members"][0])),
        "SAEs of frontier is",
    ),
    "a group left out": (without("frontier", "groups", 1), "conditions of groups of frontier is"),
    "a pair left out": (without("frontier", "pairs", -1), "pairs of frontier is"),
    "a probe left out": (without("frontier", "probes"), "probes of frontier is"),
    "a baseline left out": (without("baselines", "members"), "SAEs of baselines is"),
    "a control left out": (without("stress", "control_saes"), "SAEs of controls is"),
    "a task left out": (without("stress", "ood"), "tasks of the OOD control is"),
    "a control's row left out": (without("stress", "controls", 3), "controls is"),
    "an SAE of the width study left out": (without("baselines", "contrastive", -1), "SAEs of the width study is"),
    "a bank left out": (without("activations", "banks", 2), "banks of activations is"),
    "a data set left out": (without("activations", "sources", 2), "roles of data sets is"),
    "a data set renamed": (value("activations", "sources", 3, data_set="160_easy"), "data sets of tasks is"),
    "a data set twice": (
        record("activations", lambda data: data["tables"]["sources"].append(data["tables"]["sources"][-1])),
        "data sets that are listed twice is",
    ),
    "conditions swapped": (record("frontier", swapped_conditions), "SAEs of frontier is"),
    "an architecture": (value("frontier", "members", architecture="gated"), "SAEs of frontier is"),
    "three seeds of one weights file": (
        only_hashes("frontier", one_weights_file),
        "weights of several SAEs of frontier is",
    ),
    # numbers that are seeded
    "the random null": (value("frontier", "groups", null_random=0.3), "null_random of topk is 0.3"),
    "the pairs of random decoders": (less_random, "PW-MCC of the random decoders of seeds 3 and 4 is"),
    # values that cannot be
    "an AUC above 1": (impossible("frontier", "probes", test_auc=1.2), "test_auc"),
    "an explained variance above 1": (impossible("frontier", "members", explained_variance=1.2), "explained_variance"),
    "an L0 above the width": (impossible("frontier", "members", l0=65.0), "l0 = 65.0 is impossible"),
    "a CE-Bench score above its ceiling": (
        impossible("frontier", "members", cebench_interpretability=9.0),
        "the ceiling",
    ),
    "a PW-MCC above its maximum": (impossible("frontier", "groups", pwmcc=0.99), "the mean of the maxima"),
    "a k that is not that of the latents": (impossible("frontier", "probes", best_k=1), "5 latents are listed"),
    "a share above 1": (impossible("frontier", "members", dead_fraction=1.5), "dead_fraction"),
    "more story pairs than asked for": (
        record("activations", lambda data: data["summary"].update(story_pairs=640)),
        "story pairs are at most max_rows",
    ),
    # free text and unknown keys
    "a note of a measured row": (value("frontier", "members", note="best in class"), "note of frontier/members topk 0"),
    "a note of a gate": (value("gate", "gates", note="accepted as it is"), "record gate.tables.gates.0.note"),
    "an unknown column": (
        only_hashes("frontier", lambda data: data["tables"]["members"][0].update(good=True)),
        "'good'",
    ),
    "an unknown key of a record": (only_hashes("frontier", lambda data: data.update(verdict="good")), "'verdict'"),
    "an unknown single value": (
        record("frontier", lambda data: data["summary"].update(pass_all=True)),
        "single values of record frontier",
    ),
    "an unknown single value of the report": (
        record("report", lambda data: data["summary"].update(audited=True)),
        "record report.summary.audited is True",
    ),
    "an unknown table": (record("frontier", lambda data: data["tables"].update(gates=[])), "tables of record frontier"),
    "the summary of the manifest": (in_manifest(summary="All gates pass."), "manifest: summary is"),
    "an unknown key of the manifest": (in_manifest(audited="All gates pass."), "keys of the manifest"),
    "the verdict of the manifest": (in_manifest(verdict="Releasable."), "manifest: verdict is 'Releasable.'"),
    # parameters after the fact
    "a threshold of the parameters": (
        parameters("gates", max_ood_drop=0.5),
        "section gates, against params/smoke.yaml",
    ),
    "a gate that is made optional": (
        parameters("gates", require_ood=False),
        "section gates, against params/smoke.yaml",
    ),
    "a model renamed": (parameters("model", name="pythia-70m"), "section model, against params/smoke.yaml"),
    "a data set dropped": (parameters("texts", probing=["95_toxic_is"]), "section texts, against params/smoke.yaml"),
    "parameters of one record": (
        record("gate", lambda data: data["parameters"]["gates"].update(max_ood_drop=0.5)),
        "record gate: section gates is",
    ),
    "an override that was not used": (in_manifest(overrides=["gates.max_ood_drop=0.5"]), "section gates, against"),
    # where and when
    "another device for one record": (environment_of("frontier", device="cuda (H200)"), "devices"),
    "another device for a decision": (environment_of("gate", device="cuda (H200)"), "device of record gate"),
    "another version of Python for one record": (environment_of("frontier", python="3.99"), "environment of record"),
    "another library for one record": (
        environment_of("gate", code={"library_sha256": "0" * 64, "git_commit": None}),
        "environment of record gate",
    ),
    "a library that is not the commit's": (other_library, "library_sha256 of the library of commit"),
    "a step key that does not follow": (other_key, "journal: key of step gate"),
    "an end before the beginning": (began_later, "was finished after the run began"),
    "a record older than what it read": (
        only_hashes("gate", lambda data: data.update(finished_utc="2020-01-01T00:00:00+00:00")),
        "record gate was finished after",
    ),
    "a manifest older than its records": (
        only_hashes("gate", lambda data: data.update(finished_utc="2999-01-01T00:00:00+00:00")),
        "manifest: finished_utc",
    ),
    # earlier runs
    "hashes of earlier records": (only_hashes("selection", earlier_hash), "read another record imported/cycle3/"),
    "earlier records left out": (only_hashes("gate", lambda data: data["earlier"].clear()), "record gate.earlier"),
}

PLANTED = {
    f"{where}: {name}": case
    for where, cases in {"shown": SHOWN, "published": FILES, "recorded": RECORDS}.items()
    for name, case in cases.items()
}


@pytest.mark.parametrize(("plant", "said"), PLANTED.values(), ids=PLANTED.keys())
def test_a_falsification_is_found_though_all_hashes_agree(run: Run, plant: Plant, said: str) -> None:
    plant(run)
    problems = audit_run(run).problems
    assert any(said in problem for problem in problems), problems
    assert not any("was changed after" in problem or "another SHA-256" in problem for problem in problems)


def test_nothing_is_found_where_nothing_was_falsified(run: Run) -> None:
    assert audit_run(run).problems == []
    derive_again(run)
    rewrite(run, "frontier", lambda data: None)
    assert audit_run(run).problems == []
