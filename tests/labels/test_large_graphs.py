"""What only large graphs take, on small ones: compiled products, another order of nodes, columns a few at a time."""

from importlib.util import find_spec

import pytest
import torch

from lspread.graph import normalize_graph, product, reordering
from lspread.labels import propagate_labels, spread_labels
from lspread.solve import ConjugateGradient, Reordering, Status, solvers
from tests import reference
from tests.reference import from_dense, random_weights, seeded
from tests.solve.table import GENERAL, NEEDS_SPD, SOLVERS

N, C = 40, 7
IS_COMPILED = [False, True] if find_spec("numba") else [False]


@pytest.fixture(params=IS_COMPILED, ids=["torch", "compiled"][: len(IS_COMPILED)], autouse=True)
def _large(request, monkeypatch):
    """Call everything large; spreading, unlike propagation, is then solved by kernels where there are any."""
    monkeypatch.setattr(product, "LEAST_COMPILED", 0 if request.param else 1 << 60)
    monkeypatch.setattr(reordering, "CACHED_ELEMENTS", 0)
    monkeypatch.setattr(reordering, "LEAST_CELLS", 4)
    monkeypatch.setattr(reordering, "CELL", 3)
    monkeypatch.setattr(solvers, "LEAST_SPLIT", 0)
    monkeypatch.setattr(solvers, "MOST_COLUMNS", 3)
    calls = []
    if request.param:
        compiled = product.load_compiled()
        combine = compiled.combine_rows
        monkeypatch.setattr(compiled, "combine_rows", lambda *a, **k: (calls.append(1), combine(*a, **k)))
    yield
    is_dense = any(name in request.node.name for name in ("direct", "auto_small"))
    assert is_dense or bool(calls) is (request.param and "propagation" not in request.node.name)


def problem(dtype=torch.float64, method="symmetric", seed=0):
    w = random_weights(N, density=0.1, seed=seed)
    graph = normalize_graph(from_dense(w), method=method).to(dtype=dtype)
    targets = torch.rand(N, C, generator=seeded(1), dtype=torch.float64) * (torch.arange(N) % 4 == 0)[:, None]
    s = reference.normalize(w) if method == "symmetric" else reference.random_walk(w)
    return graph, targets.to(dtype), s


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_against_dense(name):
    graph, targets, s = problem()
    solution = spread_labels(graph, targets, alpha=0.9, solver=SOLVERS[name](rtol=1e-11))
    wanted = reference.spread(s, targets, 0.9)
    torch.testing.assert_close(solution.value, wanted, rtol=0, atol=1e-10)
    assert solution.status is Status.CONVERGED
    assert solution.residual.shape == solution.error_bound.shape == solution.tolerance.shape == (1, C)
    error = (solution.value - wanted).norm(dim=0)
    assert (error <= solution.error_bound[0] + 1e-15).all()


@pytest.mark.parametrize("name", NEEDS_SPD)
def test_float32(name):
    graph, targets, s = problem(torch.float32)
    found = spread_labels(graph, targets, alpha=0.99, solver=SOLVERS[name]()).value
    torch.testing.assert_close(found.double(), reference.spread(s, targets.double(), 0.99), rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", GENERAL)
def test_random_walk_and_its_gradient(name):
    graph, targets, s = problem(method="random_walk")
    weight, y = graph.edge_weight.requires_grad_(), targets.requires_grad_()
    probe = torch.randn(N, C, generator=seeded(2), dtype=torch.float64)
    found = spread_labels(graph, y, alpha=0.8, solver=SOLVERS[name](rtol=1e-12)).value
    dense = s.clone().requires_grad_()
    wanted = reference.spread(dense, targets, 0.8)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    grad = torch.autograd.grad((found * probe).sum(), (weight, y))
    exact = torch.autograd.grad((wanted * probe).sum(), (dense, targets))
    torch.testing.assert_close(grad, (exact[0][tuple(graph.edge_index)], exact[1]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NEEDS_SPD)
def test_gradients_against_dense(name):
    graph, targets, s = problem()
    leaves = graph.edge_weight.requires_grad_(), targets.requires_grad_(), torch.tensor(0.9, dtype=torch.float64)
    leaves[2].requires_grad_()
    probe = torch.randn(N, C, generator=seeded(2), dtype=torch.float64)
    found = spread_labels(graph, targets, alpha=leaves[2], solver=SOLVERS[name](rtol=1e-12)).value
    dense = s.clone().requires_grad_()
    wanted = reference.spread(dense, targets, leaves[2])
    grad = torch.autograd.grad((found * probe).sum(), leaves)
    exact = torch.autograd.grad((wanted * probe).sum(), (dense, *leaves[1:]))
    torch.testing.assert_close(grad, (exact[0][tuple(graph.edge_index)], *exact[1:]), rtol=0, atol=1e-8)


def test_alpha_per_node():
    graph, targets, s = problem()
    alpha = torch.linspace(0.5, 0.95, N, dtype=torch.float64)
    found = spread_labels(graph, targets, alpha=alpha, solver=ConjugateGradient(rtol=1e-12)).value
    torch.testing.assert_close(found, reference.spread_per_node(s, targets, alpha), rtol=0, atol=1e-10)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_propagation(ridge):
    w = random_weights(N, density=0.1)
    is_given = torch.arange(N) % 4 == 0
    targets = torch.rand(N, C, generator=seeded(1), dtype=torch.float64) * is_given[:, None]
    found = propagate_labels(from_dense(w), targets, is_given, ridge=ridge).value
    torch.testing.assert_close(found, reference.propagate(w, targets, is_given, ridge), rtol=0, atol=1e-9)
    assert torch.equal(found[is_given], targets[is_given])


def test_batch_equals_its_loop():
    w = torch.block_diag(random_weights(13, seed=1), random_weights(1), random_weights(26, seed=2))
    ptr = torch.tensor([0, 13, 14, 40])
    batch = normalize_graph(from_dense(w, ptr))
    targets = torch.rand(N, C, generator=seeded(1), dtype=torch.float64)
    found = spread_labels(batch, targets, alpha=0.9, solver=ConjugateGradient(rtol=1e-12))
    torch.testing.assert_close(found.value, reference.spread(reference.normalize(w), targets, 0.9), rtol=0, atol=1e-10)
    assert found.residual.shape == (3, C)
    # One graph has kernels of its own; they see this one when it comes alone.
    alone = normalize_graph(from_dense(w[:13, :13]))
    spread_labels(alone, targets[:13], alpha=0.9, solver=ConjugateGradient(rtol=1e-12))


def test_first_guess_saves_steps():
    graph, targets, _ = problem()
    solver = ConjugateGradient(rtol=1e-8)
    first = spread_labels(graph, targets, alpha=0.95, solver=solver)
    again = spread_labels(graph, targets, alpha=0.95, solver=solver, initial=first.value)
    assert again.num_steps < first.num_steps
    torch.testing.assert_close(again.value, first.value, rtol=0, atol=1e-7)


def test_order_is_found_once_for_both_directions(monkeypatch):
    graph, targets, _ = problem()
    found = []
    walk = reordering._walk
    monkeypatch.setattr(reordering, "_walk", lambda *a: (found.append(1), walk(*a))[1])
    weight = graph.edge_weight.requires_grad_()
    spread_labels(graph, targets, alpha=0.9).value.sum().backward()
    assert len(found) == 1
    assert weight.grad is not None


def test_reordering_leaves_operators_alone_that_know_no_order(monkeypatch):
    graph, targets, s = problem()
    monkeypatch.setattr("lspread.labels.operators.SpreadOperator.reordered", lambda self: None)
    solver = Reordering(ConjugateGradient(rtol=1e-12))
    found = spread_labels(graph, targets, alpha=0.9, solver=solver).value
    torch.testing.assert_close(found, reference.spread(s, targets, 0.9), rtol=0, atol=1e-10)
