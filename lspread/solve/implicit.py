"""Solve first, without autograd; then attach the gradient.

For x = A^-1 b and a loss with gradient g = dLoss/dx, one more solve gives l = A^-T g, and then
    dLoss/db = l        dLoss/dtheta = -l . (dA/dtheta) x
for whatever tensors theta the operator is made of: the second is the gradient of one product, taken at fixed x. In
forward mode, the tangent is one more solve too:
    dx = A^-1 (db - (dA/dtheta . dtheta) x)
Both are made of differentiable pieces (this very function and the product), so they have derivatives too. No iterate is
kept: memory does not grow with the number of steps, and the gradient is that of the exact solution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lspread.autograd import Function
from lspread.errors import GraphError
from lspread.solve.lift import lift, pull_back, push_forward
from lspread.solve.operator import LinearOperator
from lspread.solve.solution import Solution, report_failure
from lspread.solve.solvers import PreparingSolver, Solver
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
        `Solution`; its `value` is differentiable in `rhs` and `operator.tensors()`, any number of times, in reverse and
        in forward mode and in any mix of the two. Under `torch.func.vmap`, right-hand sides are stacked as more columns
        of one solve; where the operator itself is batched, it is solved once per element and `num_steps` is the
        largest. What torch does not allow: `torch.autograd.grad(..., is_grads_batched=True)`, whose older vmap enters
        no custom function (use `torch.func.vmap` or `jacrev`), and looking at `Solution.status` inside vmap, which
        would read from a batch; failures are reported from within the solve all the same.

    Raises:
        GraphError: Shape, dtype or device of `rhs` or `initial` do not fit the operator.
        SolveError: Not converged and `on_failure="raise"`.
    """
    for name, tensor in (("rhs", rhs), ("initial", initial)):
        if tensor is not None:
            _check_fits(name, tensor, operator)
    initial = None if initial is None else initial.detach()
    return _solve(_Task(operator, solver, on_failure, "the solve"), rhs, initial)


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


@dataclass(frozen=True, eq=False)
class _Task:
    """What a solve is told beside its tensors.

    Attributes:
        operator: Says how A is made; its own tensors are not read.
        solver: How to solve.
        on_failure: What to do when that fails.
        name: Of the solve, for messages.
    """

    operator: LinearOperator
    solver: Solver
    on_failure: OnFailure
    name: str


def _solve(task: _Task, rhs: Tensor, initial: Tensor | None = None) -> Solution:
    # torch.compile cannot trace a function that has a `jvp`, not even where none is taken.
    function = _Solve if torch.compiler.is_compiling() else _SolveWithTangent
    *certificate, num_steps, _ = function.apply(task, rhs, initial, *task.operator.tensors())
    value, residual, error_bound, tolerance, has_broken_down = certificate
    return Solution(value, residual, error_bound, tolerance, num_steps, has_broken_down)


class _Solve(Function):
    """The solve; its backward pass is the adjoint solve."""

    @staticmethod
    def forward(task: _Task, rhs: Tensor, initial: Tensor | None, *tensors: Tensor) -> tuple[Any, ...]:
        operator = task.operator.replace(*(tensor.detach() for tensor in tensors))
        solver = task.solver
        if isinstance(solver, PreparingSolver):
            solver = solver.prepare(operator)
        found = solver.solve(operator, rhs.detach(), initial)
        report_failure(found, task.on_failure, task=task.name)
        return (
            found.value,
            found.residual,
            found.error_bound,
            found.tolerance,
            found.has_broken_down,
            found.num_steps,
            solver,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        task, _, _, *tensors = inputs
        value, *certificate, _, solver = output
        # Prepared for this very operator, the solver serves the backward pass and the tangents as well.
        ctx.task = replace(task, solver=solver)
        ctx.mark_non_differentiable(*certificate)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(value, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        _, needs_rhs, _, *needs = ctx.needs_input_grad
        if grad is None:
            return None, None, None, *([None] * len(tensors))
        operator = ctx.task.operator.replace(*tensors)
        task = replace(ctx.task, operator=operator.transpose(), name="the backward (adjoint) solve")
        adjoint = _solve(task, grad.contiguous()).value
        # theta stands behind x: to be moved are the inputs from number 1 on, with x fixed.
        which = [i for i, need in enumerate(needs, start=1) if need]
        pulled = operator.pull_back(x, -adjoint, needs) if which else ()
        if pulled is None:
            pulled = lift(pull_back(_product(ctx.task), which, len(tensors) + 1), x, *tensors, -adjoint)
        found = iter(pulled)
        grads = (next(found) if need else None for need in needs)
        return None, adjoint if needs_rhs else None, None, *grads

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], task: _Task, *tensors: Any) -> tuple[Any, Any]:
        """Stack the columns of many right-hand sides; solve matrix by matrix where A itself is batched."""
        dims, size = in_dims[1:], info.batch_size
        if any(dim is not None for dim in dims[2:]):
            each = [
                _SolveWithTangent.apply(
                    task, *(t if dim is None else t.select(dim, i) for t, dim in zip(tensors, dims, strict=True))
                )
                for i in range(size)
            ]
            columns = list(zip(*each, strict=True))
            out = [torch.stack(column) for column in columns[:5]]
            return (*out, max(columns[5]), task.solver), (0, 0, 0, 0, 0, None, None)

        def stack(tensor: Tensor | None, dim: int | None) -> Tensor | None:
            if tensor is None:
                return None
            tensor = tensor.unsqueeze(1).expand(-1, size, -1) if dim is None else tensor.movedim(dim, 1)
            return tensor.flatten(1)

        (rhs, initial, *rest), (rhs_dim, initial_dim, *_) = tensors, dims
        *out, num_steps, solver = _SolveWithTangent.apply(task, stack(rhs, rhs_dim), stack(initial, initial_dim), *rest)
        out = [column.unflatten(1, (size, -1)) for column in out]
        return (*out, num_steps, solver), (1, 1, 1, 1, 1, None, None)


class _SolveWithTangent(_Solve):
    """The solve with forward mode."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        _Solve.setup_context(ctx, inputs, output)
        ctx.save_for_forward(output[0], *inputs[3:])

    @staticmethod
    def jvp(ctx: Any, _task: None, rhs: Tensor | None, _initial: None, *tangents: Tensor | None) -> tuple[Any, ...]:
        x, *tensors = ctx.saved_tensors
        operator = ctx.task.operator.replace(*tensors)
        which = [i for i, tangent in enumerate(tangents, start=1) if tangent is not None]
        moving = [tangent for tangent in tangents if tangent is not None]
        push = push_forward(_product(ctx.task), which, len(tensors) + 1)

        def right(*given: Tensor) -> tuple[Tensor]:
            if rhs is None:
                return (-push(*given)[0],)
            return (given[0] - push(*given[1:])[0] if which else given[0],)

        # Torch turns forward mode off in here, also for the levels around this one: a plain subtraction would lose what
        # second tangents need, and lifted functions do not.
        (b,) = lift(right, *([] if rhs is None else [rhs]), x, *tensors, *moving)
        task = replace(ctx.task, operator=operator, name="the tangent solve (forward mode)")
        return _solve(task, b).value, *([None] * 6)


def _product(task: _Task) -> Callable[..., tuple[Tensor]]:
    """Return (x, *theta) -> A x."""
    return lambda x, *tensors: (task.operator.replace(*tensors).matmul(x),)
