"""Lightning's BackboneFinetuning beside this module: what is held stays, what is freed learns, runs can be resumed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from torch import Tensor

from lspread.lit import RampedAveraging, RefreshPseudoLabels
from lspread.lit.random_state import RandomState

from .conftest import make_data, make_model

UNFREEZE = 2


class Record(Callback):
    """The backbone's first weights before each epoch, and rates and decay of all parameter groups before each step."""

    def __init__(self) -> None:
        self.weight: list[Tensor] = []
        self.rates: list[list[float]] = []
        self.decays: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.weight.append(pl_module.get_parameter("backbone.stem.weight").detach().clone())
        groups = trainer.optimizers[0].param_groups
        self.decays = [group["weight_decay"] for group in groups]
        self.rates.append([group["lr"] for group in groups])


def fit(make_trainer: Callable[..., Trainer], *callbacks: Callback) -> None:
    others = (RefreshPseudoLabels(k=5), RampedAveraging(), *callbacks)
    make_trainer(*others, max_epochs=5).fit(make_model(), datamodule=make_data())


def test_a_held_backbone_is_freed(make_trainer: Callable[..., Trainer]) -> None:
    plain, held = Record(), Record()
    fit(make_trainer, plain)
    fit(make_trainer, BackboneFinetuning(unfreeze_backbone_at_epoch=UNFREEZE, backbone_initial_ratio_lr=0.1), held)
    per_epoch = len(held.rates) // 5
    assert all(torch.equal(weight, held.weight[0]) for weight in held.weight[: UNFREEZE + 1])
    assert not any(torch.equal(weight, held.weight[0]) for weight in held.weight[UNFREEZE + 1 :])
    # The schedule of what learns from the start is what it always is; the new group has the rate that it was given.
    assert [rates[:2] for rates in held.rates] == plain.rates
    assert held.decays == [1e-3, 0.0, 1e-3]  # the module's own default, not torch's
    assert {len(rates) for rates in held.rates[: UNFREEZE * per_epoch]} == {2}
    for epoch, factor in ((UNFREEZE, 0.1), (UNFREEZE + 1, 0.2)):
        steps = held.rates[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert {rates[2] for rates in steps} == {steps[0][2]}
        first = held.rates[UNFREEZE * per_epoch][0]
        assert steps[0][2] == pytest.approx(min(factor * first, steps[0][0]))


@pytest.mark.parametrize("stop", [1, 3])
def test_an_interrupted_run_goes_on(stop: int, make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    def callbacks() -> list[Callback]:
        keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        finetuning = BackboneFinetuning(unfreeze_backbone_at_epoch=UNFREEZE)
        return [RefreshPseudoLabels(k=5), RampedAveraging(), RandomState(), finetuning, keep]

    whole = make_model()
    options = {"max_epochs": 5, "enable_checkpointing": True}
    make_trainer(*callbacks(), **options).fit(whole, datamodule=make_data())
    halves = make_model()
    path = tmp_path / f"epoch={stop - 1}.ckpt"
    make_trainer(*callbacks(), **options).fit(halves, datamodule=make_data(), ckpt_path=path)
    for (name, expected), found in zip(whole.named_parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=name)
