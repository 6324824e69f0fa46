"""Label spreading and label propagation on a graph."""

from dataclasses import replace

import torch
from torch import Tensor

from lspread.autograd import is_readable
from lspread.errors import ConfigError, GraphError
from lspread.graph import Graph, connected_components, degree, edge_matmul, pays_to_reorder
from lspread.labels.operators import PropagationOperator, SpreadOperator, layout_of, sum_component
from lspread.labels.trust import Symmetrized, trust_operator
from lspread.solve import AutoSolver, ConjugateGradient, Reordering, Solution, Solver, linear_solve
from lspread.typing import OnFailure

__all__ = ["check_alpha", "check_targets", "propagate_labels", "spread_labels"]

DEFAULT_SOLVER = AutoSolver()
JACOBI_SOLVER = ConjugateGradient(preconditioner="jacobi", max_steps=5000)


def check_alpha(alpha: float | Tensor, num_nodes: int | None = None) -> None:
    """Raise `ConfigError` unless alpha lies in [0, 1), read where it is on the CPU.

    Args:
        alpha: A number or a 0-dimensional tensor; with `num_nodes` also a tensor `(n,)`.
        num_nodes: n.
    """
    if isinstance(alpha, Tensor):
        if not alpha.is_floating_point() or alpha.shape not in ((), (num_nodes,)):
            per_node = "" if num_nodes is None else f", or one number per node, shape ({num_nodes},)"
            raise ConfigError(
                f"alpha must be a number or a 0-dimensional float tensor{per_node}; got shape {tuple(alpha.shape)} "
                f"{alpha.dtype}."
            )
        # A number outside that is not looked at shows in Solution.error_bound.
        is_outside = is_readable(alpha) and not bool(((alpha >= 0) & (alpha < 1)).all())
    else:
        is_outside = not 0 <= alpha < 1
    if is_outside:
        got = alpha.detach().aminmax() if isinstance(alpha, Tensor) and alpha.ndim else (alpha, alpha)
        low, high = (float(value) for value in got)
        raise ConfigError(
            "alpha must lie in [0, 1): 0 keeps the targets, values near 1 trust the graph; got "
            f"{low if low == high or low != low else f'{low} to {high}'}. 0.99 is usual."
        )


def check_targets(graph: Graph, targets: Tensor, initial: Tensor | None) -> Tensor:
    """Return the targets in the graph's dtype: float16 and bfloat16 are taken in.

    Raises:
        GraphError: Shape, dtype or device of targets or `initial` do not fit.
    """
    weight = graph.edge_weight
    if targets.dtype in (torch.float16, torch.bfloat16):
        targets = targets.to(weight.dtype)
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
    return targets


def _reached(graph: Graph, is_source: Tensor) -> Tensor:
    """Return the nodes whose component has a source `(n,)` bool."""
    return sum_component(is_source.to(torch.int64), connected_components(graph)) > 0


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

    With one alpha per node, F_i = alpha_i (S F)_i + (1 - alpha_i) Y_i. On a symmetric graph it is the minimum of
    sum_ij W_ij |F_i / sqrt(d_i) - F_j / sqrt(d_j)|^2 / 2 + sum_i mu_i |F_i - Y_i|^2 with mu_i = 1 / alpha_i - 1: Zhou's
    cost with a trust of its own for every label. alpha_i = 0 holds F_i = Y_i; near 1 the neighbours outvote a label.

    Args:
        graph: S, from `normalize_graph`.
        targets: Y `(n, c)` on the graph's device, from `label_matrix`; zero rows for unlabelled nodes. Of the graph's
            dtype, or float16 or bfloat16, which are solved for in the graph's dtype.
        alpha: How much a node listens to its neighbours, in [0, 1); a number, a 0-dimensional tensor, or a tensor
            `(n,)` of one number per node.
        solver: Any of `lspread.solve`; `AutoSolver()` picks by size. `ConjugateGradient` and `Chebyshev` need a
            symmetric graph.
        initial: First guess of F `(n, c)`, e.g. the scores before the graph changed a little.
        on_failure: What to do when a solve, forward or backward, does not converge.

    Returns:
        `Solution` with scores F `(n, c)` in `value`, not normalized by row; zero rows for nodes no label reaches,
        with an iterative solver also for those that are more edges away from every label than it took steps.
        On a symmetric graph `error_bound` is residual / (1 - alpha), with one alpha per node
        max(alpha)^1/2 residual / (1 - max(alpha)), the residual being that of the symmetric system C in
        `labels/trust.py`; on a random-walk graph it is infinite: no eigenvalue bounds a matrix that is not symmetric.
        The gradient is implicit, to weights, targets and alpha: with (I - alpha S)^T L = dLoss/dF,
        dLoss/dS_ij = alpha_i sum_c L_ic F_jc, dLoss/dalpha_i = sum_c L_ic (S F - Y)_ic (summed over i for a single
        alpha), dLoss/dY = (1 - alpha) L. O(e + n c) memory. Computed outside autocast.

    Raises:
        GraphError: The graph is not normalized or does not fit the targets.
        ConfigError: alpha has another shape or lies outside [0, 1).
        SolveError: Not converged and `on_failure="raise"`.

    References:
        Zhou et al., "Learning with Local and Global Consistency", NIPS 2003, equations 4 and 5. An alpha per node: Nie
        et al., "A General Graph-Based Semi-Supervised Learning with Novel Class Discovery", Neural Computing and
        Applications 19, 2010.
    """
    check_alpha(alpha, graph.num_nodes)
    if graph.normalization == "none":
        raise GraphError(
            f"spread_labels needs a normalized graph; got {graph.num_nodes} nodes with normalization='none'. "
            "Call normalize_graph(graph) first."
        )
    targets = check_targets(graph, targets, initial)
    if isinstance(alpha, Tensor):
        alpha = alpha.to(graph.edge_weight)
    trust = alpha if isinstance(alpha, Tensor) and alpha.ndim else None

    solver = Reordering(solver) if pays_to_reorder(graph, targets.shape[1]) else solver
    with torch.autocast(graph.device.type, enabled=False):
        if initial is not None:
            # Nothing would correct a first guess where no target can be reached.
            initial = torch.where(_reached(graph, (targets.detach() != 0).any(1))[:, None], initial, 0)
        if trust is None:
            operator, rhs = SpreadOperator.from_graph(graph, alpha), (1 - alpha) * targets
        else:
            operator, rhs = trust_operator(graph, trust), (1 - trust)[:, None] * targets
            if graph.is_symmetric:
                solver = Symmetrized(solver)
        return linear_solve(operator, rhs, solver=solver, initial=initial, on_failure=on_failure)


def propagate_labels(
    graph: Graph,
    targets: Tensor,
    is_given: Tensor,
    *,
    ridge: float | Tensor = 0.0,
    solver: Solver = JACOBI_SOLVER,
    initial: Tensor | None = None,
    on_failure: OnFailure = "raise",
) -> Solution:
    """Propagate labels with given nodes held: every other score is the weighted mean of its neighbours' scores.

    Solves (D - W + ridge) F = 0 on free nodes with F = Y on given ones.

    Args:
        graph: W, symmetric and not normalized.
        targets: Y `(n, c)` of the graph's dtype, or float16 or bfloat16; only rows of given nodes are read.
        is_given: Nodes that are held `(n,)` bool.
        ridge: Number or 0-dimensional tensor >= 0; above zero, scores fade with distance from the labels, and
            `Solution.error_bound` is finite.
        solver: As in `spread_labels`; `FixedPoint()` needs eigenvalues of D - W + ridge below 2. Where it has not, the
            status says so.
        initial: First guess of F `(n, c)`.
        on_failure: As in `spread_labels`.

    Returns:
        `Solution` with scores F `(n, c)`; rows of reached nodes sum to one for one-hot targets and ridge 0, zero rows
        where no given node can be reached. By default every free row is compared with its neighbours' mean, so that
        weights may be of any size and differ by orders of magnitude. Implicit gradient to weights, targets and
        ridge: with A the matrix on free nodes and A L = dLoss/dF there, dLoss/dridge = -<L, F>. Computed outside
        autocast.

    Raises:
        GraphError: The graph is normalized or not symmetric, or tensors do not fit.
        ConfigError: `ridge` is negative (a tensor is looked at where it is on the CPU) or has more than one number.
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
    targets = check_targets(graph, targets, initial)
    if is_given.dtype != torch.bool or is_given.shape != (graph.num_nodes,):
        raise GraphError(
            f"is_given must be bool of shape ({graph.num_nodes},); got {tuple(is_given.shape)} {is_given.dtype}. "
            "Use label != UNLABELED."
        )
    _check_ridge(ridge)
    if isinstance(ridge, Tensor):
        ridge = ridge.to(graph.edge_weight)

    solver = Reordering(solver) if pays_to_reorder(graph, targets.shape[1]) else solver
    with torch.autocast(graph.device.type, enabled=False):
        # Loops stand on both sides of every equation; left in, large ones would take the digits of the others.
        source, target = graph.edge_index
        graph = replace(graph, edge_weight=torch.where(source == target, 0, graph.edge_weight))
        layout, total = layout_of(graph), degree(graph)
        is_reached = _reached(graph, is_given)
        # Where no label arrives F is zero; held there, the matrix is regular for every solver.
        is_free = ~is_given & is_reached
        held = torch.where(is_given[:, None], targets, torch.zeros_like(targets))
        # Zero on the given rows: they are known, and their size must not decide how exact the others have to be.
        rhs = torch.where(is_free[:, None], edge_matmul(layout, graph.edge_weight, held), 0)
        operator = PropagationOperator(layout, graph.edge_weight, total, is_free, ridge, graph.ptr)
        start = None if initial is None else torch.where(is_free[:, None], initial, 0)
        solution = linear_solve(operator, rhs, solver=solver, initial=start, on_failure=on_failure)
        return replace(solution, value=torch.where(is_given[:, None], held, solution.value))


def _check_ridge(ridge: float | Tensor) -> None:
    if isinstance(ridge, Tensor):
        if ridge.ndim or not ridge.is_floating_point():
            raise ConfigError(
                f"ridge must be a number or a 0-dimensional float tensor; got shape {tuple(ridge.shape)} {ridge.dtype}."
            )
        is_outside = is_readable(ridge) and not bool(ridge >= 0)
    else:
        is_outside = not ridge >= 0
    if is_outside:
        raise ConfigError(f"ridge must not be negative; got {float(ridge)}.")
