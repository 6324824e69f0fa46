"""The Lightning data module that all few-label datasets share."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from lspread.data.decoding import Window
from lspread.data.evaluation import Evaluator
from lspread.data.groups import check_groups, hide_relatives
from lspread.data.images import ImageRows, Images, ItemRows
from lspread.data.row_encoder import RowEncoder
from lspread.data.split import FewLabelSplit
from lspread.errors import ConfigError, DataError
from lspread.typing import UNLABELED, ItemKind

__all__ = ["BalancedSampler", "FewLabelData", "Items", "keep_batch"]

_SMALLEST_STD = 1e-6
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Items:
    """What a dataset consists of.

    Attributes:
        images: n images.
        names: A name for each item, for tables.
        label: (n,) int64 true classes as far as known, else `UNLABELED`.
        split: Which of these labels the method may see.
        group: A name for each item, such as its patient; None where items have nothing to do with each other. No
            group may stand in two of pool, validation and test, and unlabeled items of a group with a given label are
            not judged.
    """

    images: Images
    names: list[str]
    label: Tensor
    split: FewLabelSplit
    group: Sequence[str] | None = None


class FewLabelData(LightningDataModule):
    """A dataset of images of which few have a label, or of vectors, which are images of one pixel.

    Every batch is `{"image": (m,ch,h,w) uint8 or float32, "index": int64 (m,)}`. Labels never travel in batches:
    training reads `given_label[index]`, evaluation asks `evaluator.label(index)`.

    A subclass passes its constant facts to this constructor and implements `load_items`.

    Attributes:
        kind: "image", "text" or "table": what reports call an item.
        excerpts: What a person reads of each item in reports, such as the start of a text; None where its picture or
            name says all.
        features_fingerprint: A hash of what the features of the items were fitted to, such as words and scales: a
            network fits features of the same hash only. None where nothing was fitted.
        has_names: Whether names tell the items apart from those of other data of the same name; False where they are
            only counted.
        row_encoder: What makes features of rows that come later; None where items are no rows.
        window: Which values of image files with more than 8 bits are 0 and 1, see `decode_image`.
        gpu_share: Images in memory are trained on from the GPU's own, where they take at most this share of what is
            free there; 0 sends each batch from the CPU.

    Args:
        name: Short name of the dataset.
        class_names: Names of the c classes, in order.
        in_channels: Channels of an image.
        num_labels_per_class: Labels to draw from each class. Choose one of this and the next two.
        fraction: Share of each class to draw as labels, in (0, 1].
        labeled_indices: Rows to use as labels.
        seed: Seed of the draw of labels (and of validation items).
        val_fraction: Share of the training items with a known class to keep for validation, in [0, 1). The drawn
            labels do not depend on it.
        batch_size: Images of the pool per training step.
        labeled_batch_size: Labeled images per training step, drawn with replacement, classes in turn.
        eval_batch_size: Images per step without gradient.
        num_workers: Loader processes. 0 is fastest for images in memory.

    Raises:
        ConfigError: An option outside its range, no list of class names, or more than one way to choose labels.
    """

    kind: ItemKind = "image"
    excerpts: list[str] | None = None
    features_fingerprint: str | None = None
    has_names: bool = True
    row_encoder: RowEncoder | None = None
    window: Window = "full"
    gpu_share: float = 0.25

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        in_channels: int,
        *,
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
        super().__init__()
        # A set has no order, so that classes would change their numbers from one start of Python to the next.
        if isinstance(class_names, str | bytes | Set | Mapping) or not isinstance(class_names, Iterable):
            raise ConfigError(f"class_names must be a list of names, such as ['cat', 'dog'], but is {class_names!r}.")
        for option, value in (
            ("batch_size", batch_size),
            ("labeled_batch_size", labeled_batch_size),
            ("eval_batch_size", eval_batch_size),
        ):
            if value < 1:
                raise ConfigError(f"{option} must be at least 1, but is {value}.")
        if num_workers < 0:
            raise ConfigError(f"num_workers must be 0 or more, but is {num_workers}.")
        if not 0 <= val_fraction < 1:
            raise ConfigError(f"val_fraction must be at least 0 and below 1, but is {val_fraction}.")
        ways = {
            "num_labels_per_class": num_labels_per_class,
            "fraction": fraction,
            "labeled_indices": labeled_indices,
        }
        chosen = [f"{way}={value}" for way, value in ways.items() if value is not None]
        if len(chosen) > 1:
            raise ConfigError(f"Choose labels in one way, but got {' and '.join(chosen)}. Remove all but one.")
        if num_labels_per_class is not None and num_labels_per_class < 1:
            raise ConfigError(f"num_labels_per_class must be at least 1, but is {num_labels_per_class}.")
        if fraction is not None and not 0 < fraction <= 1:
            raise ConfigError(f"fraction must be above 0 and at most 1, but is {fraction}.")
        self.name: str = name
        self.class_names = list(class_names)
        self.in_channels = in_channels
        self.num_labels_per_class = num_labels_per_class
        self.fraction = fraction
        self.labeled_indices = labeled_indices
        self.seed = seed
        self.val_fraction = val_fraction
        self.batch_size = batch_size
        self.labeled_batch_size = labeled_batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self._items: Items | None = None
        self._given_label: Tensor | None = None
        self._evaluator: Evaluator | None = None
        self._moments: tuple[tuple[float, ...], tuple[float, ...]] | None = None
        self._on_gpu: Images | None = None

    def load_items(self) -> Items:
        """Read the dataset; called once, by `setup`."""
        raise NotImplementedError(f"{type(self).__name__} does not implement load_items.")

    def draw_split(self, label: Tensor, *, val: Tensor | None = None, test: Tensor | None = None) -> FewLabelSplit:
        """Choose the labels as the options say; without any such option every known label is given.

        Args:
            label: (n,) int64, `UNLABELED` for items that must not be drawn.
            val: Rows kept for validation.
            test: Rows kept for test.
        """
        num_classes, seed = self.num_classes, self.seed
        if self.num_labels_per_class is not None:
            return FewLabelSplit.per_class(
                label,
                self.num_labels_per_class,
                num_classes=num_classes,
                seed=seed,
                val=val,
                test=test,
                class_names=self.class_names,
            )
        if self.fraction is not None:
            return FewLabelSplit.fraction(label, self.fraction, num_classes=num_classes, seed=seed, val=val, test=test)
        if self.labeled_indices is not None:
            return FewLabelSplit.from_indices(
                self.labeled_indices, num_items=label.numel(), num_classes=num_classes, val=val, test=test, label=label
            )
        return FewLabelSplit.from_given(label, num_classes=num_classes, val=val, test=test)

    def setup(self, stage: str | None = None) -> None:
        """Read the dataset and choose the labels; later calls do nothing.

        Args:
            stage: Ignored; one reading serves fit, validate, test and predict.

        Raises:
            DataError: The dataset or its labels cannot be used.
        """
        if self._items is not None:
            return
        items = self.load_items()
        n = len(items.images)
        if len(items.names) != n or items.label.shape != (n,):
            raise DataError(
                f"{self.name} needs one name and one label per image; got {n} images, {len(items.names)} names "
                f"and labels of shape {tuple(items.label.shape)}."
            )
        true_label = items.label
        if items.group is not None:
            check_groups(items.split, items.group)
            true_label = hide_relatives(items.label, items.split, items.group)
        evaluator = Evaluator(true_label, self.num_classes)
        given_label = torch.full((n,), UNLABELED, dtype=torch.int64)
        given_label[items.split.labeled] = items.label[items.split.labeled]
        self._moments = _mean_and_std(items.images, items.split.pool)
        self._given_label, self._evaluator = given_label, evaluator
        # The true labels stay with the evaluator and nowhere else.
        self._items = Items(items.images, items.names, given_label, items.split, items.group)

    @property
    def num_classes(self) -> int:
        """Number of classes c."""
        return len(self.class_names)

    @property
    def images(self) -> Images:
        """All n images; item i is row i."""
        return self._ready(self._items).images

    @property
    def items(self) -> list[str]:
        """Name of each item."""
        return self._ready(self._items).names

    @cached_property
    def item_keys(self) -> Tensor:
        """(n,) int64: a hash of each item's name, by which checkpoints know it."""
        names = self.items
        digests = b"".join(
            hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in names
        )
        return torch.frombuffer(bytearray(digests), dtype=torch.int64)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(ch, h, w)."""
        return self._ready(self._items).images.image_shape

    @property
    def split(self) -> FewLabelSplit:
        """Which items are labeled, unlabeled, kept for validation and for test."""
        return self._ready(self._items).split

    @property
    def given_label(self) -> Tensor:
        """(n,) int64: the class of each labeled item, `UNLABELED` for every other item."""
        return self._ready(self._given_label)

    @property
    def evaluator(self) -> Evaluator:
        """The holder of all true classes that are known."""
        return self._ready(self._evaluator)

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel over the pool, in [0, 1] units."""
        return self._ready(self._moments)[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel over the pool, in [0, 1] units, at least 1/255 (16 bits: 1/65535)."""
        return self._ready(self._moments)[1]

    def train_dataloader(self) -> dict[str, DataLoader]:
        """Return two loaders of equal length: "labeled" (random, classes in turn) and "pool" (shuffled).

        The order comes from torch's global generator. "pool" drops its last, smaller batch unless there is only one.
        Under a Trainer on a GPU, images that lie there (see `gpu_share`) join the batch when it has arrived.
        """
        split = self.split
        self._on_gpu = self._move_to_gpu()
        is_whole = split.pool.numel() >= self.batch_size
        pool = self._loader(split.pool, self.batch_size, shuffle=True, drop_last=is_whole, images=self._on_gpu)
        sampler = BalancedSampler(self.given_label[split.labeled], len(pool) * self.labeled_batch_size)
        labeled = self._loader(split.labeled, self.labeled_batch_size, sampler=sampler, images=self._on_gpu)
        return {"labeled": labeled, "pool": pool}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Add the images that lie on the device."""
        if self._on_gpu is not None and isinstance(batch, dict):
            for part in batch.values():
                if isinstance(part, dict) and part.keys() == {"index"}:
                    part["image"] = self._on_gpu.fetch(part["index"])
        return batch

    def pool_dataloader(self) -> DataLoader:
        """Return the labeled and unlabeled items in ascending order: the nodes of the graph."""
        return self._loader(self.split.pool, self.eval_batch_size)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Return the validation items in ascending order; an empty list where there are none."""
        return self._loader(self.split.val, self.eval_batch_size) if self.split.val.numel() else []

    def test_dataloader(self) -> DataLoader | list[DataLoader]:
        """Return the test items in ascending order; an empty list where there are none."""
        return self._loader(self.split.test, self.eval_batch_size) if self.split.test.numel() else []

    def predict_dataloader(self) -> DataLoader:
        """Return all n items in order."""
        return self._loader(torch.arange(len(self.images)), self.eval_batch_size)

    def _move_to_gpu(self) -> Images | None:
        """Return the images on the Trainer's GPU; None where there is none, or they do not fit."""
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        if device.type != "cuda" or self._on_gpu is not None:
            return self._on_gpu if device.type == "cuda" else None
        return self.images.to(device, int(self.gpu_share * torch.cuda.mem_get_info(device)[0]))

    def _loader(
        self,
        rows: Tensor,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        sampler: Sampler[int] | None = None,
        images: Images | None = None,
    ) -> DataLoader:
        """Return a loader of rows; where `images` lie on the device, its batches hold the numbers of the rows alone."""
        return DataLoader(
            ImageRows(self.images, rows) if images is None else ItemRows(rows),
            batch_size=batch_size,
            shuffle=shuffle if sampler is None else None,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=keep_batch,
        )

    def _ready(self, value: T | None) -> T:
        if value is None:
            raise DataError(f"{type(self).__name__} has not read its data yet. Call setup() first.")
        return value


class BalancedSampler(Sampler[int]):
    """Draw rows with replacement so that the classes take turns in random order.

    Any c consecutive draws that start at a multiple of c hold each of the c present classes once, however
    many labels each class has.

    Args:
        label: (m,) int64 class of each row, all >= 0.
        num_samples: Draws per epoch.
        generator: Source of randomness; None takes a new seed from torch's global generator each epoch.
    """

    def __init__(self, label: Tensor, num_samples: int, *, generator: torch.Generator | None = None) -> None:
        self.num_samples = num_samples
        self.generator = generator
        self._by_class = label.argsort(stable=True)
        self._count = label.unique(return_counts=True)[1]

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        generator = self.generator
        if generator is None:
            generator = torch.Generator().manual_seed(int(torch.empty((), dtype=torch.int64).random_()))
        num_present = self._count.numel()
        num_rounds = math.ceil(self.num_samples / num_present)
        turn = torch.rand(num_rounds, num_present, generator=generator).argsort(1).flatten()[: self.num_samples]
        count = self._count[turn]
        start = self._count.cumsum(0) - self._count
        # float64, so that the product rounds to `count` for no draw below 1.
        draw = torch.rand(self.num_samples, generator=generator, dtype=torch.float64)
        yield from self._by_class[start[turn] + (draw * count).long()].tolist()


def keep_batch(batch: Any) -> Any:
    """Return what `Dataset.__getitems__` built: it is a batch already."""
    return batch


def _mean_and_std(images: Images, rows: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    _, height, width = images.image_shape
    total = images.moments(rows).sum(0).double() / (rows.numel() * height * width)
    mean = total[:, 0]
    # Never below the smallest difference of two pixels, or a channel of one value would become anything. Features that
    # are no pixels have no such difference.
    smallest = 1.0 if images.full_scale > 1 else _SMALLEST_STD
    std = (total[:, 1] - mean.square()).clamp_min(0).sqrt().clamp_min(smallest)
    return tuple((mean / images.full_scale).tolist()), tuple((std / images.full_scale).tolist())
