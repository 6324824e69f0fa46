from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lspread.data import MedMNIST
from lspread.errors import DataError

SIZES = {"train": 24, "val": 6, "test": 9}


def write(path: Path, *, color: bool = False, **changed: Any) -> str:
    arrays: dict[str, Any] = {}
    for part, n in SIZES.items():
        image = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None], (n, 8, 8))
        arrays[f"{part}_images"] = np.stack([image, image + 50, image + 100], -1) if color else image
        arrays[f"{part}_labels"] = np.arange(n, dtype=np.uint8)[:, None] % 3
    np.savez(path, **arrays | changed)
    return str(path)


@pytest.mark.parametrize("color", [False, True])
def test_parts_pixels_and_labels(color: bool, tmp_path: Path) -> None:
    data = MedMNIST(write(tmp_path / "bloodmnist.npz", color=color), num_labels_per_class=2)
    data.setup()
    assert (data.name, data.in_channels, data.image_shape) == (
        "bloodmnist",
        3 if color else 1,
        (3 if color else 1, 8, 8),
    )
    assert data.class_names == ["class-0", "class-1", "class-2"]
    split = data.split
    assert (split.pool.tolist(), split.val.tolist(), split.test.tolist()) == (
        list(range(24)),
        list(range(24, 30)),
        list(range(30, 39)),
    )
    assert data.images.fetch(torch.tensor([5, 26, 31]))[:, -1, 0, 0].tolist() == [
        value + (100 if color else 0) for value in (5, 2, 1)
    ]
    assert data.evaluator.label(torch.tensor([5, 26, 31])).tolist() == [2, 2, 1]
    assert data.items[26] == "val-000002"
    assert split.labeled.numel() == 6


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_labels": np.zeros((24, 14), dtype=np.uint8)}, "several labels per image"),
        ({"val_labels": np.zeros((6, 1), dtype=np.float32)}, "val_labels must hold one class per image"),
        ({"test_images": np.zeros((9, 8, 8, 8), dtype=np.uint8)}, "Volumes"),
        ({"train_images": np.zeros((23, 8, 8), dtype=np.uint8)}, "train_images must be 24 images"),
        ({"val_images": np.zeros((6, 8, 8), dtype=np.float32)}, "uint8"),
    ],
)
def test_other_contents_are_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "some.npz", **changed)
    with pytest.raises(DataError, match=message):
        MedMNIST(path).setup()


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.npz is not there"):
        MedMNIST(str(tmp_path / "gone.npz"))
    (tmp_path / "text.npz").write_text("nothing")
    with pytest.raises(DataError, match=r"is no file of MedMNIST's"):
        MedMNIST(str(tmp_path / "text.npz"))
    labels = {f"{part}_labels": np.zeros((n, 1), dtype=np.uint8) for part, n in SIZES.items()}
    np.savez(tmp_path / "labels.npz", **labels)
    with pytest.raises(DataError, match=r"train_images cannot be read"):
        MedMNIST(str(tmp_path / "labels.npz"))
    with pytest.raises(DataError, match="3 classes, but class_names has 2"):
        MedMNIST(write(tmp_path / "a.npz"), class_names=["a", "b"])
