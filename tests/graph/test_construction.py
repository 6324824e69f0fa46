import pytest
import torch

from lspread.errors import GraphError
from lspread.graph import CosinePower, Gaussian, SelfTuning, Uniform, build_graph, construction, find_neighbors
from tests import reference
from tests.reference import seeded

HOW = ["mean", "max", "mutual"]
SIZES = [7, 1, 0, 4, 12]


def directed_weights(z, k, metric="euclidean"):
    index, distance = reference.knn(z, k, metric)
    return reference.scatter(reference.self_tuning(distance, index), index)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("coalesce", [True, False])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_dense_formula(how, coalesce, needs_grad):
    z = torch.randn(40, 3, generator=seeded(1), dtype=torch.float64)
    neighbors = find_neighbors(z, 5)
    graph = build_graph(z.clone().requires_grad_(needs_grad), neighbors, symmetrize=how, coalesce=coalesce)
    wanted = reference.symmetrize(directed_weights(z, 5), how)
    torch.testing.assert_close(graph.to_dense().detach(), wanted, rtol=1e-10, atol=1e-13)
    assert graph.is_symmetric
    assert graph.normalization == "none"
    assert torch.equal(graph.ptr, neighbors.ptr)
    assert (graph.edge_index[0].diff() >= 0).all(), "not sorted by the receiving node"
    assert graph.edge_weight.requires_grad == needs_grad
    if coalesce:
        row, column = graph.edge_index
        assert graph.num_edges == int((wanted > 0).sum())
        assert len(torch.unique(row * 40 + column)) == graph.num_edges
        assert (row != column).all()
    else:
        assert graph.num_edges == 40 * 5 * (1 if how == "mutual" else 2)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("shape", [(40, 3), (5, 9, 3), (3, 4, 2)])
def test_edges_from_a_table_are_those_from_sorting(how, shape, monkeypatch):
    z = torch.randn(shape, generator=seeded(5), dtype=torch.float64)
    z.view(-1, shape[-1])[1] = z.view(-1, shape[-1])[0]  # twins stay neighbors
    neighbors = find_neighbors(z, 3)
    few = build_graph(z, neighbors, symmetrize=how)
    monkeypatch.setattr(construction, "MOST_CELLS", 0)
    many = build_graph(z, neighbors, symmetrize=how)
    assert torch.equal(few.edge_index, many.edge_index)
    assert torch.equal(few.edge_weight, many.edge_weight)


@pytest.mark.parametrize("how", HOW)
def test_symmetric_to_the_last_bit(how):
    z = torch.randn(60, 3, generator=seeded(2))
    dense = build_graph(z, find_neighbors(z, 6), symmetrize=how).to_dense()
    assert torch.equal(dense, dense.T)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("coalesce", [True, False])
def test_ragged_batch_is_its_loop(how, coalesce):
    z = torch.randn(sum(SIZES), 2, generator=seeded(3), dtype=torch.float64)
    ptr = torch.tensor([0, *SIZES]).cumsum(0)
    together = build_graph(z, find_neighbors(z, 4, ptr=ptr), symmetrize=how, coalesce=coalesce)
    blocks = []
    for start, size in zip(ptr.tolist(), SIZES, strict=False):
        part = z[start : start + size]
        block = torch.zeros(size, size, dtype=torch.float64)
        blocks.append(reference.symmetrize(directed_weights(part, min(4, size - 1)), how) if size > 1 else block)
    torch.testing.assert_close(together.to_dense(), torch.block_diag(*blocks), rtol=1e-10, atol=1e-13)
    assert together.num_graphs == len(SIZES)


@pytest.mark.parametrize("how", HOW)
def test_gradient_does_not_depend_on_coalescing(how):
    grads = []
    probe = torch.randn(30, 30, generator=seeded(4), dtype=torch.float64)
    for coalesce in (True, False):
        z = torch.randn(30, 3, generator=seeded(5), dtype=torch.float64, requires_grad=True)
        graph = build_graph(z, find_neighbors(z, 4), symmetrize=how, coalesce=coalesce)
        (graph.to_dense() * probe).sum().backward()
        grads.append(z.grad)
    torch.testing.assert_close(*grads)
    # The same through a dense graph that plain autograd sees whole.
    z = torch.randn(30, 3, generator=seeded(5), dtype=torch.float64, requires_grad=True)
    index, _ = reference.knn(z.detach(), 4)
    distance = (z[:, None] - z[index]).square().sum(-1).sqrt()
    node = torch.arange(30)[:, None].expand_as(index)
    directed = torch.zeros(30, 30, dtype=torch.float64).index_put((node, index), reference.self_tuning(distance, index))
    if how != "mutual":
        (reference.symmetrize(directed, how) * probe).sum().backward()
        torch.testing.assert_close(z.grad, grads[0])


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_distances_of_the_search_have_the_same_gradients(metric):
    z = torch.randn(30, 3, generator=seeded(5), dtype=torch.float64, requires_grad=True)
    z.data[4] = 0
    neighbors = find_neighbors(z, 4, metric=metric)
    probe = torch.randn(30, 30, generator=seeded(4), dtype=torch.float64)
    orders = []
    for remeasure in (True, False):
        graph = build_graph(z, neighbors, remeasure=remeasure)
        (first,) = torch.autograd.grad((graph.to_dense() * probe).sum(), z, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), z)
        orders.append((graph.edge_weight, first, second))
    torch.testing.assert_close(*orders)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kernel", [SelfTuning(), Gaussian(1.0), Uniform()])
def test_gradcheck(how, kernel):
    z = torch.randn(2, 5, 2, generator=seeded(6), dtype=torch.float64, requires_grad=True)
    neighbors = find_neighbors(z, 2)
    if isinstance(kernel, Uniform):
        kernel = CosinePower()
        neighbors = find_neighbors(z, 2, metric="cosine")
    assert torch.autograd.gradcheck(
        lambda z: build_graph(z, neighbors, kernel=kernel, symmetrize=how, coalesce=False).edge_weight, z
    )


def test_duplicates_get_the_largest_weight():
    z = torch.tensor([[0.0], [0.0], [1.0], [3.0]])
    dense = build_graph(z, find_neighbors(z, 2), kernel=Gaussian(1.0)).to_dense()
    assert dense[0, 1] == 1
    assert dense.diagonal().eq(0).all()


def test_mutual_can_leave_a_node_alone():
    z = torch.tensor([[0.0], [0.1], [0.2], [9.0]])
    graph = build_graph(z, find_neighbors(z, 1), kernel=Uniform(), symmetrize="mutual")
    assert graph.to_dense()[3].eq(0).all()


def test_half_precision_gives_float32():
    z = torch.randn(20, 3, generator=seeded(7)).bfloat16()
    graph = build_graph(z, find_neighbors(z, 3))
    wanted = build_graph(z.float(), find_neighbors(z.float(), 3))
    assert graph.edge_weight.dtype == torch.float32
    assert torch.equal(graph.edge_weight, wanted.edge_weight)


def test_errors():
    z = torch.randn(6, 2, generator=seeded(8))
    neighbors = find_neighbors(z, 2)
    with pytest.raises(GraphError, match=r"symmetrize must be one of .*got 'median'"):
        build_graph(z, neighbors, symmetrize="median")
    with pytest.raises(GraphError, match=r"got 5 rows of z and neighbors of 6 nodes"):
        build_graph(z[:5], neighbors)
