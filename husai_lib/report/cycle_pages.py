"""The pages of a cycle: that of its run or import, from verified records, and those of its executed notebooks.

A run of which anything cannot be read has a single page, which says why, and the other cycles are shown all the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2

from husai_lib.decisions import gates
from husai_lib.errors import HusaiError
from husai_lib.evidence.rows.base import IMPORTED
from husai_lib.evidence.rows.decided import GateRow
from husai_lib.evidence.runs import Run
from husai_lib.evidence.verification import UNREADABLE
from husai_lib.files import sha256_file
from husai_lib.report.cells import escape
from husai_lib.report.tables import csv_table
from husai_lib.report.webpages import TEMPLATES, Page, markdown_to_html, notebook_page, notice

Banner = Callable[[Run], str]
"""A warning in Markdown for the top of every page of a run; empty if there is none."""
SHOWN = {"gates", "candidates", "earlier_gates", "earlier_groups", "earlier_members", "caveats"}
"""Tables that say what a cycle is about."""


def no_banner(_: Run) -> str:
    """No warning, whatever the run."""
    return ""


@dataclass(frozen=True)
class ShownRun:
    """A run or an import as the site shows it; everything is read once."""

    run: Run
    banner: Banner = no_banner

    @property
    def imported(self) -> bool:
        """Whether it is an import of an earlier cycle."""
        return self.run.path.parent.name == IMPORTED

    @property
    def name(self) -> str:
        """The cycle, or the name that the import was given."""
        return self.run.path.name if self.imported else self.run.path.parent.name

    @cached_property
    def damage(self) -> str:
        """Why it cannot be shown, in one sentence without its point; empty where it can."""
        try:
            _ = self._made
        except HusaiError as error:
            said = str(error)
        except (jinja2.TemplateError, *UNREADABLE) as error:
            said = f"its files do not fit together ({type(error).__name__}: {error})"
        else:
            return ""
        return said.replace(str(self.run.path), self.run.name)  # a page names no folder of the machine it was made on

    @property
    def facts(self) -> dict[str, Any]:
        """What its line on the front page says."""
        if not self.damage:
            return self._made[0]
        date = date_of(self.run.path.name)
        return {"run": self.run, "name": self.name, "date": date, "state": "damaged", "damage": self.damage}

    @property
    def pages(self) -> list[Page]:
        """Its page, then those of its notebooks; or the one that says why there are none."""
        if not self.damage:
            return self._made[1]
        why = f'<div class="callout-important">\n\n**Damaged**: {escape(self.damage)}.\n\n</div>\n\n'
        body = markdown_to_html(f"{why}Nothing of it is shown. `husai verify` lists what was changed.")
        return [Page(f"cycles/{self.run.name}.html", f"{self.name}: damaged", body, self.run.name)]

    @property
    def tables(self) -> dict[str, str]:
        """Every table of its records as CSV, by the name of the file; none where it is damaged."""
        return {} if self.damage else self._made[2]

    @property
    def copied(self) -> list[Path]:
        """Records, published files and figures that the site gets a copy of; none where it is damaged."""
        return [] if self.damage else [*_data_files(self.run), *self.run.path.glob("figures/*.png")]

    @cached_property
    def _made(self) -> tuple[dict[str, Any], list[Page], dict[str, str]]:
        """Facts, pages and tables; raises what `damage` explains."""
        run, notebooks = self.run, sorted(self.run.path.glob("notebooks/*.ipynb"))
        if run.is_complete:
            run.manifest()
        facts, banner = _facts(run, self.name, imported=self.imported), self.banner(run)
        of_notebooks = [notebook_page(path, run.name, banner) for path in notebooks]
        tabled = [(one, name) for one in facts["records"].values() for name in one.data["tables"]]
        tables = {f"{one.step}.{name}.csv": csv_table(one.table(name)) for one, name in tabled}
        return facts, [_cycle_page(facts, of_notebooks, banner), *of_notebooks], tables


def manifests_of(runs: Sequence[Run]) -> dict[str, str]:
    """SHA-256 of every run's manifest, or `unfinished`."""
    return {run.name: sha256_file(run.path / "manifest.json") if run.is_complete else "unfinished" for run in runs}


def _cycle_page(facts: dict[str, Any], notebooks: Sequence[Page], banner: str) -> Page:
    """The page of one run or import; every number comes from a verified record."""
    run = facts["run"]
    body = TEMPLATES.get_template("cycle.md.jinja").render(
        banner=notice(banner),
        figures={path.stem for path in run.path.glob("figures/*.png")},
        notebooks=notebooks,
        files=[path.relative_to(run.path).as_posix() for path in _data_files(run)],
        manifest=manifests_of([run])[run.name],
        **facts,
    )
    return Page(f"cycles/{run.name}.html", f"{facts['name']}: {facts['state']}", markdown_to_html(body), run.name)


def date_of(name: str) -> str:
    """The day in the name of a run, as 2026-02-15; the name itself where it has none."""
    return re.sub(r"run_(....)(..)(..).*", r"\1-\2-\3", name)


def _facts(run: Run, name: str, *, imported: bool) -> dict[str, Any]:
    """What the front page and the page of a cycle say about a run or an import, from its verified records."""
    records = {step: run.record(step) for step in run.journal}
    tabled = {name: one.table(name) for one in records.values() for name in one.data["tables"] if name in SHOWN}
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
        "state": f"{state}, as stated there" if imported else state if run.is_complete else "unfinished",
        "joint": next((row for row in gate_rows if row not in judged), None),
        "candidate": candidates[0] if candidates else "none",
        "model": re.sub(r".*/|\.gguf$", "", models[0]) if models else "unknown",
        "date": date_of(time),
        "caveats": len({row.caveat for row in tabled.get("caveats", [])}) if imported else 0,
    }  # fmt: skip


def _data_files(run: Run) -> list[Path]:
    """Records, then the published files; not the transient progress file."""
    published = {path for ending in ("json", "csv", "md") for path in run.path.glob(f"*.{ending}")}
    return sorted(run.path.glob("records/*.json")) + sorted(published - {run.path / "progress.json"})
