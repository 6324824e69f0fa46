"""A tiny labelled world that trains in a blink: three kinds of bars on 8 x 8 images."""

import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lspread.data import StrongAugmentation, TensorData, WeakAugmentation
from lspread.lit import FewLabelClassifier
from lspread.nn import SmallResNet

NUM_CLASSES = 3


def bars(num_per_class: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (n,1,8,8) uint8 of horizontal, vertical and diagonal bars with noise, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    n = NUM_CLASSES * num_per_class
    label = torch.arange(n) % NUM_CLASSES
    image = 60 * torch.rand(n, 8, 8, generator=generator)
    place = torch.randint(1, 7, (n,), generator=generator)
    for i in range(n):
        if label[i] == 0:
            image[i, place[i]] += 180
        elif label[i] == 1:
            image[i, :, place[i]] += 180
        else:
            image[i] += 180 * torch.eye(8)
    return image.unsqueeze(1).to(torch.uint8), label


def make_data(label: Tensor | None = None, **options: Any) -> TensorData:
    image, truth = bars()
    settings = {"num_labels_per_class": 2, "seed": 0, "batch_size": 16, "labeled_batch_size": 6} | options
    return TensorData(image, truth if label is None else label, ["row", "column", "diagonal"], **settings)


def make_model(**options: Any) -> FewLabelClassifier:
    backbone = options.pop("backbone", None)
    torch.manual_seed(0)
    return FewLabelClassifier(
        SmallResNet(1, (4, 8), stem_stride=1) if backbone is None else backbone,
        NUM_CLASSES,
        weak=options.pop("weak", WeakAugmentation(flip=0)),
        strong=options.pop("strong", StrongAugmentation(flip=0, rotate=5)),
        **options,
    )


@pytest.fixture
def make_trainer() -> Callable[..., Trainer]:
    def make(*callbacks: Callback, max_epochs: int = 2, **options: Any) -> Trainer:
        warnings.filterwarnings("ignore", module="lightning")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        settings = {
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        }
        return Trainer(callbacks=list(callbacks), max_epochs=max_epochs, **(settings | options))

    return make
