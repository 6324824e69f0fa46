"""From labels to targets: one row per node, one column per class."""

import torch
from torch import Tensor

from lspread.autograd import is_readable
from lspread.errors import GraphError
from lspread.typing import UNLABELED

__all__ = ["check_label", "label_matrix"]


def check_label(label: Tensor, num_classes: int) -> None:
    """Raise `GraphError` unless int64 labels lie in their classes or are `UNLABELED`, read where that costs nothing."""
    if not label.numel() or not is_readable(label):
        return
    low, high = int(label.min()), int(label.max())
    if low < UNLABELED or high >= num_classes:
        raise GraphError(
            f"labels must be {UNLABELED} (unlabeled) or 0 to {num_classes - 1}; got values from {low} "
            f"to {high}. Count the classes again or renumber the labels."
        )


def label_matrix(
    label: Tensor,
    num_classes: int,
    *,
    balance: bool = False,
    ptr: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return targets Y: one-hot rows for labelled nodes, zero rows for the others.

    Args:
        label: Class of each node `(n,)` int64, `UNLABELED` (-1) where unknown; or soft targets `(n, c)` floating point,
            zero rows where unknown, which keep their dtype and gradient.
        num_classes: Number of classes c.
        balance: Divide every column by its sum, so that classes with more labels send out no more in total.
        ptr: Boundaries of a batch of graphs `(b + 1,)`, each balanced on its own; default: one graph.
        dtype: Of the targets made from int64 labels.

    Returns:
        Y `(n, c)` on the same device; differentiable in soft targets.

    Raises:
        GraphError: Shape or dtype do not fit, or a label lies outside the classes (checked where it is on the CPU).
    """
    if label.is_floating_point():
        if label.ndim != 2 or label.shape[1] != num_classes:
            raise GraphError(
                f"soft targets must be of shape (n, {num_classes}), one column per class; got {tuple(label.shape)}."
            )
        targets = label
    else:
        if label.ndim != 1 or label.dtype != torch.int64:
            raise GraphError(
                f"labels must be int64 of shape (n,) with {UNLABELED} for unlabeled, or soft targets (n, c); "
                f"got {tuple(label.shape)} {label.dtype}."
            )
        check_label(label, num_classes)
        targets = (label[:, None] == torch.arange(num_classes, device=label.device)).to(dtype)
    if balance:
        total = targets.sum(0, keepdim=True)
        if ptr is not None:
            graph = torch.repeat_interleave(ptr.diff(), output_size=len(targets))
            total = targets.new_zeros(len(ptr) - 1, num_classes).index_add(0, graph, targets)[graph]
        targets = targets / torch.where(total > 0, total, torch.ones_like(total))
    return targets
