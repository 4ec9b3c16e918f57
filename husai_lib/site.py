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

from husai_lib import sentences, tables
from husai_lib.errors import EvidenceError, HusaiError
from husai_lib.evidence import Run, find_run, find_runs
from husai_lib.files import REPOSITORY, explain_os_error, write_text
from husai_lib.webpages import DATA, TEMPLATES, Page, markdown_to_html, notebook_page, passive_notebook, read_notebook


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
    pages = [notebook_page(path, found.name) for found in runs for path in _notebooks(found)]
    index = index_markdown(chosen, pages)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="husai-site-", dir=out.parent) as temporary:
            made = Path(temporary) / "site"
            for found in runs:
                for path in [*_json_files(found), *found.path.glob("figures/*.png")]:
                    _copy(path, made / "evidence" / found.name / path.relative_to(found.path))
            if shutil.which("quarto"):
                made = _render_with_quarto(made, index, runs)
            else:
                _render_with_nbconvert(made, index, pages, runs, chosen)
            if out.exists():
                out.rename(Path(temporary) / "old")
            made.rename(out)
        if evidence.resolve() == REPOSITORY / "evidence":
            write_text(REPOSITORY / "index.md", index)
    except OSError as error:
        raise explain_os_error(error, out) from error
    return out / "index.html"


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
        files=[path.relative_to(run.path).as_posix() for path in _json_files(run)],
    )


def _title(run: Run) -> str:
    return f"HUSAI report: {run.path.parent.name}"


def _notebooks(run: Run) -> list[Path]:
    return sorted(run.path.glob("notebooks/*.ipynb"))


def _json_files(run: Run) -> list[Path]:
    """Records, then the published files; not the transient note of progress."""
    return sorted(run.path.glob("records/*.json")) + sorted(set(run.path.glob("*.json")) - {run.path / "progress.json"})


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


def _render_with_nbconvert(site: Path, index: str, pages: Sequence[Page], runs: Sequence[Run], chosen: Run) -> None:
    """Write the pages of a website into `site`, the front page first."""
    _, _, body = index.split("---\n", 2)
    ordered = [Page("index.html", _title(chosen), markdown_to_html(body)), *pages]
    unfinished = {run.name for run in runs if not run.is_complete}
    for page in ordered:
        text = TEMPLATES.get_template("page.html").render(
            page=page, pages=ordered, chosen=chosen.name, unfinished=unfinished, root="../" * page.path.count("/")
        )
        write_text(site / page.path, text)
    shutil.copyfile(DATA / "site.css", site / "site.css")


def strip_notebook(path: Path) -> None:
    """Make an executed notebook fit to commit: no timings or paths of this machine; doing it twice changes nothing.

    Of the metadata, cell tags, kernel and language stay.
    """
    notebook = read_notebook(path)
    kept = ("kernelspec", "language_info")
    notebook.metadata = {key: value for key, value in notebook.metadata.items() if key in kept}
    for cell in notebook.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}
    text = nbformat.writes(nbformat.from_dict(notebook)).rstrip("\n") + "\n"
    write_text(path, text.replace(f"{REPOSITORY}/", "").replace(str(REPOSITORY), "."))
