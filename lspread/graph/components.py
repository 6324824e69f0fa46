"""Connected components: which nodes can reach each other."""

import torch
from torch import Tensor

from lspread.graph.graph import Graph

__all__ = ["connected_components"]


def connected_components(graph: Graph, *, look: bool | None = None) -> Tensor:
    """Return for every node the smallest node number of its component `(n,)` int64.

    In every round each component joins the smallest neighbouring one along edges of positive weight. All that have a
    neighbour join, so the number of unfinished ones at least halves, and log2 n rounds end the search without a look
    at the result.

    Args:
        graph: Symmetric in its edges, normalized or not; e edges.
        look: Drop finished edges and stop when none is left, which reads from the device; default: on the CPU only.

    Returns:
        Equal numbers for nodes of one component: node r stands for its component where the answer at r is r. No
        gradient, same device. O((e + n log n) log n) time at most, O(e + n) memory.

    References:
        Boruvka's step as in Chung and Condon, "Parallel Implementation of Boruvka's Minimum Spanning Tree Algorithm",
        IPPS 1996.
    """
    num_nodes = graph.num_nodes
    num_rounds = max(1, (num_nodes - 1).bit_length())
    look = graph.device.type == "cpu" and not torch.compiler.is_compiling() if look is None else look
    here, there = graph.edge_index
    # A slot without an edge joins a node with itself.
    there = torch.where(graph.edge_weight.detach() > 0, there, here)
    node = torch.arange(num_nodes, device=graph.device)
    root = node
    for _ in range(num_rounds):
        is_between = here != there
        if look:
            here, there = here[is_between], there[is_between]  # sync: on the CPU
            if not len(here):
                break
            other = there
        else:
            other = torch.where(is_between, there, num_nodes)
        parent = torch.full_like(node, num_nodes).scatter_reduce(0, here, other, "amin")
        parent = torch.where(parent == num_nodes, node, parent)
        # When all choose their smallest neighbour, the only circles are pairs that chose each other.
        parent = torch.where((parent[parent] == node) & (node < parent), node, parent)
        for _ in range(num_rounds):
            before, parent = parent, parent[parent]
            if look and torch.equal(before, parent):  # sync: on the CPU
                break
        root, here, there = parent[root], parent[here], parent[there]
    return node.scatter_reduce(0, root, node, "amin")[root]
