"""Label spreading and label propagation on a graph."""

import torch
from torch import Tensor

from lspread.errors import ConfigError, GraphError
from lspread.graph import Graph, degree, edge_matmul
from lspread.labels.operators import PropagationOperator, SpreadOperator, layout_of
from lspread.solve import ConjugateGradient, Solution, Solver, linear_solve
from lspread.typing import OnFailure

__all__ = ["check_alpha", "propagate_labels", "spread_labels"]

DEFAULT_SOLVER = ConjugateGradient()
JACOBI_SOLVER = ConjugateGradient(preconditioner="jacobi", max_steps=5000)


def check_alpha(alpha: float | Tensor) -> None:
    """Raise `ConfigError` unless alpha is a number or a 0-dimensional tensor in [0, 1), read where it is on the CPU."""
    if isinstance(alpha, Tensor):
        if alpha.ndim != 0 or not alpha.is_floating_point():
            raise ConfigError(
                f"alpha must be a number or a 0-dimensional float tensor; got shape {tuple(alpha.shape)}."
            )
        # Looking costs a synchronization elsewhere; a number outside shows in Solution.error_bound there.
        is_readable = alpha.device.type == "cpu" and not torch.compiler.is_compiling()
        is_outside = is_readable and not 0 <= float(alpha.detach()) < 1
    else:
        is_outside = not 0 <= alpha < 1
    if is_outside:
        raise ConfigError(
            f"alpha must lie in [0, 1): 0 keeps the targets, values near 1 trust the graph; got {float(alpha)}. "
            "0.99 is usual."
        )


def _check_targets(graph: Graph, targets: Tensor, initial: Tensor | None) -> None:
    weight = graph.edge_weight
    if (
        targets.ndim != 2
        or len(targets) != graph.num_nodes
        or (targets.dtype, targets.device) != (weight.dtype, weight.device)
    ):
        raise GraphError(
            f"targets must be of shape ({graph.num_nodes}, c), {weight.dtype} on {weight.device}, as the graph is; got "
            f"{tuple(targets.shape)}, {targets.dtype} on {targets.device}. Make them with label_matrix(label, "
            f"num_classes, dtype={weight.dtype})."
        )
    if initial is not None and (initial.shape, initial.dtype, initial.device) != (
        targets.shape,
        targets.dtype,
        targets.device,
    ):
        raise GraphError(
            f"initial must be of shape {tuple(targets.shape)}, {targets.dtype} on {targets.device}, as targets are; "
            f"got {tuple(initial.shape)}, {initial.dtype} on {initial.device}."
        )


def _keep_reached(initial: Tensor | None, graph: Graph, is_source: Tensor) -> Tensor | None:
    """Return the first guess with zero rows where no source can be reached: nothing would correct it there."""
    if initial is None:
        return None
    layout, is_edge = layout_of(graph), (graph.edge_weight.detach() > 0).to(graph.edge_weight.dtype)
    is_reached = is_source[:, None]
    for _ in range(graph.num_nodes):
        step = is_reached | (edge_matmul(layout, is_edge, is_reached.to(is_edge.dtype)) > 0)
        if torch.equal(step, is_reached):  # sync: a first guess saves more steps than it costs to look here
            break
        is_reached = step
    return torch.where(is_reached, initial, torch.zeros_like(initial))


def spread_labels(
    graph: Graph,
    targets: Tensor,
    *,
    alpha: float | Tensor = 0.99,
    solver: Solver = DEFAULT_SOLVER,
    initial: Tensor | None = None,
    on_failure: OnFailure = "raise",
) -> Solution:
    """Spread targets over the graph: solve (I - alpha S) F = (1 - alpha) Y.

    Args:
        graph: S, from `normalize_graph`.
        targets: Y `(n, c)` of the graph's dtype and device, from `label_matrix`; zero rows for unlabelled nodes.
        alpha: How much a node listens to its neighbours, in [0, 1); a number or a 0-dimensional tensor.
        solver: `ConjugateGradient()`, `FixedPoint()` or `Direct()`; a random-walk graph needs one of the last two.
        initial: First guess of F `(n, c)`, e.g. the scores before the graph changed a little.
        on_failure: What to do when a solve, forward or backward, does not converge.

    Returns:
        `Solution` with scores F `(n, c)` in `value`, not normalized by row; zero rows for nodes no label reaches.
        `error_bound` is residual / (1 - alpha). The gradient is implicit, to weights, targets and alpha:
        with (I - alpha S) L = dLoss/dF,
        dLoss/dS_ij = alpha sum_c L_ic F_jc, dLoss/dalpha = <L, S F - Y>, dLoss/dY = (1 - alpha) L. O(e + n c) memory.

    Raises:
        GraphError: The graph is not normalized or does not fit the targets.
        ConfigError: alpha lies outside [0, 1).
        SolveError: Not converged and `on_failure="raise"`.

    References:
        Zhou et al., "Learning with Local and Global Consistency", NIPS 2003, equation 4.
    """
    check_alpha(alpha)
    if graph.normalization == "none":
        raise GraphError(
            f"spread_labels needs a normalized graph; got {graph.num_nodes} nodes with normalization='none'. "
            "Call normalize_graph(graph) first."
        )
    _check_targets(graph, targets, initial)
    if isinstance(alpha, Tensor):
        alpha = alpha.to(graph.edge_weight)
    initial = _keep_reached(initial, graph, (targets.detach() != 0).any(1))
    return linear_solve(
        SpreadOperator.from_graph(graph, alpha),
        (1 - alpha) * targets,
        solver=solver,
        initial=initial,
        on_failure=on_failure,
    )


def propagate_labels(
    graph: Graph,
    targets: Tensor,
    is_given: Tensor,
    *,
    ridge: float = 0.0,
    solver: Solver = JACOBI_SOLVER,
    initial: Tensor | None = None,
    on_failure: OnFailure = "raise",
) -> Solution:
    """Propagate labels with given nodes held: every other score is the weighted mean of its neighbours' scores.

    Solves (D - W + ridge) F = 0 on free nodes with F = Y on given ones.

    Args:
        graph: W, symmetric and not normalized.
        targets: Y `(n, c)` of the graph's dtype; only rows of given nodes are read.
        is_given: Nodes that are held `(n,)` bool.
        ridge: Number >= 0; above zero, scores fade with distance from the labels, and the error is bounded by
            residual / ridge.
        solver: As in `spread_labels`; `Direct()` needs a given node in every component or ridge > 0, and `FixedPoint()`
            eigenvalues of D - W + ridge below 2. Where these are missing, the status says so.
        initial: First guess of F `(n, c)`.
        on_failure: As in `spread_labels`.

    Returns:
        `Solution` with scores F `(n, c)`; rows of reached nodes sum to one for one-hot targets and ridge 0, zero rows
        where no given node can be reached. Implicit gradient to weights and targets.

    Raises:
        GraphError: The graph is normalized or not symmetric, or tensors do not fit.
        ConfigError: `ridge` is negative.
        SolveError: Not converged and `on_failure="raise"`.

    References:
        Zhu et al., "Semi-Supervised Learning Using Gaussian Fields and Harmonic Functions", ICML 2003, equation 5.
    """
    if graph.normalization != "none" or not graph.is_symmetric:
        raise GraphError(
            "propagate_labels needs a symmetric graph that is not normalized; got "
            f"normalization={graph.normalization!r}, is_symmetric={graph.is_symmetric}. "
            "Pass build_graph's result as it is."
        )
    _check_targets(graph, targets, initial)
    if is_given.dtype != torch.bool or is_given.shape != (graph.num_nodes,):
        raise GraphError(
            f"is_given must be bool of shape ({graph.num_nodes},); got {tuple(is_given.shape)} {is_given.dtype}. "
            "Use label != UNLABELED."
        )
    if not ridge >= 0:
        raise ConfigError(f"ridge must not be negative; got {ridge}.")
    layout, total = layout_of(graph), degree(graph)
    is_free = ~is_given & (total + ridge > 0)
    held = torch.where(is_given[:, None], targets, torch.zeros_like(targets))
    rhs = torch.where(is_free[:, None], edge_matmul(layout, graph.edge_weight, held), held)
    operator = PropagationOperator(layout, graph.edge_weight, total, is_free, ridge, graph.ptr)
    initial = _keep_reached(initial, graph, is_given)
    # Starting on the given rows, no step moves them: they come out to the last digit.
    initial = torch.where(is_given[:, None], held.detach(), torch.zeros_like(held) if initial is None else initial)
    return linear_solve(operator, rhs, solver=solver, initial=initial, on_failure=on_failure)
