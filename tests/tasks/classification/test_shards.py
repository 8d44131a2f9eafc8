"""Parquet shards: the same images give the same figures as in folders, and what cannot be read is named."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.tasks.classification.test_imagenet import CPU, IDS, MODEL, _image, _task
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.tasks.api.options import TaskOptions
from vit_ptq_bench.tasks.classification.shards.files import find_shards
from vit_ptq_bench.tasks.classification.sources import source_of
from vit_ptq_bench.tasks.errors import TaskError

pa = pytest.importorskip("pyarrow", reason="needs the extra parquet")
pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra parquet")

Row = tuple[bytes | None, str | None, int | None]


def write(
    path: Path,
    rows: Sequence[Row],
    classes: Sequence[str] | None = None,
    group: int = 4,
    **how: object,
) -> Path:
    """Write a shard as the library `datasets` does; ``group``: rows of a row group."""
    image = [{"bytes": content, "path": name} for content, name, _ in rows]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {
            "image": pa.array(image, kind),
            "label": pa.array([label for *_, label in rows], pa.int64()),
        }
    )
    if classes is not None:
        features = {
            "image": {"_type": "Image"},
            "label": {"names": list(classes), "_type": "ClassLabel"},
        }
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group, **how)
    return path


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model(MODEL).state_dict(), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine validation and twelve training images in class folders."""
    root = tmp_path / "folder"
    for i in range(9):
        _image(root / "val" / IDS[(0, 1, 7)[i % 3]] / f"v{i}.JPEG", i)
    for i in range(12):
        _image(root / "train" / IDS[2 + i % 4] / f"t{i}.JPEG", 100 + i)
    return root


def rows_of(folder: Path) -> list[Row]:
    """The images of class folders, shuffled as data sets are."""
    files = sorted(folder.glob("*/*"))
    rows: list[Row] = [(f.read_bytes(), f.name, IDS.index(f.parent.name)) for f in files]
    order = np.random.default_rng(3).permutation(len(rows))
    return [rows[i] for i in order]


def converted(folder: Path, root: Path, classes: Sequence[str] | None = None) -> Path:
    """The images of `folder` as two shards of training images and one to judge on."""
    train, val = rows_of(folder / "train"), rows_of(folder / "val")
    write(root / "data" / "train-00000-of-00002-1a2b.parquet", train[:5], classes)
    write(root / "data" / "train-00001-of-00002-1a2b.parquet", train[5:], classes)
    write(root / "data" / "validation-00000-of-00001.parquet", val, classes)
    return root


CLASSES = pytest.mark.parametrize(
    "classes", [None, IDS, [f"kind {i}" for i in range(1000)]], ids=["none", "WordNet", "words"]
)


@CLASSES
@pytest.mark.parametrize(
    "options", [{}, {"limit": 4}, {"holdout": True}, {"loader_workers": 2}], ids=str
)
def test_the_same_images_give_the_same_figures(folder, tmp_path, checkpoint, options, classes):
    other = converted(folder, tmp_path / "shards", classes)
    found = []
    for root in (folder, other):
        task = _task(data_dir=root, checkpoint=checkpoint, batch_size=4, **options)
        loaded = task.load_model(MODEL)
        calibration = torch.cat(task.calibration_batches(loaded, 5, seed=1))
        result = task.evaluate(loaded.module, loaded, CPU)
        judged = sorted((task._contents.of([image])[0], label) for image, label in task._chosen)
        found.append((calibration, judged, result.metrics, result.intervals, result.n))
        contents = task.calibration_id(5, 1)
        assert contents == task.calibration_id(5, 1) and contents is not None
    (first, *rest), (second, *others) = found
    assert torch.equal(first, second) and rest == others


def test_calibration_images_have_the_content_that_they_have_in_folders(folder, tmp_path):
    other = converted(folder, tmp_path / "shards")
    tasks = [_task(data_dir=root) for root in (folder, other)]
    assert tasks[0].calibration_id(5, 1) == tasks[1].calibration_id(5, 1)
    assert tasks[0].calibration_id(13, 1) is tasks[1].calibration_id(13, 1) is None
    assert tasks[1].data_notes() == ("9 images in validation (1 parquet shard): indices from 0",)


def test_identities_follow_what_counts(folder, tmp_path):
    other = converted(folder, tmp_path / "shards")
    before = _task(data_dir=other).data_id()
    assert _task(data_dir=other).data_id() == before
    rows = rows_of(folder / "val")
    path = other / "data" / "validation-00000-of-00001.parquet"
    write(path, rows, group=2)  # the same rows in other groups
    assert _task(data_dir=other).data_id() == before
    write(path, [(picture(77), *rows[0][1:]), *rows[1:]])
    changed = _task(data_dir=other).data_id()
    assert changed != before
    write(path, [(rows[0][0], rows[0][1], rows[0][2] + 1), *rows[1:]])  # type: ignore[operator]
    assert _task(data_dir=other).data_id() not in (before, changed)
    write(path, rows)
    train = other / "data" / "train-00001-of-00002-1a2b.parquet"
    write(train, [*rows_of(folder / "train")[5:], (picture(5), "more.JPEG", 3)])
    assert _task(data_dir=other).data_id() != before


def test_a_shard_that_changes_after_it_was_planned_is_refused(folder, tmp_path, checkpoint):
    other = converted(folder, tmp_path / "shards")
    task = _task(data_dir=other, checkpoint=checkpoint)
    loaded = task.load_model(MODEL)
    task.data_id()
    rows = [
        (picture(500 + i), name, label)
        for i, (_, name, label) in enumerate(rows_of(folder / "val"))
    ]
    write(other / "data" / "validation-00000-of-00001.parquet", rows)
    with pytest.raises(TaskError, match=r"parquet, row \d was changed while the sweep ran"):
        task.evaluate(loaded.module, loaded, CPU)


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00001.parquet", "val-00000-of-00001.parquet"),
        ("data/train-00000-of-00001-abc.parquet", "data/validation-00000-of-00001-abc.parquet"),
        ("train/0000.parquet", "val/0000.parquet"),
        ("data/train/0000.parquet", "data/validation/0000.parquet"),
        ("train.parquet", "test.parquet"),
    ],
)
def test_layouts(tmp_path, names):
    for i, name in enumerate(names):
        write(tmp_path / name, [(picture(i), "a.JPEG", 3)])
    source = source_of(tmp_path, TaskOptions())
    assert source.training is not None
    assert [image.read() for image in source.training.images] == [picture(0)]
    assert [(image.read(), label) for image, label in source.judged.samples] == [(picture(1), 3)]


def test_where_there_is_validation_the_test_split_is_not_judged_on(tmp_path):
    for i, split in enumerate(("test", "validation")):
        write(tmp_path / f"{split}.parquet", [(picture(i), "a.JPEG", -1 if i == 0 else 5)])
    assert [label for _, label in source_of(tmp_path, TaskOptions()).judged.samples] == [5]


def refused(root: Path, **options) -> str:
    with pytest.raises(TaskError) as caught:
        _task(data_dir=root, **options).data_id()
    return str(caught.value)


def test_shards_that_are_missing_or_of_two_versions(tmp_path):
    row = [(picture(0), "a.JPEG", 0)]
    for i in (0, 2):
        write(tmp_path / f"validation-0000{i}-of-00003.parquet", row)
    said = refused(tmp_path)
    assert "1 of 3 shards" in said and "number 1" in said and "--incomplete" in said
    _task(data_dir=tmp_path, incomplete=True).data_id()
    write(tmp_path / "validation-00000-of-00001.parquet", row)
    assert "several versions" in refused(tmp_path)
    (tmp_path / "validation-00000-of-00001.parquet").unlink()
    write(tmp_path / "data" / "validation.parquet", row)
    assert "shards of validation are in" in refused(tmp_path, incomplete=True)


def test_what_is_no_data_set_is_refused(tmp_path):
    write(tmp_path / "part-0.parquet", [(picture(0), "a.JPEG", 0)])
    assert "begins with its split" in refused(tmp_path)
    (tmp_path / "part-0.parquet").rename(tmp_path / "train.parquet")
    assert "has shards of train, but none to judge on" in refused(tmp_path)
    _image(tmp_path / "val" / IDS[0] / "a.JPEG", 0)
    assert "holds both parquet shards (train.parquet) and class folders (val)" in refused(tmp_path)


def test_a_stray_table_beside_folders_of_images_is_none_of_ours(folder):
    before = _task(data_dir=folder).data_id()
    write(folder / "statistics.parquet", [(picture(0), "a.JPEG", 0)])
    assert _task(data_dir=folder).data_id() == before


def test_labels_of_a_file_have_no_place_beside_those_of_a_column(tmp_path):
    write(tmp_path / "val.parquet", [(picture(0), "a.JPEG", 0)])
    assert refused(tmp_path, val_labels=tmp_path / "l.txt").startswith("--val-labels:")


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_shard_is_named(tmp_path, kept):
    path = write(tmp_path / "val.parquet", [(picture(i), f"{i}.JPEG", i) for i in range(8)])
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    said = refused(tmp_path)
    assert said.startswith(str(path)) and "truncated or damaged, fetch it again" in said


def test_a_shard_with_damage_in_its_images_is_named(tmp_path):
    path = write(tmp_path / "val.parquet", [(picture(i), f"{i}.JPEG", i) for i in range(8)])
    content = bytearray(path.read_bytes())
    content[4:600] = bytes(596)  # the first page of images; the footer is whole
    path.write_bytes(bytes(content))
    assert str(path) in refused(tmp_path)


def test_a_pointer_of_git_lfs_is_told(tmp_path):
    (tmp_path / "val.parquet").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    )
    assert "git lfs pull" in refused(tmp_path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"img": [1], "label": [0]}, "has no column 'image'; its columns are img, label"),
        ({"image": [{"bytes": b"", "path": "a"}], "fine": [0]}, "has no column 'label'"),
        ({"image": [b"abc"], "label": [0]}, "the column 'image' is binary, not a struct"),
        ({"image": [{"bytes": b"", "path": "a"}], "label": ["cat"]}, "'label' is string; labels are whole"),
        ({"image": [{"bytes": b"", "path": "a"}], "label": pa.array([None], pa.int64())},
         "row 0: has no label"),
        ({"image": pa.array([], pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
          "label": pa.array([], pa.int64())}, "holds no row"),
    ],
    ids=["no image", "no label", "bare bytes", "text", "null", "empty"],
)  # fmt: skip
def test_wrong_columns(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "val.parquet")
    said = refused(tmp_path)
    assert str(tmp_path / "val.parquet") in said and message in said


@pytest.mark.parametrize(
    ("label", "classes", "message"),
    [
        (-1, None, "row 2: the label is -1; -1 stands for an image without a label"),
        (3, ["a", "b", "c"], "row 2: the label is 3, but there are 3 classes"),
        (-2, ["a", "b", "c"], "row 2: the label is -2, but there are 3 classes"),
    ],
)
def test_a_label_that_no_class_has_is_refused_with_shard_and_row(tmp_path, label, classes, message):
    rows = [(picture(0), "a", 0), (picture(1), "b", 1), (picture(2), "c", label)]
    path = write(tmp_path / "val.parquet", rows, classes)
    assert f"{path}, {message}" in refused(tmp_path)


def test_a_label_beyond_the_outputs_of_the_model_is_refused(tmp_path, checkpoint):
    write(tmp_path / "val.parquet", [(picture(0), "a", 1000)])
    with pytest.raises(TaskError, match="label 1000, but .* has 1000 outputs"):
        _task(data_dir=tmp_path, checkpoint=checkpoint).load_model(MODEL)


def test_an_image_that_does_not_decode_is_named_by_shard_and_row(tmp_path, checkpoint):
    rows = [(picture(i), f"{i}", 1) for i in range(5)]
    rows[3] = (rows[3][0][:60], "3", 1)
    path = write(tmp_path / "val.parquet", rows)
    for workers in (0, 2):
        task = _task(data_dir=tmp_path, checkpoint=checkpoint, loader_workers=workers)
        loaded = task.load_model(MODEL)
        with pytest.raises(TaskError, match="row 3: corrupt or unreadable image") as caught:
            task.evaluate(loaded.module, loaded, CPU)
        assert str(caught.value).startswith(str(path))


def test_a_row_without_bytes_is_named(tmp_path):
    path = write(tmp_path / "val.parquet", [(picture(0), "a", 0), (None, "somewhere/b.JPEG", 1)])
    assert f"{path}, row 1: holds no bytes" in refused(tmp_path)


def test_classes_that_differ_between_shards_are_refused(tmp_path):
    write(tmp_path / "val-00000-of-00002.parquet", [(picture(0), "a", 0)], ["a", "b"])
    write(tmp_path / "val-00001-of-00002.parquet", [(picture(1), "b", 0)], ["b", "a"])
    assert "names other classes than" in refused(tmp_path)


def test_a_model_is_built_with_as_many_outputs_as_there_are_named_classes(tmp_path):
    write(tmp_path / "val.parquet", [(picture(i), f"{i}", i) for i in range(3)], ["x", "y", "z"])
    save_file(timm.create_model(MODEL, num_classes=3).state_dict(), tmp_path / "w.safetensors")
    task = _task(data_dir=tmp_path, checkpoint=tmp_path / "w.safetensors")
    assert task.load_model(MODEL).module.num_classes == 3
    assert task.data_notes() == ("3 images in val (1 parquet shard): 3 named classes",)


def test_a_class_map_gives_the_names_another_order(tmp_path):
    write(tmp_path / "val.parquet", [(picture(i), f"{i}", i) for i in range(3)], ["x", "y", "z"])
    (tmp_path / "map.txt").write_text("z\ny\nx\n")
    task = _task(data_dir=tmp_path, class_map=tmp_path / "map.txt")
    assert [label for _, label in task._chosen] == [2, 1, 0]
    (tmp_path / "map.txt").write_text("z\ny\nw\n")
    said = refused(tmp_path, class_map=tmp_path / "map.txt")
    assert "row 0" in said and "'x'" in said and "class map" in said


def test_without_file_names_the_order_is_that_of_the_rows(tmp_path):
    for name, rows in (
        ("none", [(picture(i), None, 2 - i) for i in range(3)]),
        ("twice", [(picture(i), "image.png", 1 if i else 2) for i in range(3)]),
    ):
        write(tmp_path / name / "val.parquet", rows)
        write(tmp_path / name / "train.parquet", rows)
        source = source_of(tmp_path / name, TaskOptions())
        assert source.training is not None
        assert [image.number for image in source.training.images] == [0, 1, 2]


@pytest.mark.parametrize(
    ("group", "page"), [(10, 1024), (100, 4)], ids=["small row groups", "one of small pages"]
)
def test_rows_are_found_in_any_order_and_no_shard_lies_in_memory(tmp_path, group, page):
    """Of a hundred megabytes a small part is allocated, whatever is asked for."""
    noise = np.random.default_rng(0)
    rows = [(noise.bytes(1 << 20), f"{i:03d}", 0) for i in range(100)]
    path = write(tmp_path / "val.parquet", rows, group=group, write_batch_size=page)
    code = (
        "import sys, hashlib, pyarrow as pa\n"
        "from pathlib import Path\n"
        "from vit_ptq_bench.tasks.classification.shards.table import ShardRow\n"
        "for row in map(int, sys.argv[2:]):\n"
        "    print(hashlib.sha256(ShardRow(Path(sys.argv[1]), row).read()).hexdigest())\n"
        "print(pa.default_memory_pool().max_memory() >> 20)\n"
    )
    wanted = [0, 1, 60, 99, 3, 4, 50]
    command = [sys.executable, "-c", code, str(path), *map(str, wanted)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert lines[:-1] == [hashlib.sha256(rows[i][0] or b"").hexdigest() for i in wanted]
    assert int(lines[-1]) < 40


def test_find_shards_reads_nothing_but_names(tmp_path):
    (tmp_path / "val.parquet").write_bytes(b"")
    assert find_shards(tmp_path) == {"val": [tmp_path / "val.parquet"]}


def test_a_sweep_on_shards_through_the_command_line(
    folder, tmp_path, checkpoint, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = [
        "run",
        "imagenet",
        "--checkpoint",
        str(checkpoint),
        "--models",
        MODEL,
        "--methods",
        "minmax",
    ]
    words += ["--bits", "W4A4", "--calibration-images", "4", "--workers", "1"]
    roots = {"folder": folder, "shards": converted(folder, tmp_path / "s")}
    for name, root in roots.items():
        assert main([*words, "--data-dir", str(root), "--output", name]) == 0, capsys.readouterr()
    records = {name: sorted(Path(name).glob("runs/*/*/*.json")) for name in roots}
    figures = {
        name: sorted(json.dumps(json.loads(path.read_text())["metrics"]) for path in paths)
        for name, paths in records.items()
    }
    assert len(figures["folder"]) >= 2 and figures["folder"] == figures["shards"]
