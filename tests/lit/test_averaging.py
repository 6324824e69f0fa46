"""The ramped average against its recursion, and that it is what a short run leaves behind."""

from collections.abc import Callable

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch._subclasses.fake_tensor import FakeTensorMode

from lspread.errors import ConfigError
from lspread.lit import RampedAveraging, RefreshPseudoLabels

from .conftest import make_data, make_model


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_average_is_the_ramped_recursion(make_trainer: Callable[..., Trainer], decay: float) -> None:
    seen: list[torch.Tensor] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
            seen.append(pl_module.head.weight.detach().clone())

    model = make_model(lr=1e-2)
    # 60 images, 16 a step: 3 steps an epoch.
    make_trainer(Watch(), RampedAveraging(decay), RefreshPseudoLabels(k=5), max_epochs=4).fit(
        model, datamodule=make_data()
    )
    assert len(seen) == 12
    expected = seen[0]  # the first average is a copy
    for step, weight in enumerate(seen[1:], 1):
        share = min(decay, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * weight
    torch.testing.assert_close(model.head.weight.detach(), expected)


def test_averaging_does_not_wait_for_the_gpu():
    average = RampedAveraging(0.9)._kwargs["avg_fn"]
    with FakeTensorMode():  # raises where a number of a tensor on the GPU is asked for
        weight = torch.ones(3, device="cuda", dtype=torch.bfloat16)
        found = average(weight, weight + 1, torch.ones((), device="cuda", dtype=torch.int64))
    assert (found.device.type, found.dtype) == ("cuda", torch.bfloat16)


def test_decay_must_be_a_share() -> None:
    with pytest.raises(ConfigError, match=r"decay must lie in \[0, 1\); got 1.0"):
        RampedAveraging(1.0)
