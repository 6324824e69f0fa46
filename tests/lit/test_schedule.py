"""The learning rate by steps and by time; no clock is looked at."""

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from torch import nn

from lspread.lit.schedule import configure_adamw

from .conftest import make_data, make_model


def rates(num_steps: float, num_warmup: int, time_share: Callable[[int], float], num_taken: int) -> list[float]:
    """Return the rate of each step; `time_share` is told how many steps were taken."""
    taken: list[float] = []
    options = {"lr": 2.0, "warmup_lr": 0.5, "weight_decay": 0.0, "num_steps": num_steps, "num_warmup": num_warmup}
    found: Any = configure_adamw(nn.Linear(2, 2).parameters(), **options, time_share=lambda: time_share(len(taken)))
    for _ in range(num_taken):
        taken.append(found["optimizer"].param_groups[0]["lr"])
        found["optimizer"].step()
        found["lr_scheduler"]["scheduler"].step()
    return taken


def test_by_steps() -> None:
    found = rates(140, 40, lambda _: 0.0, 140)
    # A twentieth of each stage climbs; the rest falls to zero as half a cosine.
    warm = [0.25, 0.5] + [0.25 * (1 + math.cos(math.pi * i / 38)) for i in range(38)]
    main = [2.0 * (i + 1) / 5 for i in range(5)] + [1 + math.cos(math.pi * i / 95) for i in range(95)]
    assert found == pytest.approx(warm + main)


def test_by_time() -> None:
    found = rates(math.inf, 0, lambda step: step / 200, 201)
    assert found[5] == pytest.approx(1.0, rel=1e-2)  # half of the twentieth
    assert max(found) == found[10] == pytest.approx(2.0)
    assert found[105] == pytest.approx(1.0, rel=1e-2)
    assert found[200] == pytest.approx(0.0, abs=1e-3)


def test_the_further_of_steps_and_time_counts() -> None:
    found = rates(100, 0, lambda step: 0.9 * step, 2)
    assert found[0] == pytest.approx(2.0 / 5)
    assert found[1] == pytest.approx(1 + math.cos(math.pi * (0.9 - 0.05) / 0.95), rel=1e-3)


class StepTimer(Timer):
    """A timer on which every step takes a second."""

    def __init__(self, seconds: int) -> None:
        super().__init__(timedelta(seconds=seconds))
        self.trainer: Trainer | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.trainer = trainer

    def time_elapsed(self, stage: Any = "train") -> float:
        return float(self.trainer.global_step) if self.trainer is not None else 0.0


def test_training_ends_with_the_time_and_has_cooled_down(make_trainer: Callable[..., Trainer]) -> None:
    seen: list[float] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    model = make_model(pseudo_weight=0.0, warmup_epochs=2, lr=1e-2)
    data = make_data()
    trainer = make_trainer(StepTimer(48), Watch(), max_epochs=-1)
    trainer.fit(model, datamodule=data)
    per_epoch = trainer.num_training_batches
    assert len(seen) == trainer.global_step == 48
    assert model._warmup_seconds == 2 * per_epoch
    rest = 48 - 2 * per_epoch
    share = torch.arange(1, rest) / rest  # the rate of a step was set when the step before had ended
    cosine = 0.5 * (1 + torch.cos(torch.pi * (share - 0.05) / 0.95))
    expected = torch.where(share < 0.05, share / 0.05, cosine) * 1e-2
    torch.testing.assert_close(torch.tensor(seen[2 * per_epoch + 1 :]), expected, rtol=0.02, atol=1e-5)


def test_a_loaded_checkpoint_does_not_bring_back_its_rates() -> None:
    def make(lr: float, weight_decay: float) -> Any:
        options = {"lr": lr, "warmup_lr": 0.5, "weight_decay": weight_decay, "num_steps": 40, "num_warmup": 10}
        return configure_adamw(nn.Linear(2, 2).parameters(), **options, time_share=lambda: 0.0)

    def step(made: Any, num_steps: int) -> None:
        for _ in range(num_steps):
            made["optimizer"].step()
            made["lr_scheduler"]["scheduler"].step()

    old, whole, new = make(2.0, 0.1), make(1.0, 0.3), make(1.0, 0.3)
    step(old, 12)
    step(whole, 12)
    new["optimizer"].load_state_dict(old["optimizer"].state_dict())
    new["lr_scheduler"]["scheduler"].load_state_dict(old["lr_scheduler"]["scheduler"].state_dict())
    for num_steps in (0, 5):
        step(whole, num_steps)
        step(new, num_steps)
        for group, expected in zip(new["optimizer"].param_groups, whole["optimizer"].param_groups, strict=True):
            for name in ("lr", "initial_lr", "weight_decay"):
                assert group[name] == expected[name], name


@pytest.mark.parametrize("warmup_lr", [0.003, 0.1])
def test_the_rates_of_a_warm_up_are_its_own_to_the_last_bit(warmup_lr: float) -> None:
    def warm(lr: float) -> list[float]:
        options = {"lr": lr, "warmup_lr": warmup_lr, "weight_decay": 0.0, "num_steps": 400, "num_warmup": 300}
        found: Any = configure_adamw(nn.Linear(2, 2).parameters(), **options, time_share=lambda: 0.0)
        taken = []
        for _ in range(300):
            taken.append(found["optimizer"].param_groups[0]["lr"])
            found["optimizer"].step()
            found["lr_scheduler"]["scheduler"].step()
        return taken

    assert warm(0.001) == warm(0.0015) == warm(0.004)
