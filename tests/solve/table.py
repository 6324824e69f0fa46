"""The one table of solvers: whoever is listed here meets every test of this folder."""

from lspread.solve import AutoSolver, Chebyshev, ConjugateGradient, Direct, FixedPoint


def _direct(options):
    return Direct(**{key: value for key, value in options.items() if key == "rtol"})


# Name: how to make it with other options.
SOLVERS = {
    "conjugate_gradient": lambda **options: ConjugateGradient(**options),
    "jacobi": lambda **options: ConjugateGradient(preconditioner="jacobi", **options),
    "chebyshev": lambda **options: Chebyshev(**options),
    "fixed_point": lambda **options: FixedPoint(**options),
    "direct": lambda **options: _direct(options),
    "auto_small": lambda **options: AutoSolver(direct=_direct(options)),
    "auto_large": lambda **options: AutoSolver(
        iterative=ConjugateGradient(**options), fixed_point=FixedPoint(**options), max_direct_nodes=0
    ),
}
DIRECT = ["direct", "auto_small"]
ITERATIVE = [name for name in SOLVERS if name not in DIRECT]
NEEDS_SPD = ["conjugate_gradient", "jacobi", "chebyshev"]
GENERAL = [name for name in SOLVERS if name not in NEEDS_SPD]
