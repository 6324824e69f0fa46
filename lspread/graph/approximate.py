"""Approximate neighbour search: a backend proposes candidates, which are measured by differences and completed."""

from typing import Literal

import torch
from torch import Tensor

from lspread.graph import faiss_index, ivf, nn_descent
from lspread.graph.exact import scale_to_unit, search_exact
from lspread.graph.rows import search_rows
from lspread.typing import Metric

__all__ = ["search_approximate"]

SMALL = 4096
"""Graphs with fewer nodes are searched exactly, which takes no longer there."""


def search_approximate(
    z: Tensor,
    k: int,
    *,
    metric: Metric,
    sizes: list[int],
    backend: Literal["nn_descent", "faiss", "ivf"],
    effort: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Return neighbour numbers and distances `(n, k)` as `search_exact` does, graph by graph.

    Args:
        z: `(n, d)` or `(b, n, d)` float32 or float64, no gradient.
        k: Neighbours per node.
        metric: "euclidean" or "cosine".
        sizes: Nodes of each graph, in order; they add up to the rows of z.
        backend: Who proposes candidates.
        effort: How much to look at, in units of the backend's default.
        seed: Of the backend's random choices.

    Returns:
        Index int64 with -1 and distance with infinity where a graph has no more nodes.
    """
    if max(sizes) < max(SMALL, 2 * k):
        return search_exact(z, k, metric=metric, sizes=sizes)
    z = z.reshape(-1, z.shape[-1])
    index = z.new_full((len(z), k), -1, dtype=torch.int64)
    distance = z.new_full((len(z), k), torch.inf)
    start = 0
    for size in sizes:
        rows, near = slice(start, start + size), min(k, size - 1)
        if size >= max(SMALL, 2 * k):
            local, distance[rows] = _search(z[rows], k, metric, backend, effort, seed)
            index[rows] = local + start
        elif near > 0:
            local, distance[rows, :near] = search_exact(z[rows], near, metric=metric, sizes=[size])
            index[rows, :near] = local + start
        start += size
    return index, distance


def _search(z: Tensor, k: int, metric: Metric, backend: str, effort: float, seed: int) -> tuple[Tensor, Tensor]:
    """Search one graph `(n, d)` with k < n."""
    is_zero = None
    if metric == "cosine":
        z, is_zero = scale_to_unit(z)
    if backend == "ivf":
        candidate = ivf.find_candidates(z, k, is_zero=is_zero, effort=effort, seed=seed)
    else:
        # One more direction, which only zero vectors have, puts them at right angles to all others.
        points = torch.cat([z, is_zero[:, None]], 1) if is_zero is not None and is_zero.any() else z
        find = nn_descent.find_candidates if backend == "nn_descent" else faiss_index.find_candidates
        candidate = find(points, k, effort=effort, seed=seed)
    index, squared = _measure(z, candidate, k, is_zero)
    if backend != "ivf":  # which finds k for every node, so that nothing need be read from the device
        lacking = (index[:, -1] < 0).nonzero().flatten()
        if len(lacking):
            first = torch.zeros_like(lacking)
            exact = search_rows(z, lacking, k, metric=metric, first=first, last=first + len(z))
            index[lacking], squared[lacking] = _measure(z, exact, k, is_zero, node=lacking)
    # On the unit sphere the squared chord is 2 (1 - cos).
    return index, squared.div_(2) if metric == "cosine" else squared.sqrt_()


def _measure(
    z: Tensor, candidate: Tensor, k: int, is_zero: Tensor | None, node: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the k nearest candidates of every node and their squared distances, nearest first.

    Args:
        z: `(n, d)`.
        candidate: Numbers `(m, j)`, the node's own and -1 among them.
        k: How many to keep; where there are fewer, -1 and infinity.
        is_zero: `(n,)` bool, rows among unit vectors that have no direction.
        node: Numbers `(m,)` of the nodes, all of them if None.
    """
    node = torch.arange(len(z), device=z.device) if node is None else node
    index = candidate.new_empty((len(node), k))
    squared = z.new_empty((len(node), k))
    # A CPU reads the gathered rows again from its cache.
    step = max(1, (1 << (18 if z.device.type == "cpu" else 25)) // (candidate.shape[1] * z.shape[1]))
    for start in range(0, len(node), step):
        part = slice(start, start + step)
        row, other = node[part], candidate[part]
        near = other.clamp(min=0)
        apart = (z[near] - z[row].unsqueeze(1)).square_().sum(-1)
        if is_zero is not None:
            apart = torch.where(is_zero[near] | is_zero[row].unsqueeze(1), 2, apart)
        apart = apart.masked_fill_((other < 0) | (other == row.unsqueeze(1)), torch.inf)
        squared[part], order = apart.topk(k, largest=False)
        index[part] = other.gather(1, order).masked_fill_(squared[part].isinf(), -1)
    return index, squared
