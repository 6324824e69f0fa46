"""Many small pictures on one sheet, each with a line or two below it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

__all__ = ["SheetPicture", "draw_contact_sheet"]

SIDE = 128
LINE = 14
MARGIN = 8
BACKGROUND, INK, FADED = (255, 255, 255), (25, 25, 30), (200, 200, 205)


@dataclass(frozen=True)
class SheetPicture:
    """One picture: its file, which may be unreadable or None, and lines of text for below."""

    path: Path | None
    lines: tuple[str, ...]


def draw_contact_sheet(rows: Sequence[Sequence[SheetPicture]], path: Path) -> Path:
    """Draw rows of pictures and write a PNG file.

    Args:
        rows: Rows of pictures; they may differ in length.
        path: The file; its folder is made where it is missing.
    """
    num_lines = max((len(picture.lines) for row in rows for picture in row), default=0)
    width = max((len(row) for row in rows), default=1) * (SIDE + MARGIN) + MARGIN
    height = SIDE + num_lines * LINE + 2 * MARGIN
    sheet = Image.new("RGB", (width, max(1, len(rows)) * height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=LINE - 3)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            left, top = MARGIN + j * (SIDE + MARGIN), MARGIN + i * height
            thumbnail = _read(picture.path)
            if thumbnail is None:
                draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline=FADED)
            else:
                offset = ((SIDE - thumbnail.width) // 2, (SIDE - thumbnail.height) // 2)
                sheet.paste(thumbnail, (left + offset[0], top + offset[1]))
            for number, line in enumerate(picture.lines):
                draw.text((left, top + SIDE + 2 + number * LINE), _fit(line, font), fill=INK, font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def _read(path: Path | None) -> Image.Image | None:
    """Return a picture that fits the square, small ones made larger without blur; None where it cannot be read."""
    if path is None:
        return None
    try:
        with Image.open(path) as image:
            picture = _to_8_bits(ImageOps.exif_transpose(image)).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Return an image of more than 8 bits from its darkest to its brightest value; others as they are."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    value = np.asarray(image).astype(np.float64)
    low, high = value.min(), value.max()
    return Image.fromarray(np.rint(255 * (value - low) / max(high - low, 1e-9)).astype(np.uint8))


def _fit(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Cut a line in its middle, so that both the folder's start and the file's end can be read."""
    text = line.encode("utf-8", "replace").decode("utf-8")
    while len(text) > 4 and font.getlength(text) > SIDE:
        half = (len(text) - 2) // 2
        text = text[:half] + "…" + text[-half:]
    return text
