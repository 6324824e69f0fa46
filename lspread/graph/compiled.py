"""Kernels that numba compiles, for large graphs on a CPU: products without temporaries, and an order of nodes.

They are used where numba is installed (extra "numba") and a graph is large, and give the answers of the code in torch
up to rounding. Compiled once, they are kept on disk by numba. Rows are shared out over Python threads, as many as torch
has: kernels run without the interpreter's lock, and start no thread pool of numba's beside torch's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

__all__ = ["add_scaled", "combine_rows", "descend", "grow_cells", "inner", "move_rows"]

INT32, INT64 = ir.IntType(32), ir.IntType(64)
FAR = 1 << 24
"""Bytes of x from which its rows come from the memory, not from a cache."""
BLOCK = 256
"""Rows that a thread takes at once; their results stay in the cache until they are combined with other terms."""
LONG_BLOCK = 4096
"""The same where nothing is gathered: long stretches are read ahead of by the hardware."""
FOLD = 16
"""Rows taken as one where vectors are added or multiplied."""
MAX_ROUNDS = 32


def combine_rows(
    boundary: Tensor,
    column: Tensor,
    weight: Tensor,
    x: Tensor,
    out: Tensor,
    *,
    own: float,
    others: float,
    rhs: Tensor | None = None,
    of_rhs: float = 0.0,
    of_out: float = 0.0,
    inner: Tensor | None = None,
) -> None:
    """Write own x + others W x + of_rhs rhs + of_out out to `out`; terms with the factor zero are not read.

    Args:
        boundary: Row boundaries `(n + 1,)` int32.
        column: `(e,)` int32.
        weight: `(e,)` float32 or float64.
        x: `(n, c)` of the same dtype, contiguous.
        out: `(n, c)`, contiguous, not x.
        own: Factor of x.
        others: Factor of the product.
        rhs: `(n, c)`, contiguous.
        of_rhs: Its factor.
        of_out: Factor of what `out` holds.
        inner: `(1, c)`, takes the inner products of the columns of x and of the result.
    """
    arrays = [t.numpy() for t in (boundary, column, weight, x, x if rhs is None else rhs, out)]
    factors = [arrays[2].dtype.type(factor) for factor in (own, others, of_rhs, of_out)]
    total = _totals(x[:0] if inner is None else x, BLOCK)
    _run(_combine_rows, *arrays, *factors, total)
    if inner is not None:
        inner.copy_(torch.from_numpy(total.sum(0, keepdims=True)))


def inner(x: Tensor, y: Tensor) -> Tensor:
    """Return the inner products of columns `(1, c)` of x and y `(n, c)`, contiguous; summed in float64."""
    total = _totals(x, LONG_BLOCK)
    _run(_inner, x.numpy(), y.numpy(), total)
    return torch.from_numpy(total.sum(0, keepdims=True)).to(x.dtype)


def descend(x: Tensor, r: Tensor, p: Tensor, ap: Tensor, length: Tensor) -> Tensor:
    """Add length p to x, subtract length ap from r, all `(n, c)` and contiguous, and return <r, r> `(1, c)`."""
    total = _totals(x, LONG_BLOCK)
    _run(_descend, x.numpy(), r.numpy(), p.numpy(), ap.numpy(), length.repeat(1, FOLD).flatten().numpy(), total)
    return torch.from_numpy(total.sum(0, keepdims=True)).to(x.dtype)


def add_scaled(x: Tensor, coef: Tensor, y: Tensor, out: Tensor) -> None:
    """Write x + coef y to `out`, for coef `(1, c)` and x, y and out `(n, c)`, contiguous; `out` may be one of them."""
    _run(_add_scaled, x.numpy(), coef.repeat(1, FOLD).flatten().numpy(), y.numpy(), out.numpy())


def grow_cells(boundary: Tensor, column: Tensor, num_cells: int) -> Tensor:
    """Return the number of the cell of every node `(n,)` int32; -1 where no seed is near.

    Cells grow from seeds at even steps of the node numbers, all at once, by one edge a round. A node takes the cell of
    the first of its neighbours that has one, whatever the number of threads.
    """
    n = len(boundary) - 1
    cell = np.full(n, -1, dtype=np.int32)
    cell[np.arange(num_cells, dtype=np.int64) * n // num_cells] = np.arange(num_cells, dtype=np.int32)
    grown, num_left = np.empty_like(cell), n - num_cells
    for _ in range(MAX_ROUNDS):
        _run(_grow_cells, boundary.numpy(), column.numpy(), cell, grown)
        cell, grown = grown, cell
        before, num_left = num_left, int((cell < 0).sum())
        if num_left in (0, before):
            break
    return torch.from_numpy(cell)


def move_rows(boundary: Tensor, column: Tensor, value: Tensor, start: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Give nodes new numbers.

    Args:
        boundary: Row boundaries `(n + 1,)` int32.
        column: `(e,)` int32.
        value: What stands at each entry `(e,)`.
        start: The new row boundaries `(n + 1,)` int32.
        rank: New number of every node of before `(n,)` int32.

    Returns:
        The new columns `(e,)` int32, and the values at their new places `(e,)`.
    """
    moved, carried = torch.empty_like(column), torch.empty_like(value)
    given = (start, boundary, column, value, rank, moved, carried)
    _run(_move_rows, *(t.numpy() for t in given))
    return moved, carried


def _totals(x: Tensor, size: int) -> np.ndarray:
    """Return zeros for one sum of every block and column: blocks are added up in one order, whoever took them."""
    return np.zeros((-(-len(x) // size), x.shape[1]))


def _run(kernel: Callable[..., None], *arguments: Any) -> None:
    """Call `kernel(*arguments, counter)` on as many threads as torch has; they take one block of rows after another.

    A thread that is late, or on a slower core, takes fewer blocks, and is not waited for where it has not begun.
    """
    counter = np.zeros(1, dtype=np.int64)
    num_others = torch.get_num_threads() - 1
    pool = _pool(os.getpid(), num_others) if num_others else None
    others = [pool.submit(kernel, *arguments, counter) for _ in range(num_others)] if pool else []
    kernel(*arguments, counter)
    for other in others:
        if not other.cancel():
            other.result()


@lru_cache(maxsize=2)
def _pool(_process: int, num_threads: int) -> ThreadPoolExecutor:
    # A forked process has its parent's pool, but not its threads.
    return ThreadPoolExecutor(num_threads, thread_name_prefix="lspread")


@intrinsic
def _take(_context: Any, counter: Any) -> Any:
    """Return counter[0] and add one to it, as no other thread does at the same time."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.atomic_rmw("add", array.data, ir.Constant(INT64, 1), "monotonic")

    return types.int64(counter), generate


@njit(nogil=True)
def _next_rows(counter, num_rows, size):  # type: ignore[no-untyped-def]
    """Return number, first row and end of the block that this thread is to take; empty when all are taken."""
    block = _take(counter)
    return block, min(block * size, num_rows), min((block + 1) * size, num_rows)


@intrinsic(prefer_literal=True)
def _add_entries(
    _context: Any, lanes: Any, num_vectors: Any, ahead: Any, x: Any, rim: Any, column: Any, weight: Any, first: Any,
    last: Any, place: Any, out: Any, row: Any
) -> Any:  # fmt: skip
    """Add up weight[e] x[column[e], place : place + num_vectors lanes] over first <= e < last into out[row, place:].

    Sums stay in registers while the entries pass, which numba's own loops do not achieve: there they go through memory
    with every entry. Entries with even and odd numbers are added apart, because a sum must wait for the one before.
    Vectors may reach over the end of a row: what they find there is written over the next row of `out`, which comes
    later. Rows near the end of x are read from `rim`, a copy of its last rows with something behind them. Rows that are
    needed `ahead` entries later, if not 0, are asked for now, so that they arrive in time from the memory.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        places = (3, 4, 5, 6, 10)
        x, rim, column, weight, out = (
            context.make_array(signature.args[i])(context, builder, arguments[i]) for i in places
        )
        first, last, place, row = (arguments[i] for i in (7, 8, 9, 11))
        number = context.get_value_type(signature.args[3].dtype)
        vector = ir.VectorType(number, signature.args[0].literal_value)
        starts = [
            builder.add(place, ir.Constant(INT64, i * vector.count)) for i in range(signature.args[1].literal_value)
        ]
        align = context.get_abi_sizeof(number)
        num_rows, width = cgutils.unpack_tuple(builder, x.shape, 2)
        num_inner = builder.sub(num_rows, cgutils.unpack_tuple(builder, rim.shape, 2)[0])
        # Such that rim[row - num_inner] is what x[row] is.
        shifted = builder.gep(rim.data, [builder.neg(builder.mul(num_inner, width))])
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, INT32, INT32, INT32])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        final = builder.sub(cgutils.unpack_tuple(builder, column.shape, 1)[0], ir.Constant(INT64, 1))

        def address(data: Any, row: Any, start: Any) -> Any:
            return builder.gep(data, [builder.add(builder.mul(row, width), start)])

        def column_of(entry: Any) -> Any:
            return builder.sext(builder.load(builder.gep(column.data, [entry])), INT64)

        sums = [[cgutils.alloca_once_value(builder, ir.Constant(vector, None)) for _ in starts] for _ in range(2)]

        def add_entry(entry: Any, sums: list[Any]) -> None:
            if signature.args[2].literal_value:
                later = builder.add(entry, ir.Constant(INT64, signature.args[2].literal_value))
                later = builder.select(builder.icmp_signed("<", later, final), later, final)
                asked = builder.bitcast(address(x.data, column_of(later), place), pointer)
                builder.call(prefetch, [asked, ir.Constant(INT32, 0), ir.Constant(INT32, 3), ir.Constant(INT32, 1)])
            source = column_of(entry)
            data = builder.select(builder.icmp_signed("<", source, num_inner), x.data, shifted)
            factor = builder.load(builder.gep(weight.data, [entry]))
            nothing = ir.Constant(vector, ir.Undefined)
            factor = builder.insert_element(nothing, factor, ir.Constant(INT32, 0))
            factor = builder.shuffle_vector(factor, nothing, ir.Constant(ir.VectorType(INT32, vector.count), None))
            for start, total in zip(starts, sums, strict=True):
                value = builder.load(builder.bitcast(address(data, source, start), vector.as_pointer()))
                value.align = align  # rows start anywhere
                value = builder.fmul(factor, value, flags=("contract",))
                builder.store(builder.fadd(value, builder.load(total), flags=("contract",)), total)

        one, two = ir.Constant(INT64, 1), ir.Constant(INT64, 2)
        middle = builder.add(first, builder.mul(builder.sdiv(builder.sub(last, first), two), two))
        with cgutils.for_range_slice(builder, first, middle, two) as (entry, _):
            add_entry(entry, sums[0])
            add_entry(builder.add(entry, one), sums[1])
        with builder.if_then(builder.icmp_signed("<", middle, last)):
            add_entry(middle, sums[0])
        for start, even, odd in zip(starts, *sums, strict=True):
            total = builder.fadd(builder.load(even), builder.load(odd))
            builder.store(total, builder.bitcast(address(out.data, row, start), vector.as_pointer())).align = align
        return context.get_dummy_value()

    if not all(isinstance(number, types.IntegerLiteral) for number in (lanes, num_vectors, ahead)):
        return None
    places = (types.int64,) * 3
    return types.void(lanes, num_vectors, ahead, x, rim, column, weight, *places, out, types.int64), generate


@njit(nogil=True)
def _add_inner(a, b, total):  # type: ignore[no-untyped-def]
    width = len(total)
    # FOLD rows are taken as one, so that vectors are full; few are added up before the sum goes on in float64.
    held = np.zeros(FOLD * width, dtype=a.dtype)
    for first in range(0, len(a), len(held)):
        left, right = a[first : first + len(held)], b[first : first + len(held)]
        for i in range(len(left)):
            held[i] += left[i] * right[i]
    for start in range(0, len(held), width):
        for i in range(width):
            total[i] += held[start + i]


@njit(nogil=True, cache=True)
def _combine_rows(  # type: ignore[no-untyped-def]
    boundary, column, weight, x, rhs, out, own, others, of_rhs, of_out, total, counter
):
    width = x.shape[1]
    lanes = 16 if width > 8 else 8
    is_far = x.nbytes > FAR
    num_rim = min(len(x), lanes // width + 1)
    rim = np.zeros((num_rim + lanes // width + 1, width), dtype=x.dtype)[:num_rim]
    rim[:] = x[len(x) - num_rim :]
    product = np.empty((BLOCK + lanes // width + 1, width), dtype=x.dtype)
    block, start, stop = _next_rows(counter, len(x), BLOCK)
    while start < stop:
        for row in range(start, stop):
            first, last, into = np.int64(boundary[row]), np.int64(boundary[row + 1]), row - start
            if lanes == 16:
                place = 0
                while place + 16 < width:
                    _add_entries(16, 2, 0, x, rim, column, weight, first, last, place, product, into)
                    place += 32
                if place < width and is_far:
                    _add_entries(16, 1, 16, x, rim, column, weight, first, last, place, product, into)
                elif place < width:
                    _add_entries(16, 1, 0, x, rim, column, weight, first, last, place, product, into)
            else:
                _add_entries(8, 1, 0, x, rim, column, weight, first, last, 0, product, into)
        result, new = product[: stop - start].ravel(), out[start:stop].ravel()
        if others != 1:
            for i in range(len(new)):
                result[i] *= others
        # What has the factor zero may be infinite, or not there at all.
        for factor, term in ((own, x), (of_rhs, rhs), (of_out, out)):
            if factor != 0:
                flat = term[start:stop].ravel()
                for i in range(len(new)):
                    result[i] += factor * flat[i]
        for i in range(len(new)):
            new[i] = result[i]
        if len(total):
            _add_inner(x[start:stop].ravel(), result, total[block])
        block, start, stop = _next_rows(counter, len(x), BLOCK)


@njit(nogil=True, cache=True)
def _inner(x, y, total, counter):  # type: ignore[no-untyped-def]
    block, start, stop = _next_rows(counter, len(x), LONG_BLOCK)
    while start < stop:
        _add_inner(x[start:stop].ravel(), y[start:stop].ravel(), total[block])
        block, start, stop = _next_rows(counter, len(x), LONG_BLOCK)


@njit(nogil=True, cache=True)
def _descend(x, r, p, ap, length, total, counter):  # type: ignore[no-untyped-def]
    block, start, stop = _next_rows(counter, len(x), LONG_BLOCK)
    while start < stop:
        for sign, target, direction in ((1, x, p), (-1, r, ap)):
            into, along = target[start:stop].ravel(), direction[start:stop].ravel()
            for first in range(0, len(into), len(length)):
                new, move = into[first : first + len(length)], along[first : first + len(length)]
                for i in range(len(new)):
                    new[i] += sign * (length[i] * move[i])
        _add_inner(r[start:stop].ravel(), r[start:stop].ravel(), total[block])
        block, start, stop = _next_rows(counter, len(x), LONG_BLOCK)


@njit(nogil=True, cache=True)
def _add_scaled(x, coef, y, out, counter):  # type: ignore[no-untyped-def]
    _, start, stop = _next_rows(counter, len(x), LONG_BLOCK)
    while start < stop:
        a, b, into = x[start:stop].ravel(), y[start:stop].ravel(), out[start:stop].ravel()
        for first in range(0, len(a), len(coef)):
            left, right, new = (
                a[first : first + len(coef)],
                b[first : first + len(coef)],
                into[first : first + len(coef)],
            )
            for i in range(len(left)):
                new[i] = left[i] + coef[i] * right[i]
        _, start, stop = _next_rows(counter, len(x), LONG_BLOCK)


@njit(nogil=True, cache=True)
def _grow_cells(boundary, column, cell, grown, counter):  # type: ignore[no-untyped-def]
    _, start, stop = _next_rows(counter, len(cell), BLOCK)
    while start < stop:
        for row in range(start, stop):
            found = cell[row]
            if found < 0:
                for entry in range(boundary[row], boundary[row + 1]):
                    found = cell[column[entry]]
                    if found >= 0:
                        break
            grown[row] = found
        _, start, stop = _next_rows(counter, len(cell), BLOCK)


@njit(nogil=True, cache=True)
def _move_rows(start, boundary, column, value, rank, moved, carried, counter):  # type: ignore[no-untyped-def]
    _, first, end = _next_rows(counter, len(rank), BLOCK)
    while first < end:
        # Read in the order of before and written at random: a store need not be waited for, as a load must.
        for row in range(first, end):
            place = start[rank[row]]
            for entry in range(boundary[row], boundary[row + 1]):
                moved[place] = rank[column[entry]]
                carried[place] = value[entry]
                place += 1
        _, first, end = _next_rows(counter, len(rank), BLOCK)
