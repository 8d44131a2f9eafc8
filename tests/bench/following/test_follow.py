"""Runs of a folder in programs that collect experiments: each once, whatever happens in between."""

import json
import subprocess
import sys

import pytest

from tests.bench.samples import make_record
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.following import follow
from vit_ptq_bench.bench.following.entry import LONGEST, entry_of
from vit_ptq_bench.bench.following.follow import Sent, followed
from vit_ptq_bench.bench.following.trackers import TRACKERS, Tracker
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.sharing.status import status_of


class Listed(Tracker):
    """Keeps what it gets; refuses the run named ``refuses``."""

    name, module = "listed", "json"

    def open(self, folder):
        self.got, self.points, self.refuses, self.closed = [], [], "", False

    def send(self, entry):
        if entry.run_id == self.refuses:
            raise ConnectionError("no network\nat all")
        self.got.append(entry.run_id)

    def progress(self, step, counts):
        self.points.append(counts)

    def close(self):
        self.closed = True


FEW = """
task = "fashion"
models = ["vit_mini"]
methods = ["minmax", "omse", "percentile"]
bits = ["W4A4"]
"""


@pytest.fixture
def records(tmp_path):
    found = [make_record(method="minmax"), make_record(method="gptq", status="failed")]
    for record in found:
        Store(tmp_path).write(record)
    return found


def sent_to(tmp_path, tracker, again=False):
    return followed(tmp_path, tracker, Sent(tmp_path, "listed", None, again), 120.0)


def test_each_run_is_sent_once(tmp_path, records):
    tracker = Listed(tmp_path, None)
    assert sent_to(tmp_path, tracker) == 2 and sent_to(tmp_path, tracker) == 0
    assert sorted(tracker.got) == sorted(record.run_id for record in records)
    new = make_record(method="omse")
    Store(tmp_path).write(new)
    assert sent_to(tmp_path, tracker) == 1 and tracker.got[-1] == new.run_id
    assert sent_to(tmp_path, tracker, again=True) == 3


def test_what_was_sent_elsewhere_does_not_count(tmp_path, records):
    tracker = Listed(tmp_path, None)
    assert sent_to(tmp_path, tracker) == 2
    assert followed(tmp_path, tracker, Sent(tmp_path, "listed", "there", False), 120.0) == 2


def test_a_run_that_is_refused_is_sent_next_time(tmp_path, records):
    tracker = Listed(tmp_path, None)
    tracker.refuses = records[1].run_id
    with pytest.raises(BenchError, match=rf"listed did not take run {tracker.refuses}.*no network"):
        sent_to(tmp_path, tracker)
    tracker.refuses = ""
    sent_to(tmp_path, tracker)
    assert sorted(tracker.got) == sorted(record.run_id for record in records)


def test_a_note_that_is_damaged_is_begun_anew(tmp_path, records):
    (tmp_path / ".sweeps" / "sent").mkdir(parents=True)
    (tmp_path / ".sweeps" / "sent" / "listed.txt").write_bytes(b"\xff\x00 nonsense")
    assert sent_to(tmp_path, Listed(tmp_path, None)) == 2


def test_it_goes_on_while_a_sweep_is_at_work(tmp_path, monkeypatch):
    """A real sweep of a few runs; what it writes arrives, and the counts grow to the end."""
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.2)
    suite = tmp_path / "few.toml"
    suite.write_text(FEW)
    words = ["run", str(suite), "--limit", "20", "--output", str(tmp_path), "--workers", "1"]
    sweep = subprocess.Popen(
        [sys.executable, "-m", "vit_ptq_bench", *words], stdout=subprocess.DEVNULL
    )
    try:
        while not status_of(tmp_path, 120.0).at_work:
            assert sweep.poll() is None
        tracker = Listed(tmp_path, None)
        sent_to(tmp_path, tracker)
    finally:
        assert sweep.wait(120) == 0
    sent_to(tmp_path, tracker)  # what was written between the last look and the sweep's end
    ids = {record.run_id for record in Store(tmp_path).records()}
    assert set(tracker.got) == ids and len(tracker.got) == len(ids) == 4
    assert tracker.points[0].keys() >= {"done", "failed", "running", "left"}
    done = [point["done"] for point in tracker.points]
    assert done == sorted(done)


def test_an_entry_has_what_the_csv_has():
    record = make_record(method="gptq", parameters={"damping": 0.01}, transforms=("shift-norms",))
    entry = entry_of(record)
    assert entry.settings["method"] == "gptq" and entry.settings["parameters.damping"] == 0.01
    assert entry.settings["parameters.transforms"] == "shift-norms"
    assert entry.figures["metric_top1"] == 75.0 and entry.figures["seconds_calibrate"] == 1.25
    assert entry.name == "vit_mini gptq W4A4 equal seed 0" and entry.ok
    json.dumps([dict(entry.settings), dict(entry.figures)], allow_nan=False)


def test_a_failure_is_told_and_cut_to_length():
    entry = entry_of(make_record(status="failed", parameters={"text": "x" * 9999}))
    assert not entry.ok and "value" not in entry.figures
    assert entry.settings["error"].startswith("it broke")
    assert len(entry.settings["parameters.text"]) == LONGEST


def test_wrong_words_are_told(tmp_path, capsys):
    assert main(["follow", str(tmp_path / "none"), "--to", "tensorboard"]) == 2
    assert "there is no folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["follow", str(tmp_path), "--to", "aim"])


def test_a_program_that_is_not_there_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(TRACKERS["mlflow"], "module", "no_such_program")
    assert main(["follow", str(tmp_path), "--to", "mlflow"]) == 2
    assert "pip install -c constraints.txt -e '.[mlflow]'" in capsys.readouterr().err
