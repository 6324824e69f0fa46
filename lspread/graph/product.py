"""The two products a graph is used for, each the other's gradient.

`edge_matmul` is the sparse matrix times a block of columns; `edge_dot` takes the entries of an outer product on
existing edges only. With Y = W X and G = dLoss/dY:  dLoss/dW_ij = G_i . X_j (an `edge_dot`) and dLoss/dX = W^T G (a
transposed `edge_matmul`); the gradients of `edge_dot` are again products. So both can be differentiated any number of
times.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

__all__ = ["EdgeLayout", "edge_dot", "edge_matmul"]

CHUNK_ELEMENTS = 1 << 24


@dataclass(frozen=True, eq=False)
class EdgeLayout:
    """Where the entries of a sparse matrix stand, ready for products.

    Attributes:
        row: `(e,)` int64, ascending.
        column: `(e,)` int64.
        num_nodes: n, of the square matrix.
    """

    row: Tensor
    column: Tensor
    num_nodes: int

    @cached_property
    def bags(self) -> tuple[Tensor, Tensor]:
        """Columns `(e,)` and row boundaries `(n + 1,)`, int32: half the memory traffic of int64."""
        return _bags(self.row, self.column, self.num_nodes)

    @cached_property
    def order(self) -> Tensor:
        """Order of the entries by column `(e,)`: the transposed matrix."""
        return torch.argsort(self.column, stable=True)

    @cached_property
    def transposed_bags(self) -> tuple[Tensor, Tensor]:
        """`bags` of the transposed matrix, entries in the order of `order`."""
        return _bags(self.column[self.order], self.row[self.order], self.num_nodes)


def _bags(row: Tensor, column: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    boundary = torch.searchsorted(row, torch.arange(num_nodes + 1, device=row.device))
    return column.int(), boundary.int()


def edge_matmul(layout: EdgeLayout, weight: Tensor, x: Tensor, *, transpose: bool = False) -> Tensor:
    """Multiply the matrix with entries `weight` by `x`.

    Args:
        layout: Places of the e entries.
        weight: `(e,)` float32 or float64.
        x: `(n, c)` of the same dtype.
        transpose: Multiply by the transposed matrix instead.

    Returns:
        `(n, c)`; differentiable in `weight` and `x`, any number of times. O(e c) time, no memory beyond the result.
    """
    return _EdgeMatmul.apply(layout, transpose, weight, x)


def edge_dot(layout: EdgeLayout, a: Tensor, b: Tensor) -> Tensor:
    """Return a_i . b_j for every entry (i, j).

    Args:
        layout: Places of the e entries.
        a: `(n, c)`.
        b: `(n, c)` of the same dtype.

    Returns:
        `(e,)`; differentiable in `a` and `b`, any number of times. Columns are taken in chunks, so that memory
        beyond the result stays bounded.
    """
    return _EdgeDot.apply(layout, a, b)


class _EdgeMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layout: EdgeLayout, transpose: bool, weight: Tensor, x: Tensor) -> Tensor:
        ctx.layout, ctx.transpose = layout, transpose
        ctx.save_for_backward(weight, x)
        source, boundary = layout.transposed_bags if transpose else layout.bags
        weight = weight[layout.order] if transpose else weight
        # A bag is a row: its columns' rows of x, weighted and added. Several times faster than torch's CSR product.
        return embedding_bag(
            source, x.contiguous(), boundary, mode="sum", per_sample_weights=weight, include_last_offset=True
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, x = ctx.saved_tensors
        grad_weight = grad_x = None
        if ctx.needs_input_grad[2]:
            ends = (x, grad) if ctx.transpose else (grad, x)
            grad_weight = edge_dot(ctx.layout, *ends)
        if ctx.needs_input_grad[3]:
            grad_x = edge_matmul(ctx.layout, weight, grad, transpose=not ctx.transpose)
        return None, None, grad_weight, grad_x


class _EdgeDot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layout: EdgeLayout, a: Tensor, b: Tensor) -> Tensor:
        ctx.layout = layout
        ctx.save_for_backward(a, b)
        num_columns = max(1, CHUNK_ELEMENTS // max(1, len(layout.row)))
        out = a.new_zeros(len(layout.row))
        for start in range(0, a.shape[1], num_columns):
            part = slice(start, start + num_columns)
            out += (a[:, part][layout.row] * b[:, part][layout.column]).sum(1)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        grad_a = edge_matmul(ctx.layout, grad, b) if ctx.needs_input_grad[1] else None
        grad_b = edge_matmul(ctx.layout, grad, a, transpose=True) if ctx.needs_input_grad[2] else None
        return None, grad_a, grad_b
