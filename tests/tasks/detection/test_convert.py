"""Other layouts become COCO's without a change of meaning, or are refused with file and line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.tasks.detection.data import check_pictures, read_coco
from vit_ptq_bench.tasks.detection.voc import convert_voc
from vit_ptq_bench.tasks.detection.yolo import convert_yolo
from vit_ptq_bench.tasks.errors import TaskError


def _picture(path, size=(200, 100), **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((size[1], size[0], 3), dtype=np.uint8)).save(path, **how)


def _text(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)


@pytest.fixture
def yolo(tmp_path):
    """One image per part; the validation image shows a dog."""
    source = tmp_path / "yolo"
    for part in ("train", "val"):
        _picture(source / "images" / part / "a.jpg")
        _text(source / "labels" / part / "a.txt", "")
    _text(source / "labels" / "val" / "a.txt", "1 0.5 0.5 0.2 0.4\n")
    _text(source / "data.yaml", "names: {0: zebra, 1: dog, 2: ant}\n")
    return source


def _val(out):
    return json.loads((out / "annotations" / "val.json").read_text())


def test_yolo_keeps_all_classes_in_the_order_of_the_source(yolo, tmp_path):
    out = tmp_path / "out"
    train, val = convert_yolo(yolo, out)
    assert (train.objects, train.empty, val.objects, val.empty) == (0, 1, 1, 0)
    data = _val(out)
    assert [c["name"] for c in data["categories"]] == ["zebra", "dog", "ant"]
    assert data["annotations"][0]["category_id"] == 2
    assert data["annotations"][0]["bbox"] == pytest.approx([80, 30, 40, 40])
    files = read_coco(out / "annotations" / "val.json", out / "val")
    assert files.classes == ("zebra", "dog", "ant") and not files.has_masks and not files.notes
    assert check_pictures(files, range(1)) == ()


@pytest.mark.parametrize(
    ("line", "label", "box", "points"),
    [
        ("1.0 .5 5e-1 0.2 0.4", 2, [80, 30, 40, 40], 0),
        ("2 0.5 0.5 0.2 0.4 0.93", 3, [80, 30, 40, 40], 0),
        ("0 0.1 0.1 0.3 0.1 0.3 0.5", 1, [20, 10, 40, 40], 3),
        ("0 0.1 0.1 0.3 0.1 0.3 0.5 0.9", 1, [20, 10, 40, 40], 3),
        ("0 0.1 0.1 0.3 0.1 0.3 0.5 0.1 0.5", 1, [20, 10, 40, 40], 4),
        ("0 0.5 0.5 1.0000001 1", 1, [0, 0, 200, 100], 0),
    ],
)
def test_lines_in_the_forms_that_people_have(yolo, tmp_path, line, label, box, points):
    _text(yolo / "labels" / "val" / "a.txt", f"{line}\n\n{line}\n")
    _, val = convert_yolo(yolo, tmp_path / "out")
    assert (val.objects, val.masks) == (1, int(points > 0))
    (found,) = _val(tmp_path / "out")["annotations"]
    assert found["category_id"] == label
    assert found["bbox"] == pytest.approx(box)
    if points:
        assert len(found["segmentation"][0]) == 2 * points
        files = read_coco(tmp_path / "out" / "annotations" / "val.json", tmp_path / "out" / "val")
        assert files.has_masks


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-1 0.5 0.5 0.2 0.4", "class '-1', but classes are 0 to 2"),
        ("3 0.5 0.5 0.2 0.4", "class '3', but classes are 0 to 2"),
        ("0.5 0.5 0.5 0.2 0.4", "class '0.5'"),
        ("dog 0.5 0.5 0.2 0.4", "'dog' is no number"),
        ("1_0 0.5 0.5 0.2 0.4", "'1_0' is no number"),
        ("\u0661 0.5 0.5 0.2 0.4", ".* is no number"),
        ("1e999 0.5 0.5 0.2 0.4", "'1e999' is no number"),
        ("0 nan 0.5 0.2 0.4", "'nan' is no number"),
        ("0 100 50 40 40", "'100' is no share of the image"),
        ("0 0.5 0.5 -0.2 0.4", "'-0.2' is no share of the image"),
        ("0 0.5 0.5 0.2 0.4 7", "'7' is no share of the image"),
        ("0 0.5 0.5 0.2", "not 'class x y width height'"),
    ],
)
def test_each_number_is_checked_and_the_line_is_named(yolo, tmp_path, line, message):
    _text(yolo / "labels" / "val" / "a.txt", f"0 0.5 0.5 0.2 0.4\n{line}\n")
    with pytest.raises(TaskError, match=f"a.txt:2: {message}"):
        convert_yolo(yolo, tmp_path / "out")
    assert not (tmp_path / "out").exists()


LAYOUTS = {
    "images/train": ("names: [a, b]\n", "images/{}/x/1.jpg", "labels/{}/x/1.txt"),
    "train/images": ("names: [a, b]\n", "{}/images/1.jpg", "{}/labels/1.txt"),
    "roboflow": (
        "train: ../train/images\nval: ../{}/images\nnc: 2\nnames: ['a', 'b']\n",
        "{}/images/1.jpg",
        "{}/labels/1.txt",
    ),
    "elsewhere": (
        "path: /no/such/place\ntrain: pictures/images/train\nval: [pictures/images/{}]\nnames: [a, b]\n",
        "pictures/images/{}/1.jpg",
        "pictures/labels/{}/1.txt",
    ),
    "beside": ("train: train\nval: {}\nnames: [a, b]\n", "{}/1.jpg", "{}/1.txt"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("val", ["val", "valid"])
def test_layouts_that_people_have(tmp_path, layout, val):
    text, image, label = LAYOUTS[layout]
    source = tmp_path / "source"
    for part in ("train", val):
        _picture(source / image.format(part))
        _text(source / label.format(part), "1 0.5 0.5 0.2 0.4\n")
    _text(source / "data.yaml", text.replace("{}", val))
    parts = convert_yolo(source, tmp_path / "out")
    assert [(part.name, part.images, part.objects) for part in parts] == [
        ("train", 1, 1),
        ("val", 1, 1),
    ]


UNUSED = ("person", "bicycle", "traffic light", "stop sign")


@pytest.mark.parametrize(
    "names",
    [f"[{', '.join(UNUSED)}]", "".join(f"\n  {i}: {name}" for i, name in enumerate(UNUSED))],
    ids=["list", "mapping"],
)
@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("images/train", "images/val"),
        ("[images/train, images/more]", "[images/val]"),
        ("train.txt", "lists/val.txt"),
        ("[train.txt, images/more]", "lists/val.txt"),
    ],
)
def test_a_data_set_beside_its_yaml_file_keeps_names_that_no_image_shows(
    tmp_path, names, train, val
):
    root, out = tmp_path / "datasets" / "signs", tmp_path / "out"
    for place in ("train/1", "more/2", "val/3"):
        _picture(root / "images" / f"{place}.jpg")
        _text(root / "labels" / f"{place}.txt", "2 0.5 0.5 0.2 0.4\n")
    _text(root / "train.txt", "./images/train/1.jpg\n")
    _text(root / "lists" / "val.txt", "images/val/3.jpg\n")  # relative to `path`, not to the list
    config = tmp_path / "configs" / "signs.yaml"
    _text(config, f"path: ../datasets/signs\ntrain: {train}\nval: {val}\ntest:\nnames: {names}\n")
    _text(tmp_path / "configs" / "other.yaml", "names: [a]\n")
    with pytest.raises(TaskError, match="which of other.yaml, signs.yaml .* give that file"):
        convert_yolo(config.parent, out)
    parts = convert_yolo(config, out)
    assert [part.images for part in parts] == [1 + ("more" in train), 1]
    data = _val(out)
    assert tuple(c["name"] for c in data["categories"]) == UNUSED
    assert [entry["category_id"] for entry in data["annotations"]] == [3]
    assert read_coco(out / "annotations" / "val.json", out / "val").classes == UNUSED


def test_a_list_of_images_is_a_part(yolo, tmp_path):
    _picture(yolo / "images" / "val" / "b.jpg")
    _text(yolo / "val.txt", "./images/val/a.jpg\n")
    _text(yolo / "data.yaml", "val: val.txt\nnames: [zebra, dog]\n")
    assert convert_yolo(yolo, tmp_path / "out")[1].images == 1
    _text(yolo / "val.txt", "./images/val/a.jpg\n./images/val/c.jpg\n")
    with pytest.raises(TaskError, match="val.txt:2: no such image"):
        convert_yolo(yolo, tmp_path / "out2")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: [yes, no, 1.0, ~]\n", ["yes", "no", "1.0", "~"]),
        (
            "names: {1: b, 0: a, 10: k, 2: c, 3: d, 4: e, 5: f, 6: g, 7: h, 8: i, 9: j}\n",
            list("abcdefghijk"),
        ),
        ("names:\n- a b\n- 'c: d'\n", ["a b", "c: d"]),
    ],
)
def test_names_are_the_text_that_stands_there(yolo, tmp_path, text, names):
    _text(yolo / "data.yaml", text, "utf-8-sig")
    convert_yolo(yolo, tmp_path / "out")
    assert [c["name"] for c in _val(tmp_path / "out")["categories"]] == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: cat\n", "'names' must be a list"),
        ("names: []\n", "'names' must be a list"),
        ("names: [a, [b]]\n", "'names' must be a list"),
        ("names: [a, '']\n", "'names' must be a list"),
        ("names: {0: a, 2: b}\n", "without a gap"),
        ("names: {a: 0}\n", "without a gap"),
        ("names: {0: a, 0: b}\n", "a key stands twice"),
        ("names: [a, b]\nnc: 3\n", "'nc' is '3', but there are 2 names"),
        ("names: [a, b\n", "not readable as YAML"),
        ("names: &a [*a]\n", "not readable as YAML|'names' must be a list"),
        ("? [a]\n: b\n", "not readable as YAML"),
        ("names: " + "[" * 2000, "not readable as YAML"),
        ("- a\n", "holds no keys"),
        ("", "holds no keys"),
        ("path: .\n", "class names stand neither in data.yaml nor in classes.txt"),
        ("names: [a]\nkpt_shape: [17, 3]\n", "describes key points"),
        ("names: [a, b]\nval: {x: y}\n", "must be a path or a list of paths"),
        ("names: [a, b]\nval: [images/val, images/none]\n", "names 2 places, and 1 are there"),
        ("names: !!python/object/apply:os.system [exit]\n", "not readable|class"),
    ],
)
def test_odd_yaml_is_refused_with_a_sentence(yolo, tmp_path, text, message):
    _text(yolo / "data.yaml", text)
    with pytest.raises(TaskError, match=message):
        convert_yolo(yolo, tmp_path / "out")


def test_names_beside_each_other_must_agree(yolo, tmp_path):
    _text(yolo / "classes.txt", "zebra\ndog\nant\n")
    convert_yolo(yolo, tmp_path / "out")
    _text(yolo / "classes.txt", "ant\ndog\nzebra\n")
    with pytest.raises(TaskError, match="give other names"):
        convert_yolo(yolo, tmp_path / "out2")
    (yolo / "data.yaml").unlink()
    convert_yolo(yolo, tmp_path / "out2")
    assert [c["name"] for c in _val(tmp_path / "out2")["categories"]] == ["ant", "dog", "zebra"]


def test_labels_without_images_and_images_without_a_folder_of_labels_are_refused(yolo, tmp_path):
    _text(yolo / "labels" / "val" / "b.txt", "0 0.5 0.5 0.2 0.4\n")
    with pytest.raises(TaskError, match="1 label files have no image .b.txt."):
        convert_yolo(yolo, tmp_path / "out")
    (yolo / "labels" / "val" / "b.txt").unlink()
    (yolo / "labels" / "val").rename(yolo / "labels" / "other")
    with pytest.raises(TaskError, match="val: no such folder of labels"):
        convert_yolo(yolo, tmp_path / "out")
    (yolo / "images" / "val" / "a.jpg").unlink()
    with pytest.raises(TaskError, match="val: holds no images"):
        convert_yolo(yolo, tmp_path / "out")


def test_nothing_old_counts_among_the_images_and_half_a_conversion_is_none(yolo, tmp_path):
    out = tmp_path / "out"
    _picture(out / "train" / "old.jpg")
    with pytest.raises(TaskError, match="out: is there already"):
        convert_yolo(yolo, out)
    for folder in ("x", "y"):
        _picture(yolo / "images" / "val" / folder / "b.jpg")
        _text(yolo / "labels" / "val" / folder / "b.txt", "")
    with pytest.raises(TaskError, match="b.jpg: another image of val has this name"):
        convert_yolo(yolo, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "yolo"]


def test_shares_are_those_of_the_upright_image(yolo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    _picture(yolo / "images" / "val" / "a.jpg", (200, 100), exif=exif)
    convert_yolo(yolo, tmp_path / "out")
    data = _val(tmp_path / "out")
    assert (data["images"][0]["width"], data["images"][0]["height"]) == (100, 200)
    assert data["annotations"][0]["bbox"] == pytest.approx([40, 60, 20, 80])


VOC = """<annotation><size><width>100</width><height>80</height></size><object><name>{}</name><bndbox>
<xmin>10</xmin><ymin>20</ymin><xmax>30</xmax><ymax>60</ymax></bndbox></object><object><name>WBC</name>
<bndbox><xmin>5</xmin><ymin>7</ymin><xmax>5</xmax><ymax>7</ymax></bndbox></object></annotation>"""


@pytest.fixture
def voc(tmp_path):
    source = tmp_path / "voc"
    for name, label in (("a", "RBC"), ("b", "WBC")):
        _picture(source / "JPEGImages" / f"{name}.jpg", (100, 80))
        _text(source / "Annotations" / f"{name}.xml", VOC.format(label))
    _text(source / "ImageSets" / "Main" / "trainval.txt", "a\n")
    _text(source / "ImageSets" / "Main" / "test.txt", "b\n")
    return source


def test_voc_becomes_coco_without_boxes_of_no_size(voc, tmp_path):
    out = tmp_path / "out"
    train, _ = convert_voc(voc, out)
    assert (train.images, train.objects, train.dropped) == (1, 1, 1)
    data = _val(out)
    assert [c["name"] for c in data["categories"]] == ["RBC", "WBC"]
    assert data["annotations"][0]["bbox"] == [10, 20, 20, 40]
    assert data["annotations"][0]["category_id"] == 2
    files = read_coco(out / "annotations" / "val.json", out / "val")
    assert files.classes == ("RBC", "WBC") and not files.has_masks


def test_voc_lists_in_the_forms_that_people_have(voc, tmp_path):
    lists = voc / "ImageSets" / "Main"
    (lists / "test.txt").rename(lists / "val.txt")
    (lists / "trainval.txt").rename(lists / "train.txt")
    _picture(voc / "JPEGImages" / "my image 1.JPG", (100, 80))
    _text(voc / "Annotations" / "my image 1.xml", VOC.format("RBC"))
    _text(lists / "val.txt", "b  1\r\nmy image 1\r\n", "utf-16")
    parts = convert_voc(voc, tmp_path / "out")
    assert [part.images for part in parts] == [1, 2]
    (lists / "val.txt").unlink()
    with pytest.raises(TaskError, match="has neither trainval.txt and test.txt nor"):
        convert_voc(voc, tmp_path / "out2")
    _text(lists / "val.txt", "\n")
    with pytest.raises(TaskError, match="val.txt: names no image"):
        convert_voc(voc, tmp_path / "out2")


LAUGHS = "<!DOCTYPE a [<!ENTITY a 'ha'>{}]>".format(
    "".join(f"<!ENTITY {chr(98 + i)} '{f'&{chr(97 + i)};' * 10}'>" for i in range(20))
)


@pytest.mark.parametrize(
    ("text", "encoding", "message"),
    [
        ("<annotation>", "utf-8", "no element found"),
        (LAUGHS + "<annotation>&u;</annotation>", "utf-8", "a document type"),
        (LAUGHS + "<annotation>&u;</annotation>", "utf-16", "a document type"),
        ("<!DOCTYPE a SYSTEM 'file:///etc/passwd'><annotation/>", "utf-8", "a document type"),
        ("<?xml version='1.0' encoding='gbk'?><annotation/>", "utf-8", "multi-byte encodings"),
        ("<?xml version='1.0' encoding='foo'?><annotation/>", "utf-8", "unknown encoding"),
        ("<?xml version='1.0' encoding='utf-16'?><annotation/>", "utf-8", "is incorrect"),
        ("<annotation>\u00e9</annotation>", "latin-1", "not well-formed"),
        ("", "utf-8", "no element found"),
        (
            VOC.format("A").replace("100", "80").replace("<height>80", "<height>100"),
            "utf-8",
            "80 x 100",
        ),
        (VOC.format("A").replace("<xmin>10", "<xmin>40"), "utf-8", "ends before it begins"),
        (VOC.format("A").replace("<ymax>60", "<ymax>600"), "utf-8", "reaches out of its image"),
        (VOC.format("A").replace("<ymax>60", "<ymax>nan"), "utf-8", "'nan' is no number"),
        (VOC.format("A").replace("<ymax>60</ymax>", ""), "utf-8", "None is no number"),
        (VOC.format(""), "utf-8", "an object without a name"),
    ],
)
def test_odd_xml_is_refused_with_its_name(voc, tmp_path, text, encoding, message):
    _text(voc / "Annotations" / "b.xml", text, encoding)
    with pytest.raises(TaskError, match=f"b.xml: not an annotation in VOC's form.*{message}"):
        convert_voc(voc, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_xml_in_the_encodings_that_it_declares_and_of_no_size_is_read(voc, tmp_path):
    text = VOC.replace("<width>100", "<width>0").format("Ré")
    for number, encoding in enumerate(("iso-8859-1", "windows-1252", "utf-16", "utf-8-sig")):
        declared = f"<?xml version='1.0' encoding='{encoding.removesuffix('-sig')}'?>"
        _text(voc / "Annotations" / "b.xml", declared + text, encoding)
        out = tmp_path / f"out{number}"
        convert_voc(voc, out)
        assert [c["name"] for c in _val(out)["categories"]] == ["RBC", "Ré", "WBC"]


def test_a_line_that_stands_there_twice_is_one_object_and_that_is_said(yolo, tmp_path, capsys):
    _text(yolo / "labels" / "val" / "a.txt", "1 0.5 0.5 0.2 0.4\n" * 3)
    assert main(["convert", "yolo", str(yolo), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "val: 1 images, 1 objects, 2 repeated objects left out" in said
    assert len(_val(tmp_path / "out")["annotations"]) == 1


def test_the_command_says_what_came_out_and_errors_of_the_system_are_sentences(
    yolo, tmp_path, capsys
):
    assert main(["convert", "yolo", str(yolo), str(tmp_path / "out")]) == 0
    assert "val: 1 images, 1 objects\n" in capsys.readouterr().out
    _text(yolo / "data.yaml", f"names: [a, b]\nval: {'x' * 5000}\n")
    assert main(["convert", "yolo", str(yolo), str(tmp_path / "out2")]) == 2
    assert "File name too long; nothing was converted" in capsys.readouterr().err
