from dataclasses import replace

import pytest
import torch

from lspread.errors import GraphError
from lspread.graph import Graph, build_graph, degree, find_neighbors, normalize_graph
from tests import reference
from tests.reference import from_dense, seeded


def with_isolated_node(seed=0, n=12):
    w = reference.random_weights(n, seed=seed)
    w[5], w[:, 5] = 0, 0
    return w


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_symmetric(dtype):
    w = with_isolated_node()
    graph = normalize_graph(from_dense(w.to(dtype)))
    tolerance = {"rtol": 1e-5, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-15}
    torch.testing.assert_close(graph.to_dense().double(), reference.normalize(w), **tolerance)
    assert graph.edge_weight.dtype == dtype
    assert graph.is_symmetric
    assert graph.normalization == "symmetric"
    assert graph.to_dense()[5].eq(0).all()


def test_random_walk():
    w = with_isolated_node()
    graph = normalize_graph(from_dense(w), method="random_walk")
    torch.testing.assert_close(graph.to_dense(), reference.random_walk(w))
    total = graph.to_dense().sum(1)
    torch.testing.assert_close(total, (torch.arange(12) != 5).double())
    assert not graph.is_symmetric
    assert graph.normalization == "random_walk"


def test_spectrum():
    z = torch.randn(50, 3, generator=seeded(1), dtype=torch.float64)
    for how in ("mean", "max", "mutual"):
        s = normalize_graph(build_graph(z, find_neighbors(z, 4), symmetrize=how)).to_dense()
        eigenvalues = torch.linalg.eigvalsh(s)
        assert eigenvalues.min() >= -1 - 1e-12
        assert eigenvalues.max() == pytest.approx(1, abs=1e-12)
        torch.testing.assert_close(s, s.T)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_of_weights_changes_nothing(scale):
    graph = from_dense(with_isolated_node().float())
    scaled = replace(graph, edge_weight=graph.edge_weight * scale)
    torch.testing.assert_close(normalize_graph(scaled).edge_weight, normalize_graph(graph).edge_weight)


@pytest.mark.parametrize("method", ["symmetric", "random_walk"])
def test_gradient(method):
    # Node 0 keeps only edges of weight zero: its branch is not taken and must not poison the gradient.
    w = reference.random_weights(6, seed=2)
    graph = from_dense(w)
    weight = graph.edge_weight.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda weight: normalize_graph(replace(graph, edge_weight=weight), method=method).edge_weight, weight
    )
    assert torch.autograd.gradgradcheck(
        lambda weight: normalize_graph(replace(graph, edge_weight=weight), method=method).edge_weight, weight
    )
    silent = (graph.edge_weight * (graph.edge_index != 0).all(0)).requires_grad_()
    normalize_graph(replace(graph, edge_weight=silent), method=method).edge_weight.square().sum().backward()
    assert torch.isfinite(silent.grad).all()


def test_degree():
    w = with_isolated_node(seed=3)
    torch.testing.assert_close(degree(from_dense(w)), w.sum(1))


def test_errors():
    graph = from_dense(with_isolated_node())
    with pytest.raises(GraphError, match=r"not normalized yet; got 12 nodes.*normalization='symmetric'"):
        normalize_graph(normalize_graph(graph))
    one_way = Graph.from_edges(torch.tensor([[0, 1], [1, 2]]))
    with pytest.raises(GraphError, match=r"needs a symmetric graph.*is_symmetric=False.*symmetrize='mean'"):
        normalize_graph(one_way)
    with pytest.raises(GraphError, match=r"method must be 'symmetric' or 'random_walk'; got 'left'"):
        normalize_graph(graph, method="left")


def test_both_directions_of_an_edge_are_rounded_alike():
    z = torch.randn(300, 4, generator=seeded(0))
    matrix = normalize_graph(build_graph(z, find_neighbors(z, 8))).to_dense()
    assert torch.equal(matrix, matrix.T)
