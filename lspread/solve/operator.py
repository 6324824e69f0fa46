"""A symmetric or general linear map on the nodes of a batch of graphs, and the space it acts on."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["LinearOperator"]


class LinearOperator(ABC):
    """A square matrix A, block-diagonal over b graphs, known by its product.

    It owns its space: the product and the inner product. A solver asks for nothing else, so it cannot tell one
    device from many.

    Attributes:
        is_spd: True when A is symmetric positive definite; set by the class that proves it.
        ptr: Boundaries of the graphs `(b + 1,)` int64.
        num_nodes: Rows n.
    """

    is_spd: bool = False
    ptr: Tensor
    num_nodes: int

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where products are taken."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """float32 or float64."""

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors A depends on and gradients may flow to."""

    @abstractmethod
    def replace(self, *tensors: Tensor) -> LinearOperator:
        """Return the same operator made of other `tensors()`."""

    @abstractmethod
    def matmul(self, x: Tensor) -> Tensor:
        """Return A x for x `(n, c)`; differentiable in `x` and `tensors()`."""

    @abstractmethod
    def diagonal(self) -> Tensor:
        """Return the diagonal of A `(n,)`."""

    @abstractmethod
    def transpose(self) -> LinearOperator:
        """Return the operator of A^T."""

    def eigenvalue_bound(self) -> Tensor | float:
        """Return a number that no eigenvalue of a symmetric A is smaller than; 0 where none is known."""
        return 0.0

    @property
    def num_graphs(self) -> int:
        """Number of graphs b."""
        return len(self.ptr) - 1

    def inner(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the inner products of columns, one per graph and class: `(n, c), (n, c) -> (b, c)`."""
        if self.num_graphs == 1:
            return (x * y).sum(0, keepdim=True)
        return x.new_zeros(self.num_graphs, x.shape[1]).index_add(0, self._graph_of_node(), x * y)

    def broadcast(self, coef: Tensor) -> Tensor:
        """Spread one number per graph and class over its nodes: `(b, c) -> (n, c)`, or `(1, c)` for one graph."""
        return coef if self.num_graphs == 1 else coef[self._graph_of_node()]

    def norm(self, x: Tensor) -> Tensor:
        """Return the 2-norms of columns, one per graph and class `(b, c)`."""
        return self.inner(x, x).sqrt()

    def _graph_of_node(self) -> Tensor:
        # Told its length, repeat_interleave need not ask the device for it.
        return torch.repeat_interleave(self.ptr.diff(), output_size=self.num_nodes)
