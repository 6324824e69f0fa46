"""From a backbone and a loader to one matrix of embeddings, row i for item i."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lspread.errors import ConfigError, DataError

__all__ = ["embed"]


def embed(
    backbone: nn.Module,
    loader: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    preprocess: Callable[[Tensor], Tensor] | None = None,
    progress: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Embed every item that a loader yields, in its order.

    The backbone runs in eval mode, and every module in it has its own mode again afterwards, also after an error.
    Autocast is the caller's: `with torch.autocast("cpu", torch.bfloat16): embed(...)`.

    Args:
        backbone: Images (m,ch,h,w) in, embeddings (m,d) out.
        loader: Yields batches: `{"image": ..., "index": (m,) int64}` (as the datasets of `lspread.data` do), a tensor,
            or a tuple or list whose first element is the tensor. Images are uint8 or floating point. With "index",
            rows must come in ascending order, so the loader must be sequential.
        device: Where the batches go; None is the device of the backbone, which must lie there.
        preprocess: Evaluation transform on the device, such as a normalization. It gets floating point images:
            uint8 ones are scaled to [0, 1] before.
        progress: Show a progress bar on the terminal.
        dtype: Floating point type of the result; the backbone computes in that of its weights.

    Returns:
        z (n,d) on `device`: row i is the i-th item. Detached, yet an ordinary tensor that autograd may use, even if
        the caller is in inference mode. One host-device sync at the end, none per batch.

    Raises:
        DataError: The loader is empty, a batch has another form, "index" is not ascending, or an embedding is NaN or
            infinite (the first such item is named).
        ConfigError: The backbone lies on another device or does not return (m,d), or `dtype` is not floating point.
    """
    if isinstance(loader, Tensor):
        raise DataError(f"embed needs a loader of batches; got one tensor {tuple(loader.shape)}. Use z.split(256).")
    if not dtype.is_floating_point:
        raise ConfigError(f"embed needs a floating point dtype; got {dtype}.")
    place = _find_device(backbone, device)
    own = next((weight.dtype for weight in backbone.parameters() if weight.is_floating_point()), None)
    modules = [part for part in (backbone, preprocess) if isinstance(part, nn.Module)]
    rows: list[Tensor] = []
    items: list[Tensor | None] = []
    # inference_mode(False) keeps the result usable in autograd although no_grad records nothing here.
    with _eval_mode(modules), torch.inference_mode(mode=False), torch.no_grad():
        for batch in _show_progress(loader) if progress else loader:
            image, index = _open_batch(batch)
            if index is not None:
                items.append(_check_order(index, items[-1] if items else None, len(image)))
            z = backbone(_prepare_image(image, place, preprocess, own))
            _check_embedding(z, len(image), rows)
            rows.append(z.to(dtype))
        if not rows:
            raise DataError("embed got an empty loader: no batch came. Check the dataset, the split and drop_last.")
        z = torch.cat(rows)
    finite = torch.isfinite(z).all(dim=1)
    if not finite.all():  # sync: one per call, a broken embedding would spread through the whole graph
        row = int(finite.logical_not().nonzero()[0])
        item = f", item {int(torch.cat([i for i in items if i is not None])[row])}" if items else ""
        raise DataError(
            f"embed got NaN or infinity in {int(finite.logical_not().sum())} of {len(z)} embeddings; the first is row "
            f"{row}{item}. Check that image, the preprocessing, and whether training has diverged."
        )
    return z


def _find_device(backbone: nn.Module, device: torch.device | str | None) -> torch.device:
    held = next((tensor.device for group in (backbone.parameters(), backbone.buffers()) for tensor in group), None)
    if device is None:
        return held or torch.device("cpu")
    wanted = torch.device(device)
    same = held is None or (held.type == wanted.type and wanted.index in (None, held.index))
    if not same:
        raise ConfigError(
            f"embed needs the backbone on device={wanted}; its weights are on {held}. Move it: backbone.to('{wanted}')."
        )
    return held or wanted


@contextmanager
def _eval_mode(modules: list[nn.Module]) -> Iterator[None]:
    """Put modules into eval mode; give each submodule exactly the mode that it had."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, mode in modes:
            part.training = mode  # not train(mode), which would reach into children and may be overridden


def _show_progress(loader: Iterable[Any]) -> Iterable[Any]:
    from rich.progress import track

    return track(loader, description="embed")


def _open_batch(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Find the images and, where there are any, the dataset rows in one batch of a loader."""
    index = None
    image = batch
    if isinstance(batch, Mapping):
        image, index = batch.get("image"), batch.get("index")
    elif isinstance(batch, (tuple, list)) and batch:
        image = batch[0]
    if not isinstance(image, Tensor) or image.ndim < 2 or not (image.dtype == torch.uint8 or image.is_floating_point()):
        got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else _describe(batch)
        raise DataError(
            "embed needs batches {'image': tensor, 'index': tensor}, a tensor, or (tensor, ...), with uint8 or "
            f"floating point images (m,...); got {got}."
        )
    return image, index


def _describe(batch: Any) -> str:
    return f"a mapping with keys {list(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"


def _check_order(index: Any, before: Tensor | None, num_images: int) -> Tensor:
    """Check that dataset rows ascend within and between batches; they come from the loader, hence on the host."""
    if not isinstance(index, Tensor) or index.shape != (num_images,):
        got = f"shape {tuple(index.shape)}" if isinstance(index, Tensor) else _describe(index)
        raise DataError(f"embed needs 'index' to be a tensor with one row per image, ({num_images},); got {got}.")
    index = index.cpu()
    chain = index if before is None else torch.cat([before[-1:], index])
    if (chain.diff() <= 0).any():
        first = int((chain.diff() <= 0).nonzero()[0])
        raise DataError(
            "embed needs items in ascending order, so that row i is item i; item "
            f"{int(chain[first + 1])} came after item {int(chain[first])}. Use a sequential loader (shuffle=False, one "
            "process, no distributed sampler)."
        )
    return index


def _prepare_image(
    image: Tensor, place: torch.device, preprocess: Callable[[Tensor], Tensor] | None, dtype: torch.dtype | None
) -> Tensor:
    """Return images on a device, in the dtype of the weights that look at them."""
    image = image.to(place, non_blocking=True)
    if image.dtype == torch.uint8:
        image = image.float().div_(255)
    if preprocess is not None:
        image = preprocess(image)
    if dtype is not None and not torch.is_autocast_enabled(place.type):
        image = image.to(dtype)
    return image.contiguous(memory_format=torch.channels_last) if image.ndim == 4 else image


def _check_embedding(z: Any, num_images: int, rows: list[Tensor]) -> None:
    is_matrix = isinstance(z, Tensor) and z.ndim == 2 and z.shape[0] == num_images and z.is_floating_point()
    if not is_matrix or (rows and z.shape[1] != rows[0].shape[1]):
        got = f"{z.dtype} {tuple(z.shape)}" if isinstance(z, Tensor) else f"a {type(z).__name__}"
        width = rows[0].shape[1] if rows else "d"
        raise ConfigError(
            f"embed needs a backbone that returns floating point embeddings ({num_images},{width}) for {num_images} "
            f"images; got {got}. Pool and flatten its output, or use create_backbone."
        )
