"""The linear operators of label spreading and label propagation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lspread.graph import EdgeLayout, Graph, edge_matmul
from lspread.solve import LinearOperator

__all__ = ["PropagationOperator", "SpreadOperator", "layout_of", "sum_component"]


def layout_of(graph: Graph) -> EdgeLayout:
    """Return the graph's edges laid out for products."""
    return EdgeLayout(graph.edge_index[0], graph.edge_index[1], graph.num_nodes)


def sum_component(x: Tensor, component: Tensor) -> Tensor:
    """Return for every node the sum of `x` `(n, ...)` over its component, numbered as `connected_components` does."""
    return torch.zeros_like(x).index_add(0, component, x)[component]


@dataclass(eq=False)
class SpreadOperator(LinearOperator):
    """A = I - alpha S of a normalized graph S.

    For symmetric S the eigenvalues of A lie in [1 - alpha, 1 + alpha], so A is positive definite for 0 <= alpha < 1.

    Attributes:
        layout: Places of the entries of S.
        weight: Entries `(e,)`.
        alpha: Number or 0-dimensional tensor in [0, 1).
        ptr: Boundaries of the graphs `(b + 1,)`.
        is_spd: S is symmetric.
        is_transposed: The operator is I - alpha S^T.
    """

    layout: EdgeLayout
    weight: Tensor
    alpha: float | Tensor
    ptr: Tensor
    is_spd: bool
    is_transposed: bool = False
    num_nodes: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_nodes = self.layout.num_nodes

    @classmethod
    def from_graph(cls, graph: Graph, alpha: float | Tensor) -> SpreadOperator:
        """Make the operator of a normalized graph."""
        return cls(layout_of(graph), graph.edge_weight, alpha, graph.ptr, graph.is_symmetric)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.weight.dtype

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the weights and, where it is a tensor, alpha."""
        return (self.weight, self.alpha) if isinstance(self.alpha, Tensor) else (self.weight,)

    def replace(self, *tensors: Tensor) -> SpreadOperator:
        """Return the operator with other weights and, where it is a tensor, another alpha."""
        weight, *rest = tensors
        alpha = rest[0] if rest else self.alpha
        return SpreadOperator(self.layout, weight, alpha, self.ptr, self.is_spd, self.is_transposed)

    def matmul(self, x: Tensor) -> Tensor:
        """Return x - alpha S x for x `(n, c)`."""
        product = edge_matmul(self.layout, self.weight, x, transpose=self.is_transposed)
        # One pass over the scores instead of two: they are as large as all that the product reads.
        if isinstance(self.alpha, Tensor):
            return torch.addcmul(x, self.alpha, product, value=-1)
        return torch.sub(x, product, alpha=self.alpha)

    def diagonal(self) -> Tensor:
        """Return the diagonal `(n,)`; self-loops count."""
        is_loop = self.layout.row == self.layout.column
        loops = self.weight.new_zeros(self.num_nodes).index_add(0, self.layout.row, self.weight * is_loop)
        return 1 - self.alpha * loops

    def transpose(self) -> SpreadOperator:
        """Return I - alpha S^T, which is this very operator when S is symmetric."""
        if self.is_spd:
            return self
        return SpreadOperator(self.layout, self.weight, self.alpha, self.ptr, self.is_spd, not self.is_transposed)

    def eigenvalue_bound(self) -> Tensor | float:
        """Return 1 - alpha, or 0 (none known) when S is not symmetric."""
        return 1 - self.alpha if self.is_spd else 0.0

    def spectrum(self) -> tuple[Tensor | float, Tensor | float]:
        """Return 1 - alpha and 1 + alpha, or (0, inf) (none known) when S is not symmetric."""
        return (1 - self.alpha, 1 + self.alpha) if self.is_spd else (0.0, math.inf)

    def blocks(self, size: int) -> Tensor:
        """Return A dense, one block per graph `(b, size, size)`, straight from the entries."""
        # Where the row of each node begins, less the number of the first node of its graph.
        start = (self.graph_of_node * size + self.place_of_node) * size - self.ptr[:-1][self.graph_of_node]
        out = self.weight.new_zeros(self.num_graphs * size * size)
        out = out.index_add_(0, start[self.layout.row] + self.layout.column, self.weight)
        out = out.view(self.num_graphs, size, size).mul_(-self.alpha)
        out.diagonal(dim1=1, dim2=2).add_(1)
        return out.mT if self.is_transposed else out


@dataclass(eq=False)
class PropagationOperator(LinearOperator):
    """A = D - W + ridge on the free nodes, the identity on nodes that are held or have no edges.

    Positive definite when every component has a held node or ridge > 0. A component without one gets a zero right-hand
    side, for which conjugate gradient returns zero.

    Attributes:
        layout: Places of the entries of W.
        weight: Entries `(e,)`.
        degree: Row sums of W `(n,)`, carrying their own gradient to the weights.
        is_free: Nodes whose score is solved for `(n,)` bool.
        ridge: Number or 0-dimensional tensor >= 0 added to the diagonal.
        ptr: Boundaries of the graphs `(b + 1,)`.
    """

    layout: EdgeLayout
    weight: Tensor
    degree: Tensor
    is_free: Tensor
    ridge: float | Tensor
    ptr: Tensor
    is_spd: bool = True
    num_nodes: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_nodes = self.layout.num_nodes

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.weight.dtype

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the weights, the degrees and, where it is a tensor, the ridge."""
        return (self.weight, self.degree, *([self.ridge] if isinstance(self.ridge, Tensor) else []))

    def replace(self, *tensors: Tensor) -> PropagationOperator:
        """Return the operator with other weights, degrees and, where it is a tensor, another ridge."""
        weight, degree, *rest = tensors
        ridge = rest[0] if rest else self.ridge
        return PropagationOperator(self.layout, weight, degree, self.is_free, ridge, self.ptr)

    def matmul(self, x: Tensor) -> Tensor:
        """Return A x for x `(n, c)`; rows of nodes that are held stay as they are."""
        free = self.is_free[:, None]
        inner = torch.where(free, x, 0)
        product = (self.degree[:, None] + self.ridge) * inner - edge_matmul(self.layout, self.weight, inner)
        return torch.where(free, product, x)

    def diagonal(self) -> Tensor:
        """Return the diagonal `(n,)`; self-loops count."""
        is_loop = self.layout.row == self.layout.column
        loops = self.weight.new_zeros(self.num_nodes).index_add(0, self.layout.row, self.weight * is_loop)
        return torch.where(self.is_free, self.degree - loops + self.ridge, torch.ones_like(self.degree))

    def transpose(self) -> PropagationOperator:
        """Return this very operator: it is symmetric."""
        return self

    def eigenvalue_bound(self) -> Tensor | float:
        """Return the ridge, or 1 (of the held nodes) where that is smaller."""
        return self.ridge.clamp(max=1) if isinstance(self.ridge, Tensor) else min(float(self.ridge), 1.0)

    def spectrum(self) -> tuple[Tensor | float, Tensor | float]:
        """Return `eigenvalue_bound` and Gershgorin's bound 2 max(D) + ridge, or 1 (of the held nodes) if larger."""
        return self.eigenvalue_bound(), (2 * self.degree.amax() + self.ridge).clamp(min=1)
