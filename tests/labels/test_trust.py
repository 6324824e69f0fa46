from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lspread.errors import ConfigError, SolveError
from lspread.graph import Graph, build_graph, find_neighbors, normalize_graph
from lspread.labels import label_matrix, spread_labels
from lspread.solve import ConjugateGradient, Direct, FixedPoint, Status
from tests import reference
from tests.reference import from_dense, seeded

SOLVERS = {
    "conjugate_gradient": ConjugateGradient(),
    "jacobi": ConjugateGradient(preconditioner="jacobi"),
    "fixed_point": FixedPoint(),
    "direct": Direct(),
}


def problem(n=12, dtype=torch.float64):
    w = reference.random_weights(n)
    targets = torch.randn(n, 3, generator=seeded(1), dtype=torch.float64)
    alpha = 0.05 + 0.94 * torch.rand(n, generator=seeded(2), dtype=torch.float64)
    return w, targets.to(dtype), alpha.to(dtype)


def close(found, wanted, atol=1e-9):
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_closed_form(solver):
    w, targets, alpha = problem()
    found = spread_labels(normalize_graph(from_dense(w)), targets, alpha=alpha, solver=solver)
    wanted = reference.spread_per_node(reference.normalize(w), targets, alpha)
    close(found.value, wanted)
    assert found.status is Status.CONVERGED
    assert ((found.value - wanted).norm(dim=0) <= found.error_bound[0] + 1e-14 * wanted.norm()).all()


@pytest.mark.parametrize("solver", [ConjugateGradient(rtol=1e-2), FixedPoint(rtol=0.05)])
def test_error_bound_holds_when_stopped_early(solver):
    w, targets, alpha = problem(30)
    wanted = reference.spread_per_node(reference.normalize(w), targets, alpha)
    found = spread_labels(normalize_graph(from_dense(w)), targets, alpha=alpha, solver=solver)
    error = (found.value - wanted).norm(dim=0)
    assert (error > 1e-6).all(), "nothing to bound"
    assert (error <= found.error_bound[0]).all()


def test_is_the_minimum_of_the_cost():
    w, targets, alpha = problem()
    s, mu = reference.normalize(w), 1 / alpha - 1
    f = spread_labels(normalize_graph(from_dense(w)), targets, alpha=alpha).value.requires_grad_()
    scaled = f / w.sum(1).sqrt()[:, None]
    smooth = (w[:, :, None] * (scaled[:, None] - scaled[None]).square()).sum() / 2
    close(smooth, (f * (f - s @ f)).sum(), atol=1e-8)
    (grad,) = torch.autograd.grad(smooth + (mu[:, None] * (f - targets).square()).sum(), f)
    close(grad, torch.zeros_like(grad), atol=1e-8)


@given(st.sampled_from([0.0, 0.3, 0.9, 0.99]), st.integers(0, 10**6))
def test_law_equal_numbers_are_one_number(alpha, seed):
    w = reference.random_weights(8, seed=seed)
    graph, targets = normalize_graph(from_dense(w)), torch.randn(8, 2, generator=seeded(seed), dtype=torch.float64)
    one = spread_labels(graph, targets, alpha=alpha)
    each = spread_labels(graph, targets, alpha=torch.full((8,), alpha, dtype=torch.float64))
    close(each.value, one.value)
    close(one.value, reference.spread(reference.normalize(w), targets, alpha))


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_alpha_zero_holds_a_label(solver):
    w, targets, alpha = problem()
    alpha[::3] = 0
    found = spread_labels(normalize_graph(from_dense(w)), targets, alpha=alpha, solver=solver).value
    assert torch.equal(found[::3], targets[::3])
    a = torch.diag(alpha)
    wanted = torch.linalg.solve(torch.eye(12).double() - a @ reference.normalize(w), targets - a @ targets)
    close(found, wanted)
    assert torch.equal(
        spread_labels(normalize_graph(from_dense(w)), targets, alpha=torch.zeros(12), solver=solver).value, targets
    )


def test_flipped_labels_are_outvoted_where_they_are_not_trusted():
    """Two clusters; one label in each is wrong. Its alpha decides whether it stays."""
    z = torch.cat([torch.randn(40, 3, generator=seeded()), 4 + torch.randn(40, 3, generator=seeded(1))])
    true = torch.arange(80) // 40
    graph = normalize_graph(build_graph(z, find_neighbors(z, 8)))
    label = torch.where(torch.arange(80) % 4 == 0, true, -1)
    wrong = torch.tensor([8, 48])
    label[wrong] = 1 - true[wrong]
    targets = label_matrix(label, 2)
    for trust, kept in ((0.05, True), (0.999, False)):
        alpha = torch.full((80,), 0.9)
        alpha[wrong] = trust
        found = spread_labels(graph, targets, alpha=alpha).value.argmax(1)
        assert torch.equal(found[wrong], label[wrong] if kept else true[wrong])
        assert kept or torch.equal(found, true)


def test_a_batch_is_its_loop():
    w, targets, alpha = problem()
    graph = normalize_graph(from_dense(torch.block_diag(w, 2 * w[:5, :5]), torch.tensor([0, 12, 12, 17])))
    other = alpha[:5] / 2
    found = spread_labels(graph, torch.cat([targets, targets[:5]]), alpha=torch.cat([alpha, other])).value
    close(found[:12], reference.spread_per_node(reference.normalize(w), targets, alpha))
    close(found[12:], reference.spread_per_node(reference.normalize(w[:5, :5]), targets[:5], other))


def test_random_walk_graphs():
    w, targets, alpha = problem()
    graph = normalize_graph(from_dense(w), method="random_walk")
    a = torch.diag(alpha)
    wanted = torch.linalg.solve(torch.eye(12).double() - a @ reference.random_walk(w), targets - a @ targets)
    for solver in (FixedPoint(), Direct()):
        found = spread_labels(graph, targets, alpha=alpha, solver=solver)
        close(found.value, wanted)
        assert found.error_bound.isinf().all()
    assert spread_labels(graph, targets, alpha=0.5, solver=Direct()).error_bound.isinf().all()
    with pytest.raises(SolveError, match="symmetric positive definite"):
        spread_labels(graph, targets, alpha=alpha, solver=ConjugateGradient())


def test_first_guess():
    w = torch.block_diag(reference.random_weights(30), reference.random_weights(6, seed=1))
    targets = torch.eye(36, 3).double()
    alpha = 0.9 + 0.09 * torch.rand(36, generator=seeded(), dtype=torch.float64)
    alpha[0] = 0
    graph = normalize_graph(from_dense(w))
    solver = ConjugateGradient(check_every=1)
    cold = spread_labels(graph, targets, alpha=alpha, solver=solver)
    start = cold.value + 1e-3 * torch.rand(36, 3, generator=seeded(1), dtype=torch.float64)
    warm = spread_labels(graph, targets, alpha=alpha, initial=start, solver=solver)
    close(warm.value, cold.value)
    assert warm.value[30:].eq(0).all()
    assert warm.num_steps < cold.num_steps


# Gradients


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("method", ["symmetric", "random_walk"])
def test_gradcheck(method, held):
    """Also at alpha = 0, where a square root would have no slope; there the step is taken to one side."""
    w, targets, alpha = problem(6)
    upper = torch.triu(w).nonzero().T
    both = torch.cat([upper, upper.flip(0)], 1)
    order = torch.argsort(both[0] * 6 + both[1])
    solver = ConjugateGradient() if method == "symmetric" else Direct()

    def solve(weight, targets, alpha):
        graph = Graph(both[:, order], weight.repeat(2)[order], torch.tensor([0, 6]), 6, is_symmetric=True)
        alpha = torch.cat([alpha.new_zeros(2), alpha[2:]]) if held else alpha
        return spread_labels(normalize_graph(graph, method=method), targets, alpha=alpha, solver=solver).value

    inputs = [tensor.requires_grad_() for tensor in (w[upper[0], upper[1]], targets, alpha)]
    assert torch.autograd.gradcheck(solve, inputs)
    assert torch.autograd.gradgradcheck(solve, inputs)


def test_gradient_at_zero_and_everywhere_is_that_of_the_dense_solve():
    w, targets, alpha = problem()
    alpha[:4] = 0
    probe = torch.randn(12, 3, generator=seeded(3), dtype=torch.float64)
    graph = normalize_graph(from_dense(w))
    ours = [tensor.clone().requires_grad_() for tensor in (graph.edge_weight, targets, alpha)]
    found = spread_labels(replace(graph, edge_weight=ours[0]), ours[1], alpha=ours[2]).value
    grads = torch.autograd.grad((found * probe).sum(), ours)
    dense = [tensor.clone().requires_grad_() for tensor in (reference.normalize(w), targets, alpha)]
    a = torch.diag(dense[2])
    wanted = torch.linalg.solve(torch.eye(12).double() - a @ dense[0], dense[1] - a @ dense[1])
    wanted = torch.autograd.grad((wanted * probe).sum(), dense)
    close(grads[0], wanted[0][graph.edge_index[0], graph.edge_index[1]])
    close(grads[1], wanted[1])
    close(grads[2], wanted[2])
    assert (grads[2][:4].abs() > 1e-3).all()


def test_float32_gradient():
    w, targets, alpha = problem(dtype=torch.float32)
    grads = []
    for dtype in (torch.float32, torch.float64):
        leaf = alpha.to(dtype, copy=True).requires_grad_()
        graph = normalize_graph(from_dense(w.to(dtype)))
        spread_labels(graph, targets.to(dtype), alpha=leaf).value.square().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[0].double(), grads[1], rtol=1e-3, atol=1e-3)


# Errors


def test_errors():
    w, targets, _ = problem()
    graph = normalize_graph(from_dense(w))
    for alpha in (torch.full((11,), 0.5), torch.full((12, 1), 0.5), torch.zeros(12, dtype=torch.int64)):
        with pytest.raises(
            ConfigError, match=r"0-dimensional float tensor, or one number per node, shape \(12,\); got"
        ):
            spread_labels(graph, targets, alpha=alpha)
    for wrong, shown in ((1.0, "0.5 to 1.0"), (-0.5, "-0.5 to 0.5"), (float("nan"), "nan")):
        with pytest.raises(ConfigError, match=rf"alpha must lie in \[0, 1\).*got {shown}"):
            spread_labels(graph, targets, alpha=torch.tensor([0.5] * 11 + [wrong]))
