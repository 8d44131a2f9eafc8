"""Sweeps on machines of their own, as far as one kernel can give them: names, processes, network, files.

They have one folder in common, whose lock does nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench.sharing.test_many_sweeps import events
from tests.bench.toys import ROOT, command, records, results, run, write_suite
from vit_ptq_bench.bench.sharing.claims import CLAIMS, SHARED

METHODS = '["toy-plain", "toy-random", "toy-slow"]'
MORE = {"bits": '["W4A4", "W3A3"]', "parameters.toy-slow": "seconds = 3.0"}
RUNS = 7

ISOLATED = ("unshare", "--uts", "--pid", "--net", "--ipc", "--mount", "--fork", "--kill-child")


def _why_not() -> str | None:
    """Why there can be no machines here; None if there can."""
    if shutil.which("unshare") is None or os.getuid() != 0:
        return "namespaces need root and unshare"
    done = subprocess.run([*ISOLATED, "true"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"no namespaces here: {done.stderr.strip()}"


WHY_NOT = _why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")

NO_LOCK = """
import fcntl
fcntl.flock = lambda *words: None
"""
"""For every process of a machine: the lock of the operating system is always given."""


def machine(name: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A sweep on a machine of that name."""
    own = folder / name
    own.mkdir()
    (own / "sitecustomize.py").write_text(NO_LOCK)
    inside = f'hostname {name} && mount -t proc proc /proc && exec "$@"'
    return subprocess.Popen(
        [*ISOLATED, "sh", "-c", inside, "sh", *command(*arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(own), str(ROOT)]), "TMPDIR": str(own)},
    )


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def begun() -> Counter[str]:
    return Counter(e["run"] for e in events("shared") if e["event"] == "run started")


def test_machines_share_the_runs_of_a_folder(folder: Path) -> None:
    write_suite(folder, METHODS, **MORE)
    words = ("--output", "shared", "--workers", "1")
    both = [machine(name, folder, *words) for name in ("one", "other")]
    for process in both:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
    assert run("--output", "alone") == 0
    assert results("shared") == results("alone")
    assert len(begun()) == RUNS and set(begun().values()) == {1}


def test_a_machine_that_goes_down_is_replaced(folder: Path) -> None:
    """Its processes are no more to be seen from the other one: silence alone tells."""
    write_suite(folder, METHODS, **MORE)
    words = ("--output", "shared", "--workers", "1", "--dead-after", "3")
    first = machine("one", folder, *words)
    wait_for(
        lambda: (
            len(records("shared")) >= 2 and list((Path("shared") / SHARED / CLAIMS).glob("*.json"))
        )
    )
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=60)
    second = machine("other", folder, *words)
    out, _ = second.communicate(timeout=300)
    assert second.returncode == 0, out
    assert run("--output", "alone") == 0
    assert results("shared") == results("alone")
    assert not list((Path("shared") / SHARED / CLAIMS).iterdir())
