import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lspread.data import EmbeddedItems, EmbeddingData, TensorData, VectorData
from lspread.data.vector_data import FeatureRows
from lspread.errors import DataError
from lspread.typing import UNLABELED
from tests.reference import seeded


def test_rows_are_images_of_one_pixel() -> None:
    feature = torch.randn(9, 4, generator=seeded(0)) * torch.tensor([1.0, 2, 3, 0])
    rows = FeatureRows(feature)
    assert (len(rows), rows.image_shape) == (9, (4, 1, 1))
    index = torch.tensor([7, 0, 7])
    assert rows.fetch(index).equal(feature[index][:, :, None, None])
    assert rows[3]["image"].flatten().equal(feature[3])
    torch.testing.assert_close(rows.moments(index), torch.stack([feature[index], feature[index] ** 2], -1).double())
    with pytest.raises(DataError, match="feature holds NaN or infinity in 1 of 2 rows; the first is row 1"):
        FeatureRows(torch.tensor([[1.0], [torch.nan]]))


def test_features_keep_their_proportions() -> None:
    feature = torch.randn(500, 3, generator=seeded(1)) * torch.tensor([1.0, 5.0, 0.1]) + torch.tensor([3.0, 0, -2])
    test = torch.arange(400, 500)
    feature[test] += 100  # held-out rows move neither mean nor deviation
    data = VectorData(feature, torch.arange(500) % 2, ["a", "b"], test=test, num_labels_per_class=3)
    data.setup()
    pool = feature[:400].double().numpy()
    np.testing.assert_allclose(data.mean, pool.mean(0), rtol=1e-6)
    np.testing.assert_allclose(data.std, [math.sqrt(pool.var(0).mean())] * 3, rtol=1e-6)
    assert (data.in_channels, data.kind, data.items[5]) == (3, "table", "item-5")
    assert data.split.test.equal(test)
    assert int((data.given_label != UNLABELED).sum()) == 6


def test_images_as_vectors_train_as_images_do() -> None:
    """A vector of pixels gives the batches that the same pixels give as an image of one pixel."""
    pixel = torch.randint(0, 256, (40, 3, 1, 1), generator=seeded(2), dtype=torch.uint8)
    label = torch.arange(40) % 2
    image = TensorData(pixel, label, ["a", "b"], num_labels_per_class=2)
    vector = VectorData(pixel.flatten(1) / 255, label, ["a", "b"], num_labels_per_class=2)
    for data in (image, vector):
        data.setup()
    assert image.split.labeled.equal(vector.split.labeled)
    torch.testing.assert_close(image.mean, vector.mean)
    one, other = (next(iter(data.pool_dataloader())) for data in (image, vector))
    torch.testing.assert_close(one["image"].float() / 255, other["image"])


def test_embeddings_of_a_file(tmp_path: Path) -> None:
    z = torch.randn(30, 5, generator=seeded(3))
    items = [f"{i}.png" for i in range(30)]
    EmbeddedItems(z, items, "image", str(tmp_path)).save(tmp_path / "photos.safetensors")
    rows = "".join(f"{i}.png,{'cat' if i % 3 else 'dog'}\n" for i in range(24))
    (tmp_path / "labels.csv").write_text("file,label\n" + rows)
    data = EmbeddingData(
        str(tmp_path / "photos.safetensors"),
        str(tmp_path / "labels.csv"),
        test_fraction=0.25,
        val_fraction=0.125,
        num_labels_per_class=2,
    )
    data.setup()
    assert (data.name, data.kind, data.class_names, data.items) == ("photos", "image", ["cat", "dog"], items)
    split = data.split
    assert (len(split.labeled), len(split.val), len(split.test), len(split.unlabeled)) == (4, 3, 6, 17)
    assert data.evaluator.label(split.test).tolist().count(1) == 2  # a third, as of all
    assert data.images.fetch(torch.arange(30)).flatten(1).equal(z)
