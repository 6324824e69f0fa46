"""What every solver shares: its call, its tolerance, its certificate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from lspread.errors import ConfigError
from lspread.solve.operator import LinearOperator
from lspread.solve.solution import Solution

__all__ = [
    "PreparingSolver",
    "Reordering",
    "Solver",
    "attainable",
    "certify",
    "check_options",
    "first_guess",
    "furthest",
    "in_column_blocks",
    "tolerance",
    "unit_factors",
    "unit_scale",
]

Solve: TypeAlias = Callable[..., Solution]
RTOL = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Relative residual asked for by default; float32 cannot go much lower when A is as ill-conditioned as alpha = 0.99."""
NUM_ROUNDINGS = 8
MOST_COLUMNS = 32
LEAST_SPLIT = 1 << 20
"""Numbers of a right-hand side from which `in_column_blocks` splits it."""
MAX_EXPONENT = 120
"""Largest power of two a scale may have; 2^120 and its reciprocal are normal numbers in float32."""


class Solver(Protocol):
    """Solves A x = b for all columns of b at once, without autograd."""

    def solve(self, operator: LinearOperator, rhs: Tensor, initial: Tensor | None = None) -> Solution:
        """Return the solution.

        Args:
            operator: A.
            rhs: b `(n, c)` of the operator's dtype and device.
            initial: First guess `(n, c)`; zero if left out.
        """
        ...


@runtime_checkable
class PreparingSolver(Solver, Protocol):
    """Does once what several solves with the same matrix share: the solve, its backward pass, their tangents."""

    def prepare(self, operator: LinearOperator) -> Solver:
        """Return a solver for this `operator` and, where it is symmetric, its transpose."""
        ...


@dataclass(frozen=True)
class Reordering:
    """Solves in the order of nodes that the operator's products like best; answers come back in the given order.

    The order is found once for a solve and its backward pass.

    Attributes:
        solver: Solves in that order.
    """

    solver: Solver

    def prepare(self, operator: LinearOperator) -> Solver:
        """Return the solver with a symmetric operator in its other order; a transpose is put into order on its own."""
        return self._put_in_order(operator) if operator.is_spd else self

    def solve(self, operator: LinearOperator, rhs: Tensor, initial: Tensor | None = None) -> Solution:
        """Return the solution of A x = b."""
        return self._put_in_order(operator).solve(operator, rhs, initial)

    def _put_in_order(self, operator: LinearOperator) -> Solver:
        found = operator.reordered()
        inner, permutation = (operator, None) if found is None else found
        solver = self.solver.prepare(inner) if isinstance(self.solver, PreparingSolver) else self.solver
        return solver if permutation is None else _Reordered(solver, inner, permutation)


@dataclass(frozen=True, eq=False)
class _Reordered:
    solver: Solver
    operator: LinearOperator
    permutation: Tensor

    @torch.no_grad()
    def solve(self, operator: LinearOperator, rhs: Tensor, initial: Tensor | None = None) -> Solution:
        """Return the solution for the operator that was prepared, or its transpose where that is `operator`."""
        order = self.permutation
        initial = None if initial is None else initial.index_select(0, order)
        found = self.solver.solve(self.operator, rhs.index_select(0, order), initial)
        return replace(found, value=torch.empty_like(found.value).index_copy_(0, order, found.value))


def unit_scale(operator: LinearOperator, *vectors: Tensor) -> Tensor:
    """Return the powers of two `(b, c)` that, as divisors, bring every column of every graph near one.

    A solver divides by them first, so that squares of tiny gradients do not vanish in float32, whatever stands beside
    them in the batch. Powers of two change no digit. Of several vectors `(n, c)`, as far above one as below.
    """
    largest = torch.stack([operator.largest(vector) for vector in vectors])
    exponent = torch.frexp(largest).exponent.sum(0).div(len(vectors), rounding_mode="floor")
    return torch.ldexp(torch.ones_like(largest[0]), exponent.clamp(-MAX_EXPONENT, MAX_EXPONENT))


def first_guess(operator: LinearOperator, rhs: Tensor, initial: Tensor | None, scale: Tensor) -> Tensor:
    """Return a new `(n, c)` to start from: zero, or `initial` divided by `scale`.

    Where a graph's whole column of b is zero, so is x, and no relative tolerance could ever be met from elsewhere.
    """
    if initial is None:
        return torch.zeros_like(rhs)
    return torch.where(operator.broadcast(operator.norm(rhs) == 0), 0, initial / operator.broadcast(scale))


def tolerance(operator: LinearOperator, rhs: Tensor, rtol: float | None, atol: float | Tensor) -> Tensor:
    """Return the residual norm to reach, per graph and class `(b, c)`: max(rtol |b|, atol)."""
    return (operator.norm(rhs) * (RTOL[rhs.dtype] if rtol is None else rtol)).clamp(min=atol)


def attainable(operator: LinearOperator, goal: Tensor, x: Tensor, rtol: float | None) -> Tensor:
    """Return the goal `(b, c)`, by default (`rtol=None`) no smaller than what rounding leaves of a residual at x.

    b - A x computed in floating point is off by a few eps |x|, and |x| may be |b| over the smallest eigenvalue.
    """
    if rtol is not None:
        return goal
    return torch.fmax(goal, NUM_ROUNDINGS * torch.finfo(x.dtype).eps * operator.norm(x))


def unit_factors(operator: LinearOperator) -> list[Tensor]:
    """Return the operator's `row_units` as a column `(n, 1)`; an empty list where it has none."""
    units = operator.row_units()
    return [] if units is None else [units.unsqueeze(1)]


def furthest(
    operator: LinearOperator,
    r: Tensor,
    product: Tensor,
    factors: Sequence[Tensor],
    goals: Sequence[Tensor],
    rtol: float | None,
) -> tuple[Tensor, Tensor]:
    """Return the norm of b - A x in the units in which it is furthest from its goal, and that goal, `(b, c)` each.

    Args:
        operator: A.
        r: b - A x `(n, c)`.
        product: As large as A x before its terms cancel `(n, c)`: rounding is relative to it.
        factors: Units beside those of b, `(n, 1)` each.
        goals: For r, then for r times each of the factors.
        rtol: See `attainable`.
    """
    residual, limit = operator.norm(r), attainable(operator, goals[0], product, rtol)
    for factor, goal in zip(factors, goals[1:], strict=True):
        each, each_limit = operator.norm(r * factor), attainable(operator, goal, product * factor, rtol)
        is_worse = each * limit > residual * each_limit
        residual, limit = torch.where(is_worse, each, residual), torch.where(is_worse, each_limit, limit)
    return residual, limit


def in_column_blocks(solve: Solve) -> Solve:
    """Let an iterative solver's method take long right-hand sides on a CPU a few columns at a time.

    Columns do not depend on each other, and few of them stay in the cache: with 70,000 nodes and 100 columns the
    products take half the time.
    """

    @wraps(solve)
    def solve_blocks(solver: Any, operator: LinearOperator, rhs: Tensor, initial: Tensor | None = None) -> Solution:
        width = rhs.shape[1]
        if rhs.device.type != "cpu" or rhs.numel() <= LEAST_SPLIT or width <= MOST_COLUMNS:
            return solve(solver, operator, rhs, initial)
        size = -(-width // -(-width // MOST_COLUMNS))  # blocks of about the same size
        blocks = rhs.split(size, 1)
        starts = [None] * len(blocks) if initial is None else initial.split(size, 1)
        parts = [solve(solver, operator, block, start) for block, start in zip(blocks, starts, strict=True)]
        joined = {
            name: torch.cat([getattr(part, name) for part in parts], 1)
            for name in ("value", "residual", "error_bound", "tolerance", "has_broken_down")
        }
        return Solution(**joined, num_steps=max(part.num_steps for part in parts))

    return solve_blocks


def certify(
    operator: LinearOperator,
    rhs: Tensor,
    value: Tensor,
    goal: Tensor,
    *,
    scale: Tensor,
    num_steps: int,
    residual: Tensor | None = None,
    error: Tensor | None = None,
    has_broken_down: Tensor | None = None,
) -> Solution:
    """Return `value` with its residual and its error bound, all multiplied by `scale` `(b, c)`.

    The residual's norm `(b, c)` is measured here, unless the solver has just measured b - A x of this very value, which
    is multiplied where it lies. A solver whose `residual` is a weighted one says in `error` how long the plain one is.
    """
    if residual is None:
        residual = operator.norm(operator.residual(rhs, value))
    error, smallest = residual if error is None else error, operator.eigenvalue_bound()
    if isinstance(smallest, Tensor):
        bound = torch.where(smallest > 0, error / smallest, torch.inf)
    else:
        bound = error / smallest if smallest > 0 else torch.full_like(error, torch.inf)
    if has_broken_down is None:
        has_broken_down = torch.zeros_like(residual, dtype=torch.bool)
    value.mul_(operator.broadcast(scale))
    return Solution(value, residual * scale, bound * scale, goal * scale, num_steps, has_broken_down)


def check_options(name: str, *, rtol: float | None, atol: float, max_steps: int, check_every: int) -> None:
    """Raise `ConfigError` for tolerances or step counts that no solve could use."""
    if not (rtol is None or rtol >= 0) or not atol >= 0 or max_steps < 1 or check_every < 0:
        raise ConfigError(
            f"{name} needs rtol >= 0 (or None), atol >= 0, max_steps >= 1 and check_every >= 0; got rtol={rtol}, "
            f"atol={atol}, max_steps={max_steps}, check_every={check_every}."
        )
