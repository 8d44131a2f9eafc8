"""``python -m tests.fuzz``: fuzz every parser for its share of a time budget; 1 if one is found to fail.

A file that made a parser fail is kept in the folder ``fuzz-found``; make it a plain test.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PARSERS = (
    "suite", "config", "record", "outcomes", "labels", "coco", "voc", "yolo-labels", "yolo-names",
    "checkpoint", "saved-model", "shared-tensors",
)  # fmt: skip

FOUND = Path("fuzz-found")

LONGEST = 8192
"""Bytes of a file that is tried."""

TIMEOUT = 20
"""Seconds one file may take."""

MEMORY_MB = 4096


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "seconds",
        nargs="?",
        type=int,
        default=int(os.environ.get("FUZZ_SECONDS", "300")),
        help="for all parsers together (default: FUZZ_SECONDS, or 300)",
    )
    parser.add_argument("--only", nargs="+", choices=PARSERS, default=PARSERS)
    parser.add_argument("--inside", choices=PARSERS, help=argparse.SUPPRESS)
    told = parser.parse_args(arguments)
    if told.inside:
        return _fuzz_here(told.inside, told.seconds)
    each = max(1, told.seconds // len(told.only))
    rows = [_fuzz(name, each) for name in told.only]
    print("\n| parser | files tried | seconds | failures |\n| --- | ---: | ---: | ---: |")
    for name, tried, failures in rows:
        print(f"| {name} | {tried:,} | {each} | {failures} |")
    return 1 if any(failures for _, _, failures in rows) else 0


def _fuzz(name: str, seconds: int) -> tuple[str, int, int]:
    """Fuzz one parser in a process of its own: its name, the files that were tried, failures."""
    command = [sys.executable, "-m", "tests.fuzz", str(seconds), "--inside", name]
    ended = subprocess.run(
        command, stderr=subprocess.PIPE, text=True, errors="replace", check=False
    )
    counts = re.findall(r"^#(\d+)\s|^Done (\d+) runs", ended.stderr, re.MULTILINE)
    tried = max((int(a or b) for a, b in counts), default=0)
    print(f"{name}: {tried} files tried, exit status {ended.returncode}", flush=True)
    if ended.returncode:
        print(ended.stderr[-3000:], flush=True)
    return name, tried, int(ended.returncode != 0)


def _fuzz_here(name: str, seconds: int) -> int:
    """Run the fuzzer on one parser; it ends the process itself."""
    import atheris

    with atheris.instrument_imports(include=["vit_ptq_bench", "tomllib", "yaml"]):
        from tests.fuzz.targets import PARSERS as TARGETS
        from vit_ptq_bench.errors import UserError

    target = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        place, corpus = Path(folder) / "place", Path(folder) / "corpus"
        place.mkdir()
        corpus.mkdir()
        target.prepare(place)
        for number, seed in enumerate(target.seeds()):
            (corpus / str(number)).write_bytes(seed)
            target.read(place, seed)  # what cannot be read as it is begins nothing

        def one(data: bytes) -> None:
            try:
                target.read(place, data)
            except UserError:
                return

        FOUND.mkdir(exist_ok=True)
        options = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", f"-timeout={TIMEOUT}",
                   f"-rss_limit_mb={MEMORY_MB}", f"-artifact_prefix={FOUND}/{name}-"]  # fmt: skip
        atheris.Setup([sys.argv[0], *options, str(corpus)], one)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
