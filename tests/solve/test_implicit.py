"""The implicit gradient three ways: gradcheck, the dense solve under plain autograd, float32 against float64."""

import warnings
from dataclasses import replace

import pytest
import torch
from scipy.sparse import csr_array

from lspread.errors import SolveError
from lspread.graph import Gaussian, Graph, SelfTuning, build_graph, find_neighbors, normalize_graph
from lspread.labels import propagate_labels, spread_labels
from lspread.solve import ConjugateGradient, Direct, FixedPoint
from tests import reference
from tests.reference import seeded
from tests.solve.table import DIRECT, GENERAL, NEEDS_SPD, SOLVERS

N, D, K, C = 12, 3, 4, 2


def inputs(dtype=torch.float64, n=N, alpha=0.8):
    """Points, log bandwidth, alpha, soft targets: all leaves."""
    z = torch.randn(n, D, generator=seeded(1), dtype=torch.float64)
    targets = torch.rand(n, C, generator=seeded(2), dtype=torch.float64) * (torch.arange(n) % 3 == 0)[:, None]
    leaves = (z, torch.tensor(0.9), torch.tensor(alpha), targets)
    return tuple(leaf.to(dtype).requires_grad_() for leaf in leaves)


def scores(z, bandwidth, alpha, targets, solver=ConjugateGradient(), kernel=Gaussian, method="symmetric"):  # noqa: B008
    neighbors = find_neighbors(z, K)
    graph = normalize_graph(build_graph(z, neighbors, kernel=kernel(bandwidth)), method=method)
    return spread_labels(graph, targets, alpha=alpha, solver=solver).value


def dense_scores(z, bandwidth, alpha, targets, kernel=Gaussian, method="symmetric"):
    """The same in the open, with torch.linalg.solve, for plain autograd."""
    n = len(z)
    index, _ = reference.knn(z.detach(), K)
    squared = (z[:, None] - z[index]).square().sum(-1)
    if kernel is Gaussian:
        weight = torch.exp(-squared / (2 * bandwidth**2))
    else:
        width = squared.amax(1).sqrt()
        weight = torch.exp(-bandwidth * squared / (width[:, None] * width[index]))
    row = torch.arange(n)[:, None].expand_as(index)
    w = torch.zeros(n, n, dtype=z.dtype).index_put((row, index), weight)
    w = (w + w.T) / 2
    degree = w.sum(1)
    s = w / (degree[:, None] * degree).sqrt() if method == "symmetric" else w / degree[:, None]
    return (1 - alpha) * torch.linalg.solve(torch.eye(n, dtype=z.dtype) - alpha * s, targets)


def probe(shape, dtype=torch.float64):
    return torch.randn(shape, generator=seeded(3), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("kernel", [Gaussian, SelfTuning])
@pytest.mark.parametrize("name", SOLVERS)
def test_gradcheck(name, kernel):
    leaves = inputs(n=6, alpha=0.4)
    assert torch.autograd.gradcheck(lambda *leaves: scores(*leaves, solver=SOLVERS[name](), kernel=kernel), leaves)


@pytest.mark.parametrize("name", GENERAL)
def test_gradcheck_random_walk(name):
    """A is not symmetric: the backward pass must solve with its transpose."""
    assert torch.autograd.gradcheck(
        lambda *leaves: scores(*leaves, solver=SOLVERS[name](), method="random_walk"), inputs(n=6, alpha=0.4)
    )


@pytest.mark.parametrize("method", ["symmetric", "random_walk"])
@pytest.mark.parametrize("kernel", [Gaussian, SelfTuning])
@pytest.mark.parametrize("name", SOLVERS)
def test_against_plain_autograd(name, kernel, method):
    if method == "random_walk" and name in NEEDS_SPD:
        return
    ours, theirs = inputs(n=30), inputs(n=30)
    found = scores(*ours, solver=SOLVERS[name](), kernel=kernel, method=method)
    wanted = dense_scores(*theirs, kernel=kernel, method=method)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    found = torch.autograd.grad((found * probe((30, C))).sum(), ours)
    wanted = torch.autograd.grad((wanted * probe((30, C))).sum(), theirs)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", SOLVERS)
def test_float32_against_float64(name):
    wide, narrow = inputs(), inputs(torch.float32)
    # Float32 rounds the inputs too; the wide ones start from the same numbers.
    wide = tuple(leaf.detach().double().requires_grad_() for leaf in narrow)
    solver = SOLVERS[name](**{} if name in DIRECT else {"rtol": 2e-7})
    wanted = torch.autograd.grad((dense_scores(*wide) * probe((N, C))).sum(), wide)
    found = torch.autograd.grad((scores(*narrow, solver=solver) * probe((N, C), torch.float32)).sum(), narrow)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize("name", SOLVERS)
def test_edge_weights(name):
    """One parameter per undirected edge, so that the graph stays symmetric."""
    w = reference.random_weights(7, seed=4)
    pair = torch.triu(w).nonzero().T
    both = torch.cat([pair, pair.flip(0)], 1)
    order = torch.argsort(both[0] * 7 + both[1])
    number = torch.arange(pair.shape[1]).repeat(2)[order]
    graph = Graph.from_edges(both, w[both[0], both[1]])
    targets = torch.rand(7, C, generator=seeded(5), dtype=torch.float64)
    is_given = torch.arange(7) % 3 == 0
    theta = w[pair[0], pair[1]].clone().requires_grad_()

    def weighted(theta):
        return replace(graph, edge_weight=theta[number])

    def spread(theta):
        return spread_labels(normalize_graph(weighted(theta)), targets, alpha=0.5, solver=SOLVERS[name]()).value

    def propagate(theta, targets, ridge=0.1):
        return propagate_labels(weighted(theta), targets, is_given, ridge=ridge, solver=solver).value

    solver = SOLVERS[name]() if name not in ("fixed_point", "chebyshev") else ConjugateGradient()
    assert torch.equal(weighted(theta).edge_index, torch.stack([both[0][order], both[1][order]]))
    assert torch.autograd.gradcheck(spread, theta)
    assert torch.autograd.gradcheck(propagate, (theta, targets.clone().requires_grad_()))
    assert torch.autograd.gradcheck(lambda theta: propagate(theta, targets, ridge=0.0), theta)

    dense = torch.zeros(7, 7, dtype=torch.float64).index_put(tuple(both[:, order]), theta[number])
    wanted = torch.autograd.grad((reference.propagate(dense, targets, is_given) * probe((7, C))).sum(), theta)
    found = torch.autograd.grad((propagate(theta, targets, ridge=0.0) * probe((7, C))).sum(), theta)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def test_formulas_of_the_docstring():
    """dLoss/dS_ij = alpha sum_c L_ic F_jc, dLoss/dalpha = <L, S F - Y>, dLoss/dY = (1 - alpha) L, for entries of S."""
    graph = normalize_graph(Graph.from_scipy(csr_array(reference.random_weights(9).numpy())))
    s, targets, alpha = graph.to_dense(), torch.rand(9, C, generator=seeded(6), dtype=torch.float64), 0.7
    leaves = (
        graph.edge_weight.clone().requires_grad_(),
        targets.clone().requires_grad_(),
        torch.tensor(alpha).double(),
    )
    leaves[2].requires_grad_()
    found = spread_labels(replace(graph, edge_weight=leaves[0]), leaves[1], alpha=leaves[2]).value
    grads = torch.autograd.grad((found * probe((9, C))).sum(), leaves)
    adjoint = torch.linalg.solve(torch.eye(9).double() - alpha * s, probe((9, C)))
    f = reference.spread(s, targets, alpha)
    row, column = graph.edge_index
    torch.testing.assert_close(grads[0], alpha * (adjoint @ f.T)[row, column])
    torch.testing.assert_close(grads[1], (1 - alpha) * adjoint)
    torch.testing.assert_close(grads[2], (adjoint * (s @ f - targets)).sum())


@pytest.mark.parametrize("name", ["conjugate_gradient", "chebyshev", "direct"])
def test_second_derivatives(name):
    leaves = inputs(n=5, alpha=0.4)
    assert torch.autograd.gradgradcheck(lambda *leaves: scores(*leaves, solver=SOLVERS[name]()), leaves)


def test_second_derivative_random_walk():
    leaves = inputs(n=5, alpha=0.4)
    assert torch.autograd.gradgradcheck(lambda *leaves: scores(*leaves, solver=Direct(), method="random_walk"), leaves)


def test_hessian_vector_product_against_plain_autograd():
    products = []
    for function in (scores, dense_scores):
        leaves = inputs()
        first = torch.autograd.grad(function(*leaves).pow(2).sum(), leaves, create_graph=True)
        value = sum((grad * probe(grad.shape)).sum() for grad in first)
        products.append(torch.autograd.grad(value, leaves))
    for one, other in zip(*products, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("size", [1e-25, 1e20])
def test_size_of_the_loss_only_scales_the_gradient(size):
    """Losses scaled for mixed precision, and gradients of long products, come in any size."""
    leaves = inputs(torch.float32)
    value = (scores(*leaves) * probe((N, C), torch.float32)).sum()
    one = torch.autograd.grad(value, leaves, retain_graph=True)
    scaled = torch.autograd.grad(value, leaves, grad_outputs=torch.tensor(size))
    for small, large in zip(one, scaled, strict=True):
        expected = small.double() * size
        torch.testing.assert_close(large.double(), expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


def test_only_what_is_asked_for():
    z, bandwidth, alpha, targets = inputs()
    assert not scores(z.detach(), bandwidth.detach(), 0.8, targets.detach()).requires_grad
    with torch.no_grad():
        assert not scores(z, bandwidth, alpha, targets).requires_grad
    found = torch.autograd.grad(scores(z.detach(), 0.9, 0.8, targets).sum(), targets)
    wanted = torch.autograd.grad(dense_scores(z.detach(), 0.9, 0.8, targets).sum(), targets)
    torch.testing.assert_close(found, wanted)
    (found,) = torch.autograd.grad(scores(z, 0.9, 0.8, targets.detach()).sum(), z)
    (wanted,) = torch.autograd.grad(dense_scores(z, 0.9, 0.8, targets.detach()).sum(), z)
    torch.testing.assert_close(found, wanted)
    (found,) = torch.autograd.grad(scores(z.detach(), 0.9, alpha, targets.detach()).sum(), alpha)
    (wanted,) = torch.autograd.grad(dense_scores(z.detach(), 0.9, alpha, targets.detach()).sum(), alpha)
    torch.testing.assert_close(found, wanted)


def test_two_backward_passes():
    leaves = inputs()
    value = scores(*leaves).sum()
    first = torch.autograd.grad(value, leaves, retain_graph=True)
    second = torch.autograd.grad(value, leaves)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_failed_backward_solve_is_said():
    leaves = inputs()
    solver = ConjugateGradient(max_steps=2)
    graph = normalize_graph(build_graph(leaves[0], find_neighbors(leaves[0], K)))
    # A right first guess: the forward solve converges, the backward solve cannot.
    start = reference.spread(graph.to_dense().detach(), leaves[3].detach(), 0.9)
    for on_failure in ("raise", "warn", "ignore"):
        value = spread_labels(graph, leaves[3], alpha=0.9, solver=solver, initial=start, on_failure=on_failure).value
        loss = (value * probe((N, C))).sum()
        if on_failure == "raise":
            with pytest.raises(SolveError, match=r"the backward \(adjoint\) solve ended as MAX_STEPS"):
                torch.autograd.grad(loss, leaves[3], retain_graph=True)
        elif on_failure == "warn":
            with pytest.warns(RuntimeWarning, match=r"the backward \(adjoint\) solve ended as MAX_STEPS"):
                torch.autograd.grad(loss, leaves[3], retain_graph=True)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                torch.autograd.grad(loss, leaves[3], retain_graph=True)


def test_gradient_of_a_batch_is_its_loop():
    z = torch.randn(3, 8, D, generator=seeded(7), dtype=torch.float64)
    targets = torch.rand(24, C, generator=seeded(8), dtype=torch.float64)
    grads = []
    for graphs in ([z], list(z)):
        leaf = [part.clone().requires_grad_() for part in graphs]
        rows = targets.split([part[..., 0].numel() for part in leaf])
        values = [scores(part, 0.9, 0.8, row) for part, row in zip(leaf, rows, strict=True)]
        (torch.cat(values) * probe((24, C))).sum().backward()
        grads.append(torch.cat([part.grad.reshape(-1, D) for part in leaf]))
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-11)


def test_memory_does_not_grow_with_steps():
    """Nothing of the solve is kept: the same few tensors are saved, however many steps it takes."""
    counts = []
    for alpha in (0.5, 0.99):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=saved: kept.append(t.numel()) or t, lambda t: t):
            scores(*inputs()[:2], alpha, inputs()[3], solver=FixedPoint(rtol=1e-3))
        counts.append(sum(saved))
    assert counts[0] == counts[1]
