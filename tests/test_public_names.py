"""The surface: what the top level offers, and the names and call shapes that code is written against."""

import importlib
import inspect

import pytest
import torch

import lspread
from tests.reference import seeded

NAMES = [
    "UNLABELED",
    "Graph",
    "LabelPropagation",
    "LabelSpreading",
    "LspreadError",
    "Neighbors",
    "__version__",
    "build_graph",
    "embed",
    "find_neighbors",
    "label_matrix",
    "normalize_graph",
    "propagate_labels",
    "pseudo_labels",
    "spread_labels",
]
ROOMS = ["lspread.graph", "lspread.solve", "lspread.labels", "lspread.nn", "lspread.errors", "lspread.typing"]

# Positional arguments first, keyword-only options after the bar.
CALLS = {
    "lspread.graph.find_neighbors": "z, k | metric, ptr, batch, backend",
    "lspread.graph.build_graph": "z, neighbors | kernel, symmetrize, coalesce",
    "lspread.graph.normalize_graph": "graph | method",
    "lspread.labels.label_matrix": "label, num_classes | balance, ptr, dtype",
    "lspread.labels.spread_labels": "graph, targets | alpha, solver, initial, on_failure",
    "lspread.labels.propagate_labels": "graph, targets, is_given | ridge, solver, initial, on_failure",
    "lspread.labels.pseudo_labels": "scores, label | prior, balance_floor",
    "lspread.labels.pseudo_label_loss": "logits, pseudo, index | reduction",
    "lspread.nn.embed": "backbone, loader",
    "lspread.nn.LabelSpreading": "num_classes | alpha, learn_alpha, k, kernel",
}


def find(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_top_level():
    assert sorted(lspread.__all__) == sorted(NAMES)
    assert set(NAMES) <= set(dir(lspread))
    assert all(getattr(lspread, name) is not None for name in NAMES)
    assert lspread.UNLABELED == -1
    assert lspread.find_neighbors is find("lspread.graph.find_neighbors")
    with pytest.raises(AttributeError, match="module 'lspread' has no attribute 'find_neighbours'"):
        _ = lspread.find_neighbours


@pytest.mark.parametrize("room", ROOMS)
def test_all_is_true_and_sorted(room):
    module = importlib.import_module(room)
    assert all(hasattr(module, name) for name in module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)
    with pytest.raises(AttributeError):
        _ = module.no_such_name


@pytest.mark.parametrize("path", CALLS)
def test_call_shapes(path):
    positional, _, keyword = CALLS[path].partition(" | ")
    parameters = inspect.signature(find(path)).parameters.values()
    in_order = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert in_order == positional.split(", ")
    only = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert set(keyword.split(", ") if keyword else []) <= only
    assert not [p.name for p in parameters if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)], "a typo would be swallowed"


@pytest.mark.parametrize(
    ("error", "parents"),
    [
        ("GraphError", (ValueError,)),
        ("ConfigError", (ValueError,)),
        ("DataError", (ValueError,)),
        ("SolveError", (RuntimeError,)),
    ],
)
def test_errors_have_one_root(error, parents):
    kind = find(f"lspread.errors.{error}")
    assert issubclass(kind, (lspread.LspreadError,))
    assert issubclass(kind, parents)


def test_the_flow_from_embeddings_to_loss():
    """Section by section: the eight steps with the shapes that the design gives them."""
    from lspread.graph import build_graph, find_neighbors, normalize_graph
    from lspread.labels import label_matrix, pseudo_label_loss, pseudo_labels, spread_labels

    n, k, c = 40, 6, 3
    z = torch.randn(n, 5, generator=seeded(0))
    label = torch.full((n,), lspread.UNLABELED)
    label[:c] = torch.arange(c)
    neighbors = find_neighbors(z, k, metric="cosine", ptr=torch.tensor([0, n]), backend="exact")
    assert (neighbors.index.shape, neighbors.index.dtype) == ((n, k), torch.int64)
    graph = normalize_graph(build_graph(z, neighbors, symmetrize="max"))
    assert (graph.is_symmetric, graph.normalization, graph.num_nodes) == (True, "symmetric", n)
    targets = label_matrix(label, c)
    assert targets.sum() == c
    solution = spread_labels(graph, targets, alpha=0.9)
    assert solution.value.shape == (n, c)
    assert solution.error_bound.shape == (1, c)
    assert solution.status.name == "CONVERGED"
    pseudo = pseudo_labels(solution.value, label, prior="uniform")
    assert torch.equal(pseudo.label[:c], label[:c])
    logits = torch.zeros(4, c, requires_grad=True)
    loss = pseudo_label_loss(logits, pseudo, torch.tensor([0, 1, 2, 30]))
    rows = pseudo.label[[0, 1, 2, 30]]
    weight = pseudo.weight[[0, 1, 2, 30]] * pseudo.class_weight[rows]
    torch.testing.assert_close(loss, weight.mean() * torch.tensor(float(c)).log())
