"""Images as datasets: all in memory, or decoded from files when asked for."""

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from lspread.errors import ConfigError, DataError

__all__ = ["FolderImages", "ImageRows", "Images", "TensorImages", "decode_image"]

_WHITE = (255, 255, 255, 255)
_CHUNK = 1024


class Images(Dataset[dict[str, Tensor]]):
    """n images of one shape; item i is `{"image": uint8 (ch,h,w), "index": int64 ()}`.

    A `DataLoader` with `collate_fn=keep_batch` fetches each batch with one call of `fetch`.
    """

    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        raise NotImplementedError

    def fetch(self, index: Tensor) -> Tensor:
        """Return the images (m,ch,h,w) uint8 of the rows `index` (m,) int64."""
        raise NotImplementedError

    def moments(self, index: Tensor) -> Tensor:
        """Return each image's sum and sum of squares per channel, (m,ch,2) int64, for the rows `index`."""
        raise NotImplementedError

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        index = torch.tensor([range(len(self))[item]])
        return {"image": self.fetch(index)[0], "index": index[0]}

    def __getitems__(self, items: list[int]) -> dict[str, Tensor]:
        """Return a whole batch at once; `DataLoader` calls this instead of one `__getitem__` per item."""
        index = torch.tensor(items, dtype=torch.int64)
        return {"image": self.fetch(index), "index": index}


class TensorImages(Images):
    """Images in memory.

    Args:
        image: (n,ch,h,w) uint8.

    Raises:
        DataError: Another shape or dtype.
    """

    def __init__(self, image: Tensor) -> None:
        if image.dim() != 4 or image.dtype != torch.uint8:
            raise DataError(
                f"Images need shape (n,ch,h,w) and dtype uint8 (0 to 255); got shape {tuple(image.shape)}, dtype "
                f"{image.dtype}. Scale to 0..255, call .to(torch.uint8), and add the channel dimension."
            )
        self.image = image.contiguous()
        self.image_shape = (image.shape[1], image.shape[2], image.shape[3])

    def __len__(self) -> int:
        return self.image.shape[0]

    def fetch(self, index: Tensor) -> Tensor:
        """Return the images (m,ch,h,w) uint8 of the rows `index`: one `index_select`."""
        return self.image.index_select(0, index)

    def moments(self, index: Tensor) -> Tensor:
        """Return each image's sum and sum of squares per channel, (m,ch,2) int64."""
        return torch.cat([_moments(self.fetch(part)) for part in index.split(_CHUNK)])


class FolderImages(Images):
    """Image files, decoded each time they are asked for; a batch is decoded by several threads.

    Args:
        paths: One file per item.
        image_size: Height and width after the resize.
        in_channels: 1 (grey) or 3 (RGB).
        num_threads: Decoding threads; None takes one per core that this process may use.
    """

    def __init__(
        self, paths: Sequence[Path], image_size: int, in_channels: int, *, num_threads: int | None = None
    ) -> None:
        if image_size < 1:
            raise ConfigError(f"image_size must be at least 1 pixel, but is {image_size}.")
        if in_channels not in (1, 3):
            raise ConfigError(f"in_channels must be 1 (grey) or 3 (color), but is {in_channels}.")
        self.paths = list(paths)
        self.image_shape = (in_channels, image_size, image_size)
        self.num_threads = num_threads if num_threads is not None else _num_cores()
        self._all_moments: Tensor | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def fetch(self, index: Tensor) -> Tensor:
        """Decode the images (m,ch,h,w) uint8 of the rows `index`.

        Raises:
            DataError: Some files cannot be read; the message names the first of them.
        """
        out, failures = self._fetch(index)
        _raise_unreadable(failures, len(out))
        return out

    def fetch_readable(self, index: Tensor) -> tuple[Tensor, Tensor, list[tuple[Path, str]]]:
        """Decode those of the rows `index` (m,) that can be.

        Returns:
            Their images (r,ch,h,w) uint8, their rows (r,) in the order of `index`, and the other files with the reason.
        """
        out, failures = self._fetch(index)
        broken = {path for path, _ in failures}
        is_read = torch.tensor([self.paths[row] not in broken for row in index.tolist()], dtype=torch.bool)
        return out[is_read], index[is_read], failures

    def _fetch(self, index: Tensor) -> tuple[Tensor, list[tuple[Path, str]]]:
        out = torch.empty((len(index), *self.image_shape), dtype=torch.uint8)
        with ThreadPoolExecutor(self.num_threads) as threads:
            return out, self._decode(threads, index.tolist(), out)

    def moments(self, index: Tensor) -> Tensor:
        """Return each image's sum and sum of squares per channel, (m,ch,2) int64; the first call decodes all files."""
        if self._all_moments is None:
            self.check()
        assert self._all_moments is not None
        return self._all_moments[index]

    def check(self, *, progress: bool = False) -> None:
        """Decode every file once without keeping it, so that unreadable files are found before training.

        Raises:
            DataError: Some files cannot be read; the message names the first of them.
        """
        self._decode_all(None, progress)

    def find_unreadable(self, *, progress: bool = False) -> list[tuple[Path, str]]:
        """Decode every file once and return those that cannot be read, with the reason."""
        failures: list[tuple[Path, str]] = []
        scratch = torch.empty((min(_CHUNK, max(1, len(self))), *self.image_shape), dtype=torch.uint8)
        with ThreadPoolExecutor(self.num_threads) as threads:
            for start, stop in _chunks(len(self), progress):
                failures += self._decode(threads, range(start, stop), scratch[: stop - start])
        return failures

    def load(self, *, progress: bool = False) -> TensorImages:
        """Decode every file once and keep the result in memory.

        Raises:
            DataError: Some files cannot be read; the message names the first of them.
        """
        image = torch.empty((len(self), *self.image_shape), dtype=torch.uint8)
        self._decode_all(image, progress)
        return TensorImages(image)

    def _decode_all(self, out: Tensor | None, progress: bool) -> None:
        failures: list[tuple[Path, str]] = []
        moments = []
        scratch = torch.empty((min(_CHUNK, len(self)), *self.image_shape), dtype=torch.uint8)
        with ThreadPoolExecutor(self.num_threads) as threads:
            # In chunks, so that Ctrl-C waits for one chunk and not for all files.
            for start, stop in _chunks(len(self), progress):
                part = scratch[: stop - start] if out is None else out[start:stop]
                failures += self._decode(threads, range(start, stop), part)
                moments.append(_moments(part))
        _raise_unreadable(failures, len(self))
        self._all_moments = torch.cat(moments)

    def _decode(self, threads: ThreadPoolExecutor, rows: Sequence[int], out: Tensor) -> list[tuple[Path, str]]:
        array = out.numpy()
        channels, size, _ = self.image_shape

        def decode(slot: int) -> tuple[Path, str] | None:
            path = self.paths[rows[slot]]
            try:
                array[slot] = decode_image(path, size, channels).numpy()
            except _Unreadable as error:
                return path, error.reason
            return None

        return [failure for failure in threads.map(decode, range(len(rows))) if failure is not None]


class ImageRows(Dataset[dict[str, Tensor]]):
    """Some rows of a dataset; "index" keeps the number that an item has in the whole dataset.

    A view and not a sampler, because Lightning replaces samplers on several devices.

    Args:
        images: The whole dataset.
        rows: (m,) int64 rows to show, in this order.
    """

    def __init__(self, images: Images, rows: Tensor) -> None:
        self.images = images
        self.rows = rows

    def __len__(self) -> int:
        return self.rows.numel()

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        return self.images[int(self.rows[item])]

    def __getitems__(self, items: list[int]) -> dict[str, Tensor]:
        """Return a whole batch at once."""
        index = self.rows[torch.tensor(items, dtype=torch.int64)]
        return {"image": self.images.fetch(index), "index": index}


def decode_image(path: str | Path, image_size: int, in_channels: int) -> Tensor:
    """Read one image file as a square of the asked size.

    The camera's orientation (EXIF) is applied, 16-bit grey is scaled to 8 bits, transparent pixels are
    put on white, animations give their first frame. The center square is resized with antialiasing,
    which is the same as resizing the shorter side and cropping the center.

    Args:
        path: png, jpg, bmp, webp, tif, gif or whatever else Pillow reads.
        image_size: Height and width of the result.
        in_channels: 1 (grey, Rec. 601 luma) or 3 (RGB).

    Returns:
        (in_channels, image_size, image_size) uint8.

    Raises:
        DataError: The file cannot be read as an image; the message names its path.
    """
    try:
        with Image.open(path) as file:
            # A JPEG can be decoded at 1/2, 1/4 or 1/8 for little; twice the target keeps the resize clean.
            file.draft(None, (2 * image_size, 2 * image_size))
            image = _to_8_bits(ImageOps.exif_transpose(file), "RGB" if in_channels == 3 else "L")
            side = min(image.size)
            left, top = (image.width - side) / 2, (image.height - side) / 2
            image = image.resize(
                (image_size, image_size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
            )
            array = np.array(image)
    except Exception as error:  # Pillow's readers raise every kind of exception on damaged files
        raise _Unreadable(path, _reason(error, Path(path))) from error
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1).contiguous()


class _Unreadable(DataError):
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


def _to_8_bits(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image of any Pillow mode to "L" or "RGB"."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        value = np.asarray(image).astype(np.int64)
        if value.min() < 0 or value.max() > 65535:
            raise ValueError(
                f"its 32-bit values span {value.min()} to {value.max()}; convert it to 8 or 16 bits (0 to 65535)"
            )
        image = Image.fromarray(((value + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        real = np.asarray(image)
        if not (real.min() >= 0 and real.max() <= 1):  # also catches NaN
            raise ValueError(
                f"its float values span {real.min()} to {real.max()}; convert it to 8 bits or scale to 0..1"
            )
        image = Image.fromarray(np.rint(real * 255).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        if image.mode in ("La", "RGBa"):
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    return image if image.mode == mode else image.convert(mode)


def _moments(image: Tensor) -> Tensor:
    pixel = image.flatten(2).to(torch.int32)
    return torch.stack([pixel.sum(-1), pixel.square().sum(-1)], -1)


def _raise_unreadable(failures: list[tuple[Path, str]], num_files: int, most: int = 5) -> None:
    if failures:
        lines = [f"  {path}: {reason}" for path, reason in failures[:most]]
        if len(failures) > most:
            lines.append(f"  ... and {len(failures) - most} more")
        raise DataError(
            f"{len(failures)} of {num_files} image files cannot be read. Repair or remove them:\n" + "\n".join(lines)
        )


def _chunks(num_items: int, progress: bool) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) pairs, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    size = min(_CHUNK, max(64, num_items // 100))
    with Progress(*columns, console=Console(stderr=True), disable=not (progress and sys.stderr.isatty())) as bar:
        task = bar.add_task("Reading images", total=num_items)
        for start in range(0, num_items, size):
            stop = min(start + size, num_items)
            yield start, stop
            bar.update(task, completed=stop)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
