import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lspread.errors import ConfigError, GraphError, SolveError
from lspread.graph import Graph, connected_components, normalize_graph
from lspread.labels import PoissonOperator, label_matrix, poisson_labels, pseudo_labels, spread_labels
from lspread.labels.operators import layout_of
from lspread.solve import ConjugateGradient, Direct, FixedPoint, Status
from tests import reference
from tests.reference import from_dense, seeded

SOLVERS = {
    "default": None,
    "jacobi": ConjugateGradient(preconditioner="jacobi"),
    "fixed_point": FixedPoint(),
    "direct": Direct(),
}

LOOSE_SOLVERS = {
    "default": None,
    "jacobi": ConjugateGradient(rtol=1e-5, preconditioner="jacobi"),
    "fixed_point": FixedPoint(rtol=1e-5),
    "direct": Direct(rtol=1e-5),
}


def problem(n=14, num_classes=3, dtype=torch.float64):
    w = reference.random_weights(n)
    label = torch.full((n,), -1)
    label[:4] = torch.tensor([0, 1, 2, 0])
    return w, label, label_matrix(label, num_classes, dtype=dtype)


def symmetric_poisson(w, targets):
    is_given = targets.any(1)
    source = torch.where(is_given[:, None], targets - targets[is_given].mean(0), 0.0)
    s = reference.normalize(w)
    return torch.linalg.pinv(torch.eye(len(w), dtype=w.dtype) - s, hermitian=True) @ source


def close(found, wanted, atol=1e-9):
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


# Second opinions


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_against_the_pseudoinverse(solver):
    w, _, targets = problem()
    close(poisson_labels(from_dense(w), targets, solver=solver).value, reference.poisson(w, targets))
    found = poisson_labels(from_dense(w), targets, normalization="symmetric", solver=solver)
    close(found.value, symmetric_poisson(w, targets))
    close(w.sum(1).sqrt() @ found.value, torch.zeros(3).double())
    assert found.status is Status.CONVERGED
    assert found.error_bound.isinf().all()


def test_float32_answers_are_those_of_float64():
    """Two clusters that hardly touch: the potential is far larger than its sources."""
    w = torch.block_diag(reference.random_weights(30), reference.random_weights(30, seed=1))
    w[0, 30] = w[30, 0] = 1e-5
    targets = label_matrix(torch.tensor([0, *[-1] * 40, 1, *[-1] * 18]), 2)
    found = poisson_labels(from_dense(w.float()), targets)
    assert found.value.dtype == found.residual.dtype == found.tolerance.dtype == torch.float32
    wanted = reference.poisson(w.float().double(), targets.double())
    assert wanted.abs().max() > 100
    close(found.value.double() / wanted.abs().max(), wanted / wanted.abs().max(), atol=1e-5)


@pytest.mark.parametrize("solver", LOOSE_SOLVERS.values(), ids=LOOSE_SOLVERS)
@pytest.mark.parametrize("weak", [1e-7, 1e-12])
def test_labels_on_light_edges_do_not_outweigh_the_others(weak, solver):
    """What such a label sends out arrives at its one neighbor; in another component it changes nothing here."""
    n = 30
    w = torch.block_diag(reference.random_weights(n), torch.zeros(2, 2).double(), weak * (1 - torch.eye(3).double()))
    w[n, 3] = w[3, n] = w[n + 1, 20] = w[20, n + 1] = weak
    targets = label_matrix(torch.tensor([0, 1, *[-1] * (n - 2), 0, 1, 0, 1, -1]), 2)
    found = poisson_labels(from_dense(w.float()), targets, solver=solver)
    assert found.status is Status.CONVERGED
    value = found.value.double()
    source = torch.zeros(n, 2).double()
    source[[0, 3]], source[[1, 20]] = torch.tensor([[0.5, -0.5], [-0.5, 0.5]]).double()[:, None]
    inside = w[:n, :n]
    wanted = torch.linalg.pinv(inside.sum(1).diag() - inside, hermitian=True) @ source
    close(value[:n] - value[:n].mean(0), wanted, atol=1e-4)
    close(value[n + 2 :] * weak, torch.tensor([[1.0, -1], [-1, 1], [0, 0]]).double() / 6, atol=1e-5)


def test_a_gradient_from_a_light_edge_does_not_outweigh_the_others():
    w = torch.block_diag(reference.random_weights(20), torch.zeros(1, 1).double())
    w[20, 5] = w[5, 20] = 1e-10
    probe = torch.randn(21, 3, generator=seeded(2), dtype=torch.float64)
    targets = torch.eye(21, 3).double().requires_grad_()
    solver = ConjugateGradient(rtol=1e-5)
    (found,) = torch.autograd.grad(poisson_labels(from_dense(w), targets, solver=solver).value, targets, probe)
    # F is linear in Y: what one-hot rows change is what the gradient says.
    for column in range(3):
        moved = targets.detach().clone()
        moved[0, column] += 1
        change = poisson_labels(from_dense(w), moved).value - poisson_labels(from_dense(w), targets.detach()).value
        close((change * probe).sum(), found[0, column], atol=1e-4)


def test_graphlearning():
    """The authors' package, where it is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ssl = pytest.importorskip("graphlearning.ssl")
        w, label, targets = problem(40)
        labeled = np.flatnonzero(label.numpy() >= 0)
        theirs = ssl.poisson(from_dense(w).to_scipy(), tol=1e-13)._fit(labeled, label[labeled].numpy())
    close(poisson_labels(from_dense(w), targets).value, torch.tensor(np.asarray(theirs)), atol=1e-10)


def test_symmetric_is_the_limit_of_spreading():
    w, _, targets = problem()
    root = w.sum(1).sqrt()
    root = root / root.norm()
    centred = torch.where(targets.any(1, keepdim=True), targets - targets[:4].mean(0), 0)
    for alpha, atol in ((1 - 1e-4, 1e-3), (1 - 1e-7, 1e-6)):
        spread = spread_labels(normalize_graph(from_dense(w)), centred, alpha=alpha, solver=Direct(rtol=1e-8)).value
        spread = (spread - root[:, None] * (root @ spread)) / (1 - alpha)
        close(poisson_labels(from_dense(w), targets, normalization="symmetric").value, spread, atol=atol)


# Laws


@given(st.integers(2, 12), st.integers(0, 10**6))
def test_laws(n, seed):
    generator = seeded(seed)
    w = reference.random_weights(max(n, 3), seed=seed)
    n = len(w)
    label = torch.randint(-1, 3, (n,), generator=generator)
    label[0] = 0
    targets = label_matrix(label, 3, dtype=torch.float64)
    found = poisson_labels(from_dense(w), targets).value
    if len(label[label >= 0].unique()) > 1:
        close(found, reference.poisson(w, targets))
        close(found.sum(1), torch.zeros(n).double())
        close(w.sum(1) @ found, torch.zeros(3).double())
    order = torch.randperm(n, generator=generator)
    close(poisson_labels(from_dense(w[order][:, order]), targets[order]).value, found[order])
    # Sources do not depend on the scale of the weights; the potential is inversely proportional.
    if len(label[label >= 0].unique()) > 1:
        close(poisson_labels(from_dense(4 * w), targets).value, found / 4)


def test_balance_is_the_uniform_prior_up_to_one_factor():
    w, label, targets = problem()
    plain = poisson_labels(from_dense(w), targets).value
    balanced = poisson_labels(from_dense(w), label_matrix(label, 3, balance=True, dtype=torch.float64)).value
    close(balanced, plain / torch.tensor([2.0, 1.0, 1.0]).double())
    close(poisson_labels(from_dense(w), targets, prior="uniform").value, balanced * 4 / 3)


def test_priors():
    w, _, targets = problem()
    plain = poisson_labels(from_dense(w), targets).value
    close(poisson_labels(from_dense(w), targets, prior="labeled").value, plain)
    b = torch.tensor([0.2, 0.7, 0.1], dtype=torch.float64)
    wanted = plain * (b / torch.tensor([0.5, 0.25, 0.25]).double())
    close(poisson_labels(from_dense(w), targets, prior=b).value, wanted)
    # A class without labels keeps its zeros.
    more = torch.cat([targets, torch.zeros(14, 1).double()], 1)
    assert poisson_labels(from_dense(w), more, prior="uniform").value[:, 3].eq(0).all()


@pytest.mark.parametrize("normalization", ["none", "symmetric"])
def test_a_batch_is_its_loop(normalization):
    first, second = problem(), (reference.random_weights(9, seed=5), None, torch.eye(9, 3).double())
    w = torch.block_diag(first[0], second[0])
    graph = from_dense(w, torch.tensor([0, 14, 14, 23]))
    for prior in ("none", "uniform", "labeled"):
        together = poisson_labels(
            graph, torch.cat([first[2], second[2]]), normalization=normalization, prior=prior
        ).value
        alone = [
            poisson_labels(from_dense(w), targets, normalization=normalization, prior=prior).value
            for w, _, targets in (first, second)
        ]
        close(together, torch.cat(alone))


def test_components_are_problems_of_their_own():
    """Labels of two classes, of one class, no label, a lone node with and one without a label."""
    w = torch.block_diag(*(reference.random_weights(n, seed=n) for n in (9, 5, 6)), torch.zeros(2, 2).double())
    label = torch.full((22,), -1)
    label[[0, 3, 10, 11, 20]] = torch.tensor([0, 1, 2, 2, 1])
    targets = label_matrix(label, 3, dtype=torch.float64)
    start = torch.rand(22, 3, generator=seeded(), dtype=torch.float64)
    for options in ({}, {"solver": Direct()}, {"initial": start}, {"normalization": "symmetric"}):
        solution = poisson_labels(from_dense(w), targets, **options)
        found = solution.value
        assert solution.status is Status.CONVERGED
        if "normalization" not in options:
            close(found[:9], reference.poisson(w[:9, :9], targets[:9]))
        close(found[9:14], torch.tensor([[0.0, 0, 1]]).double().expand(5, 3))
        assert found[14:20].eq(0).all()
        close(found[20:], torch.tensor([[0.0, 1, 0], [0, 0, 0]]).double())
        pseudo = pseudo_labels(found, label)
        assert pseudo.is_reached.tolist() == [True] * 14 + [False] * 6 + [True, False]
        assert torch.isfinite(pseudo.weight).all()
        assert torch.equal(pseudo.label[9:14], torch.full((5,), 2))


def test_a_first_guess_saves_steps():
    w, _, targets = problem(60)
    cold = poisson_labels(from_dense(w), targets)
    warm = poisson_labels(from_dense(w), targets, initial=cold.value)
    assert warm.num_steps < cold.num_steps
    close(warm.value, cold.value)


def test_no_labels_and_no_edges():
    w, _, targets = problem()
    assert poisson_labels(from_dense(w), torch.zeros_like(targets)).value.eq(0).all()
    alone = Graph.from_edges(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0), num_nodes=3)
    found = poisson_labels(alone, label_matrix(torch.tensor([1, -1, 0]), 2)).value
    assert found.tolist() == [[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]


def test_soft_labels_that_agree_up_to_rounding():
    w = reference.random_weights(9)
    targets = torch.zeros(9, 3, dtype=torch.float64)
    targets[:7] = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    close(poisson_labels(from_dense(w), targets).value, targets[:1].expand(9, 3))


# Gradients


@pytest.mark.parametrize("normalization", ["none", "symmetric"])
def test_gradients(normalization):
    w, _, targets = problem(7)
    upper = torch.triu(w).nonzero().T
    targets = torch.where(targets.any(1, keepdim=True), targets + 0.1, 0)
    ptr = torch.tensor([0, 7])

    def solve(weight, soft, prior):
        both = torch.cat([upper, upper.flip(0)], 1)
        order = torch.argsort(both[0] * 7 + both[1])
        graph = Graph(both[:, order], weight.repeat(2)[order], ptr, 7, is_symmetric=True)
        rows = torch.where(targets.any(1, keepdim=True), soft, 0)
        return poisson_labels(graph, rows, normalization=normalization, prior=prior).value

    weight = w[upper[0], upper[1]].requires_grad_()
    inputs = (weight, targets.clone().requires_grad_(), torch.tensor([0.2, 0.3, 0.5]).double().requires_grad_())
    assert torch.autograd.gradcheck(solve, inputs)
    assert torch.autograd.gradgradcheck(solve, inputs)


def test_gradient_is_that_of_the_pseudoinverse():
    w, _, targets = problem()
    probe = torch.randn(14, 3, generator=seeded(2), dtype=torch.float64)
    graph = from_dense(w)
    weight = graph.edge_weight.clone().requires_grad_()
    (poisson_labels(replace(graph, edge_weight=weight), targets).value * probe).sum().backward()
    dense = w.clone().requires_grad_()
    (reference.poisson((dense + dense.T) / 2, targets) * probe).sum().backward()
    row, column = graph.edge_index
    found = torch.zeros_like(w).index_put((row, column), weight.grad)
    close((found + found.T) / 2, torch.where(w > 0, dense.grad, 0))


def test_gradient_with_lone_nodes_is_finite():
    w = torch.block_diag(reference.random_weights(6), torch.zeros(1, 1).double())
    graph = from_dense(w)
    weight = graph.edge_weight.clone().requires_grad_()
    targets = torch.eye(7, 2).double().requires_grad_()
    poisson_labels(replace(graph, edge_weight=weight), targets).value.square().sum().backward()
    assert torch.isfinite(weight.grad).all()
    assert torch.isfinite(targets.grad).all()


# The operator


def test_operator():
    w = torch.block_diag(reference.random_weights(6), reference.random_weights(5, seed=1), torch.zeros(1, 1).double())
    graph = from_dense(w)
    degree, component = w.sum(1), connected_components(graph)
    volume = torch.stack([degree[component == c].sum() for c in component])
    null = torch.where(degree > 0, (degree / volume.clamp(min=1e-300)).sqrt(), 0)
    layout_graph = normalize_graph(graph)
    operator = PoissonOperator(layout_of(graph), layout_graph.edge_weight, null, component, graph.ptr)
    dense = operator.matmul(torch.eye(12, dtype=torch.float64))
    q = torch.stack([torch.where(component == c, null, 0) for c in (0, 6)], 1)
    close(dense, torch.eye(12).double() - reference.normalize(w) + q @ q.T)
    close(operator.diagonal(), dense.diagonal())
    eigenvalues = torch.linalg.eigvalsh(dense)
    assert eigenvalues.min() > 0
    assert eigenvalues.max() <= 2 + 1e-12
    assert operator.transpose() is operator
    close(operator.matmul(q), q)


# Errors


def test_errors():
    w, _, targets = problem()
    graph = from_dense(w)
    with pytest.raises(GraphError, match=r"not normalized; got normalization='symmetric'.*choose the Laplacian"):
        poisson_labels(normalize_graph(graph), targets)
    with pytest.raises(GraphError, match=r"is_symmetric=False"):
        poisson_labels(replace(graph, is_symmetric=False), targets)
    with pytest.raises(ConfigError, match=r"normalization must be 'none' or 'symmetric'; got 'random_walk'"):
        poisson_labels(graph, targets, normalization="random_walk")
    with pytest.raises(ConfigError, match=r"prior must be 'none', 'uniform', 'labeled' or a tensor"):
        poisson_labels(graph, targets, prior="even")
    with pytest.raises(GraphError, match=r"targets must be of shape \(14, c\), torch.float64 on cpu"):
        poisson_labels(graph, targets.float())
    with pytest.raises(GraphError, match=r"initial must be of shape \(14, 3\)"):
        poisson_labels(graph, targets, initial=targets[:5])
    with pytest.raises(SolveError, match="MAX_STEPS"):
        poisson_labels(graph, targets, solver=ConjugateGradient(max_steps=1))
