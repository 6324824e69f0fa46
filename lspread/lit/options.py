"""What the few-label classifier is made of: its options and callbacks checked, and its contrastive head."""

import warnings
from collections.abc import Mapping

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, WeightAveraging
from torch import nn

from lspread.errors import ConfigError

__all__ = ["check_callbacks", "check_options", "make_projection"]


def check_options(
    backbone: nn.Module,
    num_classes: int,
    *,
    lr: float,
    temperature: float,
    threshold: float | None,
    curriculum: bool,
    fairness_weight: float,
    spread_layer: nn.Module | None,
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
    if curriculum and threshold is None:
        raise ConfigError(
            "curriculum=True lowers a threshold, and threshold is None; set a number, or curriculum=False."
        )
    if fairness_weight and not weights["confident_weight"]:
        raise ConfigError(
            "fairness_weight looks at the images that confident_weight learns from, and confident_weight is 0; set it, "
            "or fairness_weight=0."
        )
    if num_classes < 2:
        raise ConfigError(f"a classifier needs at least 2 classes; got num_classes={num_classes}.")
    spread_classes = getattr(spread_layer, "num_classes", num_classes)
    if spread_classes != num_classes:
        raise ConfigError(
            f"spread_layer must be for the {num_classes} classes of the classifier, but has "
            f"num_classes={spread_classes}. Set --model.spread_layer.init_args.num_classes {num_classes}."
        )
    if not isinstance(getattr(backbone, "num_features", None), int):
        raise ConfigError(
            "backbone must say how wide its embeddings are in an attribute num_features; "
            f"{type(backbone).__name__} does not. Use lspread.nn.create_backbone, or set backbone.num_features = d."
        )


def check_callbacks(trainer: Trainer, *, warmup_epochs: int, needs_teacher: bool, lacks_pseudo: bool) -> None:
    """Say before a warm-up what would end the run after it.

    Raises:
        ConfigError: No callback averages weights for a teacher, or one watches what the warm-up does not measure.
    """
    if not warmup_epochs:
        return
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if needs_teacher and not any(isinstance(callback, WeightAveraging) for callback in callbacks):
        raise no_teacher()
    is_warm_up_only = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= warmup_epochs
    gives_pseudo = any(getattr(callback, "gives_pseudo_labels", False) for callback in callbacks)
    if lacks_pseudo and not gives_pseudo and not is_warm_up_only:
        warnings.warn(
            "no callback gives pseudo-labels. Where none sets them by itself, training ends with an error after the "
            f"warm-up of {warmup_epochs} epochs: add lspread.lit.RefreshPseudoLabels, or train with pseudo_weight=0.",
            stacklevel=2,
        )
    for callback in callbacks:
        can_wait = isinstance(callback, EarlyStopping) and not callback.strict
        if getattr(callback, "monitor", None) == "val_accuracy" and not can_wait:
            raise ConfigError(
                f"{type(callback).__name__} watches val_accuracy, which is measured after the warm-up of "
                f"{warmup_epochs} epochs only, as the classifier is not trained before. EarlyStopping waits for it "
                "with strict=False; others may watch train_loss."
            )
    if is_warm_up_only:
        warnings.warn(
            f"this run ends after {trainer.max_epochs} epochs, within its warm-up of {warmup_epochs}: its classifier "
            "will be a logistic regression on the embeddings. More epochs (--trainer.max_epochs), or fewer of the "
            "warm-up (--model.warmup_epochs), train it.",
            stacklevel=2,
        )


def no_teacher() -> ConfigError:
    """Return the error of a run without averaged weights."""
    return ConfigError(
        "teacher_weight > 0 needs a teacher: add a callback that averages weights, such as "
        "lspread.lit.RampedAveraging, or train with teacher_weight=0."
    )


def make_projection(width: int, num_features: int) -> nn.Module:
    """Return the head that contrast is measured behind: embeddings `(m, width)` to `(m, num_features)`."""
    return nn.Sequential(
        nn.Linear(width, 2 * width, bias=False),
        nn.BatchNorm1d(2 * width),
        nn.ReLU(),
        nn.Linear(2 * width, num_features),
    )
