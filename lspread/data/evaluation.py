"""The one place that knows the true classes of unlabeled items."""

import torch
from torch import Tensor

from lspread.errors import DataError
from lspread.typing import UNLABELED

__all__ = ["Evaluator"]


class Evaluator:
    """Judge predictions against true classes that no method gets to see.

    Args:
        true_label: (n,) int64 on the CPU, `UNLABELED` where the truth is unknown.
        num_classes: Number of classes c.

    Raises:
        DataError: A wrong shape or dtype, or a label outside the classes.
    """

    def __init__(self, true_label: Tensor, num_classes: int) -> None:
        if true_label.dim() != 1 or true_label.dtype != torch.int64:
            raise DataError(
                f"true_label needs shape (n,) and dtype int64; got shape {tuple(true_label.shape)}, "
                f"dtype {true_label.dtype}."
            )
        is_outside = (true_label != UNLABELED) & ((true_label < 0) | (true_label >= num_classes))
        if is_outside.any():
            item = int(is_outside.nonzero()[0, 0])
            raise DataError(
                f"true_label must be 0 to {num_classes - 1}, or {UNLABELED} where unknown; item {item} has "
                f"{int(true_label[item])}, outside the classes."
            )
        self.num_classes = num_classes
        self._true_label = true_label.detach().clone()

    @property
    def num_items(self) -> int:
        """Number of items n, known or not."""
        return self._true_label.numel()

    def has_truth(self, index: Tensor) -> bool:
        """Say whether the true class of any of the rows `index` (m,) is known."""
        return self.num_known(index) > 0

    def num_known(self, index: Tensor) -> int:
        """Count the rows of `index` (m,) whose true class is known."""
        return int(self.is_known(index).sum())  # sync: only when index is on another device

    def is_known(self, index: Tensor) -> Tensor:
        """Return of which of the rows `index` (m,) the true class is known, (m,) bool."""
        return self.label(index) != UNLABELED

    def label(self, index: Tensor) -> Tensor:
        """Return the true classes (m,) int64 of the rows `index` (m,), on their device; `UNLABELED` where unknown."""
        if self._true_label.device != index.device:
            self._true_label = self._true_label.to(index.device)
        return self._true_label[index]

    def accuracy(self, prediction: Tensor, index: Tensor) -> float | None:
        """Return the share of right predictions among the rows of `index` whose truth is known.

        Args:
            prediction: (n,) int64 classes for all items; an `UNLABELED` prediction counts as wrong.
            index: (m,) int64 rows to judge.

        Returns:
            A number in [0, 1], or None where no truth is known.

        Raises:
            DataError: `prediction` does not have one entry per item.
        """
        predicted, true = self._known(prediction, index)
        if true.numel() == 0:
            return None
        return float((predicted == true).double().mean())  # sync: the answer is a Python number

    def confusion(self, prediction: Tensor, index: Tensor) -> Tensor:
        """Count predictions by true class.

        Args:
            prediction: (n,) int64 classes for all items; rows predicted `UNLABELED` are left out.
            index: (m,) int64 rows to judge; rows with unknown truth are left out.

        Returns:
            (c, c) int64 on the CPU: row = true class, column = predicted class.

        Raises:
            DataError: `prediction` does not have one entry per item, or lies outside the classes.
        """
        predicted, true = self._known(prediction, index)
        keep = predicted != UNLABELED
        predicted, true = predicted[keep], true[keep]
        is_outside = (predicted < 0) | (predicted >= self.num_classes)
        if is_outside.any():
            raise DataError(
                f"Predictions must be 0 to {self.num_classes - 1} for {self.num_classes} classes; "
                f"got {int(predicted[is_outside][0])}."
            )
        cell = true * self.num_classes + predicted
        return torch.bincount(cell, minlength=self.num_classes**2).reshape(self.num_classes, self.num_classes).cpu()

    def _known(self, prediction: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        if prediction.shape != self._true_label.shape:
            raise DataError(
                f"prediction needs one class for each of the {self.num_items} items, shape ({self.num_items},); "
                f"got shape {tuple(prediction.shape)}. Pass predictions for all items and choose rows with index."
            )
        index = index.to(prediction.device)
        true = self.label(index)
        is_known = true != UNLABELED
        return prediction[index][is_known], true[is_known]
