"""The pages of a cycle: that of its run or import, from verified records, and those of its executed notebooks.

A run of which anything cannot be read has a single page, which says why, and the other cycles are shown all the same.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from husai_lib.decisions import gates
from husai_lib.errors import HusaiError
from husai_lib.evidence.rows.base import IMPORTED
from husai_lib.evidence.rows.decided import GateRow
from husai_lib.evidence.runs import Run
from husai_lib.evidence.verification import UNREADABLE
from husai_lib.files import read_json, sha256_file
from husai_lib.report.cells import escape
from husai_lib.report.notebook_audit import is_of_checkout
from husai_lib.report.tables import csv_table
from husai_lib.report.webpages import TEMPLATES, Page, markdown_to_html, notebook_page, notice

SHOWN = {"gates", "candidates", "earlier_gates", "earlier_groups", "earlier_members", "caveats"}
"""Tables that say what a cycle is about."""
DAY = r"run_(....)(..)(..).*", r"\1-\2-\3"
"""The day in the name of a run, as 2026-02-15."""


@dataclass(frozen=True)
class ShownRun:
    """A run or an import as the site shows it; everything is read once."""

    run: Run
    facts: dict[str, Any]
    """What its line on the front page says."""
    pages: list[Page]
    """Its page, then those of its notebooks; or the one that says why there are none."""
    banner: str = ""
    """A warning in Markdown for the top of every page."""
    tables: dict[str, str] = field(default_factory=dict)
    """Every table of its records as CSV, by the name of the file."""
    copied: Sequence[Path] = ()
    """Records, published files and figures that the site gets a copy of."""
    damage: str = ""
    """Why it cannot be shown, in one sentence without its point; empty where it can."""


def shown_run(run: Run) -> ShownRun:
    """What the site shows of a run or an import: all of it or, where anything cannot be read, why."""
    imported = run.path.parent.name == IMPORTED
    name = run.path.name if imported else run.path.parent.name  # the one that the import was given, or the cycle
    try:
        return _whole(run, name, imported=imported)
    except HusaiError as error:
        said = str(error)
    except (jinja2.TemplateError, *UNREADABLE) as error:
        said = f"its files do not fit together ({type(error).__name__}: {error})"
    damage = said.replace(str(run.path), run.name)  # a page names no folder of the machine it was made on
    why = f'<div class="callout-important">\n\n**Damaged**: {escape(damage)}.\n\n</div>\n\n'
    body = markdown_to_html(f"{why}Nothing of it is shown. `husai verify` lists what was changed.")
    page = Page(f"cycles/{run.name}.html", f"{name}: damaged", body, run.name)
    facts = {"run": run, "name": name, "date": re.sub(*DAY, run.path.name), "state": "damaged", "damage": damage}
    return ShownRun(run, facts | {"imported": imported, "summary": ""}, [page], damage=damage)


def _whole(run: Run, name: str, *, imported: bool) -> ShownRun:
    if run.is_complete:
        run.manifest()  # raises where it was changed
    facts, banner = _facts(run, name, imported=imported), banner_of(run)
    notebooks = [notebook_page(path, run.name, banner) for path in sorted(run.path.glob("notebooks/*.ipynb"))]
    records = facts["records"].values()
    tables = {f"{one.step}.{name}.csv": csv_table(one.table(name)) for one in records for name in one.data["tables"]}
    published = {path for ending in ("json", "csv", "md") for path in run.path.glob(f"*.{ending}")}
    files = sorted(run.path.glob("records/*.json")) + sorted(published - {run.path / "progress.json"})
    figures = [*run.path.glob("figures/*.png")]
    body = TEMPLATES.get_template("cycle.md.jinja").render(
        banner=notice(banner),
        figures={path.stem for path in figures},
        notebooks=notebooks,
        files=[path.relative_to(run.path).as_posix() for path in files],
        manifest=manifests_of([run])[run.name],
        **facts,
    )
    page = Page(f"cycles/{run.name}.html", f"{name}: {facts['state']}", markdown_to_html(body), run.name)
    return ShownRun(run, facts, [page, *notebooks], banner, tables, [*files, *figures])


def banner_of(run: Run) -> str:
    """What every page of a run must say first, where its notebooks are not the checkout's; else empty."""
    steps = run.journal if run.is_complete and run.path.parent.name != IMPORTED else {}
    others = [step for step in steps if not is_of_checkout(run, step)]
    if not others:
        return ""
    return (
        f"An older version of this project made this run: the notebooks of the steps {', '.join(others)} have changed "
        "since. `husai audit` checks it by the code of its own commit."
    )


def manifests_of(runs: Sequence[Run]) -> dict[str, str]:
    """SHA-256 of every run's manifest, or `unfinished`."""
    return {run.name: sha256_file(run.path / "manifest.json") if run.is_complete else "unfinished" for run in runs}


def _facts(run: Run, name: str, *, imported: bool) -> dict[str, Any]:
    """What the front page and the page of a cycle say about a run or an import, from its verified records."""
    records = {step: run.record(step) for step in run.journal}
    tabled: dict[str, list[Any]] = {}
    for one in records.values():
        for table in SHOWN.intersection(one.data["tables"]):
            if table != "earlier_gates" or one.summary.get("kind") == "gates":  # those of sweeps decided nothing
                tabled.setdefault(table, []).extend(one.table(table))
    gate_rows = tabled.get("gates", []) + [
        GateRow(**row.model_dump(exclude={"stated", "threshold"}), metric="", threshold=row.threshold or 0.0,
                verdict=row.stated, source=IMPORTED)
        for row in tabled.get("earlier_gates", []) if row.gate in gates.RULES
    ]  # fmt: skip
    judged = gates.without_repeats(gate_rows)
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
        "damage": "", "run": run, "records": records, "imported": imported, "judged": judged, "verdict": verdict,
        "name": name,
        "summary": "" if imported else read_json(run.path / "parameters.json")["summary"],
        "state": f"{state}, as stated there" if imported else state if run.is_complete else "unfinished",
        "joint": next((row for row in gate_rows if row not in judged), None),
        "candidate": candidates[0] if candidates else "none",
        "model": re.sub(r".*/|\.gguf$", "", models[0]) if models else "unknown",
        "date": re.sub(*DAY, time),
        "caveats": len({row.caveat for row in tabled.get("caveats", [])}) if imported else 0,
    }  # fmt: skip
