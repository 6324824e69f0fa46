import subprocess
import sys
import warnings

import pytest
import torch
from jsonargparse import ArgumentParser
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18

from lspread.errors import ConfigError, DataError
from lspread.nn.backbones import NamedBackbone, create_backbone
from lspread.nn.small_resnet import SmallResNet


def make_images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def randomize(network, seed=0):
    """Give every weight and statistic a value of its own, so that a wrong one shows."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in network.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(noise.abs() + 0.5 if key.endswith("running_var") else noise / max(value[0].numel(), 1) ** 0.5)
    return network.eval()


@pytest.fixture
def classifier():
    """Build a whole torchvision classifier with known random weights."""
    return randomize(resnet18(num_classes=5))


def embed_without_head(classifier, image):
    head, classifier.fc = classifier.fc, nn.Identity()
    z = classifier(image)
    classifier.fc = head
    return z


class TestSmallResNet:
    def test_equals_torchvision_resnet_with_a_small_stem(self):
        theirs = resnet18(num_classes=2)
        theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        theirs.maxpool = nn.Identity()
        theirs.fc = nn.Identity()
        randomize(theirs)
        ours = SmallResNet(3, (64, 128, 256, 512), blocks_per_stage=2, stem_stride=1).eval()
        values = list(theirs.state_dict().values())
        assert [v.shape for v in values] == [v.shape for v in ours.state_dict().values()]
        ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
        image = make_images(2, 3, 32, 32)
        torch.testing.assert_close(ours(image), theirs(image))

    @pytest.mark.parametrize(("size", "stem_stride"), [(8, 1), (28, 2), (28, 1), (32, 2), (17, 2)])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_an_item_does_not_depend_on_its_batch_and_has_a_gradient(self, size, stem_stride, channels):
        network = randomize(SmallResNet(channels, (8, 12), stem_stride=stem_stride))
        image = make_images(3, channels, size, size).requires_grad_()
        z = network(image)
        assert z.shape == (3, network.num_features) == (3, 12)
        torch.testing.assert_close(z, torch.cat([network(one[None]) for one in image]))
        z.square().sum().backward()
        assert (image.grad.flatten(1).norm(dim=1) > 0).all()

    def test_channels_last_changes_nothing(self):
        network = randomize(SmallResNet(3))
        image = make_images(2, 3, 32, 32)
        torch.testing.assert_close(network(image.contiguous(memory_format=torch.channels_last)), network(image))

    def test_stages_after_the_first_halve_the_size(self):
        network = SmallResNet(1, (4, 6, 8), stem_stride=1)
        sizes = []
        for stage in network.stages:
            stage.register_forward_hook(lambda _module, _args, out: sizes.append(tuple(out.shape[1:])))
        network(make_images(2, 1, 28, 28))
        assert sizes == [(4, 28, 28), (6, 14, 14), (8, 7, 7)]

    @pytest.mark.parametrize(
        "options", [{"widths": ()}, {"widths": (8, 0)}, {"stem_stride": 0}, {"blocks_per_stage": 0}, {"in_channels": 0}]
    )
    def test_refuses_numbers_below_one(self, options):
        with pytest.raises(ConfigError, match="only numbers >= 1"):
            SmallResNet(**options)

    @pytest.mark.parametrize(
        "image", [make_images(2, 3, 28, 28), make_images(1, 28, 28), torch.zeros(2, 1, 28, 28, dtype=torch.uint8)]
    )
    def test_refuses_other_images(self, image):
        with pytest.raises(DataError, match=r"needs floating point images \(m,1,h,w\); got shape"):
            SmallResNet(1)(image)


class TestNames:
    @pytest.mark.parametrize(
        ("name", "width"),
        [("torchvision/resnet18", 512), ("torchvision/mobilenet_v3_small", 1024), ("torchvision/convnext_tiny", 768)],
    )
    def test_torchvision_gives_what_its_last_layer_would_get(self, name, width):
        network = create_backbone(name).eval()
        z = network(make_images(2, 3, 64, 64))
        assert z.shape == (2, network.num_features) == (2, width)

    @pytest.mark.parametrize(
        ("name", "width"),
        [("timm/efficientnet_lite0", 1280), ("timm/mobilenetv3_small_050", 1024), ("timm/resnet10t", 512)],
    )
    def test_timm_gives_what_its_classifier_would_get(self, name, width):
        timm = pytest.importorskip("timm")
        theirs = randomize(timm.create_model(name.removeprefix("timm/"), num_classes=4))
        ours = create_backbone(name).eval()
        ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in ours.state_dict()})
        image = make_images(2, 3, 64, 64)
        expected = theirs.forward_head(theirs.forward_features(image), pre_logits=True)
        torch.testing.assert_close(ours(image), expected)
        assert ours.num_features == expected.shape[1] == width

    def test_small_resnet_takes_its_options(self):
        network = create_backbone("small_resnet", in_channels=2, widths=(8, 16), blocks_per_stage=2, stem_stride=1)
        twin = SmallResNet(2, (8, 16), blocks_per_stage=2, stem_stride=1)
        assert {k: v.shape for k, v in network.state_dict().items()} == {
            k: v.shape for k, v in twin.state_dict().items()
        }
        assert network.stem.stride == twin.stem.stride == (1, 1)

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("resnet18", {}, r"name must be small_resnet, torchvision/<model> or timm/<model>; got 'resnet18'"),
            ("torchvision/", {}, "name must be"),
            ("torchvision/resnet81", {}, "torchvision has no model 'resnet81'. Similar names: .*resnet"),
            ("torchvision/googlenet", {}, "does not end in one linear classifier"),
            ("torchvision/squeezenet1_0", {}, "does not end in one linear classifier"),
            ("torchvision/resnet18", {"stem_stride": 1}, "Only small_resnet has the options stem_stride"),
            ("small_resnet", {"in_channels": 0}, "in_channels >= 1; got 0"),
        ],
    )
    def test_refuses(self, name, options, message):
        with pytest.raises(ConfigError, match=message):
            create_backbone(name, **options)

    @pytest.mark.parametrize("model_name", ["efficientnet_light0", "hf-hub:timm/resnet18"])
    def test_timm_names_must_be_in_its_own_list(self, model_name):
        pytest.importorskip("timm")
        with pytest.raises(ConfigError, match="timm has no model"):
            create_backbone(f"timm/{model_name}")

    def test_timm_missing_says_which_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(ConfigError, match=r"lspread\[timm\]"):
            create_backbone("timm/resnet18")

    def test_torchvision_and_timm_load_only_when_asked_for(self):
        code = "import sys, lspread.nn.backbones; print([m for m in ('torchvision', 'timm') if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


class TestCheckpoint:
    @pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ".ckpt"])
    def test_every_format_gives_the_classifiers_own_embeddings(self, tmp_path, classifier, suffix):
        path = tmp_path / f"weights{suffix}"
        (save_file if suffix == ".safetensors" else torch.save)(classifier.state_dict(), path)
        image = make_images(2, 3, 32, 32)
        z = create_backbone("torchvision/resnet18", checkpoint=path).eval()(image)
        torch.testing.assert_close(z, embed_without_head(classifier, image))

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda w: {"state_dict": w, "epoch": 3},
            lambda w: {"model": w, "optimizer": {}},
            lambda w: {"model": {"state_dict": w}},
            lambda w: {f"module.{k}": v for k, v in w.items()},
            lambda w: {"state_dict": {f"module.model.{k}": v for k, v in w.items()}},
            lambda w: {f"_orig_mod.{k}": v for k, v in w.items()},
            lambda w: {k: v for k, v in w.items() if not k.startswith("fc.")},
            lambda w: {k: v for k, v in w.items() if not k.endswith("num_batches_tracked")},
            lambda w: {k.replace("fc.", "head."): v for k, v in w.items()},
            lambda w: {
                "state_dict": {
                    **{f"backbone.{k}": v for k, v in w.items() if not k.startswith("fc.")},
                    "projector.0.weight": torch.ones(3, 3),
                    "head.weight": torch.ones(5, 512),
                }
            },
        ],
    )
    def test_wrapping_and_heads_are_tolerated(self, tmp_path, classifier, wrap):
        path = tmp_path / "weights.pth"
        torch.save(wrap(classifier.state_dict()), path)
        image = make_images(2, 3, 32, 32)
        z = create_backbone("torchvision/resnet18", checkpoint=str(path)).eval()(image)
        torch.testing.assert_close(z, embed_without_head(classifier, image))

    @pytest.mark.parametrize("model_name", ["efficientnet_lite0", "resnet10t"])
    @pytest.mark.parametrize("in_channels", [1, 3, 4])
    def test_timm_checkpoint_in_any_channels_as_timm_adapts_it(self, tmp_path, model_name, in_channels):
        timm = pytest.importorskip("timm")
        from timm.models import adapt_input_conv

        theirs = randomize(timm.create_model(model_name, num_classes=7))
        path = tmp_path / "weights.pth"
        torch.save(theirs.state_dict(), path)
        ours = create_backbone(f"timm/{model_name}", checkpoint=path, in_channels=in_channels).eval()
        theirs.reset_classifier(0)
        stem = next(module for module in theirs.modules() if isinstance(module, nn.Conv2d))
        stem.weight = nn.Parameter(adapt_input_conv(in_channels, stem.weight.detach()))
        image = make_images(2, in_channels, 64, 64)
        torch.testing.assert_close(ours(image), theirs(image))

    def test_grey_images_are_answered_as_their_copies_in_red_green_and_blue(self, tmp_path, classifier):
        path = tmp_path / "weights.pth"
        torch.save(classifier.state_dict(), path)
        grey = make_images(2, 1, 32, 32)
        z = create_backbone("torchvision/resnet18", checkpoint=path, in_channels=1).eval()(grey)
        torch.testing.assert_close(z, embed_without_head(classifier, grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("name", ["small_resnet", "torchvision/resnet18"])
    @pytest.mark.parametrize("in_channels", [1, 3, 5])
    def test_round_trip_of_the_backbone_itself(self, tmp_path, name, in_channels):
        first = randomize(create_backbone(name, in_channels=in_channels))
        save_file(first.state_dict(), tmp_path / "own.safetensors")
        second = create_backbone(name, in_channels=in_channels, checkpoint=tmp_path / "own.safetensors").eval()
        image = make_images(2, in_channels, 32, 32)
        torch.testing.assert_close(second(image), first(image), rtol=0, atol=0)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda w: w.pop("layer1.0.conv1.weight"), r"1 missing \(layer1\.0\.conv1\.weight\)"),
            (lambda w: w.update(extra=torch.ones(1)), r"1 unexpected \(extra\)"),
            (lambda w: w.update({"bn1.bias": torch.ones(3)}), r"1 of another shape \(bn1\.bias \(3,\) for \(64,\)\)"),
            (lambda w: [w.pop(k) for k in list(w) if k.startswith("layer4.")], r"\d\d missing \(layer4.*, \.\.\.\)"),
        ],
    )
    def test_anything_else_is_refused_by_name(self, tmp_path, classifier, spoil, message):
        weights = dict(classifier.state_dict())
        spoil(weights)
        torch.save(weights, tmp_path / "weights.pth")
        with pytest.raises(ConfigError, match=message):
            create_backbone("torchvision/resnet18", checkpoint=tmp_path / "weights.pth")

    def test_weights_of_another_architecture_are_refused(self, tmp_path):
        torch.save(SmallResNet(3).state_dict(), tmp_path / "weights.pth")
        with pytest.raises(ConfigError, match=r"does not fit: \d+ missing .* unexpected"):
            create_backbone("torchvision/resnet18", checkpoint=tmp_path / "weights.pth")

    @pytest.mark.parametrize("file_name", ["absent.pth", "absent.safetensors"])
    def test_an_absent_file_is_not_downloaded(self, tmp_path, file_name):
        with pytest.raises(ConfigError, match=r"is not there\. Weights are never downloaded"):
            create_backbone("small_resnet", checkpoint=tmp_path / file_name)

    def test_an_unknown_suffix_is_refused(self, tmp_path):
        (tmp_path / "weights.onnx").write_bytes(b"x")
        with pytest.raises(ConfigError, match=r"must end in \.safetensors"):
            create_backbone("small_resnet", checkpoint=tmp_path / "weights.onnx")

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    @pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 cut short"])
    def test_a_damaged_file_is_named(self, tmp_path, suffix, content):
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"weights{suffix} cannot be read as weights"):
            create_backbone("small_resnet", checkpoint=path)

    def test_a_pickled_module_is_not_run(self, tmp_path):
        torch.save(SmallResNet(3), tmp_path / "whole.pth")
        with pytest.raises(DataError, match="cannot be read as weights"):
            create_backbone("small_resnet", checkpoint=tmp_path / "whole.pth")

    @pytest.mark.parametrize(
        ("content", "held"), [({"epoch": 3, "net": {}}, "it holds epoch, net"), ([1], "list"), ({}, "it holds nothing")]
    )
    def test_a_file_without_a_state_dict_says_what_it_holds(self, tmp_path, content, held):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(DataError, match=held):
            create_backbone("small_resnet", checkpoint=tmp_path / "other.pth")


class TestConfig:
    PATH = "lspread.nn.NamedBackbone"

    def build(self, *args, **init_args):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--backbone", type=nn.Module)
        config = {"backbone": {"class_path": self.PATH, "init_args": init_args}}
        return parser.instantiate(parser.parse_object(config)).backbone

    def test_names_and_weights_from_settings(self, tmp_path):
        first = randomize(SmallResNet(2, (4, 8)))
        save_file(first.state_dict(), tmp_path / "own.safetensors")
        second = self.build(
            name="small_resnet", in_channels=2, widths=[4, 8], checkpoint=str(tmp_path / "own.safetensors")
        ).eval()
        image = make_images(2, 2, 16, 16)
        torch.testing.assert_close(second(image), first(image), rtol=0, atol=0)
        assert second.num_features == 8

    def test_a_frozen_network_does_not_move(self):
        with pytest.warns(UserWarning, match=r"held \(freeze=True\) with random weights.*--model.backbone.checkpoint"):
            frozen = NamedBackbone("small_resnet", 1, widths=(4, 8), freeze=True)
        free = NamedBackbone("small_resnet", 1, widths=(4, 8))
        assert not any(weight.requires_grad for weight in frozen.parameters())
        assert all(weight.requires_grad for weight in free.parameters())
        before = {name: value.clone() for name, value in frozen.state_dict().items()}
        for backbone in (frozen, free):
            backbone.train()
            backbone(make_images(8, 1, 16, 16))
        assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
        assert free.network.stem_norm.num_batches_tracked == 1

    def test_its_own_weights_start_another(self, tmp_path):
        first = NamedBackbone("small_resnet", 1, widths=(4, 8))
        save_file({f"backbone.{name}": value for name, value in first.state_dict().items()}, tmp_path / "a.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # this one may be held
            second = NamedBackbone("small_resnet", 1, widths=(4, 8), checkpoint=tmp_path / "a.safetensors", freeze=True)
        assert torch.equal(first.network.stem.weight, second.network.stem.weight)

    @pytest.mark.parametrize("init_args", [{"in_chans": 1}, {"in_channels": "one"}, {"stem_strides": 2}])
    def test_a_typo_is_refused_by_name(self, init_args):
        with pytest.raises(Exception, match=next(iter(init_args))):
            self.build(name="small_resnet", **init_args)


@pytest.mark.parametrize("widths", [(4, 8), (8, 16)])
def test_gradients_of_narrow_networks(widths):
    """In the layout of images that training uses; CPUs with AVX2 only were wrong with fewer than eight channels."""
    image = torch.randn(22, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    net = SmallResNet(1, widths, stem_stride=1).double()
    net(image.double()).square().sum().backward()
    expected = {name: weight.grad.float() for name, weight in net.named_parameters()}
    net.zero_grad()
    net.float().to(memory_format=torch.channels_last)
    net(image.contiguous(memory_format=torch.channels_last)).square().sum().backward()
    found = {name: weight.grad for name, weight in net.named_parameters()}
    scale = max(float(grad.abs().max()) for grad in expected.values())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * scale)
