"""Candidates by nearest-neighbour descent: the optional package pynndescent, on the CPU."""

import torch
from torch import Tensor

from lspread.errors import GraphError

__all__ = ["find_candidates"]


def find_candidates(z: Tensor, k: int, *, effort: float, seed: int) -> Tensor:
    """Return numbers of near items `(n, m)` int64, m > k; -1 where none was found.

    Args:
        z: `(n, d)` on the CPU; float64 is searched in float32.
        k: Neighbours per item, smaller than n.
        effort: Neighbours that the descent keeps, in units of k + 1.
        seed: Of the trees and of the descent.

    Raises:
        GraphError: pynndescent is not installed, or z is not on the CPU.

    References:
        Dong et al., "Efficient k-nearest neighbor graph construction for generic similarity measures", WWW 2011.
    """
    try:
        import numba
        from pynndescent import NNDescent
    except ImportError as error:
        raise GraphError(
            "backend='nn_descent' needs the package pynndescent; install it with `pip install lspread[nn-descent]`, or "
            "use backend='ivf', which needs none."
        ) from error
    if z.device.type != "cpu":
        raise GraphError(
            f"backend='nn_descent' runs on the CPU only; got z on {z.device}. Use backend='ivf' or z.cpu()."
        )
    # Far from the origin float32 would round away what tells items apart.
    points = (z - z.mean(0)).float().numpy()
    num_neighbors = min(len(z) - 1, max(k + 1, round((k + 1) * effort)))
    num_threads = numba.get_num_threads()
    try:
        index, _ = NNDescent(
            points,
            n_neighbors=num_neighbors,
            random_state=seed,
            low_memory=True,
            compressed=True,
            n_jobs=min(torch.get_num_threads(), num_threads),
        ).neighbor_graph
    finally:
        numba.set_num_threads(num_threads)
    return torch.from_numpy(index).long()
