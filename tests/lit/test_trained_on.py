"""Data that a trained network must not be judged on, or was not trained on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from lspread.data import RandomCorruption, TensorData, VectorData
from lspread.errors import DataError
from lspread.lit import FewLabelClassifier
from lspread.lit.trained_on import count_unlearned
from lspread.nn import VectorMLP
from lspread.typing import UNLABELED

from .conftest import NUM_CLASSES, bars, make_data, make_model

NAMES = [f"{number:02d}.png" for number in range(60)]


@pytest.fixture
def trained(make_trainer: Callable[..., Trainer], tmp_path: Path) -> Path:
    """The checkpoint of a run on the first three labels of each class, with the last twelve items held out."""
    trainer = make_trainer(max_epochs=1)
    trainer.fit(make_model(pseudo_weight=0.0), datamodule=data())
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    return tmp_path / "run.ckpt"


def data(given: int = 9, held_out: range = range(48, 60), **options: Any) -> TensorData:
    settings = {"names": NAMES, "num_labels_per_class": None, "labeled_indices": list(range(given))} | options
    return make_data(val=torch.tensor(held_out), **settings)


@pytest.mark.parametrize(
    ("changed", "num_judged"),
    [
        ({}, 0),
        ({"given": 12}, 0),  # unlabeled ones got their label
        ({"given": 6}, 3),  # given ones would be judged as unlabeled
        ({"held_out": range(50, 60)}, 0),  # more to train on
        ({"held_out": range(46, 60)}, 2),  # unlabeled ones would be judged as held out
        ({"names": NAMES[::-1]}, 0),  # the same ones in another order
        ({"names": None, "given": 6}, 0),  # who knows
    ],
)
def test_nothing_is_judged_that_was_trained_on(
    trained: Path, make_trainer: Callable[..., Trainer], changed: dict[str, Any], num_judged: int
) -> None:
    if changed.get("names") == NAMES[::-1]:
        image, truth = bars()
        now = TensorData(
            image.flip(0),
            truth.flip(0),
            ["row", "column", "diagonal"],
            names=NAMES[::-1],
            val=torch.arange(12),
            labeled_indices=range(51, 60),
            batch_size=16,
            labeled_batch_size=6,
        )
    else:
        now = data(**changed)
    model, trainer = make_model(pseudo_weight=0.0), make_trainer(max_epochs=2)

    def ask(name: str) -> None:
        getattr(trainer, name)(model, datamodule=now, ckpt_path=trained, weights_only=True)

    if num_judged:
        match = f"{num_judged} items of tensors that this run was trained on would be judged as if it had never seen"
        for name in ("validate", "fit"):
            with pytest.raises(DataError, match=match):
                ask(name)
    else:
        ask("validate")
        ask("fit")
    ask("predict")


def test_a_label_that_was_taken_back_is_judged_by_nobody(trained: Path, make_trainer: Callable[..., Trainer]) -> None:
    truth = bars()[1]
    truth[8] = UNLABELED
    make_trainer().validate(make_model(), datamodule=data(8, label=truth), ckpt_path=trained, weights_only=True)


def test_other_data_of_the_same_names_needs_another_name(trained: Path, make_trainer: Callable[..., Trainer]) -> None:
    now = data(given=6)
    now.name = "others"
    make_trainer().validate(make_model(), datamodule=now, ckpt_path=trained, weights_only=True)


def test_before_the_head_is_trained_labels_are_free(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer = make_trainer(max_epochs=1)
    trainer.fit(make_model(pseudo_weight=0.0, warmup_epochs=1), datamodule=data())
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    make_trainer(max_epochs=2).fit(
        make_model(pseudo_weight=0.0, warmup_epochs=1),
        datamodule=data(given=6),
        ckpt_path=tmp_path / "run.ckpt",
        weights_only=True,
    )


@pytest.mark.parametrize(
    ("given", "changed", "names", "count"),
    [(9, 0, NAMES, 0), (12, 0, NAMES, 3), (6, 0, NAMES, 0), (12, 2, NAMES, 5), (12, 1, None, 4)],
)
def test_labels_that_came_after_training_are_counted(
    trained: Path, given: int, changed: int, names: list[str] | None, count: int
) -> None:
    truth = bars()[1]
    truth[:changed] = (truth[:changed] + 1) % NUM_CLASSES
    now = data(given, label=truth, names=names)
    now.setup("fit")
    checkpoint = torch.load(trained, weights_only=True)
    assert count_unlearned(checkpoint, now) == count
    # A head that is not trained has learned nothing yet, and an old checkpoint does not know what it has learned.
    assert count_unlearned(checkpoint | {"is_head_trained": False}, now) == 0
    del checkpoint["given_label"]
    assert count_unlearned(checkpoint, now) == 0


@pytest.mark.parametrize(("noise", "is_same"), [(0.0, True), (1e-3, True), (1.0, False)])
def test_embeddings_of_another_network_are_refused(
    noise: float, is_same: bool, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    feature = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    other = feature + noise * torch.randn(60, 5, generator=torch.Generator().manual_seed(1))

    def vectors(x: torch.Tensor, names: list[str]) -> VectorData:
        truth = torch.arange(len(x)) % NUM_CLASSES
        return VectorData(x, truth, ["a", "b", "c"], names=names, labeled_indices=range(6), batch_size=16)

    def model() -> FewLabelClassifier:
        view = RandomCorruption()
        return FewLabelClassifier(VectorMLP(5), NUM_CLASSES, weak=view, strong=view, pseudo_weight=0.0)

    trainer = make_trainer(max_epochs=1)
    trainer.fit(model(), datamodule=vectors(feature, NAMES))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    # More items may have come, and stand elsewhere.
    now = vectors(torch.cat([other, torch.randn(1, 5)]), [*NAMES, "new.png"])
    if is_same:
        make_trainer().predict(model(), datamodule=now, ckpt_path=tmp_path / "run.ckpt", weights_only=True)
    else:
        with pytest.raises(DataError, match="the embeddings of vectors are not those that this run was trained on"):
            make_trainer().predict(model(), datamodule=now, ckpt_path=tmp_path / "run.ckpt", weights_only=True)
