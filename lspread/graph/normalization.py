"""Degree normalization of edge weights."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lspread.errors import GraphError
from lspread.graph.graph import Graph

__all__ = ["degree", "normalize_graph"]


def degree(graph: Graph) -> Tensor:
    """Return the sum of edge weights at every node `(n,)`; differentiable in `edge_weight`."""
    return graph.edge_weight.new_zeros(graph.num_nodes).index_add(0, graph.edge_index[0], graph.edge_weight)


def normalize_graph(graph: Graph, *, method: Literal["symmetric", "random_walk"] = "symmetric") -> Graph:
    """Scale edge weights by degrees: S = D^-1/2 W D^-1/2, or D^-1 W.

    Args:
        graph: Symmetric, not yet normalized; e edges, weights >= 0.
        method: "symmetric", or "random_walk" for rows that sum to one (its operator is not symmetric).

    Returns:
        The same edges with `normalization=method`; eigenvalues lie in [-1, 1]. Nodes of degree zero keep a zero row.
        Differentiable in `edge_weight`; same device and dtype; O(e).

    Raises:
        GraphError: `graph` is not symmetric or is already normalized.

    References:
        Zhou et al., "Learning with Local and Global Consistency", NIPS 2003, section 2, step 2.
    """
    if not graph.is_symmetric or graph.normalization != "none":
        raise GraphError(
            f"normalize_graph needs a symmetric graph that is not normalized yet; got {graph.num_nodes} nodes, "
            f"{graph.num_edges} edges, is_symmetric={graph.is_symmetric}, normalization={graph.normalization!r}. "
            "Build it with build_graph(..., symmetrize='mean')."
        )
    if method not in ("symmetric", "random_walk"):
        raise GraphError(f"method must be 'symmetric' or 'random_walk'; got {method!r}.")
    row, column = graph.edge_index
    total = degree(graph)
    has_edges = total > 0
    # The inner `where` keeps the gradient of the branch that is not taken finite.
    safe = torch.where(has_edges, total, torch.ones_like(total))
    if method == "random_walk":
        weight = graph.edge_weight / safe.index_select(0, row)
        return replace(graph, edge_weight=weight, is_symmetric=False, normalization=method)
    scale = torch.where(has_edges, safe.rsqrt(), torch.zeros_like(safe))
    # `index_select`, because the backward pass of `scale[row]` sorts.
    # The scales are multiplied first, so that both directions of an edge are rounded alike.
    weight = graph.edge_weight * (scale.index_select(0, row) * scale.index_select(0, column))
    return replace(graph, edge_weight=weight, normalization=method)
