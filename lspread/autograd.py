"""The base of the package's own autograd functions."""

import inspect

import torch

__all__ = ["Function"]


class Function(torch.autograd.Function):
    """`torch.autograd.Function` whose calls do not work out the signature of `forward` again.

    Torch asks `inspect` for it at every call of a function with `setup_context`, which takes longer than the arithmetic
    of a small graph; where a signature is noted, it takes that.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "forward" in vars(cls):
            cls.forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]
