"""Ground-truth files in the forms that people have, and those that are refused."""

from pytest import fixture, mark, raises

from vit_ptq_bench.tasks.classification.label_sets import imagenet_indices
from vit_ptq_bench.tasks.classification.labelled_images import from_file
from vit_ptq_bench.tasks.errors import TaskError

IDS = list(imagenet_indices())
NAMES = [f"ILSVRC2012_val_{i:08d}" for i in range(1, 6)]
LABELS = [65, 970, 0, 999, 65]


@fixture
def val(tmp_path):
    (tmp_path / "val").mkdir()
    for name in NAMES:
        (tmp_path / "val" / f"{name}.JPEG").touch()
    return tmp_path / "val"


def _read(val, content, name="labels.txt", **options):
    file = val.parent / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return from_file(val, file, **options)


def _lines(form, labels=LABELS, end="\n"):
    return end.join(form.format(n, v) for n, v in zip(NAMES, labels, strict=True)) + end


BY_NAME = _lines("{}.JPEG {}")
WORDNET = [IDS[label] for label in LABELS]
BOXES = "{0}.JPEG,{1} 1 2 33 44 {1} 10 20 30 40 "

FORMS = {
    "blanks": BY_NAME,
    "reversed": "\n".join(reversed(BY_NAME.splitlines())),
    "tab": _lines("{}.JPEG\t{}"),
    "comma": _lines("{}.JPEG, {}"),
    "semicolon": _lines("{}.JPEG;{}"),
    "quoted": "ImageId,Label\n" + _lines('"{}.JPEG","{}"'),
    "header": "filename label\n" + BY_NAME,
    "header-by-tab": "image\tclass\n" + _lines("{}.JPEG\t{}"),
    "comments": "# labels\n\n" + BY_NAME.replace(" 970", "  970  # a cliff"),
    "val-prefix": _lines("val/{}.JPEG {}"),
    "other-prefix": _lines("./data\\imagenet\\val\\{}.JPEG {}"),
    "without-suffix": _lines("{} {}"),
    "another-suffix": _lines("{}.jpg {}"),
    "windows": _lines("{}.JPEG {}", end="\r\n"),
    "old-mac": _lines("{}.JPEG {}", end="\r"),
    "bom": b"\xef\xbb\xbf" + BY_NAME.encode(),
    "utf-16": BY_NAME.encode("utf-16"),
    "utf-16-be": b"\xfe\xff" + BY_NAME.encode("utf-16-be"),
    "utf-16-unmarked": BY_NAME.encode("utf-16-le"),
    "utf-32": BY_NAME.encode("utf-32"),
    "foreign": BY_NAME
    + "__MACOSX/._x.JPEG 5\n.DS_Store 7\nval/Thumbs.db 0\nx.JPEG .ipynb_checkpoints\n",
    "wordnet": _lines("{}.JPEG {}", WORDNET),
    "kaggle": "ImageId,PredictionString\n" + _lines(BOXES, WORDNET),
    "kaggle-without-suffix": "ImageId,PredictionString\n" + _lines("{0},{1} 1 2 3 4", WORDNET),
    "in-order": "\n".join(map(str, LABELS)),
    "in-order-wordnet": "\n".join(WORDNET) + "\n",
    "in-order-header": "label\r\n" + "\r\n".join(map(str, LABELS)),
    "trailing-comma": _lines("{}.JPEG,{},"),
    "twice": BY_NAME + BY_NAME,
}


@mark.parametrize("form", FORMS)
def test_forms_that_people_have_say_the_same(val, form):
    images = _read(val, FORMS[form])
    assert [(path.stem, label) for path, label in images.samples] == list(
        zip(NAMES, LABELS, strict=True)
    )
    assert len(images.notes) == 1 and "5 images in val" in images.notes[0]


def test_how_labels_were_read_is_said(val):
    assert _read(val, FORMS["kaggle"], "solution.csv").notes == (
        "5 images in val: 5 labels in solution.csv by file name, after a header line, WordNet ids",
    )
    assert _read(val, FORMS["in-order"]).notes == (
        "5 images in val: 5 labels in labels.txt in the order of files, indices from 0",
    )


def test_class_names_need_a_map(val, tmp_path):
    names = ["tench", "great white shark", "dog", "tench", "dog"]
    table = "image,label\n" + _lines("{}.JPEG,{}", names)
    with raises(TaskError, match="line 2: the label 'tench' is neither .*--class-map"):
        _read(val, table)
    (tmp_path / "map.txt").write_text("dog\ntench\ngreat white shark\n")
    for content in (table, _lines("{}.JPEG {}", names)):
        images = _read(val, content, class_map=tmp_path / "map.txt")
        assert [label for _, label in images.samples] == [1, 2, 0, 1, 0]
    with raises(TaskError, match="line 3: the label 'tensh' is neither"):
        _read(
            val,
            table.replace("2.JPEG,great white shark", "2.JPEG,tensh"),
            class_map=tmp_path / "map.txt",
        )


@mark.parametrize(
    ("content", "message"),
    [
        (BY_NAME.replace(" 970", " n01440764"), "line 2: the label 'n01440764' mixes WordNet ids"),
        (BY_NAME.replace(" 970", " -1"), "line 2: the label '-1' is neither"),
        (BY_NAME.replace(" 970", " 970.0"), "line 2: the label '970.0' is neither"),
        (BY_NAME.replace(" 970", " nan"), "line 2: the label 'nan' is neither"),
        (BY_NAME.replace(" 970", ""), "line 2: has other columns than line 1"),
        (BY_NAME.replace(" 970", " 970 1"), "line 2: the label '970 1' is neither"),
        (_lines("{}.JPEG,{},cat"), "line 1: expected"),
        (_lines("{}.JPEG,{}").replace(",970", ","), "line 2: expected"),
        (_lines("{}.JPEG,{}").replace(",970", ',"970'), "line 2: cannot be read as a table"),
        (_lines("{}.JPEG {}", ["n99999999"] * 5), "line 1: the WordNet id n99999999 is none"),
        (_lines("{1} {0}.JPEG"), "line 1: the label .* is neither"),
        (BY_NAME + f"{NAMES[0]}.JPEG 66\n", f"line 6: {NAMES[0]}.JPEG has another label in line 1"),
        ("a.JPEG 1\nb.JPEG 2\n", "no label for any image of .*: line 1 is about 'a.JPEG'"),
        (
            "ImageId,PredictionString\n" + _lines("{0}.JPEG,n01440764 1 2 3 4 n01443537 1 2 3 4"),
            "line 2: one image, but the WordNet ids n01440764 and n01443537",
        ),
        ("1\n2\n3\n4\n", "labels 4 images, but .* holds 5"),
        ("", "holds no labels"),
        ("label\n", "labels 1 images, but"),
        ("# label\n", "holds no labels"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "cannot read the ground-truth file"),
        (b"a.JPEG 1\0\n", "it is no text"),
        ("1\n" + "a" * 500_000 + "\n1\n1\n1\n", "line 2: the label 'a{60}' is"),
        ("a," + '"' * 500_001, "line 1: cannot be read as a table"),
    ],
)
def test_other_forms_are_refused_with_the_line(val, content, message):
    with raises(TaskError, match=message):
        _read(val, content)


def test_labels_that_count_from_one_are_refused(val):
    for i in range(20):
        (val / f"more_{i:02d}.JPEG").touch()
    labels = [1 + i % 12 for i in range(25)]
    with raises(TaskError, match="line 1: the labels are 1 to 12, counted from 1.*devkit"):
        _read(val, "\n".join(map(str, labels)))
    images = _read(val, "\n".join(map(str, [*range(990, 1000), 1000] + [7] * 14)))
    with raises(TaskError, match="label 1000, but tiny has 1000 outputs, 0 to 999; .*count from 1"):
        images.require_outputs(1000, "tiny")
    images = _read(val, "\n".join(map(str, [i % 12 for i in range(25)])))
    images.require_outputs(12, "tiny")
    with raises(TaskError, match="labels 0 to 11, as of 12 classes, but tiny has 1000 outputs"):
        images.require_outputs(1000, "tiny")


def test_the_list_of_the_devkit_is_refused(val):
    for labels in ("490\n361\n171\n822\n297\n", _lines("{}.JPEG {}", [490, 361, 171, 822, 297])):
        with raises(TaskError, match="the ids of ImageNet's devkit .* LOC_val_solution.csv"):
            _read(val, labels, "ILSVRC2012_validation_ground_truth.txt")


def test_labels_without_names_need_a_clear_order_and_all_files(tmp_path):
    val = tmp_path / "val"
    val.mkdir()
    for i in range(9, 12):
        (val / f"{i}.jpg").touch()
    with raises(TaskError, match=r"'10.jpg' comes before '9.jpg' as text"):
        _read(val, "0\n1\n2\n")
    (val / "9.jpg").rename(val / "09.jpg")
    assert [label for _, label in _read(val, "5\n1\n2\n").samples] == [5, 1, 2]
    (val / "12.jpg").symlink_to(val / "gone.jpg")
    with raises(TaskError, match="3 images, but .* holds 3 .*1 dangling links .*one by one"):
        _read(val, "5\n1\n2\n")


def test_images_without_labels_and_labels_without_images_are_counted(val):
    more = "".join(f"missing_{i}.JPEG 3\n" for i in range(3))
    with raises(
        TaskError, match=r"3 of 8 labels in labels.txt left out: 3 no image for .*--incomplete"
    ):
        _read(val, BY_NAME + more)
    images = _read(val, BY_NAME + more, incomplete=True)
    assert images.notes[1:] == (
        "3 of 8 labels in labels.txt left out: 3 no image for in labels.txt (missing_0.JPEG)",
    )
    few = "".join(BY_NAME.splitlines(keepends=True)[:2])
    with raises(TaskError, match="3 of 5 images in val left out: 3 no label for"):
        _read(val, few)
    assert len(_read(val, few, incomplete=True).samples) == 2


def test_the_file_may_lie_among_the_images(val):
    file = val / "labels.csv"
    file.write_text(BY_NAME)
    assert len(from_file(val, file).notes) == 1
