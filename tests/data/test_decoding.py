import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.transforms import v2

from lspread.data import FolderImages, ImageFolder, decode_image
from lspread.data.decoding import check_window, is_deep
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


@pytest.mark.parametrize("pixel", [GREY, RAMP], ids=["8_bits", "16_bits"])
def test_tiffs_whose_smallest_value_is_white(tmp_path: Path, pixel: np.ndarray) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(pixel).save(path)
    file = bytearray(path.read_bytes())
    entry = file.find(struct.pack("<HHI", 262, 3, 1))  # PhotometricInterpretation, one SHORT
    assert file[entry + 8] == 1
    file[entry + 8] = 0
    path.write_bytes(file)
    np.testing.assert_array_equal(decode_image(path, 16, 1)[0], 255 - GREY)
    if pixel is RAMP:
        np.testing.assert_array_equal(decode_image(path, 16, 1, window="image")[0], 255 - GREY)
        expected = np.rint((2 * (255.0 - GREY)).clip(0, 255))
        np.testing.assert_array_equal(decode_image(path, 16, 1, window=(0, 32767.5))[0], expected)


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


cannot_read_its_own = pytest.mark.xfail(
    PIL.__version__ < "12", reason="Pillow 10 and 11 cannot read the YCbCr they write"
)


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", pytest.param("YCbCr", marks=cannot_read_its_own)])
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


def write_low_byte_digits(folder: Path, num: int = 40) -> np.ndarray:
    """Write real digits as 16-bit PNG and TIFF files that differ in the low byte only; return their pixels."""
    pixels = (0x7C00 + load_digits().images[:num] * 15).astype(np.uint16)
    assert len(np.unique(pixels >> 8)) == 1
    for number, pixel in enumerate(pixels):
        Image.fromarray(pixel).save(folder / f"{number:03d}.{'tif' if number % 2 else 'png'}")
    return pixels


def test_digits_in_the_low_byte_are_not_lost(tmp_path: Path) -> None:
    pixels = write_low_byte_digits(tmp_path)
    paths = sorted(tmp_path.iterdir())
    files = FolderImages(paths, 8, 1)
    found = files.fetch(torch.arange(40))
    assert (found.dtype, files.full_scale) == (torch.float32, 65535)
    np.testing.assert_allclose(found[:, 0].numpy(), pixels / 65535, rtol=1e-6)
    # 8 bits would tell nothing.
    assert decode_image(paths[0], 8, 1).unique().numel() == 1
    memory = files.load()
    assert memory.image.dtype == torch.uint16
    assert memory.fetch(torch.tensor([7, 3])).equal(found[[7, 3]])
    values = pixels.astype(np.int64).reshape(40, -1)
    np.testing.assert_array_equal(
        memory.moments(torch.arange(40))[:, 0], np.stack([values.sum(1), (values**2).sum(1)], 1)
    )
    assert files.moments(torch.tensor([5])).equal(memory.moments(torch.tensor([5])))


@pytest.mark.parametrize("cache_gib", [0.0, 4.0])
def test_the_network_sees_the_low_byte(tmp_path: Path, cache_gib: float) -> None:
    pixels = write_low_byte_digits(tmp_path)
    (tmp_path / "labels.csv").write_text("file,label\n000.png,0\n001.tif,1\n")
    data = ImageFolder(str(tmp_path), image_size=8, in_channels=1, cache_gib=cache_gib)
    data.setup()
    np.testing.assert_allclose([data.mean[0], data.std[0]], [pixels.mean() / 65535, pixels.std() / 65535], rtol=1e-6)
    image = next(iter(data.predict_dataloader()))["image"]
    seen = (image - torch.tensor(data.mean)) / torch.tensor(data.std)
    expected = (pixels - pixels.mean()) / pixels.std()
    np.testing.assert_allclose(seen[:, 0].numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("window", ["image", (0x7C00, 0x7CF0)])
def test_a_window_says_what_is_black_and_white(tmp_path: Path, window: Any) -> None:
    pixels = write_low_byte_digits(tmp_path, 4).astype(np.float64)
    low = pixels.min((1, 2)) if window == "image" else np.full(4, 0x7C00)
    high = pixels.max((1, 2)) if window == "image" else np.full(4, 0x7CF0)
    expected = (pixels - low[:, None, None]) / (high - low)[:, None, None]
    found = FolderImages(sorted(tmp_path.iterdir()), 8, 1, window=window).fetch(torch.arange(4))
    np.testing.assert_allclose(found[:, 0].numpy(), expected, atol=1 / 65535)
    bytes_ = decode_image(tmp_path / "000.png", 8, 1, window=window)[0]
    np.testing.assert_array_equal(bytes_, np.rint(expected[0] * 255))


def test_values_beyond_a_window_are_clipped_and_one_value_is_black(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[100, 1000], [2000, 9000]], dtype=np.uint16)).save(path)
    found = decode_image(path, 2, 1, dtype=torch.uint16, window=(1000, 3000))[0]
    assert found.tolist() == [[0, 0], [32768, 65535]]
    Image.fromarray(np.full((2, 2), 700, dtype=np.uint16)).save(path)
    assert decode_image(path, 2, 1, window="image").eq(0).all()
    Image.fromarray(np.array([[-5e3, 0], [5e3, 1e4]], dtype=np.float32)).save(path)
    assert decode_image(path, 2, 1, window=(-5000, 5000))[0].tolist() == [[0, 128], [255, 255]]
    Image.fromarray(np.array([[np.nan, 0], [1, 1]], dtype=np.float32)).save(path)
    with pytest.raises(DataError, match="NaN or infinity"):
        decode_image(path, 2, 1, window="image")


def test_files_of_8_bits_mean_the_same_beside_deep_ones(tmp_path: Path) -> None:
    array = random_image(20, 20, 3)
    for name in ("a.png", "b.png"):
        Image.fromarray(array).save(tmp_path / name)
    shallow = FolderImages([tmp_path / "a.png"], 9, 3)
    Image.fromarray(RAMP).save(tmp_path / "c.png")
    mixed = FolderImages([tmp_path / name for name in ("b.png", "c.png")], 9, 3)
    assert (shallow.dtype, mixed.dtype) == (torch.uint8, torch.uint16)
    one = torch.tensor([0])
    torch.testing.assert_close(mixed.fetch(one), shallow.fetch(one).float() / 255)


def test_which_files_are_deep(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    Image.fromarray(GREY).save(tmp_path / "b.png")
    Image.fromarray(GREY).save(tmp_path / "c.jpg")
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "d.tif")
    (tmp_path / "e.png").write_text("no image")
    assert [path.name for path in sorted(tmp_path.iterdir()) if is_deep(path)] == ["a.png", "d.tif"]


@pytest.mark.parametrize("window", ["whole", (3.0, 3.0), (1.0, 2.0, 3.0)])
def test_what_is_no_window(window: Any) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"[darkest, brightest]; got {window!r}")):
        check_window(window)
    with pytest.raises(ConfigError, match="window must be"):
        FolderImages([], 8, 1, window=window)
