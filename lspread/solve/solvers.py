"""What every solver shares: its call, its tolerance, its certificate."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lspread.errors import ConfigError
from lspread.solve.operator import LinearOperator
from lspread.solve.solution import Solution

__all__ = [
    "PreparingSolver",
    "Solver",
    "attainable",
    "certify",
    "check_options",
    "first_guess",
    "residual_of",
    "tolerance",
    "unit_scale",
]

RTOL = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Relative residual asked for by default; float32 cannot go much lower when A is as ill-conditioned as alpha = 0.99."""
NUM_ROUNDINGS = 8
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


def unit_scale(operator: LinearOperator, rhs: Tensor) -> Tensor:
    """Return the powers of two `(b, c)` that, as divisors, bring every column of every graph near one.

    A solver divides by them first, so that squares of tiny gradients do not vanish in float32, whatever stands beside
    them in the batch. Powers of two change no digit.
    """
    size = operator.inner(rhs.abs(), torch.ones_like(rhs))
    exponent = torch.frexp(size).exponent.clamp(-MAX_EXPONENT, MAX_EXPONENT)
    return torch.ldexp(torch.ones_like(size), exponent)


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


def residual_of(operator: LinearOperator, rhs: Tensor, x: Tensor) -> Tensor:
    """Return b - A x `(n, c)`."""
    product = operator.matmul(x)
    return torch.sub(rhs, product, out=product)


def certify(
    operator: LinearOperator,
    rhs: Tensor,
    value: Tensor,
    goal: Tensor,
    *,
    scale: Tensor,
    num_steps: int,
    residual: Tensor | None = None,
    has_broken_down: Tensor | None = None,
) -> Solution:
    """Return `value` with its residual and its error bound, all multiplied by `scale` `(b, c)`.

    The residual's norm `(b, c)` is measured here, unless the solver has just measured b - A x of this very value.
    """
    if residual is None:
        residual = operator.norm(residual_of(operator, rhs, value))
    smallest = operator.eigenvalue_bound()
    bound = (
        torch.full_like(residual, torch.inf) if isinstance(smallest, float) and smallest <= 0 else residual / smallest
    )
    if has_broken_down is None:
        has_broken_down = torch.zeros_like(residual, dtype=torch.bool)
    value = value * operator.broadcast(scale)
    return Solution(value, residual * scale, bound * scale, goal * scale, num_steps, has_broken_down)


def check_options(name: str, *, rtol: float | None, atol: float, max_steps: int, check_every: int) -> None:
    """Raise `ConfigError` for tolerances or step counts that no solve could use."""
    if not (rtol is None or rtol >= 0) or not atol >= 0 or max_steps < 1 or check_every < 0:
        raise ConfigError(
            f"{name} needs rtol >= 0 (or None), atol >= 0, max_steps >= 1 and check_every >= 0; got rtol={rtol}, "
            f"atol={atol}, max_steps={max_steps}, check_every={check_every}."
        )
