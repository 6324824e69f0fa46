"""Which items a person should look at: those far from all labels, labels that look wrong, and what to label next."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lspread.active import Auto, audit_labels, make_pool
from lspread.graph import Graph
from lspread.labels import spread_labels
from lspread.typing import UNLABELED

__all__ = ["Shown", "advise", "choose_shown", "heard_of_labels", "missing_advice"]

REMOTE = 3.0
"""How many times less than usual an item hears of labels before that is worth a look."""
WORK = 2e7
"""Most nodes times labels and candidates to solve for in passing; `lspread audit` and `suggest` know no limit."""
CANDIDATES = (48, 500)
"""Least and most candidates that `Coverage` looks at."""

Advice: TypeAlias = list[tuple[int, str]]
"""Rows, and a phrase for people about each."""
Shown: TypeAlias = Mapping[str, Sequence[tuple[int, str | None]]]
"""Rows of each kind that a report shows, and a phrase about each where there is one to say."""


def advise(
    z: Tensor, graph: Graph, label: Tensor, class_names: Sequence[str], *, num_shown: int = 12, seed: int = 0
) -> dict[str, Advice]:
    """Return what deserves a look, as rows with a reason each.

    Args:
        z: Embeddings of the graph's p items `(p, d)`.
        graph: Normalized graph of these items.
        label: Given labels `(p,)` int64, `UNLABELED` elsewhere.
        class_names: Names of the c classes.
        num_shown: Most items of a kind.
        seed: Of the choice of what to label next.

    Returns:
        "novel": items without label that hear far less of any label than is usual, see `heard_of_labels`;
        "suspicious": given labels for which all others suggest another class, the most suspicious first; "to_label":
        what `Auto` would ask for. Each may be empty; the last two are missing where they would take long, see `WORK`.
    """
    found: dict[str, Advice] = {"novel": [], "suspicious": [], "to_label": []}
    is_given = label != UNLABELED
    unlabeled = (~is_given).nonzero().flatten()
    if is_given.any() and len(unlabeled):
        heard = heard_of_labels(graph, is_given)[unlabeled]
        typical = float(heard.median())
        order = [i for i in heard.argsort(stable=True)[:num_shown].tolist() if float(heard[i]) < typical / REMOTE]
        found["novel"] = [(int(unlabeled[i]), _remoteness(float(heard[i]), typical)) for i in order]
    fewest, most = CANDIDATES
    num_given = int(is_given.sum())
    affordable = int(WORK / graph.num_nodes) - num_given
    if num_given > 1 and affordable < 0:
        del found["suspicious"]
    elif num_given > 1:
        audit = audit_labels(graph, label, len(class_names))
        likeliest = audit.probability.amax(1)
        for i in [i for i in audit.order.tolist() if audit.suggested[i] != audit.label[i]][:num_shown]:
            name = class_names[int(audit.suggested[i])]
            found["suspicious"].append((int(audit.index[i]), f"looks like {name}, {100 * float(likeliest[i]):.0f} %"))
    if len(unlabeled) and affordable < fewest:
        del found["to_label"]
    elif len(unlabeled):
        asked = Auto(num_candidates=min(affordable, most), seed=seed)(
            make_pool(z, graph, label, len(class_names)), num_shown
        )
        found["to_label"] = list(zip(asked.index.tolist(), asked.name_classes(class_names), strict=True))
    return found


def missing_advice(found: Mapping[str, Any]) -> list[str]:
    """Return which kinds of advice were not sought, since they would have taken long."""
    return [kind for kind in ("novel", "suspicious", "to_label") if kind not in found]


def heard_of_labels(graph: Graph, is_given: Tensor, *, alpha: float = 0.99) -> Tensor:
    """Return how much of what every node hears from its surroundings comes from labeled nodes.

    Every node sends out 1 by (I - alpha S)^-1. What arrives at a node from labeled ones, over what arrives from all,
    does not depend on how many neighbors it has: near 0 far from all labels, 0 where none reaches it.

    Args:
        graph: Normalized graph of n nodes.
        is_given: Which nodes have a label `(n,)` bool.
        alpha: How far a node is heard.

    Returns:
        `(n,)` in [0, 1].
    """
    sent = torch.stack([is_given.to(graph.edge_weight.dtype), torch.ones_like(is_given, dtype=graph.edge_weight.dtype)])
    heard = spread_labels(graph, sent.T, alpha=alpha, on_failure="warn").value.clamp(min=0)
    return (heard[:, 0] / heard[:, 1].clamp(min=torch.finfo(heard.dtype).tiny)).clamp(max=1)


def _remoteness(heard: float, typical: float) -> str:
    if heard <= 0:
        return "no label reaches it"
    return f"hears {typical / heard:.0f} times less of labels than is usual"


def choose_shown(confidence: Tensor, predicted: Tensor, given: Tensor, unlabeled: Tensor, most: int) -> Shown:
    """Return which items a report shows, each with a note that says why, here none.

    Args:
        confidence: `(n,)`.
        predicted: Classes `(n,)` int64.
        given: Given labels `(n,)` int64, `UNLABELED` elsewhere.
        unlabeled: Items of which the surest and the least sure are shown `(m,)` int64.
        most: How many of either at most.

    Returns:
        "most_certain", classes in turn; "least_certain", the least certain first; "given", some of every class.
    """
    order = unlabeled[confidence[unlabeled].argsort(descending=True, stable=True)]
    half = min(most, len(order) // 2)
    chosen = {
        "most_certain": _classes_in_turn(order[: len(order) - half], predicted)[: max(half, 1)].tolist(),
        "least_certain": order[len(order) - half :].flip(0).tolist(),
        "given": _some_of_each_class(given),
    }
    return {kind: [(row, None) for row in rows] for kind, rows in chosen.items()}


def _classes_in_turn(order: Tensor, predicted: Tensor) -> Tensor:
    """Reorder items, best first, so that each class shows its best before any shows its second best."""
    rank = torch.empty_like(order)
    for c in predicted[order].unique().tolist():
        is_class = predicted[order] == c
        rank[is_class] = torch.arange(int(is_class.sum()))
    return order[rank.argsort(stable=True)]


def _some_of_each_class(given: Tensor, most: int = 40) -> list[int]:
    """Return some labeled rows of every class, about `most` in all."""
    classes = given[given != UNLABELED].unique().tolist()
    by_class = [(given == c).nonzero().flatten().tolist() for c in classes]
    share = max(1, most // len(by_class))
    return [row for rows in by_class for row in rows[:share]][: max(most, len(by_class))]
