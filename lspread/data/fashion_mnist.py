"""Fashion-MNIST: 70,000 grey images of clothes, 28 x 28 pixels, ten classes."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lspread.data.idx import find_idx, read_idx
from lspread.data.images import TensorImages
from lspread.data.module import FewLabelData, Items
from lspread.errors import ConfigError, DataError
from lspread.typing import UNLABELED

__all__ = ["FashionMNIST"]

_CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
# Where the files may lie below a folder that somebody names.
_LAYOUTS = (".", "fashion-mnist", "FashionMNIST/raw")


class FashionMNIST(FewLabelData):
    """70,000 items of (1, 28, 28): rows 0 to 59,999 are the training images, the rest are the test images.

    The four idx files (.gz or not) are looked for in `root`; without `root`, in `$LSPREAD_DATA` and then where
    Debian's package `dataset-fashion-mnist` puts them.

    Args:
        root: Folder of the files, or one that holds them in `fashion-mnist/` or `FashionMNIST/raw/`.
        download: Fetch the files with torchvision where they are missing, into `root`, else `$LSPREAD_DATA`, else
            `~/.cache/lspread`.
        num_train: Use only the first so many training images; the test images follow them. None takes all.
        transductive: Put the test images into the pool, unlabeled; the split's `test` is then empty. Labels are drawn
            from the training images in either case.
        num_labels_per_class: Labels to draw from each class; 10 where no other way is chosen.
        fraction: Share of each class's training images to draw as labels.
        labeled_indices: Rows to use as labels.
        seed: Seed of the draw.
        val_fraction: Share of the training images to keep for validation.
        batch_size: Images of the pool per training step.
        labeled_batch_size: Labeled images per training step.
        eval_batch_size: Images per step without gradient.
        num_workers: Loader processes.

    Raises:
        ConfigError: `num_train` outside 1 to 60,000, or another option outside its range.
    """

    def __init__(
        self,
        root: str | None = None,
        *,
        download: bool = False,
        num_train: int | None = None,
        transductive: bool = False,
        num_labels_per_class: int | None = None,
        fraction: float | None = None,
        labeled_indices: Sequence[int] | None = None,
        seed: int = 0,
        val_fraction: float = 0.0,
        batch_size: int = 256,
        labeled_batch_size: int = 64,
        eval_batch_size: int = 1024,
        num_workers: int = 0,
    ) -> None:
        if num_labels_per_class is None and fraction is None and labeled_indices is None:
            num_labels_per_class = 10
        if num_train is not None and not 1 <= num_train <= 60_000:
            raise ConfigError(f"num_train must be 1 to 60000, or null for all images; but is {num_train}.")
        super().__init__(
            "fashion_mnist",
            _CLASS_NAMES,
            1,
            num_labels_per_class=num_labels_per_class,
            fraction=fraction,
            labeled_indices=labeled_indices,
            seed=seed,
            val_fraction=val_fraction,
            batch_size=batch_size,
            labeled_batch_size=labeled_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
        )
        self.root = root
        self.download = download
        self.num_train = num_train
        self.transductive = transductive

    def prepare_data(self) -> None:
        """Download the files where that was asked for and they are missing."""
        if self.download and self._find() is None:
            import torchvision

            torchvision.datasets.FashionMNIST(str(self._download_root()), download=True)

    def load_items(self) -> Items:
        """Read the four files and draw the labels.

        Raises:
            DataError: Files are missing, damaged, or do not fit each other.
        """
        paths = self._find()
        if paths is None:
            places = "\n".join(f"  {place}" for place in self._places())
            raise DataError(
                f"Fashion-MNIST's four files ({_FILES[0]}[.gz], ...) are not together in any of these folders:\n"
                f"{places}\nInstall Debian's package (sudo apt install dataset-fashion-mnist), name the folder with "
                "root= or $LSPREAD_DATA, or set download=True (call prepare_data() first outside a Trainer)."
            )
        train_image, train_label = _read_pair(paths[0], paths[1])
        test_image, test_label = _read_pair(paths[2], paths[3])
        if train_image.shape[1:] != test_image.shape[1:]:
            raise DataError(
                f"{paths[0]} has images of {tuple(train_image.shape[2:])} pixels, {paths[2]} of "
                f"{tuple(test_image.shape[2:])}; they need the same size."
            )
        if self.num_train is not None:
            train_image, train_label = train_image[: self.num_train], train_label[: self.num_train]
        num_train, num_test = len(train_image), len(test_image)
        label = torch.cat([train_label, test_label])
        test = torch.arange(num_train, num_train + num_test)
        drawable = label.clone()
        drawable[test] = UNLABELED
        split = self.draw_split(drawable, test=None if self.transductive else test)
        if self.val_fraction:
            split = split.hold_out(self.val_fraction, drawable, seed=self.seed)
        names = [f"train-{i:05d}" for i in range(num_train)] + [f"test-{i:05d}" for i in range(num_test)]
        return Items(TensorImages(torch.cat([train_image, test_image])), names, label, split)

    def find_folder(self) -> str | None:
        """Return the folder in which the four files lie together, or None."""
        paths = self._find()
        return None if paths is None else str(paths[0].parent)

    def _places(self) -> list[Path]:
        if self.root is not None:
            bases = [Path(self.root)]
        else:
            bases = [Path(os.environ["LSPREAD_DATA"])] if os.environ.get("LSPREAD_DATA") else []
        places = [base / layout for base in bases for layout in _LAYOUTS]
        if self.root is None:
            places.append(_DEBIAN)
            if self.download:
                places.append(self._download_root() / "FashionMNIST" / "raw")
        return list(dict.fromkeys(places))

    def _download_root(self) -> Path:
        return Path(self.root or os.environ.get("LSPREAD_DATA") or Path.home() / ".cache" / "lspread")

    def _find(self) -> list[Path] | None:
        for place in self._places():
            paths = [path for name in _FILES if (path := find_idx(place, name)) is not None]
            if len(paths) == len(_FILES):
                return paths
        return None


def _read_pair(image_path: Path, label_path: Path) -> tuple[Tensor, Tensor]:
    """Return images (n,1,h,w) uint8 and labels (n,) int64 that fit each other."""
    image, label = read_idx(image_path), read_idx(label_path)
    if image.dim() != 3 or image.numel() == 0:
        raise DataError(f"{image_path} needs images of shape (n, h, w); got {tuple(image.shape)}.")
    if label.shape != image.shape[:1]:
        raise DataError(
            f"{label_path} needs one label for each of the {image.shape[0]} images in {image_path}; "
            f"got shape {tuple(label.shape)}."
        )
    if int(label.max()) >= len(_CLASS_NAMES):
        item = int((label >= len(_CLASS_NAMES)).nonzero()[0, 0])
        raise DataError(
            f"{label_path} has label {int(label[item])} for item {item}, outside the classes 0 to "
            f"{len(_CLASS_NAMES) - 1}."
        )
    return image.unsqueeze(1), label.to(torch.int64)
