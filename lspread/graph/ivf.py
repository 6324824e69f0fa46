"""Candidates from nearby cells: every tile of items is compared with the tiles around it, by matrix products.

Items are grouped by k-means, each cell is cut across its longest direction into tiles of a fixed number of items, and
all items of a tile search the same nearest tiles. Shapes depend on n alone, so nothing is read from a GPU.
"""

import torch
from torch import Tensor

__all__ = ["find_candidates"]

TILE = 64
"""Items of one tile; the last tile of a cell is filled up with nothing."""
NUM_PROBES = 256
"""Tiles that a tile searches at effort 1: 16,384 items."""
GROUP = 32
"""Columns whose minimum is looked at first, as a full top-k over all columns costs more than the product."""
SAMPLES_PER_CELL = 32
NUM_ROUNDS = 6
"""Rounds of k-means; cells need be compact, not optimal."""


def find_candidates(z: Tensor, k: int, *, is_zero: Tensor | None, effort: float, seed: int) -> Tensor:
    """Return numbers of k near items `(n, k)` int64 for every row of z, never its own.

    Args:
        z: `(n, d)` float32 or float64.
        k: Neighbours per item, smaller than n.
        is_zero: `(n,)` bool, which rows among unit vectors have no direction; they count as orthogonal to all others.
        effort: Tiles searched, in units of `NUM_PROBES`.
        seed: Of the sample that k-means starts from.

    Returns:
        Index on the device of z, in no order. Memory is O(n d + tile), time O(n (sqrt(n) + effort) d).
    """
    num_items = len(z)
    num_cells = max(1, min(num_items // TILE, int(2 * num_items**0.5)))
    center = z.mean(0)
    cell, position = _assign_cells(z, center, num_cells, seed)
    table = _cut_into_tiles(cell, position, num_cells)
    is_empty = table == num_items
    row = table.clamp(max=num_items - 1)
    # Near the origin the products lose the fewest digits.
    item = (z[row] - center).masked_fill_(is_empty.unsqueeze(-1), 0)
    half_square = item.square().sum(-1) / 2
    if is_zero is not None:
        # The origin is at squared distance 1 from the sphere, vectors at right angles at 2.
        half_square += is_zero[row] / 2
    half_square = half_square.masked_fill_(is_empty, torch.inf)
    # Every tile holds an item, so that k + 1 tiles, or all of them, hold k others.
    num_probes = min(len(table), max(round(NUM_PROBES * effort), k + 1))
    near = _nearest_tiles(item, is_empty, num_probes)

    found = table.new_empty((num_items + 1, k))  # the last row takes what empty slots find
    num_columns = num_probes * TILE
    step = max(1, _tile_elements(z) // (TILE * num_columns))
    for start in range(0, len(table), step):
        tiles = near[start : start + step]
        number, half, other = (
            part.flatten(1).index_select(0, tiles.flatten()).view(-1, num_columns, part.shape[2])
            for part in (table.unsqueeze(-1), half_square.unsqueeze(-1), item)
        )
        score = torch.baddbmm(half.mT, item[start : start + step], other.mT, alpha=-1)
        # The own tile comes first.
        score[:, :, :TILE].diagonal(dim1=1, dim2=2).fill_(torch.inf)
        found[table[start : start + step]] = number.mT.expand_as(score).gather(-1, _smallest(score, k))
    return found[:num_items]


def _tile_elements(z: Tensor) -> int:
    """Return how many scores to hold at once: what a CPU's cache holds, or what fills a GPU."""
    return 1 << (18 if z.device.type == "cpu" else 26)


def _assign_cells(z: Tensor, center: Tensor, num_cells: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the cell of every item `(n,)` and its position along the longest direction of the cell."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(z), generator=generator)[: SAMPLES_PER_CELL * num_cells].to(z.device)
    direction = torch.randn(z.shape[1], generator=generator, dtype=z.dtype).to(z.device).expand(num_cells, -1)
    sample = z[chosen] - center
    centroid = sample[:num_cells]
    for _ in range(NUM_ROUNDS):
        cell = _nearest(sample, centroid)
        count = _count(cell, num_cells).unsqueeze(1)
        total = torch.zeros_like(centroid).index_add_(0, cell, sample)
        centroid = torch.where(count > 0, total / count.clamp(min=1), centroid)
    sample = sample - centroid[cell]
    for _ in range(3):  # power iterations in all cells
        along = (sample * direction[cell]).sum(1, keepdim=True)
        direction = torch.zeros_like(centroid).index_add_(0, cell, sample * along)
        direction = torch.nn.functional.normalize(direction)

    cell, position = cell.new_empty(len(z)), z.new_empty(len(z))
    step = max(1, 4 * _tile_elements(z) // num_cells)
    for start in range(0, len(z), step):
        part = z[start : start + step] - center
        mine = _nearest(part, centroid)
        cell[start : start + step] = mine
        position[start : start + step] = (part * direction[mine]).sum(1)
    return cell, position


def _nearest(x: Tensor, centroid: Tensor) -> Tensor:
    """Return the number of the nearest centroid of every row of x."""
    half_square = centroid.square().sum(1) / 2
    step = max(1, 4 * _tile_elements(x) // len(centroid))
    parts = [torch.addmm(half_square, part, centroid.T, alpha=-1).argmin(1) for part in x.split(step)]
    return torch.cat(parts)


def _count(cell: Tensor, num_cells: int) -> Tensor:
    """Count as `bincount` does, which reads the largest number from the device."""
    return cell.new_zeros(num_cells).index_add_(0, cell, torch.ones_like(cell))


def _cut_into_tiles(cell: Tensor, position: Tensor, num_cells: int) -> Tensor:
    """Return the items of every tile `(t, TILE)`; n stands in empty slots, and empty tiles come last."""
    num_items = len(cell)
    count = _count(cell, num_cells)
    num_tiles = (count + TILE - 1) // TILE
    order = position.argsort(stable=True)
    order = order[cell[order].argsort(stable=True)]
    mine = cell[order]
    rank = torch.arange(num_items, device=cell.device) - (count.cumsum(0) - count)[mine]
    slot = (num_tiles.cumsum(0) - num_tiles)[mine] * TILE + rank
    # No reading of how many tiles there are on a GPU: every cell has less than one that is not full.
    most = int(num_tiles.sum()) if cell.device.type == "cpu" else num_items // TILE + num_cells
    return cell.new_full((most * TILE,), num_items).scatter_(0, slot, order).view(-1, TILE)


def _nearest_tiles(item: Tensor, is_empty: Tensor, num_probes: int) -> Tensor:
    """Return for every tile the tiles with the nearest means `(t, num_probes)`, itself first."""
    size = (~is_empty).sum(1)
    mean = item.sum(1) / size.clamp(min=1).unsqueeze(1)
    half_square = (mean.square().sum(1) / 2).masked_fill_(size == 0, torch.inf)
    near = size.new_empty((len(mean), num_probes))
    step = max(1, 4 * _tile_elements(item) // len(mean))
    for start in range(0, len(mean), step):
        score = torch.addmm(half_square, mean[start : start + step], mean.T, alpha=-1)
        score.diagonal(offset=start).fill_(-torch.inf)
        near[start : start + step] = score.topk(num_probes, largest=False).indices
    return near


def _smallest(score: Tensor, count: int) -> Tensor:
    """Return columns of the `count` smallest scores of every row, looking only into groups with a small minimum."""
    num_groups = score.shape[-1] // GROUP
    if num_groups <= 2 * count:
        return score.topk(count, largest=False, sorted=False).indices
    # Were one of them in another group, `count` groups would have a minimum at most as large.
    strided = score.unflatten(-1, (GROUP, num_groups))
    group = strided.amin(-2).topk(count, largest=False, sorted=False).indices
    member = strided.gather(-1, group.unsqueeze(-2).expand(*group.shape[:-1], GROUP, count)).flatten(-2)
    best = member.topk(count, largest=False, sorted=False).indices
    return best // count * num_groups + group.gather(-1, best % count)
