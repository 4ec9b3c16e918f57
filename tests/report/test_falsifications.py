"""Planted falsifications, each by a forger who makes every hash, journal and manifest agree: all are found.

Most are planted twice over: whoever changes a record also makes published files, outputs and figures follow from it
(`rewrite`), and whoever changes what is shown leaves the records as they are (`forge_hashes`).
"""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from stand_ins import forge_hashes, notebooks_of, pairs_of, records_of, rewrite, synthetic_run

from husai_lib.decisions import of_run as decisions
from husai_lib.evidence.runs import Run, find_runs
from husai_lib.files import read_json, write_json
from husai_lib.intervals import pwmcc_difference
from husai_lib.report import figures, site
from husai_lib.report.audit import audit_run

Plant = Callable[[Run], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, their notebooks, their cache, and a site made from the runs."""
    folder = tmp_path_factory.mktemp("falsified")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUSAI_CACHE", str(folder / "cache"))
        patch.setattr(shutil, "which", lambda name: None)
        synthetic_run(folder / "evidence")
        site.render(folder / "evidence", folder / "site")
    return folder


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path / "copy" / "cache"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    [run] = find_runs(tmp_path / "copy" / "evidence")
    return run


def problems_of(run: Run) -> list[str]:
    return audit_run(run, notebooks_of(run)).problems


# What a forger does


def in_notebook(stem: str, change: Callable[[Any], None]) -> Plant:
    """Change an executed notebook."""

    def plant(run: Run) -> None:
        path = run.path / "notebooks" / f"{stem}.ipynb"
        notebook = nbformat.read(path, 4)
        change(notebook)
        nbformat.write(notebook, path)
        forge_hashes(run)

    return plant


def cell_of(notebook: Any, said: str) -> Any:
    """The cell whose code says something."""
    return next(cell for cell in notebook.cells if said in cell.source)


def output(stem: str, name: str, change: Callable[[str], str]) -> Plant:
    """Change the Markdown that a cell shows, which calls the function of this name."""

    def edit(notebook: Any) -> None:
        [shown] = cell_of(notebook, name).outputs
        before = shown.data["text/markdown"]
        shown.data["text/markdown"] = change(before)
        assert shown.data["text/markdown"] != before

    return in_notebook(stem, edit)


def swapped(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, 1)


def in_lines(change: Callable[[list[str]], object]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        lines = text.splitlines()
        change(lines)
        return "\n".join(lines)

    return edit


def added(cell: Any) -> Plant:
    return in_notebook("03_frontier", lambda notebook: notebook.cells.append(cell))


def showing(kind: str, text: str) -> Plant:
    """A cell of code that shows something of another kind."""
    return added(new_code_cell("show()", outputs=[new_output("display_data", {kind: text})]))


def beside(text: str) -> Plant:
    """Another text for those who cannot show Markdown."""

    def edit(notebook: Any) -> None:
        cell_of(notebook, "verdict_sentence").outputs[0].data["text/plain"] = text

    return in_notebook("08_gate", edit)


def cleared(stem: str, name: str) -> Plant:
    return in_notebook(stem, lambda notebook: cell_of(notebook, name).outputs.clear())


def without_claim(stem: str, name: str) -> Plant:
    """Remove a cell with what it shows."""
    return in_notebook(stem, lambda notebook: notebook.cells.remove(cell_of(notebook, name)))


def source(stem: str, old: str, new: str) -> Plant:
    def edit(notebook: Any) -> None:
        cell = cell_of(notebook, old)
        cell.source = cell.source.replace(old, new)

    return in_notebook(stem, edit)


def picture(change: Callable[[bytes], bytes]) -> Plant:
    def edit(notebook: Any) -> None:
        [shown] = cell_of(notebook, "figures.controls").outputs
        shown.data["image/png"] = base64.b64encode(change(base64.b64decode(shown.data["image/png"]))).decode()

    return in_notebook("07_stress", edit)


def another_first(notebook: Any) -> None:
    """A second picture in the cell of a figure."""
    shown = cell_of(notebook, "figures.controls").outputs
    image = base64.b64encode(figures.stability([])._repr_png_()).decode()
    shown.insert(0, new_output("display_data", {"image/png": image}))


def record(step: str, change: Callable[[dict[str, Any]], object]) -> Plant:
    """Change a record and all that shows or publishes it."""
    return lambda run: rewrite(run, step, lambda data: (change(data), None)[1])


def value(step: str, table: str, column: str, new: Any, row: int = 0) -> Plant:
    """Change one value of a table."""

    def change(data: dict[str, Any]) -> None:
        assert data["tables"][table][row][column] != new
        data["tables"][table][row][column] = new

    return record(step, change)


def published(name: str, change: Callable[[Any], object]) -> Plant:
    """Change a file under a well-known name."""

    def plant(run: Run) -> None:
        content = read_json(run.path / name)
        change(content)
        write_json(run.path / name, content)
        forge_hashes(run)

    return plant


def swap_winner(data: dict[str, Any]) -> None:
    first, second = data["tables"]["candidates"]
    first["selected"], second["selected"] = second["selected"], first["selected"]


def remove_seed(data: dict[str, Any]) -> None:
    """The last seed of the last condition, everywhere in the record."""
    gone = data["tables"]["members"].pop()
    named = {"condition": gone["condition"], "seed": gone["seed"]}
    data["tables"]["probes"] = [p for p in data["tables"]["probes"] if {key: p[key] for key in named} != named]
    next(group for group in data["tables"]["groups"] if group["condition"] == gone["condition"])["n_seeds"] -= 1


def add_seed(data: dict[str, Any]) -> None:
    """A seed that does as well as the last one, everywhere in the record."""
    last = data["tables"]["members"][-1]
    data["tables"]["members"].append(last | {"seed": 3})
    ours = [p for p in data["tables"]["probes"] if (p["condition"], p["seed"]) == (last["condition"], last["seed"])]
    data["tables"]["probes"] += [probe | {"seed": 3} for probe in ours]
    data["tables"]["groups"][-1]["n_seeds"] += 1


def rename(data: dict[str, Any]) -> None:
    """A condition under another's name, in every table of the record."""
    names = {"topk": "standard", "standard": "topk"}
    for rows in data["tables"].values():
        for row in rows:
            column = "of" if "of" in row else "condition"
            row[column] = names[row[column]]


def widen(data: dict[str, Any]) -> None:
    row = data["tables"]["groups"][0]
    row["pwmcc_low"] -= 0.15  # and the upper end stays


def of_another_run(data: dict[str, Any]) -> None:
    """A record that agrees with itself, of SAEs that reconstruct better than those that were selected from."""
    for row in data["tables"]["members"]:
        row["explained_variance"] += 0.01


def other_weights(data: dict[str, Any]) -> None:
    """The key of one SAE beside the numbers of another."""
    first, second = data["tables"]["members"][:2]
    first["key"] = second["key"]


def passing_transcoder(data: dict[str, Any]) -> None:
    data["tables"]["controls"][2] |= {"delta": 0.1, "delta_low": 0.0, "delta_high": 0.2}


def judged_again(run: Run) -> None:
    """Gates and verdict that follow from the records as they are now."""
    policy = decisions.policy_of(records_of(run).__getitem__)

    def change(data: dict[str, Any]) -> None:
        data["tables"]["gates"] = [row.model_dump() for row in policy.gates]
        data["summary"] |= {"pass_all": policy.pass_all, "verdict": policy.verdict}

    rewrite(run, "gate", change)


def less_alike(control: str, by: float = 0.2, *, pairs: bool = False) -> Plant:
    """A control moved with its delta and its bounds, the gate that then passes, and at will the pairs below it."""

    def change(data: dict[str, Any]) -> None:
        row = next(row for row in data["tables"]["controls"] if row["control"] == control)
        sign = -1 if control == "transcoder" else 1
        row["control_value"] -= by
        for column in ("delta", "delta_low", "delta_high"):
            row[column] += sign * by
        for pair in data["tables"]["pairs"]:
            pair["pwmcc"] -= by if pairs and pair["of"] == control else 0

    def plant(run: Run) -> None:
        rewrite(run, "stress", change)
        judged_again(run)

    return plant


def more_alike(data: dict[str, Any]) -> None:
    """The PW-MCC of a group that was not selected, with its interval and what is corrected by its null."""
    row = data["tables"]["groups"][1]
    for column in ("pwmcc", "pwmcc_low", "pwmcc_high"):
        row[column] += 0.1
    row["pwmcc_corrected"] = (row["pwmcc"] - row["null_gaussian"]) / (1 - row["null_gaussian"])


def without_pair(of: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        data["tables"]["pairs"].remove(next(pair for pair in data["tables"]["pairs"] if pair["of"] == of))

    return change


def again(data: dict[str, Any]) -> None:
    """A pair that is there twice."""
    data["tables"]["pairs"].append(data["tables"]["pairs"][0])


def never_published(run: Run) -> None:
    """The gate's file, from the folder and from all that names it."""
    (run.path / "release_policy.json").unlink()
    path = run.path / "records" / "gate.json"
    data = read_json(path)
    del data["published"]["release_policy.json"]
    write_json(path, data)
    entry = run.journal["gate"]
    run.note_step("gate", entry | {"files": {n: h for n, h in entry["files"].items() if n != "release_policy.json"}})
    forge_hashes(run)


def other_figure(run: Run) -> None:
    """The saved figure and the embedded one are of other numbers, and agree with each other."""
    rows = [
        row.model_copy(update={"delta": 0.5, "delta_low": 0.4, "delta_high": 0.6})
        for row in records_of(run)["stress"].table("controls")
    ]
    figure = figures.controls(rows)
    figure.savefig(run.path / "figures" / "controls.png", format="png", dpi=150, metadata={"Software": None})
    picture(lambda _: figure._repr_png_())(run)


def another_saved(run: Run) -> None:
    """One figure of the run under the name of the other."""
    shutil.copy(run.path / "figures" / "frontier.png", run.path / "figures" / "controls.png")
    forge_hashes(run)


def extra_figure(run: Run) -> None:
    shutil.copy(run.path / "figures" / "frontier.png", run.path / "figures" / "better.png")
    forge_hashes(run)


def extra_notebook(run: Run) -> None:
    shutil.copy(run.path / "notebooks" / "03_frontier.ipynb", run.path / "notebooks" / "04_more.ipynb")
    forge_hashes(run)


def edited_csv(run: Run) -> None:
    path = run.path / "candidate_table.csv"
    path.write_text(path.read_text().replace("topk", "gated", 1))
    forge_hashes(run)


def edited_parameters(run: Run) -> None:
    """A threshold in the parameters of run and record, with gates that follow from it, but not in the notebook."""
    parameters = read_json(run.path / "parameters.json")
    parameters["gates"]["max_ood_drop"] = 0.2
    write_json(run.path / "parameters.json", parameters)

    def change(data: dict[str, Any]) -> None:
        data["parameters"]["gates"]["max_ood_drop"] = 0.2
        for row in data["tables"]["gates"]:
            row["threshold"] = 0.2 if row["gate"] == "ood" else row["threshold"]

    rewrite(run, "gate", change)


def turn_everything(data: dict[str, Any]) -> None:
    """Every gate passes, and the summary says so."""
    for row in data["tables"]["gates"]:
        row["verdict"] = "pass"
    data["summary"] |= {"pass_all": True, "verdict": "Releasable: all 7 required gates pass."}


def earlier(data: dict[str, Any]) -> None:
    data["finished_utc"] = "2020-01-01T00:00:00+00:00"


PLANTED: dict[str, Plant] = {
    # what an executed notebook shows
    "a digit of a table": output("03_frontier", "groups_table", swapped("0.600", "0.700")),
    "a digit of a table made from several": output("03_frontier", "external_table", swapped("+0.0", "+0.1")),
    "a digit of a sentence": output("03_frontier", "matched_sentence", swapped("6 of 6", "9 of 9")),
    "a count in a sentence": output("03_frontier", "trained_sentence", swapped("2 conditions", "4 conditions")),
    "a name in a sentence": output("07_stress", "candidate_sentence", swapped("topk", "gated")),
    "a verdict in bold": output("08_gate", "verdict_sentence", swapped("Not releasable", "Releasable")),
    "a verdict of one gate": output("08_gate", "gates_table", swapped("**FAIL**", "pass")),
    "a verdict in the report alone": output("09_report", "verdict_sentence", swapped("**Not r", "**R")),
    "a threshold that is shown": output("08_gate", "gates_table", swapped(" 0.1 |", " 0.5 |")),
    "a unit in a heading": output("03_frontier", "members_table", swapped("(SD of null)", "(%)")),
    "a condition in a table": output("03_frontier", "members_table", swapped("topk", "gated")),
    "a removed line": output("06_selection", "candidates_table", in_lines(lambda lines: lines.pop())),
    "a doubled line": output("03_frontier", "members_table", in_lines(lambda lines: lines.append(lines[-1]))),
    "an added line": output("03_frontier", "members_table", lambda text: f"{text}\n| gated | 0 | 0.99 |"),
    "lines in another order": output("06_selection", "candidates_table", in_lines(lambda x: x.insert(2, x.pop()))),
    "a winner under another rule": output("06_selection", "sensitivity_table", swapped("frontier/topk", "n/a")),
    "a sentence added to a table": output("08_gate", "gates_table", lambda text: f"{text}\n\nSo it is good."),
    "a caveat deleted": output("09_report", "stories_sentence", swapped("**cannot be compared with", "match")),
    "a claim of another cell": output(
        "08_gate", "gates_table", lambda _: "CE-Bench scores on offline stories **cannot be compared with published "
        "ones**: other stories, other number.",
    ),
    "a table that is said to be empty": output("07_stress", "ood_table", lambda _: "No shifted set was probed."),
    "a sentence that is left out": output("07_stress", "ood_sentence", lambda _: ""),
    "a sentence without a record": showing("text/markdown", "PW-MCC is **0.99**."),
    "a page of HTML": showing("text/html", "<b>PW-MCC is 0.99</b>"),
    "a drawing": showing("image/svg+xml", "<svg/>"),
    "a printed line": added(new_code_cell("x", outputs=[new_output("stream", name="stdout", text="PW-MCC 0.99\n")])),
    "plain text": showing("text/plain", "'PW-MCC is 0.99'"),
    "a progress bar that claims": added(
        new_code_cell("x", outputs=[new_output("display_data", {"application/vnd.jupyter.widget-view+json": {},
                                                                "text/plain": "PW-MCC 0.99: 1%|#| 1/9 [0]"})])
    ),
    "plain text beside Markdown": beside("**Releasable**"),
    "an output removed": cleared("08_gate", "verdict_sentence"),
    "an output of the injected parameters": in_notebook(
        "08_gate", lambda notebook: cell_of(notebook, "# Parameters").outputs.append(
            new_output("display_data", {"text/markdown": "PW-MCC is **0.99**."})
        ),
    ),
    "a figure before the true one": in_notebook("07_stress", another_first),
    "a figure removed": cleared("07_stress", "figures.controls"),
    "a changed cell of prose": source("08_gate", "The threshold is 0.5.", "The threshold is 0.4."),
    "an added cell of prose": added(new_markdown_cell("PW-MCC is 0.99.")),
    "a raw cell": added(nbformat.v4.new_raw_cell("<b>PW-MCC is 0.99</b>")),
    "an injected parameter": source("08_gate", "'max_ood_drop': 0.1", "'max_ood_drop': 0.5"),
    "an injected run": source("08_gate", "run_20", "run_19"),
    "no injected parameters": without_claim("08_gate", "# Parameters"),
    # figures
    "an embedded figure": picture(lambda _: figures.stability([])._repr_png_()),
    "an embedded figure that is none": picture(lambda _: b"none"),
    "a figure drawn from other numbers": other_figure,
    "a figure under another's name": another_saved,
    "a figure that no notebook shows": extra_figure,
    # records, with all that follows from them by mere copying
    "a record of another run": record("frontier", of_another_run),
    "a removed seed": record("frontier", remove_seed),
    "an added seed": record("frontier", add_seed),
    "conditions that change names": record("frontier", rename),
    "a widened interval": record("frontier", widen),
    "a narrowed interval over tasks": value("stress", "controls", "tasks_high", 0.0501, row=3),
    "a hash of weights": value("frontier", "members", "weights_sha256", "0" * 64),
    "a key of other weights": record("frontier", other_weights),
    "a raw AUC for one condition": value("frontier", "probes", "llm_auc", 0.65),
    "a threshold": value("gate", "gates", "threshold", 0.5, row=3),
    "a threshold in all parameters": edited_parameters,
    "a turned verdict": value("gate", "gates", "verdict", "pass", row=2),
    "all verdicts turned": record("gate", turn_everything),
    "a gate that is not required": value("gate", "gates", "required", False, row=2),
    "a winner swapped": record("selection", swap_winner),
    "another seed represents": record("selection", lambda data: data["summary"]["selected"].update(seed=2)),
    "a random model that agrees less": less_alike("random_model"),
    "a transcoder that agrees more": less_alike("transcoder", -0.2),
    "random decoders that agree less": less_alike("random_decoder", 0.1),
    "random decoders that agree less in their pairs": less_alike("random_decoder", 0.1, pairs=True),
    "a group whose seeds agree more": record("frontier", more_alike),
    "a pair left out": record("frontier", without_pair("standard")),
    "a pair of a control left out": record("stress", without_pair("transcoder")),
    "a pair twice": record("stress", again),
    **{f"{key} of the selection left out": record("selection", lambda data, key=key: data["summary"].pop(key))
       for key in ("dropped", "pooled", "counts")},
    "a control left out": record("stress", lambda data: data["tables"]["controls"].pop(2)),
    "a control that passes": record("stress", passing_transcoder),
    "a note that excuses": value("gate", "gates", "note", "accepted as it is", row=2),
    "counts of texts": value("activations", "sources", "rows", 4000),
    "a record older than its inputs": record("gate", earlier),
    # published files
    "selected_candidate.json": published("selected_candidate.json", lambda data: data["selected"].update(seed=7)),
    "pareto_front.json": published("pareto_front.json", lambda data: data["groups"][0].update(joint_score=2.0)),
    "selection_summary.json": published("selection_summary.json", lambda data: data.update(reason="It is best.")),
    "release_policy.json": published("release_policy.json", lambda data: data.update(pass_all=True)),
    "results.json": published("results.json", lambda data: data["gate"]["gates"][2].update(verdict="pass")),
    "candidate_table.csv": edited_csv,
    "release_policy.json never published": never_published,
    "a notebook of no step": extra_notebook,
}  # fmt: skip


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED.keys())
def test_a_falsification_is_found_though_all_hashes_agree(run: Run, plant: Plant) -> None:
    plant(run)
    problems = problems_of(run)
    assert problems
    assert not any("manifest.json" in problem or "SHA-256 of" in problem for problem in problems)


def test_nothing_is_found_where_nothing_was_planted(run: Run) -> None:
    assert problems_of(run) == []
    forge_hashes(run)
    assert problems_of(run) == []
    rewrite(run, "frontier", lambda data: None)
    assert problems_of(run) == []


def test_pairs_moved_with_all_that_follows_are_found_through_the_weights(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only through them: a machine without the weights counts what it cannot check."""
    less_alike("transcoder", -0.2, pairs=True)(run)
    gates = {row.gate: row.verdict for row in records_of(run)["gate"].table("gates")}
    assert gates["transcoder"] == "pass"
    problems = problems_of(run)
    assert len(problems) == 3
    assert all(problem.startswith("pwmcc of stress/pairs transcoder") for problem in problems)
    monkeypatch.setenv("HUSAI_CACHE", str(run.path / "nowhere"))
    audit = audit_run(run, notebooks_of(run))
    assert audit.problems == []
    assert audit.not_here >= 3


def test_a_forged_control_lies_where_its_pairs_would_put_it_by_hand(run: Run) -> None:
    """The forger's rows are right but for the pairs: the same jackknife with the control moved by 0.2."""
    less_alike("transcoder", -0.2)(run)
    row = next(row for row in records_of(run)["stress"].table("controls") if row.control == "transcoder")
    moved = pwmcc_difference(pairs_of("transcoder") + 0.2, pairs_of("topk"))
    assert (row.delta, row.delta_low, row.delta_high) == pytest.approx((moved.mean, moved.low, moved.high))
    found = {problem.partition(" is ")[0] for problem in problems_of(run)}
    assert found == {f"{column} of stress/controls transcoder"
                     for column in ("control_value", "delta", "delta_low", "delta_high")}  # fmt: skip


def test_a_claim_without_a_record_is_told_beside_the_nearest_one(run: Run) -> None:
    PLANTED["a digit of a sentence"](run)
    [problem] = problems_of(run)
    assert problem.endswith(
        "is '9 of 9 SAEs have an L0 within 10 % of the target k.' but must be "
        "'6 of 6 SAEs have an L0 within 10 % of the target k.'"
    )


def test_a_notebook_with_other_code_is_counted_as_not_checked_and_may_lack_what_others_show(run: Run) -> None:
    without_claim("07_stress", "ood_sentence")(run)
    audit = audit_run(run, notebooks_of(run))
    random_decoders = 3
    assert (audit.problems, audit.not_checked) == ([], 1 + random_decoders)


# The site


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def edited_page(run: Run, pages: Path) -> None:
    edit(pages / "index.html", "Not releasable", "Releasable")


def edited_page_and_hashes(run: Run, pages: Path) -> None:
    edited_page(run, pages)
    about = read_json(pages / site.ABOUT)
    write_json(pages / site.ABOUT, about | {"pages": site._hashes(pages)})


def removed_page(run: Run, pages: Path) -> None:
    next(pages.rglob("07_stress.html")).unlink()


def added_page(run: Run, pages: Path) -> None:
    shutil.copy(pages / "index.html", pages / "more.html")


def edited_copy_of_a_record(run: Run, pages: Path) -> None:
    edit(next(pages.rglob("gate.json")), '"pass_all": false', '"pass_all": true')


def newer_record(run: Run, pages: Path) -> None:
    rewrite(run, "frontier", lambda data: None)  # the same numbers, written later
    edit(run.path / "manifest.json", '"finished_utc": "2', '"finished_utc": "3')


def newer_run(run: Run, pages: Path) -> None:
    shutil.copytree(run.path, run.path.with_name("run_30000101T000000Z"))


def removed_run(run: Run, pages: Path) -> None:
    newer_run(run, pages)
    shutil.rmtree(run.path)


def rewritten_renderer(run: Run, pages: Path) -> None:
    edited_page_and_hashes(run, pages)
    write_json(pages / site.ABOUT, read_json(pages / site.ABOUT) | {"renderer": "quarto"})


def no_account(run: Run, pages: Path) -> None:
    (pages / site.ABOUT).unlink()


def another_account(run: Run, pages: Path) -> None:
    write_json(pages / site.ABOUT, [])


ON_SITE = (edited_page, edited_page_and_hashes, removed_page, added_page, edited_copy_of_a_record, newer_record,
           newer_run, removed_run, rewritten_renderer, no_account, another_account)  # fmt: skip


@pytest.mark.parametrize("plant", ON_SITE, ids=lambda plant: plant.__name__)
def test_a_site_that_is_not_of_its_records_is_found(run: Run, plant: Callable[[Run, Path], None]) -> None:
    evidence = run.path.parent.parent
    pages = evidence.parent / "site"
    clean = site.check_site(pages, evidence)
    assert (clean.problems, clean.not_checked) == ([], 0)
    plant(run, pages)
    assert site.check_site(pages, evidence).problems


def test_an_index_that_was_edited_is_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = run.path.parent.parent
    monkeypatch.setattr(site, "REPOSITORY", evidence.parent)
    site.render(evidence, evidence.parent / "site")
    assert site.check_index(evidence).problems == []
    edit(evidence.parent / "index.md", "**Not releasable**", "**Releasable**")
    [problem] = site.check_index(evidence).problems
    assert "index.md" in problem
    assert "Releasable" in problem
    assert site.check_index(evidence / "smoke").checked == 0
