"""Images as files, as 8-bit RGB arrays (H, W, 3), and as float tensors (3, H, W) in [0, 1]."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage

from basicsr_quant.errors import UserError, is_out_of_memory
from basicsr_quant.io.atomic import write_bytes

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 2**27
ORIENTATION_TAG = 0x0112

Image = NDArray[np.uint8]

_UPRIGHT = {
    2: PillowImage.Transpose.FLIP_LEFT_RIGHT,
    3: PillowImage.Transpose.ROTATE_180,
    4: PillowImage.Transpose.FLIP_TOP_BOTTOM,
    5: PillowImage.Transpose.TRANSPOSE,
    6: PillowImage.Transpose.ROTATE_270,
    7: PillowImage.Transpose.TRANSVERSE,
    8: PillowImage.Transpose.ROTATE_90,
}


@contextlib.contextmanager
def _own_limit() -> Iterator[None]:
    """Set Pillow's limit of pixels, which warns first and does not tell the size, aside for the one of this module."""
    former, PillowImage.MAX_IMAGE_PIXELS = PillowImage.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        PillowImage.MAX_IMAGE_PIXELS = former


def _open(file: io.BytesIO | Path, source: str | Path, max_pixels: int) -> PillowImage.Image:
    """Read the header only; refuse what is no image or has too many pixels."""
    try:
        with _own_limit():
            image = PillowImage.open(file, formats=FORMATS)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise _unreadable(source, error) from error
        raise UserError(f"'{source}' is corrupt or no image ({', '.join(FORMATS)}); restore it from a copy or remove "
                        "it") from error
    if image.width * image.height > max_pixels:
        size = f"{image.height}x{image.width}"
        image.close()
        raise UserError(f"'{source}' has {size} pixels (height x width), more than the limit of {max_pixels}; cut it "
                        "into parts, or raise max_pixels of its data set (infer: --max-pixels)")
    return image


def _unreadable(path: str | Path, error: OSError) -> UserError:
    return UserError(f"cannot read image '{path}': {error.strerror or error}; check the path")


def _check_file(path: str | Path) -> None:
    """Refuse what cannot be read as a file, such as a pipe, which would never end."""
    path = Path(path)
    if path.is_file():
        return
    if path.is_symlink():
        raise UserError(f"image '{path}' is a link that leads to no file; correct or remove it")
    if path.exists():
        raise UserError(f"image '{path}' is no regular file; remove it")
    raise UserError(f"image '{path}' does not exist; check the path")


def decode_image(content: bytes, source: str | Path, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode an image file to 8-bit RGB, upright by its EXIF orientation.

    Grey and palette images become RGB, an alpha channel is dropped, 16-bit values are divided by 257 and rounded.

    Args:
        content: The bytes of the file.
        source: Its name, for the error message.
        max_pixels: Images with more pixels are refused before they are decoded.

    Returns:
        uint8 array (H, W, 3), channels in the order R, G, B.

    Raises:
        UserError: No image, truncated, damaged, too large, or neither 8 nor 16 bits deep.
    """
    if not content:
        raise UserError(f"'{source}' is empty; restore it from a copy or remove it")
    image = _open(io.BytesIO(content), source, max_pixels)
    try:
        if image.format == "PNG":
            image.verify()
            image = _open(io.BytesIO(content), source, max_pixels)
        deep = ";16" in f"{image.mode} {getattr(image, 'tile', '')}"
        image.load()
        if deep:
            return _decode_sixteen_bits(content)
        if image.format == "PPM" and image.mode == "I":
            return np.repeat(_from_sixteen_bits(np.asarray(image))[:, :, None], 3, axis=2)
        if image.mode in ("I", "F"):
            raise UserError(f"'{source}' has 32 bits per value; convert it to 8 or 16 bits")
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        return np.array(image.convert("RGB"), dtype=np.uint8)
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(f"'{source}' ({image.height}x{image.width}) does not fit into memory; cut it into parts") \
                from error
        raise UserError(f"'{source}' is truncated or damaged; restore it from a copy or remove it") from error
    finally:
        image.close()


def _decode_sixteen_bits(content: bytes) -> Image:
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if decoded is None:
        raise ValueError("OpenCV cannot decode it")
    rgb = np.asarray(decoded)[:, :, ::-1]
    if rgb.dtype == np.uint16:
        rgb = _from_sixteen_bits(rgb)
    return np.ascontiguousarray(rgb.astype(np.uint8))


def _from_sixteen_bits(values: NDArray[Any]) -> Image:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image:
    """Read an image file as 8-bit RGB (H, W, 3); see :func:`decode_image`.

    Raises:
        UserError: The file is missing or unreadable, or see :func:`decode_image`.
    """
    image_size(path, max_pixels)
    return decode_image(read_content(path), path, max_pixels)


def read_content(path: str | Path) -> bytes:
    """Return the bytes of an image file.

    Raises:
        UserError: The file is missing or unreadable.
    """
    _check_file(path)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def image_size(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return (height, width) of an image as :func:`read_image` would return it, from the header alone.

    Raises:
        UserError: The file is missing, no image, or too large.
    """
    _check_file(path)
    if not Path(path).stat().st_size:
        raise UserError(f"'{path}' is empty; restore it from a copy or remove it")
    with _open(Path(path), path, max_pixels) as image:
        width, height = image.size
        try:
            turned = "exif" in image.info and image.getexif().get(ORIENTATION_TAG, 1) >= 5
        except Exception as error:
            raise UserError(f"'{path}' is truncated or damaged; restore it from a copy or remove it") from error
    return (width, height) if turned else (height, width)


def encode_image(image: Image, suffix: str = ".png", compression: int | None = None) -> bytes:
    """Encode an 8-bit image.

    Args:
        image: uint8 RGB (H, W, 3) or grey (H, W).
        suffix: File format, one of ``IMAGE_SUFFIXES``.
        compression: PNG compression level 0 to 9; None = the library's default.

    Raises:
        UserError: The format cannot be written.
        ValueError: ``image`` is no 8-bit image.
    """
    return _encoded(image, suffix, compression).tobytes()


def _encoded(image: Image, suffix: str, compression: int | None = None) -> Image:
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(f"an image is uint8 (H, W, 3) or (H, W), not {image.dtype} {image.shape}")
    if suffix.lower() not in IMAGE_SUFFIXES:
        raise UserError(f"images cannot be written as '{suffix}'; choose one of {', '.join(sorted(IMAGE_SUFFIXES))}")
    parameters = [] if compression is None else [cv2.IMWRITE_PNG_COMPRESSION, compression]
    _, content = cv2.imencode(suffix.lower(), rgb_to_bgr(image) if image.ndim == 3 else image, parameters)
    return np.asarray(content)


def write_image(path: str | Path, image: Image) -> None:
    """Write an 8-bit RGB (H, W, 3) or grey (H, W) image, at once or not at all; the suffix names the format.

    Raises:
        UserError: The format is unknown or the file cannot be written.
    """
    write_bytes(path, _encoded(image, Path(path).suffix).data)


def rgb_to_bgr(image: Image) -> Image:
    """Return a contiguous (H, W, 3) with the channels in reverse order, a copy if need be; it is its own inverse."""
    return np.ascontiguousarray(image[:, :, ::-1])


def to_tensor(image: Image) -> torch.Tensor:
    """Turn uint8 RGB (H, W, 3) into a float32 tensor (3, H, W) in [0, 1], each value divided by 255."""
    values = image.transpose(2, 0, 1).astype(np.float32, order="C")
    values /= np.float32(255)
    return torch.from_numpy(values)


def to_image(tensor: torch.Tensor) -> Image:
    """Turn a float tensor (3, H, W) or (1, 3, H, W) into uint8 RGB (H, W, 3).

    Values are clamped to [0, 1], multiplied by 255 in float32 (float64 stays float64) and rounded half to even.

    Raises:
        UserError: A value is NaN.
        ValueError: The shape is another one.
    """
    values = tensor.detach().squeeze(0) if tensor.ndim == 4 else tensor.detach()
    if values.ndim != 3 or values.shape[0] != 3:
        raise ValueError(f"an image tensor has the shape (3, H, W) or (1, 3, H, W), not {tuple(tensor.shape)}")
    values = values if values.dtype == torch.float64 else values.float()
    if torch.isnan(values).any():
        raise UserError("a computed image holds NaN; check the weights and the precision (fp16 overflows first)")
    scaled = values.clamp(0, 1).mul_(255).round_().to(torch.uint8)
    return np.ascontiguousarray(scaled.permute(1, 2, 0).cpu().numpy())
