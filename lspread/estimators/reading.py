"""What users hand to an estimator, as rows, class numbers and graphs."""

from __future__ import annotations

import warnings
from dataclasses import replace
from numbers import Number
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
import torch
from sklearn.exceptions import DataConversionWarning
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array

from lspread.errors import DataError
from lspread.graph import Graph
from lspread.typing import UNLABELED

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["densify", "drop_nodes", "merge_rows", "read_graph", "read_labels"]

MOST_DENSE = 1 << 29
"""Numbers that a sparse X may have when it is made dense: 2 GiB in float32."""


def read_labels(y: Any, n: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the classes `(c,)`, sorted, and the number of each row's class `(n,)`, `UNLABELED` without one.

    Raises:
        DataError: y has another shape, holds infinity or no label at all.
        ValueError: y is continuous.
    """
    # NumPy would make strings of -1 and NaN beside strings, and classes of these.
    is_text = isinstance(y, (list, tuple)) and any(isinstance(value, str) for value in y)
    y = np.asarray(y, dtype=object) if is_text else np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        warnings.warn(
            "A column-vector y was passed when a 1d array was expected; use y.ravel().",
            DataConversionWarning,
            stacklevel=4,
        )
        y = y.ravel()
    if y.shape != (n,):
        raise DataError(f"y must hold one label per row of X, shape ({n},); got {y.shape}.")
    if y.dtype.kind == "f" and np.isinf(y).any():
        raise DataError("Input y contains infinity or a value too large for dtype('float64').")
    values = y.tolist()
    is_given = np.array([_is_label(value) for value in values], dtype=bool)
    spelled = [text for text in ("-1", "nan") if any(isinstance(value, str) and value == text for value in values)]
    if spelled:
        warnings.warn(
            f"y holds the text '{spelled[0]}', which is taken as a class. NumPy makes it of a missing label beside "
            "text; where that is meant, pass a list or an array of dtype object, with None for what has no label.",
            UserWarning,
            stacklevel=4,
        )
    if y.dtype.kind in "if" and set(np.unique(y)) == {-1, 1}:
        warnings.warn(
            "y holds nothing but -1 and 1, so they are taken as two classes and every row as labeled. If -1 was to say "
            "that a label is missing, label a row of another class first: one class alone teaches nothing.",
            UserWarning,
            stacklevel=4,
        )
        is_given[:] = True
    given = y[is_given]
    if not len(given):
        raise DataError(f"y holds no label: {n} rows, all -1, None, NaN or empty. Label at least one row per class.")
    if given.dtype == object:
        for kind in (str, Number):
            if all(isinstance(value, kind) for value in given):
                given = np.array(given.tolist())
    check_classification_targets(given)
    classes, number = np.unique(given, return_inverse=True)
    label = np.full(n, UNLABELED, dtype=np.int64)
    label[is_given] = number
    return classes, label


def _is_label(value: Any) -> bool:
    """Return whether an entry of y is a class: not -1, None, NaN or an empty string."""
    if value is None or isinstance(value, str):
        return bool(value)
    try:
        return bool(value == value) and bool(value != UNLABELED)
    except TypeError:  # pandas.NA answers neither yes nor no
        return False


def densify(X: Any) -> NDArray[np.float64]:
    """Return rows `(n, d)` as an array; raise `DataError` for a sparse X that is too large for one."""
    if not scipy.sparse.issparse(X):
        return np.asarray(X)
    if X.shape[0] * X.shape[1] > MOST_DENSE:
        raise DataError(
            f"a sparse X of shape {X.shape} is too large to be made dense. Put sklearn.decomposition.TruncatedSVD(256) "
            "before this estimator; for texts that helps accuracy as well."
        )
    dense: NDArray[np.float64] = X.toarray()
    return dense


def merge_rows(X: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where each distinct row appears first, ascending, and the number of the distinct row of every row."""
    plain = np.ascontiguousarray(X + 0.0)  # -0 becomes 0
    key = plain.view(np.dtype((np.void, plain.dtype.itemsize * plain.shape[1]))).ravel()
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    order = first.argsort()
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[inverse]


def read_graph(X: Any) -> Graph:
    """Return a graph from what stands for one: a graph of lspread or PyG, or a square matrix of weights.

    Raises:
        DataError: It is not square, not symmetric, or normalized already.
        GraphError: Weights are negative.
    """
    if isinstance(X, Graph):
        graph = X
    elif hasattr(X, "edge_index"):
        graph = Graph.from_pyg(X)
    else:
        matrix = check_array(X, accept_sparse="csr", dtype=[np.float64, np.float32])
        if matrix.shape[0] != matrix.shape[1]:
            raise DataError(f"precomputed weights must be square, one row and column per item; got {matrix.shape}.")
        every = scipy.sparse.coo_array(matrix)
        is_edge = (every.row != every.col) & (every.data != 0)
        edges = (every.data[is_edge], (every.row[is_edge], every.col[is_edge]))
        graph = Graph.from_scipy(scipy.sparse.coo_array(edges, shape=every.shape))
    if not graph.is_symmetric or graph.normalization != "none":
        raise DataError(
            "a precomputed graph must be symmetric and not normalized. Use (W + W.T) / 2, as is common for graphs of "
            "nearest neighbors."
        )
    return graph


def drop_nodes(graph: Graph, is_kept: NDArray[np.bool_]) -> Graph:
    """Return the graph without edges of nodes that are left out; nodes keep their numbers."""
    kept = torch.from_numpy(is_kept).to(graph.device)
    if bool(kept.all()):
        return graph
    stays = kept[graph.edge_index].all(0)
    return replace(graph, edge_index=graph.edge_index[:, stays], edge_weight=graph.edge_weight[stays])
