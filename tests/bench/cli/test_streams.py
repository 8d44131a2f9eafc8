"""Output into any encoding, into a pipe that nobody reads, onto a full disk, or nowhere: no traceback."""

from __future__ import annotations

import codecs
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from tests.bench.toys import FAKES, ROOT, by_label, write_suite
from vit_ptq_bench.bench.cli import streams

RUN, OTHER = (
    path.stem for path in sorted((ROOT / "results").glob("runs/fashion/vit_mini/*.json"))[:2]
)
VERBS = (
    ["--help"],
    ["run", "--help"],
    ["list", "methods"],
    ["show", RUN],
    ["compare", RUN, OTHER],
    ["run", "bundled", "--output", "results", "--dry-run"],
)
PLUGIN = """
from vit_ptq_bench.methods import register_method
from vit_ptq_bench.methods.minmax import MinMax

@register_method
class Loud(MinMax):
    name = "loud"
    paper = "Müller ≈ 数 ± \\x1b[31m \\udcff"

    def calibrate(self, *arguments):
        print("≈ \\udcff")
        super().calibrate(*arguments)
"""


def bench(
    *arguments: str, folder: Path = ROOT, stdout: int | IO[bytes] = subprocess.PIPE, **settings: str
) -> subprocess.CompletedProcess[bytes]:
    inherited = {name: os.environ[name] for name in os.environ if name != "PYTHONIOENCODING"}
    return subprocess.run(
        [sys.executable, "-m", "vit_ptq_bench", *arguments],
        cwd=folder,
        env=inherited | {"PYTHONPATH": str(ROOT)} | settings,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
    )


@pytest.fixture
def unread() -> IO[bytes]:
    """The end of a pipe to write to; nobody reads it."""
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "wb")


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_nobody_reads(verb: list[str], unread: IO[bytes]) -> None:
    with unread:
        done = bench(*verb, stdout=unread)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_full_disk_is_an_error() -> None:
    with Path("/dev/full").open("wb") as full:
        done = bench("list", "suites", stdout=full)
    assert done.returncode == 2
    assert done.stderr == b"error: the output could not be written: No space left on device\n"


@pytest.mark.parametrize(
    ("settings", "paper"),
    [
        ({"PYTHONIOENCODING": "ascii"}, rb"M\xfcller ~ \u6570 +- \x1b[31m \udcff"),
        ({"PYTHONIOENCODING": "latin-1"}, b"M\xfcller ~ \\u6570 \xb1 \\x1b[31m \\udcff"),
        ({"PYTHONIOENCODING": "utf-8"}, r"Müller ≈ 数 ± \x1b[31m \udcff".encode()),
        (
            {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
            rb"M\xfcller ~ \u6570 +- \x1b[31m \udcff",
        ),
    ],
)
def test_every_encoding(folder: Path, settings: dict[str, str], paper: bytes) -> None:
    Path("p.py").write_text(PLUGIN, encoding="utf-8")
    done = bench("list", "methods", "--plugin", "p.py", folder=folder, COLUMNS="1", **settings)
    assert (done.returncode, done.stderr) == (0, b"")
    assert paper in done.stdout


def test_a_sweep_goes_on_when_nobody_reads(folder: Path, unread: IO[bytes]) -> None:
    """Its records and its leaderboard are there, also of a method that prints what the locale lacks."""
    Path("p.py").write_text(PLUGIN, encoding="utf-8")
    write_suite(folder, '["loud"]')
    plugins = ["--plugin", str(FAKES), "--plugin", "p.py"]
    with unread:
        done = bench(
            *("run", "toy.toml", *plugins), folder=folder, stdout=unread, PYTHONIOENCODING="ascii"
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert {name: record["status"] for name, record in by_label().items()} == {
        "toy_a fp32 W32A32": "ok",
        "toy_a loud W4A4": "ok",
    }
    assert Path("output/toy/leaderboard.md").is_file()
    logs = b"".join(path.read_bytes() for path in Path("output/toy/logs").glob("*.log"))
    assert logs == "≈ \\udcff\n".encode()


def test_output_that_was_closed_before_the_start() -> None:
    program = f"exec {sys.executable} -m vit_ptq_bench list suites <&- >&- 2>&-"
    done = subprocess.run(["sh", "-c", program], cwd=ROOT, check=False)
    assert done.returncode == 0
    program = f"exec {sys.executable} -m vit_ptq_bench show nothing >&-"
    done = subprocess.run(["sh", "-c", program], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: no record in results begins with 'nothing'")


def test_a_stream_of_somebody_else_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = io.StringIO()
    monkeypatch.setattr(sys, "stdout", mine)
    streams.prepare()
    assert sys.stdout is mine


def test_what_stands_for_a_character() -> None:
    streams.prepare()
    assert "≈≤é\ud800".encode("ascii", streams.HANDLER) == rb"~<=\xe9\ud800"
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("ascii", streams.HANDLER)
    assert codecs.lookup_error(streams.HANDLER) is streams.plain
