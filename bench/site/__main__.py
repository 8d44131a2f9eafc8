"""Build the site: ``python -m vit_ptq_bench.bench.site [FOLDER]``, from a clone; ``tox -e docs`` does so."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from sphinx.cmd.build import build_main

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.site.sources import EXTRA, write_sources


def main(words: list[str] | None = None) -> int:
    """Write the site and return the exit status: 1 after a single warning of Sphinx."""
    parser = argparse.ArgumentParser(prog="python -m vit_ptq_bench.bench.site", description=__doc__)
    parser.add_argument(
        "folder", nargs="?", default="site", help="that the site goes to (default: site)"
    )
    folder = parser.parse_args(words).folder
    root = Path.cwd()
    if not (root / "docs" / "conf.py").is_file():
        print(
            "there is no docs/conf.py here: call this from a clone of the project", file=sys.stderr
        )
        return 2
    with tempfile.TemporaryDirectory() as made:
        pages = Path(made, "pages")
        try:
            write_sources(root, pages)
        except BenchError as error:
            print(error, file=sys.stderr)
            return 2
        settings = ["-q", "-W", "--keep-going", "-c", str(root / "docs"), "-d", f"{made}/kept"]
        settings += ["-D", f"html_extra_path={pages / EXTRA}"]
        return int(build_main([*settings, str(pages), folder]))


if __name__ == "__main__":
    sys.exit(main())
