"""How many true neighbours an approximate search found, judged on a sample."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lspread.errors import GraphError
from lspread.graph.neighbors import Neighbors
from lspread.graph.rows import measure_pairs, search_rows

__all__ = ["Recall", "recall_at_k"]


@dataclass(frozen=True)
class Recall:
    """An estimated recall.

    Attributes:
        value: Mean share of true neighbours found, 0 to 1.
        standard_error: Of that mean, as an estimate of the mean over all nodes; 0 when all were looked at.
        num_samples: Nodes looked at.
    """

    value: float
    standard_error: float
    num_samples: int

    def __float__(self) -> float:
        return self.value


def recall_at_k(
    neighbors: Neighbors, z: Tensor, *, num_samples: int = 1000, generator: torch.Generator | None = None
) -> Recall:
    """Estimate which share of the true k nearest neighbours was found, by exact search in float64 for some nodes.

    A listed node counts when it is no farther than the true k-th neighbour, so any choice among equal distances is
    right. Nodes listed twice count once, the node itself and nodes of other graphs never; where a graph has fewer than
    k others, finding all of them is a recall of 1. Nodes without any others are left out.

    Args:
        neighbors: Of n nodes.
        z: Embeddings `(n, d)` or `(b, n, d)` that they were found in.
        num_samples: Nodes to look at, drawn without replacement; all of them if there are no more.
        generator: CPU generator to draw with; torch's own if None.

    Returns:
        `Recall`. Time is O(num_samples n d), memory O(num_samples k + tile).

    Raises:
        GraphError: `z` and `neighbors` differ in nodes, `num_samples` is not positive, or no node has others.
    """
    z = z.detach().reshape(-1, z.shape[-1])
    if len(z) != neighbors.num_nodes:
        raise GraphError(
            f"recall_at_k needs the embeddings that neighbors were found in; got {len(z)} rows of z and neighbors of "
            f"{neighbors.num_nodes} nodes."
        )
    if num_samples < 1:
        raise GraphError(f"num_samples must be at least 1; got {num_samples}.")
    size = neighbors.ptr.diff()
    graph = torch.repeat_interleave(size)
    able = (size[graph] > 1).nonzero().flatten()
    if not len(able):
        raise GraphError("recall_at_k needs a graph of at least 2 nodes; no node has another one in its graph.")
    rows = able[torch.randperm(len(able), generator=generator)[:num_samples].to(z.device)]
    first, last = neighbors.ptr[graph[rows]], neighbors.ptr[graph[rows] + 1]
    metric, k = neighbors.metric, neighbors.k
    best = search_rows(z, rows, k, metric=metric, first=first, last=last)
    wanted = (best >= 0).sum(1)
    farthest = measure_pairs(z, rows, best, metric=metric).gather(1, wanted[:, None] - 1)

    # Sorted, a node listed again stands beside itself.
    listed = neighbors.index[rows].sort(1).values
    is_again = torch.nn.functional.pad(listed[:, 1:] == listed[:, :-1], (1, 0))
    is_true = ~is_again & (listed >= first[:, None]) & (listed < last[:, None]) & (listed != rows[:, None])
    is_true &= measure_pairs(z, rows, listed, metric=metric) <= farthest * (1 + 1e-12)
    recall = is_true.sum(1).double() / wanted
    spread = recall.var().item() if len(rows) > 1 else 0.0
    unseen = 1 - len(rows) / len(able)
    return Recall(recall.mean().item(), (spread * unseen / len(rows)) ** 0.5, len(rows))
