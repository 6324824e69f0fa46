import pytest
import torch
from torch_geometric.data import Batch, Data

from lspread.errors import GraphError
from lspread.graph import CosinePower, Graph, KnnGraph, build_graph, find_neighbors
from tests.reference import seeded


def test_one_graph():
    x = torch.randn(20, 3, generator=seeded(1))
    data = KnnGraph(k=4)(Data(x=x))
    wanted = build_graph(x, find_neighbors(x, 4))
    torch.testing.assert_close(Graph.from_pyg(data).to_dense(), wanted.to_dense())
    assert data.edge_weight.shape == (wanted.num_edges,)


def test_batch_is_its_loop():
    parts = [Data(pos=torch.randn(n, 3, generator=seeded(n))) for n in (6, 9, 5)]
    batch = KnnGraph(k=3, symmetrize="max")(Batch.from_data_list(parts))
    each = [Graph.from_pyg(KnnGraph(k=3, symmetrize="max")(part)).to_dense() for part in parts]
    torch.testing.assert_close(Graph.from_pyg(batch).to_dense(), torch.block_diag(*each))
    assert Graph.from_pyg(batch).ptr.tolist() == [0, 6, 15, 20]


def test_positions_come_before_features_and_input_stays():
    data = Data(x=torch.randn(8, 2, generator=seeded(2)), pos=torch.randn(8, 3, generator=seeded(3)))
    done = KnnGraph(k=2)(data)
    wanted = build_graph(data.pos, find_neighbors(data.pos, 2)).to_dense()
    torch.testing.assert_close(Graph.from_pyg(done).to_dense(), wanted)
    assert data.edge_index is None, "the transform changed its input"


def test_no_feature_of_the_old_edges_stays():
    parts = [
        Data(x=torch.randn(n, 3, generator=seeded(n)), edge_index=torch.zeros(2, 4).long(), edge_attr=torch.ones(4, 5))
        for n in (6, 9)
    ]
    for given in (parts[0], Batch.from_data_list(parts)):
        data = KnnGraph(k=2)(given)
        assert data.edge_attr is None
        assert "edge_attr" not in data
        assert data.edge_index.shape[1] == len(data.edge_weight) > 4
    assert parts[0].edge_attr.shape == (4, 5), "the transform changed its input"


def test_options_and_repr():
    transform = KnnGraph(k=3, metric="cosine", kernel=CosinePower(gamma=2.0), symmetrize="mutual")
    x = torch.randn(15, 4, generator=seeded(4))
    wanted = build_graph(x, find_neighbors(x, 3, metric="cosine"), kernel=CosinePower(gamma=2.0), symmetrize="mutual")
    torch.testing.assert_close(Graph.from_pyg(transform(Data(x=x))).to_dense(), wanted.to_dense())
    assert repr(transform) == "KnnGraph(k=3, metric='cosine', kernel=CosinePower(gamma=2.0), symmetrize='mutual')"


def test_no_points():
    with pytest.raises(GraphError, match=r"needs data.pos or data.x; got neither"):
        KnnGraph(k=2)(Data(edge_index=torch.zeros(2, 0, dtype=torch.int64), num_nodes=4))
