"""What deserves a look: against graphs whose answer can be seen, and a dense solve."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lspread.graph import build_graph, find_neighbors, normalize_graph
from lspread.lit.advice import REMOTE, advise, heard_of_labels, missing_advice
from lspread.typing import UNLABELED

NAMES = ["cat", "dog", "owl"]


def graph_of(z, k=5):
    return normalize_graph(build_graph(z, find_neighbors(z, k)))


def islands(sizes=(30, 30, 30), seed=0):
    """Return points on islands, the third far from the others but joined to them by a chain of points."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.tensor([[0.0, 0.0], [4.0, 0.0], [14.0, 0.0]])
    parts = [center[i] + torch.randn(size, 2, generator=generator) * 0.6 for i, size in enumerate(sizes)]
    bridge = torch.stack([torch.linspace(1, 13, 25), torch.zeros(25)], 1)
    return torch.cat([*parts, bridge]), torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))


def test_heard_of_labels_is_a_dense_solve():
    z, _ = islands()
    graph = graph_of(z)
    is_given = torch.zeros(len(z), dtype=torch.bool)
    is_given[[0, 1, 40]] = True
    dense = torch.zeros(len(z), len(z), dtype=torch.float64)
    dense[graph.edge_index[0], graph.edge_index[1]] = graph.edge_weight.double()
    inverse = torch.linalg.inv(torch.eye(len(z), dtype=torch.float64) - 0.99 * dense)
    expected = inverse[:, is_given].sum(1) / inverse.sum(1)
    torch.testing.assert_close(heard_of_labels(graph, is_given).double(), expected, atol=1e-4, rtol=1e-3)
    assert heard_of_labels(graph, torch.ones_like(is_given)).allclose(torch.ones(len(z)))


def test_the_island_without_label_is_novel():
    z, place = islands()
    label = torch.full((len(z),), UNLABELED)
    label[:4], label[30:34] = 0, 1
    found = advise(z, graph_of(z), label, NAMES, num_shown=10)
    rows = [row for row, _ in found["novel"]]
    assert len(rows) == 10
    assert all(place[row] == 2 for row in rows)
    assert all(f"hears {times} times less" not in note for times in range(int(REMOTE)) for _, note in found["novel"])
    # Nobody asks for what has a label, and the first question goes to the island.
    asked = [row for row, _ in found["to_label"]]
    assert len(asked) == 10
    assert all(label[row] == UNLABELED for row in asked)
    assert place[asked[0]] == 2
    # Where labels are everywhere nothing is novel, and where none arrives that is said.
    label[60:64] = 2
    assert advise(z, graph_of(z), label, NAMES)["novel"] == []
    apart = torch.cat([z[:60], z[:20] + 1000])
    label = torch.full((80,), UNLABELED)
    label[0], label[30] = 0, 1
    assert advise(apart, graph_of(apart), label, NAMES)["novel"][0][1] == "no label reaches it"


def test_wrong_labels_are_suspicious_and_what_they_look_like_is_named():
    x, y = load_digits(return_X_y=True)
    z = torch.from_numpy(x).float()
    random = np.random.default_rng(0)
    label = torch.full((len(y),), UNLABELED)
    given = np.concatenate([random.choice(np.flatnonzero(y == c), 12, replace=False) for c in range(10)])
    label[given] = torch.from_numpy(y[given])
    wrong = given[::15]
    label[wrong] = (label[wrong] + 1) % 10
    names = [f"digit {c}" for c in range(10)]
    found = advise(z, graph_of(z, 7), label, names, num_shown=8)["suspicious"]
    notes = dict(found)
    right = [notes.get(row, "").startswith(f"looks like digit {y[row]}, ") for row in wrong.tolist()]
    assert sum(right) >= 7  # of eight


@pytest.mark.parametrize("num_labels", [0, 1, 12])
def test_few_labels_and_no_unlabeled_items(num_labels):
    z = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    label = torch.full((12,), UNLABELED)
    label[:num_labels] = torch.arange(num_labels) % 3
    found = advise(z, graph_of(z, 3), label, NAMES)
    assert found["suspicious"] == [] or num_labels > 1
    assert (len(found["to_label"]) == 12 - num_labels) or num_labels == 0
    assert num_labels != 12 or (found["novel"], found["to_label"]) == ([], [])


def test_nothing_is_missing_where_nothing_is_left_to_ask(monkeypatch):
    z, _ = islands()
    label = torch.zeros(len(z), dtype=torch.int64)
    monkeypatch.setattr("lspread.lit.advice.WORK", 0)
    assert missing_advice(advise(z, graph_of(z), label, NAMES)) == ["suspicious"]
    label[1:] = UNLABELED
    assert missing_advice(advise(z, graph_of(z), label, NAMES)) == ["to_label"]


def test_what_would_take_long_is_left_out(monkeypatch):
    z, _ = islands()
    label = torch.full((len(z),), UNLABELED)
    label[:4], label[30:34] = 0, 1
    whole = advise(z, graph_of(z), label, NAMES)
    assert whole["to_label"]
    assert missing_advice(whole) == []
    monkeypatch.setattr("lspread.lit.advice.WORK", len(z) * 40)  # enough for the audit, but not for 48 candidates more
    found = advise(z, graph_of(z), label, NAMES)
    assert found == {kind: rows for kind, rows in whole.items() if kind != "to_label"}
    assert missing_advice(found) == ["to_label"]
    monkeypatch.setattr("lspread.lit.advice.WORK", len(z) * 7)
    found = advise(z, graph_of(z), label, NAMES)
    assert found == {"novel": whole["novel"]}
    assert missing_advice(found) == ["suspicious", "to_label"]
