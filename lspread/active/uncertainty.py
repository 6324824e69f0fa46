"""Strategies that ask where the answer is in doubt, and the one that asks anywhere."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lspread.active.acquisition import Pool, Suggestions, check_queries, take_apart
from lspread.active.coverage import Coverage
from lspread.errors import ConfigError
from lspread.graph import Graph
from lspread.graph.eigen import eigh
from lspread.labels import certainty, spread_labels
from lspread.typing import UNLABELED

__all__ = ["Auto", "Entropy", "Margin", "Random", "VOptimality"]


@dataclass(frozen=True)
class Margin:
    """Asks where the two most likely classes are closest.

    References:
        Scheffer, Decomain and Wrobel, "Active Hidden Markov Models for Information Extraction", IDA 2001.
    """

    def __call__(self, pool: Pool, num_queries: int) -> Suggestions:
        """Choose items that are no neighbours of each other."""
        num_queries = check_queries(pool, num_queries)
        top = pool.probability.topk(min(2, pool.num_classes), 1)
        score = 1 - (top.values[:, 0] - top.values[:, -1])
        chosen = take_apart(pool, score, num_queries)
        reason = [
            f"class {first} with {100 * p:.0f} % or class {second} with {100 * q:.0f} %"
            for (first, second), (p, q) in zip(
                top.indices[chosen][:, [0, -1]].tolist(), top.values[chosen][:, [0, -1]].tolist(), strict=True
            )
        ]
        return Suggestions(chosen, score[chosen], reason)


@dataclass(frozen=True)
class Entropy:
    """Asks where the probabilities are spread over the most classes."""

    def __call__(self, pool: Pool, num_queries: int) -> Suggestions:
        """Choose items that are no neighbours of each other."""
        num_queries = check_queries(pool, num_queries)
        score = 1 - certainty(pool.probability)
        chosen = take_apart(pool, score, num_queries)
        reason = [
            "no label reaches it" if not reached else f"its classes are {100 * value:.0f} % as unclear as can be"
            for reached, value in zip(pool.is_reached[chosen].tolist(), score[chosen].tolist(), strict=True)
        ]
        return Suggestions(chosen, score[chosen], reason)


@dataclass(frozen=True)
class Random:
    """Asks anywhere: what every other strategy is compared with."""

    seed: int = 0

    def __call__(self, pool: Pool, num_queries: int) -> Suggestions:
        """Draw items without label, all alike."""
        num_queries = check_queries(pool, num_queries)
        order = torch.randperm(len(pool.label), generator=torch.Generator().manual_seed(self.seed))
        order = order.to(pool.label.device)
        chosen = order[pool.is_open[order]][:num_queries]
        score = torch.zeros(num_queries, dtype=pool.probability.dtype, device=chosen.device)
        return Suggestions(chosen, score, ["drawn at random"] * num_queries)


@dataclass(frozen=True)
class VOptimality:
    """Asks where knowing the answer takes most of the variance from all others.

    Scores are seen as a Gaussian field with covariance C = (I - alpha S)^-1; each answer, one by one, takes
    |C_i|^2 / C_ii from its trace. C is kept in the space of the leading eigenvectors of S.

    Args:
        alpha: How much an item listens to its neighbours, in (0, 1).
        num_components: Eigenvectors to keep.
        seed: Of the start of the subspace iteration.

    References:
        Ji and Han, "A Variance Minimization Criterion to Active Learning on Graphs", AISTATS 2012, equation 9.
    """

    alpha: float = 0.99
    num_components: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ConfigError(f"alpha must lie in (0, 1); got {self.alpha}. 0.99 is usual.")

    def __call__(self, pool: Pool, num_queries: int) -> Suggestions:
        """Choose; O(n m^2) for m eigenvectors."""
        num_queries = check_queries(pool, num_queries)
        is_open = pool.is_open.clone()
        basis, value = leading_eigenvectors(pool.graph, self.num_components, alpha=self.alpha, seed=self.seed)
        covariance = torch.diag(1 / (1 - self.alpha * value))

        def take(item: Tensor) -> None:
            nonlocal covariance
            column = covariance @ basis[item]
            variance = basis[item] @ column
            covariance = covariance - torch.outer(column, column) / variance.clamp(min=torch.finfo(column.dtype).tiny)

        for item in (pool.label != UNLABELED).nonzero().flatten():
            take(item)
        chosen, scores = [], []
        for _ in range(num_queries):
            columns = basis @ covariance
            variance = (columns * basis).sum(1)
            # What has hardly any variance left was asked, or is as good as asked.
            least = 1e-6 * variance.amax()
            gain = torch.where(variance > least, columns.square().sum(1) / variance.clamp(min=least), 0)
            top = torch.where(is_open, gain, -1).argmax()
            chosen.append(top)
            scores.append(gain[top])
            is_open[top] = False
            take(top)
        score = torch.stack(scores)
        reason = [f"its answer takes {value:.3g} from the variance of all" for value in score.tolist()]
        return Suggestions(torch.stack(chosen), score, reason)


@dataclass(frozen=True)
class Auto:
    """Covers the data first, then asks where it is in doubt.

    Args:
        num_labels_per_class: Up to so many labels per class on the average, or while a class has none, `Coverage`
            chooses, later `Margin`: strategies that look for doubt mislead while the answers are still poor.
        num_candidates: Of `Coverage`.
        seed: Of `Coverage`.
        alpha: Of `Coverage`.
    """

    num_labels_per_class: float = 5
    num_candidates: int = 500
    seed: int = 0
    alpha: float = 0.98

    def __call__(self, pool: Pool, num_queries: int) -> Suggestions:
        """Choose by one of the two."""
        given = pool.label[pool.label != UNLABELED]
        is_early = len(given) < self.num_labels_per_class * pool.num_classes
        if is_early or len(given.unique()) < pool.num_classes:  # sync: once per call
            return Coverage(self.alpha, self.num_candidates, self.seed)(pool, num_queries)
        return Margin()(pool, num_queries)


def leading_eigenvectors(
    graph: Graph, num_components: int, *, alpha: float = 0.99, num_rounds: int = 6, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the leading eigenvectors of a symmetric normalized graph `(n, m)` and their eigenvalues `(m,)`.

    By inverse iteration: every round solves (I - alpha S) X = (1 - alpha) V and makes X orthonormal, which lifts the
    eigenvalues near 1 above all others.

    Args:
        graph: S, from `normalize_graph`.
        num_components: How many, at most n.
        alpha: Nearer to 1 tells eigenvalues near 1 better apart, at more steps.
        num_rounds: Rounds of the iteration.
        seed: Of the random start.
    """
    n, dtype = graph.num_nodes, graph.edge_weight.dtype
    start = torch.randn(n, min(num_components, n), generator=torch.Generator().manual_seed(seed), dtype=dtype)
    basis = torch.linalg.qr(start.to(graph.device)).Q
    small = basis
    for _ in range(num_rounds):
        small = spread_labels(graph, basis, alpha=alpha, on_failure="warn").value
        last, basis = basis, torch.linalg.qr(small).Q
    # Rayleigh-Ritz with the inverse's own product: T = V^T (1 - alpha) (I - alpha S)^-1 V.
    inner = last.T @ small
    ritz, turn = eigh((inner + inner.T) / 2)
    value = (1 - (1 - alpha) / ritz.clamp(min=torch.finfo(dtype).tiny)) / alpha
    return (last @ turn).flip(1), value.flip(0).clamp(-1, 1)
