"""What a browser makes of the site: every page of it, wide and narrow, light and dark."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from browser.chromium import PROGRAM, Tab, browser
from hostile import TEXTS, hostile_run
from nbformat.v4 import new_markdown_cell, new_notebook
from synthetic_rows import write_run

from husai_lib.evidence.runs import Run
from husai_lib.files import REPOSITORY
from husai_lib.report import cycle_pages, site

pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium on the PATH"),
    pytest.mark.slow,  # every page in four windows
]
HOSTILE = TEXTS[:10]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def render(evidence: Path, folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site.shutil, "which", lambda name: None)
        patch.setattr(site, "REPOSITORY", folder / "elsewhere")
        patch.setattr(cycle_pages, "banner_of", lambda run: "")
        return site.render(evidence, folder / "site").parent


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of a complete, an unfinished and a hostile run, and of an import."""
    folder = tmp_path_factory.mktemp("small")
    evidence = folder / "evidence"
    run = write_run(Run(evidence / "smoke" / "run_20260101T000000Z"))
    nbformat.write(
        new_notebook(cells=[new_markdown_cell("# Next\n\n## Results")]), run.path / "notebooks/02_next.ipynb"
    )
    write_run(Run(evidence / "quickstart" / "run_20260202T000000Z"), finished=False)
    hostile_run(Run(evidence / CYCLE / "run_20260303T000000Z"), HOSTILE)
    shutil.copytree(REPOSITORY / "evidence" / "imported", evidence / "imported")
    return render(evidence, folder)


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(REPOSITORY / "evidence", tmp_path_factory.mktemp("committed"))


CYCLE = " ".join(HOSTILE).replace("/", "⁄")[:60].strip() + "#?%41"
"""A name of a folder, so without slashes."""


CONTRAST = """(() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(
    c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4
  ).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = channels(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    const [a, b] = [channels(getComputedStyle(element).color), behind(element)].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push([ratio, walker.currentNode.data.slice(0, 40)]);
  }
  return found;
})()"""
WIDE = """[...document.querySelectorAll('main *')].filter(
  e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll, figure, pre, math, .words')
).map(e => e.outerHTML.slice(0, 80))"""
FIGURES = "[...document.querySelectorAll('img[src]')].map(i => [i.complete && i.naturalWidth > 0, i.alt !== ''])"
HINTS = """[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).map(
  e => getComputedStyle(e).backgroundImage.split('linear-gradient').length === 5 && e.tabIndex === 0
)"""


@pytest.mark.parametrize("which", ["small", "committed"])
def test_every_page_is_quiet_whole_legible_and_no_wider_than_the_screen(
    which: str, tab: Tab, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(which)
    pages = sorted(folder.rglob("*.html"))
    assert len(pages) > len(site.documents()) + 5
    cut = 0
    for page in pages:
        for width, scheme in ((1280, "light"), (380, "dark"), (380, "light"), (1280, "dark")):
            where = f"{page.relative_to(folder)}, {width} px, {scheme}"
            tab.open(page, width, scheme)
            assert tab.complaints == [], where
            outside = [url for url in tab.requests if not url.startswith((folder.resolve().as_uri(), "data:"))]
            assert outside == [], where
            assert tab.evaluate("document.documentElement.scrollWidth") <= width, where
            assert tab.evaluate(WIDE) == [], where
            assert tab.evaluate(CONTRAST) == [], where
            assert all(map(all, tab.evaluate(FIGURES))), where
            hints = tab.evaluate(HINTS)
            assert all(hints), where
            cut += len(hints)
    assert cut > 0  # tables that are wider than their box exist, so the hint was tested


@pytest.mark.parametrize("which", ["small", "committed"])
def test_every_link_leads_to_a_file_of_the_site_and_to_a_place_in_it(
    which: str, tab: Tab, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(which)
    links: set[str] = set()
    places: dict[Path, set[str]] = {}
    for page in folder.rglob("*.html"):
        tab.open(page)
        links |= set(tab.evaluate("[...document.links].map(link => link.href)"))
        places[page.resolve()] = set(tab.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))
    assert len(links) > len(places)
    for link in links:
        address = urlsplit(link)
        path = Path(unquote(address.path))
        assert address.scheme == "file", link
        assert path.is_file(), link
        assert path.is_relative_to(folder.resolve()), link
        assert not address.fragment or unquote(address.fragment) in places[path], link
    assert places.keys() <= {Path(unquote(urlsplit(link).path)) for link in links}  # every page can be reached


def shown(tab: Tab, page: Path) -> str:
    tab.open(page)
    assert tab.complaints == []
    assert tab.evaluate("document.title").endswith("HUSAI")
    assert tab.evaluate("document.querySelectorAll('h1').length") == 1
    assert tab.evaluate("document.querySelectorAll('svg, iframe, main script, main style').length") == 0
    assert tab.evaluate("[...document.scripts].map(script => script.type)") == ["application/json", ""]
    return " ".join(tab.evaluate("document.body.textContent").split())


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_string_appears_as_text(text: str, small: Path, tab: Tab) -> None:
    run = small / "cycles" / CYCLE / "run_20260303T000000Z"
    expected = " ".join(text.split())
    cycle = shown(tab, run.with_suffix(".html"))
    assert cycle.count(expected) >= 6  # condition, data set, task, and the notes of a control and a gate
    notebook = shown(tab, run / "01_hostile.html")
    assert notebook.count(expected) >= 5  # code, standard output, plain text, token, traceback
    if text == HOSTILE[0]:
        assert expected in shown(tab, small / "index.html")  # as the candidate


def test_a_hostile_name_of_a_cycle_appears_as_text(small: Path, tab: Tab) -> None:
    for page in (small / "index.html", small / "cycles" / CYCLE / "run_20260303T000000Z.html"):
        assert CYCLE in shown(tab, page)


def test_verdicts_have_words_for_screen_readers_and_marks_and_colours_for_eyes(small: Path, tab: Tab) -> None:
    tab.open(small / "index.html")
    marks = tab.evaluate("[...document.querySelectorAll('.mark')].map(e => [e.title, e.textContent, e.offsetWidth])")
    assert ["transcoder: fail", "✗ transcoder: fail;"] in [[title, text.strip()] for title, text, _ in marks]
    assert max(width for _, _, width in marks) < 40  # the words are not drawn
    tab.open(small / "cycles" / "smoke" / "run_20260101T000000Z.html")
    drawn = tab.evaluate("""[...document.querySelectorAll('td.verdict')].map(
      e => [e.textContent, getComputedStyle(e, '::before').content, getComputedStyle(e).color])""")
    kinds = {word: (mark, colour) for word, mark, colour in drawn}
    assert [json.loads(kinds[word][0]) for word in ("pass", "FAIL", "missing")] == ["✓ ", "✗ ", "– "]
    assert len({colour for _, colour in kinds.values()}) == 3


def test_a_print_opens_folded_notes_and_leaves_the_list_of_pages_out(small: Path, tab: Tab) -> None:
    tab.open(small / "cycles" / "imported" / "cycle3.html")
    folded = "document.querySelector('td details')"
    height = tab.evaluate(f"{folded}.offsetHeight")
    tab.call("Emulation.setEmulatedMedia", media="print")
    assert tab.evaluate(f"{folded}.offsetHeight") > height
    assert tab.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    tab.call("Emulation.setEmulatedMedia", media="")


def page_of_quickstart(folder: Path) -> Path:
    return next((folder / "cycles" / "quickstart").glob("*.html"))


SEARCH = """(words => {
  const input = document.querySelector('#search input');
  input.value = words;
  input.dispatchEvent(new Event('input'));
  return [...document.querySelectorAll('#search a')].map(link => [link.textContent, link.href]);
})(%s)"""


def test_search_finds_headings_by_all_their_words_and_leads_there(committed: Path, tab: Tab) -> None:
    tab.open(page_of_quickstart(committed))
    assert tab.evaluate("document.getElementById('search').checkVisibility()")
    found = tab.evaluate(SEARCH % json.dumps("ACROSS stability methods"))
    assert [text for text, _ in found] == ["Methods · Stability across seeds"]
    address = urlsplit(found[0][1])
    assert Path(unquote(address.path)) == (committed / "docs" / "methods.html").resolve()
    assert address.fragment == "stability-across-seeds"
    assert tab.evaluate(SEARCH % json.dumps("")) == []
    assert tab.evaluate(SEARCH % json.dumps("no such words anywhere")) == []
    assert "No page" in tab.evaluate("document.querySelector('#search ul').textContent")


def test_a_hostile_title_is_text_among_the_results(small: Path, tab: Tab) -> None:
    tab.open(small / "index.html")
    found = tab.evaluate(SEARCH % json.dumps(CYCLE[:12]))
    assert any(CYCLE[:12] in text for text, _ in found)
    assert tab.evaluate("document.querySelectorAll('#search li > :not(a), #search a > *').length") == 0
    assert tab.complaints == []


SORTED = """(column => {
  const table = [...document.querySelectorAll('main table')].find(table => table.tBodies[0].rows.length > 4);
  const head = [...table.tHead.rows[0].cells].find(cell => cell.textContent.startsWith(column));
  head.querySelector('button').click();
  return [head.getAttribute('aria-sort'), [...table.tBodies[0].rows].map(row => row.cells[head.cellIndex].textContent)];
})(%s)"""


def test_a_table_sorts_by_number_with_missing_values_last_and_comes_back(committed: Path, tab: Tab) -> None:
    tab.open(page_of_quickstart(committed))
    first, second, third = (tab.evaluate(SORTED % json.dumps("Value")) for _ in range(3))
    assert (first[0], second[0], third[0]) == ("ascending", "descending", None)
    numbers = [float(text.replace("−", "-")) for text in first[1] if text != "n/a"]
    assert numbers == sorted(numbers)
    assert len(numbers) > 4
    assert [text for text in second[1] if text != "n/a"] == [text for text in first[1] if text != "n/a"][::-1]
    assert set(first[1][len(numbers) :]) <= {"n/a"}
    assert sorted(third[1]) == sorted(first[1])


WRITE = """((texts) => {
  const table = [...document.querySelectorAll('main table')].find(table => table.tBodies[0].rows.length > 5);
  [...table.tBodies[0].rows].forEach((row, i) => row.cells[0].textContent = texts[i] ?? '');
  table.tHead.rows[0].cells[0].querySelector('button').focus();
})(%s)"""
READ = "[...document.activeElement.closest('table').tBodies[0].rows].map(row => row.cells[0].textContent)"
ENTER = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}


@pytest.mark.parametrize(
    ("texts", "ascending"),
    [
        (["10", "n/a", "1e-05", "1,200", "-3", ""], ["-3", "1e-05", "10", "1,200", "n/a", ""]),
        (
            ["0.9 [0.8, 1.0]", "n/a [n/a, n/a]", "0.25 (8)", "12%"],
            ["0.25 (8)", "0.9 [0.8, 1.0]", "12%", "n/a [n/a, n/a]"],
        ),
        (["157_amazon", "5_hist", "bank", "21_head"], ["5_hist", "21_head", "157_amazon", "bank"]),
        (["2026-11-28", "2026-02-15", "2025-12-01"], ["2025-12-01", "2026-02-15", "2026-11-28"]),
        (["≥ 0", "≤ 0.1", "≥ -0.05"], ["≥ -0.05", "≥ 0", "≤ 0.1"]),
    ],
)
def test_enter_sorts_numbers_by_value_and_names_and_dates_as_they_read(
    texts: list[str], ascending: list[str], committed: Path, tab: Tab
) -> None:
    tab.open(page_of_quickstart(committed))
    tab.evaluate(WRITE % json.dumps(texts))
    missing = [text for text in texts if text.startswith("n/a") or not text]
    known = [text for text in ascending if text not in missing]
    for expected in (ascending, known[::-1] + missing):
        for kind in ("keyDown", "keyUp"):
            tab.call("Input.dispatchKeyEvent", type=kind, **ENTER)
        assert tab.evaluate(READ)[: len(texts)] == expected


EDGES = """[...document.querySelectorAll('#search li')].map(
  e => e.getBoundingClientRect()).map(box => [box.left, box.right])"""


def test_results_fit_on_a_phone_and_can_be_read(committed: Path, tab: Tab) -> None:
    for scheme in ("light", "dark"):
        tab.open(page_of_quickstart(committed), 380, scheme)
        assert len(tab.evaluate(SEARCH % json.dumps("seeds"))) > 5
        assert tab.evaluate("document.documentElement.scrollWidth") <= 380
        edges = tab.evaluate(EDGES)
        assert all(0 <= left < right <= 380 for left, right in edges)
        assert tab.evaluate(CONTRAST) == []


def test_a_page_without_javascript_has_its_tables_and_no_search_box(committed: Path, tab: Tab) -> None:
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(page_of_quickstart(committed))
        assert tab.complaints == []
        assert not tab.evaluate("document.getElementById('search').checkVisibility()")
        assert tab.evaluate("document.querySelectorAll('main table').length") > 5
        assert tab.evaluate("document.querySelectorAll('main button').length") == 0
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)


def test_no_two_places_of_a_page_have_the_same_name(committed: Path, tab: Tab) -> None:
    for page in committed.rglob("*.html"):
        tab.open(page)
        names = tab.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
        assert len(names) == len(set(names)), page


def test_a_planted_script_or_handler_does_not_run(committed: Path, tab: Tab, tmp_path: Path) -> None:
    text = page_of_quickstart(committed).read_text(encoding="utf-8")
    planted = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\"></main>"
    (tmp_path / "page.html").write_text(text.replace("</main>", planted, 1), encoding="utf-8")
    tab.open(tmp_path / "page.html")
    assert tab.evaluate("document.title") != "run"
    assert sum("Content Security Policy" in complaint for complaint in tab.complaints) == 2
    assert tab.evaluate("document.getElementById('search').hidden") is False
