import numpy as np
import pytest
import scipy.sparse.csgraph
import torch
from hypothesis import given
from hypothesis import strategies as st

from lspread.graph import Graph, build_graph, connected_components, find_neighbors, normalize_graph
from tests.reference import from_dense, random_weights, seeded


def smallest_members(graph):
    """SciPy's components, each named by its smallest node."""
    _, number = scipy.sparse.csgraph.connected_components(graph.to_scipy(), directed=False)
    return torch.tensor([int(np.flatnonzero(number == component)[0]) for component in number], dtype=torch.int64)


@given(st.integers(1, 40), st.integers(0, 50), st.randoms(use_true_random=False))
def test_same_as_scipy(num_nodes, num_edges, random):
    ends = torch.tensor([[random.randrange(num_nodes) for _ in range(num_edges)] for _ in range(2)], dtype=torch.int64)
    graph = Graph.from_edges(torch.cat([ends, ends.flip(0)], 1), num_nodes=num_nodes)
    assert torch.equal(connected_components(graph), smallest_members(graph))


@pytest.mark.parametrize("order", ["up", "down", "shuffled", "zigzag"])
def test_long_chain(order):
    """The worst case for anything that looks one step further per round."""
    n = 3000
    node = torch.arange(n)
    place = {
        "up": node,
        "down": node.flip(0),
        "shuffled": torch.randperm(n, generator=seeded()),
        "zigzag": torch.stack([node[: n // 2], node[n // 2 :].flip(0)], 1).flatten(),
    }[order]
    ends = torch.stack([place[:-1], place[1:]])
    assert connected_components(Graph.from_edges(torch.cat([ends, ends.flip(0)], 1))).eq(0).all()


def test_slots_of_weight_zero_join_nothing():
    z = torch.cat([torch.randn(20, 3, generator=seeded()), 50 + torch.randn(15, 3, generator=seeded(1))])
    fixed = build_graph(z, find_neighbors(z, 5), coalesce=False)
    wanted = torch.tensor([0] * 20 + [20] * 15)
    assert torch.equal(connected_components(fixed), wanted)
    assert torch.equal(connected_components(normalize_graph(build_graph(z, find_neighbors(z, 5)))), wanted)


def test_graphs_of_a_batch_and_lone_nodes():
    w = torch.block_diag(random_weights(5), torch.zeros(2, 2).double(), random_weights(4, seed=1))
    graph = from_dense(w, torch.tensor([0, 5, 6, 11]))
    assert connected_components(graph).tolist() == [0] * 5 + [5, 6] + [7] * 4
    assert connected_components(Graph.from_edges(torch.zeros(2, 0, dtype=torch.int64), num_nodes=0)).shape == (0,)


@given(st.integers(1, 30), st.integers(0, 40), st.randoms(use_true_random=False))
def test_without_looking_the_rounds_are_enough(num_nodes, num_edges, random):
    """The path of a GPU, with real numbers."""
    ends = torch.tensor([[random.randrange(num_nodes) for _ in range(num_edges)] for _ in range(2)], dtype=torch.int64)
    graph = Graph.from_edges(torch.cat([ends, ends.flip(0)], 1), num_nodes=num_nodes)
    assert torch.equal(connected_components(graph, look=False), smallest_members(graph))
