"""Anchors: rows beside a batch that take part in its graph, such as rows of a memory bank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lspread.errors import GraphError
from lspread.labels.targets import label_matrix

__all__ = ["Anchors", "join_anchors"]


@dataclass(frozen=True, eq=False)
class Anchors:
    """Embeddings and labels of a items that a batch is put into one graph with.

    Attributes:
        embedding: `(a, d)`, or `(b, a, d)` where every graph of a batch has its own. Rows of a bank carry no gradient.
        label: `(a,)` or `(b, a)` int64 with `UNLABELED` (-1) where unknown, or soft `(a, c)` or `(b, a, c)`.
        index: Which items they are `(a,)` int64, where known: to look up other labels for them.
    """

    embedding: Tensor
    label: Tensor
    index: Tensor | None = None

    def map(self, transform: Callable[[Tensor], Tensor]) -> Anchors:
        """Return the anchors with transformed embeddings, e.g. by the metric that the batch goes through."""
        return replace(self, embedding=transform(self.embedding))


def join_anchors(z: Tensor, label: Tensor, anchors: Anchors, num_classes: int) -> tuple[Tensor, Tensor]:
    """Put anchors behind the rows of a batch; of several graphs, behind the rows of every one.

    Args:
        z: Embeddings `(n, d)` or `(b, n, d)`.
        label: Their labels `(n,)` or `(b, n)` int64, or soft targets `(n, c)` or `(b, n, c)`.
        anchors: a items; `(a, d)` serve all graphs.
        num_classes: Number of classes c.

    Returns:
        Embeddings `(n + a, d)` or `(b, n + a, d)` of the dtype of `z`, and labels of the same leading shape: int64 if
        both were, else soft. Gradient to both embeddings and to soft targets.

    Raises:
        GraphError: Shapes or devices do not fit.
    """
    near, given = anchors.embedding, anchors.label
    fits = near.shape[-1] == z.shape[-1] and near.device == z.device and 2 <= near.ndim <= z.ndim
    if not fits or (near.ndim == 3 and len(near) != len(z)):
        raise GraphError(
            f"anchors.embedding must be of shape {'(a, d) or (b, a, d)' if z.ndim == 3 else '(a, d)'} on the device of "
            f"the batch, whose embeddings are {tuple(z.shape)} on {z.device}; got {tuple(near.shape)} on {near.device}."
        )
    if given.shape not in (near.shape[:-1], (*near.shape[:-1], num_classes)):
        raise GraphError(
            f"anchors.label must have one row per anchor, shape {tuple(near.shape[:-1])} or "
            f"{(*near.shape[:-1], num_classes)}; got {tuple(given.shape)}."
        )
    if label.shape[: z.ndim - 1] != z.shape[:-1]:
        raise GraphError(
            f"labels must have one row per row of the batch, {tuple(z.shape[:-1])}; got {tuple(label.shape)}."
        )
    if label.is_floating_point() or given.is_floating_point():
        label, given = (_as_targets(part, num_classes, z.dtype) for part in (label, given))
    if z.ndim == 3 and near.ndim == 2:
        near, given = near.expand(len(z), *near.shape), given.expand(len(z), *given.shape)
    return torch.cat([z, near.to(z.dtype)], -2), torch.cat([label, given], z.ndim - 2)


def _as_targets(label: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Return soft targets `(..., c)`."""
    if label.is_floating_point():
        return label.to(dtype)
    return label_matrix(label.flatten(), num_classes, dtype=dtype).unflatten(0, label.shape)
