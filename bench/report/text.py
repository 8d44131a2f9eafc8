"""Texts in markdown: names and messages from records are shown as they are, whatever is in them."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from tabulate import tabulate

MARKS = re.compile(r"([\\`*\[\]~])|(?<![^\W_])(_+)|(_+)(?![^\W_])")
"""Signs that begin or end code, emphasis, links and images; ``_`` does so at the edge of a word only."""

LINKS = re.compile(r":(?=//)|(?<=www)\.", re.IGNORECASE)
"""What GitHub takes for an address without any sign around it."""


def plain(text: str) -> str:
    """A text that markdown shows as it is: in one line, without signs that end cells, begin tags or links."""
    return own_words(_without_marks(" ".join(text.split())))


def _without_marks(text: str) -> str:
    return MARKS.sub(lambda match: "".join(f"\\{sign}" for sign in match[0]), text)


def own_words(text: str) -> str:
    """A text of this project's own in a cell: in one line, its code and emphasis as they are."""
    shown = html.escape(" ".join(text.split()), quote=False).replace("|", "&#124;")
    return LINKS.sub(lambda match: f"&#{ord(match[0])};", shown).replace("$", "&#36;")


def code(text: str) -> str:
    """A text as code, in one line; a sign that would end it becomes another."""
    return f"`{' '.join(text.split()).replace('`', chr(39)).replace('|', '¦')}`"


def tagged(text: str) -> str:
    """A text between tags, where markdown has no signs."""
    return html.escape(" ".join(text.split()), quote=False)


def table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    """Return a table of cells as GitHub's markdown has it."""
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)
