"""What the notebooks of a run may show, made again from its records: every table, sentence and figure; pure, no torch.

A new table or sentence is one line in TEXTS, a new figure one in FIGURES; all else follows.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from functools import lru_cache, reduce
from itertools import zip_longest
from operator import getitem
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.image import imread

from husai_lib import criteria, figures, sentences, tables
from husai_lib.evidence import Record, Run
from husai_lib.files import canonical_json, sha256_text

Check = tuple[str, Any, Any]
"""What is checked, what the run states, what it must be."""
Records = Mapping[str, Record]
Maker = tuple[Callable[..., Any], *tuple[str, ...]]
"""A function that notebooks call, and what of the records it takes: `<step>/<table>`, else a path within the record."""

NOT_CHECKED = "not checked"
TEXTS: Mapping[str, Maker] = {
    "model_sentence": (sentences.model_sentence, "activations/parameters/model", "activations/parameters/activations"),
    "disjoint_sentence": (sentences.disjoint_sentence, "activations/summary/distinct_training_texts"),
    "sources_table": (tables.sources_table, "activations/sources"),
    "baseline_table": (tables.baseline_table, "baselines/members"),
    "given_sentence": (sentences.given_sentence, "baselines/members"),
    "probes_table": (tables.probes_table, "baselines/probes"),
    "unreachable_sentence": (sentences.unreachable_sentence, "baselines/parameters/sae/d_sae"),
    "width_sentences": (sentences.width_sentences, "baselines/contrastive"),
    "contrastive_table": (tables.contrastive_table, "baselines/contrastive"),
    "trained_sentence": (sentences.trained_sentence, "frontier/parameters/conditions", "frontier/parameters/seeds"),
    "frontier_table": (tables.frontier_table, "frontier/members"),
    "matched_sentence": (sentences.matched_sentence, "frontier/members"),
    "members_table": (tables.members_table, "frontier/members"),
    "groups_table": (tables.groups_table, "frontier/groups"),
    "stability_sentence": (sentences.stability_sentence, "frontier/groups"),
    "external_table": (tables.external_table, "frontier/groups", "frontier/members"),
    "data_sets_table": (tables.data_sets_table, "frontier/probes"),
    "candidates_table": (tables.candidates_table, "selection/candidates"),
    "selection_sentence": (sentences.selection_sentence, "selection/candidates"),
    "pooled_sentence": (sentences.pooled_sentence, "selection/summary/pooled"),
    "winner_sentence": (sentences.winner_sentence, "selection/candidates", "selection/parameters/selection/weights"),
    "scores_table": (tables.scores_table, "selection/candidates"),
    "scaling_sentence": (sentences.scaling_sentence, "selection/summary/by_scaling"),
    "replays_sentence": (sentences.replays_sentence, "selection/replays"),
    "replays_table": (tables.replays_table, "selection/replays"),
    "rule_changes_table": (tables.rule_changes_table, "selection/rule_changes"),
    "rule_changes_sentence": (sentences.rule_changes_sentence, "selection/rule_changes"),
    "caveats_table": (tables.caveats_table, "selection/caveats"),
    "sensitivity_table": (tables.sensitivity_table, "selection/summary/sensitivity"),
    "representative_sentence": (sentences.representative_sentence, "selection/summary/selected"),
    "candidate_sentence": (sentences.candidate_sentence, "stress/summary/selected", "candidate/members"),
    "controls_table": (tables.controls_table, "stress/controls"),
    "ood_table": (tables.ood_table, "stress/ood"),
    "ood_sentence": (sentences.ood_sentence, "stress/ood"),
    "gates_table": (tables.gates_table, "gate/gates"),
    "gate_sentences": (sentences.gate_sentences, "gate/gates"),
    "outcome_sentence": (criteria.outcome_sentence, "gate/criteria"),
    "criteria_table": (tables.criteria_table, "gate/criteria"),
    "verdict_sentence": (sentences.verdict_sentence, "gate/gates"),
    "measured_on_sentence": (sentences.measured_on_sentence, "activations/parameters/model",
        "activations/parameters/activations", "activations/parameters/texts", "activations/summary/story_pairs"),
    "stories_sentence": (sentences.stories_sentence, "activations/parameters/texts/stories"),
    "results_sentence": (sentences.results_sentence, "report/inputs"),
}  # fmt: skip
"""Every text that a notebook may show, by the name of the function that it calls."""
WITHOUT_ROWS = {
    "controls_table": "No control was run.",
    "ood_table": "No shifted set was probed.",
    "ood_sentence": "",
}
"""What notebooks show instead where a table has no row."""
FIGURES: Mapping[str, Maker] = {
    "widths": (figures.widths, "baselines/contrastive"),
    "frontier": (figures.frontier, "frontier/members"),
    "stability": (figures.stability, "frontier/groups"),
    "external": (figures.external, "frontier/members", "frontier/groups"),
    "pareto": (figures.pareto, "selection/candidates"),
    "controls": (figures.controls, "stress/controls"),
    "ood": (figures.ood, "stress/ood"),
}
"""Every figure that a notebook may save, by its name."""
WIDGET = "application/vnd.jupyter.widget-view+json"
BESIDE = {
    "text/markdown": r"(<IPython\.core\.display\.Markdown object>)?",
    "image/png": r"(<ReportFigure size \d+x\d+ with \d+ Axes>)?",
    WIDGET: r"[A-Za-z .-]*: +\d+%\|[^|]*\| \d+/\d+ \[[^]]*\]",
}
"""The plain text that Jupyter puts beside an output; of widgets only progress bars are known, which no page shows."""


def fragments(records: Records) -> dict[str, str]:
    """Every text that the notebooks of a run may show, by the function that makes it; an output is one of them, whole.

    What records lack, as those of an unfinished run do, is left out; `candidate` stands for the record that holds the
    members of the selected group.
    """
    made = {}
    for name, maker in TEXTS.items():
        values = _taken(records, maker)
        if values is not None:
            made[name] = maker[0](*values) if values[0] or name not in WITHOUT_ROWS else WITHOUT_ROWS[name]
    return made


def _taken(records: Records, maker: Maker) -> list[Any] | None:
    """What a maker takes of the records; None where they lack it."""
    try:
        return [_value(records, *what.split("/")) for what in maker[1:]]
    except KeyError:
        return None


def _value(records: Records, step: str, name: str, *keys: str) -> Any:
    if name in records[step].data["tables"]:
        return records[step].table(name)
    return reduce(getitem, keys, records[step].data[name])


# ---------------------------------------------------------------------------------------------
# Executed notebooks
# ---------------------------------------------------------------------------------------------


def checks(run: Run, records: Records, notebooks: Path) -> Iterator[Check]:
    """Everything that the executed notebooks of a run show, and whether they are those of the folder `notebooks`."""
    texts, shown = fragments(records), set[tuple[str, str]]()
    pictures: dict[tuple[str, str], bool | None] = {}
    for step, path, entry in _executed(run):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        injected = [cell for cell in cells if "injected-parameters" in cell["metadata"].get("tags", ())]
        own = [cell for cell in cells if cell not in injected]
        yield f"code of {path.name}", _code(own), entry["notebook_code"]
        yield from _parameters(path.name, injected, records[step].data["parameters"] | {"run": run.name})
        yield from _prose(path.name, own, notebooks / path.name)
        for i, cell in enumerate(cells):
            yield from _outputs(f"{path.name}, cell {i}", cell, texts)
        for i, (name, image) in enumerate(_images(own)):
            pictures[step, f"figure {i}, {name}, in {path.name}"] = _alike(image, _drawn(records, name)[1])
            shown.add((step, name))
    saved = sorted(path.name for path in run.path.glob("figures/*"))
    yield "figures that are shown", sorted(f"{name}.png" for _, name in shown), saved
    for step, name in sorted(shown):
        image = (run.path / "figures" / f"{name}.png").read_bytes() if f"{name}.png" in saved else b""
        pictures[step, f"figures/{name}.png"] = _alike(image, _drawn(records, name)[0])
    yield from _judged(pictures, records)


def _executed(run: Run) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Every executed notebook with its step, and what the journal says of it."""
    for step, entry in run.journal.items():
        yield from ((step, run.path / name, entry) for name in entry["files"] if name.startswith("notebooks/"))


def _source(cell: Mapping[str, Any]) -> str:
    return "".join(cell["source"])


def _code(cells: Sequence[Mapping[str, Any]]) -> str:
    return sha256_text(canonical_json([_source(cell) for cell in cells if cell["cell_type"] == "code"]))


def _parameters(name: str, injected: Sequence[Mapping[str, Any]], must: dict[str, Any]) -> Iterator[Check]:
    """What the cell of injected parameters assigns; of the run's folder its `<cycle>/<run>`, as the rest moves."""
    nodes = [node for cell in injected for node in ast.parse(_source(cell)).body]
    found = {ast.unparse(n.targets[0]): ast.literal_eval(n.value) for n in nodes if isinstance(n, ast.Assign)}
    found["run"] = "/".join(Path(found.get("run", "")).parts[-2:])
    yield f"assignments in the parameters of {name}", len(found), len(nodes)
    for section in must | found:
        yield f"parameters in {name}: {section}", found.get(section), must.get(section)


def _prose(name: str, own: Sequence[Mapping[str, Any]], source: Path) -> Iterator[Check]:
    """Every Markdown cell against that of the notebook itself, where this has the same code."""
    cells = json.loads(source.read_text(encoding="utf-8"))["cells"] if source.exists() else []
    kinds = [cell["cell_type"] for cell in own if cell["cell_type"] not in {"code", "markdown"}]
    yield f"other cells and attachments of {name}", kinds + [c["attachments"] for c in own if c.get("attachments")], []
    if _code(cells) != _code(own):
        yield f"Markdown cells of {name}", NOT_CHECKED, NOT_CHECKED
        return
    for stated, must in zip_longest(map(_source, own), map(_source, cells), fillvalue="no cell"):
        yield f"cell of {name}", *first_difference(stated, must)


def _outputs(where: str, cell: Mapping[str, Any], texts: Mapping[str, str]) -> Iterator[Check]:
    """Every output of a code cell; one that names functions of TEXTS may show only what these make."""
    source, outputs = _source(cell), cell.get("outputs", [])
    asked = TEXTS.keys() & set(re.findall(r"\w+", source)) or texts
    named = {name: text for name, text in texts.items() if name in asked}
    for output in outputs:
        data = {kind: "".join(value) for kind, value in output.get("data", {}).items()}
        plain, beside = data.pop("text/plain", ""), BESIDE.get(next(iter(data), ""), "")
        match list(data):
            case ["text/markdown"]:
                yield f"output of {where}", *_nearest(data["text/markdown"], named)
            case ["image/png"]:
                yield f"{where} shows a figure", bool(_figure_of(cell)), True
            case [kind] if kind == WIDGET:
                pass
            case other:
                yield f"output of {where}, which is made from no record,", other or output["output_type"], None
        yield f"text {plain!r} of {where} is beside an output", bool(re.fullmatch(beside, plain)), True
    markdown = sum("text/markdown" in output.get("data", {}) for output in outputs)
    yield f"number of Markdown outputs of {where}", markdown, int("Markdown(" in source)


def _nearest(text: str, texts: Mapping[str, str]) -> tuple[str, str]:
    """Twice the same where one of the texts is this one, else the first line that differs from the nearest's."""
    lines = set(text.splitlines())
    if text in texts.values():
        return "shown", "shown"

    def alike(other: str) -> tuple[int, float]:
        return len(lines & set(other.splitlines())), SequenceMatcher(None, text[:200], other[:200]).ratio()

    return first_difference(text, max(texts.values(), key=alike, default=""))


def first_difference(text: str, must: str) -> tuple[str, str]:
    """The first lines in which two texts differ, twice the same where they are equal."""
    pairs = zip_longest(text.splitlines(), must.splitlines(), fillvalue="no line")
    spaces = (repr(text), repr(must)) if text != must else ("same", "same")
    return next(((stated, line) for stated, line in pairs if stated != line), spaces)


# ---------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------


def _figure_of(cell: Mapping[str, Any]) -> str:
    """The name under which a cell saves the figure that it shows; empty where it saves none."""
    found = re.search(r'save_figure\(.*"(\w+)"\)', _source(cell))
    return found[1] if found else ""


def _images(cells: Sequence[Mapping[str, Any]]) -> list[tuple[str, bytes]]:
    """Every embedded picture with the name of its figure."""
    data = [(cell, output.get("data", {})) for cell in cells for output in cell.get("outputs", ())]
    images = [(cell, "".join(kinds["image/png"])) for cell, kinds in data if "image/png" in kinds]
    return [(_figure_of(cell), base64.b64decode(image)) for cell, image in images]


def _drawn(records: Records, name: str) -> tuple[bytes, bytes]:
    """A figure as it is saved and as it is embedded; empty where there is none of this name."""
    values = _taken(records, FIGURES[name]) if name in FIGURES else None
    return (b"", b"") if values is None else _png(name, *map(tuple, values))


@lru_cache(maxsize=32)
def _png(name: str, *rows: tuple[Any, ...]) -> tuple[bytes, bytes]:
    figure, saved = FIGURES[name][0](*rows), io.BytesIO()
    figure.savefig(saved, format="png", dpi=150, metadata={"Software": None})  # as Step.save_figure does
    return saved.getvalue(), figure._repr_png_()


def _alike(picture: bytes, drawn: bytes) -> bool | None:
    """Whether two PNG files have the same pixels; None where nothing was drawn to compare with."""
    if not drawn or picture == drawn:
        return bool(drawn) or None
    try:
        return np.array_equal(imread(io.BytesIO(picture)), imread(io.BytesIO(drawn)))
    except (OSError, SyntaxError, ValueError):  # what is no picture
        return False


def _judged(pictures: Mapping[tuple[str, str], bool | None], records: Records) -> Iterator[Check]:
    """Every picture: that of the records, another one, or NOT_CHECKED where figures come out otherwise here.

    They come out alike with the same matplotlib on the same processors, and where any one of the run's does.
    """
    here = mpl.__version__, platform.machine()
    for (step, what), same in pictures.items():
        made = records[step].data["environment"]
        sure = True in pictures.values() or (made["packages"].get("matplotlib"), made["cpu"]) == here
        must = "that of the records"
        other = "another one" if sure and same is not None else NOT_CHECKED
        yield what, must if same else other, NOT_CHECKED if not same and other == NOT_CHECKED else must
