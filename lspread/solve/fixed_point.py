"""Fixed-point (Richardson) iteration: the method of the label spreading paper."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lspread.solve.operator import LinearOperator
from lspread.solve.solution import Solution
from lspread.solve.solvers import (
    certify,
    check_options,
    first_guess,
    furthest,
    in_column_blocks,
    tolerance,
    unit_factors,
    unit_scale,
)

__all__ = ["FixedPoint"]


@dataclass(frozen=True)
class FixedPoint:
    """x <- x + (b - A x); for A = I - alpha S this is F <- alpha S F + (1 - alpha) Y.

    Converges when every eigenvalue of A lies in (0, 2), by the factor alpha a step for label spreading, also for
    operators that are not symmetric.

    Attributes:
        rtol: Residual to reach, relative to |b|; None is 1e-5 in float32 and 1e-12 in float64.
        atol: Residual that is always good enough.
        max_steps: Products with A at most.
        check_every: Steps between looks at the residual (each a host sync on a GPU); 0 never looks and takes
            `max_steps` steps.

    References:
        Zhou et al., "Learning with Local and Global Consistency", NIPS 2003, section 2, step 3.
    """

    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 10_000
    check_every: int = 20

    def __post_init__(self) -> None:
        check_options(
            "FixedPoint", rtol=self.rtol, atol=self.atol, max_steps=self.max_steps, check_every=self.check_every
        )

    @torch.no_grad()
    @in_column_blocks
    def solve(self, operator: LinearOperator, rhs: Tensor, initial: Tensor | None = None) -> Solution:
        """Return the solution of A x = b."""
        scale, factors = unit_scale(operator, rhs), unit_factors(operator)
        rhs = rhs.contiguous() / operator.broadcast(scale)
        sides = [rhs, *(rhs * factor for factor in factors)]
        goals = [tolerance(operator, side, self.rtol, self.atol / scale) for side in sides]
        x = first_guess(operator, rhs, initial, scale)
        num_steps = 0
        r = torch.empty_like(x)
        while True:
            r = operator.residual(rhs, x, r)
            residual, goal = furthest(operator, r, x, factors, goals, 0.0)
            if num_steps == self.max_steps:
                break
            # What has grown without bound is lost, and stands still as well; the others go on.
            is_active = (residual > goal) & torch.isfinite(residual)
            if self.check_every and num_steps % self.check_every == 0 and not bool(is_active.any()):  # sync: all done?
                break
            operator.add_scaled(x, is_active.to(x.dtype), r, out=x)
            num_steps += 1
        residual, limit = furthest(operator, r, x, factors, goals, self.rtol)
        return certify(
            operator,
            rhs,
            x,
            limit,
            scale=scale,
            num_steps=num_steps,
            residual=residual,
            error=operator.norm(r),
        )
