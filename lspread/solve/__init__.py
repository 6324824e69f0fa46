"""Linear solves on graphs: operators, solvers, certified solutions, implicit gradients."""

from lspread.solve.auto import AutoSolver
from lspread.solve.chebyshev import Chebyshev
from lspread.solve.conjugate_gradient import ConjugateGradient
from lspread.solve.direct import Direct
from lspread.solve.fixed_point import FixedPoint
from lspread.solve.implicit import linear_solve
from lspread.solve.operator import LinearOperator
from lspread.solve.solution import Solution, Status, report_failure
from lspread.solve.solvers import PreparingSolver, Reordering, Solver

__all__ = [
    "AutoSolver",
    "Chebyshev",
    "ConjugateGradient",
    "Direct",
    "FixedPoint",
    "LinearOperator",
    "PreparingSolver",
    "Reordering",
    "Solution",
    "Solver",
    "Status",
    "linear_solve",
    "report_failure",
]
