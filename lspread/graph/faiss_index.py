"""Candidates from an index of the optional package faiss, on the CPU."""

from typing import Any

import torch
from torch import Tensor

from lspread.errors import GraphError

__all__ = ["find_candidates"]

FLAT_ITEMS = 20_000
NUM_PROBES = 16
NUM_ROUNDS = 8
SAMPLES_PER_LIST = 64


def find_candidates(z: Tensor, k: int, *, effort: float, seed: int) -> Tensor:
    """Return numbers of near items `(n, k + 1)` int64, own numbers among them; -1 where none was found.

    Up to `FLAT_ITEMS` rows the index is flat, which is exact; above, it has 4 sqrt(n) inverted lists, of which
    every item looks into the nearest `NUM_PROBES`.

    Args:
        z: `(n, d)` on the CPU; float64 is searched in float32.
        k: Neighbours per item, smaller than n.
        effort: Lists looked into, in units of `NUM_PROBES`.
        seed: Of the sample that the lists are trained on.

    Raises:
        GraphError: faiss is not installed, or z is not on the CPU.

    References:
        Douze et al., "The Faiss library", 2024, section 5.
    """
    try:
        import faiss
    except ImportError as error:
        raise GraphError(
            "backend='faiss' needs the package faiss; install it with `pip install lspread[faiss]`, or use "
            "backend='ivf', which needs none."
        ) from error
    if z.device.type != "cpu":
        raise GraphError(f"backend='faiss' runs on the CPU only; got z on {z.device}. Use backend='ivf' or z.cpu().")
    # faiss takes |x|^2 - 2xy + |y|^2 in float32: near the origin it loses the fewest digits.
    points = (z - z.mean(0)).float().contiguous().numpy()
    num_items, width = points.shape
    num_threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        index: Any = faiss.IndexFlatL2(width)
        if num_items > FLAT_ITEMS:
            index = faiss.IndexIVFFlat(index, width, int(4 * num_items**0.5))
            index.nprobe = min(index.nlist, max(1, round(NUM_PROBES * effort)))
            index.cp.seed = seed
            index.cp.niter = NUM_ROUNDS
            index.cp.max_points_per_centroid = SAMPLES_PER_LIST
            index.cp.min_points_per_centroid = 1  # says nothing about small samples
            index.train(points)
        index.add(points)
        return torch.from_numpy(index.search(points, k + 1)[1])
    finally:
        faiss.omp_set_num_threads(num_threads)
