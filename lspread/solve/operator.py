"""A symmetric or general linear map on the nodes of a batch of graphs, and the space it acts on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["LinearOperator"]

FOLD = 16
"""Rows taken as one by `_fold`."""
PIECE = 1 << 20
"""Numbers that an inner product multiplies at a time."""


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
        """Return A x for x `(n, c)`, a new tensor, which solvers write to; differentiable in `x` and `tensors()`."""

    def pull_back(self, x: Tensor, grad: Tensor, needs: Sequence[bool]) -> tuple[Tensor, ...] | None:
        """Return the gradients of <grad, A x> to those `tensors()` that `needs` says, or None to have them derived.

        Made of differentiable pieces; saves the product that deriving them takes.
        """
        return None

    def multiply(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return A x without gradient; written to `out` `(n, c)`, which is not x, where that saves memory."""
        with torch.no_grad():
            return self.matmul(x)

    def residual(self, rhs: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return b - A x `(n, c)` without gradient; written to `out`, which is not x, where that saves memory."""
        product = self.multiply(x, out)
        return torch.sub(rhs, product, out=product)

    def multiply_inner(self, x: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return `multiply(x, out)` and its inner product with x `(b, c)`."""
        product = self.multiply(x, out)
        return product, self.inner(x, product)

    def descend(self, x: Tensor, r: Tensor, p: Tensor, ap: Tensor, length: Tensor) -> Tensor:
        """Add length p to x and subtract length ap from r, in place, for length `(b, c)`; return <r, r> `(b, c)`."""
        self.add_scaled(x, length, p, out=x)
        self.add_scaled(r, -length, ap, out=r)
        return self.inner(r, r)

    def relax(self, x: Tensor, previous: Tensor, rhs: Tensor, step: float | Tensor, factor: float | Tensor) -> Tensor:
        """Return previous + factor (x + step (b - A x) - previous) in the memory of `previous`, without gradient."""
        r = self.residual(rhs, x)
        if isinstance(step, Tensor):
            r.mul_(step).add_(x)
        else:
            torch.add(x, r, alpha=step, out=r)
        return previous.lerp_(r, factor)

    def reordered(self) -> tuple[LinearOperator, Tensor] | None:
        """Return the operator in another order of nodes, in which products are faster, or None if none is known.

        Node i of the new operator is node `permutation[i]` of this one; `permutation` `(n,)` comes second. No gradient.
        """
        return None

    @abstractmethod
    def diagonal(self) -> Tensor:
        """Return the diagonal of A `(n,)`."""

    @abstractmethod
    def transpose(self) -> LinearOperator:
        """Return the operator of A^T."""

    def eigenvalue_bound(self) -> Tensor | float:
        """Return a number that no eigenvalue of a symmetric A is smaller than; 0 where none is known."""
        return 0.0

    def spectrum(self) -> tuple[Tensor | float, Tensor | float]:
        """Return two numbers that all eigenvalues of a symmetric A lie between; (0, inf) where none are known."""
        return self.eigenvalue_bound(), math.inf

    def row_units(self) -> Tensor | None:
        """Return numbers `(n,)` times which a residual has to be small as well, or None where it has to be as it is."""
        return None

    def blocks(self, size: int) -> Tensor:
        """Return A dense, one block per graph `(b, size, size)`; smaller graphs go on with the identity.

        Args:
            size: Nodes of the largest graph.
        """
        node = torch.arange(self.num_nodes, device=self.device)
        place = self.place_of_node
        # Graphs do not touch, so one product with the identities of all graphs stacked gives all blocks.
        unit = torch.zeros(self.num_nodes, size, dtype=self.dtype, device=self.device)
        unit[node, place] = 1
        out = torch.eye(size, dtype=self.dtype, device=self.device).repeat(self.num_graphs, 1, 1)
        out[self.graph_of_node, place] = self.matmul(unit)
        return out

    @property
    def num_graphs(self) -> int:
        """Number of graphs b."""
        return len(self.ptr) - 1

    @cached_property
    def nodes_per_graph(self) -> int | None:
        """Number of nodes of every graph, where all have the same and asking stops no device; else None."""
        if self.num_graphs == 1:
            return self.num_nodes
        if self.ptr.device.type != "cpu" or self.num_graphs == 0:
            return None
        size, is_odd = divmod(self.num_nodes, self.num_graphs)
        return size if size and not is_odd and bool((self.ptr.diff() == size).all()) else None

    @cached_property
    def graph_of_node(self) -> Tensor:
        """Number of the graph of each node `(n,)`."""
        # Told its length, repeat_interleave need not ask the device for it.
        return torch.repeat_interleave(self.ptr.diff(), output_size=self.num_nodes)

    @cached_property
    def place_of_node(self) -> Tensor:
        """Number of each node within its graph `(n,)`."""
        return torch.arange(self.num_nodes, device=self.device) - self.ptr[:-1][self.graph_of_node]

    def inner(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the inner products of columns, one per graph and class: `(n, c), (n, c) -> (b, c)`."""
        if self.num_graphs == 1 and _is_foldable(x, y):
            (x, x_tail), (y, y_tail) = _fold(x), _fold(y)
            # In pieces: a large product would be memory that is new to the process and costs more than the arithmetic.
            step = max(1, PIECE // x.shape[1])
            pieces = [(a * b).sum(0) for a, b in zip(x.split(step), y.split(step), strict=True)]
            return sum(pieces).view(FOLD, -1).sum(0, keepdim=True) + (x_tail * y_tail).sum(0, keepdim=True)
        product = x * y
        if self.nodes_per_graph is not None:
            return product.unflatten(0, (self.num_graphs, -1)).sum(1)
        return x.new_zeros(self.num_graphs, x.shape[1]).index_add(0, self.graph_of_node, product)

    def broadcast(self, coef: Tensor) -> Tensor:
        """Spread one number per graph and class over its nodes: `(b, c) -> (n, c)`, or `(1, c)` for one graph."""
        if self.num_graphs == 1:
            return coef
        if self.nodes_per_graph is not None:
            return coef.unsqueeze(1).expand(-1, self.nodes_per_graph, -1).flatten(0, 1)
        return coef[self.graph_of_node]

    def add_scaled(self, x: Tensor, coef: Tensor, y: Tensor, *, out: Tensor) -> None:
        """Write x + coef y to `out`, for coef `(b, c)` and x and y `(n, c)`; `out` may be one of them."""
        if self.num_graphs > 1 or not _is_foldable(x, y, out):
            torch.addcmul(x, self.broadcast(coef), y, out=out)
            return
        (x, x_tail), (y, y_tail), (out, out_tail) = _fold(x), _fold(y), _fold(out)
        torch.addcmul(x, coef.repeat(1, FOLD), y, out=out)
        torch.addcmul(x_tail, coef, y_tail, out=out_tail)

    def norm(self, x: Tensor) -> Tensor:
        """Return the 2-norms of columns, one per graph and class `(b, c)`."""
        if self.nodes_per_graph is not None and not _is_foldable(x):
            return torch.linalg.vector_norm(x.unflatten(0, (self.num_graphs, -1)), dim=1)
        return self.inner(x, x).sqrt()

    def largest(self, x: Tensor) -> Tensor:
        """Return the largest magnitudes of columns, one per graph and class `(b, c)`; 0 for graphs without nodes."""
        if self.num_graphs == 1 and _is_foldable(x):
            (x, tail), width = _fold(x), x.shape[1]
            # Nothing as large as x is written, which would cost more than reading it.
            largest = torch.maximum(x.amax(0), -x.amin(0)).view(FOLD, width)
            return torch.cat([largest, tail.abs()]).amax(0, keepdim=True)
        magnitude = x.abs()
        if self.nodes_per_graph is not None:
            return magnitude.unflatten(0, (self.num_graphs, -1)).amax(1)
        owner = self.graph_of_node.unsqueeze(1).expand_as(x)
        return x.new_zeros(self.num_graphs, x.shape[1]).scatter_reduce(0, owner, magnitude, "amax")


def _is_foldable(*tensors: Tensor) -> bool:
    """Whether folding pays: long tensors with few columns."""
    return all(len(t) >= 8192 and t.shape[1] < 64 and t.is_contiguous() for t in tensors)


def _fold(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x `(n, c)` as rows of FOLD times c numbers, and what is left over `(< FOLD, c)`.

    With ten numbers in a row the vector units idle: sums over rows and products with one row take half the time on
    rows that are FOLD times as long.
    """
    head = len(x) - len(x) % FOLD
    return x[:head].view(-1, FOLD * x.shape[1]), x[head:]
