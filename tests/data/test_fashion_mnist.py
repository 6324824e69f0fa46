import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from lspread.data import FashionMNIST
from lspread.data import fashion_mnist as module
from lspread.errors import ConfigError, DataError

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
needs_files = pytest.mark.skipif(
    not (DEBIAN / f"{NAMES[0]}.gz").is_file(),
    reason=f"needs Fashion-MNIST in {DEBIAN} (Debian package dataset-fashion-mnist)",
)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_small(root: Path, suffix: str = ".gz", num_train: int = 40, num_test: int = 20) -> None:
    """Write a small dataset; each image has the value of its place in its file."""
    for images, labels, n in ((NAMES[0], NAMES[1], num_train), (NAMES[2], NAMES[3], num_test)):
        write_idx(root / f"{images}{suffix}", np.broadcast_to(np.arange(n)[:, None, None], (n, 4, 4)))
        write_idx(root / f"{labels}{suffix}", np.arange(n) % 10)


@pytest.fixture(autouse=True)
def _no_outer_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LSPREAD_DATA", raising=False)


def ready(root: Path | None, **options: Any) -> FashionMNIST:
    data = FashionMNIST(None if root is None else str(root), **{"num_labels_per_class": 1, **options})
    data.setup()
    return data


@pytest.mark.parametrize(("layout", "suffix"), [(".", ".gz"), ("fashion-mnist", ""), ("FashionMNIST/raw", ".gz")])
@pytest.mark.parametrize("way", ["root", "environment"])
def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, suffix: str, way: str) -> None:
    write_small(tmp_path / layout, suffix)
    if way == "environment":
        monkeypatch.setenv("LSPREAD_DATA", str(tmp_path))
    data = ready(tmp_path if way == "root" else None)
    image = data.images.fetch(torch.arange(60))
    assert image[:, 0, 0, 0].tolist() == list(range(40)) + list(range(20))
    assert data.evaluator.label(torch.arange(60)).tolist() == [i % 10 for i in range(40)] + [i % 10 for i in range(20)]


def test_parts(tmp_path: Path) -> None:
    write_small(tmp_path)
    data = ready(tmp_path)
    assert data.split.test.tolist() == list(range(40, 60))
    assert data.split.pool.tolist() == list(range(40))
    assert (data.items[0], data.items[39], data.items[40]) == ("train-00000", "train-00039", "test-00000")
    transductive = ready(tmp_path, transductive=True)
    assert transductive.split.pool.tolist() == list(range(60))
    assert transductive.test_dataloader() == []
    assert transductive.split.labeled.equal(data.split.labeled)
    short = ready(tmp_path, num_train=15)
    assert short.split.pool.tolist() == list(range(15))
    assert short.split.test.tolist() == list(range(15, 35))
    assert short.images.fetch(torch.tensor([14, 15]))[:, 0, 0, 0].tolist() == [14, 0]
    held = ready(tmp_path, val_fraction=0.25)
    assert held.split.val.numel() == 10
    assert held.split.val.max() < 40
    assert ready(tmp_path, val_fraction=0.25, transductive=True).split.val.max() < 40


def test_ten_labels_per_class_unless_said_otherwise() -> None:
    assert FashionMNIST().num_labels_per_class == 10
    assert FashionMNIST(fraction=0.01).num_labels_per_class is None
    assert FashionMNIST().class_names[9] == "Ankle boot"
    assert FashionMNIST().class_names == torchvision.datasets.FashionMNIST.classes


def test_missing_files_say_where_they_were_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DEBIAN", tmp_path / "debian")
    monkeypatch.setenv("LSPREAD_DATA", str(tmp_path / "mine"))
    with pytest.raises(
        DataError, match=r"apt install dataset-fashion-mnist\).*\$LSPREAD_DATA, or set download=True"
    ) as caught:
        ready(None)
    for place in ("mine", "mine/fashion-mnist", "mine/FashionMNIST/raw", "debian"):
        assert f"\n  {tmp_path / place}\n" in str(caught.value)
    with pytest.raises(DataError) as caught:
        ready(tmp_path / "root")
    assert f"\n  {tmp_path / 'root'}\n" in str(caught.value)
    assert "debian\n" not in str(caught.value)


def test_download_only_when_asked_and_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def download(root: str, download: bool) -> None:
        assert download
        calls.append(root)
        write_small(Path(root) / "FashionMNIST" / "raw")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", download)
    FashionMNIST(str(tmp_path)).prepare_data()
    assert calls == []
    data = FashionMNIST(str(tmp_path), download=True, num_labels_per_class=1)
    data.prepare_data()
    data.prepare_data()
    assert calls == [str(tmp_path)]
    data.setup()
    assert len(data.items) == 60


def test_damaged_files_are_named(tmp_path: Path) -> None:
    write_small(tmp_path, suffix="")
    path = tmp_path / NAMES[2]
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    with pytest.raises(DataError, match=f"{path} is truncated: shape"):
        ready(tmp_path)
    path.write_bytes(content)
    write_idx(tmp_path / NAMES[1], np.arange(39) % 10)
    with pytest.raises(
        DataError, match=rf"{NAMES[1]} needs one label for each of the 40 images in .*got shape \(39,\)"
    ):
        ready(tmp_path)
    write_idx(tmp_path / NAMES[1], np.arange(40) % 12)
    with pytest.raises(DataError, match=f"{NAMES[1]} has label 10 for item 10, outside the classes 0 to 9"):
        ready(tmp_path)
    write_idx(tmp_path / NAMES[0], np.arange(40))
    with pytest.raises(DataError, match=rf"{NAMES[0]} needs images of shape \(n, h, w\); got \(40,\)"):
        ready(tmp_path)


def test_train_and_test_of_different_size(tmp_path: Path) -> None:
    write_small(tmp_path, suffix="")
    write_idx(tmp_path / NAMES[2], np.zeros((20, 5, 4)))
    with pytest.raises(DataError, match=r"images of \(4, 4\) pixels, .* of \(5, 4\); they need the same size"):
        ready(tmp_path)


@pytest.mark.parametrize("num_train", [0, 60_001])
def test_num_train_is_checked(num_train: int) -> None:
    with pytest.raises(ConfigError, match=f"num_train must be 1 to 60000, or null for all images; but is {num_train}"):
        FashionMNIST(num_train=num_train)


@needs_files
def test_the_real_files() -> None:
    data = FashionMNIST()
    data.setup()
    assert len(data.items) == len(data.images) == 70_000
    assert data.image_shape == (1, 28, 28)
    assert data.split.pool.equal(torch.arange(60_000))
    assert data.split.test.equal(torch.arange(60_000, 70_000))
    truth = data.evaluator.label(torch.arange(70_000))
    assert torch.bincount(truth[:60_000]).tolist() == [6000] * 10
    assert torch.bincount(truth[60_000:]).tolist() == [1000] * 10
    assert torch.bincount(truth[data.split.labeled]).tolist() == [10] * 10
    # The commonly published normalization of Fashion-MNIST.
    assert data.mean == pytest.approx((0.2860,), abs=5e-5)
    assert data.std == pytest.approx((0.3530,), abs=5e-5)
    assert len(data.train_dataloader()["pool"]) == 60_000 // 256
    raw = gzip.decompress((DEBIAN / f"{NAMES[2]}.gz").read_bytes())
    last = np.frombuffer(raw[-784:], dtype=np.uint8).reshape(28, 28)
    np.testing.assert_array_equal(data.images.fetch(torch.tensor([69_999]))[0, 0], last)
