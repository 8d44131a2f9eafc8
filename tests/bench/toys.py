"""Helpers of the tests: suites of toys, the command line, and what it left on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FAKES = Path(__file__).with_name("fakes.py")


def write_suite(folder: Path, methods: str, **more: str) -> Path:
    """A suite of toys called ``toy``; ``methods`` and ``more`` are TOML values.

    A key with a dot is the name of a table, its value the lines in it.
    """
    keys = {"task": '"toy"', "models": '["toy_a"]', "bits": '["W4A4"]', "methods": methods} | more
    tables = [f"\n[{key}]\n{keys.pop(key)}" for key in list(keys) if "." in key]
    path = folder / "toy.toml"
    path.write_text("\n".join(f"{key} = {value}" for key, value in keys.items()) + "".join(tables))
    return path


def run(*arguments: str) -> int:
    """``bench run toy.toml`` with the toy plugin, in this process; the exit status."""
    from vit_ptq_bench.bench.cli import main

    return main(["run", "toy.toml", "--plugin", str(FAKES), *arguments])


def command(*arguments: str) -> list[str]:
    """The words of the same as a process of its own, by the real command."""
    words = ["-m", "vit_ptq_bench", "run", "toy.toml", "--plugin", str(FAKES)]
    return [sys.executable, *words, *arguments]


def start(*arguments: str) -> subprocess.Popen[str]:
    """The same as a process of its own, started by the real command."""
    return subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a process group that a test may end
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )


def records(output: Path | str = "output/toy") -> dict[str, dict[str, Any]]:
    """The records of a sweep by file name, read without the help of the code under test."""
    paths = sorted(Path(output).glob("runs/*/*/*.json"))
    return {path.stem: _by_site(json.loads(path.read_text())) for path in paths}


def _by_site(record: dict[str, Any]) -> dict[str, Any]:
    """The record's data: its file tells sites that are alike once."""
    groups = record["spec"]["table"]
    sites = {
        site: {k: v for k, v in group.items() if k != "sites"}
        for group in groups
        for site in group["sites"]
    }
    return record | {"spec": record["spec"] | {"table": sites}}


def by_label(output: Path | str = "output/toy") -> dict[str, dict[str, Any]]:
    """The records by ``model method bits``."""
    found = {}
    for record in records(output).values():
        spec = record["spec"]
        label = f"{spec['model']['name']} {spec['method']['name']} {spec['bits']}"
        assert label not in found
        found[label] = record
    return found


def results(output: Path | str = "output/toy") -> dict[str, Any]:
    """What must not depend on how a sweep came to its end: everything but times and memory."""
    keys = ("spec", "status", "metrics", "intervals", "n", "size_mb", "outcomes_sha256", "error")
    return {name: {key: record[key] for key in keys} for name, record in records(output).items()}
