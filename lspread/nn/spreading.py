"""Label spreading and label propagation as layers."""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from lspread.errors import ConfigError, GraphError
from lspread.graph import (
    CosinePower,
    Gaussian,
    Graph,
    Kernel,
    SelfTuning,
    Uniform,
    build_graph,
    find_neighbors,
    normalize_graph,
)
from lspread.labels import Anchors, check_alpha, join_anchors, label_matrix, propagate_labels, spread_labels
from lspread.solve import AutoSolver, ConjugateGradient, Solution, Solver
from lspread.typing import UNLABELED, Metric, OnFailure, Symmetrize

__all__ = ["GraphLayer", "KernelName", "LabelPropagation", "LabelSpreading"]

KernelName: TypeAlias = Literal["self_tuning", "gaussian", "cosine", "uniform"]
"""Kernels whose width a layer can hold: SelfTuning(bandwidth^-2), Gaussian(bandwidth), CosinePower(), Uniform()."""

SPREADING = AutoSolver()
PROPAGATION = AutoSolver(iterative=ConjugateGradient(preconditioner="jacobi", max_steps=5000))
LEAST_DISTANCE = 2.0**-20
"""How close to 0 and 1 a learned alpha may come."""


class GraphLayer(nn.Module):
    """What both layers share: from embeddings (or a ready graph) and labels to scores.

    Args:
        num_classes: Number of classes c.
        k: Neighbours per node.
        kernel: A name, or a `Kernel` object with its own options.
        bandwidth: Width of the named kernels "self_tuning" and "gaussian", > 0: distances count in units of it.
        learn_bandwidth: Make the bandwidth a parameter (through its logarithm, so it stays positive).
        metric: "euclidean" or "cosine".
        symmetrize: "mean", "max" or "mutual".
        balance: Let classes with more labels send out no more in total.
        solver: How to solve, in both directions; None for the layer's own choice.
        on_failure: What to do when a solve does not converge: "raise", "warn" or "ignore".
    """

    def __init__(
        self,
        num_classes: int,
        *,
        k: int = 15,
        kernel: KernelName | Kernel = "self_tuning",
        bandwidth: float = 1.0,
        learn_bandwidth: bool = False,
        metric: Metric = "euclidean",
        symmetrize: Symmetrize = "mean",
        balance: bool = False,
        solver: Solver | None = None,
        on_failure: OnFailure = "raise",
    ) -> None:
        super().__init__()
        if num_classes < 1 or k < 1:
            raise ConfigError(f"num_classes and k must be at least 1; got num_classes={num_classes}, k={k}.")
        if not bandwidth > 0:
            raise ConfigError(f"bandwidth must be greater than 0; got {bandwidth}.")
        has_width = kernel in ("self_tuning", "gaussian") if isinstance(kernel, str) else False
        if (learn_bandwidth or bandwidth != 1.0) and not has_width:
            raise ConfigError(f"bandwidth belongs to kernel='self_tuning' or 'gaussian'; got kernel={kernel!r}.")
        if isinstance(kernel, str) and kernel not in ("self_tuning", "gaussian", "cosine", "uniform"):
            raise ConfigError(
                f"kernel must be 'self_tuning', 'gaussian', 'cosine', 'uniform' or a Kernel; got {kernel!r}."
            )
        for name, value, choices in (
            ("metric", metric, get_args(Metric)),
            ("symmetrize", symmetrize, get_args(Symmetrize)),
            ("on_failure", on_failure, get_args(OnFailure)),
        ):
            if value not in choices:
                raise ConfigError(f"{name} must be one of {choices}; got {value!r}.")
        self.num_classes, self.k, self.kernel = num_classes, k, kernel
        self.metric: Metric = "cosine" if kernel == "cosine" else metric
        self.symmetrize: Symmetrize = symmetrize
        self.balance, self.solver = balance, solver
        self.on_failure: OnFailure = on_failure
        self._fixed_bandwidth = None if learn_bandwidth else float(bandwidth)
        if learn_bandwidth:
            self.log_bandwidth = nn.Parameter(torch.full((), float(bandwidth)).log())

    @property
    def bandwidth(self) -> float | Tensor:
        """Width of the kernel: a number > 0, or a 0-dimensional tensor when it is learned."""
        # Stored as a number while fixed: a float32 tensor would round 0.3 and cost float64 its last digits.
        return self.log_bandwidth.exp() if self._fixed_bandwidth is None else self._fixed_bandwidth

    def build_graph(self, x: Tensor, batch: Tensor | None = None) -> Graph:
        """Return the symmetric graph of embeddings `(n, d)` or `(b, n, d)`, differentiable in them; not normalized."""
        neighbors = find_neighbors(x, self.k, metric=self.metric, batch=batch)
        # Counting distinct edges would stop a GPU, and a compiled graph; on the CPU it saves a third of the products.
        is_host = x.device.type == "cpu" and not torch.compiler.is_compiling()
        return build_graph(
            x, neighbors, kernel=self._kernel(), symmetrize=self.symmetrize, coalesce=is_host, remeasure=False
        )

    def _kernel(self) -> Kernel:
        if not isinstance(self.kernel, str):
            return self.kernel
        make: dict[str, Callable[[], Kernel]] = {
            "self_tuning": lambda: SelfTuning(self.bandwidth**-2),
            "gaussian": lambda: Gaussian(self.bandwidth),
            "cosine": CosinePower,
            "uniform": Uniform,
        }
        return make[self.kernel]()

    def solve(self, graph: Graph, label: Tensor) -> Solution:
        """Return the certified solution on a graph that is not normalized."""
        raise NotImplementedError

    def forward(
        self,
        x_or_graph: Tensor | Graph,
        labels: Tensor,
        batch: Tensor | None = None,
        *,
        anchors: Anchors | None = None,
    ) -> Tensor:
        """Return scores of every node for every class.

        Args:
            x_or_graph: Embeddings `(n, d)` or `(b, n, d)`, any floating dtype, or a symmetric `Graph` not normalized.
            labels: `(n,)` or `(b, n)` int64 with `UNLABELED` (-1) where unknown, or soft targets `(n, c)` or
                `(b, n, c)`.
            batch: Graph number of each node `(n,)`, ascending, for embeddings `(n, d)` of several graphs.
            anchors: Further items of the same graph (of every graph of `(b, n, d)`), e.g. from `EmbeddingBank.sample`.

        Returns:
            Scores `(n, c)`, or `(b, n, c)` for embeddings `(b, n, d)`; float32, or float64 for float64 input. Computed
            outside autocast. Gradient to embeddings, soft targets, learnable alpha and bandwidth. Anchors get no rows.

        Raises:
            GraphError: Shapes do not fit, or `batch` or `anchors` come with what already knows its graphs.
        """
        with torch.autocast(_device_type(x_or_graph), enabled=False):
            if anchors is not None and (batch is not None or isinstance(x_or_graph, Graph)):
                raise GraphError(
                    "anchors join embeddings (n, d) of one graph or (b, n, d) of equal graphs; got them with "
                    f"{'a Graph' if batch is None else 'batch'}. Put the anchors' rows into x yourself."
                )
            if isinstance(x_or_graph, Graph):
                if batch is not None:
                    raise GraphError("a Graph already knows its batch (graph.ptr); leave out batch.")
                graph, shape = x_or_graph, torch.Size([x_or_graph.num_nodes])
            else:
                x = x_or_graph if x_or_graph.dtype == torch.float64 else x_or_graph.float()
                if anchors is not None:
                    x, labels = join_anchors(x, labels, anchors, self.num_classes)
                num_rows = x_or_graph.shape[-2]
                graph, shape = self.build_graph(x, batch), x.shape[:-1]
            flat = labels.flatten(0, 1) if len(shape) == 2 and labels.shape[:2] == shape else labels
            if len(flat) != graph.num_nodes:
                raise GraphError(
                    f"labels must have one row per node, {graph.num_nodes} in all; got shape {tuple(labels.shape)}. "
                    f"Mark unlabeled nodes with {UNLABELED}."
                )
            scores = self.solve(graph, flat).value.view(*shape, self.num_classes)
            return scores if anchors is None else scores[..., :num_rows, :]

    def extra_repr(self) -> str:
        """Return what `print(layer)` shows."""
        return (
            f"num_classes={self.num_classes}, k={self.k}, kernel={self.kernel!r}, bandwidth={_show(self.bandwidth)}, "
            f"metric={self.metric!r}, solver={self.solver or 'default'}"
        )


class LabelSpreading(GraphLayer):
    """Differentiable label spreading (Zhou et al. 2004): F = (1 - alpha) (I - alpha S)^-1 Y.

    Args:
        num_classes: Number of classes c.
        alpha: How much a node listens to its neighbours, in [0, 1); strictly above 0 when learned.
        learn_alpha: Make alpha a parameter (through its logit; it stays 2^-20 away from 0 and 1).
        k: Neighbours per node.
        kernel: "self_tuning", "gaussian", "cosine", "uniform" or a `Kernel` object.
        bandwidth: Width of the named kernels "self_tuning" and "gaussian".
        learn_bandwidth: Make the bandwidth a parameter.
        metric: "euclidean" or "cosine" (always "cosine" with kernel "cosine").
        symmetrize: "mean", "max" or "mutual".
        balance: Let classes with more labels send out no more in total.
        solver: How to solve, in both directions; `AutoSolver` if left out.
        on_failure: What to do when a solve does not converge: "raise", "warn" or "ignore".

    `torch.compile(layer)` gives the same values and gradients, in pieces: it cannot enter the lock that
    `functools.cached_property` takes on Python < 3.12, so `fullgraph=True` fails there.

    Example:
        >>> layer = LabelSpreading(num_classes=2, k=2)
        >>> z = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]])
        >>> layer(z, torch.tensor([0, -1, -1, 1, -1, -1])).argmax(1).tolist()
        [0, 0, 0, 1, 1, 1]
    """

    def __init__(
        self,
        num_classes: int,
        *,
        alpha: float = 0.99,
        learn_alpha: bool = False,
        k: int = 15,
        kernel: KernelName | Kernel = "self_tuning",
        bandwidth: float = 1.0,
        learn_bandwidth: bool = False,
        metric: Metric = "euclidean",
        symmetrize: Symmetrize = "mean",
        balance: bool = False,
        solver: Solver | None = None,
        on_failure: OnFailure = "raise",
    ) -> None:
        super().__init__(
            num_classes,
            k=k,
            kernel=kernel,
            bandwidth=bandwidth,
            learn_bandwidth=learn_bandwidth,
            metric=metric,
            symmetrize=symmetrize,
            balance=balance,
            solver=solver,
            on_failure=on_failure,
        )
        check_alpha(alpha)
        if learn_alpha and alpha == 0:
            raise ConfigError("alpha must start above 0 to be learned; got 0. Try alpha=0.9.")
        self._fixed_alpha = None if learn_alpha else float(alpha)
        if learn_alpha:
            # At the limits there would be no gradient.
            start = min(max(float(alpha), 2 * LEAST_DISTANCE), 1 - 2 * LEAST_DISTANCE)
            self.logit_alpha = nn.Parameter(torch.full((), math.log(start / (1 - start))))

    @property
    def alpha(self) -> float | Tensor:
        """A number, or a 0-dimensional tensor in (0, 1) when it is learned."""
        # A number while fixed, as the bandwidth is.
        if self._fixed_alpha is not None:
            return self._fixed_alpha
        # Far out, the sigmoid rounds to 1, where the solution is not defined; in half precision it does so soon.
        logit = self.logit_alpha if self.logit_alpha.dtype == torch.float64 else self.logit_alpha.float()
        return logit.sigmoid().clamp(LEAST_DISTANCE, 1 - LEAST_DISTANCE)

    def extra_repr(self) -> str:
        """Return what `print(layer)` shows."""
        return f"alpha={_show(self.alpha)}, {super().extra_repr()}"

    def solve(self, graph: Graph, label: Tensor) -> Solution:
        """Return the certified solution on a symmetric graph that is not normalized."""
        dtype = graph.edge_weight.dtype
        targets = label_matrix(label, self.num_classes, balance=self.balance, ptr=graph.ptr, dtype=dtype).to(dtype)
        return spread_labels(
            normalize_graph(graph),
            targets,
            alpha=self.alpha,
            solver=self.solver or SPREADING,
            on_failure=self.on_failure,
        )


class LabelPropagation(GraphLayer):
    """Differentiable label propagation (Zhu et al. 2003): given labels are held, others are their neighbours' mean.

    Args:
        num_classes: Number of classes c.
        ridge: Number >= 0; above zero, scores fade with distance from the labels.
        k: Neighbours per node.
        kernel: "self_tuning", "gaussian", "cosine", "uniform" or a `Kernel` object.
        bandwidth: Width of the named kernels "self_tuning" and "gaussian".
        learn_bandwidth: Make the bandwidth a parameter.
        metric: "euclidean" or "cosine" (always "cosine" with kernel "cosine").
        symmetrize: "mean", "max" or "mutual".
        solver: How to solve, in both directions; `AutoSolver` if left out.
        on_failure: What to do when a solve does not converge: "raise", "warn" or "ignore".
    """

    def __init__(
        self,
        num_classes: int,
        *,
        ridge: float = 0.0,
        k: int = 15,
        kernel: KernelName | Kernel = "self_tuning",
        bandwidth: float = 1.0,
        learn_bandwidth: bool = False,
        metric: Metric = "euclidean",
        symmetrize: Symmetrize = "mean",
        solver: Solver | None = None,
        on_failure: OnFailure = "raise",
    ) -> None:
        super().__init__(
            num_classes,
            k=k,
            kernel=kernel,
            bandwidth=bandwidth,
            learn_bandwidth=learn_bandwidth,
            metric=metric,
            symmetrize=symmetrize,
            solver=solver,
            on_failure=on_failure,
        )
        if not ridge >= 0:
            raise ConfigError(f"ridge must not be negative; got {ridge}.")
        self.ridge = ridge

    def solve(self, graph: Graph, label: Tensor) -> Solution:
        """Return the certified solution; with soft targets, rows that are not zero are held."""
        targets = label_matrix(label, self.num_classes).to(graph.edge_weight.dtype)
        is_given = (targets.detach() != 0).any(1)
        return propagate_labels(
            graph, targets, is_given, ridge=self.ridge, solver=self.solver or PROPAGATION, on_failure=self.on_failure
        )


def _show(value: float | Tensor) -> str:
    return f"{float(value.detach()):.4g} (learned)" if isinstance(value, Tensor) else f"{value:g}"


def _device_type(x_or_graph: Tensor | Graph) -> str:
    return x_or_graph.device.type
