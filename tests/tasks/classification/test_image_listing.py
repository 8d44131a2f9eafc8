"""Images that are not where they should be: counted, said, and refused if they are many."""

import os

from pytest import fixture, mark, raises

from vit_ptq_bench.tasks.classification.image_listing import list_classes
from vit_ptq_bench.tasks.classification.label_sets import imagenet_indices
from vit_ptq_bench.tasks.classification.labelled_images import from_folders
from vit_ptq_bench.tasks.errors import TaskError

CLASSES = 5
IDS = list(imagenet_indices())[:CLASSES]


@fixture
def val(tmp_path):
    """300 images, 60 of each class."""
    for name in IDS:
        (tmp_path / "val" / name).mkdir(parents=True)
        for i in range(60):
            (tmp_path / "val" / name / f"{i:02d}.JPEG").touch()
    return tmp_path / "val"


def _dangle(path):
    path.unlink()
    path.symlink_to(path.with_name("gone"))


def _circle(path):
    path.unlink()
    path.symlink_to(path)


def _rename(path):
    path.rename(path.with_suffix(".heic"))


def _strip(path):
    path.rename(path.with_suffix(""))


def _deepen(path):
    (path.parent / "images").mkdir(exist_ok=True)
    path.rename(path.parent / "images" / path.name)


def _raise(path):
    path.rename(path.parents[1] / f"{path.parent.name}_{path.name}")


def _pipe(path):
    path.unlink()
    os.mkfifo(path)


FAULTS = {
    "dangling link": (_dangle, "dangling links"),
    "link to itself": (_circle, "dangling links"),
    "unknown suffix": (_rename, "with a suffix of no image format"),
    "no suffix": (_strip, "with a suffix of no image format"),
    "too deep": (_deepen, "a folder too deep"),
    "too high": (_raise, "beside the class folders"),
    "pipe": (_pipe, "no regular files"),
}


@mark.parametrize("fault", FAULTS)
def test_images_that_cannot_be_judged_are_counted(val, fault):
    spoil, reason = FAULTS[fault]
    paths = sorted(val.glob("*/*"))
    for path in paths[::100]:
        spoil(path)
    few = from_folders(list_classes(val))
    assert len(few.samples) == 297
    assert few.notes[1].startswith(f"3 of 300 files in val left out: 3 {reason} (")
    for path in paths[1:200:2]:
        spoil(path)
    with raises(TaskError, match=f"103 of 300 files in val left out: 103 {reason} .*--incomplete"):
        from_folders(list_classes(val))
    asked_for = from_folders(list_classes(val), incomplete=True)
    assert len(asked_for.samples) == 197 and "103 of 300" in asked_for.notes[1]


def test_class_folders_without_images_are_counted(val):
    for name in IDS[:2]:
        for path in (val / name).iterdir():
            path.unlink()
    with raises(
        TaskError, match=f"2 of 5 class folders in val left out: 2 without an image .{IDS[0]}"
    ):
        from_folders(list_classes(val))
    assert "2 of 5 class folders" in from_folders(list_classes(val), incomplete=True).notes[1]
    for path in val.glob("*/*"):
        path.unlink()
    with raises(TaskError, match="no images found"):
        list_classes(val)


def test_folders_that_are_links_count_as_folders(val):
    (val / IDS[0]).rename(val.parent / "elsewhere")
    (val / IDS[0]).symlink_to(val.parent / "elsewhere")
    assert from_folders(list_classes(val)).notes == (
        "300 images in val: 5 class folders, WordNet ids",
    )


def test_all_images_a_folder_too_deep(val):
    for path in sorted(val.glob("*/*")):
        _deepen(path)
    with raises(TaskError, match="no images found in class folders.*300 a folder too deep"):
        list_classes(val)


def test_every_suffix_that_timm_and_torchvision_read(val):
    suffixes = [
        ".jpg",
        ".jpeg",
        ".png",
        ".ppm",
        ".bmp",
        ".pgm",
        ".tif",
        ".tiff",
        ".webp",
        ".PNG",
        ".gif",
    ]
    for suffix in suffixes:
        (val / IDS[0] / f"x{suffix}").touch()
    assert len(list_classes(val).images) == 300 + len(suffixes)


def test_a_name_of_another_encoding_can_be_said(val):
    for i in range(9):
        open(os.fsencode(val / IDS[0]) + b"/caf\xe9%d.heic" % i, "w").close()
    with raises(TaskError, match=r"9 of 309 files in val left out: .*caf\\udce90.heic"):
        from_folders(list_classes(val))
