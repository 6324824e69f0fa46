"""Neighbour graphs: who is near whom, how strongly, and doors to other libraries' graphs."""

from typing import TYPE_CHECKING, Any

from lspread.graph.components import connected_components
from lspread.graph.construction import build_graph
from lspread.graph.graph import Graph
from lspread.graph.kernels import CosinePower, Gaussian, Kernel, SelfTuning, Uniform
from lspread.graph.neighbors import NO_NEIGHBOR, Neighbors, find_neighbors
from lspread.graph.normalization import degree, normalize_graph
from lspread.graph.product import EdgeLayout, combine_edges, compiled_for, edge_dot, edge_matmul
from lspread.graph.recall import Recall, recall_at_k
from lspread.graph.reordering import pays_to_reorder, reorder_graph, reorder_layout
from lspread.graph.whitening import Whitening, fit_whitening, whiten

if TYPE_CHECKING:
    from lspread.graph.pyg import KnnGraph

__all__ = [
    "NO_NEIGHBOR",
    "CosinePower",
    "EdgeLayout",
    "Gaussian",
    "Graph",
    "Kernel",
    "KnnGraph",
    "Neighbors",
    "Recall",
    "SelfTuning",
    "Uniform",
    "Whitening",
    "build_graph",
    "combine_edges",
    "compiled_for",
    "connected_components",
    "degree",
    "edge_dot",
    "edge_matmul",
    "find_neighbors",
    "fit_whitening",
    "normalize_graph",
    "pays_to_reorder",
    "recall_at_k",
    "reorder_graph",
    "reorder_layout",
    "whiten",
]


def __getattr__(name: str) -> Any:
    if name == "KnnGraph":  # loads PyG
        from lspread.graph.pyg import KnnGraph

        return KnnGraph
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
