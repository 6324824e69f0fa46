"""The two products a graph is used for, each the other's gradient.

`edge_matmul` is the sparse matrix times a block of columns; `edge_dot` takes the entries of an outer product on
existing edges only. With Y = W X and G = dLoss/dY:  dLoss/dW_ij = G_i . X_j (an `edge_dot`) and dLoss/dX = W^T G (a
transposed `edge_matmul`); the gradients of `edge_dot` are again products. So both can be differentiated any number of
times, forward and backward, and batched by `torch.func.vmap`.

Layout of the product, measured on one AVX-512 core (1.6 million entries at 70,000 nodes, 24 million at a million):
float32 runs as an embedding bag with int32 columns, as fast as torch's CSR product at 10 columns, 1.3 to 2 times
faster at 100, slower only at one column (0.8); a numba kernel was slower than both. float64 bags have no fast kernel,
so a CPU takes the CSR product (1.7 to 3 times faster) where torch has it. The largest factor is the order of nodes (2.2
at 10 columns, 3.7 at 100, 5 at a million nodes): see `reorder_graph`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

__all__ = ["EdgeLayout", "edge_dot", "edge_matmul", "map_over_batch"]

CHUNK_ELEMENTS = 1 << 24
"""Numbers that `edge_dot` gathers at a time."""
CHUNK_ELEMENTS_IN_CACHE = 1 << 18
"""The same on a CPU, where one core's cache holds them."""


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
        return torch.argsort(self.column.int(), stable=True)  # int32 halves the work of a radix sort

    @cached_property
    def transposed_bags(self) -> tuple[Tensor, Tensor]:
        """`bags` of the transposed matrix, entries in the order of `order`."""
        return _bags(self.column.index_select(0, self.order), self.row.index_select(0, self.order), self.num_nodes)


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
        `(e,)`; differentiable in `a` and `b`, any number of times. Entries are taken in chunks, so that memory
        beyond the result stays bounded.
    """
    return _EdgeDot.apply(layout, a, b)


def map_over_batch(
    apply: Callable[..., Tensor], info: Any, in_dims: tuple[int | None, ...], *inputs: Any
) -> tuple[Tensor, int]:
    """Return `apply` of every element of a batch, stacked in front: a `vmap` rule for what takes one at a time."""
    outputs = [
        apply(
            *(value if dim is None else value.select(dim, element) for value, dim in zip(inputs, in_dims, strict=True))
        )
        for element in range(info.batch_size)
    ]
    return torch.stack(outputs), 0


class _EdgeMatmul(torch.autograd.Function):
    @staticmethod
    def forward(layout: EdgeLayout, transpose: bool, weight: Tensor, x: Tensor) -> Tensor:
        source, boundary = layout.transposed_bags if transpose else layout.bags
        weight = weight.index_select(0, layout.order) if transpose else weight
        if x.dtype == torch.float64 and x.device.type == "cpu" and torch.backends.mkl.is_available():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # "beta state", once per process
                size = (layout.num_nodes, layout.num_nodes)
                return torch.sparse_csr_tensor(boundary, source, weight, size) @ x
        # A bag is a row: its columns' rows of x, weighted and added.
        return embedding_bag(
            source, x.contiguous(), boundary, mode="sum", per_sample_weights=weight, include_last_offset=True
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.layout, ctx.transpose, weight, x = inputs
        ctx.save_for_backward(weight, x)
        ctx.save_for_forward(weight, x)

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

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, weight_tangent: Tensor | None, x_tangent: Tensor | None) -> Tensor | None:
        weight, x = ctx.saved_tensors
        return _add(
            None if weight_tangent is None else _EdgeMatmul.apply(ctx.layout, ctx.transpose, weight_tangent, x),
            None if x_tangent is None else _EdgeMatmul.apply(ctx.layout, ctx.transpose, weight, x_tangent),
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        layout, transpose, weight, x = inputs
        if in_dims[2] is not None:
            return map_over_batch(_EdgeMatmul.apply, info, in_dims, *inputs)
        # More columns of the same matrix.
        x = x.movedim(in_dims[3], -1)
        return _EdgeMatmul.apply(layout, transpose, weight, x.flatten(1)).unflatten(1, x.shape[1:]), 2


class _EdgeDot(torch.autograd.Function):
    @staticmethod
    def forward(layout: EdgeLayout, a: Tensor, b: Tensor) -> Tensor:
        num_held = CHUNK_ELEMENTS_IN_CACHE if a.device.type == "cpu" else CHUNK_ELEMENTS
        step = max(1, num_held // max(1, a.shape[1]))
        parts = [
            a.index_select(0, row).mul_(b.index_select(0, column)).sum(1)
            for row, column in zip(layout.row.split(step), layout.column.split(step), strict=True)
        ]
        return torch.cat(parts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.layout, a, b = inputs
        ctx.save_for_backward(a, b)
        ctx.save_for_forward(a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        grad_a = edge_matmul(ctx.layout, grad, b) if ctx.needs_input_grad[1] else None
        grad_b = edge_matmul(ctx.layout, grad, a, transpose=True) if ctx.needs_input_grad[2] else None
        return None, grad_a, grad_b

    @staticmethod
    def jvp(ctx: Any, _: None, a_tangent: Tensor | None, b_tangent: Tensor | None) -> Tensor | None:
        a, b = ctx.saved_tensors
        return _add(
            None if a_tangent is None else edge_dot(ctx.layout, a_tangent, b),
            None if b_tangent is None else edge_dot(ctx.layout, a, b_tangent),
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        return map_over_batch(_EdgeDot.apply, info, in_dims, *inputs)


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b
