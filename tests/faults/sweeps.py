"""A real sweep of the bundled pictures, started as people start it, and what it leaves on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

MARK = "FAULTS_MARK"
"""Variable of the environment by which the processes of a sweep are known."""

SECONDS = 600.0
"""How long a sweep of few runs may take on a busy machine."""


DIGITS = """\
task = "fashion"
models = ["vit_mini"]
methods = ["minmax"]
bits = ["W6A6", "W4A4"]
seeds = [0, 1]
limit = 40
calibration_images = 2
"""
"""Four runs of a bundled model and their reference."""

TWO_DIGITS = DIGITS.replace("seeds = [0, 1]", "seeds = [0]")
"""Two of them, where only what a sweep leaves on disk counts."""

TOYS = """\
task = "toy"
models = ["toy_a"]
methods = ["toy-plain", "toy-random"]
bits = ["W6A6", "W4A4", "W3A3"]
seeds = [0, 1, 2, 3]
calibration_images = 2
"""
"""24 runs of a model so small that starting them takes longer than they do, and their reference."""

TOY_PLUGIN = ROOT / "tests" / "bench" / "fakes.py"


def start(
    suite: Path, output: Path, *more: str, mark: str = "", printed: Path | None = None
) -> subprocess.Popen[str]:
    """``bench run SUITE --output OUTPUT`` as a process group of its own; it prints into a file beside it.

    Its temporary folder is the one called ``tmp`` beside the output.
    """
    environment = {key: text for key, text in os.environ.items() if not key.startswith("BENCH_")}
    environment |= {"PYTHONPATH": str(ROOT), MARK: mark, "OMP_WAIT_POLICY": "PASSIVE"}
    environment["TMPDIR"] = str(output.parent / "tmp")
    (output.parent / "tmp").mkdir(parents=True, exist_ok=True)
    if '"toy"' in suite.read_text():
        more = (*more, "--plugin", str(TOY_PLUGIN))
    printed = printed or printed_file(output)
    with printed.open("w", encoding="utf-8") as file:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "vit_ptq_bench",
                "run",
                str(suite),
                "--output",
                str(output),
                *more,
            ],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=environment,
        )


def printed_file(output: Path) -> Path:
    """What the sweep into ``output`` has printed last."""
    return output.with_name(f"{output.name}.txt")


def finished_sweep(folder: Path) -> Path:
    """The output folder of an undisturbed sweep with its quantized models; made once below ``folder``."""
    output = folder / "undisturbed"
    if not output.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        suite = folder / "fashion.toml"
        suite.write_text(TWO_DIGITS)
        status = start(suite, output, "--save-models").wait(SECONDS)
        assert status == 0, printed_file(output).read_text()
    return output


def record_files(output: Path) -> dict[str, Path]:
    """The record files by name, which is the run's id."""
    return {path.stem: path for path in sorted(output.glob("runs/*/*/*.json"))}


RESULT = (
    "spec",
    "status",
    "metrics",
    "intervals",
    "standard_errors",
    "n",
    "size_mb",
    "outcomes_sha256",
)


def result(record: Mapping[str, Any]) -> dict[str, Any]:
    """What of a record must not depend on how its sweep came to its end."""
    return {key: record[key] for key in RESULT}
