"""Executed notebooks and Markdown as web pages, by nbconvert's filters.

Nothing in them is trusted: text reaches a page escaped or through an allow-list, and no page loads or
links to anything outside the site.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bleach
import nbformat
import yaml
from bleach.css_sanitizer import CSSSanitizer
from latex2mathml import exceptions as latex_errors
from latex2mathml.converter import convert as latex_to_mathml
from nbconvert.filters import Highlight2HTML, strip_ansi
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from husai_lib.errors import EvidenceError


@dataclass(frozen=True)
class Page:
    """A page of the website."""

    path: str
    """Of the HTML file, within the site."""
    title: str
    body: str
    """HTML, sanitised."""
    run: str = ""
    """The run a notebook belongs to; empty for the index."""

    @property
    def headings(self) -> list[tuple[str, str]]:
        """Anchor and text of the second-level headings."""
        return [(anchor, plain_text(text)) for anchor, text in re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', self.body)]


def index_page(text: str) -> Page:
    """The page of the Markdown that `site.write_index` writes."""
    _, front, text = text.split("---\n", 2)
    title = yaml.safe_load(front)["title"]
    return Page("index.html", title, f"<h1>{html.escape(title)}</h1>\n{markdown_to_html(text)}")


# ---------------------------------------------------------------------------------------------
# Executed notebooks
# ---------------------------------------------------------------------------------------------

FOLDED = {"parameters": "Code: default parameters", "injected-parameters": "Code: parameters of this run (papermill)"}


def read_notebook(path: Path) -> Any:
    """The notebook in a file; EvidenceError if it is not a notebook."""
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise EvidenceError(f"{path} is not a readable notebook ({type(error).__name__}); run its step again") from None


def title_of(notebook: Any, path: Path) -> str:
    """The notebook's leading first-level heading, else its file name."""
    first = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "")
    heading = re.match(r"\s*# +(.+)", first)
    return plain_text(markdown_to_html(heading[1])) if heading else path.stem


def notebook_page(path: Path, run: str) -> Page:
    """The page of an executed notebook: prose, folded code, outputs, errors included.

    Cells tagged `remove-cell`, `hide-cell` or `hide` are left out; Quarto's `#| label`, `fig-cap`, `fig-alt`
    and `tbl-cap` become caption and alternative text. Raises EvidenceError for unreadable notebooks and options.
    """
    notebook = read_notebook(path)
    title = title_of(notebook, path)
    hidden = {"remove-cell", "hide-cell", "hide"}
    cells = [cell for cell in notebook.cells if not hidden & set(cell.metadata.get("tags", []))]
    code = {id(cell): _cell_options(cell.source, path) for cell in cells if cell.cell_type == "code"}
    numbers = _numbers(options.get("label", "") for options, _ in code.values())
    parts = []
    for cell in cells:
        if cell.cell_type == "markdown":
            parts.append(markdown_to_html(cell.source, numbers))
        elif cell.cell_type == "code":
            parts.append(_code_cell(cell, *code[id(cell)], numbers))
    body = "\n".join(parts)
    if not re.match(r"\s*<h1", body):
        body = f"<h1>{html.escape(title)}</h1>\n{body}"
    start = body.index("</h1>") + len("</h1>")  # a page has one first-level heading
    body = body[:start] + re.sub(r"(</?)h1\b", r"\1h2", body[start:])
    return Page(f"evidence/{run}/notebooks/{path.stem}.html", title, body, run)


def _cell_options(source: str, path: Path) -> tuple[dict[str, str], str]:
    """Quarto's `#| key: value` lines at the top of a cell, and the code below them."""
    lines = source.splitlines(keepends=True)
    count = next((i for i, line in enumerate(lines) if not line.startswith("#|")), len(lines))
    try:
        options = yaml.safe_load("".join(line[2:].removeprefix(" ") for line in lines[:count])) or {}
        named = {str(key): str(value) for key, value in options.items()}
    except (yaml.YAMLError, AttributeError):
        first = lines[0].strip()
        raise EvidenceError(f"{path}: the cell options from {first!r} on are not YAML; quote their values") from None
    return named, "".join(lines[count:]).strip()


def _numbers(labels: Iterable[str]) -> dict[str, str]:
    """`fig-…` and `tbl-…` labels with the names that captions and references give them."""
    kinds = {"fig": "Figure", "tbl": "Table"}
    counts: Counter[str] = Counter()
    numbers = {}
    for label in labels:
        kind = label.partition("-")[0]
        if kind in kinds:
            counts[kind] += 1
            numbers[label] = f"{kinds[kind]} {counts[kind]}"
    return numbers


def _code_cell(cell: Any, options: dict[str, str], code: str, numbers: dict[str, str]) -> str:
    label, caption = options.get("label", ""), options.get("fig-cap") or options.get("tbl-cap", "")
    alt = options.get("fig-alt") or caption or "Output of the code above"
    outputs = "\n".join(_output(output, alt) for output in cell.outputs)
    if outputs and caption:
        text = markdown_to_html(f"{numbers[label]}: {caption}" if label in numbers else caption, numbers)
        text = text.strip().removeprefix("<p>").removesuffix("</p>")
        name = f' id="{html.escape(label)}"' if label else ""
        outputs = f"<figure{name}>\n{outputs}\n<figcaption>{text}</figcaption>\n</figure>"
    summary = next((FOLDED[tag] for tag in cell.metadata.get("tags", []) if tag in FOLDED), "Code")
    folded = f'<details class="code"><summary>{summary}</summary>{Highlight2HTML()(code)}</details>' if code else ""
    return f"{folded}\n{outputs}"


def _output(output: Any, alt: str) -> str:
    """One output of a cell: the richest form that is safe and needs no script."""
    if output.output_type == "stream":
        return _preformatted(output.text, output.name)
    if output.output_type == "error":
        return '<p class="error">This cell stopped with an error:</p>' + _preformatted(
            "\n".join(output.traceback), "error"
        )
    data = output.data
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            content = html.escape("".join(data[kind].split()))
            return f'<img src="data:{kind};base64,{content}" alt="{html.escape(alt)}">'
    for kind, convert in (
        ("text/html", sanitize),
        ("text/markdown", markdown_to_html),
        ("text/latex", markdown_to_html),
    ):
        if kind in data:
            return convert(data[kind])
    return _preformatted(data.get("text/plain", ""), "result")


def _preformatted(text: str, kind: str) -> str:
    return f'<pre class="{html.escape(kind)}" tabindex="0">{html.escape(strip_ansi(text))}</pre>'


# ---------------------------------------------------------------------------------------------
# Markdown and foreign HTML -> safe HTML
# ---------------------------------------------------------------------------------------------

# latex2mathml's errors have no base class of their own; the built-in ones are what broken input brings about.
FORMULA_ERRORS: tuple[type[Exception], ...] = (
    *(error for error in vars(latex_errors).values() if isinstance(error, type) and issubclass(error, Exception)),
    *(ValueError, LookupError, TypeError, AttributeError, RuntimeError, StopIteration),
)

HTML_TAGS = """br caption dd del details div dl dt figcaption figure h1 h2 h3 h4 h5 h6 hr img p pre s small span sub
 summary sup table tbody td tfoot th thead tr"""
MATHML_TAGS = """math menclose mfrac mi mmultiscripts mn mo mover mpadded mphantom mroot mrow mspace msqrt mstyle msub
 msubsup msup mtable mtd mtext mtr munder munderover"""
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
    tags=bleach.ALLOWED_TAGS | {*HTML_TAGS.split(), *MATHML_TAGS.split()},
    attributes=_is_allowed,
    protocols={"data", "http"},  # `http` makes bleach keep relative addresses; `_is_allowed` refuses others
    strip=True,
    css_sanitizer=CSSSanitizer(allowed_css_properties=["text-align"]),
)


def sanitize(text: str) -> str:
    """HTML from anywhere without scripts, styles, event handlers and addresses outside the site; tables scroll.

    Cleaning is the last thing done to it, so that no later edit can bring markup to life.
    """
    text = re.sub(r"(?is)<(script|style|title|template)\b.*?</\1\s*>", "", text)
    text = re.sub(r"(?i)<table\b", '<div class="scroll" tabindex="0"><table', text)
    return str(CLEANER.clean(re.sub(r"(?i)</table\s*>", "</table></div>", text)))


class _Renderer(IPythonRenderer):  # type: ignore[misc]  # nbconvert has no types
    """nbconvert's Markdown renderer with MathML for formulas and anchors at headings."""

    def inline_math(self, body: str) -> str:
        return _mathml(body, "inline")

    def block_math(self, body: str) -> str:
        return _mathml(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return _mathml(body if name.rstrip("*") == "equation" else f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return str(super().link(text, re.sub(r"\.ipynb(?=$|#)", ".html", url), title))

    def heading(self, text: str, level: int, **_: Any) -> str:
        anchor = re.sub(r"\W+", "-", plain_text(text).lower()).strip("-")
        return f'<h{level} id="{anchor}">{text}</h{level}>\n'


def _mathml(latex: str, display: str) -> str:
    try:
        return str(latex_to_mathml(latex.strip(), display=display))
    except FORMULA_ERRORS:  # a formula that cannot be typeset is shown as it was written
        return f"<code>{html.escape(latex)}</code>"


def markdown_to_html(text: str, numbers: dict[str, str] | None = None) -> str:
    """Markdown as pandoc, Jupyter and GitHub share it, as safe HTML.

    Formulas become MathML; of Quarto's own syntax callouts, `![caption](image){fig-alt="…"}` and, by
    `numbers`, references such as `@fig-frontier` are understood; links to notebooks lead to their pages.
    """
    for label, name in (numbers or {}).items():
        text = re.sub(rf"@{re.escape(label)}\b(?!-)", f"[{name}](#{label})", text)
    text = re.sub(r"(?m)^:::+ *\{\.(callout-\w+)[^}\n]*\}[ \t]*$", r'\n<div class="callout \1">\n', text)
    text = re.sub(r"(?m)^:::+[ \t]*$", "\n</div>\n", text)
    text = re.sub(r'(?m)^!\[(.*)\]\((\S+?)\)\{[^}\n]*fig-alt="([^"\n]*)"[^}\n]*\}[ \t]*$', _figure, text)
    return sanitize(MarkdownWithMath(renderer=_Renderer(escape=False)).render(text))


def _figure(match: re.Match[str]) -> str:
    caption, source, alt = match.groups()
    return (
        f'<figure><img src="{html.escape(source)}" alt="{html.escape(alt)}"><figcaption>{caption}</figcaption></figure>'
    )


def plain_text(markup: str) -> str:
    """The text of HTML, without its tags."""
    return html.unescape(re.sub(r"<[^>]+>", "", markup)).strip()
