"""Images of every kind: read as timm reads them, or refused by name."""

import io
import struct
import zlib

import numpy as np
import torch
from PIL import Image, ImageDraw
from pytest import fixture, mark, raises
from torchvision.transforms.functional import pil_to_tensor

from vit_ptq_bench.tasks.classification.decoding import decoded
from vit_ptq_bench.tasks.classification.image_cache import CachedImages
from vit_ptq_bench.tasks.classification.image_files import ImageFiles
from vit_ptq_bench.tasks.errors import TaskError


@fixture
def picture():
    image = Image.new("RGB", (40, 30), "navy")
    draw = ImageDraw.Draw(image)
    draw.ellipse((3, 3, 20, 25), fill="orange")
    draw.rectangle((25, 8, 38, 12), fill="white")
    return image


def _bytes(image, kind, **words):
    file = io.BytesIO()
    image.save(file, kind, **words)
    return file.getvalue()


def _turned():
    exif = Image.Exif()
    exif[274] = 6
    return exif


KINDS = {
    "jpeg": lambda p: _bytes(p, "JPEG"),
    "progressive": lambda p: _bytes(p, "JPEG", progressive=True),
    "exif-orientation": lambda p: _bytes(p, "JPEG", exif=_turned()),
    "cmyk": lambda p: _bytes(p.convert("CMYK"), "JPEG"),
    "grey": lambda p: _bytes(p.convert("L"), "JPEG"),
    "rgba": lambda p: _bytes(p.convert("RGBA"), "PNG"),
    "grey-alpha": lambda p: _bytes(p.convert("LA"), "PNG"),
    "palette": lambda p: _bytes(p.convert("P"), "PNG"),
    "transparent-palette": lambda p: _bytes(p.convert("P"), "PNG", transparency=0),
    "one-bit": lambda p: _bytes(p.convert("1"), "PNG"),
    "animated": lambda p: _bytes(p, "GIF", save_all=True, append_images=[p.rotate(90)]),
    "webp": lambda p: _bytes(p, "WEBP"),
    "tiff": lambda p: _bytes(p, "TIFF"),
    "bmp": lambda p: _bytes(p, "BMP"),
    "ppm": lambda p: _bytes(p, "PPM"),
    "one-pixel": lambda p: _bytes(p.resize((1, 1)), "PNG"),
}


@mark.parametrize("kind", KINDS)
def test_every_kind_is_read_as_timm_reads_it(tmp_path, picture, kind):
    path = tmp_path / "named_wrongly.JPEG"
    path.write_bytes(KINDS[kind](picture))
    with Image.open(path) as image:
        expected = pil_to_tensor(image.convert("RGB"))
    files = ImageFiles([(path, 7)], pil_to_tensor)
    pixels, label = files[0]
    assert torch.equal(pixels, expected) and label == 7


def test_sixteen_bits_of_colour_are_scaled_and_not_clipped(tmp_path):
    rows = b"".join(b"\0" + struct.pack(">3H", 0x8000, 0x1234, 0xFFFF) * 4 for _ in range(4))
    image = decoded(tmp_path / "a.png", _png(4, 4, rows, depth=16, colour=2))
    assert np.array_equal(np.asarray(image)[0, 0], [0x80, 0x12, 0xFF])


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width, height, rows, depth=8, colour=2, extra=b""):
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", head)
        + extra
        + _chunk(b"IDAT", zlib.compress(rows))
        + _chunk(b"IEND", b"")
    )


def _deep(kind, dtype):
    image = Image.fromarray(np.full((9, 9), 700, dtype))
    return lambda _: _bytes(image, kind)


def _cut(kind, share):
    return lambda p: (data := KINDS[kind](p))[: int(len(data) * share)]


FAULTY = {
    "16-bit-png": (_deep("PNG", np.uint16), "more than 8 bits"),
    "16-bit-tiff": (_deep("TIFF", np.uint16), "more than 8 bits"),
    "16-bit-pgm": (_deep("PPM", np.uint16), "more than 8 bits"),
    "float-tiff": (_deep("TIFF", np.float32), "more than 8 bits"),
    "truncated-jpeg": (_cut("jpeg", 0.9), "corrupt"),
    "truncated-head": (_cut("jpeg", 0.02), "corrupt"),
    "truncated-png": (_cut("rgba", 0.7), "corrupt"),
    "truncated-gif": (_cut("animated", 0.2), "corrupt"),
    "truncated-webp": (_cut("webp", 0.6), "corrupt"),
    "truncated-bmp": (_cut("bmp", 0.6), "corrupt"),
    "truncated-tiff": (_cut("tiff", 0.6), "corrupt"),
    "empty": (lambda p: b"", "corrupt"),
    "html": (lambda p: b"<!DOCTYPE html><html>404</html>", "unreadable image .of no known format"),
    "pointer": (lambda p: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "corrupt"),
    "postscript": (lambda p: _bytes(p, "EPS"), "corrupt"),
    "bomb": (lambda p: _png(30_000, 30_000, b""), "too large an image"),
    "half-a-bomb": (lambda p: _png(12_000, 12_000, b""), "too large an image"),
    "bomb-gif": (
        lambda p: b"GIF89a" + struct.pack("<HH", 65_000, 65_000) + KINDS["animated"](p)[10:],
        "too large",
    ),
    "text-bomb": (
        lambda p: _png(
            1, 1, bytes(4), extra=_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000)))
        ),
        "corrupt",
    ),
    "many-texts": (
        lambda p: _png(1, 1, bytes(4), extra=_chunk(b"tEXt", b"a\0" + bytes(900_000)) * 80),
        "corrupt",
    ),
    "narrow": (lambda p: _png(40_000, 1, bytes(120_001)), "too narrow"),
    "no-pixels": (lambda p: _png(0, 0, b""), "corrupt"),
}


@mark.parametrize("kind", FAULTY)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, picture, kind):
    make, message = FAULTY[kind]
    path = tmp_path / "some.JPEG"
    path.write_bytes(make(picture))
    files = ImageFiles([(path, 0)], pil_to_tensor)
    with raises(TaskError, match=rf"some\.JPEG: .*{message}"):
        files[0]


@mark.filterwarnings("ignore::UserWarning")  # of damaged headers that do not matter
def test_damaged_images_never_end_in_a_traceback(tmp_path, picture):
    """Bytes of every kind of file are overwritten; what still can be read may be, all else is named."""
    random = np.random.default_rng(0)
    for make in KINDS.values():
        good = make(picture)
        for _ in range(60):
            content = bytearray(good)
            for place in random.integers(0, min(len(good), 400), random.integers(1, 6)):
                content[place] = random.integers(0, 256)
            try:
                image = decoded(tmp_path / "x.JPEG", bytes(content))
            except TaskError as error:
                assert "x.JPEG: " in str(error)
            else:
                assert image.mode == "RGB"


@mark.parametrize("loader_workers", [0, 1])
def test_an_error_is_one_sentence_whichever_process_reads(tmp_path, picture, loader_workers):
    path = tmp_path / "some.JPEG"
    path.write_bytes(FAULTY["truncated-jpeg"][0](picture))
    files = ImageFiles([(path, 0)], pil_to_tensor)
    config = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    with raises(TaskError) as caught:
        list(CachedImages(files, 1, loader_workers, config, None))
    assert str(caught.value).startswith(f"{path}: corrupt or unreadable image (OSError: ")
    assert "\n" not in str(caught.value)


def test_bytes_are_held_against_what_was_planned(tmp_path, picture):
    path = tmp_path / "a.png"
    path.write_bytes(KINDS["rgba"](picture))
    files = ImageFiles([(path, 0)], pil_to_tensor)
    files[0]
    path.write_bytes(KINDS["rgba"](picture.rotate(180)))
    with raises(TaskError, match=r"a\.png was changed"):
        files[0]
    path.unlink()
    with raises(TaskError, match=r"a\.png: cannot be read"):
        files[0]
