"""Whitening: give every direction of the embedding space the same spread before distances are taken."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lspread.errors import GraphError
from lspread.graph.eigen import eigh

__all__ = ["Whitening", "fit_whitening", "whiten"]


@dataclass(frozen=True, eq=False)
class Whitening:
    """What `whiten` does to embeddings, to be done to others as well.

    Attributes:
        center: `(d,)`, the mean.
        axes: `(d, p)`, principal axes as columns, scaled.
    """

    center: Tensor
    axes: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """Return `(m, p)` of embeddings `(m, d)`."""
        with torch.autocast(z.device.type, enabled=False):
            return (z.to(self.axes.dtype) - self.center) @ self.axes


def whiten(z: Tensor, *, num_components: int | None = None, ridge: float = 1e-3) -> Tensor:
    """Center embeddings, turn them onto their principal axes and scale each axis towards unit variance.

    A backbone puts most of its variance into a few directions; neighbours found by plain distances follow these alone.

    Args:
        z: Embeddings `(n, d)`, n >= 2, float32 or float64 (smaller types are computed in float32).
        num_components: How many of the leading axes to keep; None keeps all d.
        ridge: Share of the largest variance that is added to every variance, so that axes of mere noise are not blown
            up; greater than 0.

    Returns:
        `(n, min(num_components, d))`, leading axes first; differentiable where variances differ. The sign of an axis is
        arbitrary; distances do not depend on it. Computed outside autocast. O(n d^2 + d^3).

    Raises:
        GraphError: `z` is not `(n, d)` with n >= 2, `num_components` is below 1, or `ridge` not above 0.
    """
    return fit_whitening(z, num_components=num_components, ridge=ridge)(z)


def fit_whitening(z: Tensor, *, num_components: int | None = None, ridge: float = 1e-3) -> Whitening:
    """Return the whitening of embeddings; arguments, gradient, cost and errors as in `whiten`."""
    if z.ndim != 2 or len(z) < 2 or not z.is_floating_point():
        raise GraphError(f"whiten needs floating-point embeddings (n, d) with n >= 2; got {tuple(z.shape)} {z.dtype}.")
    if num_components is not None and num_components < 1:
        raise GraphError(f"num_components must be at least 1; got {num_components}.")
    if not ridge > 0:
        raise GraphError(f"ridge must be greater than 0; got {ridge}.")
    z = z if z.dtype == torch.float64 else z.float()
    center = z.mean(0)
    centered = z - center
    with torch.autocast(z.device.type, enabled=False):
        covariance = centered.T @ centered / (len(z) - 1)
    variance, axis = eigh(covariance)
    variance, axis = variance.flip(0)[:num_components], axis.flip(1)[:, :num_components]
    tiny = torch.finfo(z.dtype).tiny  # where all embeddings are equal
    return Whitening(center, axis * (variance.clamp(min=0) + ridge * variance[0] + tiny).rsqrt())
