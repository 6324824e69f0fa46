"""AdamW and its learning rate over the two stages of training."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["configure_adamw", "count_steps", "seconds_gone", "share_of_time"]

RAMP_SHARE = 0.05
"""Share of each stage in which the learning rate climbs."""
FINE = 10_000
"""Pieces that a stage is cut into where time counts, not steps."""


def configure_adamw(
    parameters: Iterable[Parameter],
    *,
    lr: float,
    warmup_lr: float,
    weight_decay: float,
    num_steps: float,
    num_warmup: int,
    time_share: Callable[[], float],
) -> OptimizerLRSchedulerConfig:
    """Return AdamW with a rate that, in each stage, climbs for 5 % of it and falls as a half cosine.

    Args:
        parameters: To be trained; weights with one dimension (biases, norms) do not decay.
        lr: Largest rate of the second stage.
        warmup_lr: Largest rate of the first.
        weight_decay: Of AdamW.
        num_steps: Steps of both stages; infinite where only time ends them.
        num_warmup: How many of them belong to the first.
        time_share: Asked at every step of the second stage how much of its time is gone, in [0, 1]; 0 without a limit
            of time. The stage is as far as the further of steps and time.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=True)
    num_rest = num_steps - num_warmup

    def rate(step: int) -> float:
        if step < num_warmup:
            return warmup_lr * _climb_and_fall(step, num_warmup)
        gone = time_share()
        if math.isfinite(num_rest) and step - num_warmup >= gone * num_rest:
            return lr * _climb_and_fall(step - num_warmup, int(num_rest))
        return lr * _climb_and_fall(int(gone * FINE), FINE)

    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": _Schedule(optimizer, rate), "interval": "step"},
    }


class _Schedule(LambdaLR):
    """The schedule of the module's own parameter groups.

    What torch's does otherwise: `rate` gives rates and no factors, so that those of the warm-up are the same to the
    last bit whatever the second stage's are; groups that a callback adds, such as the backbone's when
    `BackboneFinetuning` frees it, keep the rate that the callback gives them; and a loaded checkpoint brings its step,
    but not its rates and decay, so that a resumed run obeys what was changed.
    """

    def __init__(self, optimizer: Optimizer, rate: Callable[[int], float]) -> None:
        self._decays = [group["weight_decay"] for group in optimizer.param_groups]
        super().__init__(optimizer, rate)

    def get_lr(self) -> list[float | Tensor]:
        """Return the rate of each group."""
        return self._own_rates() + [group["lr"] for group in self.optimizer.param_groups[len(self._decays) :]]

    def _own_rates(self) -> list[float | Tensor]:
        return [rate(self.last_epoch) for rate in self.lr_lambdas]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the step; Lightning has loaded the optimizer before."""
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = state_dict["_step_count"]
        own, added = self.optimizer.param_groups[: len(self._decays)], self.optimizer.param_groups[len(self._decays) :]
        for group in added:
            group["weight_decay"] = self.optimizer.defaults["weight_decay"]
            for parameter in group["params"]:
                # Lightning's finetuning holds on resuming what it had freed; issue 21901; goes when pull 21902 is out.
                parameter.requires_grad_(True)
        for group, base, rate, decay in zip(own, self.base_lrs, self._own_rates(), self._decays, strict=True):
            group.update(initial_lr=base, lr=rate, weight_decay=decay)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def count_steps(trainer: Trainer, warmup_epochs: int) -> tuple[float, int]:
    """Return the steps of a run, infinite where only time ends it, and how many of them belong to the warm-up."""
    num_steps = max(1, trainer.estimated_stepping_batches)
    trainer.fit_loop.setup_data()
    per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    return num_steps, int(min(num_steps, per_epoch * warmup_epochs))


def seconds_gone(trainer: Trainer) -> float | None:
    """Return the seconds of training so far, over all sittings, or None where time is not limited."""
    timer = _limited_timer(trainer)
    return None if timer is None else timer.time_elapsed()


def share_of_time(trainer: Trainer, start: float | None) -> float:
    """Return how much of the time from second `start` on is gone, in [0, 1]; 0 where time is not limited."""
    timer = _limited_timer(trainer)
    if timer is None or start is None:
        return 0.0
    gone, left = timer.time_elapsed() - start, timer.time_remaining() or 0.0
    return min(1.0, gone / max(gone + left, 1e-9))


def _limited_timer(trainer: Trainer) -> Timer | None:
    """Return the timer that `Trainer(max_time=...)` makes, or one of the callbacks."""
    timers = (callback for callback in trainer.callbacks if isinstance(callback, Timer))  # type: ignore[attr-defined]
    return next((timer for timer in timers if timer.time_remaining() is not None), None)


def _climb_and_fall(step: int, num_steps: int) -> float:
    num_climb = max(1, round(RAMP_SHARE * num_steps))
    if step < num_climb:
        return (step + 1) / num_climb
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - num_climb) / max(1, num_steps - num_climb))))
