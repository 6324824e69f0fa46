"""Conjugate gradient for all classes and graphs at once."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lspread.errors import ConfigError, SolveError
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

__all__ = ["ConjugateGradient"]

NUM_RESTARTS = 3
MARGIN = 0.98
"""How far below the goal the recurrence goes: rounding lets the true residual be a little larger than it says."""


@dataclass(frozen=True)
class ConjugateGradient:
    """Conjugate gradient with one step length per graph and class.

    A graph or class that has converged stands still, so no answer depends on its batch mates. When the recurrence
    says it is done, the residual is measured; if rounding made the two differ, it starts again from there.

    Attributes:
        rtol: Residual to reach, relative to |b|; None is 1e-5 in float32 and 1e-12 in float64.
        atol: Residual that is always good enough.
        max_steps: Products with A at most.
        preconditioner: "jacobi" divides by the diagonal D; useful where degrees differ much. Then D^-1 (b - A x) has to
            be small beside D^-1 b as well, so that rows of small numbers are not lost beside others.
        check_every: Steps between looks at the residual, each a host sync, on a GPU; a CPU looks at every step. 0 never
            looks and takes `max_steps` steps.

    References:
        Hestenes and Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems", 1952.
    """

    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 1000
    preconditioner: Literal["none", "jacobi"] = "none"
    check_every: int = 5

    def __post_init__(self) -> None:
        check_options(
            "ConjugateGradient",
            rtol=self.rtol,
            atol=self.atol,
            max_steps=self.max_steps,
            check_every=self.check_every,
        )
        if self.preconditioner not in ("none", "jacobi"):
            raise ConfigError(f"preconditioner must be 'none' or 'jacobi'; got {self.preconditioner!r}.")

    @torch.no_grad()
    @in_column_blocks
    def solve(self, operator: LinearOperator, rhs: Tensor, initial: Tensor | None = None) -> Solution:
        """Return the solution of A x = b; A must be symmetric positive definite.

        Raises:
            SolveError: `operator.is_spd` is False.
        """
        if not operator.is_spd:
            raise SolveError(
                "ConjugateGradient needs a symmetric positive definite operator; got is_spd=False. Use a symmetric "
                "normalized graph (normalize_graph), or solver=FixedPoint() or Direct()."
            )
        inverse_diagonal = operator.diagonal().reciprocal().unsqueeze(1) if self.preconditioner == "jacobi" else None
        factors = [*([] if inverse_diagonal is None else [inverse_diagonal]), *unit_factors(operator)]
        sides = [rhs, *(rhs * factor for factor in factors)]
        scale = unit_scale(operator, *sides)
        sides = [side.contiguous() / operator.broadcast(scale) for side in sides]
        goals = [tolerance(operator, side, self.rtol, self.atol / scale) for side in sides]
        rhs = sides[0]
        x = first_guess(operator, rhs, initial, scale)
        r = rhs.clone() if initial is None else operator.residual(rhs, x)
        has_broken_down = torch.zeros_like(goals[0], dtype=torch.bool)
        num_steps = 0
        for _ in range(NUM_RESTARTS):
            taken, broken = self._descend(operator, x, r, goals, factors, self.max_steps - num_steps)
            num_steps += taken
            has_broken_down |= broken
            r = operator.residual(rhs, x, r)
            # Rounding of A x is that of D x.
            product = x if inverse_diagonal is None else x / inverse_diagonal
            residual, limit = furthest(operator, r, product, factors, goals, self.rtol)
            if self.check_every == 0 or num_steps >= self.max_steps or taken == 0:
                break
            if bool((residual <= limit).all()):  # sync: is a restart needed?
                break
        return certify(
            operator,
            rhs,
            x,
            limit,
            scale=scale,
            num_steps=num_steps,
            residual=residual,
            error=residual if not factors else operator.norm(r),
            has_broken_down=has_broken_down,
        )

    def _descend(
        self,
        operator: LinearOperator,
        x: Tensor,
        r: Tensor,
        goals: list[Tensor],
        factors: list[Tensor],
        max_steps: int,
    ) -> tuple[int, Tensor]:
        """Improve x and r in place; return the steps taken and where the method broke down."""
        is_plain = self.preconditioner == "none"
        z = r if is_plain else r * factors[0]
        p = z.clone()
        rr = operator.inner(r, r)
        rz = rr if is_plain else operator.inner(r, z)
        enough = [(MARGIN * goal).square() for goal in goals]

        def is_open() -> Tensor:
            found = rr > enough[0]
            for i, factor in enumerate(factors):
                scaled = z if i == 0 and not is_plain else r * factor
                found = found | (operator.inner(scaled, scaled) > enough[1 + i])
            return found

        ap = torch.empty_like(p)
        is_active, num_steps = is_open(), 0
        every = min(self.check_every, 1) if r.device.type == "cpu" else self.check_every
        while num_steps < max_steps:
            if every and num_steps % every == 0 and not bool(is_active.any()):  # sync: all done?
                break
            ap, curvature = operator.multiply_inner(p, ap)
            is_active = is_active & (curvature > 0)
            length = torch.where(is_active, rz / curvature, 0)
            rr, last = operator.descend(x, r, p, ap, length), rz
            if is_plain:
                rz = rr
            else:
                torch.mul(r, factors[0], out=z)
                rz = operator.inner(r, z)
            # Where nothing moved, the quotient is 1 or 0 / 0 and p is of no use any more.
            operator.add_scaled(z, torch.where(is_active, rz / last, 0), p, out=p)
            is_active = is_active & is_open()
            num_steps += 1
        # Whoever stands still above the goal met a direction without positive curvature.
        return num_steps, is_open() & ~is_active
