"""The cache of warm-ups as a callback of one's own trainer; tests/cli/test_warm_up.py asks what `lspread fit` does."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lspread.data import TensorData
from lspread.errors import ConfigError
from lspread.lit import FewLabelClassifier, RefreshPseudoLabels
from lspread.lit.random_state import RandomState
from lspread.lit.warm_up import WarmUpCache, hash_warm_up

from .conftest import bars, make_data, make_model


def key(model: FewLabelClassifier, data: TensorData, **settings: float) -> str:
    data.setup()
    return hash_warm_up(settings, model, data)


def test_training_from_a_kept_warm_up_is_training_it(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    def train(cache: WarmUpCache, seed: int) -> list[Tensor]:
        model, data = make_model(warmup_epochs=2), make_data(seed=seed)
        callbacks = (RandomState(), RefreshPseudoLabels(k=5), cache)
        torch.manual_seed(3)
        checkpoint = cache.find()
        trainer = make_trainer(*callbacks, max_epochs=4, enable_checkpointing=True)
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        return list(model.parameters())

    shared = key(make_model(warmup_epochs=2), make_data())
    alone = train(WarmUpCache(tmp_path / "other", shared), seed=1)
    train(WarmUpCache(tmp_path, shared), seed=0)
    cache = WarmUpCache(tmp_path, shared)
    assert cache.find() == tmp_path / f"warm_up-{shared}.ckpt"
    kept = torch.load(cache.path, weights_only=True)
    assert kept["epoch"] == 1  # two epochs, counted from zero
    for expected, found in zip(alone, train(cache, seed=1), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_key_is_that_of_images_network_and_settings() -> None:
    image, truth = bars()
    first = key(make_model(), make_data(), lr=0.1)
    assert first == key(make_model(), make_data(seed=1, num_labels_per_class=4), lr=0.1), "labels come later"
    other_images = TensorData(
        image.flip(0), truth, ["row", "column", "diagonal"], num_labels_per_class=2, batch_size=16
    )
    other_weights = make_model()
    torch.nn.init.zeros_(other_weights.head.bias)
    others = [
        key(make_model(), make_data(), lr=0.2),
        key(make_model(), make_data(batch_size=8), lr=0.1),
        key(make_model(), other_images, lr=0.1),
        key(other_weights, make_data(), lr=0.1),
    ]
    assert len({first, *others}) == 5


def test_it_wants_a_module_that_warms_up(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="WarmUpCache works with FewLabelClassifier; got LightningModule"):
        WarmUpCache(tmp_path, "0" * 32).on_train_epoch_end(Trainer.__new__(Trainer), LightningModule())


def test_the_key_knows_what_features_were_fitted_to() -> None:
    keys = []
    for fingerprint in (None, "a", "b"):
        data = make_data()
        data.features_fingerprint = fingerprint
        keys.append(key(make_model(), data))
    assert len(set(keys)) == 3  # the checkpoint of one would be refused by the others
