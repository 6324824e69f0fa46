"""What a run shows while it works: bars on a terminal, one line per epoch in a log file."""

import logging
import sys
import time
import warnings
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

__all__ = ["EpochLines", "choose_progress", "quiet_lightning"]


class EpochLines(Callback):
    """Prints one line per training epoch: its number, its seconds and the metrics meant for the progress bar."""

    def __init__(self) -> None:
        self._start = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock: a run that goes on inside an epoch does not start that epoch again."""
        self._start = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line."""
        if not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in trainer.progress_bar_metrics.items()}
        parts = [f"{name} {value:.4g}" for name, value in metrics.items()]
        total = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        seconds = time.perf_counter() - self._start
        print(f"epoch {trainer.current_epoch + 1}{total}  {seconds:.1f} s  {'  '.join(parts)}".rstrip(), flush=True)


def choose_progress(trainer_options: Mapping[str, Any]) -> tuple[list[Callback], bool]:
    """Callbacks that show progress, and whether Lightning shall show its bar.

    A bar where someone watches; lines where the output goes to a file, which a bar would fill with fragments.
    """
    callbacks = trainer_options.get("callbacks") or []
    if any(isinstance(callback, ProgressBar) for callback in callbacks):
        return [], True
    if trainer_options.get("enable_progress_bar") is False:
        return [], False
    return ([RichProgressBar()], True) if sys.stdout.isatty() else ([EpochLines()], False)


def quiet_lightning() -> None:
    """Leave out what Lightning says about itself; its warnings about the run stay, except those that cannot apply."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        # In-memory tensors are fetched a whole batch at a time; worker processes would only copy them.
        ".*does not have many workers.*",
        # Resuming keeps the folder, also where it was moved.
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*The dirpath has changed from.*",
        # After an interruption inside an epoch, the rest of that epoch comes from a new shuffle.
        ".*resuming from a checkpoint that ended before the epoch ended.*",
        # Testing and predicting need the weights only, and a checkpoint's weights are the averaged ones.
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*WeightAveraging callback, but loading a checkpoint outside the 'fit' stage.*",
        ".*is smaller than the logging interval.*",
        # BackboneFinetuning lets the norms learn from the start, and then says that they do.
        ".*The provided params to be frozen already exist within another group.*",
        # Data without validation or test images.
        ".*Total length of `list` across ranks is zero.*",
        # Lightning 2.6 with torch 2.14; about its own code.
        ".*LeafSpec.*is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=message)
