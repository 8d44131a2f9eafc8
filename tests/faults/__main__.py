"""``python -m tests.faults``: cause faults of every kind, print what came of them; 1 if anything is wrong."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.faults.trials import Kind, Row, run_kind, table

MODULES = {
    "kills": ("kills",),
    "company": ("company",),
    "flips": ("flips", "old-flips"),
    "cuts": ("cuts",),
    "suites": ("suites",),
    "annotations": ("coco",),
    "conversions": ("voc", "yolo"),
    "labels": ("labels",),
    "checkpoints": ("pt", "safetensors", "saved"),
}
"""Module -> its kinds; those that nobody asks for are not imported, for some take seconds."""

SHOWN = 20
"""Bad trials of one kind that are printed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="KIND", help="modules or kinds")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full numbers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trial", type=int, help="this trial alone, in the same chance as before")
    parser.add_argument("--folder", type=Path, help="work there, and keep what is made")
    told = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        folder = told.folder or Path(temporary)
        rows = [_run(kind, folder / kind.name.replace(" ", "-"), told) for kind in kinds(told.only)]
    print(f"\n{table(rows)}")
    return 1 if any(row.bad for row in rows) else 0


def kinds(only: Sequence[str]) -> list[Kind]:
    """The kinds of fault that are called so, or stand in modules that are; all if nothing is said."""
    wanted = {
        module: [name for name in names if not only or {module, name} & set(only)]
        for module, names in MODULES.items()
    }
    chosen = [
        kind
        for module, names in wanted.items()
        if names
        for kind in importlib.import_module(f"tests.faults.{module}").KINDS
        if kind.name in names
    ]
    if not chosen:
        raise SystemExit(f"there is no kind of fault called {', '.join(only)}")
    return chosen


def _run(kind: Kind, folder: Path, told: argparse.Namespace) -> Row:
    print(f"{time.strftime('%H:%M:%S')} {kind.name}: {kind.what}", flush=True)
    row = run_kind(kind, folder, told.scale, told.seed, told.trial)
    for number, outcome in row.bad[:SHOWN]:
        repeat = f"--only {kind.name} --seed {told.seed} --trial {number}"
        print(f"  {outcome.verdict.upper()} ({repeat}): {outcome.text}", flush=True)
    if len(row.bad) > SHOWN:
        print(f"  and {len(row.bad) - SHOWN} more", flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
