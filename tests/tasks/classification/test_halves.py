"""A folder of named pictures becomes two halves, wholly or not at all."""

import pytest

from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.tasks.classification.halves import convert_halves
from vit_ptq_bench.tasks.errors import TaskError

NAMES = ["n01443537_goldfish.JPEG", "n01440764_tench.JPEG", "n01484850_white_shark.jpg"]


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(name.encode())
    (folder / "README.md").write_text("not an image")
    (folder / ".n01491361_tiger_shark.JPEG").write_text("hidden")
    return folder


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_even_ranks_calibrate_and_odd_ones_are_judged(source, tmp_path, capsys):
    out = tmp_path / "deep" / "sample"
    assert main(["convert", "halves", str(source), str(out)]) == 0
    tench, goldfish, shark = NAMES[1], NAMES[0], NAMES[2]
    assert content(out) == {
        f"train/n01440764/{tench}": tench.encode(),
        f"val/n01443537/{goldfish}": goldfish.encode(),
        f"train/n01484850/{shark}": shark.encode(),
    }
    said = capsys.readouterr().out
    assert "train: 2 images" in said and "val: 1 images" in said


@pytest.mark.parametrize(
    "name", ["tench.JPEG", "n01440764.JPEG", "n99999999_no_class.JPEG", "n0144076_short.JPEG"]
)
def test_a_name_without_a_class_is_refused_and_nothing_is_written(source, tmp_path, name):
    (source / name).write_text("an image")
    with pytest.raises(TaskError, match=f"{name}: the name must begin with a WordNet id"):
        convert_halves(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]


def test_what_is_there_already_stays(source, tmp_path):
    convert_halves(source, tmp_path / "out")
    before = content(tmp_path)
    with pytest.raises(TaskError, match="is there already"):
        convert_halves(source, tmp_path / "out")
    assert content(tmp_path) == before


def test_no_folder_and_too_few_images_are_refused(tmp_path):
    with pytest.raises(TaskError, match="no such folder"):
        convert_halves(tmp_path / "missing", tmp_path / "out")
    (tmp_path / NAMES[0]).write_text("one")
    with pytest.raises(TaskError, match="1 images; there must be two"):
        convert_halves(tmp_path, tmp_path / "out")


def test_a_link_to_nothing_is_no_image_and_a_place_in_a_file_is_refused(source, tmp_path, capsys):
    (source / "n01491361_tiger_shark.JPEG").symlink_to(source / "gone.JPEG")
    assert convert_halves(source, tmp_path / "out") == {"train": 2, "val": 1}  # no file, so none
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    assert main(["convert", "halves", str(source), str(blocked / "out")]) == 2
    assert "nothing was converted" in capsys.readouterr().err
