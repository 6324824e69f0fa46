import pytest
import torch

from lspread.errors import ConfigError
from lspread.graph import Graph, build_graph, find_neighbors, normalize_graph
from lspread.labels import label_matrix, normalize_scores, reinforce_labels, sinkhorn_prior, spread_labels
from lspread.typing import UNLABELED
from tests.reference import seeded


def blobs(n=90, seed=0, dtype=torch.float64):
    true = torch.arange(n) % 3
    center = torch.tensor([[0.0, 0.0], [2.6, 0.0], [0.0, 2.6]], dtype=dtype)
    z = center[true] + torch.randn(n, 2, generator=seeded(seed), dtype=dtype)
    return normalize_graph(build_graph(z, find_neighbors(z, 6))), true


def one_label_each(true):
    label = torch.full_like(true, UNLABELED)
    label[:3] = true[:3]
    return label


@pytest.mark.parametrize("prior", ["none", "uniform"])
@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_by_hand(rounds, prior):
    graph, true = blobs()
    label, share, alpha = one_label_each(true), 0.4, 0.9
    inverse = (1 - alpha) * torch.linalg.inv(torch.eye(90, dtype=torch.float64) - alpha * graph.to_dense())
    given = torch.nn.functional.one_hot(true, 3).double()
    given[3:] = 0
    scores = inverse @ given
    for _ in range(rounds):
        probability = scores / scores.sum(1, keepdim=True)
        if prior == "uniform":
            probability = sinkhorn_prior(scores, torch.full((3,), 1 / 3, dtype=torch.float64))
        targets = 2 * given
        for c in range(3):
            rows = [i for i in range(90) if int(probability[i].argmax()) == c]
            rows.sort(key=lambda i: -float(probability[i, c]))
            sure = rows[: int(share * len(rows))]
            total = sum(float(probability[i, c]) for i in sure)
            for i in sure:
                targets[i, c] += probability[i, c] / total
        scores = inverse @ targets
    found = reinforce_labels(graph, label, 3, alpha=alpha, rounds=rounds, share=share, prior=prior)
    torch.testing.assert_close(found.value, scores, rtol=1e-5, atol=1e-9)
    if not rounds:
        plain = spread_labels(graph, label_matrix(label, 3, balance=True, dtype=torch.float64), alpha=alpha)
        torch.testing.assert_close(found.value, plain.value)


def test_it_helps_where_labels_are_few():
    gains = []
    for seed in range(12):
        graph, true = blobs(n=300, seed=seed, dtype=torch.float32)
        label = one_label_each(true)
        accuracy = [
            (reinforce_labels(graph, label, 3, rounds=rounds).value.argmax(1) == true).double().mean()
            for rounds in (0, 6)
        ]
        gains.append(float(accuracy[1] - accuracy[0]))
    assert sum(gains) / 12 > 0.02


def test_what_no_label_reaches_stays_without_score():
    graph = normalize_graph(Graph.from_edges(torch.tensor([[0, 1, 2, 3, 4, 5], [1, 0, 3, 2, 5, 4]]), num_nodes=7))
    label = torch.tensor([0, UNLABELED, 1, UNLABELED, UNLABELED, UNLABELED, UNLABELED])
    found = reinforce_labels(graph, label, 3, rounds=2)
    probability, is_reached = normalize_scores(found.value)
    assert is_reached.tolist() == [True] * 4 + [False] * 3
    assert probability[:4].argmax(1).tolist() == [0, 0, 1, 1]
    assert not found.value.requires_grad
    assert found.value[:, 2].eq(0).all(), "a class without a label gets none"


def test_errors():
    graph, true = blobs()
    for options in ({"rounds": -1}, {"share": 0.0}, {"share": 1.5}):
        with pytest.raises(ConfigError, match="rounds >= 0 and 0 < share <= 1"):
            reinforce_labels(graph, one_label_each(true), 3, **options)
