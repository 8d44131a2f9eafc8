"""Labels of class folders: their forms, and what is refused."""

import timm.data
import torchvision
from pytest import fixture, mark, raises

from vit_ptq_bench.tasks.classification.image_listing import list_classes
from vit_ptq_bench.tasks.classification.label_sets import imagenet_indices, read_class_map
from vit_ptq_bench.tasks.classification.labelled_images import from_folders
from vit_ptq_bench.tasks.errors import TaskError

IDS = list(imagenet_indices())


@fixture
def folders(tmp_path):
    def make(*names):
        for name in names:
            (tmp_path / "val" / name).mkdir(parents=True)
            (tmp_path / "val" / name / "a.JPEG").touch()
        return list_classes(tmp_path / "val")

    return make


def _labels(images):
    return {path.parent.name: label for path, label in images.samples}


def test_the_list_of_imagenet_is_the_librarys():
    assert timm.data.ImageNetInfo("imagenet-1k").label_names() == IDS


def test_numbered_folders_are_indices_and_not_ranked_as_text(folders):
    images = from_folders(folders(*map(str, range(12))))
    assert _labels(images) == {str(i): i for i in range(12)}
    assert images.notes == ("12 images in val: 12 class folders, indices from 0",)
    images.require_outputs(12, "tiny")
    with raises(TaskError, match="of 12 classes, but tiny has 1000 outputs"):
        images.require_outputs(1000, "tiny")


def test_a_part_of_the_wordnet_ids_keeps_the_indices_of_the_model(folders):
    chosen = [IDS[i] for i in (3, 500, 999)]
    images = from_folders(folders(*reversed(chosen)))
    assert _labels(images) == dict(zip(chosen, (3, 500, 999), strict=True))
    assert images.notes == ("3 images in val: 3 class folders, WordNet ids",)
    images.require_outputs(1000, "tiny")
    for outputs in (3, 1001, 21841):
        with raises(TaskError, match=f"1000 classes, but tiny has {outputs} outputs"):
            images.require_outputs(outputs, "tiny")


def test_what_belongs_to_no_class_never_counts(folders, tmp_path):
    for name in (
        "__MACOSX",
        ".ipynb_checkpoints",
        ".hidden",
        "@eaDir",
        "System Volume Information",
    ):
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "a.JPEG").touch()
    for name in ("._0", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / "val" / name).touch()
        (tmp_path / "val" / "0").mkdir(exist_ok=True)
        (tmp_path / "val" / "0" / name).touch()
    (tmp_path / "val" / "0" / "._a.JPEG").touch()
    (tmp_path / "val" / "0" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "val" / "0" / ".ipynb_checkpoints" / "a-checkpoint.JPEG").touch()
    (tmp_path / "val" / "0" / "a.JPEG").touch()
    images = from_folders(folders("1"))
    assert _labels(images) == {"0": 0, "1": 1}
    assert images.notes == ("2 images in val: 2 class folders, indices from 0",)


@mark.parametrize(
    ("names", "message"),
    [
        ([str(i) for i in range(1, 13)], "labels are 1 to 12, counted from 1"),
        (["1", "2", "3"], "none is called 0"),
        (["0", "1", "3"], "none is called 2"),
        (["0", "1", "01"], "two class folders have the same number"),
        (["0", "1", IDS[0]], f"{IDS[0]}: the label '{IDS[0]}' mixes WordNet ids with indices"),
        (["cat", "7"], "val/cat: the label 'cat' is neither .*; where labels are class names"),
        ([IDS[0], "dog"], "val/dog: the label 'dog' is neither"),
        ([IDS[0], "n00000001"], "the WordNet id n00000001 is none of the 1000 of ImageNet-1k"),
        (["0", "-1"], "val/-1: the label '-1' is neither"),
        (["0", "1.0"], "the label '1.0' is neither"),
        (["0", "١"], "the label '١' is neither"),
        (["0", "1" * 40], "is neither"),
    ],
)
def test_names_that_say_no_class_are_refused(folders, names, message):
    with raises(TaskError, match=message):
        from_folders(folders(*names))


def test_names_of_folders_are_numbered_as_libraries_number_a_training_set(folders):
    images = from_folders(folders("dog", "cat", "Zebra"), trained=("Zebra", "ant", "cat", "dog"))
    # torchvision sorts by code points: capital letters come first.
    assert _labels(images) == {"Zebra": 0, "cat": 2, "dog": 3}
    assert images.notes == ("3 images in val: 3 class folders, names in sorted order",)
    images.require_outputs(4, "tiny")
    with raises(TaskError, match="of 4 classes, but tiny has 1000 outputs; .* its --checkpoint"):
        images.require_outputs(1000, "tiny")


def test_names_without_training_folders_are_all_classes(folders, tmp_path):
    images = from_folders(folders("dog", "cat"))
    assert _labels(images) == {"cat": 0, "dog": 1} and images.labels.classes == 2
    theirs = torchvision.datasets.ImageFolder(tmp_path / "val", allow_empty=True).class_to_idx
    assert _labels(images) == theirs


def test_a_name_that_was_not_trained_is_refused(folders):
    with raises(TaskError, match="val/dog: there is no such folder of training images.*'ant'"):
        from_folders(folders("dog", "cat"), trained=("ant", "cat"))


def test_a_thousand_english_names_are_not_guessed(folders):
    names = [f"class {i}" for i in range(1000)]
    with raises(TaskError, match="as of ImageNet-1k.*--class-map"):
        from_folders(folders("class 3"), trained=names)


def test_a_class_map_says_what_names_mean(folders, tmp_path):
    names = tmp_path / "classes.txt"
    names.write_bytes("dog\r\nThe Cat, big\r\nözi\r\n\r\n".encode("utf-16"))
    images = from_folders(folders("dog", "özi"), names)
    assert _labels(images) == {"dog": 0, "özi": 2}
    assert images.notes == ("2 images in val: 2 class folders, class names",)
    images.require_outputs(3, "tiny")
    with raises(TaskError, match="of 3 classes, but tiny has 1000 outputs"):
        images.require_outputs(1000, "tiny")
    with raises(
        TaskError, match="val/cat: the label 'cat' is neither .* nor a name of the class map"
    ):
        from_folders(folders("cat"), names)


def test_a_class_map_of_numbers_or_wordnet_ids(folders, tmp_path):
    names = tmp_path / "classes.txt"
    names.write_text("\n".join(map(str, range(1, 13))))
    listing = folders(*map(str, range(1, 13)))
    assert _labels(from_folders(listing, names)) == {str(i): i - 1 for i in range(1, 13)}
    names.write_text("\n".join("abcdefghijkl"))
    with raises(TaskError, match="counted from 1"):
        from_folders(listing, names)
    assert read_class_map(_written(names, f"{IDS[5]} tench, Tinca tinca\n{IDS[3]}\tgoldfish")) == {
        IDS[5]: 0,
        IDS[3]: 1,
    }


def test_numbers_have_to_be_classes_of_the_map(folders, tmp_path):
    names = _written(tmp_path / "classes.txt", "a\nb\nc\n")
    assert _labels(from_folders(folders("0", "2"), names)) == {"0": 0, "2": 2}
    with raises(TaskError, match="val/7: label 7, but the class map has 3 classes, 0 to 2"):
        from_folders(folders("7"), names)


@mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"a\n\nb\n", "line 2: there is no name"),
        (b"a\nb\na\n", "line 3: 'a' stands in line 1 too"),
        (b"a\nb\xff\n", "save it as text in UTF-8"),
        (b"a\0\0\0b\n", "it is no text"),
    ],
)
def test_class_maps_that_are_none_are_refused(tmp_path, content, message):
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    with raises(TaskError, match=message):
        read_class_map(path)
    with raises(TaskError, match="no such class map"):
        read_class_map(tmp_path / "none.txt")


def _written(path, text):
    path.write_text(text)
    return path
