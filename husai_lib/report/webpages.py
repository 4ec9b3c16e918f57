"""Executed notebooks and Markdown as web pages.

Their content is not trusted: text reaches a page escaped or through an allow-list, and no page loads or links to
anything outside the site.
"""

import html
import json
import re
import textwrap
from collections import Counter
from dataclasses import dataclass, replace
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
from husai_lib.evidence.steps import figure_name
from husai_lib.files import REPOSITORY
from husai_lib.report import consistency, scaling, sentences, tables
from husai_lib.report.cells import escape

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
    """The run that the page of a cycle or a notebook belongs to; else empty."""

    @property
    def window_title(self) -> str:
        """The title with the run, as a browser shows it above the page."""
        return " · ".join(filter(None, (self.title, self.run, "HUSAI")))

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


def notebook_page(path: Path, run: str, banner: str = "") -> Page:
    """The page of an executed notebook: prose, folded code and outputs of passive kinds, errors included.

    The title is the leading first-level heading, or the file's name if there is none. Below it stands `banner`, a
    warning in Markdown. Quarto's `#| fig-cap` and `fig-alt` become caption and alternative text. Raises EvidenceError
    for an unreadable notebook.
    """
    cells = read_notebook(path).cells
    for output in (output for cell in cells for output in cell.get("outputs", []) if "data" in output):
        kinds = () if WIDGET in output.data else PASSIVE  # widgets are scripts
        output.data = {kind: output.data[kind] for kind in kinds if kind in output.data}
    body = TEMPLATES.get_template("notebook.html").render(cells=cells)
    page = _titled(f"cycles/{run}/{path.stem}.html", body, run)
    return replace(page, body=f"{markdown_to_html(notice(banner))}{page.body}")


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
    anchors: Counter[str] = Counter()

    def distinct(found: re.Match[str]) -> str:
        anchors[found[2]] += 1
        return found[0] if anchors[found[2]] == 1 else f'{found[1]}{found[2]}-{anchors[found[2]]}"'

    rest = re.sub(r'(<h\d id=")([^"]*)"', distinct, rest)  # headings of the same words
    return Page(path, title, re.sub(r"(</?)h1\b", r"\1h2", rest), run)


def quarto_source(page: Page) -> str:
    """A page as a document for Quarto: its HTML in raw blocks, which neither Pandoc nor Quarto touches.

    Only second-level headings are Markdown, so that Quarto can list them. No shortcode is left.
    """
    untouched = "<!--| quarto-html-table-processing: none -->"
    titles = {"title": escape(page.title), "pagetitle": escape(page.window_title)}
    blocks = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in titles.items()), "---"]
    for part in re.split(r'(<h2 id="[\w-]+">.*?</h2>)', page.body.replace("{{", "&#123;&#123;")):
        if heading := re.fullmatch(r'<h2 id="([\w-]+)">(.*)</h2>', part):
            blocks.append(f"\n## {escape(_plain(heading[2]))} {{#{heading[1]}}}")
        elif part.strip():
            fence = "`" * (3 + max(map(len, re.findall("`+", part)), default=0))
            blocks.append(f"\n{fence}{{=html}}\n{untouched}\n{part.strip()}\n{fence}")
    return "\n".join([*blocks, ""])


def _summary(code: str) -> str:
    """What a cell does, as the label of its fold: its first comment, else its first line that is no import."""
    lines = [line for line in code.splitlines() if line.strip() and not re.match(r"(import|from) ", line)]
    first = next((line.lstrip("# ") for line in lines if line.startswith("#")), lines[0] if lines else "imports")
    return textwrap.shorten(first, 70, placeholder=" …")


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
    """HTML without scripts, styles, event handlers and addresses outside the site.

    Tables scroll, cells that hold a verdict get its colour, and long cells are folded. Cleaning comes last, so that no
    edit can make markup live.
    """
    text = re.sub(r"(?is)<(script|style|title|template)\b.*?</\1\s*>", "", text)
    text = re.sub(r"(?is)<td\b([^>]*)>(.*?)</td>", _cell, text)
    text = re.sub(r"(?i)<table\b", '<div class="scroll" tabindex="0"><table', text)
    return str(CLEANER.clean(re.sub(r"(?i)</table\s*>", "</table></div>", text)))


VERDICTS = {
    "good": ("pass", "met", "releasable", "accepted"),
    "bad": ("fail", "not met", "not releasable", "damaged"),
    "open": ("missing", "unreachable", "not comparable", "unfinished"),
}
"""Colours of verdicts: class names of `content.css`."""


def _cell(cell: re.Match[str]) -> str:
    """A cell of a table with the class of its verdict, or with its text folded where that is long."""
    text = _plain(cell[2])
    kind = next((f"verdict {kind}" for kind, words in VERDICTS.items() if text.lower() in words), "")
    content = cell[2]
    if len(text) > 120 and "<" not in content:
        short = textwrap.shorten(content, 80, placeholder=" …")
        content = f"<details><summary>{short}</summary>{content}</details>"
    kind = kind or ("text" if len(text) > 30 and not re.search("<(br|span)", content) else "")
    return f'<td class="{kind}"{cell[1]}>{content}</td>' if kind else cell[0]


RUN_SOURCE = re.compile(r"^evidence/([^/#]+/[^/#]+)(?:/notebooks(/[^/#]+)\.ipynb)?/?(?=$|#)")
"""The address of a run or of one of its notebooks as the front page has it."""
PAGE_SOURCE = re.compile(r"^(.*(?=\.ipynb)|(?:\.\./)*(?:docs/)?[\w-]+(?=\.md))\.\w+(?=$|#)")
"""The address of a notebook, of a document or of the front page; other Markdown files are published as they are."""


class _Renderer(IPythonRenderer):  # type: ignore[misc]  # nbconvert has no types
    """nbconvert's Markdown renderer with MathML for formulas and anchors at headings."""

    def inline_math(self, body: str) -> str:
        return _mathml(body, "inline")

    def block_math(self, body: str) -> str:
        return _mathml(body, "block")

    def link(self, text: str, url: str, title: str | None = None) -> str:
        page = PAGE_SOURCE.sub(r"\1.html", RUN_SOURCE.sub(r"cycles/\1\2.html", url))
        return str(super().link(text, page, title))

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
    "code_summary": _summary,
    "highlight": Highlight2HTML(),
    "markdown": markdown_to_html,
    "sanitize": sanitize,
    "split_options": _split_options,
    "strip_ansi": strip_ansi,
}
TEMPLATES.globals |= {"gates": gates, "sentences": sentences, "tables": tables, "consistency": consistency,
                      "scaling": scaling, "figure_name": figure_name}  # fmt: skip
"""Page templates; HTML templates escape all text except what the functions above return, which is marked safe."""
