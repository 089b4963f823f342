"""Laws of opening pictures: they stand upright, lie on white, keep their bits, and one that cannot be read is named."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reading import check_mistake, written
from task_cases import CASES

from dilax.errors import UserError
from train.config import task_class
from train.data.readers.images import decode, image_channels
from train.data.readers.masks import decode_mask
from train.data.source import read

RNG = np.random.default_rng(3)
COLOUR = RNG.integers(0, 256, (4, 7, 3), np.uint8)
GREY = RNG.integers(0, 256, (4, 7), np.uint8)
# What a viewer shows of stored pixels, by EXIF orientation (TIFF 6.0, tag 274: what the first row and the first column stand for).
SHOWN: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1),
}
FORMATS: dict[str, dict[str, Any]] = {"png": {}, "tiff": {}, "webp": dict(lossless=True), "jpeg": dict(quality=100, subsampling=0)}


def stored(image: Image.Image, form: str, orientation: int = 1, **options: Any) -> bytes:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[274] = orientation
    image.save(buffer, form, exif=exif, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("orientation", SHOWN)
def test_a_picture_stands_upright(tmp_path, form, orientation):
    content = stored(Image.fromarray(COLOUR), form, orientation, **FORMATS[form])
    expected = SHOWN[orientation](COLOUR)
    for file in (content, written(tmp_path / f"a.{form}", content)):
        shown = decode(file, 3, 0)
        assert shown.shape == expected.shape
        assert np.abs(shown.astype(int) - expected).mean() < (4 if form == "jpeg" else 1e-9)
    plain = written(tmp_path / "b.png", stored(Image.fromarray(np.ascontiguousarray(expected)), "png"))
    assert image_channels([tmp_path / f"a.{form}", plain], 0) == 3  # which refuses different sizes


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_a_mask_stands_upright_as_its_picture(tmp_path, mode, orientation):
    mask = GREY % 3 if mode != "1" else GREY > 99
    image = Image.fromarray(mask)
    if mode == "P":
        image.putpalette(list(range(255, -1, -1)) * 3)
    content = stored(image, "png", orientation)
    np.testing.assert_array_equal(decode_mask(content), SHOWN[orientation](mask))
    np.testing.assert_array_equal(decode_mask(written(tmp_path / "m.png", content)), SHOWN[orientation](mask))


def test_a_photograph_and_its_mask_overlap(tmp_path):
    """The camera stores the picture lying on its side; the mask is drawn on what a viewer shows."""
    config = CASES["masks"].config(tmp_path)
    config.data.dir = str(tmp_path / "camera")
    for i in range(10):
        mask = np.zeros((12, 8), np.uint8)
        mask[: 3 + i % 5, :5] = 1
        shown = np.where(mask[..., None] == 1, 200, 30).astype(np.uint8).repeat(3, 2)
        lying = np.ascontiguousarray(np.rot90(shown))  # orientation 6 turns it back
        written(tmp_path / "camera" / "images" / f"{i}.png", stored(Image.fromarray(lying), "png", 6))
        written(tmp_path / "camera" / "masks" / f"{i}.png", stored(Image.fromarray(mask), "png"))
    splits = task_class(config.task).open(config)
    for record in read(splits.train, np.arange(len(splits.train))):
        np.testing.assert_array_equal(record["image"][..., 0] > 100, record["label"] == 1)


ALPHA = RNG.integers(0, 256, (4, 7), np.uint8)
ALPHA[1], ALPHA[2] = 0, 255


def on_white(colours: np.ndarray) -> np.ndarray:
    share = ALPHA[..., None] / 255
    return colours * share + 255 * (1 - share)


TRANSPARENT: dict[str, tuple[Image.Image, np.ndarray]] = {
    "RGBA": (Image.fromarray(np.dstack([COLOUR, ALPHA])), on_white(COLOUR)),
    "LA": (Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(ALPHA))), on_white(GREY[..., None].repeat(3, 2))),
}


@pytest.mark.parametrize("mode", TRANSPARENT)
@pytest.mark.parametrize("form", ["png", "tiff"])
def test_a_transparent_picture_lies_on_white(tmp_path, mode, form, capsys):
    image, expected = TRANSPARENT[mode]
    file = written(tmp_path / f"a.{form}", stored(image, form))
    np.testing.assert_allclose(decode(file, 3, 0), expected, atol=1)
    if mode == "LA":
        np.testing.assert_allclose(decode(file, 1, 0)[..., 0], expected[..., 0], atol=1)
    np.testing.assert_array_equal(decode(file, 4, 0)[..., 3], ALPHA)
    plain = written(tmp_path / "b.png", stored(Image.fromarray(COLOUR), "png"))
    assert image_channels([file, plain], 5) == 3
    note = "note: 1 of 2 images have an alpha channel: where they are transparent, they are laid on white.\n"
    assert capsys.readouterr().err == note


@pytest.mark.parametrize("transparency", [2, bytes([255, 255, 0, 100])])
def test_a_transparent_palette_lies_on_white(transparency):
    image = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60, 0, 0, 0, 200, 100, 0])
    buffer = io.BytesIO()
    image.save(buffer, "png", transparency=transparency)
    last = [200, 100, 0] if transparency == 2 else np.array([200, 100, 0]) * 100 / 255 + 155
    np.testing.assert_allclose(decode(buffer.getvalue(), 3, 0), [[[10, 20, 30], [40, 50, 60]], [[255] * 3, last]], atol=1)


def test_of_several_pictures_the_first_is_read_with_a_note(tmp_path, capsys):
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    for name in ("a.gif", "a.tiff"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert image_channels([tmp_path / name], 0) in (1, 3)
        assert capsys.readouterr().err == "note: 1 of 1 images hold several pictures, of which the first is read.\n"
    np.testing.assert_array_equal(decode(tmp_path / "a.tiff", 1, 0)[..., 0], GREY)


def deep_png(colours: int, kind: int) -> bytes:
    """A PNG of 4x7 pixels with 16 bits per channel, which PIL cannot write in colour."""
    rows = RNG.integers(0, 2**16, (4, 7 * colours)).astype(">u2")
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 7, 4, 16, kind, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def deep_tiff() -> bytes:
    """An uncompressed TIFF of 4x7 pixels with 16 bits for each of three colours."""
    tags = [(256, 7), (257, 4), (258, 0), (259, 1), (262, 2), (273, 200), (277, 3), (278, 4), (279, 4 * 7 * 6)]
    entries = b"".join(
        struct.pack("<HHII", tag, 3, 3, 150) if tag == 258 else struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags
    )
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)
    return (head.ljust(150, b"\0") + struct.pack("<HHH", 16, 16, 16)).ljust(200, b"\0") + RNG.bytes(4 * 7 * 6)


DEEP = {
    "grey.png": deep_png(1, 0),
    "colour.png": deep_png(3, 2),
    "grey with alpha.png": deep_png(2, 4),
    "colour with alpha.png": deep_png(4, 6),
    "colour.tiff": deep_tiff(),
    "colour.ppm": b"P6 7 4 65535\n" + RNG.bytes(4 * 7 * 6),
    "text.ppm": b"P3 1 1 1000\n5 6 999\n",
    "grey.pgm": b"P5 7 4 1023\n" + RNG.bytes(4 * 7 * 2),
    "float.tiff": stored(Image.fromarray(GREY.astype(np.float32)), "tiff"),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_eight_bits_are_refused(tmp_path, name):
    message = "{path} has more than 8 bits per channel, which would be cut off; save it with 8."
    for reader in (lambda path: decode(path, 3, 0), lambda path: image_channels([path], 8)):
        check_mistake(reader, tmp_path / name, DEEP[name], message)


@pytest.mark.parametrize(
    "content", [b"P6 7 4 255\n" + COLOUR.tobytes(), stored(Image.fromarray(COLOUR), "bmp"), stored(Image.fromarray(COLOUR), "png")]
)
def test_eight_bits_are_not_refused(content):
    np.testing.assert_array_equal(decode(content, 3, 0), COLOUR)


@pytest.mark.parametrize("limit", [3, 15])
def test_pictures_may_be_larger_than_the_limit_of_pil(tmp_path, monkeypatch, limit):
    """28 pixels are more than twice the one limit, an error of PIL, and above the other, a warning."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    file = written(tmp_path / "a.png", stored(Image.fromarray(COLOUR), "png"))
    np.testing.assert_array_equal(decode(file, 3, 0), COLOUR)
    assert image_channels([file], 0) == 3
    assert limit == Image.MAX_IMAGE_PIXELS


WHOLE = stored(Image.fromarray(COLOUR), "png")
BROKEN: dict[str, tuple[Any, str]] = {
    "missing": (None, "{path} does not exist; give a PNG, JPEG or other image file."),
    "a folder": ("/", "{path} is a folder; give a PNG, JPEG or other image file."),
    "empty": (b"", "{path} cannot be read as an image: it is of another type, or damaged; give a PNG, JPEG or other image file."),
    "a program for Ghostscript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "{path} cannot be read as an image: it is of another type, or damaged; give a PNG, JPEG or other image file.",
    ),
    "foreign": (b"hello", "{path} cannot be read as an image: it is of another type, or damaged; give a PNG, JPEG or other image file."),
    **{f"cut at {n}": (WHOLE[:n], "{path} cannot be read as an image") for n in (9, 20, 40, 70, len(WHOLE) - 30)},
    **{f"changed at {n}": (WHOLE[:n] + b"\xff\xff" + WHOLE[n + 2 :], "{path} cannot be read as an image") for n in (12, 17, 24, 60)},
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("reader", [lambda path: decode(path, 3, 0), decode_mask], ids=["image", "mask"])
def test_a_picture_that_cannot_be_read_is_named(tmp_path, name, reader):
    content, message = BROKEN[name]
    path = tmp_path / "a.png"
    if content == "/":
        path.mkdir()
    elif content is not None:
        written(path, content)
    with pytest.raises(UserError) as caught:
        reader(path)
    assert str(caught.value).startswith(message.format(path=path)) and "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_refused_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(UserError) as caught:
        decode(tmp_path / "x.png", 3, 0)
    assert str(caught.value) == f"{tmp_path}/x.png is a pipe or a device, not a regular file; give a PNG, JPEG or other image file."


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0nonsense", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff"])
@pytest.mark.parametrize("form", ["png", "webp"])
def test_damaged_metadata_does_not_matter(tmp_path, exif, form):
    buffer = io.BytesIO()
    Image.fromarray(COLOUR).save(buffer, form, exif=exif, **FORMATS[form])
    path = written(tmp_path / "a", buffer.getvalue())
    np.testing.assert_array_equal(decode(path, 3, 0), COLOUR)
    assert image_channels([path], 0) == 3
