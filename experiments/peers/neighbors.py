"""Neighbor searches: embeddings `(n, d)` in, the k nearest others of every row out."""

from collections.abc import Callable

import numpy as np
import torch

Found = tuple[np.ndarray, np.ndarray]


def search_lspread(z: np.ndarray, k: int, *, backend: str) -> Found:
    from lspread import find_neighbors

    found = find_neighbors(torch.from_numpy(z), k, backend=backend)
    return found.index.numpy(), found.distance.numpy()


def search_sklearn(z: np.ndarray, k: int) -> Found:
    from sklearn.neighbors import NearestNeighbors

    # Asked about nothing, it answers for its own rows and leaves each out of its own answer.
    distance, index = NearestNeighbors(n_neighbors=k, algorithm="brute", n_jobs=-1).fit(z).kneighbors()
    return index, distance


def without_self(index: np.ndarray, squared: np.ndarray) -> Found:
    """Drop each row's own number from k + 1 answers, or the last one where it is not among them."""
    is_self = index == np.arange(len(index))[:, None]
    is_self[~is_self.any(1), -1] = True
    shape = (len(index), index.shape[1] - 1)
    return index[~is_self].reshape(shape), np.sqrt(np.maximum(squared[~is_self], 0)).reshape(shape)


def search_faiss(z: np.ndarray, k: int, *, index: str, probes: int = 0, search_width: int = 0) -> Found:
    """Search with a faiss index given by its factory string, e.g. "Flat", "HNSW32", "IVF1024,Flat"."""
    import faiss

    if index.startswith("IVF"):
        index = f"IVF{min(int(index[3:].split(',')[0]), len(z) // 40)},Flat"
    built = faiss.index_factory(z.shape[1], index)
    if probes:
        built.nprobe = probes
        # One list is a hundredth of a percent of the data; a fortieth of a million rows trains a thousand centers.
        built.train(z[:: max(1, len(z) // (60 * built.nlist))])
    if search_width:
        built.hnsw.efSearch = search_width
        built.hnsw.efConstruction = search_width
    built.add(z)
    squared, found = built.search(z, k + 1)
    return without_self(found, squared)


def search_pynndescent(z: np.ndarray, k: int) -> Found:
    from pynndescent import NNDescent

    index, distance = NNDescent(z, n_neighbors=k + 1, random_state=0, n_jobs=-1).neighbor_graph
    return without_self(index.astype(np.int64), distance.astype(np.float32) ** 2)


SEARCH: dict[str, Callable[..., Found]] = {
    "lspread": search_lspread,
    "sklearn": search_sklearn,
    "faiss": search_faiss,
    "pynndescent": search_pynndescent,
}
NUM_WARM = 2_000


def prepare(
    arrays: dict[str, np.ndarray], *, search: str, k: int, **options: object
) -> Callable[[int], dict[str, np.ndarray]]:
    """Return the timed call; a small search first, so that whatever compiles at first use has compiled."""
    z, function = arrays["z"], SEARCH[search]
    function(np.ascontiguousarray(z[:NUM_WARM]), k, **options)

    def run(turn: int) -> dict[str, np.ndarray]:
        index, distance = function(z, k, **options)
        return {"index": index, "distance": distance}

    return run
