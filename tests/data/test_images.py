import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from lspread.data import FolderImages, TensorImages, decode_image
from lspread.data.images import ImageRows
from lspread.data.module import keep_batch
from lspread.errors import ConfigError, DataError

RAMP = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # 16-bit values of the 8-bit values 0..255
GREY = (RAMP // 257).astype(np.uint8)


def random_image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "tif", "gif"])
def test_lossless_formats_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    array = np.repeat(GREY[:, :, None], 3, 2)
    path = tmp_path / f"a.{suffix}"
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(array).save(path, None, **options)
    np.testing.assert_array_equal(decode_image(path, 16, 3), array.transpose(2, 0, 1))
    np.testing.assert_array_equal(decode_image(path, 16, 1)[0], GREY)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif"):
        Image.fromarray(RAMP).save(tmp_path / name)
        np.testing.assert_array_equal(decode_image(tmp_path / name, 16, 1)[0], GREY)
        np.testing.assert_array_equal(decode_image(tmp_path / name, 16, 3), np.stack([GREY] * 3))
    between = np.random.default_rng(0).integers(0, 65536, (16, 16)).astype(np.uint16)
    Image.fromarray(between).save(tmp_path / "b.png")
    np.testing.assert_array_equal(decode_image(tmp_path / "b.png", 16, 1)[0], np.rint(between * (255 / 65535)))


def test_32_bit_tiffs(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(RAMP.astype(np.int32)).save(path)
    np.testing.assert_array_equal(decode_image(path, 16, 1)[0], GREY)
    Image.fromarray(GREY.astype(np.float32) / 255).save(path)
    np.testing.assert_array_equal(decode_image(path, 16, 1)[0], GREY)
    Image.fromarray(RAMP.astype(np.int32) * 100).save(path)
    with pytest.raises(DataError, match="32-bit values span 0 to 6553500; convert it to 8 or 16 bits"):
        decode_image(path, 16, 1)
    Image.fromarray(GREY.astype(np.float32)).save(path)
    with pytest.raises(DataError, match=r"float values span 0.0 to 255.0; convert it to 8 bits or scale"):
        decode_image(path, 16, 1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_put_on_white(tmp_path: Path, mode: str) -> None:
    alpha = np.zeros((4, 4), dtype=np.uint8)
    alpha[:2] = 255
    black = Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).convert("RGBA")
    black.putalpha(Image.fromarray(alpha))
    path = tmp_path / "a.png"
    (black.convert("LA") if mode == "LA" else black).save(path)
    if mode == "P":
        palette = Image.fromarray((alpha == 0).astype(np.uint8)).convert("P")
        palette.putpalette([0, 0, 0, 9, 9, 9])
        palette.save(path, transparency=1)
    expected = np.zeros((3, 4, 4))
    expected[:, 2:] = 255
    np.testing.assert_array_equal(decode_image(path, 4, 3), expected)


def test_half_transparent_color(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (200, 100, 0, 51)).save(tmp_path / "a.png")
    pixel = decode_image(tmp_path / "a.png", 4, 3)[:, 0, 0].tolist()
    assert pixel == [round(0.2 * value + 0.8 * 255) for value in (200, 100, 0)]


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(random_image(8, 8, 3)).convert(mode).save(path)
    with Image.open(path) as image:
        np.testing.assert_array_equal(decode_image(path, 8, 3).permute(1, 2, 0), np.array(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    array = random_image(6, 6)
    # What the camera stores, from the EXIF definition: the place of row 0 and column 0 of the stored image.
    stored = {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.T,
        6: np.rot90(array),
        7: array[::-1, ::-1].T,
        8: np.rot90(array, -1),
    }[orientation]
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png", 6, 1)[0], array)


@pytest.mark.parametrize("shape", [(48, 96), (96, 48), (100, 100)])
def test_resize_is_antialiased_and_centered_as_in_torchvision(tmp_path: Path, shape: tuple[int, int]) -> None:
    array = random_image(*shape, 3)
    Image.fromarray(array).save(tmp_path / "a.png")
    expected = v2.Compose([v2.Resize(16, antialias=True), v2.CenterCrop(16)])(torch.from_numpy(array).permute(2, 0, 1))
    found = decode_image(tmp_path / "a.png", 16, 3)
    # The border sees pixels beyond the crop in one order of work and not in the other.
    inner = (slice(None), slice(1, -1), slice(1, -1))
    assert (found[inner].int() - expected[inner].int()).abs().max() <= 2


def test_large_jpeg_shrunk_while_decoding_keeps_its_looks(tmp_path: Path) -> None:
    y, x = np.mgrid[:800, :800] / 800
    array = (127 + 120 * np.sin(9 * x) * np.cos(7 * y)).astype(np.uint8)
    Image.fromarray(array).save(tmp_path / "a.jpg", quality=95)
    expected = array.reshape(32, 25, 32, 25).mean((1, 3))
    assert np.abs(decode_image(tmp_path / "a.jpg", 32, 1)[0].numpy() - expected).max() < 4


def test_very_long_image(tmp_path: Path) -> None:
    Image.new("L", (5000, 2), 7).save(tmp_path / "a.png")
    assert decode_image(tmp_path / "a.png", 32, 1).unique().tolist() == [7]


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
