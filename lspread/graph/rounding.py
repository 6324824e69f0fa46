"""Rounding of items to 8 bits, tile by tile, with a bound on what each lost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MAX_WIDTH", "TILE", "RoundedItems", "round_items"]

TILE = 2048
"""Items of a tile; the 16 MiB of products of two tiles stay in a CPU's last cache."""
ROTATED = 128
"""Coordinates mixed with each other, so that no single one sets the step."""
CLUSTERS_PER_TILE = 2
WILD_PER_TILE = 4
"""Items with the largest entries, which would make the step larger for all of a tile."""
LARGEST = 127
LARGEST_INTEGER = 1 << 26
"""Products of two items and what is added to them stay below, so that sums fit 32 bits."""
MAX_WIDTH = 4096
MEASURED_AT_ONCE = 1 << 17
SEED = 0


@dataclass(frozen=True, eq=False)
class RoundedItems:
    """Items in an order that keeps near ones together, m of them rounded to x' = center + step q.

    Attributes:
        z: All items in that order; wild ones and then excluded ones stand at the end.
        number: Where each stood before.
        num_rounded: How many are rounded.
        num_found: How many may be neighbours: the wild ones, too.
        q: `(tiles, TILE, e)` int8; zero where the last tile is not full.
        square: |q|^2 `(tiles, TILE)` float64.
        along: q . center of each item and each tile `(tiles, TILE, tiles)` float32.
        center: One per tile `(tiles, e)` float32.
        step: One per tile.
        largest_along: Upper bound on |q . center| per tile.
        radius: Upper bound on |x - x'| `(tiles, TILE)` float64.
        largest_radius: One per tile.
    """

    z: Tensor
    number: Tensor
    num_rounded: int
    num_found: int
    q: Tensor
    square: Tensor
    along: Tensor
    center: Tensor
    step: list[float]
    largest_along: list[float]
    radius: Tensor
    largest_radius: list[float]

    @property
    def num_tiles(self) -> int:
        """How many tiles there are; the last one may not be full."""
        return len(self.q)

    def distance(self, row: Tensor, column: Tensor) -> Tensor:
        """Return the true distance of every pair `(t,)`, by differences."""
        size = max(1, MEASURED_AT_ONCE // self.z.shape[1])
        return torch.cat(
            [
                torch.linalg.vector_norm(self.z.index_select(0, r).sub_(self.z.index_select(0, c)), dim=1)
                for r, c in zip(row.split(size), column.split(size), strict=True)
            ]
        )

    def at_most(self, distance: Tensor) -> Tensor:
        """Return float64 distances that rounding in `distance` cannot have made too small."""
        return distance.double() * (1 + (self.z.shape[1] + 8) * torch.finfo(self.z.dtype).eps)


def round_items(z: Tensor, excluded: Tensor | None) -> RoundedItems | None:
    """Return the rounded rows of z `(n, d)`.

    None where there are too few of them, or all are equal, or clusters so far apart that 8 bits cannot tell anything.
    """
    x = _rotate(z - z.mean(0)).float()
    is_found = torch.ones(len(z), dtype=torch.bool) if excluded is None else ~excluded
    found = is_found.nonzero().flatten()
    if len(found) < 2 * TILE:
        return None
    found = found[_order_by_cluster(x[found])]
    is_wild = torch.cat([_is_wild(part) for part in x[found].split(TILE)])
    rounded = found[~is_wild]
    number = torch.cat([rounded, found[is_wild], (~is_found).nonzero().flatten()])

    parts = x[rounded].split(TILE)
    center = torch.stack([part.mean(0) for part in parts])
    step = torch.stack([(part - c).abs().amax() for part, c in zip(parts, center, strict=True)]) / LARGEST
    if not step.max() > torch.finfo(x.dtype).tiny * 2**60:
        return None
    # Steps of one size bound the integers that are made of them.
    step = step.clamp(min=step.max() / 16)
    q = torch.zeros(len(parts), TILE, x.shape[1], dtype=torch.int8)
    square = torch.zeros(len(parts), TILE, dtype=torch.float64)
    along = torch.zeros(len(parts), TILE, len(parts))
    radius = torch.zeros(len(parts), TILE, dtype=torch.float64)
    # A sum of m rounded products is off by less than m eps |a| |b|; a vector of m sums by sqrt(m) times that.
    unsafe = 2 * ROTATED**1.5 * torch.finfo(x.dtype).eps
    for tile, part in enumerate(parts):
        rest = part - center[tile]
        whole = (rest / step[tile]).round_()
        q[tile, : len(part)] = whole
        square[tile, : len(part)] = whole.double().square_().sum(1)
        along[tile, : len(part)] = whole.double() @ center.T.double()
        lost = rest.addcmul_(whole, -step[tile]).double().norm(dim=1)
        radius[tile, : len(part)] = lost * (1 + 1e-5) + unsafe * part.norm(dim=1)
    largest_along = square.amax(1).sqrt() * center.norm(dim=1).max() * 1.001
    if not (square.max() * step.max() + largest_along.max()) / step.min() < LARGEST_INTEGER:
        return None
    return RoundedItems(
        z=z[number],
        number=number,
        num_rounded=len(rounded),
        num_found=len(found),
        q=q,
        square=square,
        along=along,
        center=center,
        step=step.tolist(),
        largest_along=largest_along.tolist(),
        radius=radius,
        largest_radius=radius.amax(1).tolist(),
    )


def _is_wild(x: Tensor) -> Tensor:
    peak = (x - x.mean(0)).abs().amax(1)
    return torch.zeros(len(x), dtype=torch.bool).index_fill_(0, peak.topk(min(WILD_PER_TILE, len(x))).indices, True)


def _rotate(x: Tensor) -> Tensor:
    """Return x turned by a fixed rotation within shuffled blocks of coordinates (padded by zeros)."""
    num_blocks = -(-x.shape[1] // ROTATED)
    width = -(-x.shape[1] // num_blocks)
    generator = torch.Generator().manual_seed(SEED)
    shuffled = torch.randperm(x.shape[1], generator=generator)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q
    padded = torch.nn.functional.pad(x[:, shuffled], (0, -x.shape[1] % width))
    # The bounds know nothing of the bfloat16 that users may allow in products of float32.
    parts = [(part.double() @ rotation).to(x.dtype) for part in padded.view(-1, width).split(TILE)]
    return torch.cat(parts).view(len(x), -1)


def _order_by_cluster(x: Tensor) -> Tensor:
    """Return the rows of x cluster by cluster, each from its middle outwards."""
    generator = torch.Generator().manual_seed(SEED)
    num_clusters = CLUSTERS_PER_TILE * len(x) // TILE
    sample = x[torch.randperm(len(x), generator=generator)[: 64 * num_clusters]]
    center = sample[:num_clusters]
    for _ in range(4):
        nearest = _nearest(sample, center)[1]
        count = torch.bincount(nearest, minlength=len(center)).clamp(min=1)
        center = torch.zeros_like(center).index_add(0, nearest, sample) / count.unsqueeze(1)
    center = center[_chain(center)]
    far, nearest = _nearest(x, center)
    return torch.argsort(nearest + far / (2 * far.max().clamp(min=torch.finfo(x.dtype).tiny)))


def _chain(center: Tensor) -> list[int]:
    """Return an order in which each cluster is followed by the nearest one that is left."""
    distance = torch.cdist(center, center).tolist()
    chain, left = [0], set(range(1, len(center)))
    while left:
        last = distance[chain[-1]]
        chain.append(min(left, key=last.__getitem__))
        left.remove(chain[-1])
    return chain


def _nearest(x: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    least, nearest = torch.addmm(center.square().sum(1), x, center.T, alpha=-2).min(1)
    return (least + x.square().sum(1)).clamp(min=0).sqrt(), nearest
