"""Image files of every kind: read as what they show, or refused by name, and nothing waits for ever."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from timm_neutreno.pictures import SUFFIXES, UnreadableImage, opened, read_rgb


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, data: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def whole_jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


BROKEN = {
    "empty": b"",
    "text": b"no image",
    "cut": whole_jpeg()[:700],
    "a bomb": png(40_000, 40_000),  # 4.8 GB of pixels in 100 bytes
    "no pixels": png(16, 16),
    "a wrong checksum": png(16, 16, bytes(16 * 49))[:-20] + bytes(20),
    "a header too long": b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**31) + b"IHDR",
    "TIFF without an end": b"II*\x00\x08\x00\x00\x00\xff\xff",
    "BMP of negative size": b"BM" + struct.pack("<IHHIIiiHHIIIIII", 60, 0, 0, 54, 40, -5, -5, 1, 24, 0, 0, 0, 0, 0, 0),
    "GIF without frames": b"GIF89a\x10\x00\x10\x00\x00\x00\x00;",
    "WebP with nothing in it": b"RIFF\x04\x00\x00\x00WEBP",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_damaged_is_refused_in_one_line(tmp_path, name):
    path = tmp_path / "x.jpg"
    path.write_bytes(BROKEN[name])
    with pytest.raises(UnreadableImage) as refused:
        read_rgb(path)
    assert str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("name", "words"), [("pipe", "a pipe"), ("folder", "a folder"), ("missing", "No such file")])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, name, words):
    path = tmp_path / "x.jpg"
    if name == "pipe":
        os.mkfifo(path)
    elif name == "folder":
        path.mkdir()
    with pytest.raises(UnreadableImage, match=words), opened(path):
        pass


def test_a_device_is_refused():
    with pytest.raises(UnreadableImage, match="a device"):
        read_rgb("/dev/zero")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_that_counts_as_an_image_is_read(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    Image.new("RGB", (20, 10), (200, 30, 90)).save(path)
    pixels = np.asarray(read_rgb(path)).astype(int)
    assert pixels.shape == (10, 20, 3)
    assert abs(pixels - [200, 30, 90]).max() < 12  # GIF has 256 colours, JPEG rounds


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_shows_the_same_colour(tmp_path, mode):
    path = tmp_path / ("x.tif" if mode in ("CMYK", "YCbCr") else "x.png")
    Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(path)
    assert np.asarray(read_rgb(path)).min() >= 253


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_sixteen_bits_keep_their_greys(tmp_path, name):
    """Pillow alone makes all that is above 255 white."""
    greys = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(greys).save(tmp_path / name)
    assert np.array_equal(np.asarray(read_rgb(tmp_path / name)), np.repeat((greys >> 8)[..., None], 3, 2))


def test_floating_point_pixels_without_a_range_are_refused(tmp_path):
    path: Path = tmp_path / "x.tif"
    Image.fromarray(np.ones((4, 4), np.float32)).save(path)
    with pytest.raises(UnreadableImage, match="32 bits per pixel"):
        read_rgb(path)
