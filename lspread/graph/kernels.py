"""Edge kernels: from distances to weights, larger when closer."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lspread.errors import ConfigError, GraphError
from lspread.graph.neighbors import Neighbors

__all__ = ["CosinePower", "Gaussian", "Kernel", "SelfTuning", "Uniform"]


class Kernel(Protocol):
    """Turns squared distances of neighbours into edge weights in [0, 1]."""

    def __call__(self, squared_distance: Tensor, neighbors: Neighbors) -> Tensor:
        """Return weights `(n, k)`, differentiable in `squared_distance`.

        Args:
            squared_distance: `(n, k)`, 0 where `neighbors.index` is -1. With the cosine metric it is the squared chord
                2 (1 - cos) between the vectors scaled to length one.
            neighbors: Who the distances belong to.
        """
        ...


@dataclass(frozen=True, eq=False)
class SelfTuning:
    """Gaussian whose width follows the local density: w_ij = exp(-scale d_ij^2 / (s_i s_j)).

    s_i is the distance from i to its last (k-th) neighbour. A node whose neighbours all coincide with it has s_i = 0
    and takes the mean of its graph instead, so that its edges to other places do not vanish.

    Attributes:
        scale: Positive number, or a 0-dimensional tensor to learn; larger makes edges more local. GraphLearning uses 4.

    References:
        Zelnik-Manor and Perona, "Self-Tuning Spectral Clustering", NIPS 2004, section 2.
    """

    scale: float | Tensor = 1.0

    def __post_init__(self) -> None:
        _check_positive("SelfTuning.scale", self.scale)

    def __call__(self, squared_distance: Tensor, neighbors: Neighbors) -> Tensor:
        """Return weights `(n, k)`; gradient to distances, also through s_i, and to `scale`."""
        tiny = torch.finfo(squared_distance.dtype).tiny
        # Slots without neighbour hold 0, so the maximum is the last neighbour there is.
        squared_width = squared_distance.amax(1)
        is_point = squared_width <= tiny
        width = squared_width.clamp(min=tiny).sqrt()
        width = torch.where(is_point, _mean_per_graph(width, ~is_point, neighbors.ptr), width)
        width_of_neighbor = width.index_select(0, neighbors.index.clamp(min=0).flatten()).view_as(squared_distance)
        return torch.exp(-self.scale * squared_distance / (width[:, None] * width_of_neighbor))


def _mean_per_graph(width: Tensor, is_counted: Tensor, ptr: Tensor) -> Tensor:
    """Return for every node the mean of `width` over the counted nodes of its graph; 1 where none counts."""
    num_nodes, num_graphs = len(width), len(ptr) - 1
    if num_graphs == 1:
        count = is_counted.sum()
        return torch.where(count > 0, torch.where(is_counted, width, 0).sum() / count.clamp(min=1), 1)
    graph = torch.repeat_interleave(ptr.diff(), output_size=num_nodes)
    counted = is_counted.to(width.dtype)
    total = width.new_zeros(num_graphs).index_add(0, graph, width * counted)
    count = width.new_zeros(num_graphs).index_add(0, graph, counted)
    return torch.where(count > 0, total / count.clamp(min=1), torch.ones_like(total)).index_select(0, graph)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Gaussian of one width: w_ij = exp(-d_ij^2 / (2 bandwidth^2)).

    Attributes:
        bandwidth: Positive number in the units of the distance, or a 0-dimensional tensor to learn.

    References:
        Zhou et al., "Learning with Local and Global Consistency", NIPS 2003, section 2, step 1.
    """

    bandwidth: float | Tensor

    def __post_init__(self) -> None:
        _check_positive("Gaussian.bandwidth", self.bandwidth)

    def __call__(self, squared_distance: Tensor, neighbors: Neighbors) -> Tensor:
        """Return weights `(n, k)`; gradient to distances and to `bandwidth`."""
        return torch.exp(-squared_distance / (2 * self.bandwidth**2))


@dataclass(frozen=True, eq=False)
class CosinePower:
    """Power of the cosine: w_ij = max(cos_ij, 0)^gamma, for neighbours found by the cosine metric.

    Attributes:
        gamma: Positive power.

    References:
        Iscen et al., "Label Propagation for Deep Semi-supervised Learning", CVPR 2019, equation 9.
    """

    gamma: float = 3.0

    def __post_init__(self) -> None:
        _check_positive("CosinePower.gamma", self.gamma)

    def __call__(self, squared_distance: Tensor, neighbors: Neighbors) -> Tensor:
        """Return weights `(n, k)`; gradient to distances. Raises `GraphError` for a Euclidean graph."""
        if neighbors.metric != "cosine":
            raise GraphError(
                f"CosinePower needs neighbors of metric 'cosine'; got {neighbors.metric!r}. "
                "Call find_neighbors(..., metric='cosine') or use SelfTuning()."
            )
        return (1 - squared_distance / 2).clamp(min=0) ** self.gamma


@dataclass(frozen=True, eq=False)
class Uniform:
    """Weight one for every neighbour."""

    def __call__(self, squared_distance: Tensor, neighbors: Neighbors) -> Tensor:
        """Return ones `(n, k)`; no gradient."""
        return torch.ones_like(squared_distance)


def _check_positive(name: str, value: float | Tensor) -> None:
    if not isinstance(value, Tensor) and not value > 0:
        raise ConfigError(f"{name} must be greater than 0; got {value}.")
