"""Images as people have them: every mode, depth, size, name and orientation, and files that are no images at all."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from basicsr_quant.data.stores import FolderStore
from basicsr_quant.errors import UserError
from basicsr_quant.io import images
from basicsr_quant.options.types import DatasetOptions

RANDOM = np.random.default_rng(8)
PHOTO = Image.fromarray(RANDOM.integers(0, 256, (9, 14, 3), dtype=np.uint8))
DEEP = RANDOM.integers(0, 65536, (9, 14, 4)).astype(np.uint16)
MODES = {"PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
         "BMP": ("1", "L", "P", "RGB", "RGBA"), "WEBP": ("L", "RGB", "RGBA"), "PPM": ("1", "L", "RGB"),
         "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16")}


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def in_mode(mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(DEEP[:, :, 0])
    return Image.frombytes("LAB", PHOTO.size, PHOTO.tobytes()) if mode == "LAB" else PHOTO.convert(mode)


def eight_bits(image: Image.Image) -> np.ndarray:
    """What Pillow makes of an image, 16-bit values by the rule of this package."""
    if image.mode == "I;16":
        return np.stack([(np.asarray(image).astype(int) + 128) // 257] * 3, -1)
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("file_format", list(MODES))
def test_every_mode_and_orientation_is_what_pillow_makes_of_it(file_format: str, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    turned = file_format in ("PNG", "JPEG", "WEBP", "TIFF")
    for mode in MODES[file_format]:
        for orientation in range(1, 9) if turned else (1,):
            exif = Image.Exif()
            exif[images.ORIENTATION_TAG] = orientation
            content = encoded(in_mode(mode), file_format, **({"exif": exif} if turned else {}))
            path.write_bytes(content)
            expected = eight_bits(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
            found = images.read_image(path)
            assert np.array_equal(found, expected), (mode, orientation)
            assert images.image_size(path) == found.shape[:2], (mode, orientation)


@pytest.mark.parametrize(("suffix", "channels"), [(".png", 1), (".png", 3), (".png", 4), (".tif", 1), (".tif", 3),
                                                  (".pgm", 1), (".ppm", 3)])
def test_sixteen_bits_in_every_format(suffix: str, channels: int) -> None:
    values = DEEP[:, :, 0] if channels == 1 else DEEP[:, :, :channels]
    _, content = cv2.imencode(suffix, values)
    rounded = (values.astype(int) + 128) // 257
    expected = np.stack([rounded] * 3, -1) if channels == 1 else rounded[:, :, 2::-1]
    assert np.array_equal(images.decode_image(content.tobytes(), "x"), expected)


def test_ten_bits_of_a_grey_map_fill_the_range() -> None:
    content = b"P5 3 1 1023\n" + struct.pack(">3H", 0, 512, 1023)
    assert images.decode_image(content, "x")[0, :, 0].tolist() == [0, 128, 255]


def test_a_camera_file_of_several_pictures_gives_its_first() -> None:
    content = encoded(PHOTO, "MPO", save_all=True, append_images=[PHOTO.rotate(180)], quality=95)
    assert np.array_equal(images.decode_image(content, "x"), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
    content = encoded(PHOTO, "PNG", save_all=True, append_images=[PHOTO.rotate(180)])
    assert np.array_equal(images.decode_image(content, "x"), np.asarray(PHOTO))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp", ".ppm"])
def test_a_single_pixel(suffix: str, tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (3, 200, 77)).save(tmp_path / f"dot{suffix}", **({"lossless": True} if suffix == ".webp"
                                                                              else {}))
    assert images.read_image(tmp_path / f"dot{suffix}").tolist() == [[[3, 200, 77]]]


@pytest.mark.parametrize("shape", [(20000, 50), (50, 20000)])
def test_a_very_long_image(shape: tuple[int, int], tmp_path: Path) -> None:
    rows, columns = np.indices(shape)
    image = np.stack([rows % 251, columns % 241, (rows + columns) % 256], -1).astype(np.uint8)
    images.write_image(tmp_path / "long.png", image)
    assert images.image_size(tmp_path / "long.png") == shape
    assert np.array_equal(images.read_image(tmp_path / "long.png"), image)
    assert np.array_equal(images.to_image(images.to_tensor(image)), image)


def bomb(height: int, width: int) -> bytes:
    """A PNG of a few bytes whose header promises that many black pixels."""
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100_000), 9))
            + chunk(b"IEND", b""))


@pytest.mark.parametrize(("height", "width"), [(65500, 65500), (11600, 11600)])
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path, height: int, width: int) -> None:
    """One beyond Pillow's own limit, one below it."""
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(height, width))
    for read in (images.read_image, images.image_size):
        with pytest.raises(UserError, match=rf"bomb\.png' has {height}x{width} pixels .*134217728; .*raise max_pixels"):
            read(path)
    assert Image.MAX_IMAGE_PIXELS is not None


def test_the_limit_can_be_raised_and_nothing_else_warns(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for height, width in ((10000, 10000), (65500, 65500)):  # Pillow would warn, and refuse
            path.write_bytes(bomb(height, width))
            assert images.image_size(path, height * width) == (height, width)
    assert DatasetOptions(name="x").max_pixels == images.MAX_PIXELS


@pytest.mark.parametrize(("content", "message"), [
    (b"", "empty"), (b"Dear diary,\n", "corrupt or no image"), (b"\x89PNG\r\n\x1a\n", "corrupt or no image"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "corrupt or no image"),
    (b"\0" * 4096, "corrupt or no image"), (encoded(PHOTO, "PDF"), "corrupt or no image"),
    (b"P6 9 9 255\n\1\2", "truncated or damaged"), (b"P5 3 3 99999\n", "corrupt or no image"),
    (encoded(PHOTO, "JPEG")[:-40], "truncated or damaged"), (encoded(PHOTO, "PNG")[:-40], "truncated or damaged"),
])
def test_what_is_no_image(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"file\.png' is {message}") as raised:
        images.read_image(path)
    assert "\n" not in str(raised.value)


def test_links_pipes_and_folders(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    images.write_image(tmp_path / "far/original.png", np.asarray(PHOTO))
    folder.mkdir()
    (folder / "good.png").symlink_to(tmp_path / "far/original.png")
    (folder / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "linked_folder.png").symlink_to(tmp_path / "far")
    (folder / ".hidden.png").write_bytes(b"")
    store = FolderStore(folder, "-i")
    assert store.names == ["broken", "circle", "good", "pipe"]
    assert np.array_equal(images.decode_image(store.read("good"), "x"), np.asarray(PHOTO))
    for name, message in (("broken", "leads to no file"), ("circle", "leads to no file"), ("pipe", "no regular file")):
        for read in (store.read, store.size):
            with pytest.raises(UserError, match=rf"{name}\.png' is .*{message}"):
                read(name)


@pytest.mark.parametrize("name", [
    "日本語.png", "émile+ñ.png", "с пробелом.png", "-o.png", "a'b\"c.png", "new\nline.png", "100%s.png",
    "x" * 230 + ".png", os.fsdecode(b"caf\xe9.png"),
])
def test_any_name_is_written_read_and_told(tmp_path: Path, name: str) -> None:
    images.write_image(tmp_path / name, np.asarray(PHOTO))
    store = FolderStore(tmp_path, "-i")
    assert store.names == [Path(name).stem] and store.size(store.names[0]) == (9, 14)
    assert np.array_equal(images.read_image(tmp_path / name), np.asarray(PHOTO))
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        images.read_image(tmp_path / name)
