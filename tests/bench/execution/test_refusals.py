"""A method's refusal in the record of a run."""

from __future__ import annotations

from pathlib import Path

from tests.bench.toys import records
from vit_ptq_bench.bench.cli import main

SUITE = """\
task = "fashion"
models = ["vit_mini"]
methods = ["marr", "minmax"]
bits = ["W4A4"]
calibration_images = 3
limit = 8

[parameters.minmax]
transforms = ["rotate-heads"]
"""


def test_a_run_that_cannot_work_fails_in_the_methods_words(folder: Path) -> None:
    (folder / "mine.toml").write_text(SUITE)
    assert main(["run", "mine.toml"]) == 1
    found = {r["spec"]["method"]["name"]: r for r in records("output/mine").values()}
    assert found["minmax"]["status"] == "ok"
    assert found["marr"]["status"] == "failed"
    words = "3 calibration images cannot be cut into 4 folds; use more images or fewer folds"
    assert found["marr"]["error"]["message"] == words
