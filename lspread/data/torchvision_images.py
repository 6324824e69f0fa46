"""Benchmark images that torchvision reads: CIFAR-10, CIFAR-100, SVHN and STL-10."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lspread.data.images import TensorImages
from lspread.data.module import FewLabelData, Items
from lspread.errors import ConfigError, DataError
from lspread.typing import UNLABELED

__all__ = ["TorchvisionImages"]

Benchmark = Literal["cifar10", "cifar100", "svhn", "stl10"]

_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_STL10 = "airplane bird car cat deer dog horse monkey ship truck"
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
_CLASS_NAMES = {"cifar10": _CIFAR10, "cifar100": _CIFAR100, "svhn": "0 1 2 3 4 5 6 7 8 9", "stl10": _STL10}


class TorchvisionImages(FewLabelData):
    """Color images of one of torchvision's benchmarks: training rows first, then the rows of its test part.

    STL-10's 100,000 images without a label stand between the two and belong to the pool.

    Args:
        dataset: "cifar10", "cifar100" (32 x 32), "svhn" (32 x 32) or "stl10" (96 x 96).
        root: Folder that holds torchvision's files (`cifar-10-batches-py/`, `cifar-100-python/`, `train_32x32.mat`,
            `stl10_binary/`); None takes `$LSPREAD_DATA`.
        download: Let torchvision fetch the files where they are missing.
        num_labels_per_class: Labels to draw from each class; 4 where no other way is chosen.
        fraction: Share of each class's training images to draw as labels.
        labeled_indices: Rows to use as labels.
        seed: Seed of the draw.
        val_fraction: Share of the training images to keep for validation.
        batch_size: Images of the pool per training step.
        labeled_batch_size: Labeled images per training step.
        eval_batch_size: Images per step without gradient.
        num_workers: Loader processes.

    Raises:
        ConfigError: Another dataset, no root, or an option outside its range.
    """

    def __init__(
        self,
        dataset: Benchmark,
        root: str | None = None,
        *,
        download: bool = False,
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
        if dataset not in get_args(Benchmark):
            raise ConfigError(f"dataset must be one of {get_args(Benchmark)}; got {dataset!r}.")
        if num_labels_per_class is None and fraction is None and labeled_indices is None:
            num_labels_per_class = 4
        super().__init__(
            dataset,
            _CLASS_NAMES[dataset].split(),
            3,
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
        folder = root or os.environ.get("LSPREAD_DATA")
        if not folder:
            raise ConfigError(
                f"{dataset} needs the folder of its files: give root=, or set $LSPREAD_DATA. With download=True they "
                "are fetched into it."
            )
        self.root, self.download = Path(folder), download

    def prepare_data(self) -> None:
        """Download the files where that was asked for and they are missing."""
        if self.download:
            for part in ("train", "test"):
                self._open(part, download=True)

    def load_items(self) -> Items:
        """Read training and test images and draw the labels.

        Raises:
            DataError: Files are missing or damaged.
        """
        train_image, train_label = self._read("train+unlabeled" if self.name == "stl10" else "train")
        test_image, test_label = self._read("test")
        num_train, num_test = len(train_image), len(test_image)
        label = torch.cat([train_label, test_label])
        test = torch.arange(num_train, num_train + num_test)
        drawable = label.clone()
        drawable[test] = UNLABELED
        split = self.draw_split(drawable, test=test)
        if self.val_fraction:
            split = split.hold_out(self.val_fraction, drawable, seed=self.seed)
        names = [f"train-{i:06d}" for i in range(num_train)] + [f"test-{i:06d}" for i in range(num_test)]
        return Items(TensorImages(torch.cat([train_image, test_image])), names, label, split)

    def _open(self, part: str, *, download: bool = False) -> Any:
        from torchvision import datasets

        if self.name in ("cifar10", "cifar100"):
            make = datasets.CIFAR10 if self.name == "cifar10" else datasets.CIFAR100
            return make(self.root, train=part == "train", download=download)
        make = datasets.SVHN if self.name == "svhn" else datasets.STL10
        return make(self.root, split=part, download=download)

    def _read(self, part: str) -> tuple[Tensor, Tensor]:
        """Return images (n,3,h,w) uint8 and labels (n,) int64 of one part."""
        try:
            found = self._open(part)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"{self.name}: torchvision finds no whole copy of its files in {self.root} ({error}). Name another "
                "folder with root= or $LSPREAD_DATA, or set download=True (outside a Trainer, call prepare_data())."
            ) from error
        image = np.asarray(found.data)
        if self.name.startswith("cifar"):
            image, label = image.transpose(0, 3, 1, 2), found.targets
        else:
            label = found.labels
        named = getattr(found, "classes", None)
        if named is not None and list(named) != self.class_names:
            raise DataError(f"{self.name} in {self.root} names other classes than the published data: {list(named)}.")
        return torch.from_numpy(np.ascontiguousarray(image)), torch.as_tensor(np.asarray(label), dtype=torch.int64)
