"""Dense factorization, for small graphs and as a second opinion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lspread.errors import ConfigError
from lspread.solve.operator import LinearOperator
from lspread.solve.solution import Solution
from lspread.solve.solvers import Solver, certify, furthest, tolerance, unit_factors, unit_scale

__all__ = ["Direct", "largest_graph"]


@dataclass(frozen=True)
class Direct:
    """Dense LU (Cholesky where A is symmetric positive definite), one block per graph, all in one batch.

    The Cholesky factor of a differentiable solve is kept and used again by its backward pass.

    Attributes:
        rtol: Residual that counts as converged, relative to |b|; None is 1e-5 in float32 and 1e-12 in float64.
        max_nodes: Largest graph it accepts; memory grows as graphs x nodes^2, all padded to the largest.
    """

    rtol: float | None = None
    max_nodes: int = 8192

    def __post_init__(self) -> None:
        if not (self.rtol is None or self.rtol >= 0) or self.max_nodes < 1:
            raise ConfigError(
                f"Direct needs rtol >= 0 (or None) and max_nodes >= 1; got rtol={self.rtol}, "
                f"max_nodes={self.max_nodes}."
            )

    def prepare(self, operator: LinearOperator) -> Solver:
        """Return a solver that holds the factor of `operator`, where that serves the transposed operator too."""
        return self._factorize(operator) if operator.is_spd else self

    def solve(self, operator: LinearOperator, rhs: Tensor, initial: Tensor | None = None) -> Solution:
        """Return the solution of A x = b; `initial` is not needed.

        Raises:
            ConfigError: A graph has more than `max_nodes` nodes.
        """
        return self._factorize(operator).solve(operator, rhs, initial)

    @torch.no_grad()
    def _factorize(self, operator: LinearOperator) -> _Factor:
        size = largest_graph(operator)
        if size > self.max_nodes:
            raise ConfigError(
                f"Direct is for graphs of at most max_nodes={self.max_nodes} nodes; got one of {size}. "
                "Use ConjugateGradient(), or raise max_nodes if memory allows."
            )
        block = operator.blocks(size)
        if operator.is_spd:
            factor, info = torch.linalg.cholesky_ex(block)
            return _Factor(factor, None, info != 0, self.rtol)
        factor, pivots, info = torch.linalg.lu_factor_ex(block)
        return _Factor(factor, pivots, info != 0, self.rtol)


def largest_graph(operator: LinearOperator) -> int:
    """Return the number of nodes of the largest graph."""
    # sync: it shapes dense blocks; one graph needs no asking
    return operator.num_nodes if operator.num_graphs == 1 else int(operator.ptr.diff().max())


@dataclass(frozen=True, eq=False)
class _Factor:
    """The blocks of an operator, factorized.

    Attributes:
        factor: Cholesky or LU factors `(b, size, size)`.
        pivots: Of LU `(b, size)`.
        has_failed: Where there is no factorization `(b,)` bool.
        rtol: As in `Direct`.
    """

    factor: Tensor
    pivots: Tensor | None
    has_failed: Tensor
    rtol: float | None

    @torch.no_grad()
    def solve(self, operator: LinearOperator, rhs: Tensor, initial: Tensor | None = None) -> Solution:
        """Return the solution of A x = b for the operator that was factorized."""
        num_graphs, size, _ = self.factor.shape
        scale = unit_scale(operator, rhs)
        rhs = rhs.contiguous() / operator.broadcast(scale)
        is_full = num_graphs * size == len(rhs)
        if is_full:
            right = rhs.view(num_graphs, size, -1)
        else:
            right = rhs.new_zeros(num_graphs, size, rhs.shape[1])
            right[operator.graph_of_node, operator.place_of_node] = rhs
        if self.pivots is None:
            solved = torch.cholesky_solve(right, self.factor)
        else:
            solved = torch.linalg.lu_solve(self.factor, self.pivots, right)
        # A failed factorization leaves nonsense behind; NaN says so and the status follows.
        solved = torch.where(self.has_failed[:, None, None], torch.nan, solved)
        value = solved.reshape(rhs.shape) if is_full else solved[operator.graph_of_node, operator.place_of_node]
        factors = unit_factors(operator)
        goals = [tolerance(operator, side, self.rtol, 0.0) for side in (rhs, *(rhs * factor for factor in factors))]
        r = operator.residual(rhs, value)
        residual, limit = furthest(operator, r, value, factors, goals, self.rtol)
        return certify(
            operator,
            rhs,
            value,
            limit,
            scale=scale,
            num_steps=1,
            residual=residual,
            error=operator.norm(r),
            has_broken_down=self.has_failed.unsqueeze(1).expand_as(scale),
        )
