"""Squared distances to neighbours, differentiable without keeping n k d differences.

Two maps, each the other's gradient, as the pair in `product` is. With e = (i, j) an edge from a node to its neighbour,
    difference_dot(a, b)_e = (a_i - a_j) . (b_i - b_j)    difference_sum(g, z)_i = sum_e g_e (z_i - z_j), both ends,
and d<difference_dot(a, b), g>/da = difference_sum(g, b). Differences are taken before they are multiplied: expanding
|z_i|^2 - 2 z_i z_j + |z_j|^2, or its gradient, would lose digits where neighbours are close.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from lspread.autograd import Function
from lspread.graph.product import map_over_batch

__all__ = ["squared_distance"]

ALL = slice(None)
NUM_HELD = 1 << 24
"""Differences held at a time."""
NUM_HELD_IN_CACHE = 1 << 18
"""The same on a CPU where they are read once and at once: one core's cache holds them."""


def squared_distance(z: Tensor, index: Tensor, known: Tensor | None = None) -> Tensor:
    """Return |z_i - z_j|^2 for every node i and each of its neighbours j.

    Args:
        z: `(n, d)` float32 or float64.
        index: Node numbers j `(n, k)` int64.
        known: The answer `(n, k)` without gradient, where it has just been measured.

    Returns:
        `(n, k)`; differentiable in `z` any number of times. O(n k d) time, O(n (k + d)) memory.
    """
    return _SquaredDistance.apply(index, z, known)


def _difference(z: Tensor, index: Tensor, rows: slice = ALL, columns: slice = ALL) -> Tensor:
    """Return z_j - z_i `(rows, k, columns)`."""
    index, z = index[rows], z[:, columns]
    return z.index_select(0, index.flatten()).view(*index.shape, -1).sub_(z[rows, None])


def _chunks(total: int, size: int, num_held: int) -> list[slice]:
    """Cut `total` pieces of `size` elements into chunks of at most `num_held` elements, at least one piece."""
    step = max(1, num_held // max(1, size))
    return [slice(start, start + step) for start in range(0, total, step)]


def _row_chunks(index: Tensor, z: Tensor) -> list[slice]:
    num_held = NUM_HELD_IN_CACHE if z.device.type == "cpu" else NUM_HELD
    return _chunks(len(index), index.shape[1] * z.shape[1], num_held)


class _SquaredDistance(Function):
    """`difference_dot(z, z)`, whose gradient is twice that to one of the two."""

    @staticmethod
    def forward(index: Tensor, z: Tensor, known: Tensor | None) -> Tensor:
        if known is not None:
            return known.clone()
        # The norm reads every difference once; squaring it costs one rounding.
        return torch.cat(
            [torch.linalg.vector_norm(_difference(z, index, rows), dim=-1).square_() for rows in _row_chunks(index, z)]
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        index, z = ctx.saved_tensors
        return None, 2 * _DifferenceSum.apply(index, grad, z), None

    @staticmethod
    def jvp(ctx: Any, _: None, z_tangent: Tensor, __: None) -> Tensor:
        index, z = ctx.saved_tensors
        return 2 * _DifferenceDot.apply(index, z, z_tangent)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        return map_over_batch(_SquaredDistance.apply, info, in_dims, *inputs)


class _DifferenceDot(Function):
    @staticmethod
    def forward(index: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat(
            [(_difference(a, index, rows) * _difference(b, index, rows)).sum(-1) for rows in _row_chunks(index, a)]
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        index, a, b = ctx.saved_tensors
        to_a, to_b = ctx.needs_input_grad[1:]
        return (
            None,
            _DifferenceSum.apply(index, grad, b) if to_a else None,
            _DifferenceSum.apply(index, grad, a) if to_b else None,
        )

    @staticmethod
    def jvp(ctx: Any, _: None, a_tangent: Tensor, b_tangent: Tensor) -> Tensor:
        index, a, b = ctx.saved_tensors
        return _DifferenceDot.apply(index, a_tangent, b) + _DifferenceDot.apply(index, a, b_tangent)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        return map_over_batch(_DifferenceDot.apply, info, in_dims, *inputs)


class _DifferenceSum(Function):
    @staticmethod
    def forward(index: Tensor, weight: Tensor, z: Tensor) -> Tensor:
        column, order = index.flatten().int().sort(stable=True)
        boundary = torch.searchsorted(column, torch.arange(len(z) + 1, dtype=torch.int32, device=z.device))
        at_edge = weight.flatten().index_select(0, order)
        parts = []
        # All rows at once, a few columns at a time: the edges that end in a node start anywhere.
        for columns in _chunks(z.shape[1], index.numel(), NUM_HELD):
            difference = _difference(z, index, columns=columns)
            # A backward pass may run inside autocast, which would round the operands.
            with torch.autocast(z.device.type, enabled=False):
                at_near_end = torch.bmm(weight[:, None], difference)[:, 0]
            at_far_end = embedding_bag(
                order,
                difference.flatten(0, 1),
                boundary.long(),
                mode="sum",
                per_sample_weights=at_edge,
                include_last_offset=True,
            )
            parts.append(at_far_end - at_near_end)
        return torch.cat(parts, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        index, weight, z = ctx.saved_tensors
        to_weight, to_z = ctx.needs_input_grad[1:]
        return (
            None,
            _DifferenceDot.apply(index, grad, z) if to_weight else None,
            _DifferenceSum.apply(index, weight, grad) if to_z else None,
        )

    @staticmethod
    def jvp(ctx: Any, _: None, weight_tangent: Tensor, z_tangent: Tensor) -> Tensor:
        index, weight, z = ctx.saved_tensors
        return _DifferenceSum.apply(index, weight_tangent, z) + _DifferenceSum.apply(index, weight, z_tangent)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        return map_over_batch(_DifferenceSum.apply, info, in_dims, *inputs)
