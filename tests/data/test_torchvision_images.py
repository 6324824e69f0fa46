"""Tiny files in the layouts that torchvision reads; only its check sums are left out."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat
from torchvision.datasets import cifar, stl10, svhn

from lspread.data import TorchvisionImages
from lspread.errors import ConfigError, DataError


def exists(path: str | Path, md5: str | None = None) -> bool:
    return Path(path).is_file()


@pytest.fixture(autouse=True)
def _no_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LSPREAD_DATA", raising=False)
    for module in (cifar, stl10, svhn):
        monkeypatch.setattr(module, "check_integrity", exists)


def pixels(n: int, size: int, start: int = 0) -> np.ndarray:
    """Return images (n, 3, size, size) whose value is their number, plus 100 in green and 200 in the last column."""
    image = np.zeros((n, 3, size, size), dtype=np.uint8)
    image += (start + np.arange(n, dtype=np.uint8))[:, None, None, None]
    image[:, 1] += 100
    image[:, 2, :, -1] += 20
    return image


def write_cifar(root: Path, name: str) -> None:
    num_classes = 10 if name == "cifar10" else 100
    source = cifar.CIFAR10 if name == "cifar10" else cifar.CIFAR100
    folder = root / source.base_folder
    folder.mkdir(parents=True)
    key = "labels" if name == "cifar10" else "fine_labels"
    per_file = 20 if name == "cifar10" else 200
    for number, (file, _) in enumerate([*source.train_list, *source.test_list]):
        label = [(i + number) % num_classes for i in range(per_file)]
        content = {"data": pixels(per_file, 32).reshape(per_file, -1), key: label}
        (folder / file).write_bytes(pickle.dumps(content))
    names = TorchvisionImages(name, str(root)).class_names
    (folder / source.meta["filename"]).write_bytes(pickle.dumps({source.meta["key"]: names}))


def write_svhn(root: Path) -> None:
    for part, n in (("train", 30), ("test", 20)):
        label = np.arange(n) % 10
        label[label == 0] = 10  # as the published files have it
        savemat(root / f"{part}_32x32.mat", {"X": pixels(n, 32).transpose(2, 3, 1, 0), "y": label[:, None]})


def write_stl10(root: Path) -> None:
    folder = root / "stl10_binary"
    folder.mkdir()
    for part, n in (("train", 20), ("unlabeled", 15), ("test", 10)):
        (folder / f"{part}_X.bin").write_bytes(pixels(n, 96).transpose(0, 1, 3, 2).tobytes())
        if part != "unlabeled":
            (folder / f"{part}_y.bin").write_bytes((np.arange(n, dtype=np.uint8) % 10 + 1).tobytes())
    (folder / "class_names.txt").write_text("\n".join(TorchvisionImages("stl10", str(root)).class_names) + "\n")


def write(name: str, root: Path) -> None:
    if name == "svhn":
        write_svhn(root)
    elif name == "stl10":
        write_stl10(root)
    else:
        write_cifar(root, name)


@pytest.mark.parametrize(
    ("name", "num_train", "num_test", "size"),
    [("cifar10", 100, 20, 32), ("cifar100", 200, 200, 32), ("svhn", 30, 20, 32), ("stl10", 35, 10, 96)],
)
def test_parts_pixels_and_labels(name: Any, num_train: int, num_test: int, size: int, tmp_path: Path) -> None:
    write(name, tmp_path)
    data = TorchvisionImages(name, str(tmp_path), num_labels_per_class=1)
    data.setup()
    assert data.image_shape == (3, size, size)
    assert data.split.pool.tolist() == list(range(num_train))
    assert data.split.test.tolist() == list(range(num_train, num_train + num_test))
    assert data.split.labeled.numel() == data.num_classes
    first = data.images.fetch(torch.tensor([3, num_train + 4]))
    assert torch.equal(first, torch.from_numpy(np.concatenate([pixels(1, size, 3), pixels(1, size, 4)])))
    truth = data.evaluator.label(torch.tensor([0, 3, num_train + 2]))
    # Batch files of CIFAR are shifted against each other by one class each.
    shift = {"cifar10": 5, "cifar100": 1}.get(name, 0)
    assert truth.tolist() == [0, 3, 2 + shift]
    if name == "stl10":
        assert (data.evaluator.label(torch.arange(20, 35)) == -1).all()
        assert data.split.labeled.max() < 20


def test_a_hundred_classes_have_a_hundred_names() -> None:
    names = TorchvisionImages("cifar100", "somewhere").class_names
    assert len(set(names)) == len(names) == 100
    assert names == sorted(names)


def test_missing_files_say_where_they_were_looked_for(tmp_path: Path) -> None:
    data = TorchvisionImages("svhn", str(tmp_path))
    with pytest.raises(DataError, match=rf"svhn: torchvision finds no whole copy.* in {tmp_path}.*download=T"):
        data.setup()


def test_other_class_names_are_refused(tmp_path: Path) -> None:
    write("stl10", tmp_path)
    (tmp_path / "stl10_binary" / "class_names.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match=r"other classes than the published data: \['cat', 'dog'\]"):
        TorchvisionImages("stl10", str(tmp_path)).setup()


def test_bad_options() -> None:
    with pytest.raises(ConfigError, match="dataset must be one of"):
        TorchvisionImages("mnist", "x")
    with pytest.raises(ConfigError, match=r"needs the folder of its files: give root="):
        TorchvisionImages("svhn")


def test_folder_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSPREAD_DATA", str(tmp_path))
    assert TorchvisionImages("svhn").root == tmp_path
