"""The report: a front page of all cycles, a page for each cycle, its notebooks and the documentation, as one website.

`webpages` turns everything into safe HTML. Quarto puts it into its own layout where it is installed, otherwise the
template `page.html` does, with the same pages, order and titles. Text from data sets, models and notebook outputs is
not trusted: it reaches a page escaped or through an allow-list, and no page loads anything from outside.
"""

import base64
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import yaml
from nbconvert.filters import strip_ansi

from husai_lib.errors import EvidenceError, HusaiError, IntegrityError
from husai_lib.evidence.runs import find_imports, find_run, find_runs
from husai_lib.files import REPOSITORY, explained, read_json, sha256_file, write_json, write_text
from husai_lib.report.cells import escape
from husai_lib.report.checks import UNCHECKED, Audit, Check, first_difference, follow
from husai_lib.report.cycle_pages import ShownRun, manifests_of, shown_run
from husai_lib.report.webpages import DATA, TEMPLATES, Page, document_page, markdown_to_html, notice, quarto_source

SETTINGS = REPOSITORY / "_quarto.yml"
ABOUT = "site.json"
"""What a site was made from: renderer, run on the front page, hashes of all pages and of each run's manifest."""
TITLE = "HUSAI report: all cycles"


def render(evidence: Path, out: Path, run: str | None = None) -> Path:
    """Render the report of `evidence` into the folder `out` and return its front page.

    The front page begins with `run`, a name that `find_run` accepts; by default the newest complete run, or the newest
    if none is complete. The site is built in a temporary folder and then moved, so a failed render leaves the old site
    in place. If `evidence` belongs to this checkout, its `index.md` is written too.
    Raises HusaiError if Quarto fails, EvidenceError if `out` holds anything but an earlier site or if there is no run,
    and IntegrityError if a run is damaged: at the end, as the others have their pages and it has one that says why,
    but at once if it is `run` or no run is whole.
    """
    if out.exists() and not _may_be_replaced(out):
        raise EvidenceError(f"{out} holds other files than a report; name an empty or new folder with --out")
    shown = shown_runs(evidence)
    chosen = chosen_run(shown, evidence, run)
    renderer = "quarto" if shutil.which("quarto") else "nbconvert"
    with explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="husai-site-", dir=out.parent) as temporary:
            made = made_site(Path(temporary) / "site", shown, chosen, renderer)
            about = {"renderer": renderer, "front": chosen.run.name, "runs": manifests_of([one.run for one in shown])}
            write_json(made / ABOUT, about | {"pages": hashes_of(made)})
            if out.exists():
                out.rename(Path(temporary) / "old")
            made.rename(out)
        if evidence.resolve() == REPOSITORY / "evidence":
            write_text(REPOSITORY / "index.md", front_page(shown, chosen))
    if damaged := [one for one in shown if one.damage]:
        names = ", ".join(one.run.name for one in damaged)
        raise IntegrityError(
            f"{out / 'index.html'} was made, but {names} could not be shown: {damaged[0].damage}; "
            "'husai verify' lists what was changed"
        )
    return out / "index.html"


def _may_be_replaced(out: Path) -> bool:
    """Whether a folder is empty or holds a site; what plain Quarto made is one only where `_quarto.yml` puts it."""
    made_here = (out / ABOUT).exists() or out.resolve() == REPOSITORY / "_site"
    return out.is_dir() and (made_here or not any(out.iterdir()))


def shown_runs(evidence: Path) -> list[ShownRun]:
    """Every run, newest first, then every import, as the site shows them."""
    return [shown_run(run) for run in (*reversed(find_runs(evidence)), *find_imports(evidence))]


def chosen_run(shown: Sequence[ShownRun], evidence: Path, name: str | None = None) -> ShownRun:
    """The run that the front page begins with: the named one, else the newest complete one, else the newest.

    A damaged one is passed over. Raises IntegrityError if it is the named one, or if no run is whole.
    """
    named = find_run(evidence, name)  # raises where there is none
    whole = [one for one in shown if not one.facts["imported"] and not one.damage]
    complete = [one for one in whole if one.run.is_complete]
    if name is None and whole:
        return (complete or whole)[0]
    found = next(one for one in shown if one.run.path == named.path)
    if found.damage:
        raise IntegrityError(f"{named.name} cannot be shown: {found.damage}")
    return found


def made_site(folder: Path, shown: Sequence[ShownRun], chosen: ShownRun, renderer: str) -> Path:
    """Write records, figures and pages into `folder` and return the site, which Quarto puts in a subfolder."""
    for one in shown:
        for path in one.copied:
            _copy(path, folder / "evidence" / one.run.name / path.relative_to(one.run.path))
    for path in (SETTINGS.parent / "docs").glob("*.png"):
        _copy(path, folder / "docs" / path.name)
    if renderer == "quarto":
        write_sources(folder, shown, chosen)
        return _render_with_quarto(folder)
    pages = [*_pages(shown, chosen)]
    script = (DATA / "site.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    about = {
        "script": script,
        "script_hash": f"sha256-{digest}",
        "chosen": chosen.run.name,
        "unfinished": {one.run.name for one in shown if not one.run.is_complete},
        "index": [(quote(page.path), page.title, page.run, page.headings) for page in pages],
    }
    for page in pages:
        root = "../" * page.path.count("/")
        text = TEMPLATES.get_template("page.html").render(page=page, pages=pages, root=root, **about)
        write_text(folder / page.path, text)
    _write_tables(folder, shown)
    for name in ("content.css", "site.css"):
        _copy(DATA / name, folder / name)
    return folder


def write_sources(project: Path, shown: Sequence[ShownRun], chosen: ShownRun) -> None:
    """Write every page into `project` as a document that Quarto may read, and every table as CSV."""
    for page in _pages(shown, chosen):
        write_text((project / page.path).with_suffix(".qmd"), quarto_source(page))
    _write_tables(project, shown)


def front_page(shown: Sequence[ShownRun], chosen: ShownRun) -> str:
    """The front page, for any renderer of Markdown: the verdict of one run, then a line for every complete cycle."""
    complete = [one.run.name for one in shown if one.run.is_complete and not one.facts["imported"]]
    return TEMPLATES.get_template("index.md.jinja").render(
        title=TITLE,
        banner=notice(chosen.banner),
        newest=complete[0] if complete else chosen.run.name,
        chosen=chosen.facts,
        cycles=[one.facts for one in shown if one.run.is_complete or one.damage or one is chosen],
    )


def documents() -> list[Path]:
    """The files of `docs/`, in the order of the sidebar in `_quarto.yml`."""
    sidebar = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    names = [name for entry in sidebar if isinstance(entry.get("contents"), list) for name in entry["contents"]]
    return [(SETTINGS.parent / name).with_suffix(".md") for name in names]


def hashes_of(site: Path) -> dict[str, str]:
    """SHA-256 of every file of a site except the one that holds these hashes."""
    files = (path for path in sorted(site.rglob("*")) if path.is_file() and path != site / ABOUT)
    return {path.relative_to(site).as_posix(): sha256_file(path) for path in files}


def _pages(shown: Sequence[ShownRun], chosen: ShownRun) -> Iterator[Page]:
    """Every page: the front page, the documentation, then each cycle with its notebooks."""
    yield Page("index.html", TITLE, markdown_to_html(front_page(shown, chosen).split("---\n", 2)[2]))
    yield from map(document_page, documents())
    for one in shown:
        yield from one.pages


def _write_tables(folder: Path, shown: Sequence[ShownRun]) -> None:
    """Every table of every record as CSV, beside the page of its cycle."""
    for one in shown:
        for name, text in one.tables.items():
            write_text(folder / "cycles" / one.run.name / name, text)


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


def check_site(site: Path, evidence: Path) -> Audit:
    """Check every file of a rendered site against the runs of `evidence`.

    Its `site.json` must have the hash of every file and of every run's manifest, and rendering again must give the
    same files. Of a site by Quarto, where Quarto is not installed, pages are held to their hashes only.
    """
    audit = Audit()
    if not (site / ABOUT).exists():
        why = f"{site} has no {ABOUT}, so what it was made from is unknown"
        audit.problems.append(f"{why}; make one with 'husai render' (plain 'quarto render' writes none)")
    else:
        audit.take(_site(site, evidence), f"{site / ABOUT}")
    return audit


def check_front_page(evidence: Path) -> Audit:
    """Check a checkout's `index.md` and the pictures of its README; of another evidence folder nothing."""
    audit = Audit()
    if evidence.resolve() == REPOSITORY / "evidence":
        audit.take(_front(evidence), f"{REPOSITORY / 'index.md'}")
    return audit


def _front(evidence: Path) -> Iterator[Check]:
    front, readme = REPOSITORY / "index.md", REPOSITORY / "README.md"
    complete = [run for run in find_runs(evidence) if run.is_complete]
    yield "complete runs for the front page", bool(complete), True
    yield f"{front.name} is there", front.is_file(), True
    if not (complete and front.is_file()):
        return
    text = front.read_bytes().decode()
    named = [run for run in complete if f"Run {escape(run.name)}." in text] or complete
    shown = shown_runs(evidence)
    chosen = next(one for one in shown if one.run.path == named[-1].path)
    yield f"damage of the run of {front.name}", chosen.damage, ""
    if chosen.damage:
        return
    yield f"line of {front.name}", *first_difference(text, front_page(shown, chosen))
    pictures = re.findall(r"!\[[^\]]*\]\((?:\./)?evidence/([^)]+)\)", readme.read_text(encoding="utf-8"))
    figures = [f"{run.name}/{name}" for run in complete for name in run.manifest()["files"]]
    for picture in pictures:
        yield f"picture {picture} of {readme.name} is a figure of a complete run", picture in figures, True
        newest = [run for run in complete if run.path.parent.name == picture.partition("/")[0]][-1:]
        yield f"run of the picture in {readme.name}", picture.split("/")[1], *(run.path.name for run in newest)


def _site(site: Path, evidence: Path) -> Iterator[Check]:
    about, found, shown = read_json(site / ABOUT), hashes_of(site), shown_runs(evidence)
    runs = [one.run for one in shown]
    yield from follow("manifest that the site was made from, of", about["runs"], manifests_of(runs))
    yield from follow(f"SHA-256 in {site} of", found, about["pages"])
    front = (site / "index.html").read_text(encoding="utf-8")
    renderer = "nbconvert" if "Rendered with nbconvert" in front else "quarto"
    yield "renderer of the site", about["renderer"], renderer
    chosen = [one for one in shown if one.run.name == about["front"] and not one.damage]
    yield "whole runs for the front page", [one.run.name for one in chosen], [about["front"]]
    if chosen and (renderer == "nbconvert" or shutil.which("quarto")):
        with tempfile.TemporaryDirectory(prefix="husai-site-") as temporary:
            again = hashes_of(made_site(Path(temporary) / "site", shown, chosen[0], renderer))
        yield from follow(f"rendered again, SHA-256 in {site} of", found, again)
        return
    copied = {f"evidence/{run.name}/{name}": sha256 for run in runs for name, sha256 in run.files().items()}
    for name, sha256 in found.items():
        if name in copied:
            yield f"SHA-256 in {site} of {name}", sha256, copied[name]
        else:
            yield "pages by Quarto, which is not here", UNCHECKED, None
