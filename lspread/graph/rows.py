"""Exact search for a few rows among many, in float64: what approximate answers are completed with and judged by."""

import torch
from torch import Tensor

from lspread.typing import Metric

__all__ = ["measure_pairs", "search_rows"]

TILE_ELEMENTS = 1 << 23
SPARE = 8


def search_rows(z: Tensor, rows: Tensor, k: int, *, metric: Metric, first: Tensor, last: Tensor) -> Tensor:
    """Return the k nearest nodes of some rows, each inside its own graph.

    Args:
        z: `(n, d)` of any floating-point dtype.
        rows: Row numbers `(m,)` int64.
        k: Neighbours per row.
        metric: "euclidean" or "cosine".
        first: First node of the graph of each row `(m,)` int64.
        last: One past the last `(m,)`.

    Returns:
        Index `(m, k)` int64, nearest first; -1 where the graph has no more nodes. Memory is O(m k + tile).
    """
    step = max(1, TILE_ELEMENTS // max(1, z.shape[1], len(rows)))
    center = z.mean(0).double() if metric == "euclidean" else z.new_zeros(z.shape[1], dtype=torch.float64)
    query, _ = _prepare(z[rows], center, metric)
    score = query.new_full((len(rows), k + SPARE), torch.inf)
    index = rows.new_full(score.shape, -1)
    for start in range(0, len(z), step):
        block, half_square = _prepare(z[start : start + step], center, metric)
        number = torch.arange(start, start + len(block), device=z.device)
        near = torch.addmm(half_square, query, block.T, alpha=-1)
        is_other = (number >= first[:, None]) & (number < last[:, None]) & (number != rows[:, None])
        score = torch.cat([score, near.masked_fill_(~is_other, torch.inf)], 1)
        index = torch.cat([index, number.expand(len(rows), -1)], 1)
        score, best = score.topk(k + SPARE, largest=False)
        index = index.gather(1, best)
    index = index.masked_fill_(score.isinf(), -1)
    distance = measure_pairs(z, rows, index, metric=metric)
    return index.gather(1, distance.topk(k, largest=False).indices)


def measure_pairs(z: Tensor, rows: Tensor, index: Tensor, *, metric: Metric) -> Tensor:
    """Return float64 distances `(m, j)` of rows `(m,)` to the nodes in `index` `(m, j)`, infinite where it is -1."""
    distance = z.new_empty(index.shape, dtype=torch.float64)
    step = max(1, TILE_ELEMENTS // max(1, index.shape[1] * z.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        left, right = z[rows[part]].double().unsqueeze(1), z[index[part].clamp(min=0)].double()
        if metric == "cosine":
            left, right = torch.nn.functional.normalize(left, dim=-1), torch.nn.functional.normalize(right, dim=-1)
        squared = (left - right).square().sum(-1)
        if metric == "cosine":
            # A vector without direction is at right angles to all others.
            squared = torch.where((left == 0).all(-1) | (right == 0).all(-1), 2.0, squared) / 2
        distance[part] = squared if metric == "cosine" else squared.sqrt()
    return distance.masked_fill_(index < 0, torch.inf)


def _prepare(x: Tensor, center: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """Return x in float64, moved or scaled, and what a score adds to the product."""
    x = x.double() - center
    if metric == "euclidean":
        return x, x.square().sum(1) / 2
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    # All on the unit sphere, with a zero vector at the same place as those at right angles.
    return x / torch.where(length == 0, 1, length), length.new_zeros(len(x))
