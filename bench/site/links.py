"""Links between pages: written for a reader of the repository, rewritten for a reader of the site."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping

DOCS = "docs/"

LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?(?P<after>\))")
FOREIGN = re.compile(r"^([a-z]+:|//|/)", re.IGNORECASE)


def rewritten(text: str, source: str, page: str, taken: Mapping[str, str]) -> str:
    """Return markdown with its links as they are on the site.

    Args:
        text: the markdown.
        source: path of its file in the repository; links are relative to its folder.
        page: path of the page on the site.
        taken: path in the repository -> path on the site, of what is not in ``docs/``. A link to anything
            else outside ``docs/`` stays as it is.
    """

    def target(found: re.Match[str]) -> str:
        if FOREIGN.match(found["target"]):
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), found["target"]))
        there = taken.get(path) or (path.removeprefix(DOCS) if path.startswith(DOCS) else "")
        if not there:
            return found[0]
        link = posixpath.relpath(there, posixpath.dirname(page) or ".")
        return f"{found['before']}{link}{found['anchor'] or ''}{found['after']}"

    return LINK.sub(target, text)
