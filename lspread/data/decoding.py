"""Image files to squares of pixels, with all the bits that they have."""

from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lspread.errors import ConfigError, DataError

__all__ = ["Unreadable", "Window", "check_window", "decode_image", "is_deep"]

Window: TypeAlias = Literal["full", "image"] | tuple[float, float]
"""Which values of files with more than 8 bits become 0 and 1: those of the format (0 and 65535; floats: 0 and 1), each
image's own darkest and brightest, or two given ones."""

_WHITE = (255, 255, 255, 255)
_PHOTOMETRIC, _MIN_IS_WHITE = 262, 0  # TIFF 6.0, section 8
_NEVER_DEEP = {".jpg", ".jpeg", ".bmp", ".gif", ".webp"}


def check_window(window: Window) -> Window:
    """Return `window` where it is one, a list as a tuple.

    Raises:
        ConfigError: It is no window.
    """
    if isinstance(window, str):
        if window in ("full", "image"):
            return window
    elif len(window) == 2 and window[0] < window[1]:
        return (float(window[0]), float(window[1]))
    raise ConfigError(f"window must be 'full', 'image' or two values [darkest, brightest]; got {window!r}.")


def is_deep(path: str | Path) -> bool:
    """Say whether a file has more than 8 bits per pixel in one channel, from its header; False where it has none."""
    if Path(path).suffix.lower() in _NEVER_DEEP:
        return False
    try:
        with Image.open(path) as file:
            return _is_deep(file)
    except Exception:  # Pillow's readers raise every kind of exception on damaged files, which decoding then reports
        return False


def decode_image(
    path: str | Path,
    image_size: int,
    in_channels: int,
    *,
    dtype: torch.dtype = torch.uint8,
    window: Window = "full",
) -> Tensor:
    """Read one image file as a square of the asked size.

    The camera's orientation (EXIF) is applied, transparent pixels are put on white, animations give their first frame.
    The center square is resized with antialiasing, which is the same as resizing the shorter side and cropping the
    center. Grey files of 16 bits, integers or floats are resized with all their bits and then scaled to `dtype`;
    Pillow itself reads 16-bit color as 8 bits. TIFFs whose smallest value is white (MinIsWhite) are turned, so that
    bright is large; `window` means the turned values.

    Args:
        path: png, jpg, bmp, webp, tif, gif or whatever else Pillow reads.
        image_size: Height and width of the result.
        in_channels: 1 (grey, Rec. 601 luma) or 3 (RGB).
        dtype: `torch.uint8`, or `torch.uint16` to keep what more than 8 bits tell; 8-bit values are then scaled up.
        window: Which values of files with more than 8 bits become darkest and brightest; values beyond are clipped.

    Returns:
        (in_channels, image_size, image_size) of `dtype`.

    Raises:
        DataError: The file cannot be read as an image; the message names its path.
    """
    highest = torch.iinfo(dtype).max
    try:
        with Image.open(path) as file:
            # A JPEG can be decoded at 1/2, 1/4 or 1/8 for little; twice the target keeps the resize clean.
            file.draft(None, (2 * image_size, 2 * image_size))
            if _is_deep(file):
                real = _resize_center(_scale(ImageOps.exif_transpose(file), window, _is_negative(file)), image_size)
                array = np.rint(real.clip(0, 1) * highest)
            else:
                image = _to_8_bits(ImageOps.exif_transpose(file), "RGB" if in_channels == 3 else "L")
                array = _resize_center(image, image_size).astype(np.int64) * (highest // 255)
    except Exception as error:  # Pillow's readers raise every kind of exception on damaged files
        raise Unreadable(path, _reason(error, Path(path))) from error
    array = array.astype(np.uint8 if dtype == torch.uint8 else np.uint16)
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], in_channels, 2)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


class Unreadable(DataError):
    """One file that is no image; `reason` says why, without the path."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path} cannot be read as an image: {reason}")
        self.reason = reason


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return "the file is empty" if path.stat().st_size == 0 else "its content is not a known image format"
    return str(error) or type(error).__name__


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _resize_center(image: Image.Image, size: int) -> np.ndarray:
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def _is_negative(image: Image.Image) -> bool:
    """Say whether 0 is white in a 16-bit TIFF (PhotometricInterpretation); of 8-bit ones Pillow turns the values."""
    return image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _MIN_IS_WHITE


def _scale(image: Image.Image, window: Window, is_negative: bool) -> Image.Image:
    """Return a deep image as floats, 0 for the darkest and 1 for the brightest value of the window."""
    value = np.asarray(image).astype(np.float64)
    value = 65535 - value if is_negative else value
    lowest, highest = value.min(), value.max()
    if window == "full":
        low, high = (0.0, 1.0) if image.mode == "F" else (0.0, 65535.0)
        if not (lowest >= low and highest <= high):  # also catches NaN
            kind, advice = (
                ("float", "8 bits or scale to 0..1") if image.mode == "F" else ("32-bit", "8 or 16 bits (0 to 65535)")
            )
            raise ValueError(
                f"its {kind} values span {image.getextrema()[0]} to {image.getextrema()[1]}; convert it to {advice}, "
                "or say with `window` which values are black and white"
            )
    elif window == "image":
        low, high = lowest, max(highest, np.nextafter(lowest, np.inf))  # an image of one value becomes black
    else:
        low, high = window
    if not np.isfinite([lowest, highest]).all():
        raise ValueError("it holds NaN or infinity")
    return Image.fromarray(((value - low) / (high - low)).clip(0, 1).astype(np.float32))


def _to_8_bits(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image of any Pillow mode of at most 8 bits per channel to "L" or "RGB"."""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        if image.mode in ("La", "RGBa"):
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    return image if image.mode == mode else image.convert(mode)
