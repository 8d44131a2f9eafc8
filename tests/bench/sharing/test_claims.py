"""Claims: one owner at a time, signs of life, and what becomes of those of the dead."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from vit_ptq_bench.bench.records.processes import began, system
from vit_ptq_bench.bench.sharing.claims import CLAIMS, SHARED, Claims, read_claim, server_time
from vit_ptq_bench.bench.sharing.place import Place, here

LONG = 1000.0
RUNS = [f"{number:016x}" for number in range(40)]


def _take_all(folder: Path, ready: object, taken: object) -> None:
    claims = Claims(folder, LONG)
    ready.wait()  # type: ignore[attr-defined]
    taken.put([run for run in RUNS if claims.take(run, {})])  # type: ignore[attr-defined]
    time.sleep(1)  # an owner that has ended holds nothing


def _file(folder: Path, run: str = "a") -> Path:
    return folder / SHARED / CLAIMS / f"{run}.json"


def _plant(folder: Path, place: Place, silent: float = 0.0) -> None:
    """A claim of ``place``, which gave its last sign ``silent`` seconds ago."""
    path = _file(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"run": "a", "place": place.write(), "facts": {}}))
    last = path.stat().st_mtime - silent
    os.utime(path, (last, last))


def test_of_many_processes_one_gets_each_run(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, taken = context.Barrier(6), context.Queue()
    processes = [context.Process(target=_take_all, args=(tmp_path, ready, taken)) for _ in range(6)]
    for process in processes:
        process.start()
    got = [run for _ in processes for run in taken.get(timeout=60)]
    for process in processes:
        process.join(60)
    assert sorted(got) == RUNS


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the kernel's word on processes")
def test_a_process_that_has_ended_is_gone_though_nobody_asked_for_its_status(
    tmp_path: Path,
) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    place = replace(here(), pid=child.pid, began=began(child.pid))
    _plant(tmp_path, place)
    claims = Claims(tmp_path, LONG)
    assert not place.has_ended() and not claims.take("a", {})
    child.kill()
    # It stays in the table of processes as long as `wait` is not called.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{child.pid}").exists()
    assert place.has_ended() and claims.take("a", {})
    child.communicate()
    assert place.has_ended()


def test_what_one_has_another_sees_until_it_is_given_up(tmp_path: Path) -> None:
    one, other = Claims(tmp_path, LONG), Claims(tmp_path, LONG)
    with one.kept_alive():
        assert one.take("a", {"label": "first"}) and one.take("b", {})
        assert not other.take("a", {}) and set(other.others()) == {"a", "b"} and not one.others()
        assert other.others()["a"].facts == {"label": "first"}
        one.release("a")
        assert other.take("a", {}) and set(other.others()) == {"b"}
    assert not other.others(), "the end of the block gives up all"
    other.release("a")
    assert not list((tmp_path / SHARED / CLAIMS).iterdir())


@pytest.mark.parametrize("silent, taken", [(0.0, False), (9.0, False), (11.0, True)])
def test_of_another_machine_silence_counts(tmp_path: Path, silent: float, taken: bool) -> None:
    """Also where a process of that number lives here."""
    _plant(tmp_path, replace(here(), system="another boot", host="far"), silent)
    assert Claims(tmp_path, 10.0).take("a", {}) is taken
    assert len(list((tmp_path / SHARED / CLAIMS).iterdir())) == 1


def test_a_clock_that_is_wrong_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _plant(tmp_path, replace(here(), system="another boot"))
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert not Claims(tmp_path, 10.0).take("a", {})


def test_of_this_machine_the_end_of_the_process_counts(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    _plant(tmp_path, replace(here(), pid=ended.pid))
    assert Claims(tmp_path, LONG).take("a", {})


def test_a_number_that_another_process_has_now_is_none_of_the_owner(tmp_path: Path) -> None:
    _plant(tmp_path, replace(here(), began="1"))
    assert Claims(tmp_path, LONG).take("a", {})


def test_signs_of_life_keep_a_claim(tmp_path: Path) -> None:
    one, other = Claims(tmp_path, 1.0), Claims(tmp_path, 1.0)
    with one.kept_alive():
        assert one.take("a", {})
        for _ in range(25):
            time.sleep(0.1)
            claim = read_claim(_file(tmp_path), server_time(tmp_path))
            assert claim is not None and claim.age < 0.9
    one.take("b", {})
    time.sleep(1.3)  # nobody gives signs for it
    assert other.take("b", {})


def test_who_was_silent_and_comes_back_takes_nothing_away(tmp_path: Path) -> None:
    one, other = Claims(tmp_path, LONG), Claims(tmp_path, 0.0)
    assert one.take("a", {})
    time.sleep(0.05)
    assert other.take("a", {"label": "taken over"})
    one.release("a")
    claim = read_claim(_file(tmp_path), 0.0)
    assert claim is not None and claim.facts == {"label": "taken over"}


def test_a_claim_that_changes_hands_while_it_is_taken_over_stays_with_its_new_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two find a dead owner; the slower one moves the faster one's claim aside, and gives it back."""
    _plant(tmp_path, replace(here(), system="another boot"), silent=60.0)
    fast, slow = Claims(tmp_path, 10.0), Claims(tmp_path, 10.0)
    rename = Path.rename

    def late(path: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        assert fast.take("a", {"label": "fast"})
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    assert not slow.take("a", {"label": "slow"})
    assert slow.others()["a"].facts == {"label": "fast"}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"place": 3, "facts": {}}', b"\xff"])
def test_a_damaged_claim_stops_nobody(tmp_path: Path, content: bytes) -> None:
    path = _file(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    claims = Claims(tmp_path, LONG)
    assert not claims.others()
    assert claims.take("a", {})


def test_a_place_tells_its_system() -> None:
    assert here().system == system() and not here().has_ended()
    assert Place.read(here().write()) == here()
    with pytest.raises((KeyError, TypeError, ValueError)):
        Place.read({"host": "h", "pid": "no number", "system": "s", "began": "1"})


def test_claims_of_the_dead_can_be_cleared_away(tmp_path: Path) -> None:
    one = Claims(tmp_path, 10.0)
    assert one.take("b", {})
    _plant(tmp_path, replace(here(), system="another boot"), silent=60.0)
    one.forget_dead()
    assert [path.stem for path in (tmp_path / SHARED / CLAIMS).iterdir()] == ["b"]
