import numpy as np
import pytest
import scipy.sparse
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.nn import SimpleConv

from lspread.errors import GraphError
from lspread.graph import Graph, build_graph, find_neighbors, normalize_graph
from lspread.labels import spread_labels
from lspread.solve import Direct
from tests import reference
from tests.reference import seeded


def one_way_matrix(n=7, seed=0):
    generator = seeded(seed)
    keep = torch.rand(n, n, generator=generator) < 0.4
    return torch.rand(n, n, generator=generator, dtype=torch.float64) * keep


def test_from_edges_sorts_and_adds():
    graph = Graph.from_edges(torch.tensor([[2, 0, 2, 2], [1, 2, 0, 1]]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert graph.edge_index.tolist() == [[0, 2, 2], [2, 0, 1]]
    assert graph.edge_weight.tolist() == [2.0, 3.0, 5.0]
    assert graph.num_nodes == 3
    assert (graph.num_edges, graph.num_graphs) == (3, 1)
    assert not graph.is_symmetric


def test_from_edges_gradient_and_dense():
    index = torch.tensor([[2, 0, 2, 2], [1, 2, 0, 1]])
    weight = torch.rand(4, generator=seeded(1), dtype=torch.float64).requires_grad_()
    wanted = torch.zeros(3, 3, dtype=torch.float64).index_put(tuple(index), weight.detach(), accumulate=True)
    torch.testing.assert_close(Graph.from_edges(index, weight).to_dense().detach(), wanted)
    assert torch.autograd.gradcheck(lambda weight: Graph.from_edges(index, weight).to_dense(), weight)


@pytest.mark.parametrize("num_nodes", [None, 5])
def test_no_edges(num_nodes):
    graph = Graph.from_edges(torch.zeros(2, 0, dtype=torch.int64), num_nodes=num_nodes)
    assert graph.num_edges == 0
    assert graph.is_symmetric
    assert graph.to_dense().shape == (num_nodes or 0, num_nodes or 0)


@pytest.mark.parametrize(
    ("change", "is_symmetric"),
    [(0.0, True), (1e-8, True), (1e-3, False)],
)
def test_symmetry_is_found_out(change, is_symmetric):
    w = reference.random_weights(8, seed=2)
    w[0, 1] *= 1 + change
    index = w.nonzero().T
    order = torch.randperm(index.shape[1], generator=seeded(3))
    assert Graph.from_edges(index[:, order], w[tuple(index[:, order])]).is_symmetric is is_symmetric


def test_nearly_symmetric_weights_become_symmetric_exactly():
    w = reference.random_weights(30)
    w = w * (1 + 1e-7 * torch.rand(30, 30, generator=seeded(), dtype=torch.float64))
    index = w.nonzero().T
    weight = w[tuple(index)].requires_grad_()
    graph = Graph.from_edges(index, weight)
    assert graph.is_symmetric
    assert torch.equal(graph.to_dense(), (w + w.T) / 2)
    probe = torch.randn(30, 30, generator=seeded(1), dtype=torch.float64)
    (found,) = torch.autograd.grad((graph.to_dense() * probe).sum(), weight)
    torch.testing.assert_close(found, ((probe + probe.T) / 2)[tuple(index)])
    # Cholesky reads one triangle: the solution would not be that of the products.
    targets = torch.eye(30, 3, dtype=torch.float64)
    scores = spread_labels(normalize_graph(graph), targets, solver=Direct()).value
    wanted = reference.spread(reference.normalize((w + w.T) / 2), targets, 0.99)
    torch.testing.assert_close(scores, wanted)


def test_one_missing_edge_is_not_symmetric():
    assert Graph.from_edges(torch.tensor([[0, 1, 1], [1, 0, 2]])).is_symmetric is False
    assert Graph.from_edges(torch.tensor([[0, 1, 2], [1, 2, 0]])).is_symmetric is False
    assert Graph.from_edges(torch.tensor([[0, 1], [1, 0]])).is_symmetric is True


@pytest.mark.parametrize(
    ("index", "weight", "options", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.int64), None, {}, r"edge_index must be int64 of shape \(2, e\); got \(3, 2\)"),
        (torch.zeros(2, 2), None, {}, r"edge_index must be int64.*float32"),
        (torch.zeros(2, 2, dtype=torch.int64), torch.ones(3), {}, r"one weight per edge; got \(3,\)"),
        (torch.zeros(2, 2, dtype=torch.int64), torch.ones(2, dtype=torch.int64), {}, r"float32 or float64.*int64"),
        (torch.tensor([[0], [4]]), None, {"num_nodes": 3}, r"node numbers 0 to 2; got 0 to 4"),
        (torch.tensor([[0], [-1]]), None, {"num_nodes": 3}, r"node numbers 0 to 2; got -1 to 0"),
        (torch.tensor([[0], [1]]), torch.tensor([-1.0]), {}, r"finite and not negative"),
        (torch.tensor([[0], [1]]), torch.tensor([torch.nan]), {}, r"finite and not negative"),
        (torch.tensor([[0], [1]]), torch.tensor([torch.inf]), {}, r"finite and not negative"),
        (torch.tensor([[0], [1]]), None, {"ptr": torch.tensor([0, 3])}, r"ptr must run from 0 to num_nodes=2"),
        (torch.tensor([[0], [1]]), None, {"ptr": torch.tensor([0, 2, 1, 2])}, r"without decreasing"),
        (torch.tensor([[0], [1]]), None, {"ptr": torch.tensor([0, 1, 2])}, r"an edge joins two graphs of the batch"),
    ],
)
def test_from_edges_errors(index, weight, options, message):
    with pytest.raises(GraphError, match=message):
        Graph.from_edges(index, weight, **options)


@pytest.mark.parametrize("make", [scipy.sparse.csr_array, scipy.sparse.coo_matrix, scipy.sparse.csc_matrix])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scipy_round_trip(make, dtype):
    dense = one_way_matrix().numpy().astype(dtype)
    graph = Graph.from_scipy(make(dense))
    np.testing.assert_array_equal(graph.to_dense().numpy(), dense)
    back = graph.to_scipy()
    assert back.format == "csr"
    assert back.dtype == dtype
    assert back.indices.dtype == back.indptr.dtype == np.int32  # scikit-learn refuses int64 in many places
    np.testing.assert_array_equal(back.toarray(), dense)


def test_scipy_integers_boundaries_and_errors():
    two = scipy.sparse.csr_array(np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]]))
    graph = Graph.from_scipy(two, ptr=torch.tensor([0, 2, 3]))
    assert graph.edge_weight.dtype == torch.float64
    assert graph.num_graphs == 2
    assert graph.num_nodes == 3
    with pytest.raises(GraphError, match=r"square matrix; got \(2, 3\)"):
        Graph.from_scipy(scipy.sparse.csr_array(np.zeros((2, 3))))


def test_to_scipy_adds_free_slots():
    z = torch.randn(20, 3, generator=seeded(4), dtype=torch.float64)
    graph = build_graph(z, find_neighbors(z, 3), coalesce=False)
    np.testing.assert_allclose(graph.to_scipy().toarray(), graph.to_dense().numpy())


def test_pyg_edges_run_from_row_0_to_row_1():
    # PyG's own message passing is the judge: node 1 receives from node 0.
    w = one_way_matrix(seed=5)
    x = torch.randn(7, 3, generator=seeded(6), dtype=torch.float64)
    source, target = w.T.nonzero().T
    data = Data(edge_index=torch.stack([source, target]), edge_weight=w[target, source], num_nodes=7)
    passed = SimpleConv(aggr="sum")(x, data.edge_index, data.edge_weight)
    torch.testing.assert_close(Graph.from_pyg(data).to_dense() @ x, passed)
    back = Graph.from_pyg(data).to_pyg()
    torch.testing.assert_close(SimpleConv(aggr="sum")(x, back.edge_index, back.edge_weight), passed)
    torch.testing.assert_close(Graph.from_pyg(back).to_dense(), w)
    assert back.num_nodes == 7
    assert "batch" not in back


def test_pyg_batch_round_trip():
    generator = seeded(7)
    parts = []
    for n in (3, 1, 5):
        edges = torch.randint(n, (2, 6), generator=generator)
        parts.append(Data(edge_index=edges, edge_weight=torch.rand(6, generator=generator), num_nodes=n))
    batch = Batch.from_data_list(parts)
    graph = Graph.from_pyg(batch)
    assert graph.ptr.tolist() == [0, 3, 4, 9]
    blocks = torch.block_diag(*(Graph.from_pyg(part).to_dense() for part in parts))
    torch.testing.assert_close(graph.to_dense(), blocks)
    back = graph.to_pyg()
    assert back.batch.tolist() == batch.batch.tolist()
    assert back.ptr.tolist() == batch.ptr.tolist()
    again = Graph.from_pyg(back)
    assert again.ptr.tolist() == [0, 3, 4, 9]
    torch.testing.assert_close(again.to_dense(), blocks)


def test_pyg_tensors_and_attributes():
    index = torch.tensor([[0, 1], [1, 2]])
    weight = torch.tensor([2.0, 3.0])
    wanted = torch.zeros(3, 3)
    wanted[1, 0], wanted[2, 1] = 2, 3
    assert torch.equal(Graph.from_pyg(index, weight).to_dense(), wanted)
    assert torch.equal(
        Graph.from_pyg(Data(edge_index=index, edge_attr=weight[:, None], num_nodes=3)).to_dense(), wanted
    )
    assert torch.equal(Graph.from_pyg(Data(edge_index=index, num_nodes=3)).to_dense(), (wanted > 0).float())
    assert Graph.from_pyg(index, weight, num_nodes=5).num_nodes == 5
    assert Graph.from_pyg(index, batch=torch.tensor([0, 0, 0, 1])).ptr.tolist() == [0, 3, 4]
    with pytest.raises(GraphError, match=r"batch must be ascending"):
        Graph.from_pyg(index, batch=torch.tensor([0, 1, 0]))
    with pytest.raises(GraphError, match=r"one weight per edge"):
        Graph.from_pyg(Data(edge_index=index, edge_attr=torch.ones(2, 3), num_nodes=3))


def test_to():
    graph = Graph.from_edges(torch.tensor([[0, 1], [1, 0]]))
    assert graph.to().edge_weight.dtype == torch.float32
    wide = graph.to("cpu", torch.float64)
    assert wide.edge_weight.dtype == torch.float64
    assert wide.edge_index.dtype == torch.int64
    assert wide.is_symmetric
    assert wide.device == torch.device("cpu")


def test_a_batch_may_end_with_a_graph_without_nodes() -> None:
    pair = Data(edge_index=torch.tensor([[0, 1], [1, 0]]), num_nodes=2)
    empty = Data(edge_index=torch.empty(2, 0, dtype=torch.int64), num_nodes=0)
    graph = Graph.from_pyg(Batch.from_data_list([pair, empty]))
    assert graph.ptr.tolist() == [0, 2, 2]
    assert graph.num_graphs == 2
