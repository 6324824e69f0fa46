"""What the few-label classifier is made of: its options checked, and its contrastive head."""

from collections.abc import Mapping

from torch import nn

from lspread.errors import ConfigError

__all__ = ["check_options", "make_projection"]


def check_options(
    backbone: nn.Module,
    num_classes: int,
    *,
    lr: float,
    temperature: float,
    threshold: float | None,
    weights: Mapping[str, float],
) -> None:
    """Raise `ConfigError` for what no training could use; `weights` are all that must not be negative, by name."""
    for name, value in weights.items():
        if not value >= 0:
            raise ConfigError(f"{name} must be 0 or more; got {value}.")
    if not lr > 0 or not temperature > 0:
        raise ConfigError(f"lr and temperature must be greater than 0; got lr={lr}, temperature={temperature}.")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"threshold must be a probability in [0, 1], or None to follow training; got {threshold}.")
    if num_classes < 2:
        raise ConfigError(f"a classifier needs at least 2 classes; got num_classes={num_classes}.")
    if not isinstance(getattr(backbone, "num_features", None), int):
        raise ConfigError(
            "backbone must say how wide its embeddings are in an attribute num_features; "
            f"{type(backbone).__name__} does not. Use lspread.nn.create_backbone, or set backbone.num_features = d."
        )


def make_projection(width: int, num_features: int) -> nn.Module:
    """Return the head that contrast is measured behind: embeddings `(m, width)` to `(m, num_features)`."""
    return nn.Sequential(
        nn.Linear(width, 2 * width, bias=False),
        nn.BatchNorm1d(2 * width),
        nn.ReLU(),
        nn.Linear(2 * width, num_features),
    )
