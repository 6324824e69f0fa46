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
    attainable,
    certify,
    check_options,
    first_guess,
    in_column_blocks,
    tolerance,
    unit_scale,
)

__all__ = ["Chebyshev"]


@dataclass(frozen=True)
class Chebyshev:
    """Chebyshev semi-iteration for symmetric operators whose eigenvalues are known to lie in [low, high], low > 0.

    With t = (high + low) / (high - low), m steps divide the residual by T_m(t) = cosh(m arccosh t) at least, so the
    number of steps for `rtol` is known before the first: for label spreading t = 1 / alpha, and 1e-5 at alpha = 0.99
    takes 91 to 96. A step is one product and three passes over the scores; there are no inner products, hence no host
    sync and no collective, until the residual is measured once at the end.

    Attributes:
        rtol: Residual to reach, relative to |b|; None is 1e-5 in float32 and 1e-12 in float64.
        atol: Residual that is always good enough; stops a solve early only where the solver looks.
        max_steps: Products with A at most. Where the bounds are tensors on a GPU (a learned alpha), the number of steps
            is not computed, because reading them would be a sync, and all of these are taken.
        check_every: Steps between looks at the residual (each a product and, on a GPU, a host sync), which let easy
            problems and good first guesses stop early; 0 never looks.

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
    @in_column_blocks
    def solve(self, operator: LinearOperator, rhs: Tensor, initial: Tensor | None = None) -> Solution:
        """Return the solution of A x = b.

        Raises:
            SolveError: The operator is not symmetric positive definite, or bounds on its eigenvalues are not known.
        """
        low, high = (_read_on_host(bound) for bound in operator.spectrum())
        is_unknown = (isinstance(low, float) and not low > 0) or (isinstance(high, float) and high == math.inf)
        if not operator.is_spd or is_unknown:
            raise SolveError(
                "Chebyshev needs a symmetric operator whose eigenvalues are known to lie between two positive numbers; "
                f"got is_spd={operator.is_spd}, spectrum from {low} to {high}. Use ConjugateGradient() for symmetric "
                "positive definite operators, else FixedPoint() or Direct()."
            )
        scale = unit_scale(operator, rhs)
        rhs = rhs.contiguous() / operator.broadcast(scale)
        goal = tolerance(operator, rhs, self.rtol, self.atol / scale)
        x, r = first_guess(operator, rhs, initial, scale), rhs
        if initial is not None:
            # The number of steps counts from |b|: a guess that is further away than zero would not get there.
            r = operator.residual(rhs, x)
            distance = operator.norm(r)
            is_worse = operator.broadcast((distance > operator.norm(rhs)) & torch.isfinite(distance))
            x, r = torch.where(is_worse, 0, x), torch.where(is_worse, rhs, r)
        num_steps = 0
        for limit in self._plan(rhs.dtype, low, high):
            correction, taken = self._descend(operator, r, goal, low, high, limit)
            x += correction
            num_steps += taken
            r = operator.residual(rhs, x)
        return certify(
            operator,
            rhs,
            x,
            attainable(operator, goal, x, self.rtol),
            scale=scale,
            num_steps=num_steps,
            residual=operator.norm(r),
        )

    def _plan(self, dtype: torch.dtype, low: Tensor | float, high: Tensor | float) -> list[int]:
        """Return the steps to take, in one go or two, so that 2 / rtol divides any residual (the 2 is for rounding).

        Every step rounds x. The second go starts anew from a fresh residual and rounds only its small correction; it
        costs five steps, and is taken where x may be so much larger than b that its rounding would be seen.
        """
        rtol = RTOL[dtype] if self.rtol is None else self.rtol
        if isinstance(low, Tensor) or isinstance(high, Tensor) or rtol == 0:
            parts = [self.max_steps - self.max_steps // 2, self.max_steps // 2]
        else:
            num_parts = 2 if torch.finfo(dtype).eps * high / low > rtol / 20 else 1
            decay = math.acosh((high + low) / (high - low)) if low < high else math.inf
            steps = math.ceil(math.acosh(max(1, (2 / rtol) ** (1 / num_parts))) / decay)
            parts = [max(1, steps)] * num_parts
        first = min(parts[0], self.max_steps)
        return [first, *(min(part, self.max_steps - first) for part in parts[1:])]

    def _descend(
        self,
        operator: LinearOperator,
        rhs: Tensor,
        goal: Tensor,
        low: Tensor | float,
        high: Tensor | float,
        max_steps: int,
    ) -> tuple[Tensor, int]:
        """Return the solution of A x = b from zero, where `goal` is reached or `max_steps` are taken, and the steps."""
        inverse_center = 2 / (high + low)
        quarter = ((high - low) / (high + low)) ** 2 / 4
        factor: Tensor | float = 1.0
        x, previous = torch.zeros_like(rhs), torch.zeros_like(rhs)
        answer, is_done = x, torch.zeros_like(goal, dtype=torch.bool)
        for step in range(max_steps):
            if self.check_every and step % self.check_every == 0:
                # Whoever is done keeps the answer of this step, whatever the others still need.
                answer = torch.where(operator.broadcast(is_done), answer, x)
                norm = operator.norm(operator.residual(rhs, x))
                is_done = is_done | ~((norm > goal) & torch.isfinite(norm))
                if bool(is_done.all()):  # sync: all done?
                    return answer, step
            previous, x = x, operator.relax(x, previous, rhs, inverse_center, factor)
            factor = 1 / (1 - (2 if step == 0 else factor) * quarter)
        return torch.where(operator.broadcast(is_done), answer, x) if self.check_every else x, max_steps


def _read_on_host(bound: Tensor | float) -> Tensor | float:
    """Return a bound as a number where that stops no device."""
    return bound if isinstance(bound, Tensor) and bound.device.type != "cpu" else float(bound)
