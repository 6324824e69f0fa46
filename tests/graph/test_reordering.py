import pytest
import torch

from lspread.graph import Graph, build_graph, find_neighbors, normalize_graph, pays_to_reorder, reorder_graph
from tests.reference import from_dense, random_weights, seeded


def bandwidth(graph):
    return int((graph.edge_index[0] - graph.edge_index[1]).abs().max())


def test_same_graph_in_another_order():
    graph = normalize_graph(from_dense(random_weights(30)))
    reordered, permutation = reorder_graph(graph)
    assert torch.equal(permutation.sort().values, torch.arange(30))
    assert torch.equal(reordered.to_dense(), graph.to_dense()[permutation][:, permutation])
    assert (reordered.edge_index[0].diff() >= 0).all()
    assert (reordered.is_symmetric, reordered.normalization) == (True, "symmetric")


def test_neighbors_come_together():
    # A ring in random order: Cuthill-McKee numbers it outwards from one node.
    order = torch.randperm(50, generator=seeded(1))
    edges = torch.stack([order, order.roll(1)])
    graph = Graph.from_edges(torch.cat([edges, edges.flip(0)], 1))
    assert bandwidth(graph) > 20
    assert bandwidth(reorder_graph(graph)[0]) == 2


def test_graphs_of_a_batch_stay_apart():
    ptr = torch.tensor([0, 7, 7, 8, 20])
    z = torch.randn(20, 2, generator=seeded(2))
    graph = build_graph(z, find_neighbors(z, 2, ptr=ptr))
    reordered, permutation = reorder_graph(graph)
    assert torch.equal(reordered.ptr, ptr)
    owner = torch.repeat_interleave(ptr.diff())
    assert torch.equal(owner[permutation], owner)
    assert torch.equal(reordered.to_dense(), graph.to_dense()[permutation][:, permutation])


def test_directed_and_without_edges():
    z = torch.randn(12, 2, generator=seeded(3))
    graph = normalize_graph(build_graph(z, find_neighbors(z, 3)), method="random_walk")
    one_way = Graph(graph.edge_index[:, 5:], graph.edge_weight[5:], graph.ptr, 12)
    for each in (graph, one_way, Graph.from_edges(torch.empty(2, 0, dtype=torch.int64), num_nodes=3)):
        reordered, permutation = reorder_graph(each)
        assert torch.equal(reordered.to_dense(), each.to_dense()[permutation][:, permutation])


def test_gradient_reaches_the_weights():
    graph = from_dense(random_weights(8))
    weight = graph.edge_weight.clone().requires_grad_()
    probe = torch.randn(8, 8, generator=seeded(4), dtype=torch.float64)
    reordered, permutation = reorder_graph(Graph(graph.edge_index, weight, graph.ptr, 8, is_symmetric=True))
    (reordered.to_dense() * probe[permutation][:, permutation]).sum().backward()
    torch.testing.assert_close(weight.grad, probe[graph.edge_index[0], graph.edge_index[1]])


@pytest.mark.parametrize(
    ("num_nodes", "num_columns", "pays"), [(70_000, 1, False), (70_000, 10, True), (4096, 10, False)]
)
def test_rule(num_nodes, num_columns, pays):
    graph = Graph(torch.empty(2, 0, dtype=torch.int64), torch.empty(0), torch.tensor([0, num_nodes]), num_nodes)
    assert pays_to_reorder(graph, num_columns) is pays
    if pays:
        assert not pays_to_reorder(graph.to("meta"), num_columns)
