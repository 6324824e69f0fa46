from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from lspread.data import check_embeddings, load_embeddings, save_embeddings
from lspread.errors import ConfigError, DataError

Z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    path = tmp_path / f"z{suffix}"
    save_embeddings(path, Z.to(dtype).clone().requires_grad_())
    loaded = load_embeddings(path)
    assert loaded.dtype == dtype
    assert loaded.equal(Z.to(dtype))
    outside = torch.from_numpy(np.load(path)) if suffix == ".npy" else safetensors.torch.load_file(path)["embedding"]
    assert outside.equal(loaded)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">f8", "f2", "i4", "u1", "longdouble"])
def test_numpy_dtypes(tmp_path: Path, dtype: str) -> None:
    array = np.array([[1, 2], [3, 4]]).astype(dtype)
    np.save(tmp_path / "z.npy", np.asfortranarray(array))
    loaded = load_embeddings(tmp_path / "z.npy")
    assert loaded.dtype == (torch.float64 if dtype in (">f8", "longdouble") else torch.float32)
    assert loaded.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_bfloat16_and_keys(tmp_path: Path) -> None:
    path = tmp_path / "z.safetensors"
    safetensors.torch.save_file({"cls": Z.bfloat16()}, path)
    assert load_embeddings(path).equal(Z.bfloat16().float())
    safetensors.torch.save_file({"cls": Z, "mean": Z + 1}, path)
    assert load_embeddings(path, key="mean").equal(Z + 1)
    with pytest.raises(DataError, match=r"has no tensor 'embedding'; it holds: cls, mean. Choose one with key="):
        load_embeddings(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_not_finite_names_file_and_row(tmp_path: Path, value: float, suffix: str) -> None:
    z = Z.clone()
    z[2, 1] = z[4, 0] = value
    path = tmp_path / f"z{suffix}"
    np.save(path, z.numpy()) if suffix == ".npy" else safetensors.torch.save_file({"embedding": z}, path)
    message = rf"z{suffix} holds NaN or infinity in 2 of 5 rows; the first is row 2 \(column 1 is {value}\)"
    with pytest.raises(DataError, match=message):
        load_embeddings(path)
    with pytest.raises(DataError, match="embedding holds NaN or infinity"):
        save_embeddings(tmp_path / "new.npy", z)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no embedding file"):
        load_embeddings(tmp_path / "no.npy")
    with pytest.raises(ConfigError, match=r"\.npy or \.safetensors files; got z\.csv"):
        load_embeddings("z.csv")
    with pytest.raises(DataError, match=r"needs shape \(n, d\), one row per item; got shape \(5, 3, 1\)"):
        check_embeddings(Z[:, :, None])
    with pytest.raises(DataError, match=r"got shape \(0, 3\)"):
        check_embeddings(Z[:0])
    with pytest.raises(DataError, match=r"real numbers; got dtype torch.complex64"):
        check_embeddings(Z.to(torch.complex64))
    for name in ("bad.npy", "bad.safetensors"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(DataError, match=f"{name} cannot be read as"):
            load_embeddings(tmp_path / name)
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    with pytest.raises(DataError, match="needs an array of numbers; got <U1"):
        load_embeddings(tmp_path / "text.npy")
    np.save(tmp_path / "object.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"cannot be read as .npy: Object arrays cannot be loaded"):
        load_embeddings(tmp_path / "object.npy")
