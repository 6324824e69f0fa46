"""Exact neighbours of one large graph on a CPU.

Items are sorted by cluster and cut into tiles; every item x is rounded to x' = center + step q, where q has 8-bit
entries, and |x - x'| is known. By the triangle inequality two items are at least |x' - y'| - |x - x'| - |y - y'| apart.
So once k items are known within distance t of an item, whatever has a larger bound than t is no nearer, for certain,
and the few others are measured in full precision.

A pair of tiles is multiplied once for both of its sides, and compared with a t that the items of its own tile gave.
CPUs without fast 8-bit products multiply in float32, which knows such integers exactly. Once for both sides, and not at
all what lies too far apart along the line of two tiles' centers, is half the work of a plain search or less: for 60,000
images of clothes (128 features) it takes half the time, for noise of 64 dimensions as long.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from lspread.graph.rounding import MAX_WIDTH, TILE, RoundedItems, round_items

__all__ = ["is_quantized_faster", "search_quantized"]

SIZE = 256
"""Rows and columns are multiplied in multiples of it: the product is slow for each new shape."""
GROUP = 16
"""Rows whose largest score is looked at first."""
FLOAT32_EPS = torch.finfo(torch.float32).eps
Result = TypeVar("Result")
LOWEST = -(1 << 29)
NEVER = 1 << 28
"""No score is larger; nor smaller than its negative."""
EXACT_WIDTH = (1 << 24) // 127**2
"""So many products of 8-bit numbers add up to an integer that float32 knows exactly."""
MIN_ITEMS, MIN_ITEMS_IN_FLOAT32 = 8192, 16_384
MIN_WIDTH = 16
MAX_NEIGHBORS = 128


def is_quantized_faster(z: Tensor, k: int) -> bool:
    """Return whether `search_quantized` is the fast way for z `(n, d)`: a large graph on a CPU."""
    if z.device.type != "cpu" or not MIN_WIDTH <= z.shape[1] <= MAX_WIDTH or k > MAX_NEIGHBORS:
        return False
    return len(z) >= (MIN_ITEMS if has_fast_integers() else MIN_ITEMS_IN_FLOAT32)


def has_fast_integers() -> bool:
    """Return whether this CPU multiplies 8-bit integers faster than float32."""
    names = ("_is_vnni_supported", "_is_amx_tile_supported")
    return torch.backends.mkldnn.is_available() and any(getattr(torch.cpu, name, bool)() for name in names)


def search_quantized(z: Tensor, k: int, excluded: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Find the k nearest neighbours of the rows of z.

    Args:
        z: `(n, d)` float32 or float64 on the CPU, finite.
        k: Neighbours per row.
        excluded: Rows `(n,)` bool that are neither searched for nor found.

    Returns:
        Index `(n, k)` int64, nearest first; squared distance `(n, k)` measured by differences; `(n,)` bool, True for
        the rows that were searched: all but those excluded, and a few with entries that are too large.
    """
    index = torch.full((len(z), k), -1)
    squared = z.new_full((len(z), k), torch.inf)
    is_found = torch.zeros(len(z), dtype=torch.bool)
    items = round_items(z, excluded)
    if items is None:
        return index, squared, is_found
    num_rows = items.num_tiles * TILE
    reach = torch.full((num_rows,), -torch.inf, dtype=torch.float64)
    nearest = _Nearest.empty(num_rows, 2 * k + 32, z.dtype)
    with _Workers() as workers:
        workers.run(lambda tile, product: _start_reach(_Pair.of(items, tile, tile), product, reach, k), items.num_tiles)
        nearest.insert(*_wild_pairs(items, reach))
        for far in range(items.num_tiles // 2 + 1):
            # At the largest distance around the circle of tiles each pair would come twice.
            num_pairs = items.num_tiles // (2 if 2 * far == items.num_tiles else 1)
            found = workers.run(partial(_scan, items, reach, far), num_pairs)
            row, column, distance = (torch.cat(part) for part in zip(*found, strict=True))
            for own, foreign in ((row, column), (column, row)):
                is_near = distance <= reach[own]
                nearest.insert(own[is_near], foreign[is_near], distance[is_near])
            if far.bit_count() <= 1:
                # Less and less changes.
                reach = torch.minimum(reach, items.at_most(nearest.distance.kthvalue(k, dim=1).values))

    every = slice(0, items.num_rounded)
    kept, number = nearest.distance[every], items.number[every]
    distance, order = kept.topk(k, dim=1, largest=False)
    index[number] = items.number[nearest.column[every].gather(1, order).long()]
    squared[number] = distance.square()
    # A row that lost some may have lost one that is as far as its last.
    is_full = (nearest.count[every] == kept.shape[1]) & (distance[:, -1] > 0)
    is_found[number] = ~(is_full & (distance[:, -1] == kept.amax(1)))
    return index, squared, is_found


class _Workers:
    """As many Python threads as torch has, with one torch thread each: most steps are too small to be split."""

    def __enter__(self) -> _Workers:
        self.num_threads = torch.get_num_threads()
        self.local = threading.local()
        self.pool = ThreadPoolExecutor(self.num_threads, initializer=self._start)
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown()
        # The number also holds for threads that are started later.
        torch.set_num_threads(self.num_threads)

    def _start(self) -> None:
        torch.set_num_threads(1)
        self.local.product = _Product()

    def run(self, task: Callable[[int, _Product], Result], count: int) -> list[Result]:
        """Return `task(i, product)` for i < count; every thread has its own `product`."""
        return list(self.pool.map(lambda number: task(number, self.local.product), range(count)))


class _Product:
    """The product of two tiles by what this CPU is fast at, into room that is used again."""

    def __init__(self) -> None:
        self.room = torch.empty(TILE * TILE, dtype=torch.int32)
        self.float_room = None if has_fast_integers() else torch.empty(TILE * TILE)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a b^T `(t, u)` int32 of `(t, e)` and `(u, e)` int8, good until the next call."""
        shape = len(a), len(b)
        out = self.room[: shape[0] * shape[1]].view(shape)
        if self.float_room is None:
            return torch._int_mm(a, b.T, out=out)
        held = self.float_room[: out.numel()].view(shape)
        for first in range(0, a.shape[1], EXACT_WIDTH):
            part = slice(first, first + EXACT_WIDTH)
            torch.mm(a[:, part].float(), b[:, part].float().T, out=held)
            if first:
                out.add_(held.int())
            else:
                out.copy_(held)
        return out


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two tiles: |x' - y'|^2 = unit (offset - score) up to unit slack; score = q_x . q_y - row - column."""

    items: RoundedItems
    tile: int
    other: int
    unit: float
    offset: float
    slack: float
    row: Tensor
    """`(TILE,)` int32, as is `column`."""
    column: Tensor

    @classmethod
    def of(cls, items: RoundedItems, tile: int, other: int) -> _Pair:
        """Split |center + step q - center' - step' q'|^2 into what belongs to rows, to columns and to both."""
        slack, numbers = 2.0, []
        for own, foreign in ((tile, other), (other, tile)):
            along = (items.along[own, :, own] - items.along[own, :, foreign]).double()
            number = along.add_(items.square[own], alpha=items.step[own] / 2).div_(items.step[foreign]).round_()
            # Padding never scores.
            number[max(items.num_rounded - own * TILE, 0) :] = -LOWEST
            numbers.append(number.to(torch.int32))
            # Both products were rounded to float32 twice: in the sum and when they were stored.
            slack += 4 * items.center.shape[1] * FLOAT32_EPS * items.largest_along[own] / items.step[foreign]
        unit = 2 * items.step[tile] * items.step[other]
        between = (items.center[tile] - items.center[other]).double().square().sum().item()
        return cls(items, tile, other, unit, between / unit, slack, *numbers)

    def multiply(self, rows: Tensor, columns: Tensor, product: _Product) -> Tensor:
        """Return q_x . q_y - row of some rows and columns `(t, u)` int32, very low for an item with itself."""
        items = self.items
        out = product(_take(items.q[self.tile], rows), _take(items.q[self.other], columns))
        out.sub_(self.row[rows].unsqueeze(1))
        return out.fill_diagonal_(LOWEST) if self.tile == self.other else out

    def within_reach(self, product: _Product, reach: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return row, column and distance of the pairs within reach of either side, each pair once."""
        rows, columns = self._between(reach)
        if not len(rows) or not len(columns):
            return rows[:0], rows[:0], self.items.z.new_empty(0)
        score = self.multiply(rows, columns, product)
        of_row = self._least_score(reach, self.tile, self.other)[rows].view(-1, GROUP)
        of_column = self._least_score(reach, self.other, self.tile)[columns]
        of_both = self.column[columns]
        by_group = score.view(-1, GROUP, len(columns))
        least = torch.minimum(of_row.amin(1, keepdim=True), of_column) + of_both
        # NumPy finds the few True ten times faster than torch; both share the memory.
        place = torch.from_numpy((by_group.amax(1) >= least).view(-1).numpy().nonzero()[0])
        group, column = place // len(columns), place % len(columns)
        least = torch.minimum(of_row[group], of_column[column, None]) + of_both[column, None]
        hit, number = (by_group[group, :, column] >= least).nonzero(as_tuple=True)
        row, column = rows[group[hit] * GROUP + number], columns[column[hit]]
        if self.tile == self.other:
            once = row < column
            row, column = row[once], column[once]
        row, column = row + self.tile * TILE, column + self.other * TILE
        distance = self.items.distance(row, column)
        near = (distance <= torch.maximum(reach[row], reach[column])).nonzero().flatten()
        return row[near], column[near], distance[near]

    def _between(self, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows and the columns of which any two can be within reach, seen along the line of the centers."""
        items, every = self.items, torch.arange(TILE)
        line = (items.center[self.other] - items.center[self.tile]).double().norm().item()
        if self.tile == self.other or line == 0:
            return every, every
        ends, reaches = [], []
        for own, foreign, sign in ((self.tile, self.other, -1), (self.other, self.tile, 1)):
            along = (items.along[own, :, own] - items.along[own, :, foreign]).double() * (sign * items.step[own] / line)
            unsafe = items.radius[own] + 4 * items.center.shape[1] * FLOAT32_EPS * (
                items.largest_along[own] * items.step[own] / line + line
            )
            ends.append(along - sign * unsafe)
            reaches.append(reach[own * TILE : (own + 1) * TILE])
        (left, right), (far, back) = (ends[0], ends[1] + line), reaches
        is_left, is_right = far >= 0, back >= 0
        rightmost = left[is_left].amax(), (left + far)[is_left].amax()
        leftmost = right[is_right].amin(), (right - back)[is_right].amin()
        is_row = is_left & ((left + far >= leftmost[0]) | (left >= leftmost[1]))
        is_column = is_right & ((right - back <= rightmost[0]) | (right <= rightmost[1]))
        return _in_full_size(is_row), _in_full_size(is_column)

    def _least_score(self, reach: Tensor, tile: int, other: int) -> Tensor:
        """Return the int32 score that items of the other tile within reach of this one's have at least."""
        far = reach[tile * TILE : (tile + 1) * TILE] + self.items.radius[tile] + self.items.largest_radius[other]
        score = (self.offset - self.slack - far.square() / self.unit).floor().clamp(-NEVER, NEVER)
        return torch.where(far >= 0, score, NEVER).to(torch.int32)


def _take(q: Tensor, rows: Tensor) -> Tensor:
    return q if len(rows) == TILE else q.index_select(0, rows)


def _in_full_size(is_chosen: Tensor) -> Tensor:
    """Return the chosen numbers in order, and then others to make a multiple of `SIZE`."""
    chosen = is_chosen.nonzero().flatten()
    others = (~is_chosen).nonzero().flatten()[: -len(chosen) % SIZE]
    # All of them stay in order, as `_take` expects.
    return torch.arange(TILE) if len(chosen) + len(others) == TILE else torch.cat([chosen, others])


def _scan(items: RoundedItems, reach: Tensor, far: int, tile: int, product: _Product) -> tuple[Tensor, Tensor, Tensor]:
    return _Pair.of(items, tile, (tile + far) % items.num_tiles).within_reach(product, reach)


@dataclass(frozen=True, eq=False)
class _Nearest:
    """The nearest columns of every row that were met so far, in no order."""

    distance: Tensor
    column: Tensor
    count: Tensor

    @classmethod
    def empty(cls, num_rows: int, room: int, dtype: torch.dtype) -> _Nearest:
        """Return one with room for so many columns per row."""
        distance = torch.full((num_rows, room), torch.inf, dtype=dtype)
        column = torch.zeros(num_rows, room, dtype=torch.int32)
        return cls(distance, column, torch.zeros(num_rows, dtype=torch.int64))

    def insert(self, row: Tensor, column: Tensor, distance: Tensor) -> None:
        """Note the columns for the rows; a row without room keeps its nearest."""
        num_rows, room = self.distance.shape
        added = torch.bincount(row, minlength=num_rows)
        full = (self.count + added > room).nonzero().flatten()
        if len(full):
            is_used = torch.arange(room) < self.count[full, None]
            row = torch.cat([row, full.repeat_interleave(self.count[full])])
            column = torch.cat([column, self.column[full][is_used].long()])
            distance = torch.cat([distance, self.distance[full][is_used]])
            added[full] += self.count[full]
            self.count[full] = 0
            self.distance[full] = torch.inf
        # The bits of positive floats are ordered as the floats are.
        order = torch.argsort((row << 32) + distance.float().view(torch.int32))
        row, column, distance = row[order], column[order], distance[order]
        slot = torch.arange(len(row)) - (added.cumsum(0) - added - self.count)[row]
        kept = (slot < room).nonzero().flatten()
        place = row[kept] * room + slot[kept]
        self.distance.view(-1)[place] = distance[kept]
        self.column.view(-1)[place] = column[kept].to(torch.int32)
        self.count.add_(added).clamp_(max=room)


def _start_reach(pair: _Pair, product: _Product, reach: Tensor, k: int) -> None:
    """Set how far the rows of a tile have to look by the true distance of its own k best items."""
    items, start = pair.items, pair.tile * TILE
    rows = torch.arange(start, min(start + TILE, items.num_rounded))
    if len(rows) <= k:
        reach[rows] = torch.inf
        return
    every = torch.arange(TILE)
    by_group = pair.multiply(every, every, product).sub_(pair.column).view(TILE, GROUP, -1)
    group = by_group.amax(1).topk(min(k, TILE // GROUP), dim=1, sorted=False).indices
    member = by_group.gather(2, group.unsqueeze(1).expand(-1, GROUP, -1)).flatten(1)
    best = member.topk(k, dim=1, sorted=False).indices
    column = (best // group.shape[1]) * (TILE // GROUP) + group.gather(1, best % group.shape[1]) + start
    column = column[: len(rows)].clamp(max=items.num_rounded - 1)
    distance = items.distance(rows.repeat_interleave(k), column.flatten()).view(-1, k)
    reach[rows] = items.at_most(distance.amax(1))


def _wild_pairs(items: RoundedItems, reach: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return row, column and distance of the items within reach that were not rounded."""
    wild = torch.arange(items.num_rounded, items.num_found)
    center = items.z.mean(0).double()
    other = items.z[wild] - center
    pairs = []
    for rows in torch.arange(items.num_rounded).split(TILE):
        x = items.z[rows] - center
        squares = x.square().sum(1, keepdim=True) + other.square().sum(1)
        # The product is off by less than this, |x y| <= (x^2 + y^2) / 2 included.
        unsafe = squares * ((x.shape[1] + 8) * torch.finfo(x.dtype).eps)
        squared = torch.addmm(squares, x, other.T, alpha=-2) - unsafe
        row, column = (squared <= reach[rows, None].square()).nonzero(as_tuple=True)
        row, column = rows[row], wild[column]
        pairs.append((row, column, items.distance(row, column)))
    row, column, distance = (torch.cat(part) for part in zip(*pairs, strict=True))
    return row, column, distance
