"""Chebyshev semi-iteration: no inner products, so nothing to wait for."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lspread.errors import SolveError
from lspread.solve.operator import LinearOperator
from lspread.solve.solution import Solution
from lspread.solve.solvers import (
    RTOL,
    certify,
    check_options,
    first_guess,
    residual_of,
    tolerance,
    unit_scale,
)

__all__ = ["Chebyshev"]


@dataclass(frozen=True)
class Chebyshev:
    """Chebyshev semi-iteration for symmetric operators whose eigenvalues are known to lie in [low, high], low > 0.

    With t = (high + low) / (high - low), m steps divide the residual by T_m(t) = cosh(m arccosh t) at least, so the
    number of steps for `rtol` is known before the first: for label spreading t = 1 / alpha, and 1e-5 at alpha = 0.99
    takes 91. A step is one product and three passes over the scores; there are no inner products, hence no host sync
    and no collective, until the residual is measured once at the end.

    Attributes:
        rtol: Residual to reach, relative to |b|; None is 1e-5 in float32 and 1e-12 in float64.
        atol: Residual that is always good enough; stops a solve early only where the solver looks.
        max_steps: Products with A at most. Where the bounds are tensors on a GPU (a learned alpha), the number of steps
            is not computed, because reading them would be a sync, and all of these are taken.
        check_every: Steps between looks at the residual (each a host sync on a GPU), which let easy problems and good
            first guesses stop early; 0 never looks.

    References:
        Golub and Varga, "Chebyshev semi-iterative methods, successive overrelaxation iterative methods, and second
        order Richardson iterative methods", 1961, part I; Gutknecht and Röllin, "The Chebyshev iteration revisited",
        2002, section 2: this is their three-term recurrence with explicitly computed residuals, whose attainable
        accuracy is the best.
    """

    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 1000
    check_every: int = 0

    def __post_init__(self) -> None:
        check_options(
            "Chebyshev", rtol=self.rtol, atol=self.atol, max_steps=self.max_steps, check_every=self.check_every
        )

    @torch.no_grad()
    def solve(self, operator: LinearOperator, rhs: Tensor, initial: Tensor | None = None) -> Solution:
        """Return the solution of A x = b.

        Raises:
            SolveError: The operator is not symmetric positive definite, or bounds on its eigenvalues are not known.
        """
        low, high = (_read_on_host(bound) for bound in operator.spectrum())
        if not operator.is_spd or (isinstance(low, float) and not low > 0) or high == math.inf:
            raise SolveError(
                "Chebyshev needs a symmetric operator whose eigenvalues are known to lie between two positive numbers; "
                f"got is_spd={operator.is_spd}, spectrum from {low} to {high}. Use ConjugateGradient() for symmetric "
                "positive definite operators, else FixedPoint() or Direct()."
            )
        scale = unit_scale(operator, rhs)
        rhs = rhs.contiguous() / operator.broadcast(scale)
        goal = tolerance(operator, rhs, self.rtol, self.atol / scale)
        x = first_guess(operator, rhs, initial, scale)
        if initial is not None:
            # The number of steps counts from |b|: a guess that is further away than zero would not get there.
            distance = operator.norm(residual_of(operator, rhs, x))
            is_worse = (distance > operator.norm(rhs)) & torch.isfinite(distance)
            x = torch.where(operator.broadcast(is_worse), 0, x)
        steps = _count_steps(RTOL[rhs.dtype] if self.rtol is None else self.rtol, low, high)
        return self._iterate(operator, rhs, x, goal, scale, (low, high), min(self.max_steps, steps))

    def _iterate(
        self,
        operator: LinearOperator,
        rhs: Tensor,
        x: Tensor,
        goal: Tensor,
        scale: Tensor,
        spectrum: tuple[Tensor | float, Tensor | float],
        max_steps: float,
    ) -> Solution:
        low, high = spectrum
        inverse_center = 2 / (high + low)
        quarter = ((high - low) / (high + low)) ** 2 / 4
        factor: Tensor | float = 1.0
        previous = x.clone()
        is_done = torch.zeros_like(goal, dtype=torch.bool)
        answer, residual = x, torch.zeros_like(goal)
        num_steps = 0
        while True:
            r = residual_of(operator, rhs, x)
            is_look = self.check_every > 0 and num_steps % self.check_every == 0
            if is_look or num_steps == max_steps:
                # Whoever was done keeps the answer of that step, whatever the others still need.
                norm = operator.norm(r)
                answer = torch.where(operator.broadcast(is_done), answer, x) if self.check_every else x
                residual = torch.where(is_done, residual, norm)
                is_done = is_done | ~((norm > goal) & torch.isfinite(norm))
                if num_steps == max_steps or bool(is_done.all()):  # sync: all done?
                    break
            # x_next = previous + factor (x + r / center - previous)
            if isinstance(inverse_center, Tensor):
                r.mul_(inverse_center).add_(x)
            else:
                torch.add(x, r, alpha=inverse_center, out=r)
            previous.lerp_(r, factor)
            previous, x = x, previous
            factor = 1 / (1 - (2 if num_steps == 0 else factor) * quarter)
            num_steps += 1
        return certify(operator, rhs, answer, goal, scale=scale, num_steps=num_steps, residual=residual)


def _read_on_host(bound: Tensor | float) -> Tensor | float:
    """Return a bound as a number where that stops no device."""
    return bound if isinstance(bound, Tensor) and bound.device.type != "cpu" else float(bound)


def _count_steps(rtol: float, low: Tensor | float, high: Tensor | float) -> float:
    """Return how many steps divide any residual by 2 / rtol (the 2 is for rounding); infinite where that is unknown."""
    if isinstance(low, Tensor) or isinstance(high, Tensor) or rtol == 0:
        return math.inf
    if low == high:
        return 1
    return math.ceil(math.acosh(max(1, 2 / rtol)) / math.acosh((high + low) / (high - low)))
