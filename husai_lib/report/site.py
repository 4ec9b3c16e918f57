"""The report: a front page of all cycles, a page for each cycle, its notebooks and the documentation, as one website.

`webpages` turns everything into safe HTML. Quarto puts it into its own layout where it is installed, otherwise the
template `page.html` does, with the same pages, order and titles. Text from data sets, models and notebook outputs is
not trusted: it reaches a page escaped or through an allow-list, and no page loads anything from outside.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from nbconvert.filters import strip_ansi

from husai_lib.decisions import gates
from husai_lib.errors import EvidenceError, HusaiError
from husai_lib.evidence.rows.base import IMPORTED
from husai_lib.evidence.rows.decided import GateRow
from husai_lib.evidence.runs import Run, find_imports, find_run, find_runs
from husai_lib.files import REPOSITORY, explained, sha256_file, write_json, write_text
from husai_lib.report import tables
from husai_lib.report.webpages import (
    DATA,
    TEMPLATES,
    Page,
    document_page,
    markdown_to_html,
    notebook_page,
    notice,
    quarto_source,
)

SETTINGS = REPOSITORY / "_quarto.yml"
ABOUT = "site.json"
"""What a site was made from: renderer, run on the front page, hashes of all pages and of each run's manifest."""
TITLE = "HUSAI report: all cycles"
Banner = Callable[[Run], str]
"""A warning in Markdown for the top of every page of a run; empty if there is none."""
SHOWN = {"gates", "candidates", "earlier_gates", "earlier_groups", "earlier_members", "caveats"}
"""Tables that say what a cycle is about."""


def no_banner(_: Run) -> str:
    """No warning, whatever the run."""
    return ""


def render(evidence: Path, out: Path, run: str | None = None, banner: Banner = no_banner) -> Path:
    """Render the report of `evidence` into the folder `out` and return its front page.

    The front page begins with `run`, a name that `find_run` accepts; by default the newest complete run, or the newest
    if none is complete. The site is built in a temporary folder and then moved, so a failed render leaves the old site
    in place. If `evidence` belongs to this checkout, its `index.md` is written too.
    Raises HusaiError if Quarto fails, EvidenceError if `out` holds anything but an earlier site or if there is no run,
    and IntegrityError if a record was changed.
    """
    if out.exists() and not (out.is_dir() and ((out / "index.html").exists() or not any(out.iterdir()))):
        raise EvidenceError(f"{out} holds other files than a report; name an empty or new folder with --out")
    chosen = chosen_run(evidence, run)
    renderer = "quarto" if shutil.which("quarto") else "nbconvert"
    with explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="husai-site-", dir=out.parent) as temporary:
            made = made_site(Path(temporary) / "site", evidence, chosen, renderer, banner)
            about = {"renderer": renderer, "front": chosen.name, "runs": manifests_of(all_runs(evidence))}
            write_json(made / ABOUT, about | {"pages": hashes_of(made)})
            if out.exists():
                out.rename(Path(temporary) / "old")
            made.rename(out)
        if evidence.resolve() == REPOSITORY / "evidence":
            write_text(REPOSITORY / "index.md", front_page(chosen, banner))
    return out / "index.html"


def chosen_run(evidence: Path, name: str | None = None) -> Run:
    """The run that the front page begins with: the named one, else the newest complete one, else the newest."""
    complete = [found for found in find_runs(evidence) if found.is_complete]
    return complete[-1] if name is None and complete else find_run(evidence, name)


def made_site(folder: Path, evidence: Path, chosen: Run, renderer: str, banner: Banner = no_banner) -> Path:
    """Write records, figures and pages into `folder` and return the site, which Quarto puts in a subfolder."""
    for run in all_runs(evidence):
        for path in [*_data_files(run), *run.path.glob("figures/*.png")]:
            _copy(path, folder / "evidence" / run.name / path.relative_to(run.path))
    for path in (SETTINGS.parent / "docs").glob("*.png"):
        _copy(path, folder / "docs" / path.name)
    if renderer == "quarto":
        write_sources(folder, evidence, chosen, banner)
        return _render_with_quarto(folder)
    pages = [*_pages(evidence, chosen, banner)]
    unfinished = {run.name for run in find_runs(evidence) if not run.is_complete}
    script = (DATA / "site.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    about: dict[str, Any] = {
        "script": script,
        "script_hash": f"sha256-{digest}",
        "chosen": chosen.name,
        "unfinished": unfinished,
    }
    about["index"] = [(quote(page.path), page.title, page.run, page.headings) for page in pages]
    for page in pages:
        root = "../" * page.path.count("/")
        text = TEMPLATES.get_template("page.html").render(page=page, pages=pages, root=root, **about)
        write_text(folder / page.path, text)
    _write_tables(folder, evidence)
    for name in ("content.css", "site.css"):
        _copy(DATA / name, folder / name)
    return folder


def write_sources(project: Path, evidence: Path, chosen: Run, banner: Banner = no_banner) -> None:
    """Write every page into `project` as a document that Quarto may read, and every table as CSV."""
    for page in _pages(evidence, chosen, banner):
        write_text((project / page.path).with_suffix(".qmd"), quarto_source(page))
    _write_tables(project, evidence)


def front_page(chosen: Run, banner: Banner = no_banner) -> str:
    """The front page, for any renderer of Markdown: the verdict of one run, then a line for every complete cycle."""
    runs = all_runs(chosen.path.parent.parent)
    complete = [run.name for run in runs if run.is_complete and run.path.parent.name != IMPORTED]
    return TEMPLATES.get_template("index.md.jinja").render(
        title=TITLE,
        banner=notice(banner(chosen)),
        newest=complete[0] if complete else chosen.name,
        chosen=_facts(chosen),
        cycles=[_facts(run) for run in runs if run.is_complete or run.name == chosen.name],
    )


def cycle_page(run: Run, banner: Banner = no_banner) -> Page:
    """The page of one run or import; every number comes from a verified record."""
    facts = _facts(run)
    body = TEMPLATES.get_template("cycle.md.jinja").render(
        banner=notice(banner(run)),
        figures={path.stem for path in run.path.glob("figures/*.png")},
        notebooks=[notebook_page(path, run.name) for path in _notebooks(run)],
        files=[path.relative_to(run.path).as_posix() for path in _data_files(run)],
        manifest=manifests_of([run])[run.name],
        **facts,
    )
    return Page(f"cycles/{run.name}.html", f"{facts['name']}: {facts['state']}", markdown_to_html(body), run.name)


def _facts(run: Run) -> dict[str, Any]:
    """What the front page and the page of a cycle say about a run or an import, from its verified records."""
    records = {step: run.record(step) for step in run.journal}
    tabled = {name: one.table(name) for one in records.values() for name in one.data["tables"] if name in SHOWN}
    imported = run.path.parent.name == IMPORTED
    gate_rows = tabled.get("gates", []) + [
        GateRow(**row.model_dump(exclude={"stated", "threshold"}), metric="", threshold=row.threshold or 0.0,
                verdict=row.stated, source=IMPORTED)
        for row in tabled.get("earlier_gates", []) if row.gate in gates.RULES
    ]  # fmt: skip
    of_parts = [row.required for row in gate_rows if row.gate in gates.EXTERNAL]
    repeats = bool(of_parts) and all(of_parts)  # where each part is required, the joint gate only repeats them
    judged = [row for row in gate_rows if row.gate != "external" or not repeats]
    verdict = gates.verdict_sentence(judged) if judged else "No verdict: no gate was judged."
    state = verdict.partition(":")[0].lower()
    candidates = [row.condition for row in tabled.get("candidates", []) if row.selected]
    candidates += [row.condition for row in tabled.get("earlier_groups", []) if row.rank == 0]
    given = (one.data["parameters"].get("model", {}).get("name") for one in records.values())
    models = [*filter(None, given), *(row.model for row in tabled.get("earlier_members", []))]
    time = max((one.summary["run_id"] or "" for one in records.values() if imported and "run_id" in one.summary),
               default=run.path.name)  # fmt: skip
    return {
        "sweeps": [step for step, one in records.items() if "groups" in one.data["tables"]
                   and step not in ("consistency", "scaling", "confirmation")],
        "run": run, "records": records, "imported": imported, "judged": judged, "verdict": verdict,
        "name": run.path.name if imported else run.path.parent.name,
        "state": f"{state}, as stated there" if imported else state if run.is_complete else "unfinished",
        "joint": next((row for row in gate_rows if row not in judged), None),
        "candidate": candidates[0] if candidates else "none",
        "model": re.sub(r".*/|\.gguf$", "", models[0]) if models else "unknown",
        "date": re.sub(r"run_(....)(..)(..).*", r"\1-\2-\3", time),
        "caveats": len({row.caveat for row in tabled.get("caveats", [])}) if imported else 0,
    }  # fmt: skip


def documents() -> list[Path]:
    """The files of `docs/`, in the order of the sidebar in `_quarto.yml`."""
    sidebar = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    names = [name for entry in sidebar if isinstance(entry.get("contents"), list) for name in entry["contents"]]
    return [(SETTINGS.parent / name).with_suffix(".md") for name in names]


def hashes_of(site: Path) -> dict[str, str]:
    """SHA-256 of every file of a site except the one that holds these hashes."""
    files = (path for path in sorted(site.rglob("*")) if path.is_file() and path != site / ABOUT)
    return {path.relative_to(site).as_posix(): sha256_file(path) for path in files}


def manifests_of(runs: Sequence[Run]) -> dict[str, str]:
    """SHA-256 of every run's manifest, or `unfinished`."""
    return {run.name: sha256_file(run.path / "manifest.json") if run.is_complete else "unfinished" for run in runs}


def all_runs(evidence: Path) -> list[Run]:
    """Every run, newest first, then every import."""
    return [*reversed(find_runs(evidence)), *find_imports(evidence)]


def _pages(evidence: Path, chosen: Run, banner: Banner) -> Iterator[Page]:
    """Every page: the front page, the documentation, then each cycle with its notebooks."""
    yield Page("index.html", TITLE, markdown_to_html(front_page(chosen, banner).split("---\n", 2)[2]))
    yield from map(document_page, documents())
    for run in all_runs(evidence):
        yield cycle_page(run, banner)
        yield from (notebook_page(path, run.name, banner(run)) for path in _notebooks(run))


def _write_tables(folder: Path, evidence: Path) -> None:
    """Every table of every record as CSV, beside the page of its cycle."""
    for run in all_runs(evidence):
        for record in map(run.record, run.journal):
            for name in record.data["tables"]:
                path = folder / "cycles" / run.name / f"{record.step}.{name}.csv"
                write_text(path, tables.csv_table(record.table(name)))


def _notebooks(run: Run) -> list[Path]:
    return sorted(run.path.glob("notebooks/*.ipynb"))


def _data_files(run: Run) -> list[Path]:
    """Records, then the published files; not the transient progress file."""
    published = {path for ending in ("json", "csv", "md") for path in run.path.glob(f"*.{ending}")}
    return sorted(run.path.glob("records/*.json")) + sorted(published - {run.path / "progress.json"})


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def _render_with_quarto(project: Path) -> Path:
    """Render a folder of sources and data as a Quarto project of its own; returns its site."""
    settings = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    del settings["project"]["pre-render"]  # the sources are there
    write_text(project / SETTINGS.name, yaml.safe_dump(settings, sort_keys=False))
    for name in ("quarto.scss", "content.css"):
        _copy(DATA / name, project / (DATA / name).relative_to(SETTINGS.parent))
    command = ["quarto", "render", "--no-execute"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    if done.returncode or not (project / "_site" / "index.html").exists():
        said = strip_ansi(done.stderr).strip() or "it wrote no index.html"
        error = re.search(r"ERROR:.*", said)  # a stack trace may follow
        why = error[0] if error else said.splitlines()[-1]
        raise HusaiError(f"quarto render failed: {why}; fix this, or take quarto off the PATH to use nbconvert")
    return project / "_site"
