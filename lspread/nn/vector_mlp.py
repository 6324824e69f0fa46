"""A backbone for vectors of features: rows of tables, texts, embeddings."""

from collections.abc import Sequence

from torch import Tensor, nn

from lspread.errors import ConfigError, DataError

__all__ = ["VectorMLP"]


class VectorMLP(nn.Module):
    """A multilayer perceptron (torchvision's) without a head: `forward` returns embeddings.

    Args:
        in_channels: Features of a vector, d.
        widths: Width of each layer; the last one is that of the embeddings.
        dropout: Share of each layer's outputs that is dropped in training.

    Attributes:
        num_features: Width of the embeddings.

    Raises:
        ConfigError: A width is below 1, there is none, or `dropout` is outside [0, 1).
    """

    def __init__(self, in_channels: int, widths: Sequence[int] = (256, 128), dropout: float = 0.0) -> None:
        super().__init__()
        if not widths or min(in_channels, *widths) < 1 or not 0 <= dropout < 1:
            raise ConfigError(
                f"VectorMLP needs in_channels and widths >= 1, at least one width, and a dropout in [0, 1); got "
                f"in_channels={in_channels}, widths={tuple(widths)}, dropout={dropout}."
            )
        from torchvision.ops import MLP

        self.in_channels = in_channels
        self.num_features = int(widths[-1])
        self.layers = MLP(in_channels, list(widths), norm_layer=nn.BatchNorm1d, inplace=False, dropout=dropout)

    def forward(self, feature: Tensor) -> Tensor:
        """Embed vectors.

        Args:
            feature: `(m, d)` or, as in batches of `VectorData`, `(m, d, 1, 1)` floating point.

        Returns:
            `(m, num_features)` embeddings, not normalized; full gradient.

        Raises:
            DataError: Another number of features, or no floating point dtype.
        """
        value = feature.flatten(1)
        if value.shape[1] != self.in_channels or not value.is_floating_point():
            raise DataError(
                f"VectorMLP needs floating point vectors (m,{self.in_channels}) or (m,{self.in_channels},1,1); got "
                f"shape {tuple(feature.shape)}, {feature.dtype}. in_channels= sets the number of features."
            )
        z: Tensor = self.layers(value)
        return z
