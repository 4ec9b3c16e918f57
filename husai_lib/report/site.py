"""The report: a front page from a run's records, and a website over it and the executed notebooks.

Quarto renders the website where it is installed, else `webpages` does, with the same pages, order and
titles. Text from data sets, models and notebook outputs is never trusted: it reaches a page escaped or
through an allow-list, and no page loads anything from outside.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbconvert.filters import strip_ansi

from husai_lib.errors import EvidenceError, HusaiError
from husai_lib.evidence.runs import Run, find_run, find_runs
from husai_lib.files import REPOSITORY, explain_os_error, sha256_file, write_json, write_text
from husai_lib.report import sentences, tables
from husai_lib.report.webpages import (
    DATA,
    TEMPLATES,
    Page,
    markdown_to_html,
    notebook_page,
    passive_notebook,
)

ABOUT = "site.json"
"""What a site was made from: renderer, run of the front page, hashes of every page and of every run's manifest."""


def render(evidence: Path, out: Path, run: str | None = None) -> Path:
    """Render the report of `evidence` into the folder `out`; returns its front page.

    The front page shows `run`, a name as `find_run` takes it; without one the newest complete run, else the
    newest. All is made in a temporary folder and then moved, so a failed render leaves the old site. A
    checkout's own evidence also gets its `index.md`, so that `quarto render` works there. Raises
    HusaiError where Quarto fails, EvidenceError where `out` holds anything but an earlier site or there is no
    run, IntegrityError where a record of the shown run was changed.
    """
    if out.exists() and not (out.is_dir() and ((out / "index.html").exists() or not any(out.iterdir()))):
        raise EvidenceError(f"{out} holds other files than a report; name an empty or new folder with --out")
    runs = find_runs(evidence)
    complete = [found for found in runs if found.is_complete]
    chosen = complete[-1] if run is None and complete else find_run(evidence, run)
    renderer = "quarto" if shutil.which("quarto") else "nbconvert"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="husai-site-", dir=out.parent) as temporary:
            made = made_site(Path(temporary) / "site", runs, chosen, renderer)
            _tell(made, runs, chosen, renderer)
            if out.exists():
                out.rename(Path(temporary) / "old")
            made.rename(out)
        if evidence.resolve() == REPOSITORY / "evidence":
            write_text(REPOSITORY / "index.md", front_page(chosen))
    except OSError as error:
        raise explain_os_error(error, out) from error
    return out / "index.html"


def _tell(site: Path, runs: Sequence[Run], chosen: Run, renderer: str) -> None:
    about = {"renderer": renderer, "front": chosen.name, "runs": manifests_of(runs), "pages": hashes_of(site)}
    write_json(site / ABOUT, about)


def made_site(folder: Path, runs: Sequence[Run], chosen: Run, renderer: str) -> Path:
    """Write records, figures and pages into `folder`; returns the site, which Quarto makes in a folder of its own."""
    for run in runs:
        for path in [*_data_files(run), *run.path.glob("figures/*.png")]:
            _copy(path, folder / "evidence" / run.name / path.relative_to(run.path))
    if renderer == "quarto":
        return _render_with_quarto(folder, front_page(chosen), runs)
    _render_with_nbconvert(folder, runs, chosen)
    return folder


def front_page(run: Run) -> str:
    """The front page of one run as Markdown, its notebooks linked."""
    return index_markdown(run, [notebook_page(path, run.name) for path in _notebooks(run)])


def index_markdown(run: Run, pages: Sequence[Page]) -> str:
    """The front page of one run, for any renderer of Markdown; every number comes from a verified record."""
    return TEMPLATES.get_template("index.md.jinja").render(
        title=_title(run),
        run=run,
        records={step: run.record(step) for step in run.journal},
        tables=tables,
        sentences=sentences,
        figures={path.stem for path in run.path.glob("figures/*.png")},
        notebooks=[page for page in pages if page.run == run.name],
        files=[path.relative_to(run.path).as_posix() for path in _data_files(run)],
    )


def _title(run: Run) -> str:
    return f"HUSAI report: {run.path.parent.name}"


def _notebooks(run: Run) -> list[Path]:
    return sorted(run.path.glob("notebooks/*.ipynb"))


def _data_files(run: Run) -> list[Path]:
    """Records, then the published files; not the transient note of progress."""
    published = {path for ending in ("json", "csv", "md") for path in run.path.glob(f"*.{ending}")}
    return sorted(run.path.glob("records/*.json")) + sorted(published - {run.path / "progress.json"})


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def _render_with_quarto(project: Path, index: str, runs: Sequence[Run]) -> Path:
    """Make `project` a Quarto project of its own, whatever folder the evidence is in; returns its site."""
    for name in ("_quarto.yml", "husai_lib/data/quarto.scss"):
        _copy(REPOSITORY / name, project / name)
    write_text(project / "index.md", index)
    for run in runs:
        for path in _notebooks(run):
            text = nbformat.writes(passive_notebook(path))
            write_text(project / "evidence" / run.name / "notebooks" / path.name, text)
    command = ["quarto", "render", "--no-execute"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    if done.returncode or not (project / "_site" / "index.html").exists():
        last = (strip_ansi(done.stderr).strip() or "it made no index.html").splitlines()[-1]
        raise HusaiError(f"quarto render failed: {last}; mend that, or take quarto off the PATH to use nbconvert")
    return project / "_site"


def _render_with_nbconvert(site: Path, runs: Sequence[Run], chosen: Run) -> None:
    """Write the pages of a website into `site`, the front page first."""
    pages = [notebook_page(path, run.name) for run in runs for path in _notebooks(run)]
    _, _, body = index_markdown(chosen, pages).split("---\n", 2)
    ordered = [Page("index.html", _title(chosen), markdown_to_html(body)), *pages]
    unfinished = {run.name for run in runs if not run.is_complete}
    for page in ordered:
        text = TEMPLATES.get_template("page.html").render(
            page=page, pages=ordered, chosen=chosen.name, unfinished=unfinished, root="../" * page.path.count("/")
        )
        write_text(site / page.path, text)
    shutil.copyfile(DATA / "site.css", site / "site.css")


# ---------------------------------------------------------------------------------------------
# Is a site that of its records?
# ---------------------------------------------------------------------------------------------


def hashes_of(site: Path) -> dict[str, str]:
    """SHA-256 of every file of a site but the one that holds these hashes."""
    files = (path for path in sorted(site.rglob("*")) if path.is_file() and path != site / ABOUT)
    return {path.relative_to(site).as_posix(): sha256_file(path) for path in files}


def manifests_of(runs: Sequence[Run]) -> dict[str, str]:
    """SHA-256 of every run's manifest; of an unfinished run only that it is."""
    return {run.name: sha256_file(run.path / "manifest.json") if run.is_complete else "unfinished" for run in runs}
