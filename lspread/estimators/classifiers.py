"""The three estimators: one class for each way to spread labels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lspread.estimators.engine import GraphClassifier, KernelOption
from lspread.graph import Graph, connected_components, normalize_graph
from lspread.labels import ClassPrior, poisson_labels, propagate_labels, spread_labels
from lspread.solve import Solution, Status
from lspread.typing import Metric

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["LabelPropagationClassifier", "LabelSpreadingClassifier", "PoissonClassifier"]

NUM_HOPS = 200
"""Edges away from what was solved for that tiny scores are carried on."""


class LabelSpreadingClassifier(GraphClassifier):
    """Label spreading (Zhou et al. 2004): given labels may be outvoted by their neighbours.

    Args:
        kernel: "knn" (weights follow the local density), "rbf" (exp(-gamma d^2), of all pairs up to 4,096 rows, else of
            the 100 nearest, which also are who votes for a new row), "precomputed" (X is the graph), or a function of
            two X `(n, d)` and `(m, d)` that returns weights `(n, m)`.
        gamma: Of "rbf".
        n_neighbors: Of "knn", the item itself among them; as many fitted items vote for a new one.
        alpha: How much an item listens to its neighbours, in [0, 1): 0 leaves the labels as they are. "rbf" joins
            many more items than "knn" and wants less, such as scikit-learn's 0.2.
        max_iter: Most steps of the solver.
        tol: Relative residual to reach.
        n_jobs: Threads; None takes what torch is set to, -1 likewise.
        metric: "euclidean" or "cosine".
        balance: Let classes with more labels send out no more in total.
        prior: Class frequencies to match: "none", "uniform", "labeled" (those among the given labels) or numbers
            `(c,)`.
        robust: Trust each label as far as the others confirm it, for labels of which many are wrong.
        calibrate: Fit a temperature to the answers that hidden labels get; `calibration_error_` is then known.
        device: Of torch; None is the CPU.
        verbose: Say what is done and how long it took.

    Attributes:
        classes_: Classes `(c,)`, sorted.
        transduction_: Class of each fitted row `(n,)`.
        label_distributions_: Class probabilities of each fitted row `(n, c)`; never NaN.
        confidence_: 1 - entropy / log c of each fitted row `(n,)`, in [0, 1].
        label_trust_: `(n,)`, NaN without a label, else what `robust` found, 1 without it.
        graph_: The graph, symmetric and not normalized; one node per distinct row.
        X_: Distinct fitted rows, in order of first appearance; not with a precomputed kernel.
        n_iter_: Steps of the solver. `converged_` says whether they were enough, `residual_` the relative residual.
        is_reached_: Rows that a label reaches `(n,)` bool. `n_unreached_` counts the others; they take the class of the
            nearest labeled row, with other kernels than "knn" and "rbf" the most frequent one.
        class_prior_: Class frequencies among the given labels `(c,)`.
        temperature_: That of `calibrate`, else 1.
        calibration_error_: Expected calibration error of the answers that hidden labels get, with that temperature;
            NaN without `calibrate`.
        n_features_in_: Columns of X.

    Example:
        >>> import numpy as np
        >>> X = np.array([[0.0], [0.1], [0.2], [1.0], [1.1], [1.2]])
        >>> y = np.array(["low", "", "", "", "", "high"])
        >>> LabelSpreadingClassifier(n_neighbors=2).fit(X, y).predict([[0.15], [1.15]]).tolist()
        ['low', 'high']

    References:
        Zhou et al., "Learning with Local and Global Consistency", NIPS 2003.
    """

    def __init__(
        self,
        kernel: KernelOption = "knn",
        *,
        gamma: float = 20.0,
        n_neighbors: int = 7,
        alpha: float = 0.99,
        max_iter: int = 1000,
        tol: float = 1e-10,
        n_jobs: int | None = None,
        metric: Metric = "euclidean",
        balance: bool = True,
        prior: ClassPrior | ArrayLike = "none",
        robust: bool = False,
        calibrate: bool = False,
        device: str | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            kernel,
            gamma=gamma,
            n_neighbors=n_neighbors,
            max_iter=max_iter,
            tol=tol,
            n_jobs=n_jobs,
            metric=metric,
            prior=prior,
            robust=robust,
            calibrate=calibrate,
            device=device,
            verbose=verbose,
        )
        self.alpha = alpha
        self.balance = balance

    def _solve(self, graph: Graph, targets: Tensor) -> Solution:
        graph, targets = normalize_graph(graph), self._balanced(targets)
        solution = spread_labels(graph, targets, alpha=self.alpha, solver=self._solver(), on_failure="ignore")
        # Far from all labels, scores may be smaller than what the solve can promise. Zhou's own iteration from zero
        # adds up positive numbers only, so that each is right in its leading digits however small it is.
        bound = solution.error_bound.amax(0)
        component = connected_components(graph)
        has_label = torch.zeros(graph.num_nodes, dtype=torch.bool, device=graph.device)
        has_label[component[(targets != 0).any(1)]] = True
        is_lost = (solution.value <= bound).all(1) & has_label[component]
        if solution.status is not Status.CONVERGED or not bool(is_lost.any()):
            return solution
        size = (graph.num_nodes, graph.num_nodes)
        matrix = torch.sparse_coo_tensor(graph.edge_index, graph.edge_weight, size, is_coalesced=True).to_sparse_csr()
        value = torch.where(solution.value <= bound, 0, solution.value)
        for _ in range(NUM_HOPS):
            value = torch.where(is_lost[:, None], self.alpha * (matrix @ value), value)
        return replace(solution, value=value)


class LabelPropagationClassifier(GraphClassifier):
    """Label propagation (Zhu et al. 2003): given labels are held, every other item is the mean of its neighbours.

    A label of weight w below 1 is not held: it pulls its row with the share w of all that pulls, neighbours the rest.

    Args:
        kernel: As in `LabelSpreadingClassifier`, and so the others.
        gamma: Of "rbf".
        n_neighbors: Of "knn", the item itself among them; as many fitted items vote for a new one.
        max_iter: Most steps of the solver.
        tol: Relative residual to reach.
        n_jobs: Threads.
        metric: "euclidean" or "cosine".
        prior: Class frequencies to match.
        robust: Trust each label as far as the others confirm it.
        calibrate: Fit a temperature to the answers that hidden labels get.
        device: Of torch; None is the CPU.
        verbose: Say what is done and how long it took.

    Attributes are those of `LabelSpreadingClassifier`.

    References:
        Zhu et al., "Semi-Supervised Learning Using Gaussian Fields and Harmonic Functions", ICML 2003; section 4 for
        labels that pull.
    """

    def _solve(self, graph: Graph, targets: Tensor) -> Solution:
        n = graph.num_nodes
        trust = targets.sum(1)
        is_given = trust > 0
        held = targets / torch.where(is_given, trust, 1)[:, None]
        pulled = ((trust > 0) & (trust < 1)).nonzero().flatten()
        if len(pulled):
            # Each doubtful label becomes a node of its own, which is held and tied to its row.
            beside = n + torch.arange(len(pulled), device=graph.device)
            tie = torch.stack([torch.cat([pulled, beside]), torch.cat([beside, pulled])])
            degree = torch.zeros(n, dtype=trust.dtype, device=graph.device)
            degree.index_add_(0, graph.edge_index[0], graph.edge_weight)
            weight = torch.where(degree > 0, degree, 1)[pulled] * trust[pulled] / (1 - trust[pulled])
            graph = Graph.from_edges(
                torch.cat([graph.edge_index, tie], 1),
                torch.cat([graph.edge_weight, weight, weight]),
                num_nodes=n + len(pulled),
            )
            held = torch.cat([held, held[pulled]])
            is_given = torch.cat([is_given, torch.ones_like(pulled, dtype=torch.bool)])
            is_given[pulled] = False
        # By the diagonal: weights of "rbf" differ by many orders of magnitude.
        solver = replace(self._solver(), preconditioner="jacobi")
        solution = propagate_labels(graph, held, is_given, solver=solver, on_failure="ignore")
        return replace(solution, value=solution.value[:n])


class PoissonClassifier(GraphClassifier):
    """Poisson learning (Calder et al. 2020): labels as sources and sinks; made for one or a few labels per class.

    Args:
        kernel: As in `LabelSpreadingClassifier`, and so the others.
        gamma: Of "rbf".
        n_neighbors: Of "knn", the item itself among them; as many fitted items vote for a new one.
        max_iter: Most steps of the solver.
        tol: Relative residual to reach.
        n_jobs: Threads.
        metric: "euclidean" or "cosine".
        prior: Class frequencies to match.
        robust: Trust each label as far as the others confirm it.
        calibrate: Fit a temperature to the answers that hidden labels get.
        device: Of torch; None is the CPU.
        verbose: Say what is done and how long it took.

    Attributes are those of `LabelSpreadingClassifier`; the share of a class in the positive scores of a row stands for
    its probability.

    References:
        Calder, Cook, Thorpe and Slepcev, "Poisson Learning: Graph Based Semi-Supervised Learning At Very Low Label
        Rates", ICML 2020.
    """

    def _solve(self, graph: Graph, targets: Tensor) -> Solution:
        return poisson_labels(graph, self._balanced(targets), solver=self._solver(), on_failure="ignore")
