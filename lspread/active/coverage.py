"""Strategies that cover the data: what to label when there are few labels, or none."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lspread.active.acquisition import Pool, Suggestions, check_queries
from lspread.active.clusters import ELEMENTS, k_means
from lspread.errors import ConfigError
from lspread.labels import spread_labels

__all__ = ["Coverage", "ProbCover", "TypiClust"]


@dataclass(frozen=True)
class Coverage:
    """Covers the graph: each item asked for should speak for as many others as possible that no label speaks for.

    A label at item j would reach item i with the spread score F_ij; relative to what j itself gets, that says how much
    j speaks for i. The items are chosen one by one so that sum_i max_j F_ij / F_jj over all labeled and chosen j grows
    most. The sum is submodular, so this is at least 1 - 1/e of the best choice among the candidates. Works without a
    single label.

    Args:
        alpha: How far a label speaks, in [0, 1).
        num_candidates: So many items, drawn at random, are looked at (twice the queries at least).
        seed: Of the draw.

    References:
        Nemhauser, Wolsey and Fisher, "An analysis of approximations for maximizing submodular set functions", 1978.
    """

    alpha: float = 0.98
    num_candidates: int = 500
    seed: int = 0

    def __call__(self, pool: Pool, num_queries: int) -> Suggestions:
        """Choose; O(n (candidates + labels)) memory, one solve with as many columns."""
        num_queries = check_queries(pool, num_queries)
        n, device = pool.graph.num_nodes, pool.graph.device
        is_open = pool.is_open
        order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed)).to(device)
        candidate = order[is_open[order]][: max(self.num_candidates, 2 * num_queries)]
        best = torch.zeros(n, dtype=pool.graph.edge_weight.dtype, device=device)
        for labeled in (~is_open).nonzero().split(self.num_candidates):
            if len(labeled):
                best = torch.maximum(best, self._speaks_for(pool, labeled.flatten()).amax(1))
        speaks_for = self._speaks_for(pool, candidate)
        chosen: list[Tensor] = []
        gains: list[Tensor] = []
        is_free = torch.ones(len(candidate), dtype=torch.bool, device=device)
        for _ in range(num_queries):
            gain = (speaks_for - best[:, None]).clamp(min=0).sum(0).masked_fill(~is_free, -1)
            top = gain.argmax()
            chosen.append(candidate[top])
            gains.append(gain[top])
            best = torch.maximum(best, speaks_for[:, top])
            is_free[top] = False
        score = torch.stack(gains)
        count = [f"{value:.0f}" if value >= 9.5 else f"{value:.1f}" for value in score.tolist()]
        reason = [f"speaks for about {value} items that no label speaks for yet" for value in count]
        return Suggestions(torch.stack(chosen), score, reason)

    def _speaks_for(self, pool: Pool, item: Tensor) -> Tensor:
        """Return `(n, m)`, column j for the j-th item, which has 1 for itself."""
        targets = torch.zeros(pool.graph.num_nodes, len(item), dtype=pool.graph.edge_weight.dtype, device=item.device)
        column = torch.arange(len(item), device=item.device)
        targets[item, column] = 1
        scores = spread_labels(pool.graph, targets, alpha=self.alpha, on_failure="warn").value
        return scores.clamp_(min=0) / scores[item, column]


@dataclass(frozen=True)
class ProbCover:
    """Covers as many items as possible with balls of one radius around the labeled ones.

    Args:
        purity: Share of items whose ball should hold no item of another cluster; it sets the radius.
        num_clusters: Clusters that stand for classes when the radius is set; None takes the number of classes.
        seed: Of the clustering.

    References:
        Yehuda et al., "Active Learning Through a Covering Lens", NeurIPS 2022, algorithm 1 and section 3.2.
    """

    purity: float = 0.95
    num_clusters: int | None = None
    seed: int = 0

    def __call__(self, pool: Pool, num_queries: int) -> Suggestions:
        """Choose; O(n^2 d) time, O(n) memory beside one block of distances."""
        if not 0 < self.purity < 1:
            raise ConfigError(f"purity must be in (0, 1); got {self.purity}.")
        num_queries = check_queries(pool, num_queries)
        z, n = pool.embedding, len(pool.embedding)
        cluster = k_means(z, min(n, self.num_clusters or pool.num_classes), seed=self.seed)
        steps = z.split(max(1, ELEMENTS // n))
        own = cluster.split(max(1, ELEMENTS // n))
        to_other = torch.cat(
            [
                torch.cdist(part, z).masked_fill(mine[:, None] == cluster, torch.inf).amin(1)
                for part, mine in zip(steps, own, strict=True)
            ]
        )
        radius = to_other.sort().values[int((1 - self.purity) * n)]
        is_open = pool.is_open
        is_covered = torch.zeros(n, dtype=torch.bool, device=z.device)
        for labeled in z[~is_open].split(max(1, ELEMENTS // n)):
            is_covered |= (torch.cdist(labeled, z) <= radius).any(0)
        count = torch.cat([((torch.cdist(part, z) <= radius) & ~is_covered).sum(1) for part in steps])
        chosen, scores = [], []
        for _ in range(num_queries):
            top = torch.where(is_open, count, -1).argmax()
            chosen.append(top)
            scores.append(count[top].clone())  # what is covered now is taken off below
            new = (torch.cdist(z[top : top + 1], z)[0] <= radius) & ~is_covered
            is_covered |= new
            is_open = is_open.index_fill(0, top, False)
            for part in z[new].split(max(1, ELEMENTS // n)):
                count -= (torch.cdist(part, z) <= radius).sum(0)
        score = torch.stack(scores)
        reason = [f"{value} items within the radius {float(radius):.3g} have no label near" for value in score.tolist()]
        return Suggestions(torch.stack(chosen), score.to(z.dtype), reason)


@dataclass(frozen=True)
class TypiClust:
    """Asks for the most typical item of the largest clusters without a label.

    Args:
        num_neighbors: An item is typical if these many nearest items of its cluster are near on the average.
        max_clusters: There are as many clusters as labels and queries together, but not more than this.
        seed: Of the clustering.

    References:
        Hacohen, Dekel and Weinshall, "Active Learning on a Budget: Opposite Strategies Suit High and Low Budgets",
        ICML 2022, algorithm 1.
    """

    num_neighbors: int = 20
    max_clusters: int = 500
    seed: int = 0

    def __call__(self, pool: Pool, num_queries: int) -> Suggestions:
        """Choose; O(n c d) for the clustering, and all distances within a cluster."""
        num_queries = check_queries(pool, num_queries)
        z, is_open = pool.embedding, pool.is_open.clone()
        num_labeled = int((~is_open).sum())  # sync: once per call
        num_clusters = min(len(z), max(1, num_labeled + num_queries), self.max_clusters)
        cluster = k_means(z, num_clusters, seed=self.seed)
        size = torch.bincount(cluster, minlength=num_clusters)
        labels = torch.bincount(cluster[~is_open], minlength=num_clusters)
        typicality: dict[int, tuple[Tensor, Tensor]] = {}
        chosen: list[Tensor] = []
        scores: list[Tensor] = []
        reasons: list[str] = []
        while len(chosen) < num_queries:
            num_open = torch.bincount(cluster[is_open], minlength=num_clusters)
            # Fewest labels first, then the largest.
            rank = torch.where(num_open > 0, labels * (len(z) + 1) - size, torch.iinfo(torch.int64).max)
            number = int(rank.argmin())  # sync: a strategy is no hot loop
            if number not in typicality:
                member = (cluster == number).nonzero().flatten()
                typicality[number] = (member, self._typicality(z[member]))
            member, typical = typicality[number]
            item = member[torch.where(is_open[member], typical, -torch.inf).argmax()]
            chosen.append(item)
            scores.append(typical[(member == item).nonzero()[0, 0]])
            reasons.append(f"typical of a cluster of {int(size[number])} items with {int(labels[number])} labels")
            is_open[item] = False
            labels[number] += 1
        return Suggestions(torch.stack(chosen), torch.stack(scores), reasons)

    def _typicality(self, z: Tensor) -> Tensor:
        """Return one over the mean distance to the nearest rows `(m,)`."""
        k = min(self.num_neighbors, len(z) - 1)
        if k < 1:
            return z.new_ones(1)
        mean = [
            torch.cdist(part, z).topk(k + 1, largest=False).values.sum(1) / k
            for part in z.split(max(1, ELEMENTS // len(z)))
        ]
        return 1 / torch.cat(mean).clamp(min=torch.finfo(z.dtype).tiny)
