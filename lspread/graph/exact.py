"""Exact neighbour search by tiles: one matrix product a tile, then two small selections."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from lspread.typing import Metric

__all__ = ["scale_to_unit", "search_exact"]

TILE_ELEMENTS = 1 << 24
"""Scores held at once: 64 MiB in float32."""
GROUP = 32
"""Columns whose minimum is looked at first; a full top-k over all columns costs a third of the search."""
SPARE = 8
"""Candidates kept beyond k and measured again, so that rounding in the product cannot push out a neighbour."""


def search_exact(z: Tensor, k: int, *, metric: Metric, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Return neighbour numbers and distances `(n, k)` for graphs of the given sizes.

    Args:
        z: `(n, d)` or `(b, n, d)` float32 or float64, no gradient.
        k: Neighbours per node.
        metric: "euclidean" or "cosine".
        sizes: Nodes of each graph, in order; they add up to the rows of z.

    Returns:
        Index int64 with -1 and distance with infinity where a graph has no more nodes.
    """
    is_zero = None
    if metric == "cosine":
        z, is_zero = scale_to_unit(z)
    flat = z.reshape(-1, z.shape[-1])
    largest = max(sizes)
    if min(sizes) == largest:
        stacked = None if is_zero is None else is_zero.view(len(sizes), largest)
        index, squared = _search(flat.view(len(sizes), largest, -1), k, stacked)
        offset = (torch.arange(len(sizes), device=z.device) * largest).view(-1, 1, 1)
        index = (index + offset).flatten(0, 1)
        squared = squared.flatten(0, 1)
    else:
        index, squared = _search_ragged(flat, k, sizes, is_zero)
    # On the unit sphere the squared chord is 2 (1 - cos).
    return index, squared / 2 if metric == "cosine" else squared.sqrt()


def scale_to_unit(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of z scaled to length one, and which rows `(..., n)` have length zero and stay as they are."""
    length = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    is_zero = length == 0
    return z / torch.where(is_zero, torch.ones_like(length), length), is_zero.squeeze(-1)


def _search_ragged(flat: Tensor, k: int, sizes: list[int], is_zero: Tensor | None) -> tuple[Tensor, Tensor]:
    """Search graph by graph, padding the answers of graphs with fewer than k + 1 nodes."""
    index = flat.new_full((len(flat), k), -1, dtype=torch.int64)
    squared = flat.new_full((len(flat), k), torch.inf)
    start = 0
    for size in sizes:
        found = min(k, size - 1)
        if found > 0:
            rows = slice(start, start + size)
            local, near = _search(flat[None, rows], found, None if is_zero is None else is_zero[None, rows])
            index[rows, :found] = local[0] + start
            squared[rows, :found] = near[0]
        start += size
    return index, squared


def _search(z: Tensor, k: int, is_zero: Tensor | None) -> tuple[Tensor, Tensor]:
    """Search b equal graphs `(b, n, d)`; index is local to its graph, squared distances with it.

    Rows in `is_zero` `(b, n)` are vectors without direction among unit vectors: at right angles to all others.
    """
    num_graphs, size, _ = z.shape
    # Distances do not change when everything moves; near the origin the product loses the fewest digits.
    centered = z - z.mean(1, keepdim=True)
    num_candidates = min(k + SPARE, size - 1)
    is_grouped = size >= 4 * GROUP * num_candidates
    num_columns = -(-size // GROUP) * GROUP if is_grouped else size
    columns = pad(centered, (0, 0, 0, num_columns - size))
    square = columns.square().sum(-1)
    if is_zero is not None:
        # The origin is at squared distance 1 from the sphere, vectors at right angles at 2.
        square[:, :size] += is_zero
    if num_columns > size:
        square[:, size:] = torch.inf
    half_square = (square / 2).unsqueeze(1)
    transposed = columns.transpose(1, 2)
    num_rows = max(1, min(size, TILE_ELEMENTS // (num_columns * num_graphs)))
    index = z.new_empty((num_graphs, size, k), dtype=torch.int64)
    squared = z.new_empty((num_graphs, size, k))
    for start in range(0, size, num_rows):
        rows = centered[:, start : start + num_rows]
        # |x - y|^2 / 2 up to |x|^2 / 2, which is the same for the whole row.
        score = torch.baddbmm(half_square, rows, transposed, alpha=-1)
        number = torch.arange(start, start + rows.shape[1], device=z.device)
        score[:, number - start, number] = torch.inf
        candidate = _smallest_by_groups(score, num_candidates) if is_grouped else _smallest(score, num_candidates)
        measured = _measure(z, z[:, start : start + num_rows], candidate)
        if is_zero is not None:
            is_candidate_zero = is_zero.gather(1, candidate.flatten(1)).view_as(candidate)
            measured = torch.where(is_candidate_zero | is_zero[:, start : start + num_rows, None], 2, measured)
        squared[:, start : start + num_rows], order = measured.topk(k, largest=False)
        index[:, start : start + num_rows] = candidate.gather(-1, order)
    return index, squared


def _measure(z: Tensor, rows: Tensor, candidate: Tensor) -> Tensor:
    """Return squared distances of rows `(b, t, d)` to their candidates `(b, t, m)` by differences."""
    num_graphs, num_rows, num_candidates = candidate.shape
    graph = torch.arange(num_graphs, device=z.device).view(-1, 1)
    squared = torch.empty(candidate.shape, dtype=z.dtype, device=z.device)
    step = max(1, TILE_ELEMENTS // (num_graphs * num_candidates * z.shape[-1]))
    for start in range(0, num_rows, step):
        part = candidate[:, start : start + step]
        near = z[graph, part.flatten(1)].view(*part.shape, -1)
        squared[:, start : start + step] = (near - rows[:, start : start + step, None]).square().sum(-1)
    return squared


def _smallest(score: Tensor, count: int) -> Tensor:
    return score.topk(count, largest=False, sorted=False).indices


def _smallest_by_groups(score: Tensor, count: int) -> Tensor:
    """Return columns of the `count` smallest scores by looking into the `count` groups of smallest minimum.

    Were one of them in another group, `count` groups would have a minimum at most as large: then those minima are as
    good an answer.
    """
    num_groups = score.shape[-1] // GROUP
    strided = score.view(*score.shape[:-1], GROUP, num_groups)
    group = strided.amin(-2).topk(count, largest=False, sorted=False).indices
    member = torch.arange(GROUP, device=score.device) * num_groups
    column = (group.unsqueeze(-1) + member).flatten(-2)
    best = score.gather(-1, column).topk(count, largest=False, sorted=False).indices
    return column.gather(-1, best)
