"""Label spreading where every node has an alpha of its own: how far its label is trusted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lspread.graph import EdgeLayout, Graph, edge_matmul
from lspread.labels.operators import SpreadOperator, layout_of
from lspread.solve import LinearOperator, Solution, Solver

__all__ = ["Symmetrized", "trust_operator"]


def trust_operator(graph: Graph, alpha: Tensor) -> SpreadOperator:
    """Return B = I - diag(alpha) S for alpha `(n,)`: not symmetric, its rows are scaled entries of S."""
    return SpreadOperator(
        layout_of(graph), alpha[graph.edge_index[0]] * graph.edge_weight, 1.0, graph.ptr, is_spd=False
    )


@dataclass(frozen=True, eq=False)
class Symmetrized:
    """Solves with B = I - R^2 S or its transpose by one symmetric positive definite solve.

    With R = diag(alpha)^1/2 and C = I - R S R, whose eigenvalues lie in [1 - max alpha, 1 + max alpha],
        B x = b        is    x = b + R h,      C h = R S b,
        B^T x = b      is    x = b + S R h,    C h = R b,
    without a division, so alpha = 0 (a label that is held) is allowed. The map from h to x is at most max R long,
    hence |x - x*| <= max R |residual of C| / (1 - max alpha). Since only values pass through here and the gradient is
    that of B, no square root is ever differentiated.

    Attributes:
        solver: Solves with C; residual and tolerance of the answer are those of C.
        layout: Places of the entries of S.
        weight: Entries of symmetric S `(e,)`.
        alpha: `(n,)` in [0, 1).
    """

    solver: Solver
    layout: EdgeLayout
    weight: Tensor
    alpha: Tensor

    @torch.no_grad()
    def solve(self, operator: LinearOperator, rhs: Tensor, initial: Tensor | None = None) -> Solution:
        """Return the solution of B x = b, or of B^T x = b where `operator` is the transposed one."""
        assert isinstance(operator, SpreadOperator)
        root = self.alpha.sqrt()
        largest = self.alpha.max()
        # As I - max(alpha) S' with S' = R S R / max(alpha), it is an operator whose spectrum every solver knows.
        scaled = self.weight * root[self.layout.row] * root[self.layout.column]
        scaled = scaled / torch.where(largest > 0, largest, torch.ones_like(largest))
        symmetric = SpreadOperator(self.layout, scaled, largest, operator.ptr, is_spd=True)
        column = root[:, None]
        if operator.is_transposed:
            inner = self.solver.solve(symmetric, column * rhs)
            value = rhs + edge_matmul(self.layout, self.weight, column * inner.value)
        else:
            if initial is not None:
                initial = (initial - rhs) / torch.where(column > 0, column, torch.inf)
            inner = self.solver.solve(symmetric, column * edge_matmul(self.layout, self.weight, rhs), initial)
            value = rhs + column * inner.value
        return replace(inner, value=value, error_bound=inner.error_bound * root.max())
