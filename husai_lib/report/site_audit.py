"""Whether a rendered site and the front page follow from the records of runs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from husai_lib.errors import HusaiError
from husai_lib.evidence.runs import Run, find_runs
from husai_lib.files import REPOSITORY, read_json
from husai_lib.report import tables
from husai_lib.report.audit import NOT_CHECKED, Audit, Check, first_difference
from husai_lib.report.site import ABOUT, front_page, hashes_of, made_site, manifests_of


def check_site(site: Path, evidence: Path) -> Audit:
    """Hold every file of a rendered site to the runs of `evidence`.

    Its `site.json` must have the hash of every file and of every run's manifest, and rendering again must give the
    same files. Of a site by Quarto, where Quarto is not installed, pages are held to their hashes only, which is
    counted as not checked.
    """
    audit = Audit()
    if not (site / ABOUT).exists():
        audit.problems.append(f"{site} has no {ABOUT}, so what it was made from is unknown; render it again")
        return audit
    try:
        audit.take(_site_checks(site, find_runs(evidence)))
    except HusaiError as error:
        audit.problems.append(str(error))
    except (
        AttributeError,
        LookupError,
        OSError,
        TypeError,
        ValueError,
    ) as error:  # of what `render` did not write
        audit.problems.append(f"{site / ABOUT} is damaged ({type(error).__name__}: {error}); render the site again")
    return audit


def check_index(evidence: Path) -> Audit:
    """Hold a checkout's `index.md` to the records of the run that it shows; of another folder nothing is checked."""
    audit, path = Audit(), REPOSITORY / "index.md"
    if evidence.resolve() == REPOSITORY / "evidence" and path.exists():
        text, complete = path.read_bytes().decode(), [run for run in find_runs(evidence) if run.is_complete]
        named = [run for run in complete if f"Run {tables.escape(run.name)}.\n" in text] or complete
        audit.take([(f"line of {path}", *first_difference(text, front_page(named[-1])))] if named else [])
    return audit


def _site_checks(site: Path, runs: Sequence[Run]) -> Iterator[Check]:
    about, found = read_json(site / ABOUT), hashes_of(site)
    yield from _compared("manifest that the site was made from, of", about["runs"], manifests_of(runs))
    yield from _compared(f"SHA-256 in {site} of", found, about["pages"])
    front = (site / "index.html").read_text(encoding="utf-8")
    renderer = "nbconvert" if "Rendered with nbconvert" in front else "quarto"
    yield "renderer of the site", about["renderer"], renderer
    chosen = [run for run in runs if run.name == about["front"]]
    yield "runs of the front page", [run.name for run in chosen], [about["front"]]
    if not chosen:
        return
    with tempfile.TemporaryDirectory(prefix="husai-site-") as temporary:
        if renderer == "nbconvert" or shutil.which("quarto"):
            again = hashes_of(made_site(Path(temporary) / "site", runs, chosen[0], renderer))
            yield from _compared(f"rendered again, SHA-256 in {site} of", found, again)
            return
    copied = {f"evidence/{run.name}/{name}": sha256 for run in runs for name, sha256 in run.files().items()}
    for name, sha256 in found.items():
        known = copied.get(name, NOT_CHECKED)  # of pages, as Quarto is not here
        yield f"SHA-256 in {site} of {name}", sha256 if name in copied else known, known


def _compared(what: str, stated: Mapping[str, Any], must: Mapping[str, Any]) -> Iterator[Check]:
    for name in sorted(stated.keys() | must.keys()):
        yield f"{what} {name}", stated.get(name, "absent"), must.get(name, "absent")
