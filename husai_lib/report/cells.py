"""Cells of tables as Markdown.

All numbers that a page shows are formatted here, so that digits, signs and missing values look the same everywhere.
"""

from __future__ import annotations

import html
import re
import string
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

Template = str | Callable[[dict[str, Any]], str]
"""A `str.format` template over a row's fields, or a function of them that returns Markdown."""
Columns = Mapping[str, Template]
"""Heading -> template of the cells."""


def escape(text: str) -> str:
    """`text` as literal Markdown in one line: nothing in it acts as markup, HTML, formula or table border."""
    one_line = html.escape(" ".join(text.split()), quote=False)
    one_line = one_line.replace("\\", "&#92;")  # nbconvert reads two backslashes before a bracket as a formula
    one_line = one_line.replace("://", "&#58;//")  # and a bare address as a link
    return re.sub(r"([`*\[\]$~^|{}]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", one_line)


class Cell(string.Formatter):
    """Formats a cell template: null as `n/a`, booleans as words, a list as mean and range, all text escaped."""

    def format_field(self, value: Any, format_spec: str) -> str:
        """The text of one field of a template."""
        if isinstance(value, list):
            known = [one for one in value if one is not None]
            if len(set(known)) > 1:
                if isinstance(known[0], bool):
                    return f"{sum(known)} of {len(known)} seeds"
                mean, low, high = (f"{one:{format_spec}}" for one in (fmean(known), min(known), max(known)))
                return f"{mean} ({low} to {high})"
            value = known[0] if known else None
        if value is None:
            return "n/a"
        return escape(("no", "yes")[value] if isinstance(value, bool) else format(value, format_spec))


def cell(row: dict[str, Any], template: Template) -> str:
    """The Markdown that a template gives for a row's fields."""
    return template(row) if callable(template) else Cell().vformat(template, (), row)
