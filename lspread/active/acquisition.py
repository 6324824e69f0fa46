"""What to label next: the protocol that strategies follow, and what they look at and answer."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lspread.errors import ConfigError, DataError
from lspread.graph import Graph
from lspread.labels import label_matrix, normalize_scores, spread_labels
from lspread.typing import UNLABELED

__all__ = ["Acquisition", "Pool", "Suggestions", "make_pool"]


@dataclass(frozen=True, eq=False)
class Pool:
    """What a strategy may look at.

    Attributes:
        embedding: `(n, d)` of all items, with or without label.
        graph: Normalized graph of the n items.
        label: Given labels `(n,)` int64, `UNLABELED` elsewhere; there may be none at all.
        num_classes: Number of classes c, also of those without a label yet.
        probability: Class probabilities `(n, c)`, such as normalized spread scores; uniform where nothing arrived.
        is_reached: Whether any label says something about an item `(n,)` bool.
    """

    embedding: Tensor
    graph: Graph
    label: Tensor
    num_classes: int
    probability: Tensor
    is_reached: Tensor

    @property
    def is_open(self) -> Tensor:
        """Which items may be asked for `(n,)` bool: those without label."""
        return self.label == UNLABELED


@dataclass(frozen=True, eq=False)
class Suggestions:
    """Which items to label, the most useful first.

    Attributes:
        index: `(q,)` int64, distinct items without label.
        score: `(q,)`, what the strategy ranks by; larger is better, comparable within one call only.
        reason: Why each was chosen, a phrase for people.
    """

    index: Tensor
    score: Tensor
    reason: list[str]

    def name_classes(self, class_names: Sequence[str]) -> list[str]:
        """Return the reasons with the names of classes, which people know, in place of their numbers."""

        def name(found: re.Match[str]) -> str:
            return f"'{class_names[int(found[1])]}'"

        return [re.sub(r"\bclass (\d+)\b", name, reason) for reason in self.reason]


class Acquisition(Protocol):
    """A strategy: from a pool to suggestions. Any function or object that can be called like this will do."""

    def __call__(self, pool: Pool, num_queries: int) -> Suggestions:
        """Choose `num_queries` items without label, fewer where there are fewer."""
        ...


def make_pool(
    embedding: Tensor,
    graph: Graph,
    label: Tensor,
    num_classes: int,
    *,
    alpha: float = 0.99,
    probability: Tensor | None = None,
) -> Pool:
    """Spread the given labels, if there are any, and return what strategies look at.

    Args:
        embedding: `(n, d)`.
        graph: Normalized graph of the n items.
        label: `(n,)` int64, `UNLABELED` (-1) where unknown.
        num_classes: Number of classes c.
        alpha: How much a node listens to its neighbours.
        probability: Class probabilities `(n, c)` of a classifier, used instead of the graph's.

    Raises:
        DataError: Shapes do not fit.
    """
    n = graph.num_nodes
    if label.shape != (n,) or embedding.shape[:1] != (n,) or embedding.ndim != 2:
        raise DataError(
            f"make_pool needs embeddings (n, d) and labels (n,) for the n = {n} nodes of the graph; got "
            f"{tuple(embedding.shape)} and {tuple(label.shape)}."
        )
    if probability is not None and probability.shape != (n, num_classes):
        raise DataError(f"probability must be of shape {(n, num_classes)}; got {tuple(probability.shape)}.")
    targets = label_matrix(label, num_classes, balance=True, dtype=graph.edge_weight.dtype)
    scores = spread_labels(graph, targets, alpha=alpha, on_failure="warn").value
    spread, is_reached = normalize_scores(scores)
    return Pool(embedding, graph, label, num_classes, spread if probability is None else probability, is_reached)


def check_queries(pool: Pool, num_queries: int) -> int:
    """Return how many items can be asked for; raise `ConfigError` below 1, `DataError` where all have a label."""
    if num_queries < 1:
        raise ConfigError(f"num_queries must be at least 1; got {num_queries}.")
    num_open = int(pool.is_open.sum())  # sync: once per call
    if not num_open:
        raise DataError("every item has a label already; there is nothing left to ask for.")
    return min(num_queries, num_open)


def take_apart(pool: Pool, score: Tensor, num_queries: int) -> Tensor:
    """Return the items of the best scores, no two of them neighbours while others are left.

    A batch of the most doubtful items alone would show one doubtful place many times.

    Args:
        pool: Whose graph says who is whose neighbour.
        score: `(n,)`, larger is better; items with a label do not count.
        num_queries: How many; at most as many as are open.
    """
    n = len(score)
    order = torch.where(pool.is_open, score, -torch.inf).argsort(descending=True, stable=True)
    neighbor_of = _neighbors_of(pool.graph)
    is_beside = torch.zeros(n, dtype=torch.bool)
    first: list[int] = []
    later: list[int] = []
    for item in order[: int(pool.is_open.sum())].tolist():
        if len(first) == num_queries:
            break
        if is_beside[item]:
            later.append(item)
            continue
        first.append(item)
        is_beside[neighbor_of(item)] = True
    return torch.tensor((first + later)[:num_queries], device=score.device)


def _neighbors_of(graph: Graph) -> Callable[[int], Tensor]:
    row, column = graph.edge_index.cpu()
    start = torch.searchsorted(row, torch.arange(graph.num_nodes + 1))
    return lambda item: column[start[item] : start[item + 1]]
