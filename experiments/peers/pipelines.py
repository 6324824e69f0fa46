"""From features and a few labels to a label for every item, start to finish."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.sparse import coo_array, csr_array, diags_array, eye_array
from scipy.sparse.linalg import cg

from .neighbors import NUM_WARM, SEARCH

Answer = dict[str, np.ndarray]


def self_tuning_graph(index: np.ndarray, distance: np.ndarray) -> csr_array:
    """Return W: exp(-d^2 / (s_i s_j)), the mean of both directions, as lspread's defaults have it."""
    width = distance.max(1)
    weight = np.exp(-(distance**2) / (width[:, None] * width[index]))
    row = np.repeat(np.arange(len(index)), index.shape[1])
    half = coo_array((weight.ravel() / 2, (row, index.ravel())), shape=(len(index), len(index))).tocsr()
    return (half + half.T).tocsr()


def normalized(w: csr_array) -> csr_array:
    scale = diags_array(1 / np.sqrt(np.maximum(w.sum(0), 1e-30)))
    return (scale @ w @ scale).tocsr().astype(np.float32)


def spread_by_class(
    s: csr_array, label: np.ndarray, alpha: float, *, rtol: float, max_steps: int, balance: bool = False
) -> np.ndarray:
    """Return the most likely class, by one conjugate gradient run per class (LP-DeepSSL)."""
    a = (eye_array(len(label), dtype=s.dtype, format="csr") - s.dtype.type(alpha) * s).tocsr()
    columns = []
    for number in range(label.max() + 1):
        rhs = (label == number).astype(s.dtype)
        columns.append(cg(a, rhs / rhs.sum() if balance else rhs, rtol=rtol, maxiter=max_steps)[0])
    return np.stack(columns, 1).argmax(1)


def lspread(z: np.ndarray, label: np.ndarray, *, k: int, alpha: float, backend: str = "") -> Answer:
    import torch

    from lspread import build_graph, find_neighbors, label_matrix, normalize_graph, pseudo_labels, spread_labels

    features, given = torch.from_numpy(z), torch.from_numpy(label)
    neighbors = find_neighbors(features, k, backend=backend) if backend else find_neighbors(features, k)
    graph = normalize_graph(build_graph(features, neighbors))
    solution = spread_labels(graph, label_matrix(given, int(given.max()) + 1), alpha=alpha)
    found = pseudo_labels(solution.value, given)
    return {
        "label": found.label.numpy(),
        "index": neighbors.index.numpy(),
        "distance": neighbors.distance.numpy(),
    }


def sklearn_spreading(z: np.ndarray, label: np.ndarray, *, k: int, alpha: float) -> Answer:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.semi_supervised import LabelSpreading

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # It counts a point as its own neighbor and then drops that edge.
        model = LabelSpreading(kernel="knn", n_neighbors=k + 1, alpha=alpha, n_jobs=-1).fit(z, label)
    return {"label": model.transduction_}


def search_and_cg(
    z: np.ndarray, label: np.ndarray, *, k: int, alpha: float, search: str, rtol: float, **options: Any
) -> Answer:
    """Another library's neighbors, lspread's graph made with SciPy, conjugate gradient class by class."""
    index, distance = SEARCH[search](z, k, **options)
    s = normalized(self_tuning_graph(index, distance))
    return {"label": spread_by_class(s, label, alpha, rtol=rtol, max_steps=2000), "index": index, "distance": distance}


def lp_deepssl(z: np.ndarray, label: np.ndarray, *, k: int, alpha: float) -> Answer:
    """LP-DeepSSL's graph and solve: cosine by faiss, max(cos, 0)^3, W + W^T, 20 steps, balanced targets."""
    import faiss

    unit = z.copy()
    faiss.normalize_L2(unit)
    built = faiss.IndexFlatIP(z.shape[1])
    built.add(unit)
    cosine, index = built.search(unit, k + 1)
    weight = np.maximum(cosine[:, 1:], 0) ** 3
    row = np.repeat(np.arange(len(z)), k)
    half = coo_array((weight.ravel(), (row, index[:, 1:].ravel())), shape=(len(z), len(z))).tocsr()
    w = (half + half.T).tocsr()
    w.setdiag(0)
    return {"label": spread_by_class(normalized(w), label, alpha, rtol=1e-6, max_steps=20, balance=True)}


def graphlearning(
    z: np.ndarray, label: np.ndarray, *, k: int, alpha: float, method: str, search: str, **options: Any
) -> Answer:
    """graphlearning on neighbors handed to it: its own search needs annoy and is slower."""
    import graphlearning as gl

    index, distance = SEARCH[search](z, k, **options)
    # Its lists start with the point itself.
    rows = np.concatenate([np.arange(len(z))[:, None], index], 1)
    away = np.concatenate([np.zeros((len(z), 1), distance.dtype), distance], 1)
    w = gl.weightmatrix.knn(z, k, kernel="symgaussian", knn_data=(rows, away))
    model = gl.ssl.randomwalk(w, alpha=alpha) if method == "randomwalk" else gl.ssl.poisson(w)
    given = np.flatnonzero(label >= 0)
    return {"label": model.fit_predict(given, label[given])}


PIPELINES: dict[str, Callable[..., Answer]] = {
    "lspread": lspread,
    "sklearn": sklearn_spreading,
    "search_and_cg": search_and_cg,
    "lp_deepssl": lp_deepssl,
    "graphlearning": graphlearning,
}


def prepare(arrays: dict[str, np.ndarray], *, pipeline: str, **options: Any) -> Callable[[int], Answer]:
    """Return the timed call; each turn takes the next draw of labels. Warms up on the first rows."""
    z, given = arrays["z"], arrays["given"]
    function = PIPELINES[pipeline]
    few = np.flatnonzero(given[0] >= 0)
    rows = np.unique(np.concatenate([few, np.arange(min(NUM_WARM, len(z)))]))
    function(np.ascontiguousarray(z[rows]), np.ascontiguousarray(given[0][rows]), **options)
    return lambda turn: function(z, given[turn % len(given)], **options)
