"""The solver that fits the size of the graphs."""

from dataclasses import dataclass, field

from torch import Tensor

from lspread.errors import ConfigError
from lspread.solve.conjugate_gradient import ConjugateGradient
from lspread.solve.direct import Direct, largest_graph
from lspread.solve.fixed_point import FixedPoint
from lspread.solve.operator import LinearOperator
from lspread.solve.solution import Solution
from lspread.solve.solvers import PreparingSolver, Solver

__all__ = ["AutoSolver"]


@dataclass(frozen=True)
class AutoSolver:
    """Direct for small graphs, an iterative method for the others.

    The rule: `direct` where A is known to be regular, no graph has more than `max_direct_nodes` nodes, and the dense
    blocks (graphs x largest^2) have at most `max_direct_entries` entries; else `iterative` where A is symmetric
    positive definite, else `fixed_point`. A batch on a GPU whose graphs are small on average is asked once for its
    largest graph.

    Measured with c = 10, k = 15, alpha = 0.99, float32, forward and backward solve on two idle cores, Cholesky against
    conjugate gradient, in ms: n = 256: 3.4 and 16; 512: 5.9 and 26; 768: 6.0 and 18; 1024: 14 and 22; 1536: 22 and 34;
    2048: 68 and 40. Problems that take fewer steps move the crossing down.

    Attributes:
        direct: For small graphs.
        iterative: For large graphs.
        fixed_point: For large graphs that are not symmetric.
        max_direct_nodes: The crossing of the two.
        max_direct_entries: 2^24 are 64 MiB in float32, and the factor takes as much again.
    """

    direct: Solver = field(default_factory=Direct)
    iterative: Solver = field(default_factory=ConjugateGradient)
    fixed_point: Solver = field(default_factory=FixedPoint)
    max_direct_nodes: int = 1024
    max_direct_entries: int = 1 << 24

    def __post_init__(self) -> None:
        if self.max_direct_nodes < 0 or self.max_direct_entries < 0:
            raise ConfigError(
                "AutoSolver needs max_direct_nodes >= 0 and max_direct_entries >= 0; got "
                f"max_direct_nodes={self.max_direct_nodes}, max_direct_entries={self.max_direct_entries}."
            )

    def choose(self, operator: LinearOperator) -> Solver:
        """Return the solver that the rule picks for `operator`."""
        if self._is_small(operator):
            return self.direct
        return self.iterative if operator.is_spd else self.fixed_point

    def prepare(self, operator: LinearOperator) -> Solver:
        """Return the chosen solver, ready for `operator` and its backward pass."""
        solver = self.choose(operator)
        return solver.prepare(operator) if isinstance(solver, PreparingSolver) else solver

    def solve(self, operator: LinearOperator, rhs: Tensor, initial: Tensor | None = None) -> Solution:
        """Return the solution of A x = b."""
        return self.choose(operator).solve(operator, rhs, initial)

    def _is_small(self, operator: LinearOperator) -> bool:
        low = operator.eigenvalue_bound()
        # A matrix that is not symmetric has no such bound; I - alpha S of a random walk is regular all the same.
        if operator.is_spd and isinstance(low, float) and low <= 0:
            return False
        num_graphs = operator.num_graphs
        # The largest graph is not smaller than the average, which is known without asking.
        size = -(-operator.num_nodes // max(num_graphs, 1))
        if not self._fits(num_graphs, size):
            return False
        return self._fits(num_graphs, largest_graph(operator))

    def _fits(self, num_graphs: int, size: int) -> bool:
        return size <= self.max_direct_nodes and num_graphs * size**2 <= self.max_direct_entries
