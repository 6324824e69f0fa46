"""Networks that turn images into embeddings: our small ResNet, torchvision's and timm's by name."""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from lspread.errors import ConfigError, DataError
from lspread.nn.small_resnet import SmallResNet

__all__ = ["NamedBackbone", "create_backbone"]

_WRAPPERS: Final = ("module.", "_orig_mod.", "model.", "network.")
"""What data parallelism, averaged models, torch.compile and outer modules put before the names of weights."""

_HEADS: Final = ("classifier", "fc", "head", "heads")
"""Usual names of a classifier head, by which a checkpoint's head is known when the network does not say its own."""


def create_backbone(
    name: str,
    *,
    in_channels: int = 3,
    checkpoint: str | os.PathLike[str] | None = None,
    widths: Sequence[int] | None = None,
    blocks_per_stage: int | None = None,
    stem_stride: int | None = None,
    pool_size: int | None = None,
) -> nn.Module:
    """Build a backbone by name, without its classifier head and, if asked, with weights from a local file.

    Weights are never downloaded. A settings file, which names classes, takes `NamedBackbone`.

    Args:
        name: `small_resnet`, `torchvision/<model>` such as `torchvision/resnet18`, or `timm/<model>` such as
            `timm/efficientnet_lite0` (needs the extra `lspread[timm]`).
        in_channels: Channels of the images. Where they differ from the checkpoint's, the weights of the first
            convolution are summed (to one channel) or repeated and scaled by old/new, as timm does it.
        checkpoint: A `.safetensors` file, or a `.pt`, `.pth`, `.bin` or `.ckpt` file, which is read without running
            any code in it. The weights may lie under "state_dict" or "model" and behind prefixes ("module.",
            "model."); of a classifier's checkpoint only what is under "backbone." is taken. A head may be there or not.
        widths: Only for `small_resnet`, see `SmallResNet`; None is its default.
        blocks_per_stage: Only for `small_resnet`, likewise.
        stem_stride: Only for `small_resnet`, likewise.
        pool_size: Only for `small_resnet`, likewise.

    Returns:
        A module on the CPU, in train mode: float images (m,ch,h,w) in, embeddings (m,d) out; d is its attribute
        `num_features`. Weight names are those of the library that it comes from.

    Raises:
        ConfigError: Unknown name, an option that the name does not have, no such file, or weights that do not fit.
        DataError: The file is damaged or holds something other than weights.
    """
    options = {
        "widths": widths,
        "blocks_per_stage": blocks_per_stage,
        "stem_stride": stem_stride,
        "pool_size": pool_size,
    }
    given = {key: value for key, value in options.items() if value is not None}
    if in_channels < 1:
        raise ConfigError(f"create_backbone needs in_channels >= 1; got {in_channels}.")
    if given and name != "small_resnet":
        raise ConfigError(f"Only small_resnet has the options {', '.join(given)}; got name={name!r}. Leave them out.")
    library, _, model_name = name.partition("/")
    network: nn.Module
    heads: tuple[str, ...] = ()
    if name == "small_resnet":
        network = SmallResNet(in_channels, **given)  # type: ignore[arg-type]
    elif library == "torchvision" and model_name:
        network, heads = _create_torchvision(model_name, in_channels)
    elif library == "timm" and model_name:
        network, heads = _create_timm(model_name, in_channels)
    else:
        raise ConfigError(
            f"name must be small_resnet, torchvision/<model> or timm/<model>; got {name!r}. "
            "Examples: torchvision/resnet18, timm/efficientnet_lite0."
        )
    if checkpoint is not None:
        path = Path(checkpoint)
        _load_weights(network, _unwrap_weights(_read_weights(path), network), heads, f"checkpoint {path} for {name}")
    return network


class NamedBackbone(nn.Module):
    """What `create_backbone` builds, as a class: for settings files, and with a switch that holds its weights.

    `class_path: lspread.nn.NamedBackbone`, `init_args: {name: torchvision/resnet18, checkpoint: resnet18.pth}`.

    Args:
        name: As in `create_backbone`, and so are the next six.
        in_channels: Channels of the images.
        checkpoint: Local file of weights; None starts at random.
        widths: Only for `small_resnet`.
        blocks_per_stage: Only for `small_resnet`.
        stem_stride: Only for `small_resnet`.
        pool_size: Only for `small_resnet`.
        freeze: Hold all weights and statistics: only what stands behind the backbone learns. Warns where they are
            random.

    Attributes:
        network: The network that `create_backbone` returns.
        num_features: d, the width of the embeddings.

    Raises:
        ConfigError: As `create_backbone` does.
        DataError: As `create_backbone` does.
    """

    def __init__(
        self,
        name: str,
        in_channels: int = 3,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        widths: Sequence[int] | None = None,
        blocks_per_stage: int | None = None,
        stem_stride: int | None = None,
        pool_size: int | None = None,
        freeze: bool = False,
    ) -> None:
        super().__init__()
        self.network = create_backbone(
            name,
            in_channels=in_channels,
            checkpoint=checkpoint,
            widths=widths,
            blocks_per_stage=blocks_per_stage,
            stem_stride=stem_stride,
            pool_size=pool_size,
        )
        if freeze and checkpoint is None:
            warnings.warn(
                f"{name} is held (freeze=True) with random weights, since no checkpoint is given: what it answers is "
                "hardly more than chance. Give its weights, such as --model.backbone.checkpoint RUN/model.safetensors, "
                "or set freeze to false.",
                stacklevel=2,
            )
        self.num_features: int = self.network.num_features  # type: ignore[assignment]
        self.is_frozen = freeze
        self.network.requires_grad_(not freeze)
        self.train()

    def train(self, mode: bool = True) -> "NamedBackbone":
        """Set train or eval mode; a frozen network stays in eval mode, or batches would move its statistics."""
        super().train(mode)
        if self.is_frozen:
            self.network.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Return embeddings `(m, d)` of float images `(m, ch, h, w)`."""
        z: Tensor = self.network(image)
        return z


def _create_torchvision(model_name: str, in_channels: int) -> tuple[nn.Module, tuple[str, ...]]:
    """Build a torchvision classifier without its last linear layer; return it and that layer's name."""
    from torchvision import models

    known = models.list_models(module=models)
    if model_name not in known:
        raise _unknown_model("torchvision", model_name, known)
    network: Any = models.get_model(model_name, weights=None)
    linear = [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear or hasattr(network, "aux_logits"):
        raise ConfigError(
            f"torchvision/{model_name} cannot be a backbone: it does not end in one linear classifier, so there is no "
            "(m,d) embedding before it. Take another model, such as torchvision/resnet18."
        )
    head, last = linear[-1]
    network.set_submodule(head, nn.Identity())
    network.num_features = last.in_features
    _, stem = _first_convolution(network)
    if stem is not None and stem.in_channels != in_channels:
        stem.weight = nn.Parameter(_adapt_channels(stem.weight.detach(), in_channels))
        stem.in_channels = in_channels
    return network, (head,)


def _create_timm(model_name: str, in_channels: int) -> tuple[nn.Module, tuple[str, ...]]:
    """Build a timm model with its own pooling and no classifier; return it and the classifier's names."""
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f"timm/{model_name} needs timm, which is not installed: pip install 'lspread[timm]'."
        ) from error
    # is_model also refuses timm's "hf-hub:" names, which would be looked up on the network.
    if not timm.is_model(model_name):
        raise _unknown_model("timm", model_name, timm.list_models())
    network: Any = timm.create_model(model_name, pretrained=False, num_classes=0, in_chans=in_channels)
    # Some models widen the features once more before the classifier (MobileNetV3): that is what forward returns.
    network.num_features = getattr(network, "head_hidden_size", None) or network.num_features
    heads = network.pretrained_cfg.get("classifier") or ()
    return network, (heads,) if isinstance(heads, str) else tuple(heads)


def _unknown_model(library: str, model_name: str, known: Sequence[str]) -> ConfigError:
    close = get_close_matches(model_name, known, n=3) or list(known[:3])
    return ConfigError(f"{library} has no model {model_name!r}. Similar names: {', '.join(close)}.")


def _first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d | None]:
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            return path, module
    return "", None


def _adapt_channels(weight: Tensor, in_channels: int) -> Tensor:
    """Fit (out,in,kh,kw) weights to other channels so that the answer to grey images keeps its scale."""
    old = weight.shape[1]
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    repeated = weight.repeat(1, -(-in_channels // old), 1, 1)[:, :in_channels]
    return repeated * (old / in_channels)


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read named tensors from a local file, without running code in it."""
    if not path.is_file():
        raise ConfigError(
            f"checkpoint must be a file on this machine; got {path}, which is not there. Weights are never downloaded: "
            "save them once with torch.save(model.state_dict(), path) and give that path."
        )
    if path.suffix not in {".safetensors", ".pt", ".pth", ".bin", ".ckpt"}:
        raise ConfigError(f"checkpoint must end in .safetensors, .pt, .pth, .bin or .ckpt; got {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # A damaged file raises whatever its bytes happen to lead to.
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise DataError(
            f"checkpoint {path} cannot be read as weights ({reason}). "
            "It must hold a state_dict of tensors: torch.save(model.state_dict(), path), or safetensors."
        ) from error
    while isinstance(content, Mapping):
        inner = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        held = _list_some(content) if isinstance(content, Mapping) else type(content).__name__
        raise DataError(
            f"checkpoint {path} must hold a state_dict of tensors, at the top or under 'state_dict' or 'model'; "
            f"it holds {held or 'nothing'}."
        )
    return dict(content)


def _unwrap_weights(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Take off prefixes that the network's own names do not have; of a whole classifier take the backbone."""
    own = network.state_dict().keys()
    prefixes = [p for p in (*_WRAPPERS, "backbone.") if not any(key.startswith(p) for key in own)]
    while found := [p for p in prefixes if any(key.startswith(p) for key in weights)]:
        prefix = found[0]
        weights = {
            key.removeprefix(prefix): value
            for key, value in weights.items()
            if prefix != "backbone." or key.startswith(prefix)
        }
    return weights


def _load_weights(network: nn.Module, weights: dict[str, Tensor], heads: Iterable[str], what: str) -> None:
    """Load weights whose names and shapes must all fit, except for a classifier head; `what` names them in errors."""
    own = network.state_dict()
    taken = {key.partition(".")[0] for key in own}
    dropped = tuple(f"{head}." for head in (*heads, *(h for h in _HEADS if h not in taken)))
    weights = {key: value for key, value in weights.items() if key in own or not key.startswith(dropped)}
    path, stem = _first_convolution(network)
    key = f"{path}.weight"
    if stem is not None and stem.groups == 1 and key in weights:
        weight = weights[key]
        if weight.ndim == 4 and weight.shape[1] != stem.in_channels:
            weights[key] = _adapt_channels(weight.float(), stem.in_channels)
    # Files written before BatchNorm counted batches lack the counter; it matters only for momentum=None.
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in weights if key not in own]
    misshapen = [
        f"{key} {tuple(value.shape)} for {tuple(own[key].shape)}"
        for key, value in weights.items()
        if key in own and value.shape != own[key].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(problems.values()):
        found = "; ".join(f"{len(keys)} {kind} ({_list_some(keys)})" for kind, keys in problems.items() if keys)
        raise ConfigError(
            f"{what} does not fit: {found}. It must come from the same architecture; only the classifier head is free."
        )
    network.load_state_dict(weights, strict=False)


def _list_some(names: Iterable[object], most: int = 4) -> str:
    listed = [str(name) for name in names]
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")
