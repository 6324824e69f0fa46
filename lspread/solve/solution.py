"""What a solver answers: the value, and how far to trust it."""

from __future__ import annotations

import enum
import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lspread.errors import ConfigError, SolveError
from lspread.typing import OnFailure

__all__ = ["Solution", "Status", "report_failure"]


class Status(enum.Enum):
    """How a solve ended."""

    CONVERGED = "converged"
    MAX_STEPS = "max_steps"
    BREAKDOWN = "breakdown"
    NONFINITE = "nonfinite"


@dataclass(frozen=True, eq=False)
class Solution:
    """A solution of A x = b with its certificate.

    Attributes:
        value: x `(n, c)`; carries the implicit gradient where one was asked for.
        residual: 2-norm of b - A x, measured at the end, per graph and class `(b, c)`; exact up to the rounding of A x,
            about eps |x|. With the Jacobi preconditioner that or the norm of D^-1 (b - A x), with the diagonal D of A,
            and for an operator with `row_units` u that or the norm of u (b - A x): whichever is further from its
            tolerance.
        error_bound: The 2-norm of the true error is not larger `(b, c)`: |b - A x| / smallest eigenvalue; infinite
            where no bound on the eigenvalue is known.
        tolerance: What `residual` had to reach `(b, c)`.
        num_steps: Products with A, not counting the last check.
        has_broken_down: Where a step could not be taken although the residual was too large `(b, c)` bool.
    """

    value: Tensor
    residual: Tensor
    error_bound: Tensor
    tolerance: Tensor
    num_steps: int
    has_broken_down: Tensor

    @cached_property
    def status(self) -> Status:
        """How the solve ended, over all graphs and classes; read from the device when first asked for."""
        is_good = (self.residual <= self.tolerance) & torch.isfinite(self.residual)
        if bool(is_good.all()):  # sync: has all gone well?
            return Status.CONVERGED
        missed = ~(self.residual <= self.tolerance)
        nonfinite = ~torch.isfinite(self.residual)
        # sync: one transfer for both answers
        is_nonfinite, is_broken = torch.stack([nonfinite.any(), (missed & self.has_broken_down).any()]).tolist()
        if is_nonfinite:
            return Status.NONFINITE
        return Status.BREAKDOWN if is_broken else Status.MAX_STEPS


def report_failure(solution: Solution, on_failure: OnFailure, *, task: str) -> None:
    """Raise or warn when a solve did not converge; with "ignore" nothing is read from the device.

    Raises:
        SolveError: `on_failure` is "raise" and the status is not CONVERGED.
    """
    if on_failure not in ("raise", "warn", "ignore"):
        raise ConfigError(f"on_failure must be 'raise', 'warn' or 'ignore'; got {on_failure!r}.")
    if on_failure == "ignore" or solution.status is Status.CONVERGED:
        return
    worst = (solution.residual / solution.tolerance.clamp(min=torch.finfo(solution.residual.dtype).tiny)).max().item()
    message = f"{task} ended as {solution.status.name} after {solution.num_steps} steps: "
    if solution.status is Status.NONFINITE:
        message += "the residual is not finite. Look for NaN or infinity in edge weights, targets and alpha."
    else:
        message += (
            f"the residual is {worst:.3g} times its tolerance. Allow more max_steps, a larger rtol, float64 inputs or "
            "a smaller alpha; or accept it with on_failure='warn' and look at Solution.error_bound."
        )
    if on_failure == "raise":
        raise SolveError(message)
    warnings.warn(message, RuntimeWarning, stacklevel=3)
