import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from lspread.active import audit as module
from lspread.active import audit_labels
from lspread.errors import ConfigError, DataError, GraphError
from lspread.graph import Graph, build_graph, find_neighbors, normalize_graph
from lspread.labels import normalize_scores, spread_labels
from lspread.typing import UNLABELED
from tests.reference import seeded


def cloud(seed=0, n=40):
    z = torch.randn(n, 3, generator=seeded(seed), dtype=torch.float64)
    return normalize_graph(build_graph(z, find_neighbors(z, 6)))


def some_labels(n=40, m=12, c=3, seed=1):
    label = torch.full((n,), UNLABELED)
    label[torch.randperm(n, generator=seeded(seed))[:m]] = torch.arange(m) % c
    return label


@pytest.mark.parametrize("block", [3, 512])
def test_leaving_out_is_what_it_says(block, monkeypatch):
    """Each answer against a spread in which the label truly is missing, with the same weights."""
    monkeypatch.setattr(module, "BLOCK", block)
    graph, label = cloud(), some_labels()
    trust = torch.ones(12, dtype=torch.float64)
    for num_rounds in (1, 2, 3):
        audit = audit_labels(graph, label, 3, alpha=0.9, num_rounds=num_rounds, least=0.01)
        weight = trust.clamp(min=0.01)
        for position, item in enumerate(audit.index.tolist()):
            targets = torch.zeros(40, 3, dtype=torch.float64)
            targets[audit.index, audit.label] = weight
            targets[item] = 0
            targets /= targets.sum(0)
            scores = spread_labels(graph, targets, alpha=0.9).value
            expected = normalize_scores(scores)[0][item]
            torch.testing.assert_close(audit.probability[position], expected, rtol=1e-4, atol=1e-7)
        own = audit.probability.gather(1, audit.label[:, None]).squeeze(1)
        torch.testing.assert_close(audit.suspicion, 1 - own)
        trust = own / audit.probability.max(1).values
        torch.testing.assert_close(audit.trust, trust)
    assert torch.equal(audit.index, (label != UNLABELED).nonzero().flatten())
    assert torch.equal(audit.label, label[audit.index])
    assert torch.equal(audit.suggested, audit.probability.argmax(1))
    assert audit.suspicion[audit.order].diff().le(0).all()
    torch.testing.assert_close(audit.noise.sum(1), torch.bincount(audit.label, minlength=3).double())
    by_hand = torch.stack([audit.probability[audit.label == c].sum(0) for c in range(3)])
    torch.testing.assert_close(audit.noise, by_hand)


def test_where_nothing_speaks_a_label_is_left_alone():
    graph = normalize_graph(Graph.from_edges(torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]]), num_nodes=5))
    audit = audit_labels(graph, torch.tensor([0, 1, 1, UNLABELED, 0]), 2)
    assert audit.index.tolist() == [0, 1, 2, 4]
    assert audit.is_reached.tolist() == [True, True, False, False]
    assert audit.suspicion.tolist() == [1, 1, 0, 0]
    assert audit.trust.tolist() == [0, 0, 1, 1]
    assert audit.suggested.tolist() == [1, 0, 1, 0]


def test_the_only_label_of_a_class_cannot_be_confirmed_and_is_left_alone():
    graph, label = cloud(), some_labels()
    only = int((label == UNLABELED).nonzero()[0])
    label[only] = 3
    audit = audit_labels(graph, label, 4)
    position = int((audit.index == only).nonzero())
    assert not audit.is_reached[position]
    assert audit.suspicion[position] == 0
    assert audit.trust[position] == 1
    assert audit.suggested[position] == 3
    assert audit.is_reached.sum() == 12


def test_leaving_out_is_no_evidence_by_itself():
    """Where embeddings say nothing, the given class is the likeliest as often as any other, not less often."""
    is_own, n = [], 240
    for seed in range(6):
        label = some_labels(n=n, m=48, c=4, seed=seed)
        audit = audit_labels(cloud(seed=100 + seed, n=n), label, 4, num_rounds=1)
        is_own.append((audit.probability.argmax(1) == audit.label).double().mean())
    assert 0.15 < sum(is_own) / 6 < 0.35


def test_flipped_digits_are_found():
    data = load_digits()
    z, true = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)
    graph = normalize_graph(build_graph(z, find_neighbors(z, 10)))
    generator = seeded(3)
    label = torch.full_like(true, UNLABELED)
    chosen = torch.randperm(len(true), generator=generator)[:200]
    label[chosen] = true[chosen]
    flipped = chosen[:60]
    label[flipped] = (label[flipped] + torch.randint(1, 10, (60,), generator=generator)) % 10
    before = label.clone()
    audit = audit_labels(graph, label, 10)
    assert torch.equal(before, label)
    is_wrong = torch.isin(audit.index, flipped)
    assert roc_auc_score(is_wrong, audit.suspicion) > 0.97
    assert (audit.suggested == true[audit.index])[is_wrong].double().mean() > 0.9
    assert audit.trust[~is_wrong].mean() > 0.8 > 0.2 > audit.trust[is_wrong].mean()


def test_errors():
    graph, label = cloud(), some_labels()
    with pytest.raises(DataError, match="at least two of them on 40 nodes; got 1"):
        audit_labels(graph, some_labels(m=1), 3)
    with pytest.raises(DataError, match=r"got 12 in labels of shape \(41,\)"):
        audit_labels(graph, torch.cat([label, torch.tensor([UNLABELED])]), 3)
    with pytest.raises(ConfigError, match="num_rounds >= 1 and 0 < least <= 1; got num_rounds=0"):
        audit_labels(graph, label, 3, num_rounds=0)
    raw = build_graph(
        torch.randn(40, 2, generator=seeded(0)), find_neighbors(torch.randn(40, 2, generator=seeded(0)), 3)
    )
    with pytest.raises(GraphError, match="normalized"):
        audit_labels(raw, label, 3)
