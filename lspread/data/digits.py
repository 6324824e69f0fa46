"""Handwritten digits of 8 x 8 pixels, bundled with scikit-learn."""

from collections.abc import Sequence

import torch

from lspread.data.images import TensorImages
from lspread.data.module import FewLabelData, Items

__all__ = ["Digits"]


class Digits(FewLabelData):
    """1,797 digits of (1, 8, 8); all are in the pool, scores are taken on the unlabeled ones.

    The grey values 0..16 become 0..255.

    Args:
        num_labels_per_class: Labels to draw from each class; 1 where no other way is chosen.
        fraction: Share of each class to draw as labels.
        labeled_indices: Rows to use as labels.
        seed: Seed of the draw.
        val_fraction: Share of the items to keep for validation.
        batch_size: Images of the pool per training step.
        labeled_batch_size: Labeled images per training step.
        eval_batch_size: Images per step without gradient.
        num_workers: Loader processes.
    """

    def __init__(
        self,
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
        if num_labels_per_class is None and fraction is None and labeled_indices is None:
            num_labels_per_class = 1
        super().__init__(
            "digits",
            [str(digit) for digit in range(10)],
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

    def load_items(self) -> Items:
        """Read scikit-learn's bundled file and draw the labels."""
        from sklearn.datasets import load_digits

        bundle = load_digits()
        image = (torch.from_numpy(bundle.images) * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
        label = torch.from_numpy(bundle.target).to(torch.int64)
        split = self.draw_split(label)
        if self.val_fraction:
            split = split.hold_out(self.val_fraction, label, seed=self.seed)
        return Items(TensorImages(image), [f"digit-{i:04d}" for i in range(len(image))], label, split)
