"""Solve first, without autograd; then attach the gradient.

For x = A^-1 b and a loss with gradient g = dLoss/dx, one more solve gives l = A^-T g, and then
    dLoss/db = l        dLoss/dtheta = -l . (dA/dtheta) x
for whatever tensors theta the operator is made of: the second is the gradient of one product, taken at fixed x. The
backward pass is itself made of differentiable pieces (this very function and the product), so it has derivatives too.
No iterate is kept: memory does not grow with the number of steps, and the gradient is that of the exact solution.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lspread.errors import GraphError
from lspread.solve.operator import LinearOperator
from lspread.solve.solution import Solution, report_failure
from lspread.solve.solvers import Solver
from lspread.typing import OnFailure

__all__ = ["linear_solve"]


def linear_solve(
    operator: LinearOperator,
    rhs: Tensor,
    *,
    solver: Solver,
    initial: Tensor | None = None,
    on_failure: OnFailure = "raise",
) -> Solution:
    """Solve A x = b with the implicit gradient attached.

    Args:
        operator: A, made of tensors that may need gradient.
        rhs: b `(n, c)`.
        solver: How to solve, in both directions.
        initial: First guess `(n, c)`, detached; a solution of a similar problem saves steps.
        on_failure: What to do when the forward or the backward solve does not converge.

    Returns:
        `Solution`; its `value` is differentiable, twice, in `rhs` and `operator.tensors()`.

    Raises:
        GraphError: Shape, dtype or device of `rhs` or `initial` do not fit the operator.
        SolveError: Not converged and `on_failure="raise"`.
    """
    for name, tensor in (("rhs", rhs), ("initial", initial)):
        if tensor is not None:
            _check_fits(name, tensor, operator)
    with torch.no_grad():
        detached = operator.replace(*(tensor.detach() for tensor in operator.tensors()))
        solution = solver.solve(detached, rhs.detach(), None if initial is None else initial.detach())
    report_failure(solution, on_failure, task="the solve")
    value = _Attach.apply(operator, solver, on_failure, solution.value, rhs, *operator.tensors())
    return replace(solution, value=value)


def _check_fits(name: str, tensor: Tensor, operator: LinearOperator) -> None:
    if (
        tensor.ndim != 2
        or tensor.shape[0] != operator.num_nodes
        or tensor.dtype != operator.dtype
        or tensor.device != operator.device
    ):
        raise GraphError(
            f"{name} must be of shape ({operator.num_nodes}, c), {operator.dtype} on {operator.device}, as "
            f"the graph is; got {tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}."
        )


class _Attach(torch.autograd.Function):
    """Identity on the solved value; its backward pass is the adjoint solve."""

    @staticmethod
    def forward(
        ctx: Any,
        operator: LinearOperator,
        solver: Solver,
        on_failure: OnFailure,
        value: Tensor,
        rhs: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.operator, ctx.solver, ctx.on_failure = operator, solver, on_failure
        out = value.detach()
        ctx.save_for_backward(out, *tensors)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        operator = ctx.operator.replace(*tensors)
        adjoint = linear_solve(
            operator.transpose(), grad.contiguous(), solver=ctx.solver, on_failure=ctx.on_failure
        ).value
        needs = ctx.needs_input_grad[5:]
        grads: list[Tensor | None] = [None] * len(tensors)
        if any(needs):
            is_twice = torch.is_grad_enabled()
            with torch.enable_grad():
                # Fresh names for theta: x depends on theta as well, and here it must be held fixed.
                here = [
                    t.view_as(t) if is_twice else t.detach().requires_grad_(need)
                    for t, need in zip(tensors, needs, strict=True)
                ]
                product = operator.replace(*here).matmul(x if is_twice else x.detach())
                wanted = [t for t, need in zip(here, needs, strict=True) if need]
                found = iter(torch.autograd.grad(product, wanted, -adjoint, create_graph=is_twice, allow_unused=True))
            grads = [next(found) if need else None for need in needs]
        return None, None, None, None, adjoint if ctx.needs_input_grad[4] else None, *grads
