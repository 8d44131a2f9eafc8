"""The page of the Python API runs from top to bottom."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "api.md"


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.M)


def test_quantizing_takes_five_lines():
    lines = [line for line in blocks()[0].splitlines() if line and not line.startswith("import ")]
    assert len(lines) <= 5
    assert lines[-1].startswith("quantized = quantize(")


def test_the_page_runs(tmp_path):
    """The blocks in order and in one namespace, as in a notebook; in an empty folder, without a network."""
    (tmp_path / "page.py").write_text("\n\n".join(blocks()), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", "exec(open('page.py', encoding='utf-8').read())"],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "repq-vit.scale must be one of mean, median" in done.stdout
    assert (tmp_path / "sweep" / "leaderboard.md").is_file()
