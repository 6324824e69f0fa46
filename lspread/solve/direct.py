"""Dense factorization, for small graphs and as a second opinion."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lspread.errors import ConfigError
from lspread.solve.operator import LinearOperator
from lspread.solve.solution import Solution
from lspread.solve.solvers import certify, tolerance, unit_scale

__all__ = ["Direct"]


@dataclass(frozen=True)
class Direct:
    """Dense LU (Cholesky where A is symmetric positive definite), one block per graph.

    Attributes:
        rtol: Residual that counts as converged, relative to |b|; None is 1e-5 in float32 and 1e-12 in float64.
        max_nodes: Largest graph it accepts; memory grows as graphs x nodes^2.
    """

    rtol: float | None = None
    max_nodes: int = 8192

    def __post_init__(self) -> None:
        if not (self.rtol is None or self.rtol >= 0) or self.max_nodes < 1:
            raise ConfigError(
                f"Direct needs rtol >= 0 (or None) and max_nodes >= 1; got rtol={self.rtol}, "
                f"max_nodes={self.max_nodes}."
            )

    @torch.no_grad()
    def solve(self, operator: LinearOperator, rhs: Tensor, initial: Tensor | None = None) -> Solution:
        """Return the solution of A x = b; `initial` is not needed.

        Raises:
            ConfigError: A graph has more than `max_nodes` nodes.
        """
        ptr = operator.ptr
        num_graphs, num_nodes = operator.num_graphs, operator.num_nodes
        # sync: the largest graph shapes the blocks; one graph needs no asking
        size = num_nodes if num_graphs == 1 else int(ptr.diff().max())
        if size > self.max_nodes:
            raise ConfigError(
                f"Direct is for graphs of at most max_nodes={self.max_nodes} nodes; got one of {size}. "
                "Use ConjugateGradient(), or raise max_nodes if memory allows."
            )
        scale = unit_scale(operator, rhs)
        rhs = rhs / operator.broadcast(scale)
        graph = torch.repeat_interleave(ptr.diff(), output_size=num_nodes)
        place = torch.arange(num_nodes, device=ptr.device) - ptr[:-1][graph]
        # Graphs do not touch, so one product with the identities of all graphs stacked gives all blocks.
        unit = torch.zeros(num_nodes, size, dtype=rhs.dtype, device=rhs.device)
        unit[torch.arange(num_nodes, device=ptr.device), place] = 1
        block = torch.eye(size, dtype=rhs.dtype, device=rhs.device).repeat(num_graphs, 1, 1)
        block[graph, place] = operator.matmul(unit)
        right = rhs.new_zeros(num_graphs, size, rhs.shape[1])
        right[graph, place] = rhs
        if operator.is_spd:
            factor, info = torch.linalg.cholesky_ex(block)
            solved = torch.cholesky_solve(right, factor)
        else:
            solved, info = torch.linalg.solve_ex(block, right)
        value = solved[graph, place]
        has_broken_down = (info != 0).unsqueeze(1).expand(num_graphs, rhs.shape[1])
        # A failed factorization leaves nonsense behind; NaN says so and the status follows.
        value = torch.where((info != 0)[graph, None], torch.nan, value)
        goal = tolerance(operator, rhs, self.rtol, 0.0)
        return certify(operator, rhs, value, goal, scale=scale, num_steps=1, has_broken_down=has_broken_down)
