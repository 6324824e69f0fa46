"""Images that are already in memory."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lspread.data.images import TensorImages
from lspread.data.module import FewLabelData, Items

__all__ = ["TensorData"]


class TensorData(FewLabelData):
    """One's own images as a tensor.

    Args:
        image: (n,ch,h,w) uint8, or uint16 for images of more than 8 bits.
        label: (n,) int64 classes, `UNLABELED` where unknown. Without an option that draws labels, every
            known label outside `val` and `test` is given to the method.
        class_names: Names of the c classes, in order.
        names: A name for each item; "item-0", "item-1", ... where None.
        val: Rows kept for validation.
        test: Rows kept for test.
        num_labels_per_class: Labels to draw from each class; the others stay with the evaluator.
        fraction: Share of each class to draw as labels.
        labeled_indices: Rows to use as labels.
        seed: Seed of the draw.
        val_fraction: Share of the known items to keep for validation, beside `val`.
        batch_size: Images of the pool per training step.
        labeled_batch_size: Labeled images per training step.
        eval_batch_size: Images per step without gradient.
        num_workers: Loader processes.

    Raises:
        DataError: Images of another shape or dtype.
    """

    def __init__(
        self,
        image: Tensor,
        label: Tensor,
        class_names: Sequence[str],
        *,
        names: Sequence[str] | None = None,
        val: Tensor | None = None,
        test: Tensor | None = None,
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
        images = TensorImages(image)
        super().__init__(
            "tensors",
            class_names,
            images.image_shape[0],
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
        self._source = images
        self._label = label
        self._names = [f"item-{i}" for i in range(len(images))] if names is None else list(names)
        self.has_names = names is not None
        self._val, self._test = val, test

    def load_items(self) -> Items:
        """Choose the labels."""
        label = torch.as_tensor(self._label)
        split = self.draw_split(label, val=self._val, test=self._test)
        if self.val_fraction:
            split = split.hold_out(self.val_fraction, label, seed=self.seed)
        return Items(self._source, self._names, label, split)
