"""k-means, for strategies that ask once in every cluster."""

import torch
from torch import Tensor

__all__ = ["k_means", "nearest_row"]

ELEMENTS = 1 << 24
"""How many distances to hold at once."""


def k_means(z: Tensor, num_clusters: int, *, num_rounds: int = 30, seed: int = 0) -> Tensor:
    """Return the cluster of every row `(n,)` int64.

    Args:
        z: `(n, d)` floating point.
        num_clusters: At least 1 and at most n. Where rows are equal, some clusters may stay empty.
        num_rounds: Most rounds; it ends before when no row changes its cluster.
        seed: Of the choice of the first centers.

    References:
        Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding", SODA 2007, for the first centers.
    """
    generator = torch.Generator().manual_seed(seed)
    first = int(torch.randint(len(z), (), generator=generator))
    center = z[first : first + 1]
    square = (z - center).square().sum(1)
    while len(center) < num_clusters:
        # In double, on the host: the draw is the same on every device.
        mass = square.double().cpu().cumsum(0)
        at = torch.searchsorted(mass, torch.rand((), generator=generator, dtype=torch.float64) * mass[-1], right=True)
        new = z[at.clamp(max=len(z) - 1)]
        center = torch.cat([center, new[None]])
        square = torch.minimum(square, (z - new).square().sum(1))
    cluster = nearest_row(z, center)[0]
    for _ in range(num_rounds):
        count = torch.bincount(cluster, minlength=num_clusters).unsqueeze(1)
        total = torch.zeros_like(center).index_add_(0, cluster, z)
        center = torch.where(count > 0, total / count.clamp(min=1), center)
        before, cluster = cluster, nearest_row(z, center)[0]
        if torch.equal(before, cluster):  # sync: once per round
            break
    return cluster


def nearest_row(x: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return for every row of x the number of the nearest row of `others` and their distance, both `(n,)`."""
    found = [torch.cdist(part, others).min(1) for part in x.split(max(1, ELEMENTS // len(others)))]
    return torch.cat([part.indices for part in found]), torch.cat([part.values for part in found])
