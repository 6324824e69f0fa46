"""MedMNIST: small medical images in one file."""

import contextlib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lspread.data.images import TensorImages
from lspread.data.module import FewLabelData, Items
from lspread.errors import DataError
from lspread.typing import UNLABELED

__all__ = ["MedMNIST"]

_PARTS = ("train", "val", "test")


class MedMNIST(FewLabelData):
    """A `.npz` file of MedMNIST's: its training, validation and test parts, in that order and kept apart.

    Args:
        path: The file, e.g. `pathmnist.npz`, with arrays `train_images` `(n, h, w)` or `(n, h, w, 3)` uint8,
            `train_labels` `(n, 1)` and the same for `val` and `test`.
        class_names: Names of the classes; "class-0", "class-1", ... where None.
        num_labels_per_class: Labels to draw from each class; 10 where no other way is chosen.
        fraction: Share of each class's training images to draw as labels.
        labeled_indices: Rows to use as labels.
        seed: Seed of the draw.
        batch_size: Images of the pool per training step.
        labeled_batch_size: Labeled images per training step.
        eval_batch_size: Images per step without gradient.
        num_workers: Loader processes.

    Raises:
        DataError: The file is missing or damaged, or an image has several labels.
    """

    def __init__(
        self,
        path: str,
        *,
        class_names: Sequence[str] | None = None,
        num_labels_per_class: int | None = None,
        fraction: float | None = None,
        labeled_indices: Sequence[int] | None = None,
        seed: int = 0,
        batch_size: int = 256,
        labeled_batch_size: int = 64,
        eval_batch_size: int = 1024,
        num_workers: int = 0,
    ) -> None:
        if num_labels_per_class is None and fraction is None and labeled_indices is None:
            num_labels_per_class = 10
        self.path = Path(path)
        # Labels and shapes are small and needed before the images are.
        self._label_of = {part: self._read_label(part) for part in _PARTS}
        num_classes = 1 + max(int(label.max()) for label in self._label_of.values())
        names = [f"class-{i}" for i in range(num_classes)] if class_names is None else list(class_names)
        if len(names) != num_classes:
            raise DataError(f"{path} has {num_classes} classes, but class_names has {len(names)} names.")
        super().__init__(
            self.path.stem,
            names,
            3 if self._num_dims("train_images") == 4 else 1,
            num_labels_per_class=num_labels_per_class,
            fraction=fraction,
            labeled_indices=labeled_indices,
            seed=seed,
            batch_size=batch_size,
            labeled_batch_size=labeled_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
        )

    def load_items(self) -> Items:
        """Read the images of all parts and draw the labels from the training part."""
        image = torch.cat([self._read_image(part) for part in _PARTS])
        label = torch.cat(list(self._label_of.values()))
        size = [len(self._label_of[part]) for part in _PARTS]
        _, val, test = torch.arange(len(label)).split(size)
        drawable = label.clone()
        drawable[torch.cat([val, test])] = UNLABELED
        split = self.draw_split(drawable, val=val, test=test)
        names = [f"{part}-{i:06d}" for part, count in zip(_PARTS, size, strict=True) for i in range(count)]
        return Items(TensorImages(image), names, label, split)

    def _read_label(self, part: str) -> Tensor:
        label = self._read(f"{part}_labels")
        if label.ndim == 2 and label.shape[1] == 1:
            label = label[:, 0]
        if label.ndim != 1 or not len(label) or not np.issubdtype(label.dtype, np.integer) or label.min() < 0:
            raise DataError(
                f"{self.path}: {part}_labels must hold one class per image, (n, 1) integers >= 0; got shape "
                f"{label.shape} {label.dtype}. Files with several labels per image (ChestMNIST) have no single class."
            )
        return torch.from_numpy(label.astype(np.int64))

    def _read_image(self, part: str) -> Tensor:
        image = self._read(f"{part}_images")
        is_fit = image.dtype == np.uint8 and len(image) == len(self._label_of[part])
        if not is_fit or image.ndim not in (3, 4) or (image.ndim == 4 and image.shape[3] != 3):
            raise DataError(
                f"{self.path}: {part}_images must be {len(self._label_of[part])} images (n, h, w) or (n, h, w, 3) of "
                f"uint8, one per label; got shape {image.shape} {image.dtype}. Volumes (3D) are not read."
            )
        image = image[:, None] if image.ndim == 3 else image.transpose(0, 3, 1, 2)
        return torch.from_numpy(np.ascontiguousarray(image))

    def _num_dims(self, name: str) -> int:
        """Return how many dimensions an array has, from its header alone."""
        with self._told(name), zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as array:
            np.lib.format.read_magic(array)
            shape, _, _ = np.lib.format.read_array_header_1_0(array)
        return len(shape)

    def _read(self, name: str) -> np.ndarray:
        if not self.path.is_file():
            raise DataError(f"MedMNIST needs its .npz file; {self.path} is not there. Download it and give its path.")
        with self._told(name), np.load(self.path, allow_pickle=False) as arrays:
            array: np.ndarray = arrays[name]
        return array

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Say which array of which file could not be read."""
        try:
            yield
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.path} is no file of MedMNIST's: {name} cannot be read ({error}).") from error
