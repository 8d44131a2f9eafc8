"""`bench new-method`: write a working file to begin with."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "new-method",
        help="write a working method to begin with",
        description="Write a file with a method that runs and keeps the contract, to be changed.",
    )
    parser.set_defaults(function=run)
    parser.add_argument("name", metavar="NAME", help="lower-case kebab, like my-method")
    parser.add_argument(
        "--folder", metavar="DIR", type=Path, default=Path(), help="where (default: here)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the file, say what comes next, and return the exit status."""
    from vit_ptq_bench.bench.planning.new_method import write_method

    path = write_method(arguments.name, arguments.folder)
    print(f"{path}: a method that cuts ranges, to be changed. Try it:")
    print(f"    bench check-method {path}")
    print(f"    bench run quick --plugin {path} --methods minmax,{arguments.name} --bits W4A4")
    return 0
