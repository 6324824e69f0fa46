"""Images as datasets: all in memory, or decoded from files when asked for."""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lspread.data.decoding import Unreadable, Window, check_window, decode_image, is_deep
from lspread.errors import ConfigError, DataError

__all__ = ["FolderImages", "ImageRows", "Images", "ItemRows", "TensorImages"]

_CHUNK = 1024


class Images(Dataset[dict[str, Tensor]]):
    """n images of one shape; item i is `{"image": (ch,h,w), "index": int64 ()}`.

    Images are uint8, or float32 in the units that the network gets: [0, 1] for images of more than 8 bits. A
    `DataLoader` with `collate_fn=keep_batch` fetches each batch with one call of `fetch`.

    Attributes:
        image_shape: (ch, h, w).
        full_scale: What `moments` counts where the network gets 1: 255 for 8 bits, 65535 for 16, 1 for no pixels.
    """

    image_shape: tuple[int, int, int]
    full_scale: int = 255

    def __len__(self) -> int:
        raise NotImplementedError

    def fetch(self, index: Tensor) -> Tensor:
        """Return the images (m,ch,h,w), uint8 or float32, of the rows `index` (m,) int64."""
        raise NotImplementedError

    def moments(self, index: Tensor) -> Tensor:
        """Return each image's sum and sum of squares per channel, (m,ch,2), in units of 1 / `full_scale`."""
        raise NotImplementedError

    def to(self, device: torch.device, max_bytes: int) -> "Images | None":
        """Return the same images on a device, in `max_bytes` at most; None where they do not fit or are files."""
        return None

    def fingerprint(self, index: Tensor) -> str:
        """Return a hash of the rows `index` (m,) in their order, another one if any of their pixels is another."""
        digest = hashlib.blake2b(repr((self.image_shape, self.full_scale)).encode(), digest_size=16)
        for part in index.split(_CHUNK):
            digest.update(self.fetch(part).contiguous().numpy().data)
        return digest.hexdigest()

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
        image: (n,ch,h,w) uint8, or uint16 for images of more than 8 bits.

    Raises:
        DataError: Another shape or dtype.
    """

    def __init__(self, image: Tensor) -> None:
        if image.dim() != 4 or image.dtype not in (torch.uint8, torch.uint16):
            raise DataError(
                "Images need shape (n,ch,h,w) and dtype uint8 (0 to 255) or uint16 (0 to 65535); got shape "
                f"{tuple(image.shape)}, dtype {image.dtype}. Scale to 0..255, call .to(torch.uint8), and add the "
                "channel dimension."
            )
        self.image = image.contiguous()
        self.image_shape = (image.shape[1], image.shape[2], image.shape[3])
        self.full_scale = torch.iinfo(image.dtype).max

    def __len__(self) -> int:
        return self.image.shape[0]

    def fetch(self, index: Tensor) -> Tensor:
        """Return the images (m,ch,h,w) of the rows `index`: uint8, or float32 in [0, 1] where they have 16 bits."""
        return _hand_out(self._select(index))

    def moments(self, index: Tensor) -> Tensor:
        """Return each image's sum and sum of squares per channel, (m,ch,2) int64."""
        return torch.cat([_moments(self._select(part)) for part in index.split(_CHUNK)])

    def to(self, device: torch.device, max_bytes: int) -> "TensorImages | None":
        """Return the same images on a device; None where they need more than `max_bytes`."""
        return TensorImages(self.image.to(device)) if self.image.nbytes <= max_bytes else None

    def _select(self, index: Tensor) -> Tensor:
        # Selected as int16, which old versions of torch can do as well.
        whole = self.image.view(torch.int16) if self.image.dtype == torch.uint16 else self.image
        return whole.index_select(0, index).view(self.image.dtype)


class FolderImages(Images):
    """Image files, decoded each time they are asked for; a batch is decoded by several threads.

    Where any file has more than 8 bits (grey PNG and TIFF of 16 bits), all of them are kept: images then come as
    float32 in [0, 1] instead of uint8. To a network both are the same, but for the bits.

    Args:
        paths: One file per item.
        image_size: Height and width after the resize.
        in_channels: 1 (grey) or 3 (RGB).
        window: Which values of files with more than 8 bits become 0 and 1, see `decode_image`.
        num_threads: Decoding threads; None takes one per core that this process may use.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        image_size: int,
        in_channels: int,
        *,
        window: Window = "full",
        num_threads: int | None = None,
    ) -> None:
        if image_size < 1:
            raise ConfigError(f"image_size must be at least 1 pixel, but is {image_size}.")
        if in_channels not in (1, 3):
            raise ConfigError(f"in_channels must be 1 (grey) or 3 (color), but is {in_channels}.")
        self.paths = list(paths)
        self.image_shape = (in_channels, image_size, image_size)
        self.window = check_window(window)
        self.num_threads = num_threads if num_threads is not None else _num_cores()
        self._all_moments: Tensor | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def dtype(self) -> torch.dtype:
        """In which the files are decoded: uint16 where any of them has more than 8 bits, else uint8."""
        with ThreadPoolExecutor(self.num_threads) as threads:
            for start, stop in _chunks(len(self), False):
                if any(threads.map(is_deep, self.paths[start:stop])):
                    return torch.uint16
        return torch.uint8

    @property
    def full_scale(self) -> int:  # type: ignore[override]
        """What `moments` counts where the network gets 1."""
        return torch.iinfo(self.dtype).max

    def fetch(self, index: Tensor) -> Tensor:
        """Decode the images (m,ch,h,w) of the rows `index`: uint8, or float32 in [0, 1].

        Raises:
            DataError: Some files cannot be read; the message names the first of them.
        """
        out, failures = self._fetch(index)
        _raise_unreadable(failures, len(out))
        return out

    def fetch_readable(self, index: Tensor) -> tuple[Tensor, Tensor, list[tuple[Path, str]]]:
        """Decode those of the rows `index` (m,) that can be.

        Returns:
            Their images (r,ch,h,w) as from `fetch`, their rows (r,) in the order of `index`, and the other files with
            the reason.
        """
        out, failures = self._fetch(index)
        broken = {path for path, _ in failures}
        is_read = torch.tensor([self.paths[row] not in broken for row in index.tolist()], dtype=torch.bool)
        return out[is_read], index[is_read], failures

    def _fetch(self, index: Tensor) -> tuple[Tensor, list[tuple[Path, str]]]:
        out = torch.empty((len(index), *self.image_shape), dtype=self.dtype)
        with ThreadPoolExecutor(self.num_threads) as threads:
            failures = self._decode(threads, index.tolist(), out)
        return _hand_out(out), failures

    def moments(self, index: Tensor) -> Tensor:
        """Return each image's sum and sum of squares per channel, (m,ch,2) int64; the first call decodes all files."""
        if self._all_moments is None:
            self.check()
        assert self._all_moments is not None
        return self._all_moments[index]

    def fingerprint(self, index: Tensor) -> str:
        """Return a hash of the files' paths, sizes and times of change, without reading them."""
        digest = hashlib.blake2b(repr((self.image_shape, self.full_scale, self.window)).encode(), digest_size=16)
        for row in index.tolist():
            told: list[Any] = [os.fspath(self.paths[row])]
            with contextlib.suppress(OSError):  # reading it will say what is wrong
                stat = self.paths[row].stat()
                told += [stat.st_size, stat.st_mtime_ns]
            digest.update(repr(told).encode())
        return digest.hexdigest()

    def check(self, *, progress: bool = False) -> None:
        """Decode every file once without keeping it, so that unreadable files are found before training.

        Raises:
            DataError: Some files cannot be read; the message names the first of them.
        """
        self._decode_all(None, progress)

    def find_unreadable(self, *, progress: bool = False) -> list[tuple[Path, str]]:
        """Decode every file once and return those that cannot be read, with the reason."""
        failures: list[tuple[Path, str]] = []
        scratch = torch.empty((min(_CHUNK, max(1, len(self))), *self.image_shape), dtype=self.dtype)
        with ThreadPoolExecutor(self.num_threads) as threads:
            for start, stop in _chunks(len(self), progress):
                failures += self._decode(threads, range(start, stop), scratch[: stop - start])
        return failures

    def load(self, *, progress: bool = False) -> TensorImages:
        """Decode every file once and keep the result in memory.

        Raises:
            DataError: Some files cannot be read; the message names the first of them.
        """
        image = torch.empty((len(self), *self.image_shape), dtype=self.dtype)
        self._decode_all(image, progress)
        return TensorImages(image)

    def _decode_all(self, out: Tensor | None, progress: bool) -> None:
        failures: list[tuple[Path, str]] = []
        moments = []
        scratch = torch.empty((min(_CHUNK, len(self)), *self.image_shape), dtype=self.dtype)
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
                array[slot] = decode_image(path, size, channels, dtype=self.dtype, window=self.window).numpy()
            except Unreadable as error:
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


class ItemRows(Dataset[dict[str, Tensor]]):
    """Some rows of a dataset whose images lie on the device already: batches hold "index" alone.

    Args:
        rows: (m,) int64 rows to show, in this order.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows.numel()

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        return {"index": self.rows[item]}

    def __getitems__(self, items: list[int]) -> dict[str, Tensor]:
        """Return a whole batch at once."""
        return {"index": self.rows[torch.tensor(items, dtype=torch.int64)]}


def _hand_out(image: Tensor) -> Tensor:
    if image.dtype == torch.uint8:
        return image
    # By way of int16: few operations know uint16, and not the same ones on every device.
    value = image.view(torch.int16).int().bitwise_and_(0xFFFF)
    return value.float().div_(0xFFFF)


def _moments(image: Tensor) -> Tensor:
    pixel = image.flatten(2).to(torch.int32 if image.dtype == torch.uint8 else torch.int64)
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
    size = min(_CHUNK, max(64, num_items // 100))
    chunks = [(start, min(start + size, num_items)) for start in range(0, num_items, size)]
    if not (progress and sys.stderr.isatty()):
        yield from chunks
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("Reading images", total=num_items)
        for start, stop in chunks:
            yield start, stop
            bar.update(task, completed=stop)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
