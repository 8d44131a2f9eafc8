"""TensorBoard, MLflow and Weights & Biases themselves: what they were sent is what they show."""

import re

import pytest

from tests.bench.samples import make_record
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.records.store import Store


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "sweep of mine"
    Store(root).write(make_record(method="minmax", value=71.5, parameters={"alpha": 0.5}))
    Store(root).write(make_record(method="gptq", status="failed"))
    return root


def runs(folder):
    return {record.spec.method.name: record.run_id for record in Store(folder).records()}


def follow(folder, to, *words):
    assert main(["follow", str(folder), "--to", to, *words]) == 0


def test_tensorboard(folder):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    follow(folder, "tensorboard")
    place = folder / "tensorboard" / runs(folder)["minmax"]
    files = set(place.glob("events.*"))
    follow(folder, "tensorboard", "--again")  # which replaces the first
    assert len(list(place.glob("events.*"))) == len(files) and not files & set(
        place.glob("events.*")
    )
    found = reading.EventAccumulator(str(place)).Reload()
    assert found.Scalars("metric_top1")[0].value == 71.5
    assert found.Scalars("seconds_calibrate")[0].value == 1.25
    start = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"parameters.alpha" in start and b"minmax" in start
    assert (folder / "tensorboard" / runs(folder)["gptq"]).is_dir()


def test_mlflow(folder, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    place = (tmp_path / "tracked").as_uri()
    follow(folder, "mlflow", "--place", place)
    follow(folder, "mlflow", "--place", place, "--again")
    client = mlflow.MlflowClient(tracking_uri=place)
    experiment = client.get_experiment_by_name("sweep of mine")
    by_id = {
        run.data.tags["bench.run_id"]: run for run in client.search_runs([experiment.experiment_id])
    }
    assert set(by_id) == set(runs(folder).values())
    well, failed = by_id[runs(folder)["minmax"]], by_id[runs(folder)["gptq"]]
    assert (
        well.data.metrics["metric_top1"] == 71.5 and well.data.params["parameters.alpha"] == "0.5"
    )
    assert (well.info.status, failed.info.status) == ("FINISHED", "FAILED")


def test_wandb_offline(folder, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    follow(folder, "wandb", "--place", "mine")
    files = {path.stem.removeprefix("run-"): path for path in folder.rglob("run-*.wandb")}
    assert set(files) == set(runs(folder).values())
    # Messages in a row, not compressed: the name of a figure stands before its value.
    kept = files[runs(folder)["minmax"]].read_bytes()
    assert re.search(rb"metric_top1.{1,8}71\.5", kept, re.DOTALL)
    assert re.search(rb'method.{1,8}"minmax"', kept, re.DOTALL)
    assert re.search(rb"parameters\.alpha.{1,8}0\.5", kept, re.DOTALL)
