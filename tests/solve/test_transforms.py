"""Forward mode, torch.func and vmap through spread_labels, against the dense solve in float64."""

import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from lspread.errors import SolveError
from lspread.graph import normalize_graph
from lspread.labels import SpreadOperator, propagate_labels, spread_labels
from lspread.solve import ConjugateGradient, Direct, Status, linear_solve
from lspread.solve.lift import lift, push_forward
from tests import reference
from tests.reference import from_dense, seeded
from tests.solve.table import SOLVERS

N, C, B = 8, 2, 3
GRAPH = normalize_graph(from_dense(reference.random_weights(N, seed=4)))
ROW, COLUMN = GRAPH.edge_index
ZERO, ONE = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)


def random(*shape, seed):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


# Targets, weights, alpha, and a direction for each; the weights stay symmetric.
POINT = (random(N, C, seed=1), GRAPH.edge_weight, 0.6 * ONE)
TURN = random(N, N, seed=2)
DIRECTION = (random(N, C, seed=3), 0.1 * (TURN + TURN.T)[ROW, COLUMN], 0.3 * ONE)
BATCH = random(B, N, C, seed=5)


DEFAULT = ConjugateGradient()


def scores(targets, weight, alpha, solver=DEFAULT, on_failure="raise"):
    graph = replace(GRAPH, edge_weight=weight)
    return spread_labels(graph, targets, alpha=alpha, solver=solver, on_failure=on_failure).value


def dense(targets, weight, alpha):
    s = torch.zeros(N, N, dtype=torch.float64).index_put((ROW, COLUMN), weight)
    return reference.spread(s, targets, alpha)


def per_node(targets, weight, alpha):
    s = torch.zeros(N, N, dtype=torch.float64).index_put((ROW, COLUMN), weight)
    return torch.linalg.solve(torch.eye(N, dtype=torch.float64) - alpha[:, None] * s, (1 - alpha)[:, None] * targets)


def along(function, moving=(0, 1, 2), **options):
    """Return the function of one number t that moves some of the arguments."""
    return lambda t: function(
        *(x + t * dx if i in moving else x for i, (x, dx) in enumerate(zip(POINT, DIRECTION, strict=True))), **options
    )


def tangent(function, x, dx):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, dx))).tangent


@pytest.mark.parametrize("moving", [(0,), (1,), (2,), (0, 1, 2)], ids=["targets", "weights", "alpha", "all"])
@pytest.mark.parametrize("name", SOLVERS)
def test_tangents(name, moving):
    ours, wanted = along(scores, moving, solver=SOLVERS[name]()), jacrev(along(dense, moving))(ZERO)
    torch.testing.assert_close(jvp(ours, (ZERO,), (ONE,))[1], wanted)
    torch.testing.assert_close(tangent(ours, ZERO, ONE), wanted)
    torch.testing.assert_close(jacfwd(ours)(ZERO), wanted)
    torch.testing.assert_close(jacrev(ours)(ZERO), wanted)
    torch.testing.assert_close(grad(lambda t: ours(t).sum())(ZERO), wanted.sum())


@pytest.mark.parametrize("order", [(jacfwd, jacfwd), (jacfwd, jacrev), (jacrev, jacfwd), (jacrev, jacrev)])
@pytest.mark.parametrize("solver", [ConjugateGradient(), Direct()])
def test_second_derivatives_in_any_order(order, solver):
    outer, inner = order
    # Reverse over reverse is the second opinion: torch.linalg.solve itself is wrong in reverse over forward.
    wanted = jacrev(jacrev(along(dense)))(ZERO)[:2]
    torch.testing.assert_close(outer(inner(lambda t: along(scores, solver=solver)(t)[:2]))(ZERO), wanted)


def test_second_derivatives_of_plain_forward_mode():
    wanted = jacrev(jacrev(along(dense)))(ZERO)
    t = ZERO.clone().requires_grad_()
    found = torch.autograd.grad((tangent(along(scores), t, ONE) * DIRECTION[0]).sum(), t)[0]
    torch.testing.assert_close(found, (wanted * DIRECTION[0]).sum())


def test_third_derivative():
    def loss(function):
        return lambda t: (along(function)(t) * DIRECTION[0]).sum()

    wanted = grad(grad(grad(loss(dense))))(ZERO)
    for order in ((jacfwd, jacfwd, jacfwd), (grad, jacfwd, grad)):
        found = loss(scores)
        for one in order:
            found = one(found)
        torch.testing.assert_close(found(ZERO), wanted)


def test_jacobian_and_hessian():
    targets, weight, alpha = POINT
    for take in (jacfwd, jacrev):
        found, wanted = (take(lambda y, f=f: f(y, weight, alpha))(targets) for f in (scores, dense))
        torch.testing.assert_close(found, wanted)
    found, wanted = (hessian(lambda a, f=f: f(targets, weight, a).pow(2).sum())(alpha) for f in (scores, dense))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", ["chebyshev", "direct"])
def test_gradcheck_forward_mode(name):
    leaves = (ZERO.clone().requires_grad_(), ONE.clone().requires_grad_())

    def function(t, size):
        targets, weight, alpha = (x + t * dx for x, dx in zip(POINT, DIRECTION, strict=True))
        return scores(size * targets, weight, alpha, solver=SOLVERS[name]())[:3]

    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, leaves, check_fwd_over_rev=True)


@pytest.mark.parametrize("name", SOLVERS)
def test_vmap_over_targets(name):
    def ours(targets):
        return scores(targets, *POINT[1:], solver=SOLVERS[name]())

    wanted = torch.stack([dense(targets, *POINT[1:]) for targets in BATCH])
    torch.testing.assert_close(vmap(ours)(BATCH), wanted)
    torch.testing.assert_close(vmap(ours, in_dims=2, out_dims=1)(BATCH.movedim(0, 2)), wanted.movedim(0, 1))
    torch.testing.assert_close(vmap(vmap(ours))(torch.stack([BATCH, 2 * BATCH])), torch.stack([wanted, 2 * wanted]))


def test_vmap_is_one_solve(monkeypatch):
    shapes = []
    solve = ConjugateGradient.solve
    monkeypatch.setattr(ConjugateGradient, "solve", lambda *args: shapes.append(args[2].shape) or solve(*args))
    vmap(lambda targets: scores(targets, *POINT[1:]))(BATCH)
    assert shapes == [(N, B * C)]


def test_vmap_with_first_guesses():
    wanted = torch.stack([dense(targets, *POINT[1:]) for targets in BATCH])

    def ours(targets, initial):
        operator, solver = SpreadOperator.from_graph(GRAPH, 0.6), ConjugateGradient(max_steps=1)
        return linear_solve(operator, 0.4 * targets, solver=solver, initial=initial).value

    torch.testing.assert_close(vmap(ours)(BATCH, wanted), wanted)
    torch.testing.assert_close(vmap(ours, in_dims=(None, 0))(BATCH[0], wanted[:1].expand(B, -1, -1)), wanted[[0, 0, 0]])


def test_vmap_over_weights():
    size = torch.tensor([0.5, 1.0, 0.8], dtype=torch.float64)
    found, wanted = (vmap(lambda s, f=f: f(POINT[0], s * POINT[1], POINT[2]))(size) for f in (scores, dense))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", SOLVERS)
def test_vmap_over_weights_with_an_alpha_per_node(name):
    alpha = torch.linspace(0, 0.9, N, dtype=torch.float64)

    def of_size(f, size):
        return f(POINT[0], size * POINT[1], alpha)

    ours = partial(scores, solver=SOLVERS[name]())
    size = torch.tensor([0.5, 1.0, 0.8], dtype=torch.float64)
    wanted = torch.stack([of_size(per_node, s) for s in size])
    torch.testing.assert_close(vmap(partial(of_size, ours))(size), wanted)
    slopes = [vmap(grad(lambda s, f=f: of_size(f, s).pow(2).sum()))(size) for f in (ours, per_node)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("name", SOLVERS)
def test_vmap_over_alpha(name):
    ours = partial(scores, solver=SOLVERS[name]())
    for alpha, f in (
        (torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), dense),
        (torch.rand(3, N, generator=seeded(), dtype=torch.float64) * 0.9, per_node),
    ):
        found, wanted = (vmap(lambda a, f=f: f(*POINT[:2], a))(alpha) for f in (ours, f))
        torch.testing.assert_close(found, wanted)
        found, wanted = (vmap(grad(lambda a, f=f: f(*POINT[:2], a).pow(2).sum()))(alpha) for f in (ours, f))
        torch.testing.assert_close(found, wanted)


def test_vmap_over_the_ridge():
    w = from_dense(reference.random_weights(N, seed=4))
    is_given = torch.arange(N) < 3
    ridge = torch.tensor([0.1, 1.0], dtype=torch.float64)
    found = vmap(lambda r: propagate_labels(w, POINT[0], is_given, ridge=r).value)(ridge)
    alone = torch.stack([propagate_labels(w, POINT[0], is_given, ridge=float(r)).value for r in ridge])
    torch.testing.assert_close(found, alone)


def test_vmap_with_derivatives():
    def loss(f):
        return lambda targets: f(targets, *POINT[1:]).pow(2).sum()

    torch.testing.assert_close(vmap(grad(loss(scores)))(BATCH), vmap(grad(loss(dense)))(BATCH))
    for found, wanted in zip(
        *(vmap(lambda y, f=f: jvp(f, (y, *POINT[1:]), DIRECTION))(BATCH) for f in (scores, dense)), strict=True
    ):
        torch.testing.assert_close(found, wanted)

    def together(f):
        _, weight, alpha = POINT
        return lambda t: vmap(lambda y: f(y, weight + t * DIRECTION[1], alpha + t * DIRECTION[2]))(BATCH).pow(2).sum()

    torch.testing.assert_close(grad(together(scores))(ZERO), grad(together(dense))(ZERO))
    t = ZERO.clone().requires_grad_()
    (first,) = torch.autograd.grad(together(scores)(t), t, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(first, t)[0], jacrev(grad(together(dense)))(ZERO))


def test_failures_are_said_in_every_direction():
    solver = ConjugateGradient(max_steps=2)
    with pytest.raises(SolveError, match="the solve ended as MAX_STEPS"):
        vmap(lambda y: scores(y, *POINT[1:], solver=solver))(BATCH)
    # A right-hand side that takes no step: only the tangent is hard.
    with pytest.raises(SolveError, match=r"the tangent solve \(forward mode\) ended as MAX_STEPS"):
        jvp(lambda y: scores(y, *POINT[1:], solver=solver), (torch.zeros(N, C).double(),), (POINT[0],))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jvp(lambda y: scores(y, *POINT[1:], solver=solver, on_failure="ignore"), POINT[:1], DIRECTION[:1])


def test_what_torch_does_not_allow():
    targets = POINT[0].clone().requires_grad_()
    value = scores(targets, *POINT[1:])
    with pytest.raises(RuntimeError, match="Batching rule not implemented"):
        torch.autograd.grad(value, targets, torch.ones(B, N, C).double(), is_grads_batched=True)
    with pytest.raises(RuntimeError):
        vmap(lambda y: y * (spread_labels(GRAPH, y).status is Status.CONVERGED))(BATCH)


def test_lifted_functions():
    """Outputs that do not depend on an input, inputs that are the same tensor, tangents of a few of them."""

    def function(x, y, z):
        return x * y.sin(), y * 2

    x, y, z = (random(4, seed=seed).requires_grad_() for seed in (1, 2, 3))
    assert torch.autograd.gradcheck(lambda *t: lift(function, *t), (x, y, z), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda *t: lift(function, *t), (x, y, z), check_fwd_over_rev=True)
    assert torch.autograd.gradcheck(lambda x: lift(function, x, x, x), (x,), check_forward_ad=True)
    (moved, still) = lift(push_forward(function, (0,), 3), x, y, z, z)
    torch.testing.assert_close(moved, z * y.sin())
    assert still.eq(0).all()
