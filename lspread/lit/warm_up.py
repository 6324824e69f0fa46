"""Finished warm-ups, kept so that other runs on the same items start from them."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from lspread.data import FewLabelData
from lspread.errors import ConfigError
from lspread.lit.module import FewLabelClassifier
from lspread.lit.run_logger import RunLogger

__all__ = ["WarmUpCache", "hash_warm_up"]

METRICS_FILE = "metrics.csv"
NUM_KEPT = 10
ENTRY = re.compile(r"warm_up-[0-9a-f]{32}\.ckpt")


class WarmUpCache(Checkpoint):
    """Keeps a checkpoint of the moment when the contrastive stage ends, and its curves.

    The stage reads no label, so every run that differs in labels and later settings only can go on from there:
    `Trainer.fit(ckpt_path=cache.find())`. It then is what it would have been, bit for bit, and its minutes count the
    warm-up's. The ten entries used last are kept; other files of the folder are left alone.

    Args:
        folder: Where finished warm-ups lie, one checkpoint and one metrics.csv each.
        key: What tells this warm-up from all others, see `hash_warm_up`.

    Attributes:
        path: The checkpoint of this warm-up, there or not.
    """

    def __init__(self, folder: str | Path, key: str) -> None:
        self.path = Path(folder) / f"warm_up-{key}.ckpt"
        self._is_keeping = self._lacks_metrics = False

    def find(self) -> Path | None:
        """Return the checkpoint of this warm-up, or None where no run has finished it or its file is damaged."""
        if not self.path.is_file():
            return None
        try:
            torch.load(self.path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
            warnings.warn(f"The kept warm-up {self.path} cannot be read and is trained again: {error}", stacklevel=2)
            return None
        with contextlib.suppress(OSError):  # somebody else's, perhaps
            self.path.touch()  # used last
        return self.path

    def copy_metrics(self, run_dir: str | Path) -> None:
        """Start metrics.csv of a run with the curves of this warm-up."""
        curves = self.path.with_suffix(".csv")
        if curves.is_file():
            Path(run_dir).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(curves, Path(run_dir) / METRICS_FILE)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep a checkpoint where this was the stage's last epoch."""
        if not isinstance(pl_module, FewLabelClassifier):
            raise ConfigError(f"WarmUpCache works with FewLabelClassifier; got {type(pl_module).__name__}.")
        if trainer.current_epoch + 1 != pl_module.warmup_epochs or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if trainer.should_stop or not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return  # the clock ended the epoch early
        part = self.path.with_name(f"{self.path.stem}.{os.getpid()}.part")
        self._is_keeping = True
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(part, weights_only=False)
            if trainer.is_global_zero:
                part.replace(self.path)
                self._lacks_metrics = True
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter where the disk is full
            warnings.warn(f"This warm-up could not be kept in {self.path}: {error}. Training goes on.", stacklevel=2)
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        finally:
            self._is_keeping = False
        with contextlib.suppress(OSError):  # another run may forget the same ones
            self._forget_old()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leave out of an entry where this run keeps its own checkpoints."""
        if self._is_keeping:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, ModelCheckpoint):
                    checkpoint["callbacks"].pop(callback.state_key, None)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the curves, which are complete when the next epoch starts."""
        self._keep_metrics(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the curves of a run that is a warm-up and nothing else."""
        self._keep_metrics(trainer)

    def _keep_metrics(self, trainer: Trainer) -> None:
        logger = next((one for one in trainer.loggers if isinstance(one, RunLogger)), None)
        if self._lacks_metrics and logger is not None:
            logger.save()
            source = Path(logger.log_dir) / METRICS_FILE
            part = self.path.with_name(f"{self.path.stem}.{os.getpid()}.part")
            with contextlib.suppress(OSError):  # curves are worth less than the run
                shutil.copyfile(source, part)
                part.replace(self.path.with_suffix(".csv"))
        self._lacks_metrics = False

    def _forget_old(self) -> None:
        # The folder may hold other files; only names of ours are touched.
        own = [path for path in self.path.parent.iterdir() if ENTRY.fullmatch(path.name)]
        for old in sorted(own, key=lambda path: path.stat().st_mtime)[:-NUM_KEPT]:
            old.unlink(missing_ok=True)
            old.with_suffix(".csv").unlink(missing_ok=True)


def hash_warm_up(settings: Mapping[str, Any], module: FewLabelClassifier, data: FewLabelData) -> str:
    """Return what tells a warm-up from all others, 32 hexadecimal digits; the code that trains it counts as well.

    Args:
        settings: All that the contrastive stage depends on beside the next two, as JSON has it.
        module: As it is before training; its weights count, from a seed or a file.
        data: After `setup`; the images of the pool and the size of its batches count, labels do not.
    """
    digest = hashlib.blake2b(digest_size=16)
    packages = {name: version(name) for name in ("torch", "torchvision", "lightning")}
    told = [settings, packages, data.batch_size, data.images.fingerprint(data.split.pool), len(data.split.val) > 0]
    told.append(data.features_fingerprint)  # a checkpoint refuses others, even where the features are the same
    digest.update(json.dumps(told, sort_keys=True).encode())
    for path in sorted(Path(__file__).resolve().parents[1].rglob("*.py")):  # a version does not tell an edited checkout
        digest.update(path.read_bytes())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
