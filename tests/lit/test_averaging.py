"""The ramped average against its recursion, and that it is what a short run leaves behind."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.swa_utils import AveragedModel

from lspread.errors import ConfigError
from lspread.lit import RampedAveraging, RefreshPseudoLabels
from lspread.lit.averaging import _RampedUpdate

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


@pytest.mark.parametrize("averaging", [RampedAveraging, EMAWeightAveraging])
def test_an_interrupt_in_a_validation_leaves_both_weights_where_they_belong(
    averaging: type[Callback], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Whether it comes before or within the validation, the checkpoint holds the same."""

    class Interrupt(Callback):
        def __init__(self, hook: str) -> None:
            setattr(self, hook, self.stop)

        def stop(self, trainer: Trainer, *_: object) -> None:
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    states = []
    for hook in ("on_validation_start", "on_validation_batch_end"):
        keep = ModelCheckpoint(tmp_path / hook, filename="last", save_on_exception=True)
        trainer = make_trainer(
            averaging(decay=0.9),
            RefreshPseudoLabels(k=5),
            Interrupt(hook),
            keep,
            max_epochs=3,
            enable_checkpointing=True,
        )
        with pytest.raises(SystemExit):
            trainer.fit(make_model(lr=0.1), datamodule=make_data(val=torch.arange(40, 60)))
        states.append(torch.load(tmp_path / hook / "last.ckpt", weights_only=True))
    before, within = ((state["state_dict"], state["current_model_state"]) for state in states)
    torch.testing.assert_close(within, before, rtol=0, atol=0)
    assert not before[0]["head.weight"].equal(before[1]["head.weight"])


def test_averaging_does_not_wait_for_the_gpu():
    def make():
        net = torch.nn.Module()
        net.weight = torch.nn.Parameter(torch.empty(3))
        net.register_buffer("count", torch.empty((), dtype=torch.int64))
        return net

    # Raises where a number of a tensor on the GPU is asked for.
    with FakeTensorMode(), torch.device("cuda"):
        net, other = make(), make()
        update = _RampedUpdate(SimpleNamespace(module=net, n_averaged=torch.empty(())), 0.9)
        for update._step in (0, 1):
            update(other)
        assert {tensor.device.type for tensor in net.state_dict().values()} == {"cuda"}


def test_buffers_that_count_are_copied():
    net = torch.nn.BatchNorm1d(2)
    average = AveragedModel(net, use_buffers=True)
    update = _RampedUpdate(average, 0.9)
    update(net)
    for _ in range(5):
        net(torch.randn(4, 2))
    net.weight.data.fill_(11.0)
    update(net)
    assert average.module.num_batches_tracked == 5
    torch.testing.assert_close(average.module.weight, torch.full((2,), 1 + 10 * 9 / 11), check_stride=False)
    assert average.n_averaged == 2


def test_decay_must_be_a_share() -> None:
    with pytest.raises(ConfigError, match=r"decay must lie in \[0, 1\); got 1.0"):
        RampedAveraging(1.0)
