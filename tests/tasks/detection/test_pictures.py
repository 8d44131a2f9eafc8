"""Images of all kinds: read as mmdet reads them, known by their content, or refused by name."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image, PngImagePlugin

from vit_ptq_bench.tasks.api.options import TaskOptions
from vit_ptq_bench.tasks.api.registry import TASKS
from vit_ptq_bench.tasks.detection.datasets import read_pixels
from vit_ptq_bench.tasks.detection.datasets import test_scale as size_of_config
from vit_ptq_bench.tasks.detection.pictures import images_in, read_header
from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.scenes import scenes_folder
from vit_ptq_bench.tasks.storage.contents import content_ids

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
COLOURS = Image.fromarray(NOISE)
SIDEWAYS = Image.Exif()
SIDEWAYS[0x0112] = 6
GREY_16 = Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27)
CLEAR = COLOURS.convert("RGBA")
CLEAR.putalpha(10)

KINDS = {
    "sideways.jpg": (COLOURS, {"exif": SIDEWAYS}),
    "cmyk.jpg": (COLOURS.convert("CMYK"), {}),
    "grey.jpg": (COLOURS.convert("L"), {}),
    "clear.png": (CLEAR, {}),
    "palette.png": (COLOURS.quantize(16), {}),
    "deep.png": (GREY_16, {}),
    "bilevel.png": (COLOURS.convert("1"), {}),
    "pixel.png": (COLOURS.crop((0, 0, 1, 1)), {}),
    "moving.png": (COLOURS, {"save_all": True, "append_images": [COLOURS.rotate(180)]}),
    "flat.bmp": (COLOURS, {}),
    "web.webp": (COLOURS, {}),
    "deep.tif": (GREY_16, {}),
    "wrong.jpg": (COLOURS, {"format": "PNG"}),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_read_as_mmdet_reads_it(tmp_path, name):
    image, how = KINDS[name]
    path = tmp_path / name
    image.save(path, **how)
    pixels = read_pixels(path, content_ids([path])[0])
    theirs = LoadImageFromFile()({"img_path": str(path)})["img"]
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, theirs)
    header = read_header(path)
    assert pixels.shape[:2] == (header.height, header.width)
    assert header.fits(pixels.shape[1], pixels.shape[0])


def test_deep_images_are_scaled_and_not_clipped(tmp_path):
    path = tmp_path / "deep.png"
    GREY_16.save(path)
    pixels = read_pixels(path, content_ids([path])[0])
    assert np.array_equal(pixels[..., 0], np.asarray(GREY_16) >> 8)


def _encoded(image, kind, **how):
    content = io.BytesIO()
    image.save(content, kind, **how)
    return content.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.97])
def test_a_part_of_an_image_is_refused_by_name(tmp_path, kind, share):
    content = _encoded(COLOURS, kind)
    path = tmp_path / f"part.{kind.lower()}"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(TaskError, match="part.*: cannot be read as an image"):
        read_pixels(path, content_ids([path])[0])


def _grown(content, side):
    """A PNG file whose header says that it has side x side pixels."""
    header = b"IHDR" + struct.pack(">II", side, side) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def test_images_made_to_fill_the_memory_and_of_no_colours_are_refused_by_name(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("x", "a" * 20_000_000, zip=True)
    files = {
        "many.png": _grown(_encoded(COLOURS, "PNG"), 30_000),
        "text.png": _encoded(COLOURS, "PNG", pnginfo=text),
        "floats.tif": _encoded(Image.fromarray(np.ones((9, 9), dtype=np.float32)), "TIFF"),
        "page.jpg": b"<!DOCTYPE html><html>404</html>",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(TaskError, match=f"{name}: cannot be read as an image"):
            read_pixels(path, content_ids([path])[0])
    with pytest.raises(TaskError, match="many.png: cannot be read as an image .*limit"):
        read_header(tmp_path / "many.png")
    with pytest.raises(TaskError, match="none.png: no such image file"):
        read_header(tmp_path / "none.png")


def test_other_bytes_than_those_that_were_hashed_are_refused(tmp_path):
    path = tmp_path / "a.png"
    COLOURS.save(path)
    digest = content_ids([path])[0]
    COLOURS.rotate(180).save(path)
    with pytest.raises(TaskError, match="a.png was changed while the sweep ran"):
        read_pixels(path, digest)


@pytest.fixture
def root(tmp_path):
    """Three images to judge on and three to calibrate on, in COCO's layout."""
    rng = np.random.default_rng(1)
    for part in ("val", "train"):
        (tmp_path / part).mkdir()
        for number in range(3):
            noise = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / part / f"{number}.png")
    facts = {"width": 60, "height": 40}
    data = {
        "images": [{"id": n, "file_name": f"{n}.png"} | facts for n in range(3)],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": 1 + n, "image_id": n, "category_id": 1, "bbox": [1, 2, 9, 9], "iscrowd": 0}
            | {"area": 81}
            for n in range(3)
        ],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "val.json").write_text(json.dumps(data))
    return tmp_path


def _task(root, **options):
    return TASKS.get("coco")(TaskOptions(data_dir=root, **options))


def _other_pixel(path):
    """The same number of bytes at the same time, with another pixel."""
    before, status = path.read_bytes(), path.stat()
    pixels = np.array(Image.open(path))
    for value in range(256):
        pixels[0, 0, 0] = value
        Image.fromarray(pixels).save(path)
        if path.stat().st_size == status.st_size and path.read_bytes() != before:
            break
    assert path.stat().st_size == status.st_size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_one_other_pixel_of_an_image_is_another_data_set(root):
    data, calibration = _task(root).data_id(), _task(root).calibration_id(2, 0)
    assert (data, calibration) == (_task(root).data_id(), _task(root).calibration_id(2, 0))
    _other_pixel(root / "val" / "1.png")
    assert _task(root).data_id() != data
    assert _task(root).calibration_id(2, 0) == calibration
    data = _task(root).data_id()
    for number in range(3):
        _other_pixel(root / "train" / f"{number}.png")
    assert _task(root).data_id() == data
    assert _task(root).calibration_id(2, 0) != calibration


def test_identity_is_that_of_the_images_that_decide(root):
    first = _task(root, limit=1)
    judged = first.judged_pictures()[0].path.name
    data, calibration = first.data_id(), first.calibration_id(1, 0)
    drawn = first.drawn_pictures(1, 0)[0].path.name
    for number in range(3):
        if f"{number}.png" != judged:
            _other_pixel(root / "val" / f"{number}.png")
        if f"{number}.png" != drawn:
            _other_pixel(root / "train" / f"{number}.png")
    assert _task(root, limit=1).data_id() == data
    assert _task(root, limit=1).calibration_id(1, 0) == calibration
    assert _task(root).calibration_id(0, 0) is None
    assert _task(root).calibration_id(4, 0) is None  # the run says that there are fewer
    shutil.rmtree(root / "train")
    assert _task(root).calibration_id(1, 0) is None
    path = root / "annotations" / "val.json"
    path.write_text(path.read_text() + " ")
    assert _task(root, limit=1).data_id() != data


def test_an_image_that_exif_turns_must_be_annotated_upright(root):
    path = root / "val" / "0.png"
    Image.fromarray(NOISE).save(path, "JPEG", exif=SIDEWAYS)
    with pytest.raises(TaskError, match="0.png is 60 x 40 .* has 40 x 60; .*EXIF"):
        _task(root).data_id()
    annotations = root / "annotations" / "val.json"
    data = json.loads(annotations.read_text())
    data["images"][0].update(width=40, height=60)
    annotations.write_text(json.dumps(data))
    task = _task(root)
    assert task.data_id()
    assert task.data_notes() == (
        "1 of 3 images have an EXIF orientation and are read upright, as mmdet reads them; annotations must "
        "be those of the upright images",
    )
    assert cv2.imread(str(path)).shape[:2] == (60, 40)


def test_missing_sizes_are_those_of_the_upright_image(root):
    Image.fromarray(NOISE).save(root / "val" / "0.png", "JPEG", exif=SIDEWAYS)
    annotations = root / "annotations" / "val.json"
    data = json.loads(annotations.read_text())
    del data["images"][0]["width"]
    annotations.write_text(json.dumps(data))
    task = _task(root)
    assert task.data_id()
    assert task.judged_pictures()[0].size == (60, 40)
    assert "val.json: width and height taken from the image file: images[0]" in task.data_notes()


def test_scenes_that_were_damaged_are_drawn_again(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("vit_ptq_bench.tasks.scenes.VALIDATION", 10)
    scenes_folder.cache_clear()
    folder = scenes_folder("validation")
    whole = content_ids(sorted(folder.glob("*.png")))
    damaged = folder / "000007.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    (folder / "000009.png").unlink()
    scenes_folder.cache_clear()
    try:
        assert content_ids(sorted(scenes_folder("validation").glob("*.png"))) == whole
    finally:
        scenes_folder.cache_clear()


def test_a_test_pipeline_that_does_something_else_to_images_is_refused():
    plain = [
        {"type": "LoadImageFromFile", "backend_args": None},
        {"type": "Resize", "scale": (640, 480), "keep_ratio": True},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "PackDetInputs"},
    ]
    assert size_of_config({"test_pipeline": plain}) == (640, 480)
    assert size_of_config({}) is None
    for step, message in (
        ({"type": "RandomFlip"}, "the step 'RandomFlip'"),
        (
            {"type": "LoadImageFromFile", "imdecode_backend": "pillow"},
            "imdecode_backend = 'pillow'",
        ),
        ({"type": "Resize", "scale": (64, 64), "keep_ratio": True}, "a second Resize"),
        ("Resize", "the step None"),
    ):
        with pytest.raises(TaskError, match=message):
            size_of_config({"test_pipeline": [*plain, step]})
    for wrong in ({"scale": (64, 64)}, {"scale": 64, "keep_ratio": True}, {"keep_ratio": True}):
        with pytest.raises(TaskError, match="the config's test_pipeline has"):
            size_of_config({"test_pipeline": [{"type": "Resize", **wrong}]})
    for odd in ({"backend": "pillow"}, {"interpolation": "bicubic"}, {"scale_factor": 0.5}):
        step = {"type": "Resize", "scale": (64, 64), "keep_ratio": True} | odd
        with pytest.raises(TaskError, match=f"{next(iter(odd))} = .* when images are resized"):
            size_of_config({"test_pipeline": [step]})


def test_the_pipeline_of_the_test_loader_counts_where_there_is_no_other():
    resize = {"type": "Resize", "scale": (640, 480), "keep_ratio": True}
    loader = {"dataset": {"pipeline": [resize]}}
    assert size_of_config({"test_dataloader": loader}) == (640, 480)
    own = [resize | {"scale": (320, 320)}]
    assert size_of_config({"test_dataloader": loader, "test_pipeline": own}) == (320, 320)
    assert size_of_config({"test_dataloader": {"dataset": None}}) is None
    with pytest.raises(TaskError, match="the step 'RandomFlip'"):
        size_of_config({"test_dataloader": {"dataset": {"pipeline": [{"type": "RandomFlip"}]}}})


def test_only_the_path_of_a_config_is_code():
    task = TASKS.get("coco")()
    assert task.names_code("mine.py") and task.names_code("/elsewhere/mine.py")
    assert not any(task.names_code(name) for name in task.model_names())
    assert not TASKS.get("fashion")().names_code("mine.py")


def test_a_config_is_known_with_all_that_it_inherits(tmp_path):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    task = _task(tmp_path, checkpoint=weights)
    (tmp_path / "base.py").write_text("x = 1\n")
    (tmp_path / "mine.py").write_text("_base_ = ['base.py', 'mmdet::_base_/default_runtime.py']\n")
    mine = str(tmp_path / "mine.py")
    first = task.weights_id(mine)
    (tmp_path / "base.py").write_text("x = 2\n")
    assert task.weights_id(mine) != first
    for text, message in (
        ("_base_ = 'none.py'\n", "none.py: no such config file, which .*mine.py inherits from"),
        ("_base_ = 'mine.py'\n", "inherits from itself"),
        ("_base_ = 7\n", "_base_ must be the path"),
        ("_base_ = open('x')\n", "not a readable mmdet config"),
        ("_base_ = (\n", "not a readable mmdet config"),
        ("_base_ = 'nowhere::a.py'\n", "inherits from nowhere, which is not installed"),
    ):
        (tmp_path / "mine.py").write_text(text)
        with pytest.raises(TaskError, match=message):
            task.weights_id(mine)


def test_hidden_files_are_no_images(tmp_path):
    for name in ("a.jpg", "._a.jpg", "b.PNG", "c.txt", "d.webp"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in images_in(tmp_path)] == ["a.jpg", "b.PNG", "d.webp"]


def test_planning_on_own_images_does_without_torch(root):
    lines = [
        "import sys",
        "from pathlib import Path",
        "from vit_ptq_bench.bench.planning.registry import make_task",
        "from vit_ptq_bench.tasks import TaskOptions",
        "task = make_task('coco', TaskOptions(data_dir=Path(sys.argv[1])))",
        "task.data_id(), task.calibration_id(2, 0), task.data_notes(), task.names_code('a.py')",
        "print(sorted({'torch', 'mmdet', 'mmcv', 'cv2'} & set(sys.modules)))",
    ]
    command = [sys.executable, "-c", "\n".join(lines), str(root)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "[]\n"
