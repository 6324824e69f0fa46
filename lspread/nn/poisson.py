"""Poisson learning as a layer."""

from typing import Literal

import torch
from torch import Tensor

from lspread.errors import ConfigError
from lspread.graph import Graph, Kernel
from lspread.labels import ClassPrior, class_prior, label_matrix, poisson_labels
from lspread.nn.spreading import GraphLayer, KernelName
from lspread.solve import Solution, Solver
from lspread.typing import UNLABELED, Metric, OnFailure, Symmetrize

__all__ = ["PoissonLearning"]


class PoissonLearning(GraphLayer):
    """Differentiable Poisson learning (Calder et al. 2020), for very few labels: they are sources of a potential.

    Args:
        num_classes: Number of classes c.
        normalization: "none" for the Laplacian D - W of the paper, "symmetric" for I - D^-1/2 W D^-1/2.
        prior: Class frequencies to match: "none", "uniform", "labeled" or a tensor `(c,)`.
        k: Neighbours per node.
        kernel: "self_tuning", "gaussian", "cosine", "uniform" or a `Kernel` object.
        bandwidth: Width of the named kernels "self_tuning" and "gaussian".
        learn_bandwidth: Make the bandwidth a parameter.
        metric: "euclidean" or "cosine" (always "cosine" with kernel "cosine").
        symmetrize: "mean", "max" or "mutual".
        balance: Let classes with more labels send out no more in total.
        solver: How to solve, in both directions; default: conjugate gradient, to 1e-5 for float32 input.
        on_failure: What to do when a solve does not converge: "raise", "warn" or "ignore".

    Example:
        >>> layer = PoissonLearning(num_classes=2, k=2)
        >>> z = torch.tensor([[0.0], [0.1], [0.2], [0.9], [1.0], [1.1]])
        >>> layer(z, torch.tensor([0, -1, -1, -1, -1, 1])).argmax(1).tolist()
        [0, 0, 0, 1, 1, 1]
    """

    def __init__(
        self,
        num_classes: int,
        *,
        normalization: Literal["none", "symmetric"] = "none",
        prior: ClassPrior = "none",
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
        if normalization not in ("none", "symmetric"):
            raise ConfigError(f"normalization must be 'none' or 'symmetric'; got {normalization!r}.")
        self.normalization: Literal["none", "symmetric"] = normalization
        self._prior_name: ClassPrior = "none" if isinstance(prior, Tensor) else prior
        self.register_buffer("prior_share", prior if isinstance(prior, Tensor) else None)
        self.prior_share: Tensor | None
        class_prior(prior, torch.full((1,), UNLABELED), num_classes)  # raises for what is no prior

    @property
    def prior(self) -> ClassPrior:
        """Class frequencies to match."""
        return self._prior_name if self.prior_share is None else self.prior_share

    def solve(self, graph: Graph, label: Tensor) -> Solution:
        """Return the certified solution on a symmetric graph that is not normalized."""
        dtype = graph.edge_weight.dtype
        targets = label_matrix(label, self.num_classes, balance=self.balance, ptr=graph.ptr, dtype=dtype).to(dtype)
        return poisson_labels(
            graph,
            targets,
            normalization=self.normalization,
            prior=self.prior,
            solver=self.solver,
            on_failure=self.on_failure,
        )

    def extra_repr(self) -> str:
        """Return what `print(layer)` shows."""
        return f"normalization={self.normalization!r}, {super().extra_repr()}"
