"""Who is near whom: k nearest neighbours of every node, never a node itself."""

import logging
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from lspread.errors import GraphError
from lspread.graph.approximate import search_approximate
from lspread.graph.exact import search_exact
from lspread.typing import UNLABELED, Metric

logger = logging.getLogger("lspread.graph")

__all__ = ["NO_NEIGHBOR", "Backend", "Neighbors", "find_neighbors"]

Backend = Literal["auto", "exact", "nn_descent", "faiss", "ivf"]

EXACT_NODES = 100_000
"""Largest graph that "auto" searches exactly."""
LEAST_POWER = 0.35
"""Shorter vectors than the smallest number to this power are searched in larger units, where squares keep digits."""
NO_NEIGHBOR = UNLABELED
"""What stands in `Neighbors.index` where a small graph has no further node to offer."""


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The k nearest neighbours of n nodes, nearest first.

    Attributes:
        index: Node numbers `(n, k)` int64, `NO_NEIGHBOR` (-1) where the node's graph has no more nodes.
        distance: `(n, k)` detached; Euclidean distance, or 1 - cosine; infinite where `index` is -1.
        ptr: Boundaries of the b graphs of a batch, `(b + 1,)` int64; graph g owns nodes ptr[g] to ptr[g+1] - 1.
        metric: What `distance` measures.
    """

    index: Tensor
    distance: Tensor
    ptr: Tensor
    metric: Metric = "euclidean"

    @property
    def num_nodes(self) -> int:
        """Number of nodes n, over all graphs of the batch."""
        return self.index.shape[0]

    @property
    def k(self) -> int:
        """Number of neighbour slots per node."""
        return self.index.shape[1]

    @property
    def is_neighbor(self) -> Tensor:
        """`(n, k)` bool: True where the slot holds a neighbour."""
        return self.index != NO_NEIGHBOR


def find_neighbors(
    z: Tensor,
    k: int,
    *,
    metric: Metric = "euclidean",
    ptr: Tensor | None = None,
    batch: Tensor | None = None,
    backend: Backend = "auto",
    effort: float = 1.0,
    seed: int = 0,
) -> Neighbors:
    """Find the k nearest neighbours of every node inside its own graph.

    A node is never its own neighbour; it is left out by its number, so equal points stay neighbours of each other.
    Whatever the backend, distances are measured by differences, so they are free of the cancellation of
    |x|^2 - 2xy + |y|^2. "exact" proves every row by a bound on what rounding can do, and searches the rows without a
    proof again in float64 (on a GPU in graphs of more than 8,192 nodes only: below, nothing is read from it). On a CPU
    large graphs are searched with 8-bit integers, which gives the same neighbours.

    Backends:
        "exact": All pairs, by matrix products. Memory O(n k + tile), time O(n^2 d).
        "ivf": k-means cells, cut into tiles that search the tiles around them; torch alone, on any device, and
            nothing is read from it. Memory O(n d + n k + tile), time O(n^1.5 d) with a small factor.
        "nn_descent": The package pynndescent (extra "nn-descent"); CPU, float32. The first call in a process compiles,
            which can take a minute.
        "faiss": The package faiss (extra "faiss"); CPU, float32. A flat index up to 20,000 nodes, inverted lists above.
        "auto": "exact" while no graph has more than 100,000 nodes, else "ivf", whatever is installed. The choice is
            logged once per call by the logger "lspread.graph" (level DEBUG for "exact", INFO for "ivf").
    All but "exact" are approximate: neighbours that are given are measured truly, but nearer ones may have been missed.
    `recall_at_k` says how many; embeddings that vary in few directions lose few, independent noise many. They work
    graph by graph and search graphs of fewer than 4,096 nodes exactly. On the CPU, the same z, seed and number of
    threads give the same neighbours.

    Args:
        z: Embeddings of one graph `(n, d)`, of b equal graphs `(b, n, d)`, or of a ragged batch `(n, d)` with `ptr`
            or `batch`. float64 stays float64; float32, float16 and bfloat16 are searched in float32.
        k: Neighbours per node, 1 <= k < nodes of the largest graph. Smaller graphs of a batch are padded with -1.
        metric: "euclidean", or "cosine" for 1 - cos (vectors of length zero are at distance 1 from all others).
        ptr: Boundaries of a ragged batch `(b + 1,)` int64, from 0 to n, not decreasing.
        batch: The same in PyG's form: graph number of each node `(n,)` int64, ascending.
        backend: See above.
        effort: How much an approximate backend looks at, in units of its default, which aims at a recall above .95
            at k=15: kept neighbours (nn_descent), tiles (ivf) or lists (faiss) of every node. Time grows with it.
        seed: Of random choices in approximate backends.

    Returns:
        `Neighbors` on the device of `z`, without gradient: indices are choices. For `(b, n, d)` input the nodes of
        graph g are g*n to (g+1)*n - 1. Computed outside autocast.

    Raises:
        GraphError: `z` has the wrong shape or dtype or is not finite (checked where it lies on the CPU), `k` does not
            fit, both `ptr` and `batch` are given, or they do not cover the nodes; `effort` is not positive; the
            backend is not installed, or runs on the CPU only and z lies elsewhere.
    """
    if backend not in get_args(Backend):
        raise GraphError(f"backend must be one of {get_args(Backend)}; got {backend!r}.")
    if metric not in get_args(Metric):
        raise GraphError(f"metric must be one of {get_args(Metric)}; got {metric!r}.")
    if z.ndim not in (2, 3) or not z.is_floating_point():
        raise GraphError(
            f"find_neighbors needs floating-point embeddings z of shape (n, d) or (b, n, d); got {tuple(z.shape)} "
            f"{z.dtype}. Flatten each item to one row first, e.g. z.flatten(1).float()."
        )
    z = z.detach()
    z = z if z.dtype == torch.float64 else z.float()
    z, unit = _check_range(z)
    if z.ndim == 3:
        if ptr is not None or batch is not None:
            raise GraphError("z of shape (b, n, d) already says where graphs end; leave out ptr and batch.")
        num_graphs, size, _ = z.shape
        sizes = [size] * num_graphs
        ptr = torch.arange(num_graphs + 1, device=z.device) * size
    else:
        ptr, sizes = _boundaries(z, ptr, batch)
    if not 1 <= k < max(sizes, default=0):
        raise GraphError(
            f"k must be at least 1 and smaller than the number of nodes, as a node is not its own neighbor; got k={k} "
            f"for {'a graph' if len(sizes) == 1 else f'{len(sizes)} graphs, the largest'} of {max(sizes, default=0)} "
            f"nodes. Use k <= {max(max(sizes, default=0) - 1, 1)} or more items."
        )
    if not effort > 0:
        raise GraphError(f"effort must be positive, 1.0 for the default of the backend; got {effort}.")
    if backend == "auto":
        backend = _choose(sizes)
    with torch.autocast(z.device.type, enabled=False):
        if backend == "exact":
            index, distance = search_exact(z, k, metric=metric, sizes=sizes)
        else:
            index, distance = search_approximate(
                z, k, metric=metric, sizes=sizes, backend=backend, effort=effort, seed=seed
            )
    if metric == "euclidean" and unit != 1:
        distance = distance * unit
    return Neighbors(index=index, distance=distance, ptr=ptr, metric=metric)


def _choose(sizes: list[int]) -> Literal["exact", "ivf"]:
    """Choose a backend by the rule of "auto" and log it."""
    choice: Literal["exact", "ivf"] = "ivf" if max(sizes) > EXACT_NODES else "exact"
    if not torch.compiler.is_compiling():  # a message would break the compiled graph
        level = logging.DEBUG if choice == "exact" else logging.INFO
        logger.log(level, "find_neighbors: backend %r for %d graphs, up to %d nodes", choice, len(sizes), max(sizes))
    return choice


def _check_range(z: Tensor) -> tuple[Tensor, float]:
    """Refuse NaN, infinity and overflow on the CPU, where looking costs no synchronization.

    Returns:
        z, and the unit that it is in, a power of two: 1 unless its squares would be lost below the smallest number.
    """
    if z.device.type != "cpu" or torch.compiler.is_compiling() or not z.numel():
        return z, 1.0
    # Squared distances of vectors up to this length are finite; NaN is not smaller either.
    length = torch.linalg.vector_norm(z, dim=-1)
    is_finite = length < torch.finfo(z.dtype).max ** 0.5 / 4
    if not is_finite.all():
        rows = (~is_finite).flatten().nonzero().flatten()
        raise GraphError(
            f"find_neighbors needs finite embeddings; {len(rows)} of {is_finite.numel()} rows of z hold NaN, infinity "
            f"or values too large to be squared, the first is row {rows[0].item()}. Check the backbone (a diverged "
            "loss?) or drop these items."
        )
    if length.max() < torch.finfo(z.dtype).tiny ** LEAST_POWER and z.any():
        unit = 2.0 ** math.floor(math.log2(float(z.abs().max())))
        return (z.double() / unit).to(z.dtype), unit
    return z, 1.0


def _boundaries(z: Tensor, ptr: Tensor | None, batch: Tensor | None) -> tuple[Tensor, list[int]]:
    """Return `ptr` on the device of z and the size of every graph on the host."""
    num_nodes = z.shape[0]
    if ptr is not None and batch is not None:
        raise GraphError("give ptr or batch, not both: they say the same thing.")
    if batch is not None:
        if batch.shape != (num_nodes,) or batch.dtype != torch.int64:
            raise GraphError(
                f"batch must hold one int64 graph number per node, shape ({num_nodes},); "
                f"got {tuple(batch.shape)} {batch.dtype}."
            )
        if num_nodes and bool((batch[1:] < batch[:-1]).any()):  # sync: an unsorted batch would mix up graphs
            raise GraphError(
                "batch must be ascending, all nodes of a graph next to each other; sort z and batch first."
            )
        count = torch.bincount(batch)
        ptr = torch.cat([count.new_zeros(1), count.cumsum(0)])
    if ptr is None:
        return torch.arange(2, device=z.device) * num_nodes, [num_nodes]
    if ptr.ndim != 1 or len(ptr) < 2 or ptr.dtype != torch.int64:
        raise GraphError(f"ptr must be int64 of shape (b + 1,), b >= 1; got {tuple(ptr.shape)} {ptr.dtype}.")
    host = ptr.tolist()  # sync: sizes of ragged graphs shape the search
    sizes = [after - before for before, after in pairwise(host)]
    if host[0] != 0 or host[-1] != num_nodes or min(sizes) < 0:
        raise GraphError(f"ptr must run from 0 to the {num_nodes} rows of z without decreasing; got {host[:8]}...")
    return ptr.to(z.device), sizes
