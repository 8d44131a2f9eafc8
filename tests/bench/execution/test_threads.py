"""The cores of a machine change no result of a bundled model, through the real command.

With two threads torch adds up in another order than with one, and swin_mini gets other last bits; so runs of
the bundled tasks compute on one, however many there are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
SUITE = """
task = "fashion"
models = ["swin_mini"]
methods = ["repq-vit"]
bits = ["W4A4"]
limit = 50
calibration_images = 8
"""


def outcomes(folder: Path, cores: int) -> dict[str, Any]:
    """Run the suite on so many cores; the results by run id, read without the code under test."""
    command = [sys.executable, "-m", "vit_ptq_bench", "run", "suite.toml", "--workers", "1"]
    finished = subprocess.run(
        [*command, "--output", f"cores-{cores}"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(cores)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    paths = (folder / f"cores-{cores}").glob("runs/*/*/*.json")
    records = [json.loads(path.read_text()) for path in paths]
    assert {record["environment"]["threads"] for record in records} == {1}
    return {r["run_id"]: (r["outcomes_sha256"], r["metrics"], r["intervals"]) for r in records}


def test_one_core_and_two_give_the_same_bits(tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text(SUITE)
    one = outcomes(tmp_path, 1)
    assert len(one) == 2 and outcomes(tmp_path, 2) == one
