"""From neighbours to a symmetric weighted graph."""

from typing import get_args

import torch
from torch import Tensor

from lspread.errors import GraphError
from lspread.graph.exact import scale_to_unit
from lspread.graph.graph import Graph
from lspread.graph.kernels import Kernel, SelfTuning
from lspread.graph.neighbors import Neighbors
from lspread.typing import Symmetrize

__all__ = ["build_graph"]

TILE_ELEMENTS = 1 << 24
DEFAULT_KERNEL = SelfTuning()


def build_graph(
    z: Tensor,
    neighbors: Neighbors,
    *,
    kernel: Kernel = DEFAULT_KERNEL,
    symmetrize: Symmetrize = "mean",
    coalesce: bool = True,
) -> Graph:
    """Weigh the edges to neighbours and make the graph symmetric.

    Args:
        z: Embeddings `(n, d)` or `(b, n, d)` that `neighbors` were found in.
        neighbors: From `find_neighbors`.
        kernel: `SelfTuning()`, `Gaussian(bandwidth)`, `CosinePower(gamma)`, `Uniform()` or any `Kernel`.
        symmetrize: "mean" is (W + W^T) / 2, "max" keeps the larger weight, "mutual" keeps edges found from both ends,
            with the smaller weight.
        coalesce: True lists every edge once; how many there are is then read from the device. False has fixed size
            (2 n k slots, n k for "mutual"): slots without an edge have weight zero, and nothing is read.

    Returns:
        Symmetric `Graph`, not normalized, no self-loops of positive weight, sorted by row. Differentiable in `z` and
        in tensors of the kernel; while `z` needs gradient, memory is O(n k d), otherwise O(n k).

    Raises:
        GraphError: `z` and `neighbors` differ in nodes, or `symmetrize` is unknown.
    """
    if symmetrize not in get_args(Symmetrize):
        raise GraphError(f"symmetrize must be one of {get_args(Symmetrize)}; got {symmetrize!r}.")
    z = z.reshape(-1, z.shape[-1])
    z = z if z.dtype == torch.float64 else z.float()
    if len(z) != neighbors.num_nodes:
        raise GraphError(
            f"build_graph needs the embeddings that neighbors were found in; got {len(z)} rows of z and neighbors of "
            f"{neighbors.num_nodes} nodes."
        )
    is_neighbor = neighbors.is_neighbor
    weight = kernel(_squared_distance(z, neighbors), neighbors) * is_neighbor
    back, is_mutual = _backward_weight(weight, neighbors)

    node = torch.arange(len(z), device=z.device)[:, None]
    row = node.expand_as(neighbors.index)
    column = torch.where(is_neighbor, neighbors.index, node)
    if symmetrize == "mutual":
        lists = [(row, column, torch.minimum(weight, back), is_mutual)]
    else:
        there = (weight + back) / 2 if symmetrize == "mean" else torch.maximum(weight, back)
        # An edge that only one end found is listed again from the other end.
        again = (weight / 2 if symmetrize == "mean" else weight) * ~is_mutual
        is_again = is_neighbor & ~is_mutual
        lists = [
            (row, column, there, is_neighbor),
            (torch.where(is_again, column, node), row, again, is_again),
        ]
    rows, columns, weights, is_edge = (
        torch.cat([part.flatten() for part in parts]) for parts in zip(*lists, strict=True)
    )
    if coalesce:
        kept = is_edge.nonzero().flatten()  # sync: the number of distinct edges
        rows, columns, weights = rows[kept], columns[kept], weights[kept]
    order = torch.argsort(rows * len(z) + columns)
    return Graph(
        edge_index=torch.stack([rows[order], columns[order]]),
        edge_weight=weights[order],
        ptr=neighbors.ptr,
        num_nodes=len(z),
        is_symmetric=True,
    )


def _squared_distance(z: Tensor, neighbors: Neighbors) -> Tensor:
    """Return what the kernel sees `(n, k)`: with gradient from z if it needs one, else from the search."""
    is_neighbor = neighbors.is_neighbor
    if not (torch.is_grad_enabled() and z.requires_grad):
        distance = neighbors.distance.to(z.dtype)
        squared = 2 * distance if neighbors.metric == "cosine" else distance.square()
        return torch.where(is_neighbor, squared, 0)
    index = torch.where(is_neighbor, neighbors.index, torch.arange(len(z), device=z.device)[:, None])
    if neighbors.metric != "cosine":
        return (z[:, None] - z[index]).square().sum(-1)
    z, is_zero = scale_to_unit(z)
    squared = (z[:, None] - z[index]).square().sum(-1)
    # A vector without direction is at right angles to all others, as in the search.
    return torch.where((is_zero[:, None] | is_zero[index]) & is_neighbor, 2, squared)


def _backward_weight(weight: Tensor, neighbors: Neighbors) -> tuple[Tensor, Tensor]:
    """Return, for every edge i -> j, the weight of j -> i (zero where j did not find i) and whether it exists."""
    index, k = neighbors.index.clamp(min=0), neighbors.k
    slot, is_mutual = torch.empty_like(index), torch.empty_like(index, dtype=torch.bool)
    num_rows = max(1, TILE_ELEMENTS // (k * k))
    for start in range(0, len(index), num_rows):
        rows = index[start : start + num_rows]
        node = torch.arange(start, start + len(rows), device=index.device).view(-1, 1, 1)
        is_me = neighbors.index[rows] == node
        slot[start : start + num_rows] = is_me.to(torch.uint8).argmax(-1)
        is_mutual[start : start + num_rows] = is_me.any(-1)
    is_mutual &= neighbors.is_neighbor
    return weight.flatten()[index * k + slot] * is_mutual, is_mutual
