"""The graph that solvers are given: neighbors in, S as CSR arrays out. Made once, not timed."""

from collections.abc import Callable

import numpy as np
import torch


def prepare(arrays: dict[str, np.ndarray], *, k: int, backend: str = "") -> Callable[[int], dict[str, np.ndarray]]:
    from lspread import Neighbors, build_graph, find_neighbors, normalize_graph

    def run(turn: int) -> dict[str, np.ndarray]:
        z = torch.from_numpy(arrays["z"])
        if "index" in arrays:
            index, distance = torch.from_numpy(arrays["index"]), torch.from_numpy(arrays["distance"])
            neighbors = Neighbors(index, distance, torch.tensor([0, len(z)]))
        else:
            neighbors = find_neighbors(z, k, backend=backend)
        s = normalize_graph(build_graph(z, neighbors)).to_scipy()
        return {"data": s.data, "indices": s.indices, "indptr": s.indptr}

    return run
