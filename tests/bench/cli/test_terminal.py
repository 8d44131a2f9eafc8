"""On a terminal of 80 columns nothing is cut and no line is longer; in a pipe a row is a line, uncoloured."""

import os
import re
import struct
import subprocess
import sys

import pytest
from rich.console import Console

from vit_ptq_bench.bench.cli.terminal import draw_markdown, draw_rows
from vit_ptq_bench.bench.execution.display import LiveDisplay
from vit_ptq_bench.bench.execution.messages import PhaseProgress

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class FakeRun:
    label = "vit_tiny_patch16_224 mgrq closed-form+judged W4A4 equal seed 0"


def drawn(draw, *content, width=80):
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as captured:
        draw(console, *content)
    lines = captured.get().splitlines()
    assert all(len(line.rstrip()) <= width for line in lines)
    return lines


def joined(lines):
    return re.sub(r"\s", "", "".join(lines))


def test_rows_that_fit_are_a_line_each():
    lines = drawn(draw_rows, ("name", "why"), [("rose", "no record yet"), ("mgrq", "done")])
    assert lines == ["name  why", "----  -------------", "rose  no record yet", "mgrq  done"]


def test_a_long_last_column_stands_below_its_row():
    lines = drawn(draw_rows, ("name", "paper"), [("rose", "word " * 30)])
    assert lines[:4] == ["name", "    paper", "----", "rose"]
    assert joined(lines[4:]) == "word" * 30


def test_where_nothing_else_helps_cells_are_folded_and_not_cut():
    row = ("a" * 60, "b" * 60, "c" * 60)
    text = joined(drawn(draw_rows, ("x", "y", "z"), [row]))
    assert "…" not in text and [text.count(letter) for letter in "abc"] == [60, 60, 60]


def test_a_leaderboard_is_drawn_with_its_titles_and_whole_names():
    table = (
        "<details><summary>vit_mini W4A4: 1 method</summary>\n\n"
        "| rank | method | top1 % | like it | cheapest | run |\n|--|--|--|--|--|--|\n"
        "| 1 | `mgrq` closed-form+judged | 95.12 ± 0.31 (3) | closed-form+obwr-without-spaces, gptq "
        "| repq-vit-released | 0bee0a00 |\n\n</details>\n"
    )
    lines = drawn(draw_markdown, table)
    assert any(line.startswith("vit_mini W4A4: 1 method") for line in lines)
    assert "…" not in joined(lines) and "details" not in joined(lines)
    column = [line[6:] for line in lines]
    assert all(name in joined(column) for name in ("95.12", "0bee0a00"))


def test_the_bar_of_a_run_names_it_whole():
    console = Console(width=80, force_terminal=True, color_system=None)
    with console.capture() as captured, LiveDisplay(console, 37) as display:
        display.started(0, FakeRun())
        display.step(0, FakeRun(), PhaseProgress("calibrate", 12, 50))
        display.tick(1234.0)
        display.finished(0, FakeRun(), "ok", 12.0, "")
    assert "…" not in captured.get()


def on_terminal(*words, width=80):
    """What a command prints on a terminal of its own."""
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "vit_ptq_bench", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment | {"TERM": "xterm-256color"},
    )
    os.close(theirs)
    found = b""
    try:
        while chunk := os.read(ours, 65536):
            found += chunk
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    return found.decode()


@pytest.mark.parametrize("what", ["methods", "suites", "forms"])
def test_lists_fit_a_terminal_and_a_pipe_has_a_row_a_line(what):
    shown = on_terminal("list", what)
    lines = ESCAPE.sub("", shown).split("\r\n")
    table = [line for line in lines if not line.startswith(("Conventions", "per output"))]
    assert max(map(len, table)) <= 80
    piped = subprocess.run(
        [sys.executable, "-m", "vit_ptq_bench", "list", what],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\x1b" not in piped.stdout
    words = {word for word in piped.stdout.split() if word.strip("-")}
    assert all(word in joined(lines) for word in words)
    if what == "methods":
        assert sum(line.startswith("rose ") for line in piped.stdout.splitlines()) == 3


@pytest.mark.parametrize("width", [1, 3, 39])
def test_a_terminal_too_narrow_for_a_table_gets_plain_lines(width):
    shown = on_terminal("list", "suites", width=width)
    assert "Traceback" not in shown and "mgrq-ablation-imagenet" in shown


def test_colours_are_for_terminals():
    console = Console(width=80, force_terminal=True, color_system="truecolor")
    with console.capture() as captured:
        draw_markdown(console, "# Title\n\n**bold**\n")
    assert "\x1b[" in captured.get()
    plain = Console(width=80, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    with plain.capture() as captured:
        draw_markdown(plain, "# Title\n\n**bold**\n")
    assert "\x1b[" not in captured.get()
