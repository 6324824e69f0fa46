import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from lspread.data.idx import find_idx, read_idx
from lspread.errors import DataError

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
GOOD = b"\0\0\x08\x03" + struct.pack(">3I", 2, 3, 4) + ARRAY.tobytes()


@pytest.mark.parametrize("is_zipped", [False, True])
def test_read(tmp_path: Path, is_zipped: bool) -> None:
    path = tmp_path / "x-idx3-ubyte"
    path.write_bytes(gzip.compress(GOOD) if is_zipped else GOOD)
    np.testing.assert_array_equal(read_idx(path), ARRAY)


def test_same_as_torchvision(tmp_path: Path) -> None:
    mnist = pytest.importorskip("torchvision.datasets.mnist")
    path = tmp_path / "x-idx3-ubyte"
    path.write_bytes(GOOD)
    assert read_idx(path).equal(mnist.read_sn3_pascalvincent_tensor(str(path)))


def test_find(tmp_path: Path) -> None:
    assert find_idx(tmp_path, "a") is None
    (tmp_path / "a.gz").write_bytes(b"")
    assert find_idx(tmp_path, "a") == tmp_path / "a.gz"
    (tmp_path / "a").write_bytes(b"")
    assert find_idx(tmp_path, "a") == tmp_path / "a"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD[:-1], r"is truncated: shape \(2, 3, 4\) needs 24 bytes after the header, the file has 23"),
        (GOOD + b"\0", "is damaged: shape .* the file has 25"),
        (GOOD[:10], "is truncated: its header needs 16 bytes, the file has 10"),
        (gzip.compress(GOOD)[:-12], "is truncated: its gzip stream ends too early"),
        (gzip.compress(GOOD)[:-8] + b"\0" * 8, r"cannot be read \(CRC check failed"),
        (b"\x1f\x8b" + b"x" * 40, "cannot be read"),
        (b"", "is not an idx file: it starts with nothing"),
        (b"hello world", "is not an idx file: it starts with 68 65 6c 6c"),
        (b"\0\0\x0d\x01" + struct.pack(">I", 1) + b"\0" * 4, "holds idx type 0x0d; only unsigned bytes"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no file"):
        read_idx(tmp_path / "no")
