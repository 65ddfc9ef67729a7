"""Reading an image: the right values for every mode and depth, or one line that names the file."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from nsaug.data.dataset import UnreadableImage, read_image
from nsaug.utils.text import preview

SIDE = 16
LEVELS = np.linspace(0, 65535, SIDE * SIDE).round().astype(np.uint16).reshape(SIDE, SIDE)
COLORS = np.random.default_rng(0).integers(0, 65536, (SIDE, SIDE, 3), dtype=np.uint16)


def saved(image, file_format, **kwargs):
    content = io.BytesIO()
    image.save(content, file_format, **kwargs)
    return content.getvalue()


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(depth, color_type, pixels, width=SIDE, height=SIDE):
    """A PNG file of depths that Pillow cannot write."""
    head = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    chunks = [(b"IHDR", head), (b"IDAT", content), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def tiff(pixels, bits, sample_format=1, photometric=1):
    """A TIFF file with one channel."""
    content = pixels.tobytes()
    tags = {256: SIDE, 257: SIDE, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: SIDE, 279: len(content)}
    tags[339] = sample_format
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(content))
    return head + content + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)


def gray(values):
    return np.repeat(np.asarray(values, float)[..., None], 3, 2)


OPAQUE = np.full((SIDE, SIDE, 1), 65535, np.uint16)
DEEP = {
    "png": (saved(Image.fromarray(LEVELS), "PNG"), gray(LEVELS / 257)),
    "png with alpha": (png(16, 4, np.concatenate([LEVELS[..., None], OPAQUE], 2).astype(">u2")), gray(LEVELS / 257)),
    "color png": (png(16, 2, COLORS.astype(">u2")), COLORS / 257),
    "color png with alpha": (png(16, 6, np.concatenate([COLORS, OPAQUE], 2).astype(">u2")), COLORS / 257),
    "tiff": (saved(Image.fromarray(LEVELS), "TIFF"), gray(LEVELS / 257)),
    "big-endian tiff": (
        saved(Image.frombytes("I;16B", (SIDE, SIDE), LEVELS.astype(">u2").tobytes()), "TIFF"),
        gray(LEVELS / 257),
    ),
    "jpeg 2000": (saved(Image.fromarray(LEVELS), "JPEG2000"), gray(LEVELS / 257)),
    "pgm": (b"P5 16 16 65535\n" + LEVELS.astype(">u2").tobytes(), gray(LEVELS / 257)),
    "pgm of 10 bits": (b"P5 16 16 1023\n" + (LEVELS // 64).astype(">u2").tobytes(), gray(LEVELS // 64 / 1023 * 255)),
    "ppm": (b"P6 16 16 65535\n" + COLORS.astype(">u2").tobytes(), COLORS / 257),
}


@pytest.mark.parametrize(("content", "expected"), DEEP.values(), ids=list(DEEP))
def test_16_bits_are_scaled_over_their_full_range(content, expected):
    image = read_image(io.BytesIO(content), "deep")
    assert image.mode == "RGB"
    np.testing.assert_allclose(np.asarray(image), expected, atol=1)


UNKNOWN_RANGE = {
    "float tiff": saved(Image.fromarray(LEVELS.astype(np.float32)), "TIFF"),
    "float pfm": saved(Image.fromarray(LEVELS.astype(np.float32)), "PPM"),
    "32-bit tiff": tiff(LEVELS.astype("<u4"), 32),
    "signed 32-bit tiff": tiff(LEVELS.astype("<i4"), 32, sample_format=2),
    "signed 16-bit tiff": tiff((LEVELS // 2).astype("<i2"), 16, sample_format=2),
    "signed 8-bit tiff": tiff((LEVELS // 512).astype(np.int8), 8, sample_format=2),
    "12-bit tiff": tiff(np.zeros(SIDE * SIDE * 3 // 2, np.uint8), 12),
    "16-bit tiff, white is zero": tiff(LEVELS.astype("<u2"), 16, photometric=0),
}


@pytest.mark.parametrize("content", UNKNOWN_RANGE.values(), ids=list(UNKNOWN_RANGE))
def test_values_without_a_known_range_are_refused(content):
    with pytest.raises(
        UnreadableImage, match="cells/x.tif cannot be read: the range of its values .* is unknown: save"
    ):
        read_image(io.BytesIO(content), "cells/x.tif")


PALETTE = Image.fromarray((COLORS // 257).astype(np.uint8)).quantize(64)
FLAT = np.full((SIDE, SIDE, 3), (200, 40, 90), np.uint8)
FIRST, SECOND = (Image.fromarray(np.full((SIDE, SIDE, 3), level, np.uint8)) for level in (10, 200))
EXIF = Image.Exif()
EXIF[274] = 6  # rotated by a quarter turn
MODES = {
    "1 bit": (saved(Image.fromarray(LEVELS > 32767), "PNG"), gray(255 * (LEVELS > 32767))),
    "2 bits": (
        png(2, 0, np.tile(np.uint8([0b00011011]), (SIDE, SIDE // 4))),
        gray(np.tile([0, 85, 170, 255], (16, 4))),
    ),
    "gray": (saved(Image.fromarray((LEVELS // 257).astype(np.uint8)), "PNG"), gray(LEVELS // 257)),
    "gray, white is zero": (tiff((LEVELS // 257).astype(np.uint8), 8, photometric=0), gray(255 - LEVELS // 257)),
    "palette": (saved(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB"))),
    "transparent palette": (saved(PALETTE, "PNG", transparency=3), np.asarray(PALETTE.convert("RGB"))),
    "transparent color": (saved(Image.fromarray(FLAT).convert("RGBA"), "WEBP", lossless=True), FLAT),
    "cmyk": (saved(Image.fromarray(FLAT).convert("CMYK"), "TIFF"), FLAT),
    "inverted cmyk of adobe": (saved(Image.fromarray(FLAT).convert("CMYK"), "JPEG", quality=100), FLAT),
    "lab": (saved(Image.new("LAB", (SIDE, SIDE), (255, 128, 128)), "TIFF"), np.full((SIDE, SIDE, 3), 255)),
    "animated gif": (saved(FIRST, "GIF", save_all=True, append_images=[SECOND]), np.asarray(FIRST)),
    "animated png": (saved(FIRST, "PNG", save_all=True, append_images=[SECOND]), np.asarray(FIRST)),
    "animated webp": (saved(FIRST, "WEBP", save_all=True, append_images=[SECOND], lossless=True), np.asarray(FIRST)),
    "two photos of a camera": (saved(FIRST, "MPO", save_all=True, append_images=[SECOND]), np.asarray(FIRST)),
    "exif orientation": (saved(Image.fromarray(FLAT[:8]), "PNG", exif=EXIF), FLAT[:8]),
    "one pixel": (saved(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), np.array([[[1, 2, 3]]])),
}


@pytest.mark.parametrize(("content", "expected"), MODES.values(), ids=list(MODES))
def test_other_modes(content, expected):
    np.testing.assert_allclose(np.asarray(read_image(io.BytesIO(content), "x"), float), expected, atol=1.5)


DAMAGED = {
    "empty": b"",
    "text": b"hello",
    "truncated": DEEP["color png"][0][:-300],
    "decompression bomb": png(8, 0, [], 30_000, 30_000),
    "no width": png(8, 0, [], 0, 10),
    "postscript, which another program would run": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n",
    "extremely long": saved(Image.new("L", (1, 101)), "PNG"),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=list(DAMAGED))
def test_unreadable_contents(content):
    with pytest.raises(UnreadableImage, match=r"^a/b\.png cannot be read: (?!.* object at 0x)"):
        read_image(io.BytesIO(content), "a/b.png")


def test_damaged_files_raise_one_error(tmp_path):
    """Decoders raise errors of many types: here bits of small files are changed at random."""
    rng = np.random.default_rng(0)
    originals = [saved(Image.fromarray(FLAT), name) for name in ("AVIF", "GIF", "JPEG", "PNG", "WEBP")]
    counts = {True: 0, False: 0}
    for number in range(300):
        content = bytearray(originals[number % len(originals)])
        for position in rng.integers(0, min(len(content), 200), 3):
            content[position] = rng.integers(256)
        try:
            read_image(io.BytesIO(bytes(content)), "x")
            counts[True] += 1
        except UnreadableImage:
            counts[False] += 1
    assert min(counts.values()) > 20


def test_unreadable_paths(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    reasons = {
        tmp_path / "pipe.png": "it is not a regular file",
        tmp_path: "it is not a regular file",
        tmp_path / "gone.png": "No such file or directory",
        tmp_path / ("x" * 300): "File name too long",
        "a\0b.png": "embedded null byte",
        "a\udcff.png": "No such file or directory",
    }
    for path, reason in reasons.items():
        with pytest.raises(UnreadableImage) as error:
            read_image(path, "x.png")
        assert str(error.value) == f"x.png cannot be read: {reason}"


def test_lack_of_memory_is_not_a_fault_of_the_image(monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        read_image(io.BytesIO(DEEP["png"][0]), "x.png")


def test_names_in_messages_are_one_line():
    with pytest.raises(UnreadableImage, match=r"^a\\nb\\udcff cannot be read: No such file or directory$"):
        read_image("gone.png", "a\nb\udcff")
    assert preview(["a\nb", "c", "d", "e"]) == "a\\nb, c, d, ..."
