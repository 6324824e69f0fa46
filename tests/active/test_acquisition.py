import math

import pytest
import torch
from sklearn.datasets import load_digits

from lspread.active import (
    Auto,
    Coverage,
    Entropy,
    Margin,
    ProbCover,
    Random,
    Suggestions,
    TypiClust,
    VOptimality,
    make_pool,
)
from lspread.active.clusters import k_means
from lspread.active.uncertainty import leading_eigenvectors
from lspread.errors import ConfigError, DataError
from lspread.graph import Graph, build_graph, find_neighbors, normalize_graph
from lspread.typing import UNLABELED
from tests.reference import seeded

STRATEGIES = {
    "auto": Auto(),
    "coverage": Coverage(num_candidates=40),
    "entropy": Entropy(),
    "margin": Margin(),
    "probcover": ProbCover(),
    "random": Random(),
    "typiclust": TypiClust(),
    "vopt": VOptimality(num_components=12),
}


def groups(sizes=(30, 20, 10), seed=0, dtype=torch.float64):
    """Points in three far groups of different size, their graph and groups."""
    center = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], dtype=dtype)
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    z = center[group] + torch.randn(len(group), 2, generator=seeded(seed), dtype=dtype)
    return z, normalize_graph(build_graph(z, find_neighbors(z, 5))), group


def pool_of(label_at=(), **options):
    z, graph, group = groups(**options)
    label = torch.full((len(z),), UNLABELED)
    label[list(label_at)] = group[list(label_at)]
    return make_pool(z, graph, label, 3), group


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("label_at", [(), (0,), (3, 31, 55)], ids=["none", "one", "three"])
@pytest.mark.parametrize("num_queries", [1, 7, 100])
def test_every_strategy_asks_for_distinct_items_without_label(name, label_at, num_queries):
    pool, _ = pool_of(label_at)
    found = STRATEGIES[name](pool, num_queries)
    assert isinstance(found, Suggestions)
    expected = min(num_queries, 60 - len(label_at))
    assert len(found.index) == len(found.score) == len(found.reason) == expected
    assert len(found.index.unique()) == expected
    assert not torch.isin(found.index, torch.tensor(label_at, dtype=torch.int64)).any()
    assert torch.isfinite(found.score).all()
    assert all(found.reason)
    again = STRATEGIES[name](pool, num_queries)
    torch.testing.assert_close(again.index, found.index)


@pytest.mark.parametrize("name", STRATEGIES)
def test_bad_numbers_and_full_pools_are_refused(name):
    pool, _ = pool_of()
    with pytest.raises(ConfigError, match="num_queries must be at least 1; got 0"):
        STRATEGIES[name](pool, 0)
    pool, _ = pool_of(range(60))
    with pytest.raises(DataError, match="every item has a label already"):
        STRATEGIES[name](pool, 1)


@pytest.mark.parametrize("name", ["coverage", "probcover", "typiclust", "vopt", "auto"])
def test_coverage_asks_once_in_every_group_and_not_where_a_label_is(name):
    pool, group = pool_of()
    assert set(group[STRATEGIES[name](pool, 3).index].tolist()) == {0, 1, 2}
    pool, group = pool_of((4, 35))
    assert group[STRATEGIES[name](pool, 1).index].tolist() == [2]


def test_coverage_is_greedy_on_the_dense_inverse():
    pool, _ = pool_of((7,))
    alpha = 0.9
    inverse = torch.linalg.inv(torch.eye(60, dtype=torch.float64) - alpha * pool.graph.to_dense())
    speaks_for = inverse / inverse.diagonal()
    covered, chosen, gains = speaks_for[:, 7], [], []
    for _ in range(4):
        gain = [
            -1.0 if j == 7 or j in chosen else float((speaks_for[:, j] - covered).clamp(min=0).sum()) for j in range(60)
        ]
        chosen.append(max(range(60), key=gain.__getitem__))
        gains.append(gain[chosen[-1]])
        covered = torch.maximum(covered, speaks_for[:, chosen[-1]])
    found = Coverage(alpha=alpha, num_candidates=60)(pool, 4)
    assert found.index.tolist() == chosen
    assert found.score.tolist() == pytest.approx(gains, rel=1e-4)


def test_prob_cover_is_the_paper_by_loops():
    pool, _ = pool_of((7,))
    z = pool.embedding
    distance = torch.cdist(z, z)
    cluster = k_means(z, 3)
    radius = sorted(min(float(distance[i, j]) for j in range(60) if cluster[j] != cluster[i]) for i in range(60))[
        int(0.05 * 60)
    ]
    covered = {j for j in range(60) if distance[7, j] <= radius}
    chosen, newly_covered = [], []
    for _ in range(3):
        count = {
            i: sum(1 for j in range(60) if distance[i, j] <= radius and j not in covered)
            for i in range(60)
            if i != 7 and i not in chosen
        }
        chosen.append(max(count, key=lambda i: (count[i], -i)))
        newly_covered.append(count[chosen[-1]])
        covered |= {j for j in range(60) if distance[chosen[-1], j] <= radius}
    found = ProbCover(purity=0.95)(pool, 3)
    assert found.index.tolist() == chosen
    assert found.score.tolist() == newly_covered
    assert min(newly_covered) > 0
    for count, reason in zip(newly_covered, found.reason, strict=True):
        assert reason.startswith(f"{count} items within the radius")
    with pytest.raises(ConfigError, match=r"purity must be in \(0, 1\); got 1"):
        ProbCover(purity=1.0)(pool, 3)


def test_typiclust_takes_the_densest_of_the_largest():
    pool, group = pool_of()
    found = TypiClust(num_neighbors=4)(pool, 3)
    assert group[found.index].tolist() == [0, 1, 2], "the largest cluster first"
    for item in found.index.tolist():
        member = (group == group[item]).nonzero().flatten()
        distance = torch.cdist(pool.embedding[member], pool.embedding[member]).sort(1).values[:, 1:5].mean(1)
        assert member[distance.argmin()] == item
    # All clusters have a label then: the largest is asked again, for its next most typical item.
    assert group[TypiClust(max_clusters=3)(pool, 4).index].tolist() == [0, 1, 2, 0]


def test_v_optimality_takes_most_from_the_trace():
    pool, _ = pool_of((7,), sizes=(20, 15, 9))
    alpha, n = 0.9, 44
    covariance = torch.linalg.inv(torch.eye(n, dtype=torch.float64) - alpha * pool.graph.to_dense())

    def answered(c, i):
        return c - torch.outer(c[:, i], c[:, i]) / c[i, i]

    covariance = answered(covariance, 7)
    chosen = []
    for _ in range(4):
        trace = {i: float(answered(covariance, i).trace()) for i in range(n) if i != 7 and i not in chosen}
        chosen.append(min(trace, key=trace.__getitem__))
        covariance = answered(covariance, chosen[-1])
    assert VOptimality(alpha=alpha, num_components=n)(pool, 4).index.tolist() == chosen


@pytest.mark.parametrize("alpha", [0, 1, float("nan")])
def test_v_optimality_needs_a_graph_that_is_heard(alpha):
    with pytest.raises(ConfigError, match=r"alpha must lie in \(0, 1\); got"):
        VOptimality(alpha=alpha)


def test_leading_eigenvectors():
    _, graph, _ = groups()
    basis, value = leading_eigenvectors(graph, 8, num_rounds=40)
    wanted = torch.linalg.eigvalsh(graph.to_dense()).flip(0)[:8]
    torch.testing.assert_close(value, wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(basis.T @ basis, torch.eye(8, dtype=torch.float64), atol=1e-8, rtol=0)
    torch.testing.assert_close(graph.to_dense() @ basis[:, :3], basis[:, :3] * value[:3], atol=1e-4, rtol=0)


def test_doubt_is_measured_by_hand_and_taken_apart():
    z, graph, _ = groups()
    label = torch.full((60,), UNLABELED)
    probability = torch.full((60, 3), 1 / 3, dtype=torch.float64)
    probability[:] = torch.tensor([0.9, 0.05, 0.05])
    probability[3] = torch.tensor([0.45, 0.43, 0.12])
    probability[40] = torch.tensor([0.40, 0.30, 0.30])
    pool = make_pool(z, graph, label, 3, probability=probability)
    margin = Margin()(pool, 2)
    assert margin.index.tolist() == [3, 40]
    assert margin.score.tolist() == pytest.approx([0.98, 0.9])
    assert margin.reason[0] == "class 0 with 45 % or class 1 with 43 %"
    entropy = Entropy()(pool, 2)
    assert entropy.index.tolist() == [40, 3]
    hand = -(0.4 * math.log(0.4) + 0.6 * math.log(0.3)) / math.log(3)
    assert entropy.score[0].item() == pytest.approx(hand)
    near = int(graph.edge_index[1][graph.edge_index[0] == 3][0])
    probability[near] = torch.tensor([0.45, 0.44, 0.11])
    assert Margin()(pool, 2).index.tolist() == [near, 40], "3 is a neighbor of the item before"
    assert 3 in Margin()(pool, 60).index.tolist()


def test_auto_covers_first_and_then_looks_for_doubt():
    pool, _ = pool_of((0, 1, 2, 31, 32, 33, 51, 52, 53))
    assert torch.equal(Auto(num_labels_per_class=3)(pool, 2).index, Margin()(pool, 2).index)
    assert torch.equal(Auto(num_labels_per_class=4)(pool, 2).index, Coverage()(pool, 2).index)
    pool, _ = pool_of(range(30))  # many labels, of one class
    assert torch.equal(Auto()(pool, 2).index, Coverage()(pool, 2).index)


def test_random_draws_all_alike():
    pool, _ = pool_of((0, 1))
    count = torch.zeros(60)
    for seed in range(400):
        count[Random(seed)(pool, 6).index] += 1
    assert count[:2].sum() == 0
    expected = 400 * 6 / 58
    assert (count[2:] - expected).abs().max() < 5 * expected**0.5


def test_k_means():
    z, _, group = groups()
    cluster = k_means(z, 3, seed=1)
    assert len(set(zip(cluster.tolist(), group.tolist(), strict=True))) == 3
    assert k_means(torch.zeros(5, 2), 3).shape == (5,)
    assert k_means(z, 60).unique().numel() > 50


def test_pool_checks_its_shapes():
    z, graph, _ = groups()
    with pytest.raises(DataError, match=r"make_pool needs embeddings \(n, d\) and labels \(n,\) for the n = 60 nodes"):
        make_pool(z[:5], graph, torch.zeros(60, dtype=torch.int64), 3)
    with pytest.raises(DataError, match=r"probability must be of shape \(60, 3\); got \(60, 2\)"):
        make_pool(z, graph, torch.zeros(60, dtype=torch.int64), 3, probability=torch.zeros(60, 2))


def test_unreached_items_and_isolated_nodes_do_no_harm():
    graph = normalize_graph(Graph.from_edges(torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]]), num_nodes=6))
    pool = make_pool(torch.randn(6, 2, generator=seeded(0)), graph, torch.tensor([0, -1, -1, -1, -1, -1]), 2)
    assert pool.is_reached.tolist() == [True, True, False, False, False, False]
    for strategy in STRATEGIES.values():
        found = strategy(pool, 5)
        assert sorted(found.index.tolist()) == [1, 2, 3, 4, 5]
        assert torch.isfinite(found.score).all()
    assert "no label reaches it" in Entropy()(pool, 5).reason


def test_ten_digits_by_coverage_beat_ten_at_random_by_far():
    """Ten of 1,797 real digits, labeled by who knows: covering finds more classes and better items than chance."""
    data = load_digits()
    z, true = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)
    graph = normalize_graph(build_graph(z, find_neighbors(z, 15)))
    empty = make_pool(z, graph, torch.full((len(z),), UNLABELED), 10)

    def accuracy(strategy):
        label = empty.label.clone()
        chosen = strategy(empty, 10).index
        label[chosen] = true[chosen]
        answered = make_pool(z, graph, label, 10)
        return float((answered.probability.argmax(1) == true)[answered.is_open].double().mean())

    covered = [accuracy(Coverage(seed=seed)) for seed in range(3)]
    at_random = [accuracy(Random(seed=seed)) for seed in range(3)]
    assert sum(covered) / 3 >= sum(at_random) / 3 + 0.1
    assert min(covered) > 0.8


def test_reasons_name_classes():
    found = Suggestions(torch.arange(1), torch.ones(1), ["class 1 or class 2, class 10", "speaks for about 12 items"])
    names = ["cat", "dog", "owl", *"abcdefgh"]
    assert found.name_classes(names) == ["'dog' or 'owl', 'h'", "speaks for about 12 items"]
