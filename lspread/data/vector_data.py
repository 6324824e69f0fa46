"""Vectors of features as a dataset: rows of tables, texts, embeddings made elsewhere."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lspread.data.embedded_items import EmbeddedItems
from lspread.data.embeddings import check_embeddings
from lspread.data.groups import choose_held_out
from lspread.data.images import Images
from lspread.data.module import FewLabelData, Items
from lspread.typing import ItemKind

__all__ = ["EmbeddingData", "FeatureRows", "VectorData"]


class FeatureRows(Images):
    """Vectors in memory; to everything that trains, each is an image of one pixel with a channel per feature.

    Args:
        feature: `(n, d)` of any real dtype, finite.

    Raises:
        DataError: Another shape or dtype, or NaN or infinity.
    """

    full_scale = 1

    def __init__(self, feature: Tensor) -> None:
        self.feature = check_embeddings(feature, "feature").float().contiguous()
        self.image_shape = (feature.shape[1], 1, 1)

    def __len__(self) -> int:
        return len(self.feature)

    def fetch(self, index: Tensor) -> Tensor:
        """Return the vectors of the rows `index` as `(m, d, 1, 1)` float32."""
        return self.feature.index_select(0, index)[:, :, None, None]

    def to(self, device: torch.device, max_bytes: int) -> "FeatureRows | None":
        """Return the same vectors on a device; None where they need more than `max_bytes`."""
        return FeatureRows(self.feature.to(device)) if self.feature.nbytes <= max_bytes else None

    def moments(self, index: Tensor) -> Tensor:
        """Return each value and its square, `(m, d, 2)` float64."""
        value = self.feature.index_select(0, index).double()
        return torch.stack([value, value.square()], -1)


class VectorData(FewLabelData):
    """One's own vectors as a tensor.

    `FewLabelClassifier` trains on them with a `VectorMLP` and `RandomCorruption` in place of image augmentation.

    Args:
        feature: `(n, d)`. Features are centered, and scaled by one number for all, so that distances keep their
            proportions: scale features that shall count alike beforehand.
        label: (n,) int64 classes, `UNLABELED` where unknown. Without an option that draws labels, every
            known label outside `val` and `test` is given to the method.
        class_names: Names of the c classes, in order.
        name: Short name of the dataset.
        names: A name for each item; "item-0", "item-1", ... where None.
        kind: "table", "text" or "image": what the vectors stand for.
        group: A name for each item's group; no group may stand in two of pool, `val` and `test`.
        val: Rows kept for validation.
        test: Rows kept for test.
        num_labels_per_class: Labels to draw from each class; the others stay with the evaluator.
        fraction: Share of each class to draw as labels.
        labeled_indices: Rows to use as labels.
        seed: Seed of the draw.
        batch_size: Items of the pool per training step.
        labeled_batch_size: Labeled items per training step.
        eval_batch_size: Items per step without gradient.
        num_workers: Loader processes.

    Raises:
        DataError: Features of another shape or dtype, or with NaN or infinity.
    """

    def __init__(
        self,
        feature: Tensor,
        label: Tensor,
        class_names: Sequence[str],
        *,
        name: str = "vectors",
        names: Sequence[str] | None = None,
        kind: ItemKind = "table",
        group: Sequence[str] | None = None,
        val: Tensor | None = None,
        test: Tensor | None = None,
        num_labels_per_class: int | None = None,
        fraction: float | None = None,
        labeled_indices: Sequence[int] | None = None,
        seed: int = 0,
        batch_size: int = 256,
        labeled_batch_size: int = 64,
        eval_batch_size: int = 8192,
        num_workers: int = 0,
    ) -> None:
        rows = FeatureRows(feature)
        super().__init__(
            name,
            class_names,
            feature.shape[1],
            num_labels_per_class=num_labels_per_class,
            fraction=fraction,
            labeled_indices=labeled_indices,
            seed=seed,
            batch_size=batch_size,
            labeled_batch_size=labeled_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
        )
        self.kind = kind
        self._rows, self._label, self._group = rows, label, group
        self._names = [f"item-{i}" for i in range(len(rows))] if names is None else list(names)
        self.has_names = names is not None
        self._val, self._test = val, test

    def load_items(self) -> Items:
        """Choose the labels."""
        split = self.draw_split(self._label, val=self._val, test=self._test)
        return Items(self._rows, self._names, self._label, split, self._group)

    @property
    def std(self) -> tuple[float, ...]:
        """One number for all features, the root of their mean variance over the pool."""
        each = super().std
        return (math.sqrt(sum(value**2 for value in each) / len(each)),) * len(each)


class EmbeddingData(VectorData):
    """Embeddings in a file of `lspread embed`; a few of the items have a label.

    Args:
        path: The .safetensors file.
        labels_csv: Label file with the columns `file` (or `item`) and `label`; items that it does not list are
            unlabeled.
        test_fraction: Share of the items with a known class to keep for test, about the same of every class.
        val_fraction: The same for validation. Neither are training labels.
        num_labels_per_class: Labels to draw from each class; the others stay with the evaluator.
        fraction: Share of each class to draw as labels.
        labeled_indices: Rows to use as labels.
        seed: Seed of the draws.
        batch_size: Items of the pool per training step.
        labeled_batch_size: Labeled items per training step.
        eval_batch_size: Items per step without gradient.
        num_workers: Loader processes.

    Raises:
        DataError: A file cannot be read, or they do not fit each other.
    """

    def __init__(
        self,
        path: str,
        labels_csv: str,
        *,
        test_fraction: float = 0.0,
        val_fraction: float = 0.0,
        num_labels_per_class: int | None = None,
        fraction: float | None = None,
        labeled_indices: Sequence[int] | None = None,
        seed: int = 0,
        batch_size: int = 256,
        labeled_batch_size: int = 64,
        eval_batch_size: int = 8192,
        num_workers: int = 0,
    ) -> None:
        items = EmbeddedItems.load(path)
        label, class_names = items.read_labels(labels_csv)
        held_out = choose_held_out(label, test_fraction=test_fraction, val_fraction=val_fraction, seed=seed)
        super().__init__(
            items.embedding,
            label,
            class_names,
            name=Path(path).stem,
            names=items.items,
            kind=items.kind,
            val=held_out["val"],
            test=held_out["test"],
            num_labels_per_class=num_labels_per_class,
            fraction=fraction,
            labeled_indices=labeled_indices,
            seed=seed,
            batch_size=batch_size,
            labeled_batch_size=labeled_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
        )
