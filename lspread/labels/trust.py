"""Label spreading where every node has an alpha of its own: how far its label is trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lspread.graph import Graph, edge_matmul
from lspread.labels.operators import SpreadOperator, layout_of
from lspread.solve import LinearOperator, Solution, Solver

__all__ = ["Symmetrized", "TrustOperator", "trust_operator"]


@dataclass(eq=False)
class TrustOperator(SpreadOperator):
    """B = I - diag(alpha) S for alpha `(n,)`: not symmetric, its entries `weight` are scaled rows of S.

    Attributes:
        entry: Entries of S `(e,)`, without gradient, for `Symmetrized`.
        trust: alpha `(n,)`, without gradient.
    """

    entry: Tensor = field(kw_only=True)
    trust: Tensor = field(kw_only=True)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the entries of B, those of S, and alpha."""
        return self.weight, self.entry, self.trust

    def replace(self, *tensors: Tensor) -> TrustOperator:
        """Return the operator made of other `tensors()`."""
        weight, entry, trust = tensors
        return replace(self, weight=weight, entry=entry, trust=trust)

    def pull_back(self, x: Tensor, grad: Tensor, needs: Sequence[bool]) -> tuple[Tensor, ...]:
        """Return the gradient of <grad, B x> to the entries of B."""
        return super().pull_back(x, grad, needs[:1])

    def transpose(self) -> TrustOperator:
        """Return I - S^T diag(alpha)."""
        return replace(self, is_transposed=not self.is_transposed)


def trust_operator(graph: Graph, alpha: Tensor) -> TrustOperator:
    """Return B = I - diag(alpha) S for alpha `(n,)`."""
    weight = alpha[graph.edge_index[0]] * graph.edge_weight
    return TrustOperator(
        layout_of(graph),
        weight,
        1.0,
        graph.ptr,
        is_spd=False,
        entry=graph.edge_weight.detach(),
        trust=alpha.detach(),
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
    """

    solver: Solver

    @torch.no_grad()
    def solve(self, operator: LinearOperator, rhs: Tensor, initial: Tensor | None = None) -> Solution:
        """Return the solution of B x = b, or of B^T x = b where `operator` is the transposed one."""
        assert isinstance(operator, TrustOperator)
        layout, weight, alpha = operator.layout, operator.entry, operator.trust
        root, largest = alpha.sqrt(), alpha.max()
        # As I - max(alpha) S' with S' = R S R / max(alpha), it is an operator whose spectrum every solver knows.
        scaled = weight * root[layout.row] * root[layout.column]
        scaled = scaled / torch.where(largest > 0, largest, torch.ones_like(largest))
        symmetric = SpreadOperator(layout, scaled, largest, operator.ptr, is_spd=True)
        column = root[:, None]
        if operator.is_transposed:
            inner = self.solver.solve(symmetric, column * rhs)
            value = rhs + edge_matmul(layout, weight, column * inner.value)
        else:
            if initial is not None:
                initial = (initial - rhs) / torch.where(column > 0, column, torch.inf)
            inner = self.solver.solve(symmetric, column * edge_matmul(layout, weight, rhs), initial)
            value = rhs + column * inner.value
        return replace(inner, value=value, error_bound=inner.error_bound * root.max())
