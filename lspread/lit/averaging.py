"""Weight averaging that is useful from the first steps on."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.nn import Module
from torch.optim.swa_utils import AveragedModel

from lspread.errors import ConfigError
from lspread.lit.options import no_teacher

__all__ = ["RampedAveraging", "SwapBack"]


def averaged_module(trainer: Trainer) -> LightningModule | None:
    """Return the copy of the module with averaged weights that a callback keeps, or None where none does."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        # Lightning 2.6 has no public way to the averaged model.
        average = getattr(callback, "_average_model", None) if isinstance(callback, WeightAveraging) else None
        if average is not None:
            module: LightningModule = average.module
            return module
    return None


@torch.no_grad()
def teach(trainer: Trainer, image: Tensor) -> Tensor:
    """Return the logits `(m, c)` that the averaged weights give normalized images, in eval mode.

    Raises:
        ConfigError: No callback averages weights.
    """
    teacher = averaged_module(trainer)
    if teacher is None:
        raise no_teacher()
    teacher.eval()
    logits: Tensor = teacher.head(teacher.backbone(image))  # type: ignore[operator]
    return logits


class RampedAveraging(WeightAveraging):
    """Lightning's weight averaging with an exponential moving average whose memory grows with the run.

    With a fixed decay of 0.99, the average of a run of a hundred steps still consists of random starting weights by
    a third. Here step t averages with decay min(decay, (1 + t) / (10 + t)), so the start is forgotten at once and long
    runs end with the full decay. Buffers are averaged as well; those of integers, which count, are copied.

    A step takes a few launches for all weights together and never waits for a GPU.

    Args:
        decay: Largest decay, in [0, 1); 0.99 averages over about the last hundred steps.

    Raises:
        ConfigError: `decay` lies outside [0, 1).
    """

    def __init__(self, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"decay must lie in [0, 1); got {decay}.")
        super().__init__()
        self._decay = decay

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the module when fit begins."""
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            update = _RampedUpdate(self._average_model, self._decay)
            self._average_model.update_parameters = update  # type: ignore[assignment, method-assign]


class SwapBack(Callback):
    """Gives the module its own weights back where an exception ends a validation.

    Lightning's weight averaging validates with the averaged weights in the module and the others in the average. A
    checkpoint of an interrupt in between would hold the two exchanged. `FewLabelClassifier` brings this callback along.
    """

    def __init__(self) -> None:
        self._is_swapped = False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that weights were exchanged; callbacks of a module come after those of the trainer."""
        self._is_swapped = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that they are back."""
        self._is_swapped = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Exchange them again, before a checkpoint is written."""
        for callback in trainer.callbacks if self._is_swapped else []:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging) and callback._average_model is not None:
                callback._swap_models(pl_module)
        self._is_swapped = False


class _RampedUpdate:
    """Does what `AveragedModel.update_parameters` does, all weights at once, and counts steps without a tensor."""

    def __init__(self, average: AveragedModel, decay: float) -> None:
        self._average, self._decay = average, decay
        self._step: int | None = None

    @torch.no_grad()
    def __call__(self, module: Module) -> None:
        if self._step is None:
            self._step = int(self._average.n_averaged)  # sync: once, since a checkpoint may have brought it
        pairs = list(zip(_tensors(self._average.module), _tensors(module), strict=True))
        copied = [pair for pair in pairs if not self._step or not pair[0].is_floating_point()]
        moved = [pair for pair in pairs if self._step and pair[0].is_floating_point()]
        if copied:
            torch._foreach_copy_([averaged for averaged, _ in copied], [current for _, current in copied])
        if moved:
            share = max(9 / (10 + self._step), 1 - self._decay)
            torch._foreach_lerp_([averaged for averaged, _ in moved], [current for _, current in moved], share)
        self._step += 1
        self._average.n_averaged += 1


def _tensors(module: Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]
