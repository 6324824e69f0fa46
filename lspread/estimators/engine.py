"""What the three estimators share: from X and y to a graph, a solve, and votes for new items."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor

from lspread.active import audit_labels
from lspread.errors import ConfigError, DataError
from lspread.estimators.answers import calibrate, fill, nearest_class
from lspread.estimators.reading import densify, drop_nodes, merge_rows, read_graph, read_labels
from lspread.graph import Gaussian, Graph, Kernel, SelfTuning, build_graph, find_neighbors, normalize_graph
from lspread.labels import (
    ClassPrior,
    certainty,
    class_prior,
    match_prior,
    normalize_scores,
    sharpen,
)
from lspread.nn import InductiveHead
from lspread.solve import ConjugateGradient, Solution, Status
from lspread.typing import UNLABELED, Metric

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Self

__all__ = ["GraphClassifier", "KernelOption"]

KernelOption: TypeAlias = Literal["knn", "rbf", "precomputed"] | Callable[[Any, Any], Any]

DENSE_NODES = 4096
"""Up to so many items, `kernel="rbf"` joins all pairs."""
RBF_NEIGHBORS = 100
SINGLE_NODES = 2048
"""From so many items on, neighbours are searched in float32; the solve is in float64 always."""
LEAST_SPREAD, MOST_SPREAD = 1e-15, 1e15
"""Between these, squares are well inside what float32 can hold."""
ROWS = 1024
"""New items that `predict` compares with all others together ..."""
MOST_DISTANCES = 1 << 25
"""... unless that makes more numbers: 256 MiB in float64."""
LEAST_TRUST = 1e-3


class GraphClassifier(ClassifierMixin, BaseEstimator):
    """What the three share: from X and y to a graph, a solve, and votes for new items."""

    balance = True
    _middle: NDArray[np.float64] | None = None
    """What is subtracted from rows before they become float32."""

    def __init__(
        self,
        kernel: KernelOption = "knn",
        *,
        gamma: float = 20.0,
        n_neighbors: int = 7,
        max_iter: int = 1000,
        tol: float = 1e-10,
        n_jobs: int | None = None,
        metric: Metric = "euclidean",
        prior: ClassPrior | ArrayLike = "none",
        robust: bool = False,
        calibrate: bool = False,
        device: str | None = None,
        verbose: bool = False,
    ) -> None:
        self.kernel = kernel
        self.gamma = gamma
        self.n_neighbors = n_neighbors
        self.max_iter = max_iter
        self.tol = tol
        self.n_jobs = n_jobs
        self.metric = metric
        self.prior = prior
        self.robust = robust
        self.calibrate = calibrate
        self.device = device
        self.verbose = verbose

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Build the graph of X and spread the given labels over it.

        Args:
            X: `(n, d)` dense or sparse numbers; with `kernel="precomputed"` symmetric weights `(n, n)`, dense or
                sparse, or a graph of PyG (`Data`) or of lspread. Equal rows become one node of the graph.
            y: `(n,)` classes of any type. -1 means no label, and so do None, NaN and "" among strings or objects.
            sample_weight: `(n,)` >= 0, how far each label is trusted: 1 as usual, less for doubtful ones. A row of
                weight 0 is left out altogether, as in scikit-learn, and a row of weight 2 is a row that is there twice.

        Returns:
            The estimator itself.

        Raises:
            ValueError: X or y cannot be used; the message says why.
        """
        self._check_options()
        start = time.perf_counter()
        with self._threads():
            rows, label = self._read(X, y, sample_weight)
            graph = self._make_graph()
            self._say(f"graph: {graph.num_nodes} nodes, {graph.num_edges} edges", start)
            targets = self._make_targets(rows, label, graph)
            solution = self._solve(graph, targets)
            self._say(f"solve: {solution.num_steps} steps, {solution.status.value}", start)
            self._keep(graph, targets, solution, rows, label)
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the likeliest class of each row `(m,)`.

        Args:
            X: `(m, d)`; with `kernel="precomputed"` weights to the n fitted items `(m, n)`.
        """
        position = self.predict_proba(X).argmax(1)
        return self.classes_[position]

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return class probabilities `(m, c)`: the votes of the nearest fitted items, weighted by the kernel.

        Args:
            X: As for `predict`.
        """
        check_is_fitted(self)
        if self.kernel == "precomputed" or callable(self.kernel):
            weight = self._weights_to_fitted(X)
            mass = weight @ self._votes.cpu().numpy()
            total = mass.sum(1, keepdims=True)
            votes = np.where(total > 0, mass / np.where(total > 0, total, 1), self.class_prior_)
        else:
            x = self._as_tensor(validate_data(self, X, accept_sparse=True, dtype=np.float64, reset=False))
            with self._threads(), torch.inference_mode():
                rows = max(1, min(ROWS, MOST_DISTANCES // len(self.X_)))
                votes = torch.cat([self._head(part) for part in x.split(rows)]).double().cpu().numpy()
        return self._sharpen(votes)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.pairwise = self.kernel == "precomputed"
        return tags

    # Reading

    def _check_options(self) -> None:
        if not callable(self.kernel) and self.kernel not in ("knn", "rbf", "precomputed"):
            raise ConfigError(
                f"kernel must be 'knn', 'rbf', 'precomputed' or a function of two X; got {self.kernel!r}."
            )
        for name, is_fine, needed in (
            ("n_neighbors", self.n_neighbors >= 1, "at least 1"),
            ("gamma", self.gamma > 0, "greater than 0"),
            ("max_iter", self.max_iter >= 1, "at least 1"),
            ("tol", self.tol > 0, "greater than 0"),
        ):
            if not is_fine:
                raise ConfigError(f"{name} must be {needed}; got {getattr(self, name)}.")

    def _read(self, X: Any, y: Any, sample_weight: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Keep X without copies of rows; return the node of each row and its label, both `(n,)`.

        Rows of weight 0 have node -1.
        """
        if y is None:
            raise DataError(
                f"{type(self).__name__} requires y to be passed, but the target y is None. Give -1 where no label is."
            )
        if self.kernel == "precomputed":
            self._given_graph = read_graph(X)
            n = self._given_graph.num_nodes
            self.n_features_in_ = n
        else:
            X = validate_data(self, X, accept_sparse=True, dtype=np.float64)
            n = X.shape[0]
        self.classes_, label = read_labels(y, n)
        self._weight = np.ones(n) if sample_weight is None else _check_sample_weight(sample_weight, np.empty((n, 1)))
        if (self._weight < 0).any():
            raise DataError(f"sample_weight must be 0 or more; the smallest is {self._weight.min()}.")
        is_kept = self._weight > 0
        if not (label[is_kept] != UNLABELED).any():
            raise DataError("every labeled row has sample_weight 0; there is no label left to spread.")
        if self.kernel == "precomputed":
            self._given_graph = drop_nodes(self._given_graph, is_kept)
            return np.where(is_kept, np.arange(n), -1), label
        dense = densify(X)
        kept = np.flatnonzero(is_kept)
        first, node = merge_rows(dense[kept])
        self.X_ = dense[kept[first]]
        rows = np.full(n, -1)
        rows[kept] = node
        return rows, label

    def _as_tensor(self, X: Any) -> Tensor:
        device = torch.device("cpu" if self.device is None else self.device)
        X = densify(X)
        if self._middle is not None:
            X = X - self._middle
        return torch.from_numpy(np.ascontiguousarray(X)).to(device, self._dtype)

    # Graph

    def _make_graph(self) -> Graph:
        """Return the symmetric graph, not normalized, in float64: far from the labels, scores are tiny."""
        device = self.device or "cpu"
        self._dtype = torch.float64
        if self.kernel == "precomputed":
            return self._given_graph.to(device, torch.float64)
        if callable(self.kernel):
            return read_graph(self.kernel(self.X_, self.X_)).to(device, torch.float64)
        n = len(self.X_)
        self._middle = None
        if n >= SINGLE_NODES:
            self._dtype = torch.float32
            if self.metric == "euclidean":
                # Float32 has no digits to spare for an offset, such as that of seconds since 1970.
                self._middle = np.median(self.X_, 0)
            spread = float(np.abs(self.X_ if self._middle is None else self.X_ - self._middle).max())
            if not LEAST_SPREAD < spread < MOST_SPREAD:
                self._dtype = torch.float64  # squares of it are no float32
        z = self._as_tensor(self.X_)
        if n == 1:
            none = torch.zeros(2, 0, dtype=torch.int64, device=z.device)
            return Graph.from_edges(none, z.new_zeros(0), num_nodes=1)
        if self.kernel == "knn":
            k = min(max(1, self.n_neighbors - 1), n - 1)  # as in scikit-learn, the item itself is one of them
            kernel: Kernel = SelfTuning()
        else:
            k = n - 1 if n <= DENSE_NODES else RBF_NEIGHBORS
            kernel = Gaussian((2 * self.gamma) ** -0.5)
        return build_graph(z, find_neighbors(z, k, metric=self.metric), kernel=kernel).to(dtype=torch.float64)

    def _make_targets(self, rows: NDArray[np.int64], label: NDArray[np.int64], graph: Graph) -> Tensor:
        """Return Y `(nodes, c)`: weights of the labels that every node has."""
        c = len(self.classes_)
        targets = torch.zeros(graph.num_nodes, c, dtype=torch.float64)
        is_given = (label != UNLABELED) & (rows >= 0)
        node, number = torch.from_numpy(rows[is_given]), torch.from_numpy(label[is_given])
        weight = torch.from_numpy(np.asarray(self._weight, dtype=np.float64)[is_given])
        targets.view(-1).index_add_(0, node * c + number, weight)
        targets = targets.to(graph.device, graph.edge_weight.dtype)
        self.label_trust_ = np.where(is_given, 1.0, np.nan)
        if self.robust and len(node.unique()) > 1:
            likeliest = torch.where((targets != 0).any(1), targets.argmax(1), UNLABELED)
            audit = audit_labels(normalize_graph(graph), likeliest, c)
            trust = torch.ones(graph.num_nodes, dtype=targets.dtype, device=targets.device)
            trust[audit.index] = audit.trust.clamp(min=LEAST_TRUST)
            self.label_trust_[is_given] = trust.double().cpu().numpy()[rows[is_given]]
            targets = targets * trust[:, None]
        return targets

    def _balanced(self, targets: Tensor) -> Tensor:
        mass = targets.sum(0)
        return targets / torch.where(mass > 0, mass, 1) if self.balance else targets

    def _solver(self) -> ConjugateGradient:
        return ConjugateGradient(rtol=self.tol, max_steps=self.max_iter)

    def _solve(self, graph: Graph, targets: Tensor) -> Solution:
        raise NotImplementedError

    # Answers

    def _keep(
        self, graph: Graph, targets: Tensor, solution: Solution, rows: NDArray[np.int64], label: NDArray[np.int64]
    ) -> None:
        """Set the fitted attributes."""
        self.graph_ = graph
        self.n_iter_ = max(1, solution.num_steps)
        self.converged_ = solution.status is Status.CONVERGED
        tiny = torch.finfo(solution.tolerance.dtype).tiny
        self.residual_ = float((solution.residual / solution.tolerance.clamp(min=tiny)).max() * self.tol)
        if not self.converged_:
            warnings.warn(
                f"the solve ended after max_iter={self.max_iter} steps with a relative residual of "
                f"{self.residual_:.2g}, above tol={self.tol:g}. Raise max_iter, raise tol or lower alpha.",
                ConvergenceWarning,
                stacklevel=3,
            )
        self._given = torch.from_numpy(label[(label != UNLABELED) & (rows >= 0)])
        frequencies = class_prior("labeled", self._given, len(self.classes_))
        assert frequencies is not None
        self.class_prior_ = frequencies.double().numpy()
        probability, is_reached = normalize_scores(solution.value)
        probability = self._fill(self._match_prior(probability, is_reached), is_reached, targets)
        # Rows that were left out say nothing.
        is_node = torch.zeros(graph.num_nodes, dtype=torch.bool)
        is_node[torch.from_numpy(rows[rows >= 0])] = True
        self._votes = probability * is_node.to(probability.device)[:, None]
        self.temperature_, self.calibration_error_ = 1.0, np.nan
        if self.calibrate:
            self._calibrate(graph, targets)
        if self.kernel in ("knn", "rbf"):
            weight: Literal["self_tuning", "gaussian"] = "self_tuning" if self.kernel == "knn" else "gaussian"
            bank = self._as_tensor(self.X_)
            k = self.n_neighbors if self.kernel == "knn" else RBF_NEIGHBORS
            width = 1.0 if self.kernel == "knn" else (2 * self.gamma) ** -0.5
            self._head = InductiveHead(bank, self._votes, k=k, weight=weight, bandwidth=width, metric=self.metric)

        distribution = np.tile(self.class_prior_, (len(rows), 1))
        is_in = rows >= 0
        distribution[is_in] = probability.double().cpu().numpy()[rows[is_in]]
        self.label_distributions_ = self._sharpen(distribution)
        self.transduction_ = self.classes_[self.label_distributions_.argmax(1)]
        self.confidence_ = certainty(torch.from_numpy(self.label_distributions_)).numpy()
        reached = is_reached.cpu().numpy()
        self.is_reached_ = np.zeros(len(rows), dtype=bool)
        self.is_reached_[is_in] = reached[rows[is_in]]
        self.n_unreached_ = int((is_in & ~self.is_reached_).sum())
        if self.n_unreached_:
            warnings.warn(
                f"no label reaches {self.n_unreached_} of {len(rows)} rows: they take {self._favored()}, with a "
                f"confidence near 0. Label something among them{self._more_edges()}.",
                UserWarning,
                stacklevel=3,
            )

    def _favored(self) -> str:
        return "the class of the nearest labeled row" if self.kernel in ("knn", "rbf") else "the most frequent class"

    def _more_edges(self) -> str:
        return {"knn": " or raise n_neighbors", "rbf": " or lower gamma"}.get(str(self.kernel), "")

    def _match_prior(self, probability: Tensor, is_reached: Tensor) -> Tensor:
        if isinstance(self.prior, str) and self.prior == "none":
            return probability
        wanted = self.prior if isinstance(self.prior, str) else torch.as_tensor(self.prior, dtype=torch.float64)
        frequencies = class_prior(wanted, self._given, len(self.classes_))  # type: ignore[arg-type]
        assert frequencies is not None
        return match_prior(probability, is_reached, frequencies.to(probability))

    def _fill(self, probability: Tensor, is_reached: Tensor, targets: Tensor) -> Tensor:
        """Give rows that no label reaches the class that `_favored` names, with next to no confidence."""
        if bool(is_reached.all()):
            return probability
        if self.kernel not in ("knn", "rbf"):
            return fill(probability, is_reached, torch.as_tensor(self.class_prior_.argmax(), device=targets.device))
        z = self._as_tensor(self.X_)
        return fill(probability, is_reached, nearest_class(z, targets, ~is_reached, metric=self.metric))

    def _calibrate(self, graph: Graph, targets: Tensor) -> None:
        def answer(left: Tensor) -> Tensor:
            return self._match_prior(*normalize_scores(self._solve(graph, left).value))

        found = calibrate(answer, targets)
        if found is None:
            warnings.warn(
                "calibrate=True needs two labels of every class at least; probabilities stay as they are.",
                UserWarning,
                stacklevel=4,
            )
        else:
            self.temperature_, self.calibration_error_ = found

    def _sharpen(self, probability: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.temperature_ == 1:
            return probability
        sharp: NDArray[np.float64] = sharpen(torch.from_numpy(probability), self.temperature_).numpy()
        return sharp

    def _weights_to_fitted(self, X: Any) -> Any:
        """Return kernel weights `(m, nodes)` of new rows to the fitted ones."""
        if callable(self.kernel):
            X = validate_data(self, X, accept_sparse=True, dtype=np.float64, reset=False)
            return self.kernel(densify(X), self.X_)
        return validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)

    @contextmanager
    def _threads(self) -> Iterator[None]:
        before = torch.get_num_threads()
        try:
            if self.n_jobs is not None and self.n_jobs > 0:
                torch.set_num_threads(self.n_jobs)
            yield
        finally:
            torch.set_num_threads(before)

    def _say(self, what: str, start: float) -> None:
        if self.verbose:
            print(f"{type(self).__name__}: {what} ({time.perf_counter() - start:.2f} s)", flush=True)
