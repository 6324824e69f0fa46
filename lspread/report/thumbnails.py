"""Small pictures of items: read from the run folder only, made small, and written into the page itself."""

import base64
import io
import warnings
from pathlib import Path

from PIL import Image

from ..errors import DataError

__all__ = ["read_thumbnail", "thumbnail_uri"]

_MAX_SIDE = 128


def read_thumbnail(run_dir: Path, relative: str | None) -> Image.Image | None:
    """Read one thumbnail.

    Args:
        run_dir: The run folder.
        relative: Its path inside the folder, as `results.json` has it.

    Returns:
        A gray or RGB(A) image of at most 128 pixels a side, without metadata of the file; None where there is no
        such file or it is no image.

    Raises:
        DataError: The path leads out of the run folder.
    """
    if relative is None:
        return None
    root = run_dir.resolve()
    try:
        path = (root / relative).resolve()
        inside = path.is_relative_to(root)
    except (OSError, ValueError):
        return None
    if not inside:
        raise DataError(
            f"{run_dir / 'results.json'}: the thumbnail {relative!r} lies outside the run folder, and only "
            "pictures inside it are read. Repeat the run, or correct that path."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                has_alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
                picture = image.convert("RGBA" if has_alpha else "L" if image.mode in ("1", "L") else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE))
    picture.info.clear()
    return picture


def thumbnail_uri(image: Image.Image) -> str:
    """Return an image as a `data:` address: PNG, or JPEG where a larger color picture would weigh too much."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    kind = "png"
    if buffer.tell() > 12_000 and image.mode == "RGB":
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
