"""The fuzzed parsers: functions of a file's bytes that may return, or raise a sentence for users."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.faults import annotations, labels, suites
from tests.faults.command import bench
from tests.faults.sweeps import ROOT
from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.tasks import TaskOptions
from vit_ptq_bench.tasks.api.registry import TASKS

Target = Callable[[Path, bytes], object]
"""Reads the bytes as a file in a folder that was prepared."""


@dataclass(frozen=True)
class Parser:
    """A parser to fuzz.

    Attributes:
        read: calls it.
        seeds: whole files to begin with.
        prepare: puts into an empty folder what else has to be there.
    """

    read: Target
    seeds: Callable[[], list[bytes]]
    prepare: Callable[[Path], object] = Path


def _suite(folder: Path, data: bytes) -> None:
    from vit_ptq_bench.bench.planning.overwrite import decisions_of
    from vit_ptq_bench.bench.planning.settings import resolve_run

    (folder / "own.toml").write_bytes(data)
    decisions_of(resolve_run({"suite": str(folder / "own.toml"), "output": folder / "out"}))


def _config(folder: Path, data: bytes) -> None:
    from vit_ptq_bench.bench.planning.settings import resolve_run

    (folder / "own.toml").write_text(suites.SMALL)
    (folder / "config.toml").write_bytes(data)
    resolve_run({"suite": str(folder / "own.toml"), "config": folder / "config.toml"})


def _suites() -> list[bytes]:
    return [text.encode() for text in (suites.OWN, suites.SMALL, *suites.bundled())]


def _record(folder: Path, data: bytes) -> None:
    from vit_ptq_bench.bench.report.leaderboard import make_leaderboard

    path = folder / "runs" / "fashion" / "vit_mini" / f"{_record_files()[0].stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    make_leaderboard(folder)


@cache
def _record_files() -> list[Path]:
    return sorted((ROOT / "results" / "runs" / "fashion" / "vit_mini").glob("*.json"))[:3]


def _outcomes(folder: Path, data: bytes) -> None:
    from vit_ptq_bench.bench.records.outcomes import unpack

    unpack(data)


def _labels(folder: Path, data: bytes) -> None:
    (folder / "labels.txt").write_bytes(data)
    task = TASKS.get("imagenet")(TaskOptions(data_dir=folder, val_labels=folder / "labels.txt"))
    task.data_id()


def _labelled_images(folder: Path) -> None:
    (folder / "val").mkdir()
    for index, name in enumerate(labels.NAMES):
        labels.write_image(folder / "val" / f"{name}{labels.SUFFIX}", index)


def _coco(folder: Path, data: bytes) -> None:
    (folder / "annotations" / "val.json").write_bytes(data)
    task = TASKS.get("coco")(TaskOptions(data_dir=folder))
    task.data_id()
    task.files()


def _coco_images(folder: Path) -> None:
    for part in ("val", "train"):
        annotations.write_images(folder / part)
    (folder / "annotations").mkdir()


def _converted(kind: str, name: str) -> Target:
    """The file of that name in a data set of a layout that is converted."""

    def read(folder: Path, data: bytes) -> None:
        (folder / kind / name).write_bytes(data)
        shutil.rmtree(folder / "out", ignore_errors=True)
        said = bench(["convert", kind, str(folder / kind), str(folder / "out")])
        assert said.status == 0 or said.error.strip()

    return read


def _checkpoint(folder: Path, data: bytes) -> None:
    from vit_ptq_bench.tasks.storage.checkpoints import read_state_dict

    (folder / "weights.pt").write_bytes(data)
    read_state_dict(folder / "weights.pt")


def _checkpoints() -> list[bytes]:
    import io

    import torch
    from safetensors.torch import save

    state = {"head.weight": torch.ones(3, 2), "head.bias": torch.zeros(3)}
    found = [save(state)]
    for zipped in (True, False):
        stream = io.BytesIO()
        torch.save({"state_dict": state, "epoch": 1}, stream, _use_new_zipfile_serialization=zipped)
        found.append(stream.getvalue())
    return found


def _saved(folder: Path, data: bytes) -> None:
    from vit_ptq_bench.methods.quantization.storage import read_metadata

    (folder / "model.safetensors").write_bytes(data)
    read_metadata(folder / "model.safetensors")


def _saved_models() -> list[bytes]:
    import torch
    from safetensors.torch import save

    told = {
        "run_id": "0",
        "task": "fashion",
        "model": "vit_mini",
        "method": "minmax",
        "bits": "W4A4",
    }
    header = {
        "format": "vit-ptq-bench/1",
        "metadata": json.dumps(told),
        "table": json.dumps(equal_table(BitWidth.parse("W4A4")).to_dict()),
    }
    return [save({"head.weight.codes": torch.zeros(4, dtype=torch.uint8)}, header)]


def _kept_tensors(folder: Path, data: bytes) -> None:
    from vit_ptq_bench.bench.execution.cache import CacheFolder

    (folder / "0.safetensors").write_bytes(data)
    CacheFolder(folder, 1 << 20, lambda: 0.0).get("0")


def _put(folder: Path) -> None:
    import torch

    from vit_ptq_bench.bench.execution.cache import CacheFolder

    tensors = {"x": torch.zeros(1, 2, 2, 2), "y": torch.ones(3, dtype=torch.uint8)}
    CacheFolder(folder, 1 << 20, lambda: 2.0).put("0", tensors, 1.5)


def _made(make: Callable[[Path], object], name: str) -> Callable[[], list[bytes]]:
    """The file of that name which ``make`` puts into a folder."""

    def seeds() -> list[bytes]:
        from tempfile import TemporaryDirectory

        with TemporaryDirectory() as folder:
            make(Path(folder))
            return [(Path(folder) / name).read_bytes()]

    return seeds


LABEL = "labels/val/picture-0.txt"

XML = "Annotations/picture-0.xml"

PARSERS = {
    "suite": Parser(_suite, _suites),
    "config": Parser(_config, lambda: [suites.CONFIG.encode()]),
    "record": Parser(_record, lambda: [path.read_bytes() for path in _record_files()]),
    "outcomes": Parser(
        _outcomes, lambda: [path.with_suffix(".npz").read_bytes() for path in _record_files()]
    ),
    "labels": Parser(
        _labels, lambda: [text.encode() for text in labels.label_texts()], _labelled_images
    ),
    "coco": Parser(_coco, lambda: [json.dumps(annotations.coco_tree()).encode()], _coco_images),
    "voc": Parser(
        _converted("voc", XML),
        _made(annotations.prepare_voc, f"voc/{XML}"),
        annotations.prepare_voc,
    ),
    "yolo-labels": Parser(
        _converted("yolo", LABEL),
        _made(annotations.prepare_yolo, f"yolo/{LABEL}"),
        annotations.prepare_yolo,
    ),
    "yolo-names": Parser(
        _converted("yolo", "data.yaml"),
        _made(annotations.prepare_yolo, "yolo/data.yaml"),
        annotations.prepare_yolo,
    ),
    "checkpoint": Parser(_checkpoint, _checkpoints),
    "saved-model": Parser(_saved, _saved_models),
    "shared-tensors": Parser(_kept_tensors, _made(_put, "0.safetensors")),
}
