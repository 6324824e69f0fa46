"""The two products a graph is used for, each the other's gradient.

`edge_matmul` is the sparse matrix times a block of columns; `edge_dot` takes the entries of an outer product on
existing edges only. With Y = W X and G = dLoss/dY:  dLoss/dW_ij = G_i . X_j (an `edge_dot`) and dLoss/dX = W^T G (a
transposed `edge_matmul`); the gradients of `edge_dot` are again products. So both can be differentiated any number of
times, forward and backward, and batched by `torch.func.vmap`.

Layout of the product: float32 runs as an embedding bag with int32 columns, as fast as torch's CSR product at 10 columns
and 1.3 to 2 times faster at 100; float64 bags have no fast kernel, so a CPU takes the CSR product (1.7 to 3 times
faster) where torch has it. Solvers of large problems take `combine_edges` where numba is installed, 1.3 to 1.6 times as
fast as a bag at 10 columns on two AVX-512 cores, and all that stands around the product from the same kernels: between
operations of torch a kernel would lose more than it gains, since torch's threads wait busily. The largest factor is the
order of nodes (2.2 at 10 columns, 3.7 at 100 with 70,000 nodes, 2 to 5 at a million): see `reorder_layout`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import cached_property, lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import embedding_bag

from lspread.autograd import Function

__all__ = ["EdgeLayout", "combine_edges", "compiled_for", "edge_dot", "edge_matmul", "map_over_batch"]

logger = logging.getLogger("lspread.graph")

CHUNK_ELEMENTS = 1 << 24
"""Numbers that `edge_dot` gathers at a time."""
CHUNK_ELEMENTS_IN_CACHE = 1 << 18
"""The same on a CPU, where one core's cache holds them."""
LEAST_NUMBA = (0, 62)
LEAST_COMPILED = 1 << 23
"""Entries times columns from which numba is asked: below, a product takes less than a millisecond anyway."""


class EdgeLayout:
    """Where the entries of a sparse matrix stand, ready for products.

    Args:
        row: `(e,)` int64, ascending.
        column: `(e,)` int64.
        num_nodes: n, of the square matrix.
    """

    def __init__(self, row: Tensor, column: Tensor, num_nodes: int) -> None:
        self.num_nodes = num_nodes
        vars(self).update(row=row, column=column)

    @classmethod
    def from_bags(cls, column: Tensor, boundary: Tensor) -> EdgeLayout:
        """Make a layout of what products read: columns `(e,)` and row boundaries `(n + 1,)`, int32."""
        layout = cls.__new__(cls)
        layout.num_nodes = len(boundary) - 1
        vars(layout).update(bags=(column, boundary))
        return layout

    @cached_property
    def row(self) -> Tensor:
        """Row of every entry `(e,)` int64, ascending."""
        column, boundary = self.bags
        return torch.repeat_interleave(boundary.diff().long(), output_size=len(column))

    @cached_property
    def column(self) -> Tensor:
        """Column of every entry `(e,)` int64."""
        return self.bags[0].long()

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
    return column.int(), torch._convert_indices_from_coo_to_csr(row, num_nodes, out_int32=True)


@lru_cache(maxsize=1)
def load_compiled() -> ModuleType | None:
    """Return `lspread.graph.compiled`, or None where numba is not installed or may not compile."""
    try:
        import numba

        if getattr(numba.config, "DISABLE_JIT", False):
            raise ImportError("numba is told not to compile (NUMBA_DISABLE_JIT)")
        if tuple(map(int, numba.__version__.split(".")[:2])) < LEAST_NUMBA:
            raise ImportError(f"kernels need numba 0.62 or newer; got {numba.__version__}")
        # Without a folder that it may write to, numba refuses to keep what it compiles.
        compiled = import_module("lspread.graph.compiled")
    except (ImportError, RuntimeError) as error:
        logger.debug("products run in torch: %s", error)
        return None
    logger.info("large graphs use kernels that numba compiles; the first use on a machine takes some seconds")
    return compiled


def compiled_for(num_entries: int, num_columns: int, *tensors: Tensor) -> ModuleType | None:
    """Return `lspread.graph.compiled` where it pays: large products of plain tensors on a CPU."""
    # Tensors of other kinds, such as forward mode's zeros, have no memory to hand over.
    is_plain = all(
        t.device.type == "cpu" and type(t) in (Tensor, Parameter) and not t._is_zerotensor() for t in tensors
    )
    if not is_plain or num_entries * num_columns < LEAST_COMPILED or torch.compiler.is_compiling():
        return None
    return load_compiled()


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


def combine_edges(
    compiled: ModuleType, layout: EdgeLayout, weight: Tensor, x: Tensor, *, transpose: bool = False, **terms: Any
) -> Tensor:
    """Return own x + others W x + of_rhs rhs + of_out out by numba, without gradient.

    Args:
        compiled: From `compiled_for`.
        layout: Places of the e entries.
        weight: `(e,)` float32 or float64.
        x: `(n, c)` of the same dtype.
        transpose: Multiply by the transposed matrix instead.
        terms: `own`, `others`, `rhs`, `of_rhs`, `of_out` of `compiled.combine_rows`, and `out` `(n, c)`, not x; a new
            tensor if left out.
    """
    column, boundary = layout.transposed_bags if transpose else layout.bags
    weight = weight.index_select(0, layout.order) if transpose else weight.contiguous()
    out = terms.pop("out", None)
    out = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    compiled.combine_rows(boundary, column, weight.detach(), x.detach().contiguous(), out, **terms)
    return out


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


class _EdgeMatmul(Function):
    @staticmethod
    def forward(layout: EdgeLayout, transpose: bool, weight: Tensor, x: Tensor) -> Tensor:
        source, boundary = layout.transposed_bags if transpose else layout.bags
        weight = weight.index_select(0, layout.order) if transpose else weight
        if x.dtype == torch.float64 and x.device.type == "cpu" and torch.backends.mkl.is_available():
            return _csr(boundary, source, weight) @ x
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


class _EdgeDot(Function):
    @staticmethod
    def forward(layout: EdgeLayout, a: Tensor, b: Tensor) -> Tensor:
        is_host = a.device.type == "cpu"
        if is_host and a.dtype == torch.float32:
            # 2 to 4 times as fast as what follows; float64 has no kernel of its own.
            column, boundary = layout.bags
            entries = _csr(boundary, column, a.new_zeros(len(column)))
            return torch.sparse.sampled_addmm(entries, a.contiguous(), b.contiguous().mT).values()
        num_held = CHUNK_ELEMENTS_IN_CACHE if is_host else CHUNK_ELEMENTS
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


def _csr(boundary: Tensor, column: Tensor, weight: Tensor) -> Tensor:
    num_nodes = len(boundary) - 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "beta state", once per process
        return torch.sparse_csr_tensor(boundary, column, weight, (num_nodes, num_nodes))


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b
