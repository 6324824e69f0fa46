from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from lspread.data import Digits, FewLabelData, TensorData
from lspread.data.images import FolderImages, TensorImages
from lspread.data.module import BalancedSampler
from lspread.data.vector_data import FeatureRows
from lspread.errors import ConfigError, DataError

N = 50
IMAGE = torch.randint(0, 256, (N, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABEL = torch.arange(N) % 3
NAMES = ["a", "b", "c"]


def make(**options: Any) -> TensorData:
    data = TensorData(IMAGE, LABEL, NAMES, **{"num_labels_per_class": 2, **options})
    data.setup()
    return data


def index_of(loader: Any) -> list[int]:
    return torch.cat([batch["index"] for batch in loader]).tolist()


def test_facts_after_setup() -> None:
    data = make(test=torch.arange(40, 50), val_fraction=0.1)
    assert (data.name, data.num_classes, data.in_channels, data.class_names) == ("tensors", 3, 3, NAMES)
    assert data.image_shape == (3, 4, 4)
    assert data.items[7] == "item-7"
    split = data.split
    assert [split.labeled.numel(), split.unlabeled.numel(), split.val.numel(), split.test.numel()] == [6, 30, 4, 10]
    expected = torch.full((N,), -1)
    expected[split.labeled] = LABEL[split.labeled]
    assert data.given_label.equal(expected)
    assert data.evaluator.label(torch.arange(N)).equal(LABEL)
    pool = IMAGE[split.pool].numpy() / 255
    np.testing.assert_allclose(data.mean, pool.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.std, pool.std((0, 2, 3)), rtol=1e-12)


def test_constant_channel_has_a_usable_std() -> None:
    data = TensorData(torch.full((4, 1, 2, 2), 51, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]), ["a", "b"])
    data.setup()
    assert data.mean == pytest.approx((0.2,))
    assert data.std == pytest.approx((1 / 255,))


def test_loaders_cover_their_parts() -> None:
    data = make(test=torch.arange(40, 50), val_fraction=0.1, batch_size=7, labeled_batch_size=5, eval_batch_size=4)
    split = data.split
    assert index_of(data.pool_dataloader()) == split.pool.tolist()
    assert index_of(data.val_dataloader()) == split.val.tolist()
    assert index_of(data.test_dataloader()) == split.test.tolist()
    assert index_of(data.predict_dataloader()) == list(range(N))
    loaders = data.train_dataloader()
    assert len(loaders["pool"]) == len(loaders["labeled"]) == 36 // 7
    torch.manual_seed(0)
    pool, labeled = index_of(loaders["pool"]), index_of(loaders["labeled"])
    assert len(set(pool)) == len(pool) == 35
    assert set(pool) <= set(split.pool.tolist())
    assert len(labeled) == 5 * 5
    assert set(labeled) <= set(split.labeled.tolist())
    assert index_of(loaders["pool"]) != pool
    torch.manual_seed(0)
    assert (index_of(loaders["pool"]), index_of(loaders["labeled"])) == (pool, labeled)


def test_batches_hold_images_and_rows_only() -> None:
    data = make(batch_size=8)
    for loader in (*data.train_dataloader().values(), data.pool_dataloader(), data.predict_dataloader()):
        for batch in loader:
            assert set(batch) == {"image", "index"}
            assert batch["image"].dtype == torch.uint8
            assert batch["index"].dtype == torch.int64
            assert batch["image"].equal(IMAGE[batch["index"]])


def test_a_pool_smaller_than_a_batch_is_kept() -> None:
    loaders = make(batch_size=1000).train_dataloader()
    assert len(loaders["pool"]) == len(loaders["labeled"]) == 1
    assert sorted(index_of(loaders["pool"])) == list(range(N))
    assert len(make(batch_size=N).train_dataloader()["pool"]) == 1


def test_without_validation_and_test_there_are_no_loaders() -> None:
    data = make()
    assert data.val_dataloader() == []
    assert data.test_dataloader() == []


def test_the_drawn_labels_do_not_depend_on_validation() -> None:
    assert make(val_fraction=0.3).split.labeled.equal(make().split.labeled)
    assert not make(seed=1).split.labeled.equal(make().split.labeled)


def test_known_labels_are_given_where_nothing_is_drawn() -> None:
    label = LABEL.clone()
    label[10:] = -1
    data = TensorData(IMAGE, label, NAMES)
    data.setup()
    assert data.split.labeled.tolist() == list(range(10))
    assert not data.evaluator.has_truth(data.split.unlabeled)


def test_labeled_indices_and_fraction() -> None:
    assert make(num_labels_per_class=None, labeled_indices=[5, 1]).split.labeled.tolist() == [1, 5]
    assert make(num_labels_per_class=None, fraction=0.5).split.labeled.numel() == 8 + 8 + 8


def test_setup_reads_once() -> None:
    data = make()
    images = data.images
    data.setup("fit")
    assert data.images is images


def test_balanced_sampler() -> None:
    label = torch.tensor([2] * 10 + [0] + [5] * 3)
    sampler = BalancedSampler(label, 3000, generator=torch.Generator().manual_seed(0))
    drawn = torch.tensor(list(sampler))
    assert len(sampler) == drawn.numel() == 3000
    assert (label[drawn].reshape(-1, 3).sort(1).values == torch.tensor([0, 2, 5])).all()
    count = torch.bincount(drawn, minlength=14)
    assert count[10] == 1000
    # binomial(1000, 1/10) and (1000, 1/3): standard deviations 9.5 and 14.9
    assert (count[:10] - 100).abs().max() < 4.5 * 9.5
    assert (count[11:] - 1000 / 3).abs().max() < 4.5 * 14.9
    turns = label[drawn].reshape(-1, 3)[:, 0].unique(return_counts=True)[1]
    assert (turns - 1000 / 3).abs().max() < 4.5 * 14.9
    assert len(list(BalancedSampler(label, 4))) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, but is 0"),
        ({"labeled_batch_size": -1}, "labeled_batch_size must be at least 1"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1"),
        ({"num_workers": -1}, "num_workers must be 0 or more"),
        ({"val_fraction": 1.0}, "val_fraction must be at least 0 and below 1, but is 1.0"),
        ({"num_labels_per_class": 0}, "num_labels_per_class must be at least 1, but is 0"),
        ({"num_labels_per_class": None, "fraction": 1.5}, "fraction must be above 0 and at most 1, but is 1.5"),
        ({"fraction": 0.1}, "in one way, but got num_labels_per_class=2 and fraction=0.1"),
    ],
)
def test_options_are_checked_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TensorData(IMAGE, LABEL, NAMES, **{"num_labels_per_class": 2, **options})


@pytest.mark.parametrize("names", [3, "cat,dog", {"cat", "dog"}, {"cat": 0, "dog": 1}])
def test_class_names_are_a_list(names: Any) -> None:
    with pytest.raises(ConfigError, match=r"class_names must be a list of names, such as \['cat', 'dog'\], but is"):
        TensorData(IMAGE, LABEL, names)


def test_data_errors() -> None:
    with pytest.raises(DataError, match=r"TensorData has not read its data yet. Call setup\(\) first"):
        TensorData(IMAGE, LABEL, NAMES).split  # noqa: B018
    with pytest.raises(DataError, match=r"16 items have a label outside the classes \(first: item 2 has label 3\)"):
        TensorData(IMAGE, LABEL + 1, NAMES).setup()
    with pytest.raises(DataError, match="No labels at all"):
        TensorData(IMAGE, torch.full((N,), -1), NAMES).setup()
    with pytest.raises(DataError, match="one class only"):
        TensorData(IMAGE, torch.zeros(N, dtype=torch.int64), NAMES).setup()
    with pytest.raises(DataError, match="got 50 images, 1 names"):
        make(names=["x"])
    with pytest.raises(DataError, match=r"class 0 \('a'\) has 17. Draw at most 17 per class"):
        make(num_labels_per_class=18)
    with pytest.raises(NotImplementedError, match="FewLabelData does not implement load_items"):
        FewLabelData("x", NAMES, 1).setup()


def test_digits_against_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    bundle = load_digits()
    data = Digits(seed=4)
    assert (data.num_classes, data.in_channels) == (10, 1)
    data.setup()
    assert len(data.items) == 1797
    assert data.split.labeled.numel() == 10
    assert data.split.unlabeled.numel() == 1787
    assert bundle.target[data.split.labeled].tolist() != list(range(10))  # sorted by row, not by class
    assert sorted(bundle.target[data.split.labeled]) == list(range(10))
    batch = next(iter(data.predict_dataloader()))
    np.testing.assert_allclose(batch["image"][:, 0] / 255, bundle.images[:1024] / 16, atol=0.5 / 255)
    np.testing.assert_array_equal(data.evaluator.label(torch.arange(1797)), bundle.target)
    assert Digits(fraction=0.1).num_labels_per_class is None


class Watcher(pl.LightningModule):
    """Counts what a Trainer hands over."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[int]] = {"labeled": [], "pool": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch: dict[str, dict[str, torch.Tensor]], _: int) -> torch.Tensor:
        for key in ("labeled", "pool"):
            self.seen[key] += batch[key]["index"].tolist()
        return self.weight * batch["pool"]["image"].float().mean()

    def validation_step(self, batch: dict[str, torch.Tensor], _: int) -> None:
        self.seen["val"] += batch["index"].tolist()

    def test_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.seen["test"] += batch["index"].tolist()

    def predict_step(self, batch: dict[str, torch.Tensor], _: int) -> None:
        self.seen["predict"] += batch["index"].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(folder: Any) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("has_val", [True, False])
def test_under_a_trainer(has_val: bool, tmp_path: Any) -> None:
    data = TensorData(
        IMAGE,
        LABEL,
        NAMES,
        num_labels_per_class=2,
        test=torch.arange(40, 50),
        val_fraction=0.1 if has_val else 0.0,
        batch_size=8,
        labeled_batch_size=6,
    )
    trainer = make_trainer(tmp_path)
    watcher = Watcher()
    trainer.fit(watcher, datamodule=data)
    trainer.test(watcher, datamodule=data)
    trainer.predict(watcher, datamodule=data)
    steps = data.split.pool.numel() // 8
    assert len(watcher.seen["pool"]) == steps * 8
    assert len(watcher.seen["labeled"]) == steps * 6
    assert watcher.seen["val"] == data.split.val.tolist()
    assert watcher.seen["test"] == list(range(40, 50))
    assert watcher.seen["predict"] == list(range(N))


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_images_on_the_device_make_the_same_batches(num_workers: int, tmp_path: Any, monkeypatch: Any) -> None:
    """The device is the CPU here: what joins the batch there is what the loader would have sent."""

    class Keeper(Watcher):
        def training_step(self, batch: dict[str, dict[str, torch.Tensor]], _: int) -> torch.Tensor:
            for part in batch.values():
                assert torch.equal(part["image"], IMAGE[part["index"]])
            return super().training_step(batch, _)

    seen = []
    for is_there in (False, True):
        data = TensorData(IMAGE, LABEL, NAMES, num_labels_per_class=2, batch_size=8, num_workers=num_workers)
        if is_there:
            monkeypatch.setattr(data, "_move_to_gpu", lambda data=data: data.images.to(torch.device("cpu"), 1 << 20))
        pl.seed_everything(0, verbose=False)
        keeper = Keeper()
        make_trainer(tmp_path).fit(keeper, datamodule=data)
        seen.append(keeper.seen)
    assert seen[0] == seen[1]
    assert seen[0]["pool"]


def test_images_move_where_they_fit() -> None:
    images, cpu = TensorImages(IMAGE), torch.device("cpu")
    assert images.to(cpu, IMAGE.nbytes - 1) is None
    moved = images.to(cpu, IMAGE.nbytes)
    assert moved is not None
    assert torch.equal(moved.fetch(torch.tensor([3, 1])), IMAGE[[3, 1]])
    rows = FeatureRows(torch.randn(5, 2))
    assert rows.to(cpu, 39) is None
    assert torch.equal(rows.to(cpu, 40).feature, rows.feature)
    assert FolderImages([], 8, 3).to(cpu, 1 << 40) is None
