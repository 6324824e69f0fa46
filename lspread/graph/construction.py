"""From neighbours to a symmetric weighted graph."""

from typing import get_args

import torch
from torch import Tensor

from lspread.autograd import needs_derivative
from lspread.errors import GraphError
from lspread.graph.difference import squared_distance
from lspread.graph.exact import scale_to_unit
from lspread.graph.graph import Graph
from lspread.graph.kernels import Kernel, SelfTuning
from lspread.graph.neighbors import Neighbors
from lspread.typing import Symmetrize

__all__ = ["build_graph"]

DEFAULT_KERNEL = SelfTuning()
MOST_CELLS = 1 << 18
"""Cells of dense tables up to which edges are listed from them: at 512 nodes it takes as long as sorting."""


def build_graph(
    z: Tensor,
    neighbors: Neighbors,
    *,
    kernel: Kernel = DEFAULT_KERNEL,
    symmetrize: Symmetrize = "mean",
    coalesce: bool = True,
    remeasure: bool = True,
) -> Graph:
    """Weigh the edges to neighbours and make the graph symmetric.

    Args:
        z: Embeddings `(n, d)` or `(b, n, d)` that `neighbors` were found in.
        neighbors: From `find_neighbors`.
        kernel: `SelfTuning()`, `Gaussian(bandwidth)`, `CosinePower(gamma)`, `Uniform()` or any `Kernel`.
        symmetrize: "mean" is (W + W^T) / 2, "max" keeps the larger weight, "mutual" keeps edges found from both ends,
            with the smaller weight.
        coalesce: True lists every edge once; how many there are is then read from the device. False has fixed size
            (2 n k slots, n k for "mutual"): slots without an edge are loops of weight zero, and nothing is read.
        remeasure: False takes the distances of the search as they are also where derivatives by `z` are taken: right as
            long as z has not changed since (not even by a perturbation, as for finite differences), and quicker.

    Returns:
        Symmetric `Graph`, not normalized, no self-loops of positive weight, sorted by row. Differentiable in `z` and
        in tensors of the kernel, any number of times. O(n (k + d)) memory, with and without gradient.

    Raises:
        GraphError: `z` and `neighbors` differ in nodes, or `symmetrize` is unknown.
    """
    if symmetrize not in get_args(Symmetrize):
        raise GraphError(f"symmetrize must be one of {get_args(Symmetrize)}; got {symmetrize!r}.")
    num_graphs = z.shape[0] if z.ndim == 3 and len(neighbors.ptr) == z.shape[0] + 1 else 1
    z = z.reshape(-1, z.shape[-1])
    z = z if z.dtype == torch.float64 else z.float()
    if len(z) != neighbors.num_nodes:
        raise GraphError(
            f"build_graph needs the embeddings that neighbors were found in; got {len(z)} rows of z and neighbors of "
            f"{neighbors.num_nodes} nodes."
        )
    weight = kernel(_squared_distance(z, neighbors, remeasure=remeasure), neighbors) * neighbors.is_neighbor
    is_mutual = symmetrize == "mutual"
    if coalesce and 0 < len(z) ** 2 <= MOST_CELLS * num_graphs:
        edge_index, there, back = _list_few_edges(neighbors, num_graphs, is_mutual=is_mutual)
    else:
        edge_index, there, back = _list_edges(neighbors, is_mutual=is_mutual, coalesce=coalesce)
    # One more place holds the zero of an edge that was not found from this end.
    weight = torch.cat([weight.flatten(), weight.new_zeros(1)])
    there, back = weight.index_select(0, there), weight.index_select(0, back)
    if symmetrize == "mean":
        weight = (there + back) / 2
    else:
        weight = torch.maximum(there, back) if symmetrize == "max" else torch.minimum(there, back)
    return Graph(edge_index=edge_index, edge_weight=weight, ptr=neighbors.ptr, num_nodes=len(z), is_symmetric=True)


def _list_few_edges(neighbors: Neighbors, num_graphs: int, *, is_mutual: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Do what `_list_edges` does, with `coalesce`, by a table of all pairs in each of b equal graphs."""
    n, k = neighbors.index.shape
    size, nowhere = n // num_graphs, n * k
    node = torch.arange(n, device=neighbors.index.device)
    start = (node // size * size).unsqueeze(1)
    table = node.new_full((n, size), nowhere)
    every = torch.arange(nowhere, device=node.device).view(n, k)
    table.scatter_(1, torch.where(neighbors.is_neighbor, neighbors.index - start, node.unsqueeze(1) - start), every)
    slot = table.flatten()
    table = table.view(num_graphs, size, size)
    table.diagonal(dim1=1, dim2=2).fill_(nowhere)  # where slots without neighbour went
    is_found = table != nowhere
    is_edge = is_found & is_found.mT if is_mutual else is_found | is_found.mT
    graph, row, column = is_edge.nonzero(as_tuple=True)  # sync: the number of edges
    first = graph * size
    row, column = row + first, column + first
    there, back = row * size + column - first, column * size + row - first
    return torch.stack([row, column]), slot.index_select(0, there), slot.index_select(0, back)


def _list_edges(neighbors: Neighbors, *, is_mutual: bool, coalesce: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return `edge_index` `(2, e)`, and for every edge the slot where its row found it and where its column did.

    Slots count through `neighbors.index`; n k stands for none. What was found, and the same with ends exchanged, are
    two sorted lists: looking up the second in the first says at once which edges are mutual and where the others go.
    """
    n, k = neighbors.index.shape
    nowhere = n * k
    node = torch.arange(n, device=neighbors.index.device)[:, None]
    # A slot without neighbour becomes a loop, which is its own reverse.
    column, slot = torch.where(neighbors.is_neighbor, neighbors.index, node).sort(dim=1)
    row, slot = node.expand(n, k).flatten(), (slot + node * k).flatten()
    key = (column + node * n).flatten()
    column = column.flatten()
    # Stable, so what was found by one column stands in the order of rows. int32 halves the work of a radix sort.
    reverse = torch.argsort(column.int(), stable=True)
    # What follows is `index_select` where it could be `x[index]`: on a CPU that is 4 times slower.
    again_row, again_column = column.index_select(0, reverse), row.index_select(0, reverse)
    again_key = again_row * n + again_column
    place = torch.searchsorted(key, again_key)
    twin = place.clamp(max=nowhere - 1)
    is_found = key.index_select(0, twin) == again_key
    back = torch.empty_like(slot).scatter_(0, reverse, torch.where(is_found, slot.index_select(0, twin), nowhere))
    del key, again_key, twin
    if is_mutual:
        edge_index, is_edge = torch.stack([row, column]), (back != nowhere) & (row != column)
        there = slot
    else:
        again_back = slot.index_select(0, reverse)
        if coalesce:
            alone = (~is_found).nonzero().flatten()  # sync: the number of edges found from one end only
            place, again_row, again_column, again_back = (
                x.index_select(0, alone) for x in (place, again_row, again_column, again_back)
            )
        else:
            # What is listed already becomes a loop without weight.
            again_column = torch.where(is_found, again_row, again_column)
            again_back = torch.where(is_found, nowhere, again_back)
        del reverse, is_found
        # Merge: a reverse stands behind `place` found edges and all reverses before it.
        is_again = torch.zeros(nowhere + len(place), dtype=torch.bool, device=row.device)
        is_again[place + torch.arange(len(place), device=row.device)] = True
        rank = is_again.cumsum(0)
        source = torch.where(is_again, rank + (nowhere - 1), torch.arange(len(rank), device=row.device) - rank)
        del rank, place, is_again
        edge_index = torch.stack(
            [torch.cat(x).index_select(0, source) for x in ((row, again_row), (column, again_column))]
        )
        back = torch.cat([back, again_back]).index_select(0, source)
        there = torch.cat([slot, torch.full_like(again_back, nowhere)]).index_select(0, source)
        is_edge = edge_index[0] != edge_index[1]
    if coalesce and not bool(is_edge.all()):  # sync: slots of small graphs that hold no neighbour
        edge_index, there, back = edge_index[:, is_edge], there[is_edge], back[is_edge]
    return edge_index, there, back


def _squared_distance(z: Tensor, neighbors: Neighbors, *, remeasure: bool) -> Tensor:
    """Return what the kernel sees `(n, k)`: with gradient from z if it needs one, else from the search."""
    is_neighbor = neighbors.is_neighbor
    needs_grad = needs_derivative(z)
    known = None
    if not (needs_grad and remeasure):
        distance = neighbors.distance.to(z.dtype)
        known = torch.where(is_neighbor, 2 * distance if neighbors.metric == "cosine" else distance.square(), 0)
        if not needs_grad:
            return known
    index = torch.where(is_neighbor, neighbors.index, torch.arange(len(z), device=z.device)[:, None])
    if neighbors.metric != "cosine":
        return squared_distance(z, index, known)
    z, is_zero = scale_to_unit(z)
    squared = squared_distance(z, index, known)
    # A vector without direction is at right angles to all others, as in the search.
    return torch.where((is_zero[:, None] | is_zero[index]) & is_neighbor, 2, squared)
