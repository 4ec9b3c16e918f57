"""The report: a front page made from the records of one run, and a website over all runs and the documentation.

Quarto renders the website where it is installed, otherwise `webpages` does, with the same pages, order and titles.
Text from data sets, models and notebook outputs is not trusted: it reaches a page escaped or through an allow-list, and
no page loads anything from outside.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import nbformat
import yaml
from nbconvert.filters import strip_ansi

from husai_lib.errors import EvidenceError, HusaiError
from husai_lib.evidence.runs import Run, find_run, find_runs
from husai_lib.files import REPOSITORY, explained, sha256_file, write_json, write_text
from husai_lib.report.webpages import (
    DATA,
    TEMPLATES,
    Page,
    document_page,
    markdown_to_html,
    notebook_page,
    notice,
    passive_notebook,
)

SETTINGS = REPOSITORY / "_quarto.yml"
ABOUT = "site.json"
"""What a site was made from: renderer, run on the front page, hashes of all pages and of each run's manifest."""
Banner = Callable[[Run], str]
"""A warning in Markdown for the top of every page of a run; empty if there is none."""


def no_banner(_: Run) -> str:
    """No warning, whatever the run."""
    return ""


def render(evidence: Path, out: Path, run: str | None = None, banner: Banner = no_banner) -> Path:
    """Render the report of `evidence` into the folder `out` and return its front page.

    The front page shows `run`, a name that `find_run` accepts; by default the newest complete run, or the newest if
    none is complete. The site is built in a temporary folder and then moved, so a failed render leaves the old site in
    place. If `evidence` belongs to this checkout, its `index.md` is written too, so that `quarto render` works there.
    Raises HusaiError if Quarto fails, EvidenceError if `out` holds anything but an earlier site or if there is no run,
    and IntegrityError if a record of the run on the front page was changed.
    """
    if out.exists() and not (out.is_dir() and ((out / "index.html").exists() or not any(out.iterdir()))):
        raise EvidenceError(f"{out} holds other files than a report; name an empty or new folder with --out")
    runs = find_runs(evidence)
    complete = [found for found in runs if found.is_complete]
    chosen = complete[-1] if run is None and complete else find_run(evidence, run)
    renderer = "quarto" if shutil.which("quarto") else "nbconvert"
    with explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="husai-site-", dir=out.parent) as temporary:
            made = made_site(Path(temporary) / "site", runs, chosen, renderer, banner)
            about = {"renderer": renderer, "front": chosen.name, "runs": manifests_of(runs), "pages": hashes_of(made)}
            write_json(made / ABOUT, about)
            if out.exists():
                out.rename(Path(temporary) / "old")
            made.rename(out)
        if evidence.resolve() == REPOSITORY / "evidence":
            write_text(REPOSITORY / "index.md", front_page(chosen, banner))
    return out / "index.html"


def made_site(folder: Path, runs: Sequence[Run], chosen: Run, renderer: str, banner: Banner = no_banner) -> Path:
    """Write records, figures and pages into `folder` and return the site, which Quarto puts in a subfolder."""
    for run in runs:
        for path in [*_data_files(run), *run.path.glob("figures/*.png")]:
            _copy(path, folder / "evidence" / run.name / path.relative_to(run.path))
    for path in (SETTINGS.parent / "docs").glob("*.png"):
        _copy(path, folder / "docs" / path.name)
    if renderer == "quarto":
        return _render_with_quarto(folder, runs, chosen, banner)
    _render_with_nbconvert(folder, runs, chosen, banner)
    return folder


def front_page(run: Run, banner: Banner = no_banner) -> str:
    """The front page of one run, for any renderer of Markdown; every number comes from a verified record."""
    complete = [found.name for found in find_runs(run.path.parent.parent) if found.is_complete]
    return TEMPLATES.get_template("index.md.jinja").render(
        title=_title(run),
        run=run,
        newest=complete[-1] if complete else run.name,
        banner=notice(banner(run)),
        records={step: run.record(step) for step in run.journal},
        figures={path.stem for path in run.path.glob("figures/*.png")},
        notebooks=[notebook_page(path, run.name) for path in _notebooks(run)],
        files=[path.relative_to(run.path).as_posix() for path in _data_files(run)],
    )


def documents() -> list[Path]:
    """The files of `docs/`, in the order of the sidebar in `_quarto.yml`."""
    sidebar = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    return [SETTINGS.parent / name for entry in sidebar for name in entry.get("contents", [])]


def hashes_of(site: Path) -> dict[str, str]:
    """SHA-256 of every file of a site except the one that holds these hashes."""
    files = (path for path in sorted(site.rglob("*")) if path.is_file() and path != site / ABOUT)
    return {path.relative_to(site).as_posix(): sha256_file(path) for path in files}


def manifests_of(runs: Sequence[Run]) -> dict[str, str]:
    """SHA-256 of every run's manifest, or `unfinished`."""
    return {run.name: sha256_file(run.path / "manifest.json") if run.is_complete else "unfinished" for run in runs}


def _title(run: Run) -> str:
    return f"HUSAI report: {run.path.parent.name}"


def _notebooks(run: Run) -> list[Path]:
    return sorted(run.path.glob("notebooks/*.ipynb"))


def _data_files(run: Run) -> list[Path]:
    """Records, then the published files; not the transient progress file."""
    published = {path for ending in ("json", "csv", "md") for path in run.path.glob(f"*.{ending}")}
    return sorted(run.path.glob("records/*.json")) + sorted(published - {run.path / "progress.json"})


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def _render_with_quarto(project: Path, runs: Sequence[Run], chosen: Run, banner: Banner) -> Path:
    """Turn `project` into a Quarto project of its own, wherever the evidence lies; returns its site."""
    for path in [SETTINGS, DATA / "quarto.scss", *documents()]:
        _copy(path, project / path.relative_to(SETTINGS.parent))
    write_text(project / "index.md", front_page(chosen, banner))
    for run in runs:
        warning = banner(run)
        for path in _notebooks(run):
            text = nbformat.writes(passive_notebook(path, warning))
            write_text(project / "evidence" / run.name / "notebooks" / path.name, text)
    command = ["quarto", "render", "--no-execute"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    if done.returncode or not (project / "_site" / "index.html").exists():
        said = strip_ansi(done.stderr).strip() or "it wrote no index.html"
        error = re.search(r"ERROR:.*", said)  # a stack trace may follow
        why = error[0] if error else said.splitlines()[-1]
        raise HusaiError(f"quarto render failed: {why}; fix this, or take quarto off the PATH to use nbconvert")
    return project / "_site"


def _render_with_nbconvert(site: Path, runs: Sequence[Run], chosen: Run, banner: Banner) -> None:
    """Write the pages of the website into `site`: the front page, the documentation, the notebooks of every run."""
    _, _, body = front_page(chosen, banner).split("---\n", 2)
    ordered = [Page("index.html", _title(chosen), markdown_to_html(body)), *map(document_page, documents())]
    for run in runs:
        warning = banner(run)
        ordered += [notebook_page(path, run.name, warning) for path in _notebooks(run)]
    unfinished = {run.name for run in runs if not run.is_complete}
    for page in ordered:
        text = TEMPLATES.get_template("page.html").render(
            page=page, pages=ordered, chosen=chosen.name, unfinished=unfinished, root="../" * page.path.count("/")
        )
        write_text(site / page.path, text)
    shutil.copyfile(DATA / "site.css", site / "site.css")
