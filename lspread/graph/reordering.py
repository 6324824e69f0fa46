"""An order of nodes in which neighbours stand close together, so that products find them in the cache."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lspread.graph.graph import Graph
from lspread.graph.product import EdgeLayout, compiled_for

__all__ = ["pays_to_reorder", "reorder_graph", "reorder_layout"]

CACHED_ELEMENTS = 1 << 18
"""A block of columns that half of a core's second-level cache of 2 MiB holds in float32."""
CELL = 256
"""Nodes of a cell, about."""
LEAST_CELLS = 20_000
"""Nodes from which cells are faster than a walk over all nodes."""


def pays_to_reorder(graph: Graph, num_columns: int) -> bool:
    """Say whether a solve with `num_columns` columns is faster in the order of `reorder_graph`.

    The rule is a CPU and more than 2^18 numbers a block. Measured with k = 15 and 10 columns: reordering costs as much
    as 13 products at 70,000 nodes and 8 at a million with numba (25 without), and halves every product or better; a
    solve takes 25 to 100. Below, blocks stay in the cache in any order. On a GPU the order would have to be found on
    the host.
    """
    return graph.device.type == "cpu" and num_columns > 1 and graph.num_nodes * num_columns > CACHED_ELEMENTS


def reorder_graph(graph: Graph) -> tuple[Graph, Tensor]:
    """Number the nodes anew so that neighbours stand close together, by the order that `reorder_layout` finds.

    Args:
        graph: e edges, n nodes; nodes of a batch stay inside their own graph.

    Returns:
        The graph with node i standing for node `permutation[i]` of the old one, and `permutation` `(n,)` int64:
        `x[permutation]` brings node values `(n, c)` along, `torch.empty_like(y).index_copy_(0, permutation, y)` brings
        results back. Edges are sorted by row only. Differentiable in `edge_weight`; O(e). The order is found on the
        host, which stops a GPU.
    """
    entry = torch.arange(graph.num_edges, dtype=torch.int32, device=graph.device)
    layout, order, permutation = reorder_layout(
        EdgeLayout(graph.edge_index[0], graph.edge_index[1], graph.num_nodes), entry, graph.ptr
    )
    reordered = replace(
        graph,
        edge_index=torch.stack([layout.row, layout.column]),
        edge_weight=graph.edge_weight.index_select(0, order),
    )
    return reordered, permutation


def reorder_layout(layout: EdgeLayout, value: Tensor, ptr: Tensor) -> tuple[EdgeLayout, Tensor, Tensor]:
    """Number nodes anew so that the entries of a row stand close together.

    Small graphs, and all where numba is not installed, take reverse Cuthill-McKee: breadth first from the rim. That
    walk follows one node after the other, each somewhere else in memory; with numba, graphs of more than 20,000 nodes
    are cut into cells grown from seeds, all at once, and only the cells are walked. Measured with k = 15 at 70,000 and
    a million nodes: 12 and 150 ms instead of 30 and 1,000, and a product takes the same time afterwards.

    Args:
        layout: Places of e entries; a pattern that is not symmetric will do, less well.
        value: What stands at each entry `(e,)`.
        ptr: Boundaries of the graphs `(b + 1,)`; nodes of a batch stay inside their own graph.

    Returns:
        The new layout; the values at their new places `(e,)`; `permutation` `(n,)` int64: node i was `permutation[i]`.

    References:
        Cuthill and McKee, "Reducing the Bandwidth of Sparse Symmetric Matrices", ACM National Conference 1969.
    """
    column, boundary = layout.bags
    column, boundary = column.cpu(), boundary.cpu()  # sync: the order is found on the host
    compiled = compiled_for(len(column), CELL) if len(boundary) > LEAST_CELLS else None
    permutation = _walk(column, boundary) if compiled is None else _walk_cells(column, boundary, compiled.grow_cells)
    if len(ptr) > 2:
        owner = torch.repeat_interleave(ptr.cpu().diff(), output_size=layout.num_nodes)
        permutation = permutation[torch.argsort(owner[permutation], stable=True)]
    size = boundary.diff().index_select(0, permutation)
    start = torch.cat([boundary[:1], size.cumsum(0, dtype=torch.int32)])
    rank = torch.empty_like(boundary[1:])
    rank[permutation] = torch.arange(len(rank), dtype=rank.dtype)
    device, value = value.device, value.detach().cpu()
    if compiled is not None:
        column, value = compiled.move_rows(boundary, column, value, start, rank)
    else:
        # Rows move as blocks: an entry's new place is its old one, shifted as its row was.
        shift = boundary[:-1].index_select(0, permutation) - start[:-1]
        order = torch.arange(len(column), dtype=torch.int32)
        order += torch.repeat_interleave(shift, size, output_size=len(column))
        column, value = rank.index_select(0, column.index_select(0, order)), value.index_select(0, order)
    return EdgeLayout.from_bags(column.to(device), start.to(device)), value.to(device), permutation.to(device)


def _walk(column: Tensor, boundary: Tensor) -> Tensor:
    """Return reverse Cuthill-McKee's order `(n,)` int64."""
    import numpy as np
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    n = len(boundary) - 1
    pattern = csr_matrix((np.ones(len(column), dtype=np.int8), column.numpy(), boundary.numpy()), shape=(n, n))
    # Rows and their reach are all that locality needs, so the other direction of a directed pattern is not asked for.
    return torch.from_numpy(reverse_cuthill_mckee(pattern, symmetric_mode=True).astype(np.int64))


def _walk_cells(column: Tensor, boundary: Tensor, grow_cells: Callable[[Tensor, Tensor, int], Tensor]) -> Tensor:
    """Return nodes cell by cell `(n,)` int64, cells in reverse Cuthill-McKee's order."""
    num_cells = len(boundary) // CELL
    cell = grow_cells(boundary, column, num_cells)
    cell[cell < 0] = num_cells  # far from every seed
    # One entry of every row, the middle one, says well enough which cells touch.
    size = boundary.diff()
    row = size.nonzero().flatten()
    other = column[(boundary[:-1] + size // 2)[row]]
    touch = torch.stack([cell[row], cell[other]])
    touch = torch.unique(torch.cat([touch, touch.flip(0)], 1).long().T @ torch.tensor([num_cells + 1, 1]))
    start = torch.searchsorted(touch, torch.arange(num_cells + 2) * (num_cells + 1))
    walked = _walk((touch % (num_cells + 1)).int(), start.int())
    rank = torch.empty_like(walked, dtype=torch.int32).scatter_(0, walked, torch.arange(len(walked), dtype=torch.int32))
    return torch.argsort(rank[cell], stable=True)
