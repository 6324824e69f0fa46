"""Reading idx files, the format of MNIST and its relatives, plain or gzipped."""

import gzip
import struct
import zlib
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from lspread.errors import DataError

__all__ = ["find_idx", "read_idx"]

_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08


def find_idx(root: Path, name: str) -> Path | None:
    """Return `root/name` or `root/name.gz`, whichever exists; None where neither does."""
    for path in (root / name, root / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def read_idx(path: str | Path) -> Tensor:
    """Read an idx file of unsigned bytes.

    The format: two zero bytes, a type byte, the number of dimensions, each size as a big-endian
    32-bit number, then the values in row order.

    Args:
        path: The file; gzipped or not is seen from its content.

    Returns:
        uint8 tensor of the shape that the file states.

    Raises:
        DataError: The file is missing, damaged, truncated, or not an idx file of unsigned bytes.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if raw.startswith(_GZIP_MAGIC) else raw
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except EOFError:
        raise DataError(f"{path} is truncated: its gzip stream ends too early. Fetch the file again.") from None
    except (OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}). Fetch the file again.") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[3] == 0:
        raise DataError(f"{path} is not an idx file: it starts with {content[:4].hex(' ') or 'nothing'}.")
    kind, num_dims = content[2], content[3]
    if kind != _UNSIGNED_BYTE:
        raise DataError(f"{path} holds idx type 0x{kind:02x}; only unsigned bytes (0x08) are read here.")
    start = 4 + 4 * num_dims
    if len(content) < start:
        raise DataError(f"{path} is truncated: its header needs {start} bytes, the file has {len(content)}.")
    shape = struct.unpack(f">{num_dims}I", content[4:start])
    needed, found = prod(shape), len(content) - start
    if found < needed:
        raise DataError(
            f"{path} is truncated: shape {shape} needs {needed} bytes after the header, the file has {found}. "
            "Fetch the file again."
        )
    if found > needed:
        raise DataError(
            f"{path} is damaged: shape {shape} needs {needed} bytes after the header, the file has {found}."
        )
    if needed == 0:
        return torch.empty(shape, dtype=torch.uint8)
    # bytearray: torch wants memory that may be written to.
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).reshape(shape)
