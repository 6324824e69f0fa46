"""Embeddings made elsewhere: reading, checking and writing them."""

from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lspread.errors import ConfigError, DataError

__all__ = ["check_embeddings", "load_embeddings", "save_embeddings"]

_KEY = "embedding"


def check_embeddings(embedding: Tensor, name: str = "embedding") -> Tensor:
    """Return `embedding` where it is usable as node features.

    Args:
        embedding: (n, d) of any real dtype. float32 and float64 stay, the rest becomes float32.
        name: What messages call it.

    Returns:
        (n, d) float32 or float64, finite.

    Raises:
        DataError: A wrong shape, a complex or boolean dtype, or NaN or infinity; the message names the first row.
    """
    if embedding.dim() != 2 or embedding.shape[0] == 0 or embedding.shape[1] == 0:
        raise DataError(
            f"{name} needs shape (n, d), one row per item; got shape {tuple(embedding.shape)}. "
            "Flatten the rest into d, or keep only the pooled features."
        )
    if embedding.is_complex() or embedding.dtype == torch.bool:
        raise DataError(f"{name} needs real numbers; got dtype {embedding.dtype}.")
    if embedding.dtype not in (torch.float32, torch.float64):
        embedding = embedding.float()
    is_bad = ~torch.isfinite(embedding)
    bad_rows = is_bad.any(1).nonzero()[:, 0]  # sync: a message needs the row
    if bad_rows.numel():
        row = int(bad_rows[0])
        column = int(is_bad[row].nonzero()[0, 0])
        raise DataError(
            f"{name} holds NaN or infinity in {bad_rows.numel()} of {embedding.shape[0]} rows; the first is row {row} "
            f"(column {column} is {float(embedding[row, column])}). Compute these rows again or remove their items."
        )
    return embedding


def load_embeddings(path: str | Path, *, key: str | None = None) -> Tensor:
    """Read embeddings from a .npy or a .safetensors file.

    Args:
        path: The file; row i belongs to item i.
        key: Name of the tensor in a .safetensors file; not needed where it holds only one, or one named "embedding".

    Returns:
        (n, d) float32 or float64 on the CPU, finite.

    Raises:
        DataError: The file is missing or unreadable, has no such key, or its content fails `check_embeddings`.
        ConfigError: Another file suffix.
    """
    path = Path(path)
    suffix = _suffix(path)
    if not path.is_file():
        raise DataError(f"There is no embedding file {path}.")
    if suffix == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} cannot be read as .npy: {error}") from error
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
            raise DataError(f"{path} needs an array of numbers; got {getattr(array, 'dtype', type(array).__name__)}.")
        if array.dtype.itemsize > 8:  # long double, which torch lacks
            array = array.astype(np.float64)
        # torch reads only the machine's own byte order.
        embedding = torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))
    else:
        try:
            tensors = safetensors.torch.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise DataError(f"{path} cannot be read as .safetensors: {error}") from error
        if key is None:
            key = _KEY if _KEY in tensors or len(tensors) != 1 else next(iter(tensors))
        if key not in tensors:
            names = ", ".join(sorted(tensors)) or "nothing"
            raise DataError(f"{path} has no tensor '{key}'; it holds: {names}. Choose one with key=.")
        embedding = tensors[key]
    return check_embeddings(embedding, str(path))


def save_embeddings(path: str | Path, embedding: Tensor) -> None:
    """Write embeddings (n, d) to a .npy file or to a .safetensors file under the key "embedding".

    Raises:
        DataError: `embedding` fails `check_embeddings`.
        ConfigError: Another file suffix.
    """
    path = Path(path)
    suffix = _suffix(path)
    embedding = check_embeddings(embedding.detach().cpu()).contiguous()
    if suffix == ".npy":
        np.save(path, embedding.numpy(), allow_pickle=False)
    else:
        safetensors.torch.save_file({_KEY: embedding}, path)


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (".npy", ".safetensors"):
        raise ConfigError(f"Embeddings are kept in .npy or .safetensors files; got {path}.")
    return suffix
