"""float32 cannot make every residual 1e-5 of b: by default a solver asks for no less than rounding leaves."""

import pytest
import torch

from lspread.graph import build_graph, find_neighbors, normalize_graph
from lspread.labels import label_matrix, spread_labels
from lspread.nn import LabelSpreading
from lspread.solve import AutoSolver, Chebyshev, ConjugateGradient, Direct, FixedPoint, Status
from tests import reference
from tests.reference import seeded

SOLVERS = [ConjugateGradient(), Chebyshev(), Direct(), AutoSolver(), FixedPoint(max_steps=20000)]


def problem(seed, n=400, alpha=0.999):
    z = torch.randn(n, 3, generator=seeded(seed))
    label = torch.where(torch.arange(n) % 40 == 0, torch.arange(n) // 40 % 4, -1)
    return normalize_graph(build_graph(z, find_neighbors(z, 6))), label_matrix(label, 4), alpha


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("seed", range(3))
def test_float32_converges_by_default_and_the_bound_holds(solver, seed):
    graph, targets, alpha = problem(seed)
    found = spread_labels(graph, targets, alpha=alpha, solver=solver)
    assert found.status is Status.CONVERGED
    wanted = reference.spread(graph.to_dense().double(), targets.double(), alpha)
    error = (found.value - wanted).norm(dim=0)
    assert (error <= found.error_bound[0] + 1e-6).all()
    assert (error <= 1e-3 * wanted.norm(dim=0)).all()


def test_what_is_asked_for_by_name_is_not_softened():
    graph, targets, alpha = problem(0)
    solver = ConjugateGradient(rtol=1e-9)
    found = spread_labels(graph, targets, alpha=alpha, solver=solver, on_failure="ignore")
    assert found.status is not Status.CONVERGED


@pytest.mark.parametrize("n", [24, 1024])
@pytest.mark.parametrize("seed", range(3))
def test_backward_of_the_default_layer(n, seed):
    z = torch.randn(n, 128, generator=seeded(seed)).requires_grad_()
    label = torch.full((n,), -1)
    label[:10] = torch.arange(10)
    LabelSpreading(10)(z, label).square().sum().backward()
    assert torch.isfinite(z.grad).all()
