import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lspread.data import FolderImages, TensorImages
from lspread.data.images import ImageRows, Images
from lspread.data.module import keep_batch
from lspread.data.vector_data import FeatureRows
from lspread.errors import ConfigError, DataError


def random_image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def broken_files(tmp_path: Path) -> list[Path]:
    good = tmp_path / "good.png"
    Image.fromarray(random_image(64, 64)).save(good)
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:1500])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.gif").write_text("this is no image")
    return [good, tmp_path / "cut.png", tmp_path / "empty.jpg", tmp_path / "text.gif", tmp_path / "gone.png"]


@pytest.mark.parametrize("how", ["load", "check", "fetch"])
def test_unreadable_files_are_all_collected(tmp_path: Path, how: str) -> None:
    images = FolderImages(broken_files(tmp_path), 8, 3, num_threads=2)
    with pytest.raises(DataError, match=r"4 of 5 image files cannot be read. Repair or remove them:") as caught:
        images.fetch(torch.arange(5)) if how == "fetch" else getattr(images, how)()
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 4
    assert re.search(r"cut\.png: .*truncated", lines[0])
    assert lines[1].endswith("empty.jpg: the file is empty")
    assert lines[2].endswith("text.gif: its content is not a known image format")
    assert lines[3].endswith("gone.png: there is no such file")


def test_readable_ones_come_back_without_the_others(tmp_path: Path) -> None:
    array = random_image(4, 6, 6)
    for number in range(4):
        Image.fromarray(array[number]).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"")
    images = FolderImages([tmp_path / f"{number}.png" for number in range(4)], 6, 1)
    image, rows, failures = images.fetch_readable(torch.tensor([3, 1, 0]))
    assert rows.tolist() == [3, 0]
    np.testing.assert_array_equal(image[:, 0], array[[3, 0]])
    assert failures == [(tmp_path / "1.png", "the file is empty")]
    image, rows, failures = images.fetch_readable(torch.tensor([1]))
    assert (image.shape, rows.tolist(), len(failures)) == ((0, 1, 6, 6), [], 1)


def test_many_unreadable_files_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"9 of 9 image files(.|\n)*and 4 more$"):
        FolderImages([tmp_path / f"{i}.png" for i in range(9)], 8, 1).load()


def test_folder_and_tensor_give_the_same(tmp_path: Path) -> None:
    paths = []
    for i in range(7):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(paths[-1])
    files = FolderImages(paths, 5, 3)
    memory = files.load()
    index = torch.tensor([4, 0, 4])
    assert files.image_shape == memory.image_shape == (3, 5, 5)
    assert files.fetch(index).equal(memory.image[index])
    pixel = memory.image.numpy().astype(np.int64)
    expected = np.stack([pixel.sum((2, 3)), (pixel**2).sum((2, 3))], -1)
    np.testing.assert_array_equal(files.moments(torch.arange(7)), expected)
    np.testing.assert_array_equal(memory.moments(index), expected[index])
    assert FolderImages(paths, 5, 3).moments(index).equal(memory.moments(index))


@pytest.mark.parametrize("kind", ["uint8", "uint16", "vectors"])
def test_fingerprints_know_every_value_and_the_order(kind: str) -> None:
    if kind == "vectors":
        values = torch.from_numpy(np.random.default_rng(0).normal(size=(2000, 3))).float()
        make: Callable[[torch.Tensor], Images] = FeatureRows
    else:
        values = torch.from_numpy(random_image(2000, 1, 3, 3)).to(getattr(torch, kind))
        make = TensorImages
    rows = torch.arange(1, 2000)
    found = make(values).fingerprint(rows)
    assert make(values.clone()).fingerprint(rows) == found
    other = values.clone()
    other[0] = other[1]
    assert make(other).fingerprint(rows) == found  # row 0 is not among them
    flat = other[1999].view(-1)
    flat[-1] = 77
    assert make(other).fingerprint(rows) != found
    assert make(values).fingerprint(rows.flip(0)) != found
    assert make(values).fingerprint(rows[:-1]) != found
    if kind != "vectors":
        assert make(values.view(2000, 3, 3, 1)).fingerprint(rows) != found


def test_fingerprints_of_files(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        Image.fromarray(random_image(9, 9)).save(path)
    rows = torch.arange(2)
    found = FolderImages(paths, 5, 3).fingerprint(rows)
    assert FolderImages(paths, 5, 3).fingerprint(rows) == found
    others = [FolderImages(paths, 6, 3), FolderImages(paths, 5, 1), FolderImages(paths[::-1], 5, 3)]
    others.append(FolderImages(paths, 5, 3, window=(0.0, 100.0)))
    hashes = {found, *(images.fingerprint(rows) for images in others)}
    assert len(hashes) == 5
    stat = paths[1].stat()
    os.utime(paths[1], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert FolderImages(paths, 5, 3).fingerprint(rows) not in hashes
    assert FolderImages(paths, 5, 3).fingerprint(rows[:1]) != found


class CountingImages(TensorImages):
    calls: int = 0

    def fetch(self, index: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().fetch(index)

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        raise AssertionError("a batch must not be fetched item by item")


def test_loader_fetches_each_batch_once() -> None:
    image = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1)
    images = CountingImages(image)
    rows = torch.tensor([9, 1, 5, 3, 2])
    loader = DataLoader(ImageRows(images, rows), batch_size=2, collate_fn=keep_batch)
    batches = list(loader)
    assert images.calls == len(batches) == 3
    assert torch.cat([batch["index"] for batch in batches]).equal(rows)
    assert torch.cat([batch["image"] for batch in batches]).flatten().tolist() == rows.tolist()


def test_single_items_and_worker_processes() -> None:
    images = TensorImages(torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1))
    assert int(images[4]["image"]) == int(images[4]["index"]) == 4
    assert int(images[-1]["index"]) == 5
    with pytest.raises(IndexError):
        images[6]
    rows = ImageRows(images, torch.tensor([3, 0]))
    assert int(rows[0]["index"]) == 3
    loaded = DataLoader(rows, batch_size=2, collate_fn=keep_batch, num_workers=1)
    assert next(iter(loaded))["image"].flatten().tolist() == [3, 0]


def test_errors() -> None:
    with pytest.raises(DataError, match=r"needs? shape \(n,ch,h,w\) and dtype uint8 .* got shape \(2, 8, 8\), dtype"):
        TensorImages(torch.zeros(2, 8, 8))
    with pytest.raises(ConfigError, match=r"in_channels must be 1 \(grey\) or 3 \(color\), but is 4"):
        FolderImages([], 8, 4)
    with pytest.raises(ConfigError, match="image_size must be at least 1 pixel, but is 0"):
        FolderImages([], 0, 3)
