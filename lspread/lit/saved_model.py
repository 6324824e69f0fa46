"""A trained classifier as two files without pickle: weights (safetensors) and how to rebuild it (JSON)."""

import importlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lspread.data.decoding import Window, check_window
from lspread.errors import ConfigError, DataError

__all__ = ["MODEL_FILE", "SPEC_FILE", "SavedClassifier", "load_classifier", "save_classifier"]

MODEL_FILE = "model.safetensors"
SPEC_FILE = "model.json"
_REBUILDABLE = ("lspread.nn.", "torchvision.models.", "timm.models.", "torch.nn.")


class SavedClassifier(nn.Module):
    """Backbone, linear head and the images' normalization: all that is needed to classify.

    Args:
        backbone: Normalized images `(m,ch,h,w)` in, embeddings `(m,d)` out.
        head: Embeddings in, logits `(m,c)` out.
        mean: Mean of each channel in [0, 1] units.
        std: Standard deviation of each channel in [0, 1] units.
        class_names: Names of the c classes.
        image_shape: (ch, h, w) of the images that it was trained on.
        window: Which values of files with more than 8 bits were 0 and 1, as in `decode_image`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        class_names: Sequence[str] = (),
        image_shape: Sequence[int] = (),
        window: Window = "full",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.class_names = list(class_names)
        self.image_shape = tuple(image_shape)
        self.window = window
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Logits `(m,c)` of images `(m,ch,h,w)`: uint8, or float in [0, 1]."""
        logits: Tensor = self.head(self.embed(image))
        return logits

    def embed(self, image: Tensor) -> Tensor:
        """Embeddings `(m,d)` of images `(m,ch,h,w)`: uint8, or float in [0, 1]."""
        if image.dtype == torch.uint8:
            image = image.float() / 255
        z: Tensor = self.backbone((image - self.mean) / self.std)
        return z


def save_classifier(
    folder: str | Path,
    backbone: nn.Module,
    head: nn.Module,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    class_names: Sequence[str],
    image_shape: Sequence[int],
    window: Window = "full",
    backbone_spec: Mapping[str, Any] | None = None,
) -> tuple[Path, Path]:
    """Write `model.safetensors` and `model.json`.

    Args:
        folder: Where to write.
        backbone: The network before the head.
        head: The last layer, an `nn.Linear`.
        mean: Mean of each channel in [0, 1] units.
        std: Standard deviation of each channel in [0, 1] units.
        class_names: Names of the classes, in order.
        image_shape: (ch, h, w) of the images that it was trained on.
        window: Which values of files with more than 8 bits were 0 and 1, as in `decode_image`.
        backbone_spec: `{"class_path": ..., "init_args": {...}}` as in a config. Without it, `load_classifier` needs
            a backbone to load the weights into.

    Returns:
        The two paths.
    """
    from safetensors.torch import save

    if not isinstance(head, nn.Linear):
        raise ConfigError(f"save_classifier needs an nn.Linear head; got {type(head).__name__}.")
    folder = Path(folder)
    state = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    state |= {f"head.{name}": value for name, value in head.state_dict().items()}
    # Copies, because safetensors refuses tensors that share memory, and channels_last is not contiguous.
    state = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    spec = {
        "format": "lspread-classifier-1",
        "backbone": _without_checkpoint(backbone_spec) if backbone_spec else None,
        "head": {"in_features": head.in_features, "out_features": head.out_features, "bias": head.bias is not None},
        "mean": list(mean),
        "std": list(std),
        "class_names": list(class_names),
        "image_shape": list(image_shape),
        "window": window,
        "input": "images (m, ch, h, w), uint8 or float in [0, 1]; logits = head(backbone((image - mean) / std))",
        "load": "lspread.lit.saved_model.load_classifier(folder)",
    }
    model_path, spec_path = folder / MODEL_FILE, folder / SPEC_FILE
    model_path.write_bytes(save(state))  # save_file would leave it readable for its owner only
    spec_path.write_text(json.dumps(spec, indent=2) + "\n", encoding="utf-8")
    return model_path, spec_path


def load_classifier(folder: str | Path, *, backbone: nn.Module | None = None) -> SavedClassifier:
    """Rebuild the classifier of a run, in eval mode on the CPU.

    Args:
        folder: A run folder with `model.safetensors` and `model.json`.
        backbone: A network of the same shape, where `model.json` does not say how to build one.

    Returns:
        Images to logits; class names in `.class_names`, (ch, h, w) in `.image_shape`, and in `.window` how files of
        more than 8 bits were read.

    Raises:
        DataError: A file is missing or damaged.
        ConfigError: The backbone cannot be rebuilt from the file, or it does not fit the weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    for name in (SPEC_FILE, MODEL_FILE):
        if not (folder / name).is_file():
            raise DataError(f"load_classifier needs the folder of a finished run; {folder} has no {name}.")
    try:
        spec = json.loads((folder / SPEC_FILE).read_text(encoding="utf-8"))
        state = load_file(folder / MODEL_FILE)
        head = nn.Linear(**spec["head"])
        facts = {name: spec[name] for name in ("mean", "std", "class_names", "image_shape")}
        window = spec.get("window", "full")  # files of earlier versions know of 8 bits only
        facts["window"] = check_window(tuple(window) if isinstance(window, list) else window)
        backbone_spec = spec["backbone"]
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"The model in {folder} cannot be read ({type(error).__name__}: {error}).") from error
    if backbone is None:
        if backbone_spec is None:
            raise ConfigError(
                f"{folder / SPEC_FILE} does not say how to build the backbone, because it was made in Python. "
                "Build it again and pass it: load_classifier(folder, backbone=...)."
            )
        with warnings.catch_warnings():  # a held network gets its weights below
            warnings.filterwarnings("ignore", message=".* is held .* with random weights")
            backbone = _build(backbone_spec, folder / SPEC_FILE)
        if not isinstance(backbone, nn.Module):
            raise ConfigError(f"{folder / SPEC_FILE}: a backbone must be an nn.Module; got {type(backbone).__name__}.")
    model = SavedClassifier(backbone, head, **facts)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(f"The weights in {folder / MODEL_FILE} do not fit the backbone: {error}") from error
    return model.eval()


def _without_checkpoint(spec: Mapping[str, Any]) -> dict[str, Any]:
    # The pretrained weights were a starting point; the trained ones are beside this file.
    options = {name: value for name, value in (spec.get("init_args") or {}).items() if name != "checkpoint"}
    return {"class_path": spec["class_path"], "init_args": options}


def _build(spec: Any, path: Path) -> Any:
    """Make an object from `{"class_path": ..., "init_args": {...}}`, nested ones first."""
    if isinstance(spec, list):
        return [_build(item, path) for item in spec]
    if not isinstance(spec, dict):
        return spec
    if "class_path" not in spec:
        return {name: _build(value, path) for name, value in spec.items()}
    class_path = str(spec["class_path"])
    # A model file may come from anywhere, so it names networks and nothing else.
    if not class_path.startswith(_REBUILDABLE):
        raise ConfigError(
            f"{path} names {class_path}; only {', '.join(f'{name}*' for name in _REBUILDABLE)} are built from a file. "
            "Build the backbone yourself and pass it: load_classifier(folder, backbone=...)."
        )
    module_name, _, name = class_path.rpartition(".")
    try:
        make = getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        raise ConfigError(f"{path} names {class_path}, which cannot be imported here: {error}.") from error
    is_network = isinstance(make, type) and issubclass(make, nn.Module)
    if make is None or not (is_network or getattr(make, "__module__", "").startswith(_REBUILDABLE)):
        raise ConfigError(f"{path} names {class_path}, which is no network.")
    return make(**{key: _build(value, path) for key, value in (spec.get("init_args") or {}).items()})
