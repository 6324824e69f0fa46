import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import avg_pool2d, interpolate
from torchvision.transforms import v2

from lspread.data import PerImage, RandomAffine, RandomColor, RandomErase, StrongAugmentation, WeakAugmentation
from lspread.errors import ConfigError, DataError
from tests.test_fake_cuda import needs_slices

EVERY = [
    WeakAugmentation(),
    StrongAugmentation(saturation=0.4),
    RandomAffine(shift=0.1, rotate=30, scale=(0.5, 2.0), shear=20, flip=0.5, padding="reflection"),
    RandomColor(0.5, 0.5, 0.5),
    RandomErase(),
    RandomErase(fill=0.0),
]


def name(module: torch.nn.Module) -> str:
    return type(module).__name__


def images(m: int = 6, channels: int = 3, height: int = 12, width: int = 16) -> Tensor:
    return torch.rand(m, channels, height, width, generator=torch.Generator().manual_seed(1))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fix_draw(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Make the next draws of shape (r, m, ...) the given values, the same for each image; the middle beyond them."""

    def rand(*shape: int, **_: Any) -> Tensor:
        assert shape[0] >= len(values)
        padded = [*values, *[0.5] * (shape[0] - len(values))]
        return torch.tensor(padded).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)

    monkeypatch.setattr(torch, "rand", rand)


@pytest.mark.parametrize("module", EVERY, ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_dtype_range_and_seed(module: torch.nn.Module, dtype: torch.dtype) -> None:
    image = images().to(dtype)
    before = image.clone()
    out = module(image, seeded())
    assert image.equal(before)
    assert out.shape == image.shape
    assert out.dtype == dtype
    assert out.min() >= 0
    assert out.max() <= 1 + 1e-6
    assert out.equal(module(image, seeded()))
    assert not out.equal(module(image, seeded(1)))
    torch.manual_seed(3)
    out = module(image)
    torch.manual_seed(3)
    assert out.equal(module(image))


@pytest.mark.parametrize("module", EVERY, ids=name)
def test_each_image_gets_its_own_draw(module: torch.nn.Module) -> None:
    same = images(1).expand(64, -1, -1, -1)
    assert module(same, seeded()).flatten(1).unique(dim=0).shape[0] > 10


@pytest.mark.parametrize("module", EVERY, ids=name)
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=needs_slices), "cpu"])
def test_nothing_leaves_the_device(module: torch.nn.Module, device: str) -> None:
    # Fake tensors refuse what needs their values on the host, and what mixes devices.
    with FakeTensorMode():
        image = torch.empty(4, 3, 8, 8, device=device)
        out = module(image)
    assert out.device.type == device
    assert out.shape == image.shape


def test_options_of_zero_change_nothing() -> None:
    image = images()
    torch.testing.assert_close(RandomAffine()(image, seeded()), image)
    torch.testing.assert_close(RandomColor()(image, seeded()), image)
    assert RandomErase(probability=0.0)(image, seeded()).equal(image)


@pytest.mark.parametrize("size", [4, 13])
def test_results_of_another_size_are_resampled(size: int) -> None:
    image = images(3, 2, 8, 8)
    out = RandomAffine(size=size, padding="border")(image)
    torch.testing.assert_close(out, interpolate(image, size=size, mode="bilinear"))
    strong = StrongAugmentation(size=size)(image, seeded())
    assert strong.shape == (3, 2, size, size)


def test_a_smaller_result_shows_the_same_cut_out() -> None:
    # A smooth picture, so that both resamplings see the same.
    place = torch.linspace(-1, 1, 64)
    image = (0.5 + 0.4 * torch.sin(2 * place)[:, None] * torch.cos(3 * place)).expand(5, 1, 64, 64)
    options = {"crop": (0.3, 0.6), "aspect": 0.7, "rotate": 30.0, "shear": 10.0, "padding": "border"}
    whole = RandomAffine(**options)(image, seeded())
    half = RandomAffine(**options, size=32)(image, seeded())
    torch.testing.assert_close(half, avg_pool2d(whole, 2), atol=5e-3, rtol=0)


def test_flip_is_a_mirror_and_comes_as_often_as_asked() -> None:
    image = images(1).expand(2000, -1, -1, -1)
    out = RandomAffine(flip=0.3)(image, seeded())
    is_mirror = (out - image.flip(-1)).abs().amax((1, 2, 3)) < 1e-4
    is_same = (out - image).abs().amax((1, 2, 3)) < 1e-4
    assert (is_mirror ^ is_same).all()
    assert abs(int(is_mirror.sum()) - 600) < 4.5 * math.sqrt(2000 * 0.3 * 0.7)


def test_shift_by_whole_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    image = images(2, 1, 8, 16)
    fix_draw(monkeypatch, 1.0, 0.0, 0.5, 0.5, 0.5, 1.0)
    out = RandomAffine(shift=0.25)(image)  # 4 of 16 columns one way, 2 of 8 rows the other
    expected = torch.zeros_like(image)
    expected[:, :, 2:, :-4] = image[:, :, :-2, 4:]
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("options", [(35.0, 1.0, 0.0), (0.0, 1.6, 0.0), (0.0, 1.0, 25.0), (-20.0, 0.7, -15.0)])
@pytest.mark.parametrize("shape", [(15, 15), (12, 20)])
@pytest.mark.parametrize("is_flipped", [False, True])
def test_geometry_against_scipy(
    monkeypatch: pytest.MonkeyPatch, options: tuple[float, float, float], shape: tuple[int, int], is_flipped: bool
) -> None:
    angle, scale, shear = options
    image = images(1, 1, *shape).double()
    monkeypatch.setattr(
        torch, "rand", lambda *_, **__: torch.tensor([0.5, 0.5, 1.0, 1.0, 1.0, 0.0] + [0.5] * 4).double()[:, None]
    )
    module = RandomAffine(
        rotate=abs(angle), scale=(scale, scale), shear=abs(shear), flip=1.0 if is_flipped else 0.0, padding="zeros"
    )
    # A negative angle is the largest draw with a negative limit.
    module.rotate, module.shear = angle, shear
    out = module(image)
    a, t = math.radians(angle), math.tan(math.radians(shear))
    rotation = np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    mirror = np.diag([-1.0 if is_flipped else 1.0, 1.0])
    xy = rotation @ np.array([[1, t], [0, 1]]) @ mirror / scale  # place in the result -> place in the source, (x, y)
    rows_columns = xy[::-1, ::-1]
    center = (np.array(shape) - 1) / 2
    expected = ndimage.affine_transform(
        image[0, 0].numpy(), rows_columns, center - rows_columns @ center, order=1, mode="grid-constant", cval=0.0
    )
    np.testing.assert_allclose(out[0, 0], expected, atol=1e-6)


def test_scale_is_uniform_in_its_logarithm() -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 65), torch.linspace(-1, 1, 65), indexing="ij")
    disc = ((x.square() + y.square()) < 0.16).float().expand(400, 1, -1, -1)
    out = RandomAffine(scale=(0.5, 2.0))(disc, seeded())
    area = out.sum((1, 2, 3)) / disc[0].sum()
    log_scale = area.log2() / 2
    assert log_scale.min() >= -1.1
    assert log_scale.max() <= 1.1
    # uniform on [-1, 1]: mean 0 with standard error 0.029, variance 1/3
    assert abs(float(log_scale.mean())) < 4.5 * 0.029
    assert float(log_scale.var()) == pytest.approx(1 / 3, abs=0.06)


@pytest.mark.parametrize(("padding", "expected"), [("zeros", 0.0), ("border", 0.9), ("reflection", 0.1)])
def test_padding(monkeypatch: pytest.MonkeyPatch, padding: Any, expected: float) -> None:
    image = torch.full((1, 1, 4, 4), 0.1)
    image[..., -1] = 0.9
    fix_draw(monkeypatch, 1.0, 0.5, 0.5, 0.5, 0.5, 1.0)
    out = RandomAffine(shift=0.5, padding=padding)(image)  # two columns from the right come in
    assert out[0, 0, 0, -1].item() == pytest.approx(expected, abs=1e-6)


def test_color_against_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    image = images()
    fix_draw(monkeypatch, 0.9, 0.5, 0.5)
    expected = v2.functional.adjust_brightness(image, 1.4)
    torch.testing.assert_close(RandomColor(brightness=0.5)(image), expected)
    grey = image[:, :1]
    fix_draw(monkeypatch, 0.5, 0.1, 0.5)
    expected = v2.functional.adjust_contrast(grey, 0.6)
    torch.testing.assert_close(RandomColor(contrast=0.5, saturation=1.0)(grey), expected)
    fix_draw(monkeypatch, 0.5, 0.5, 0.0)
    out = RandomColor(saturation=1.0)(image)
    torch.testing.assert_close(out, image.mean(1, keepdim=True).expand_as(image))


def test_erase_paints_one_box(monkeypatch: pytest.MonkeyPatch) -> None:
    image = images(3, 2, 10, 20)
    fix_draw(monkeypatch, 0.5, 1.0, 0.25, 0.0, 0.0)  # center row, largest height, quarter column, smallest width
    module = RandomErase(probability=1.0, size=(0.2, 0.6))
    expected = image.clone()
    expected[:, :, 2:8, 3:7] = image.mean((2, 3), keepdim=True)
    torch.testing.assert_close(module(image), expected)
    module.fill = 0.25
    expected[:, :, 2:8, 3:7] = 0.25
    torch.testing.assert_close(module(image), expected)


def test_erase_comes_as_often_as_asked() -> None:
    image = images(1).expand(2000, -1, -1, -1)
    out = RandomErase(probability=0.7, size=(0.3, 0.5), fill=2.0)(image, seeded())
    count = int((out != image).flatten(1).any(1).sum())
    assert abs(count - 1400) < 4.5 * math.sqrt(2000 * 0.7 * 0.3)


def test_per_image() -> None:
    image = images()
    module = PerImage(v2.RandomHorizontalFlip(0.5))
    state = torch.random.get_rng_state()
    out = module(image, seeded())
    assert torch.random.get_rng_state().equal(state)
    assert out.equal(module(image, seeded()))
    flipped = [one.equal(other.flip(-1)) for one, other in zip(out, image, strict=True)]
    kept = [one.equal(other) for one, other in zip(out, image, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    many = module(images(1).expand(64, -1, -1, -1))
    assert many.flatten(1).unique(dim=0).shape[0] == 2
    assert PerImage(v2.CenterCrop(4))(image).shape == (6, 3, 4, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomAffine(shift=1.5), "shift must be 0 to 1, but is 1.5"),
        (lambda: RandomAffine(rotate=-1), "rotate must be 0 to 180, but is -1"),
        (lambda: RandomAffine(shear=90), "shear must be 0 to 89"),
        (lambda: RandomAffine(flip=2), "flip must be 0 to 1"),
        (lambda: RandomAffine(size=0), "size must be at least 1 pixel, or None to keep the image's, but is 0"),
        (
            lambda: RandomAffine(scale=(0, 1)),
            r"scale must be two numbers with 0 < smallest <= largest, but is \(0, 1\)",
        ),
        (lambda: RandomAffine(padding="wrap"), "padding must be 'zeros', 'border' or 'reflection', but is 'wrap'"),
        (lambda: RandomColor(brightness=2), "brightness must be 0 to 1"),
        (lambda: RandomErase(size=(0.5, 0.2)), "size must be two numbers"),
        (lambda: StrongAugmentation(erase=-0.1), "probability must be 0 to 1, but is -0.1"),
        (lambda: WeakAugmentation(flip=float("nan")), "flip must be 0 to 1, but is nan"),
    ],
)
def test_options_are_checked(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("module", [*EVERY, PerImage(v2.RandomHorizontalFlip())], ids=name)
def test_wrong_images(module: torch.nn.Module) -> None:
    with pytest.raises(
        DataError, match=r"float images \(m,ch,h,w\) in \[0, 1\]; got shape .* dtype torch.uint8. Divide uint8"
    ):
        module(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(DataError, match=r"got shape \(1, 4, 4\)"):
        module(torch.zeros(1, 4, 4))


def test_crop_cuts_out_the_drawn_share_of_the_area() -> None:
    # A ramp of value x + 0.5 columns: the slope of the result is the share of the width that is seen.
    size = 64
    ramp = ((torch.arange(size) + 0.5) / size).expand(1, 1, size, size).repeat(200, 1, 1, 1)
    cut = RandomAffine(crop=(0.25, 0.5), aspect=0.8)(ramp, torch.Generator().manual_seed(0))
    share_x = (cut[:, 0, 32, 40] - cut[:, 0, 32, 24]) * size / 16
    cut = RandomAffine(crop=(0.25, 0.5), aspect=0.8)(ramp.transpose(2, 3), torch.Generator().manual_seed(0))
    share_y = (cut[:, 0, 40, 32] - cut[:, 0, 24, 32]) * size / 16
    area, ratio = share_x * share_y, share_x / share_y
    assert 0.25 - 1e-3 <= area.min() < 0.27
    assert 0.48 < area.max() <= 0.5 + 1e-3
    assert 0.8 - 1e-2 <= ratio.min() < 0.85
    assert 1.2 < ratio.max() <= 1.25 + 1e-2
    assert cut.min() > 0  # a cut-out never looks beyond the image


def test_crop_must_be_shares_of_the_area() -> None:
    with pytest.raises(ConfigError, match=r"crop must be two shares of the area.*\(0.0, 1.0\)"):
        RandomAffine(crop=(0.0, 1.0))
