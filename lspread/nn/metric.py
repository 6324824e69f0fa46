"""A learnable metric: a linear map before neighbors are sought."""

import torch
from torch import Tensor, nn

from lspread.errors import ConfigError, GraphError
from lspread.graph.eigen import eigh

__all__ = ["LinearMetric"]


class LinearMetric(nn.Module):
    """Mahalanobis metric as a map: |A x - A y|^2 = (x - y)^T M (x - y) with M = A^T A.

    Goes before a layer, `layer(metric(z), label)`, which carries the gradient to A through the weights of the edges;
    anchors go through it as well, `anchors.map(metric)`.

    Args:
        dim: Width d of the embeddings.
        rank: Rows r <= d of A; None is d. Then A starts as the identity, else as r random orthonormal rows (which
            `initialize` replaces by principal axes).
        diagonal: Only a factor for every coordinate.
        generator: For the random rows.

    Attributes:
        weight: A `(r, d)`, or its diagonal `(d,)`.

    Raises:
        ConfigError: `rank` does not lie in 1 to d, or comes with `diagonal`.

    References:
        Goldberger et al., "Neighbourhood Components Analysis", NIPS 2004, section 2.
    """

    def __init__(
        self,
        dim: int,
        rank: int | None = None,
        *,
        diagonal: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if dim < 1 or (rank is not None and not 1 <= rank <= dim):
            raise ConfigError(f"LinearMetric needs dim >= 1 and rank from 1 to dim; got dim={dim}, rank={rank}.")
        if diagonal and rank is not None:
            raise ConfigError(f"a diagonal metric has no rank; got rank={rank}. Leave out one of the two.")
        if diagonal:
            weight = torch.ones(dim)
        elif rank is None:
            weight = torch.eye(dim)
        else:
            weight = torch.linalg.qr(torch.randn(dim, rank, generator=generator)).Q.T.contiguous()
        self.weight = nn.Parameter(weight)

    @torch.no_grad()
    def initialize(self, z: Tensor) -> None:
        """Set A to the r leading principal axes of embeddings `(n, d)`: orthonormal rows, so distances only shrink.

        Raises:
            GraphError: `z` has another width, fewer rows than r, or the metric is diagonal.
        """
        if self.weight.ndim == 1 or z.ndim != 2 or z.shape[1] != self.weight.shape[1] or len(z) < len(self.weight):
            raise GraphError(
                f"initialize needs a metric that is not diagonal and at least r embeddings (n, d); got a weight of "
                f"shape {tuple(self.weight.shape)} and z of shape {tuple(z.shape)}."
            )
        z = z.to(self.weight.dtype)
        centered = z - z.mean(0)
        axis = eigh(centered.T @ centered)[1].flip(1)
        self.weight.copy_(axis[:, : len(self.weight)].T)

    def forward(self, z: Tensor) -> Tensor:
        """Map embeddings `(..., d)` to `(..., r)`; float32 or float64, computed outside autocast."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.to(torch.promote_types(z.dtype, self.weight.dtype))
            weight = self.weight.to(z.dtype)
            return z * weight if weight.ndim == 1 else z @ weight.T

    def extra_repr(self) -> str:
        """Return what `print(metric)` shows."""
        return f"dim={self.weight.shape[-1]}" + (
            ", diagonal" if self.weight.ndim == 1 else f", rank={len(self.weight)}"
        )
