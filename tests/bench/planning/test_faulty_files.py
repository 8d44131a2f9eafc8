"""Suite and config files that are damaged, hostile, or no files at all: a sentence each, and at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning import toml_file
from vit_ptq_bench.bench.planning.settings import resolve_run
from vit_ptq_bench.bench.planning.suite import MAX_INCLUDED, find_suite, read_suite, with_included

GOOD = 'task = "fashion"\nmodels = ["vit_mini"]\n'
LEVELS = 100_000
"""Of a key for which tomllib takes hours, in 200 KB."""


def refused(path: Path) -> str:
    with pytest.raises(BenchError) as caught:
        with_included(read_suite(find_suite(str(path))))
    text = str(caught.value)
    assert len(text) < 600 and text.isprintable(), "for a terminal, not for a screen full"
    return text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (f"description = {'[' * 5000}{']' * 5000}", "nested more than 32 deep"),
        (f"description = {'[' * 200}{']' * 200}", "mine.toml:3: description.0: nested more than 32"),
        ("a." * LEVELS + "a = 1", "mine.toml:3: a key of more than 64 parts"),
        ('"a" . ' * LEVELS + "a = 1", "mine.toml:3: a key of more than 64 parts"),
        ("[" + "a." * LEVELS + "a]", "mine.toml:3: a key of more than 64 parts"),
        ("x = {" + "a." * LEVELS + "a = 1}", "mine.toml:3: a key of more than 64 parts"),
        ("limit = " + "9" * 5000, "mine.toml:3: a number has too many digits"),
        ("limit = 0x" + "f" * 5000, "mine.toml:3: limit: must be a number of 64 bits"),
        (f"limit = {2**64}", "mine.toml:3: limit: must be a number of 64 bits"),
        (f"seeds = [1, {2**64}]", "mine.toml:3: seeds.1: must be a number of 64 bits"),
        ("[parameters.mgrq]\nx = nan", "mine.toml:4: parameters.mgrq.x: must be a finite number"),
        ("[parameters.mgrq]\nx = 1e999", "must be a finite number, not inf"),
        (f'name = "{"x" * 5000}"', "mine.toml:3: name: 'xxx"),
        (f'methods = ["{"x" * 5000}"]', "methods: 'xxx"),
        (f'[parameters.{"x" * 5000}]', "parameters.'xxx"),
        ('name = "\\u001b[31m"', r"name: '\x1b[31m' cannot name a folder"),
        ('include = ["~nobody-here/x.toml"]', "there is no suite file ~nobody-here/x.toml"),
        ('include = ["a\\u0000.toml"]', "is no path: it has a NUL character"),
        (f'include = ["{"a/" * 3000}x.toml"]', "mine.toml:3: include: 'a/a/"),
        ('include = ["mine.toml"]', "suite 'mine.toml' includes others itself"),
        (f"include = {[f's{i}' for i in range(MAX_INCLUDED + 1)]}", "101 suites, more than 100"),
        ('"\\u2028" = 1', "mine.toml: '\\u2028': unknown key"),
        ("limit = 2020-01-01", "limit: expected a whole number, not datetime.date"),
        ("limit = +\x1b[31m", "mine.toml:3: not valid TOML"),
    ],
)  # fmt: skip
def test_hostile_values_are_refused_at_once(folder: Path, more: str, message: str) -> None:
    path = Path("mine.toml")
    path.write_text(GOOD + more + "\n")
    assert message in refused(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the key 'task' is missing"),
        (GOOD.encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        (GOOD.encode("utf-16-le"), "mine.toml:1: a NUL byte: not UTF-8 text"),
        (GOOD.encode() + b"\0", "mine.toml:3: a NUL byte"),
        (GOOD.encode() + b"\xff\n", "mine.toml:3: not UTF-8 text"),
        (b"#" * (toml_file.MAX_BYTES + 1), "has more than 16 MB"),
    ],
)
def test_bytes_that_are_no_suite(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    assert message in refused(path)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "mark"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
def test_files_as_editors_save_them(tmp_path: Path, mark: bytes, end: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(mark + GOOD.encode().replace(b"\n", end) + b"bits = 3")
    with pytest.raises(BenchError, match=r"mine\.toml:3: bits: expected a string"):
        read_suite(path)


def test_what_is_no_file_is_said_and_waited_for_by_nobody(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "loop.toml").symlink_to(tmp_path / "loop.toml")
    (tmp_path / "nowhere.toml").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe.toml")
    for name, message in (
        ("folder", "it is not a file"),
        ("loop", "Too many levels of symbolic links"),
        ("nowhere", "No such file"),
        ("pipe", "it is not a file"),
    ):
        assert f"{name}.toml: cannot read it: {message}" in refused(tmp_path / f"{name}.toml")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_without_permission_is_said(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    path.chmod(0)
    assert "cannot read it: Permission denied" in refused(path)


def test_a_config_file_that_cannot_be_read_is_not_passed_over(folder: Path) -> None:
    Path("mine.toml").write_text(GOOD)
    config = Path("bench.toml")
    config.symlink_to("gone")
    with pytest.raises(BenchError, match=r"bench\.toml: cannot read it: No such file"):
        resolve_run({"suite": "mine.toml"})
    config.unlink()
    config.mkdir()
    with pytest.raises(BenchError, match=r"bench\.toml: cannot read it: it is not a file"):
        resolve_run({"suite": "mine.toml"})
    with pytest.raises(BenchError, match="/dev/zero: cannot read it: it is not a file"):
        resolve_run({"suite": "mine.toml", "config": Path("/dev/zero")})


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "x" * 5000],
        ["run", "x" * 5000 + ".toml"],
        ["run", "quick", "--config", "x" * 5000],
        ["run", "quick", "--output", "x" * 5000],
        ["run", "quick", "--output", "x/" * 3000],
        ["run", "quick", "--plugin", "x" * 5000 + ".py"],
        ["run", "quick", "--device", "x" * 5000],
        ["run", "quick", "--models", "x" * 5000],
        ["run", "quick", "--methods", "x" * 5000],
        ["run", "quick", "--bits", "W" * 5000],
        ["run", "quick", "--seed", "9" * 5000],
        ["run", "quick", "--data-dir", "x" * 5000],
        ["list", "tasks", "--plugin", "x" * 5000 + ".py"],
        ["show", "x" * 5000 + ".json"],
        ["show", "x\0.json"],
        ["leaderboard", "--check", "--results", "x" * 5000],
    ],
    ids=lambda arguments: " ".join(word[:12] for word in arguments),
)
def test_names_of_absurd_length(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main([*arguments, *(["--dry-run"] if arguments[0] == "run" else [])]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 600
