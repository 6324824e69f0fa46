"""Eigenvectors of symmetric matrices, also where the CPU's library fails."""

import torch
from torch import Tensor

__all__ = ["eigh"]


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues `(d,)`, ascending, and eigenvectors `(d, d)` as columns of a symmetric matrix `(d, d)`.

    As `torch.linalg.eigh`, with its gradient. On the CPU, its divide and conquer gives NaN, without an error, for a few
    finite matrices of low rank, depending on the number of threads: these are solved once more, in float64 and with
    rows and columns in reverse order. A matrix that is not finite gives what torch gives.
    """
    value, vector = torch.linalg.eigh(matrix)
    if matrix.device.type == "cpu" and bool(value.isnan().any()) and bool(matrix.isfinite().all()):
        value, vector = torch.linalg.eigh(matrix.double().flip(0, 1))
        value, vector = value.to(matrix.dtype), vector.flip(0).to(matrix.dtype)
    return value, vector
