import json

import pytest
import torch
from torch import nn

from lspread.errors import ConfigError, DataError
from lspread.lit.saved_model import load_classifier, save_classifier
from lspread.nn import SmallResNet

SPEC = {"class_path": "lspread.nn.SmallResNet", "init_args": {"in_channels": 3, "widths": [4, 8]}}


@pytest.fixture
def saved(tmp_path):
    generator = torch.Generator().manual_seed(0)
    backbone = SmallResNet(3, [4, 8]).eval().to(memory_format=torch.channels_last)
    head = nn.Linear(8, 5)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    save_classifier(
        tmp_path,
        backbone,
        head,
        mean=mean,
        std=std,
        class_names=list("abcde"),
        image_shape=(3, 10, 10),
        backbone_spec=SPEC,
    )
    image = torch.randint(0, 256, (6, 3, 10, 10), dtype=torch.uint8, generator=generator)
    x = (image.float() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    return tmp_path, image, head(backbone(x)).detach()


def test_the_loaded_classifier_gives_the_same_logits(saved):
    folder, image, expected = saved
    model = load_classifier(folder)
    assert not model.training
    assert model.class_names == list("abcde")
    torch.testing.assert_close(model(image).detach(), expected)
    torch.testing.assert_close(model(image.float() / 255).detach(), expected)


def test_a_function_builds_the_backbone_too_and_needs_no_pretrained_file(saved):
    folder, image, expected = saved
    spec = json.loads((folder / "model.json").read_text())
    init_args = {"name": "small_resnet", "in_channels": 3, "widths": [4, 8]}
    spec["backbone"] = {"class_path": "lspread.nn.create_backbone", "init_args": init_args}
    (folder / "model.json").write_text(json.dumps(spec))
    torch.testing.assert_close(load_classifier(folder)(image).detach(), expected)


def test_the_pretrained_file_is_not_asked_for_again(tmp_path):
    spec = {"class_path": "lspread.nn.create_backbone", "init_args": {"name": "x", "checkpoint": "/gone.pth"}}
    options = {"mean": [0.0], "std": [1.0], "class_names": ["a", "b"], "image_shape": [1, 2, 2]}
    save_classifier(tmp_path, nn.Flatten(), nn.Linear(4, 2), backbone_spec=spec, **options)
    assert json.loads((tmp_path / "model.json").read_text())["backbone"]["init_args"] == {"name": "x"}


@pytest.mark.parametrize(
    "class_path",
    ["os.system", "subprocess.Popen", "lspread.nn.backbones.torch.hub.load", "torch.nn.init.warnings.warn"],
)
def test_a_model_file_cannot_name_what_is_no_network(saved, class_path):
    folder, _, _ = saved
    spec = json.loads((folder / "model.json").read_text())
    spec["backbone"] = {"class_path": class_path, "init_args": {}}
    (folder / "model.json").write_text(json.dumps(spec))
    with pytest.raises(ConfigError, match=class_path):
        load_classifier(folder)


def test_missing_damaged_and_misfitting_files(saved, tmp_path):
    folder, _, _ = saved
    with pytest.raises(ConfigError, match="do not fit the backbone"):
        load_classifier(folder, backbone=SmallResNet(3, [4, 9]))
    (folder / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        load_classifier(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"has no model\.safetensors"):
        load_classifier(folder)


def test_only_linear_heads(tmp_path):
    options = {"mean": [0.0], "std": [1.0], "class_names": ["a", "b"], "image_shape": [1, 2, 2]}
    with pytest.raises(ConfigError, match=r"nn\.Linear head; got Sequential"):
        save_classifier(tmp_path, nn.Flatten(), nn.Sequential(), **options)
