"""Several sweeps in one folder, or shares of one in several: as one sweep alone, to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.bench.toys import by_label, records, results, run, start, write_suite
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.execution import forkserver
from vit_ptq_bench.bench.sharing.claims import CLAIMS, SHARED
from vit_ptq_bench.bench.sharing.place import here

pytestmark = pytest.mark.skipif(not forkserver.HAS_SERVER, reason="processes of Linux")

METHODS = '["toy-plain", "toy-random", "toy-slow"]'
MORE = {"bits": '["W4A4", "W3A3"]', "seeds": "[0, 1]"}
RUNS = 13
FAR = replace(here(), system="another boot", host="far")


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def events(output: str) -> list[dict[str, Any]]:
    paths = sorted((Path(output) / SHARED).glob("*.events.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def plant(output: str, run_id: str) -> Path:
    """A claim of another machine, fresh."""
    path = Path(output) / SHARED / CLAIMS / f"{run_id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"label": "a run far away", "device": "cuda:0"}
    path.write_text(json.dumps({"run": run_id, "place": FAR.write(), "facts": facts}))
    return path


def ended(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 0, out
    return out


def test_two_sweeps_in_one_folder_share_its_runs(folder: Path) -> None:
    write_suite(folder, METHODS, **MORE)
    both = [start("--output", "both", "--workers", "1") for _ in range(2)]
    printed = [ended(process) for process in both]
    assert run("--output", "alone") == 0
    assert len(records("both")) == RUNS
    assert results("both") == results("alone")
    begun = Counter(e["run"] for e in events("both") if e["event"] == "run started")
    assert set(begun) == set(records("both")) and set(begun.values()) == {1}
    assert all(f"now {RUNS} ok" in text and "by other sweeps" in text for text in printed)
    assert not list((Path("both") / SHARED / CLAIMS).iterdir())
    assert not (Path("both") / ".cache").exists()
    tables = [Path(name) / "leaderboard.csv" for name in ("both", "alone")]
    rows = [sorted(_without_costs(path)) for path in tables]
    assert rows[0] == rows[1]


def _without_costs(path: Path) -> list[str]:
    import csv

    with path.open() as file:
        rows = list(csv.DictReader(file))
    return [json.dumps([row["run_id"], row["value"]]) for row in rows]


def test_a_sweep_that_is_killed_leaves_its_runs_to_the_other(folder: Path) -> None:
    write_suite(folder, METHODS, **MORE)
    first, second = (start("--output", "both", "--workers", "1") for _ in range(2))
    wait_for(lambda: len(records("both")) >= 4)
    os.kill(first.pid, signal.SIGKILL)
    killed = time.monotonic()
    ended(second)
    assert time.monotonic() - killed < 100, "it waited for a sign of life of a process that is gone"
    first.communicate(timeout=60)
    assert run("--output", "alone") == 0
    assert results("both") == results("alone")


def test_a_run_elsewhere_is_waited_for_and_then_its_record_counts(folder: Path) -> None:
    write_suite(folder, '["toy-plain", "toy-random"]')
    assert run("--output", "far") == 0
    away = by_label("far")["toy_a toy-plain W4A4"]["run_id"]
    claim = plant("here", away)
    process = start("--output", "here", "--dead-after", "1000")
    wait_for(lambda: len(records("here")) == 2)
    time.sleep(1)
    assert process.poll() is None, "it waits"
    there = Path("here") / "runs" / "toy" / "toy_a"
    for path in (Path("far") / "runs" / "toy" / "toy_a").glob(f"{away}.*"):
        (there / path.name).write_bytes(path.read_bytes())
    claim.unlink()
    out = ended(process)
    assert "waiting for runs of process" in out and "on far" in out
    assert "made by another sweep" in out and "now 3 ok, 1 of them by other sweeps" in out


def test_runs_of_a_full_precision_model_elsewhere_wait_for_it(folder: Path) -> None:
    write_suite(folder, '["toy-plain"]')
    assert run("--output", "far") == 0
    reference = by_label("far")["toy_a fp32 W32A32"]["run_id"]
    claim = plant("here", reference)
    process = start("--output", "here", "--dead-after", "1000")
    wait_for(claim.exists)
    time.sleep(2)
    assert not records("here") and process.poll() is None
    claim.unlink()
    ended(process)
    assert len(records("here")) == 2


def test_a_machine_that_is_silent_for_too_long_loses_its_runs(folder: Path) -> None:
    write_suite(folder, '["toy-plain"]')
    assert run("--output", "far") == 0
    for run_id in records("far"):
        plant("here", run_id)
    assert run("--output", "here", "--dead-after", "2") == 0
    assert results("here") == results("far")


def test_shares_of_a_plan_are_apart_and_whole(folder: Path, capsys) -> None:
    write_suite(folder, METHODS, **MORE)
    assert run("--output", "alone") == 0
    made: Counter[str] = Counter()
    for number in (1, 2, 3):
        assert run("--output", f"part{number}", "--shard", f"{number}/3") == 0
        own = [
            r for r in records(f"part{number}").values() if r["spec"]["method"]["name"] != "fp32"
        ]
        assert len(own) == 4
        made.update(record["run_id"] for record in own)
    assert len(made) == RUNS - 1 and set(made.values()) == {1}
    assert main(["merge", "whole", "part1", "part2", "part3"]) == 0
    assert "13 new, 2 equal, 0 different" in capsys.readouterr().out
    assert results("whole") == results("alone")
    assert (Path("whole") / "leaderboard.md").is_file()


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "1/0", "x/y", "1/1000000", "-1/3", "1/3/5"])
def test_shares_that_there_are_not(folder: Path, capsys, shard: str) -> None:
    write_suite(folder, METHODS)
    assert run(f"--shard={shard}") == 2
    assert "--shard" in capsys.readouterr().err
    assert not Path("output").exists()


def test_a_merge_tells_what_disagrees(folder: Path, capsys) -> None:
    write_suite(folder, '["toy-plain", "toy-fail"]')
    assert run("--output", "a") == 1
    assert run("--output", "b") == 1
    plain = by_label("b")["toy_a toy-plain W4A4"]
    from vit_ptq_bench.bench.records.store import Store

    store = Store(Path("b"))
    record = next(r for r in store.records() if r.run_id == plain["run_id"])
    outcomes = store.outcomes(record)
    assert outcomes is not None
    changed = replace(record, metrics=record.metrics | {"top1": 12.5})
    store.path(record).unlink()
    store.write(changed, ~outcomes)
    before = records("a")
    capsys.readouterr()
    assert main(["merge", "a", "b"]) == 1
    out = capsys.readouterr().out
    assert "has other figures than the record of the same run" in out
    assert "1 different" in out
    assert {name: before[name]["metrics"] for name in before} == {
        name: one["metrics"] for name, one in records("a").items() if ".conflict" not in name
    }
    for words, text in (
        (["merge", "a", "a"], "into itself"),
        (["merge", "a", "nowhere"], "no folder 'runs'"),
    ):
        assert main(words) == 2
        assert text in capsys.readouterr().err


def test_folders_that_hold_nothing_are_refused_and_not_made(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["retry", "nowhere"], ["status", "nowhere"], ["merge", "into", "nowhere"]):
        assert main(words) == 2
        assert "nowhere" in capsys.readouterr().err
    assert not list(folder.iterdir())


def test_the_status_while_sweeps_run_and_afterwards(folder: Path, capsys) -> None:
    slow = {"parameters.toy-slow": "seconds = 5.0"}
    write_suite(folder, '["toy-plain", "toy-slow", "toy-fail"]', **slow)
    process = start("--output", "there", "--workers", "1")
    wait_for(
        lambda: any(e["event"] == "run started" and "slow" in e["label"] for e in events("there"))
    )
    plant("there", "f" * 16)
    capsys.readouterr()
    main(["status", "there", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["planned"] == 4 and told["sweeps"][0]["at_work"]
    hosts = {item["host"]: item for item in told["running"]}
    assert set(hosts) == {here().host, "far"} and "toy-slow" in hosts[here().host]["label"]
    assert hosts["far"]["device"] == "cuda:0"
    assert main(["status", "there"]) in (0, 1)
    out = capsys.readouterr().out
    assert "running" in out and "a run far away" in out and "to the end" in out
    (Path("there") / SHARED / CLAIMS / f"{'f' * 16}.json").unlink()
    process.communicate(timeout=120)
    assert main(["status", "there"]) == 1
    out = capsys.readouterr().out
    assert "4 records of 4 planned: 1 failed, 3 ok" in out
    assert "the toy is broken" in out and "bench retry there" in out
    assert main(["status", "nowhere"]) == 2


def test_the_event_log_has_what_happened(folder: Path) -> None:
    write_suite(folder, '["toy-plain", "toy-fail"]')
    assert run("--output", "there") == 1
    log = events("there")
    assert [log[0]["event"], log[-1]["event"]] == ["sweep started", "sweep ended"]
    ends = {event["run"]: event for event in log if event["event"] == "run ended"}
    for name, record in records("there").items():
        assert ends[name]["status"] == record["status"]
        assert ends[name].get("metrics", {}) == record["metrics"]
    assert log[-1]["ok"] == 2 and log[-1]["failed"] == 1


def test_what_failed_is_tried_again_from_the_records_alone(folder: Path, capsys) -> None:
    from tests.bench.toys import FAKES

    write_suite(folder, '["toy-plain", "toy-fail", "toy-random"]')
    assert run("--output", "there") == 1
    before = results("there")
    failed = by_label("there")["toy_a toy-fail W4A4"]["run_id"]
    Path("toy.toml").unlink()
    stamps = {
        p: p.stat().st_mtime_ns for p in Path("there").rglob("runs/**/*.json") if p.stem != failed
    }
    capsys.readouterr()
    assert main(["retry", "there", "--plugin", str(FAKES)]) == 1
    assert "now 1 failed" in capsys.readouterr().out
    assert results("there") == before
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    path = next(Path("there").rglob(f"{failed}.json"))
    path.unlink()
    capsys.readouterr()
    assert main(["retry", "there", "--plugin", str(FAKES)]) == 0
    assert "no run in there has failed" in capsys.readouterr().out
