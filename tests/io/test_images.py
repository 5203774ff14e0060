"""Reading, writing and converting images."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from basicsr_quant.errors import UserError
from basicsr_quant.io import images

RANDOM = np.random.default_rng(5)
PHOTO = RANDOM.integers(0, 256, (21, 34, 3), dtype=np.uint8)


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@given(npst.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
@settings(max_examples=30)
def test_png_and_tensor_round_trip(image: np.ndarray) -> None:
    assert np.array_equal(images.decode_image(images.encode_image(image), "x"), image)
    tensor = images.to_tensor(image)
    assert tensor.dtype == torch.float32 and tensor.shape == (3, *image.shape[:2])
    assert np.array_equal(images.to_image(tensor), image)
    assert np.array_equal(images.rgb_to_bgr(images.rgb_to_bgr(image)), image)


def test_division_is_exact() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tensor = images.to_tensor(np.stack([levels] * 3, -1))
    assert np.array_equal(tensor[0].numpy(), levels.astype(np.float32) / np.float32(255))


def test_rounding_is_half_to_even_and_clamped() -> None:
    values = torch.tensor([0.5 / 255, 1.5 / 255, 2.5 / 255, -0.2, 1.7, 1.0], dtype=torch.float64)
    tensor = values.view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert images.to_image(tensor)[0, :, 0].tolist() == [0, 2, 2, 0, 255, 255]


def test_nan_is_refused() -> None:
    tensor = torch.zeros(3, 2, 2)
    tensor[1, 1, 1] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        images.to_image(tensor)
    with pytest.raises(ValueError, match="shape"):
        images.to_image(torch.zeros(1, 2, 2))


def test_grey_palette_alpha_and_bilevel_become_rgb() -> None:
    grey = PHOTO[:, :, 0]
    assert np.array_equal(images.decode_image(encoded(Image.fromarray(grey)), "x"), np.stack([grey] * 3, -1))
    few = (PHOTO // 128) * 127
    palette = Image.fromarray(few).quantize(8)
    assert np.array_equal(images.decode_image(encoded(palette), "x"), np.asarray(palette.convert("RGB")))
    alpha = np.concatenate([PHOTO, PHOTO[:, :, :1]], -1)
    assert np.array_equal(images.decode_image(encoded(Image.fromarray(alpha)), "x"), PHOTO)
    bilevel = Image.fromarray(grey > 127)
    assert set(np.unique(images.decode_image(encoded(bilevel), "x"))) == {0, 255}


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_rounded(suffix: str) -> None:
    deep = RANDOM.integers(0, 65536, (7, 5, 3)).astype(np.uint16)
    deep[0, 0] = [0, 65535, 128]
    _, content = cv2.imencode(suffix, deep[:, :, ::-1])
    expected = np.floor(deep / 257 + 0.5)
    assert np.array_equal(images.decode_image(content.tobytes(), "x"), expected)
    _, content = cv2.imencode(suffix, deep[:, :, 0])
    assert np.array_equal(images.decode_image(content.tobytes(), "x"), np.stack([expected[:, :, 0]] * 3, -1))


def test_thirty_two_bits_are_refused() -> None:
    content = encoded(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF")
    with pytest.raises(UserError, match="'deep.tif' has 32 bits"):
        images.decode_image(content, "deep.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[images.ORIENTATION_TAG] = orientation
    path = tmp_path / "turned.png"
    path.write_bytes(encoded(Image.fromarray(PHOTO), "PNG", exif=exif))
    upright = images.read_image(path)
    assert upright.shape[:2] == images.image_size(path) == ((34, 21) if orientation >= 5 else (21, 34))
    jpeg = encoded(Image.fromarray(PHOTO), "JPEG", exif=exif, quality=95)
    reference = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert np.array_equal(images.decode_image(jpeg, "x"), reference)


@pytest.mark.parametrize(("file_format", "spare"), [("PNG", 4), ("JPEG", 2), ("BMP", 2), ("WEBP", 0)])
def test_truncation_is_noticed(file_format: str, spare: int) -> None:
    content = encoded(Image.fromarray(PHOTO), file_format)
    for length in range(0, len(content) - spare, 7):
        with pytest.raises(UserError, match="'cut.img'"):
            images.decode_image(content[:length], "cut.img")


def test_a_flipped_bit_in_a_png_is_noticed() -> None:
    content = encoded(Image.fromarray(PHOTO))
    for position in range(0, len(content) - 12, 5):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        with pytest.raises(UserError, match="'bad.png'"):
            images.decode_image(bytes(damaged), "bad.png")


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.png"):
        images.read_image(tmp_path / "none.png")
    with pytest.raises(UserError, match=r"none\.png"):
        images.image_size(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no image")
    for read in (images.read_image, images.image_size):
        with pytest.raises(UserError, match=r"text\.png.*corrupt or no image"):
            read(tmp_path / "text.png")


def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path) -> None:
    images.write_image(tmp_path / "large.png", PHOTO)
    for read in (images.read_image, images.image_size):
        with pytest.raises(UserError, match=r"large\.png' has 21x34 pixels .*limit of 713; .*raise max_pixels"):
            read(tmp_path / "large.png", 713)
    assert images.read_image(tmp_path / "large.png", 714).shape == (21, 34, 3)


@pytest.mark.parametrize("name", ["蝴蝶 ö.png", "with space.BMP", "a.b.png"])
def test_any_name(tmp_path: Path, name: str) -> None:
    images.write_image(tmp_path / name, PHOTO)
    assert np.array_equal(images.read_image(tmp_path / name), PHOTO)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_writing_refuses_what_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="uint8"):
        images.write_image(tmp_path / "x.png", PHOTO.astype(np.float32))
    with pytest.raises(UserError, match=r"\.xyz"):
        images.write_image(tmp_path / "x.xyz", PHOTO)
