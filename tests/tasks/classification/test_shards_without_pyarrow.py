"""Parquet shards where the extra that reads them is missing."""

import subprocess
import sys
from pathlib import Path

CODE = """
import sys
sys.modules["pyarrow"] = None  # as if it were not installed
from vit_ptq_bench.bench.cli import main
sys.exit(main(["run", "imagenet", "--data-dir", sys.argv[1], "--dry-run"]))
"""


def test_the_command_that_installs_the_extra_is_told(tmp_path: Path) -> None:
    (tmp_path / "validation-00000-of-00001.parquet").write_bytes(b"PAR1")
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install -c constraints.txt -e '.[parquet]'" in done.stderr, done.stderr
