"""Derivatives of every kind for functions that only know plain reverse mode.

A function that plain autograd can differentiate twice has all derivatives: its pull-back (x, g) -> gradient of
<g, f(x)> is again such a function, and since that is linear in g, its own pull-back to g is the tangent of f. Lifted,
each of them runs below all transforms of torch.func, on plain tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lspread.autograd import Function

__all__ = ["lift", "pull_back", "push_forward"]

TensorFunction = Callable[..., tuple[Tensor, ...]]


def lift(function: TensorFunction, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return `function(*tensors)`, ready for forward mode, torch.func and derivatives of any order.

    Args:
        function: From tensors to a tuple of tensors, differentiable any number of times under plain autograd. Under
            vmap it is called once per slice.
        tensors: What derivatives may be taken by.
    """
    # torch.compile does not trace a function that has a `jvp`, not even where none is taken.
    return (_Lift if torch.compiler.is_compiling() else _LiftWithTangent).apply(function, *tensors)


def pull_back(function: TensorFunction, which: Sequence[int], num_inputs: int) -> TensorFunction:
    """Return (*inputs, *g) -> gradients of <g, function(*inputs)> to the inputs numbered in `which`."""
    return partial(_pull_back, function, which, num_inputs)


def push_forward(function: TensorFunction, which: Sequence[int], num_inputs: int) -> TensorFunction:
    """Return (*inputs, *t) -> derivative of function(*inputs) as the inputs numbered in `which` move by t."""
    return partial(_push_forward, function, which, num_inputs)


def _pull_back(function: TensorFunction, which: Sequence[int], num_inputs: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    inputs, grads = list(tensors[:num_inputs]), tensors[num_inputs:]
    is_twice = torch.is_grad_enabled()
    with torch.enable_grad():
        for i in which:
            # Fresh names: the others stay fixed, even where one of them is the same tensor.
            inputs[i] = inputs[i].view_as(inputs[i]) if inputs[i].requires_grad else inputs[i].detach().requires_grad_()
        here = [inputs[i] for i in which]
        moving = [(out, grad) for out, grad in zip(function(*inputs), grads, strict=True) if out.requires_grad]
        if not moving:
            return tuple(map(torch.zeros_like, here))
        out, grads = zip(*moving, strict=True)
        found = torch.autograd.grad(out, here, grads, create_graph=is_twice, allow_unused=True)
    return tuple(torch.zeros_like(t) if grad is None else grad for t, grad in zip(here, found, strict=True))


def _push_forward(
    function: TensorFunction, which: Sequence[int], num_inputs: int, *tensors: Tensor
) -> tuple[Tensor, ...]:
    inputs, tangents = tensors[:num_inputs], tensors[num_inputs:]
    zeros = tuple(map(torch.zeros_like, function(*inputs)))

    def pull(*grads: Tensor) -> tuple[Tensor, ...]:
        return _pull_back(function, which, num_inputs, *inputs, *grads)

    return _pull_back(pull, range(len(zeros)), len(zeros), *zeros, *tangents)


class _Lift(Function):
    """See `lift`."""

    @staticmethod
    def forward(function: TensorFunction, *tensors: Tensor) -> tuple[Tensor, ...]:
        return function(*(tensor.detach() for tensor in tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.function = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs, needs = ctx.saved_tensors, ctx.needs_input_grad[1:]
        which = [i for i, need in enumerate(needs) if need]
        found = iter(lift(pull_back(ctx.function, which, len(inputs)), *inputs, *grads))
        return None, *(next(found) if need else None for need in needs)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], function: TensorFunction, *tensors: Tensor) -> tuple[Any, int]:
        slices = (
            [t if dim is None else t.select(dim, i) for t, dim in zip(tensors, in_dims[1:], strict=True)]
            for i in range(info.batch_size)
        )
        each = [lift(function, *tensors) for tensors in slices]
        return tuple(torch.stack(parts) for parts in zip(*each, strict=True)), 0


class _LiftWithTangent(_Lift):
    """See `lift`."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _Lift.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def jvp(ctx: Any, _function: None, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        inputs = ctx.saved_tensors
        which = [i for i, tangent in enumerate(tangents) if tangent is not None]
        given = [tangent for tangent in tangents if tangent is not None]
        return lift(push_forward(ctx.function, which, len(inputs)), *inputs, *given)
