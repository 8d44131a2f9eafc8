"""The pages of the site before they are drawn: files of the repository, and what is made of records."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning import registry
from vit_ptq_bench.bench.report.leaderboard import MARKDOWN, PAGE, make_leaderboard
from vit_ptq_bench.bench.site.links import DOCS, rewritten
from vit_ptq_bench.bench.site.method_page import by_family, index_page, method_page

if TYPE_CHECKING:
    from vit_ptq_bench.methods import Method

COPIED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "development.md",
    "CHANGELOG.md": "changelog.md",
}
"""File of the repository -> the page that it is."""

MEASURED = {"results": "bundled models", "results/imagenet-sample": "a real ViT-Tiny"}
"""Folder of results of all methods -> what they are of."""

EXTRA = "_extra"
"""Folder of files that go to the site as they are."""

CONTENTS = {
    "Start": ("start", "methods/index"),
    "Results": (
        "published",
        "miniature",
        "vit_tiny",
        "Studies of reconstruction <reconstruction>",
        "ROSE <rose>",
        "parts",
        "performance",
    ),
    "Using it": (
        "models",
        "data",
        "data_free",
        "mixed_precision",
        "detection",
        "diagnosis",
        "api",
        "deployment",
        "scale",
        "reliability",
    ),
    "Taking part": ("extending", "contributing", "development", "architecture", "changelog"),
}
"""Captions of the table of contents -> pages, with a title where it is not the page's own."""


def write_sources(root: Path, folder: Path) -> None:
    """Write all pages as markdown.

    Args:
        root: of the repository.
        folder: is made; what was in it is lost.

    Raises:
        BenchError: a method has no page in ``docs/methods/``, or a page no method.
    """
    shutil.rmtree(folder, ignore_errors=True)
    results = _results(root)
    taken = COPIED | results
    pages = {path: (root / path).read_text(encoding="utf-8") for path in taken}
    for file in sorted((root / DOCS).rglob("*.md")):
        pages[file.relative_to(root).as_posix()] = file.read_text(encoding="utf-8")
    pages |= {f"{DOCS}{page}": text for page, text in method_pages(root)}
    pages["README.md"] += _contents(list(results))
    for path, text in pages.items():
        page = taken.get(path) or path.removeprefix(DOCS)
        target = folder / page
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(rewritten(text, path, page, taken), encoding="utf-8")
    for drawing in (root / DOCS).glob("*.svg"):
        shutil.copy(drawing, folder)
    for path in results:
        extra = folder / EXTRA / Path(path).parent / PAGE
        extra.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / Path(path).parent / PAGE, extra)


def method_pages(root: Path) -> Iterator[tuple[str, str]]:
    """Yield the path under ``docs/`` and the markdown of each method's page, and of their index.

    Raises:
        BenchError: as `write_sources`.
    """
    own = {name: cls for name, cls in registry.methods().items() if _of_the_project(cls)}
    written = {path.stem: path for path in (root / DOCS / "methods").glob("*.md")}
    if own.keys() != written.keys():
        odd = ", ".join(sorted(own.keys() ^ written.keys()))
        raise BenchError(f"docs/methods/ must have one page for each method; see {odd}")
    measured = [
        (title, make_leaderboard(root / folder).tables)
        for folder, title in MEASURED.items()
        if (root / folder / MARKDOWN).is_file()
    ]
    families = by_family(own.values())
    yield (
        "methods/index.md",
        index_page(families) + "".join(_tree([cls.name for cls in each]) for _, each in families),
    )
    for name, cls in own.items():
        text = written[name].read_text(encoding="utf-8")
        yield f"methods/{name}.md", method_page(cls, text, measured)


def _of_the_project(cls: type[Method]) -> bool:
    return cls.__module__.startswith("vit_ptq_bench.methods.")


def _results(root: Path) -> dict[str, str]:
    """Every leaderboard of the repository, which is a page of the same path."""
    found = [path.relative_to(root).as_posix() for path in root.glob(f"results/**/{MARKDOWN}")]
    return {path: path for path in sorted(found)}


def _contents(results: list[str]) -> str:
    trees = {caption: list(pages) for caption, pages in CONTENTS.items()}
    leaderboards = [f"{_title(path)} <{path.removesuffix('.md')}>" for path in results]
    trees["Results"] = [*leaderboards, *trees["Results"]]
    return "".join(_tree(pages, caption) for caption, pages in trees.items())


def _title(leaderboard: str) -> str:
    """Leaderboards share a heading; in the table of contents their folder tells them apart."""
    folder = Path(leaderboard).parent.name
    return "Leaderboard" if folder == "results" else f"Leaderboard of {folder}"


def _tree(pages: list[str], caption: str = "") -> str:
    """A part of the table of contents, which shows beside the pages only."""
    lines = [
        "```{toctree}",
        ":hidden:",
        *([f":caption: {caption}"] if caption else []),
        *pages,
        "```",
    ]
    return "\n" + "\n".join(lines) + "\n"
