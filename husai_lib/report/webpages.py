"""Executed notebooks and Markdown as web pages.

Their content is not trusted: text reaches a page escaped or through an allow-list, and no page loads or links to
anything outside the site.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bleach
import jinja2
import nbformat
from bleach.css_sanitizer import CSSSanitizer
from latex2mathml import exceptions as latex_errors
from latex2mathml.converter import convert as latex_to_mathml
from nbconvert.filters import Highlight2HTML, strip_ansi
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from husai_lib.decisions import gates
from husai_lib.errors import EvidenceError
from husai_lib.files import REPOSITORY
from husai_lib.report import sentences, tables

DATA = REPOSITORY / "husai_lib" / "data"


@dataclass(frozen=True)
class Page:
    """A page of the website."""

    path: str
    """Path of the HTML file within the site."""
    title: str
    """Plain text."""
    body: str
    """Sanitised HTML."""
    run: str = ""
    """The run that a notebook belongs to; empty for the front page and the documentation."""

    @property
    def headings(self) -> list[tuple[str, str]]:
        """Anchor and text of each second-level heading."""
        return [(anchor, _plain(text)) for anchor, text in re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', self.body)]


PASSIVE = ("text/plain", "text/markdown", "text/html", "image/png", "image/jpeg")
WIDGET = "application/vnd.jupyter.widget-view+json"


def read_notebook(path: Path) -> Any:
    """The notebook in a file; EvidenceError if it is not a notebook."""
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise EvidenceError(f"{path} is not a readable notebook ({type(error).__name__}); run its step again") from None


def passive_notebook(path: Path, banner: str = "") -> Any:
    """The notebook in a file, with outputs of passive kinds only and sanitised HTML.

    Widgets, which are scripts, are removed. `banner`, a warning in Markdown, is placed below the title.
    """
    notebook = read_notebook(path)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output):
        passive = {} if WIDGET in output.data else {kind: output.data[kind] for kind in PASSIVE if kind in output.data}
        output.data = {kind: sanitize(text) if kind == "text/html" else text for kind, text in passive.items()}
    if banner:
        if not notebook.cells or notebook.cells[0].cell_type != "markdown":
            notebook.cells.insert(0, nbformat.v4.new_markdown_cell(id="banner"))
        source = notebook.cells[0].source
        title = heading[0] if (heading := re.match(r"\s*# .*", source)) else ""
        notebook.cells[0].source = f"{title}\n\n{notice(banner)}\n{source.removeprefix(title)}"
    return notebook


def notebook_page(path: Path, run: str, banner: str = "") -> Page:
    """The page of an executed notebook: prose, folded code and outputs, errors included.

    The title is the leading first-level heading, or the file's name if there is none. Quarto's `#| fig-cap` and
    `fig-alt` become caption and alternative text. Raises EvidenceError for an unreadable notebook.
    """
    body = TEMPLATES.get_template("notebook.html").render(cells=passive_notebook(path, banner).cells)
    return _titled(f"evidence/{run}/notebooks/{path.stem}.html", body, run)


def document_page(path: Path) -> Page:
    """The page of a Markdown file of `docs/`."""
    return _titled(f"docs/{path.stem}.html", markdown_to_html(path.read_text(encoding="utf-8")))


def notice(banner: str) -> str:
    """A warning in Markdown as a callout; empty if there is none."""
    return f'<div class="callout-warning">\n\n{banner}\n\n</div>\n' if banner else ""


def _titled(path: str, body: str, run: str = "") -> Page:
    """A page titled by the leading heading of its body, or by its file name; it keeps no other first-level heading."""
    heading = re.match(r"\s*<h1[^>]*>(.*?)</h1>", body)
    title, rest = (_plain(heading[1]), body[heading.end() :]) if heading else (Path(path).stem, body)
    return Page(path, title, re.sub(r"(</?)h1\b", r"\1h2", rest), run)


def _split_options(source: str) -> tuple[dict[str, str], str]:
    """Quarto's `#| key: "value"` lines of a cell, and the code without them."""
    options = dict(re.findall(r'(?m)^#\| *([\w-]+): *"?(.*?)"?$', source))
    return options, re.sub(r"(?m)^#\|.*\n?", "", source).strip()


# latex2mathml's own errors share no base class; broken input also raises the built-in ones.
FORMULA_ERRORS: tuple[type[Exception], ...] = (
    *(error for error in vars(latex_errors).values() if isinstance(error, type) and issubclass(error, Exception)),
    *(ValueError, LookupError, TypeError, AttributeError, RuntimeError, StopIteration),
)

TAGS = """br caption dd del details div dl dt figcaption figure h1 h2 h3 h4 h5 h6 hr img p pre s small span sub summary
 sup table tbody td tfoot th thead tr math menclose mfrac mi mmultiscripts mn mo mover mpadded mphantom mroot mrow
 mspace msqrt mstyle msub msubsup msup mtable mtd mtext mtr munder munderover"""
ATTRIBUTES = """accent alt class colspan columnalign display fence id lspace mathvariant rowspan rspace scope stretchy
 style tabindex title width"""


def _is_allowed(tag: str, name: str, value: str) -> bool:
    """Whether an attribute may stay: plain ones, addresses within the site and embedded images."""
    if (tag, name) not in (("a", "href"), ("img", "src")):
        return name in ATTRIBUTES.split()
    address = re.sub(r"[\x00-\x20\x7f-\xa0\s]", "", html.unescape(value))  # as a browser reads it
    if tag == "img" and re.match(r"data:image/(png|jpeg|gif);base64,", address):
        return True
    return ":" not in address.partition("#")[0] and not address.startswith(("/", "\\"))


CLEANER = bleach.Cleaner(
    tags=bleach.ALLOWED_TAGS | set(TAGS.split()),
    attributes=_is_allowed,
    protocols={"data", "http"},  # `http` makes bleach keep relative addresses; `_is_allowed` refuses others
    strip=True,
    css_sanitizer=CSSSanitizer(allowed_css_properties=["text-align"]),
)


def sanitize(text: str) -> str:
    """HTML without scripts, styles, event handlers and addresses outside the site; tables scroll.

    Cleaning comes last, so that no later edit can make markup live.
    """
    text = re.sub(r"(?is)<(script|style|title|template)\b.*?</\1\s*>", "", text)
    text = re.sub(r"(?i)<table\b", '<div class="scroll" tabindex="0"><table', text)
    return str(CLEANER.clean(re.sub(r"(?i)</table\s*>", "</table></div>", text)))


PAGE_SOURCE = re.compile(r"^(.*(?=\.ipynb)|(?:\.\./)*(?:docs/)?[\w-]+(?=\.md))\.\w+(?=$|#)")
"""The address of a notebook, of a document or of the front page; other Markdown files are published as they are."""


class _Renderer(IPythonRenderer):  # type: ignore[misc]  # nbconvert has no types
    """nbconvert's Markdown renderer with MathML for formulas and anchors at headings."""

    def inline_math(self, body: str) -> str:
        return _mathml(body, "inline")

    def block_math(self, body: str) -> str:
        return _mathml(body, "block")

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return str(super().link(text, PAGE_SOURCE.sub(r"\1.html", url), title))

    def heading(self, text: str, level: int, **_: Any) -> str:
        anchor = re.sub(r"\W+", "-", _plain(text).lower()).strip("-")
        return f'<h{level} id="{anchor}">{text}</h{level}>\n'


def _mathml(latex: str, display: str) -> str:
    try:
        return str(latex_to_mathml(latex.strip(), display=display))
    except FORMULA_ERRORS:  # a formula that cannot be typeset is shown as it was written
        return f"<code>{html.escape(latex)}</code>"


def markdown_to_html(text: str) -> str:
    """Safe HTML of the Markdown that pandoc, Jupyter and GitHub have in common.

    Formulas become MathML; links to notebooks and documents lead to their pages.
    """
    return sanitize(MarkdownWithMath(renderer=_Renderer(escape=False)).render(text))


def _plain(markup: str) -> str:
    """The text of HTML, without its tags."""
    return html.unescape(re.sub(r"<[^>]+>", "", markup)).strip()


TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(DATA),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {
    "highlight": Highlight2HTML(),
    "markdown": markdown_to_html,
    "split_options": _split_options,
    "strip_ansi": strip_ansi,
}
TEMPLATES.globals |= {"gates": gates, "sentences": sentences, "tables": tables}
"""Page templates; HTML templates escape all text except what the functions above return, which is marked safe."""
