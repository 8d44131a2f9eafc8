"""After a sweep: write the leaderboard and show it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from vit_ptq_bench.bench.report.leaderboard import write_leaderboard


def publish(console: Console, folder: Path) -> None:
    """Write the leaderboard of the records in ``folder``, print it, and say where it is.

    A terminal gets the tables drawn, a file or pipe gets the markdown itself.
    """
    path = write_leaderboard(folder)
    text = path.read_text(encoding="utf-8")
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        print(text)
    print(f"leaderboard: {path}")
