"""Whether the front page, the README's pictures and a rendered site follow from the records of runs."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from husai_lib.evidence.rows.base import IMPORTED
from husai_lib.evidence.runs import Run, find_runs
from husai_lib.files import REPOSITORY, read_json
from husai_lib.report.audit import NOTEBOOKS
from husai_lib.report.cells import escape
from husai_lib.report.checks import UNCHECKED, Audit, Check, first_difference, follow
from husai_lib.report.cycle_pages import manifests_of
from husai_lib.report.notebook_audit import is_of_checkout
from husai_lib.report.site import ABOUT, all_runs, front_page, hashes_of, made_site, shown_runs

FRONT, README = REPOSITORY / "index.md", REPOSITORY / "README.md"


@cache
def banner_of(run: Run) -> str:
    """What every page of a run must say first, where its notebooks are not the checkout's; else empty."""
    steps = run.journal if run.is_complete and run.path.parent.name != IMPORTED else {}
    others = [step for step in steps if not is_of_checkout(run, step, NOTEBOOKS)]
    if not others:
        return ""
    return (
        f"An older version of this project made this run: the notebooks of the steps {', '.join(others)} have changed "
        "since. `husai audit` checks it by the code of its own commit."
    )


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
        audit.take(lambda: _site(site, evidence), f"{site / ABOUT}")
    return audit


def check_front_page(evidence: Path) -> Audit:
    """Check a checkout's `index.md` and the pictures of its README; of another evidence folder nothing."""
    audit = Audit()
    if evidence.resolve() == REPOSITORY / "evidence":
        audit.take(lambda: _front(find_runs(evidence)), f"{FRONT}")
    return audit


def _front(runs: Sequence[Run]) -> Iterator[Check]:
    complete = [run for run in runs if run.is_complete]
    yield "complete runs for the front page", bool(complete), True
    yield f"{FRONT.name} is there", FRONT.is_file(), True
    if not (complete and FRONT.is_file()):
        return
    text = FRONT.read_bytes().decode()
    named = [run for run in complete if f"Run {escape(run.name)}." in text] or complete
    shown = shown_runs(named[-1].path.parent.parent, banner_of)
    chosen = next(one for one in shown if one.run.path == named[-1].path)
    yield f"damage of the run of {FRONT.name}", chosen.damage, ""
    if chosen.damage:
        return
    yield f"line of {FRONT.name}", *first_difference(text, front_page(shown, chosen))
    pictures = re.findall(r"!\[[^\]]*\]\((?:\./)?evidence/([^)]+)\)", README.read_text(encoding="utf-8"))
    figures = [f"{run.name}/{name}" for run in complete for name in run.manifest()["files"]]
    for picture in pictures:
        yield f"picture {picture} of {README.name} is a figure of a complete run", picture in figures, True
        newest = [run for run in complete if run.path.parent.name == picture.partition("/")[0]][-1:]
        yield f"run of the picture in {README.name}", picture.split("/")[1], *(run.path.name for run in newest)


def _site(site: Path, evidence: Path) -> Iterator[Check]:
    about, found = read_json(site / ABOUT), hashes_of(site)
    runs = all_runs(evidence)
    yield from follow("manifest that the site was made from, of", about["runs"], manifests_of(runs))
    yield from follow(f"SHA-256 in {site} of", found, about["pages"])
    front = (site / "index.html").read_text(encoding="utf-8")
    renderer = "nbconvert" if "Rendered with nbconvert" in front else "quarto"
    yield "renderer of the site", about["renderer"], renderer
    shown = shown_runs(evidence, banner_of)
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
