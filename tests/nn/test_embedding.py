import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lspread.errors import ConfigError, DataError
from lspread.nn.embedding import embed
from lspread.nn.small_resnet import SmallResNet


class Items(Dataset):
    """Hold images as the datasets of `lspread.data` do: batches of images and their rows."""

    def __init__(self, image, rows=None):
        self.image = image
        self.rows = torch.arange(len(image)) if rows is None else rows

    def __len__(self):
        return len(self.image)

    def __getitem__(self, row):
        return {"image": self.image[row], "index": self.rows[row]}


@pytest.fixture
def image():
    return torch.randint(0, 256, (23, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network():
    torch.manual_seed(0)
    module = SmallResNet(1, (4, 6), stem_stride=1)
    module(torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1)))  # running statistics unlike the initial
    return module


@pytest.fixture
def expected(network, image):
    """Embed item by item, by hand."""
    network.eval()
    with torch.no_grad():
        z = torch.stack([network(one[None].to(torch.float64).div(255).float())[0] for one in image])
    network.train()
    return z


class TestRows:
    @pytest.mark.parametrize("batch_size", [1, 5, 23, 64])
    def test_row_i_is_item_i(self, network, image, expected, batch_size):
        z = embed(network, DataLoader(Items(image), batch_size=batch_size))
        torch.testing.assert_close(z, expected)
        assert z.dtype == torch.float32
        assert not z.requires_grad

    @pytest.mark.parametrize("form", ["tensor", "tuple", "list", "dict", "dataset"])
    def test_every_form_of_batch(self, network, image, expected, form):
        parts = image.split(7)
        loader = {
            "tensor": list(parts),
            "tuple": [(part, torch.zeros(len(part))) for part in parts],
            "list": [[part] for part in parts],
            "dict": [{"image": part} for part in parts],
            "dataset": DataLoader(TensorDataset(image), batch_size=7),
        }[form]
        torch.testing.assert_close(embed(network, loader), expected)

    def test_rows_of_a_part_of_the_dataset_may_have_gaps(self, network, image, expected):
        rows = torch.tensor([1, 4, 5, 9, 20])
        z = embed(network, DataLoader(Items(image[rows], rows), batch_size=2))
        torch.testing.assert_close(z, expected[rows])

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([0, 1, 3, 2, 4], "item 2 came after item 3"),
            ([0, 1, 1, 2, 3], "item 1 came after item 1"),
            ([5, 6, 0, 1, 2], "item 0 came after item 6"),
        ],
    )
    def test_another_order_is_refused(self, network, image, rows, message):
        with pytest.raises(DataError, match=f"{message}. Use a sequential loader"):
            embed(network, DataLoader(Items(image[:5], torch.tensor(rows)), batch_size=2))

    def test_a_shuffled_loader_is_refused(self, network, image):
        loader = DataLoader(Items(image), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0))
        with pytest.raises(DataError, match="sequential loader"):
            embed(network, loader)

    @pytest.mark.parametrize("index", [torch.arange(3), torch.zeros(4, 1), [0, 1, 2, 3]])
    def test_index_must_have_one_row_per_image(self, network, image, index):
        with pytest.raises(DataError, match=r"one row per image, \(4,\); got"):
            embed(network, [{"image": image[:4], "index": index}])


class TestModes:
    def test_every_module_gets_its_own_mode_back(self, network, image):
        network.stages[0].eval()  # frozen statistics in one part only
        network.stem_norm.eval()
        before = [module.training for module in network.modules()]
        assert {True, False} == set(before)
        state = {key: value.clone() for key, value in network.state_dict().items()}
        embed(network, [image])
        assert [module.training for module in network.modules()] == before
        for key, value in network.state_dict().items():
            torch.testing.assert_close(value, state[key], rtol=0, atol=0)

    def test_also_after_an_error(self, network, image):
        network.stages[1].eval()
        before = [module.training for module in network.modules()]
        with pytest.raises(DataError):
            embed(network, [image, "no images"])
        assert [module.training for module in network.modules()] == before

    def test_preprocess_modules_run_in_eval_mode_too(self, network, image, expected):
        dropout = nn.Dropout(0.5)
        torch.testing.assert_close(embed(network, [image], preprocess=dropout), expected)
        assert dropout.training

    def test_dropout_is_off(self, image):
        backbone = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
        torch.testing.assert_close(embed(backbone, [image]), image.flatten(1) / 255)


class TestAutograd:
    @pytest.mark.parametrize("is_inference", [False, True])
    def test_the_result_may_be_used_in_autograd(self, network, image, expected, is_inference):
        with torch.inference_mode(is_inference):
            z = embed(network, [image])
        assert not z.is_inference()
        weight = torch.ones(6, requires_grad=True)
        (z @ weight).sum().backward()
        torch.testing.assert_close(weight.grad, expected.sum(0))
        assert all(parameter.grad is None for parameter in network.parameters())
        assert torch.is_grad_enabled()

    def test_autocast_is_the_callers(self, network, image, expected):
        seen = []
        network.register_forward_hook(lambda _module, _args, out: seen.append(out.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            z = embed(network, [image])
        assert seen == [torch.bfloat16]
        assert z.dtype == torch.float32
        torch.testing.assert_close(z, expected, rtol=0.05, atol=0.05)


class TestImages:
    def test_uint8_is_scaled_before_preprocess_and_floats_are_not(self, image):
        seen = []

        def shift(part):
            seen.append(part)
            return part - 0.5

        z = embed(nn.Flatten(), [image, image.float()], preprocess=shift)
        assert [part.dtype for part in seen] == [torch.float32, torch.float32]
        torch.testing.assert_close(seen[0], image / 255)
        torch.testing.assert_close(z, torch.cat([image / 255 - 0.5, image.float() - 0.5]).flatten(1))

    def test_the_callers_images_stay_as_they_are(self, network, image):
        before = image.clone()
        embed(network, [image])
        assert torch.equal(image, before)

    def test_backbone_gets_channels_last(self):
        seen = []
        backbone = nn.Flatten()
        backbone.register_forward_pre_hook(lambda _module, args: seen.append(args[0].stride()))
        color = torch.rand(4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(embed(backbone, [color]), color.flatten(1))
        assert seen == [(90, 1, 18, 3)]

    def test_rows_of_a_table_pass_through_too(self):
        table = torch.rand(9, 4, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(embed(nn.Identity(), table.split(2)), table, rtol=0, atol=0)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_dtype_of_the_result(self, network, image, expected, dtype):
        z = embed(network, [image], dtype=dtype)
        assert z.dtype == dtype
        torch.testing.assert_close(z.float(), expected.to(dtype).float(), rtol=1e-2, atol=1e-4)

    def test_device_is_the_backbones_unless_given(self, network, image, expected):
        torch.testing.assert_close(embed(network, [image], device="cpu"), expected)
        assert embed(nn.Flatten(), [image]).device.type == "cpu"
        with pytest.raises(
            ConfigError, match=r"needs the backbone on device=meta; its weights are on cpu.*to\('meta'\)"
        ):
            embed(network, [image], device="meta")


class TestRefusals:
    @pytest.mark.parametrize("loader", [[], iter(()), DataLoader(TensorDataset(torch.zeros(0, 1, 8, 8)))])
    def test_empty_loader(self, network, loader):
        with pytest.raises(DataError, match="empty loader"):
            embed(network, loader)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_first_broken_embedding_is_named(self, value):
        table = torch.zeros(6, 2)
        table[3, 1] = table[5, 0] = value
        with pytest.raises(DataError, match=r"NaN or infinity in 2 of 6 embeddings; the first is row 3\."):
            embed(nn.Identity(), table.split(2))
        rows = torch.arange(6) * 10
        with pytest.raises(DataError, match="the first is row 3, item 30"):
            embed(nn.Identity(), DataLoader(Items(table, rows), batch_size=4))

    def test_overflow_of_the_result_dtype_counts_as_broken(self):
        with pytest.raises(DataError, match="row 0"):
            embed(nn.Identity(), [torch.full((2, 2), 1e6)], dtype=torch.float16)

    @pytest.mark.parametrize(
        ("batch", "message"),
        [
            ("text", "got a str"),
            ({"pixels": torch.zeros(2, 2)}, r"keys \['pixels'\]"),
            ((), "got a tuple"),
            (torch.zeros(2, 2, dtype=torch.int64), "int64"),
            (torch.zeros(2), r"\(2,\)"),
        ],
    )
    def test_other_batches(self, batch, message):
        with pytest.raises(DataError, match=message):
            embed(nn.Identity(), [batch])

    def test_a_tensor_is_no_loader(self, network, image):
        with pytest.raises(DataError, match="split"):
            embed(network, image)

    @pytest.mark.parametrize(
        "backbone", [nn.Identity(), nn.Flatten(0), nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1, -1)))]
    )
    def test_other_outputs(self, backbone, image):
        with pytest.raises(ConfigError, match=r"returns floating point embeddings \(5,d\) for 5 images; got"):
            embed(backbone, [image[:5].float()])

    def test_width_must_stay(self):
        with pytest.raises(ConfigError, match=r"\(2,3\) for 2 images; got torch.float32 \(2, 4\)"):
            embed(nn.Identity(), [torch.zeros(2, 3), torch.zeros(2, 4)])

    def test_dtype_must_be_floating(self, network, image):
        with pytest.raises(ConfigError, match=r"floating point dtype; got torch\.int64"):
            embed(network, [image], dtype=torch.int64)


class TestProgress:
    def test_the_bar_changes_nothing(self, network, image, expected, capsys):
        class Stream(IterableDataset):
            def __iter__(self):
                return iter(image)

        for loader in (DataLoader(Items(image), batch_size=4), DataLoader(Stream(), batch_size=4)):
            torch.testing.assert_close(embed(network, loader, progress=True), expected)
        assert "embed" in capsys.readouterr().out

    def test_rich_loads_only_when_asked_for(self):
        code = (
            "import sys, torch; from lspread.nn.embedding import embed;"
            "embed(torch.nn.Identity(), [torch.zeros(2, 2)]); print('rich.progress' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_images_come_in_the_dtype_of_the_weights(dtype):
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).to(dtype)
    image = torch.arange(48, dtype=torch.uint8).view(4, 3, 2, 2)
    z = embed(backbone, [image])
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, backbone(image.to(dtype) / 255).float(), rtol=2e-2, atol=2e-3)
