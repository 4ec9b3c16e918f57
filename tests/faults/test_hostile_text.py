"""Hostile strings in tokens, names and paths stay text, in the built-in site and in what Quarto is given."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pytest
from faults.conftest import Tally
from hostile import TEXTS, hostile_run
from report.test_site import Parsed, raw_html

from husai_lib.evidence.runs import Run
from husai_lib.report import cycle_pages, site

Opener = Callable[[str], Tally]
LIVE = {
    "script",
    "style",
    "svg",
    "iframe",
    "object",
    "embed",
    "base",
    "form",
    "input",
    "video",
    "audio",
    "template",
    "link",
}
ADDRESSES = ("href", "src", "srcset", "action", "formaction", "poster", "data", "xlink:href", "background",
             "http-equiv", "content")  # fmt: skip


def live_parts(html: str) -> list[str]:
    """Whatever of a page could run, or reach out of the site, beside its own style sheets."""
    page = Parsed(html)
    found = [tag for tag in page.tags if tag in LIVE]
    found += [f"{name}={value}" for name, value in page.attributes if name.startswith("on") or "url(" in value.lower()
              or "data-qmd" in name]  # fmt: skip
    for value in page.values(*ADDRESSES):
        address = re.sub(r"[\x00-\x20]", "", value)
        picture = re.match(r"data:image/(png|jpeg|gif);base64,", address)
        inside = picture or not re.match(r"[a-z][a-z0-9+.-]*:|[/\\]", address, re.IGNORECASE)
        found += [] if inside else [f"address {value}"]
    return found


def shown(html: str, text: str) -> int:
    """How often a page shows a text; control characters may be question marks."""
    page, expected = (re.sub(r"[\x00-\x1f]", "?", " ".join(one.split())) for one in (Parsed(html).text, text))
    return page.count(expected)


def folder_name(number: int, text: str) -> str:
    """A text as the name of a folder."""
    return f"{number:02}{text}".replace("/", "⁄").replace("\x00", "")[:80].strip()


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each string a run with it in every place, in a folder that is named after it."""
    folder = tmp_path_factory.mktemp("hostile") / folder_name(0, TEXTS[1]) / "evidence"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        for number, text in enumerate(TEXTS):
            hostile_run(Run(folder / folder_name(number, text) / "run_20260303T000000Z"), [text])
    return folder


@pytest.fixture
def without_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """The documentation is not hostile, and takes most of the time; no run has the notebooks of the checkout."""
    monkeypatch.setattr(cycle_pages, "banner_of", lambda _: "")
    monkeypatch.setattr(site, "documents", list)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.usefixtures("without_documents")
def test_the_built_in_site_shows_hostile_strings_as_text(
    evidence: Path, monkeypatch: pytest.MonkeyPatch, tally: Opener
) -> None:
    row = tally("hostile strings through tokens, names and paths: the built-in site")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    front = site.render(evidence, evidence.parent / "site")
    own = {"link", "input", "script"}  # style sheets, the search box, and the one script with its index
    script = f"<script>{(site.DATA / 'site.js').read_text()}</script>"
    assert not [part for part in live_parts(front.read_text()) if part not in own]
    for number, text in enumerate(TEXTS):
        cycle = front.parent / "cycles" / folder_name(number, text)
        pages = [cycle / "run_20260303T000000Z.html", cycle / "run_20260303T000000Z" / "01_hostile.html"]
        found = [part for page in pages for part in live_parts(page.read_text()) if part not in own]
        found += [
            page.name for page in pages if page.read_text().count("<script") != 2 or script not in page.read_text()
        ]
        times_shown = [shown(page.read_text(), text) for page in pages]
        row.take(not found and min(times_shown) >= 5, f"{text}: {found[:3]}, shown {times_shown}")
    assert row.failed == []


@pytest.mark.usefixtures("without_documents")
def test_quarto_is_given_hostile_strings_as_text(evidence: Path, tmp_path: Path, tally: Opener) -> None:
    row = tally("hostile strings through tokens, names and paths: the text for Quarto")
    runs = site.shown_runs(evidence)
    site.write_sources(tmp_path, runs, site.chosen_run(runs, evidence))
    assert not live_parts(raw_html((tmp_path / "index.qmd").read_text()))
    for number, text in enumerate(TEXTS):
        cycle = tmp_path / "cycles" / folder_name(number, text)
        sources = [
            (cycle / name).read_text() for name in ("run_20260303T000000Z.qmd", "run_20260303T000000Z/01_hostile.qmd")
        ]
        found = [part for source in sources for part in live_parts(raw_html(source))]
        found += ["a shortcode" for source in sources if "{{" in source]
        times_shown = [shown(raw_html(source), text) for source in sources]
        row.take(not found and min(times_shown) >= 5, f"{text}: {found[:3]}, shown {times_shown}")
    assert len({unquote(str(path)) for path in tmp_path.rglob("*.qmd")}) == 1 + 2 * len(TEXTS)
    assert row.failed == []
