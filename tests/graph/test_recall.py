from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lspread.errors import GraphError
from lspread.graph import find_neighbors, recall_at_k
from lspread.graph.rows import measure_pairs, search_rows
from tests import reference
from tests.reference import seeded

METRICS = ["euclidean", "cosine"]


def damage(found, share, seed=0):
    """Replace a share of the slots by the node itself, which is never a neighbor."""
    is_lost = torch.rand(found.index.shape, generator=seeded(seed)) < share
    node = torch.arange(found.num_nodes)[:, None].expand_as(found.index)
    return replace(found, index=torch.where(is_lost, node, found.index)), is_lost


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_all_nodes_give_the_true_recall(metric, share):
    z = torch.randn(200, 5, generator=seeded(0))
    found, is_lost = damage(find_neighbors(z, 7, metric=metric), share)
    recall = recall_at_k(found, z)
    assert float(recall) == pytest.approx((~is_lost).double().mean().item(), abs=1e-12)
    assert (recall.standard_error, recall.num_samples) == (0.0, 200)


def test_sample_and_its_standard_error():
    z = torch.randn(600, 4, generator=seeded(1))
    found, is_lost = damage(find_neighbors(z, 10), 0.2)
    true = (~is_lost).double().mean(1)
    several = [recall_at_k(found, z, num_samples=100, generator=seeded(seed)) for seed in range(40)]
    value = torch.tensor([recall.value for recall in several], dtype=torch.float64)
    wanted = (true.var() / 100 * (1 - 100 / 600)).sqrt()
    torch.testing.assert_close(
        torch.tensor([r.standard_error for r in several]).double().mean(), wanted, rtol=0.1, atol=0
    )
    torch.testing.assert_close(value.std(), wanted, rtol=0.3, atol=0)
    assert abs(value.mean() - true.mean()) < 4 * wanted / 40**0.5
    assert recall_at_k(found, z, num_samples=50, generator=seeded(5)) == recall_at_k(
        found, z, num_samples=50, generator=seeded(5)
    )


def test_ties_count_and_repetitions_do_not():
    z = torch.zeros(6, 2)
    found = find_neighbors(z, 2)
    index = torch.tensor([[1, 2], [5, 0], [3, 3], [3, 4], [4, 4], [-1, 0]])
    recall = recall_at_k(replace(found, index=index), z)
    # Rows: right, right, one repeated, itself and one, itself twice, one missing.
    assert recall.value == pytest.approx((1 + 1 + 0.5 + 0.5 + 0 + 0.5) / 6)


def test_graphs_of_all_sizes():
    sizes = [5, 1, 0, 3]
    z = torch.randn(9, 3, generator=seeded(2))
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    found = find_neighbors(z, 4, ptr=ptr)
    assert recall_at_k(found, z) == recall_at_k(found, z, num_samples=8)
    assert (recall_at_k(found, z).value, recall_at_k(found, z).num_samples) == (1.0, 8)
    other = find_neighbors(z, 4)  # neighbors of other graphs do not count
    mixed = replace(found, index=torch.where(found.is_neighbor, found.index, other.index))
    assert recall_at_k(mixed, z).value == 1
    stacked = torch.randn(3, 8, 2, generator=seeded(3))
    assert recall_at_k(find_neighbors(stacked, 3), stacked).value == 1


@pytest.mark.parametrize(
    ("z", "options", "message"),
    [
        (torch.zeros(5, 2), {}, r"needs the embeddings that neighbors were found in; got 5 rows.*neighbors of 6"),
        (torch.zeros(6, 2), {"num_samples": 0}, r"num_samples must be at least 1; got 0"),
    ],
)
def test_errors(z, options, message):
    with pytest.raises(GraphError, match=message):
        recall_at_k(find_neighbors(torch.zeros(6, 2), 2), z, **options)


def test_nobody_has_others():
    found = find_neighbors(torch.zeros(3, 2), 1)
    with pytest.raises(GraphError, match="no node has another one in its graph"):
        recall_at_k(replace(found, ptr=torch.tensor([0, 1, 2, 3])), torch.zeros(3, 2))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 40),
    d=st.integers(1, 4),
    k=st.integers(1, 10),
    metric=st.sampled_from(METRICS),
    shift=st.sampled_from([0.0, 1e4]),
    tile=st.sampled_from([1, 64, 1 << 23]),
    seed=st.integers(0, 1000),
)
def test_search_rows(n, d, k, metric, shift, tile, seed):
    z = torch.randn(n, d, generator=seeded(seed), dtype=torch.float64).round(decimals=1) + shift
    rows = torch.randperm(n, generator=seeded(seed))[: max(1, n // 2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lspread.graph.rows.TILE_ELEMENTS", tile)
        index = search_rows(z, rows, k, metric=metric, first=torch.zeros_like(rows), last=torch.full_like(rows, n))
        distance = measure_pairs(z, rows, index, metric=metric)
    num = min(k, n - 1)
    assert (index[:, num:] == -1).all()
    assert (index[:, :num] >= 0).all()
    wanted = reference.distances(z, metric)[rows]
    torch.testing.assert_close(distance[:, :num], wanted.topk(num, largest=False).values, rtol=1e-9, atol=1e-7)
    torch.testing.assert_close(distance[:, :num], wanted.gather(1, index[:, :num]), rtol=1e-9, atol=1e-7)


def test_zero_vectors():
    z = torch.cat([torch.eye(3), -torch.eye(3), torch.zeros(2, 3)]).double()
    rows = torch.arange(8)
    index = search_rows(z, rows, 7, metric="cosine", first=torch.zeros_like(rows), last=torch.full_like(rows, 8))
    distance = measure_pairs(z, rows, index, metric="cosine")
    torch.testing.assert_close(distance, reference.knn(z, 7, "cosine")[1])
