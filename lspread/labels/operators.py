"""The linear operators of label spreading and label propagation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lspread.graph import EdgeLayout, Graph, combine_edges, compiled_for, edge_dot, edge_matmul, reorder_layout
from lspread.solve import LinearOperator

__all__ = ["PropagationOperator", "SpreadOperator", "layout_of", "sum_component", "sum_loops"]


def layout_of(graph: Graph) -> EdgeLayout:
    """Return the graph's edges laid out for products."""
    return EdgeLayout(graph.edge_index[0], graph.edge_index[1], graph.num_nodes)


def sum_loops(layout: EdgeLayout, weight: Tensor) -> Tensor:
    """Return the weight of every node's self-loops `(n,)`."""
    return weight.new_zeros(layout.num_nodes).index_add(0, layout.row, weight * (layout.row == layout.column))


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

    def pull_back(self, x: Tensor, grad: Tensor, needs: Sequence[bool]) -> tuple[Tensor, ...]:
        """Return the gradients of <grad, x - alpha S x>: -alpha grad_i . x_j to S_ij, and -<grad, S x> to alpha."""
        found = []
        if needs[0]:
            ends = (x, grad) if self.is_transposed else (grad, x)
            found.append(-self.alpha * edge_dot(self.layout, *ends))
        if needs[1:] and needs[1]:
            product = edge_matmul(self.layout, self.weight, x, transpose=self.is_transposed)
            found.append(-(grad * product).sum())
        return tuple(found)

    def multiply(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return x - alpha S x without gradient, in `out` where that saves memory."""
        if (compiled := self._compiled_for(x)) is None:
            return super().multiply(x, out)
        return self._combine(compiled, x, out=out, own=1.0, others=-float(self.alpha))

    def multiply_inner(self, x: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return `multiply(x, out)` and its inner product with x `(b, c)`."""
        if (compiled := self._compiled_for(x)) is None:
            return super().multiply_inner(x, out)
        inner = torch.empty(1, x.shape[1], dtype=x.dtype)
        return self._combine(compiled, x, out=out, own=1.0, others=-float(self.alpha), inner=inner), inner

    def descend(self, x: Tensor, r: Tensor, p: Tensor, ap: Tensor, length: Tensor) -> Tensor:
        """Add length p to x and subtract length ap from r, in place, for length `(b, c)`; return <r, r> `(b, c)`."""
        compiled = self._compiled_for(x, r, p, ap)
        return super().descend(x, r, p, ap, length) if compiled is None else compiled.descend(x, r, p, ap, length)

    def residual(self, rhs: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return b - x + alpha S x without gradient, in `out` where that saves memory."""
        if (compiled := self._compiled_for(x, rhs)) is None:
            return super().residual(rhs, x, out)
        return self._combine(compiled, x, out=out, own=-1.0, others=float(self.alpha), rhs=rhs, of_rhs=1.0)

    def relax(self, x: Tensor, previous: Tensor, rhs: Tensor, step: float | Tensor, factor: float | Tensor) -> Tensor:
        """Return previous + factor (x + step (b - A x) - previous) in the memory of `previous`."""
        if (compiled := self._compiled_for(x, previous, rhs)) is None:
            return super().relax(x, previous, rhs, step, factor)
        step, factor, alpha = float(step), float(factor), float(self.alpha)
        share = factor * step
        factors = {"own": factor - share, "others": share * alpha, "of_rhs": share, "of_out": 1 - factor}
        return self._combine(compiled, x, out=previous, rhs=rhs, **factors)

    def inner(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the inner products of columns, one per graph and class: `(n, c), (n, c) -> (b, c)`."""
        compiled = self._compiled_for(x, y)
        return super().inner(x, y) if compiled is None else compiled.inner(x, y)

    def add_scaled(self, x: Tensor, coef: Tensor, y: Tensor, *, out: Tensor) -> None:
        """Write x + coef y to `out`, for coef `(b, c)` and x and y `(n, c)`; `out` may be one of them."""
        if (compiled := self._compiled_for(x, y, out)) is None:
            super().add_scaled(x, coef, y, out=out)
        else:
            compiled.add_scaled(x, coef, y, out)

    def _compiled_for(self, *tensors: Tensor) -> ModuleType | None:
        """Return the kernels for everything that a step of a solver does, or None.

        All or nothing: threads of torch wait for more work busily, and would take the cores from those of a kernel.
        """
        if self.num_graphs > 1 or not all(t.is_contiguous() for t in tensors):
            return None
        return compiled_for(len(self.weight), tensors[0].shape[1], self.weight, *tensors)

    def _combine(self, compiled: ModuleType, x: Tensor, **terms: Any) -> Tensor:
        return combine_edges(compiled, self.layout, self.weight, x, transpose=self.is_transposed, **terms)

    def reordered(self) -> tuple[SpreadOperator, Tensor]:
        """Return the operator in the order of `reorder_layout`, and its permutation."""
        layout, weight, permutation = reorder_layout(self.layout, self.weight, self.ptr)
        return SpreadOperator(layout, weight, self.alpha, self.ptr, self.is_spd, self.is_transposed), permutation

    def diagonal(self) -> Tensor:
        """Return the diagonal `(n,)`; self-loops count."""
        return 1 - self.alpha * sum_loops(self.layout, self.weight)

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
        if self.num_graphs == 1:
            place = self.layout.row * size + self.layout.column
        else:
            # Where the row of each node begins, less the number of the first node of its graph.
            start = (self.graph_of_node * size + self.place_of_node) * size - self.ptr[:-1][self.graph_of_node]
            place = start[self.layout.row] + self.layout.column
        out = self.weight.new_zeros(self.num_graphs * size * size).index_add_(0, place, self.weight)
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

    def reordered(self) -> tuple[PropagationOperator, Tensor]:
        """Return the operator in the order of `reorder_layout`, and its permutation."""
        layout, weight, permutation = reorder_layout(self.layout, self.weight, self.ptr)
        degree, is_free = (t.detach().index_select(0, permutation) for t in (self.degree, self.is_free))
        return PropagationOperator(layout, weight, degree, is_free, self.ridge, self.ptr), permutation

    def diagonal(self) -> Tensor:
        """Return the diagonal `(n,)`; self-loops count."""
        own = self.degree - sum_loops(self.layout, self.weight) + self.ridge
        return torch.where(self.is_free, own, torch.ones_like(own))

    def transpose(self) -> PropagationOperator:
        """Return this very operator: it is symmetric."""
        return self

    def eigenvalue_bound(self) -> Tensor | float:
        """Return the ridge, or 1 (of the held nodes) where that is smaller."""
        return self.ridge.clamp(max=1) if isinstance(self.ridge, Tensor) else min(float(self.ridge), 1.0)

    def spectrum(self) -> tuple[Tensor | float, Tensor | float]:
        """Return `eigenvalue_bound` and Gershgorin's bound 2 max(D) + ridge, or 1 (of the held nodes) if larger."""
        return self.eigenvalue_bound(), (2 * self.degree.amax() + self.ridge).clamp(min=1)
