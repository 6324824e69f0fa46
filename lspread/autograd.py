"""The base of the package's own autograd functions, and what may be asked of a tensor."""

import inspect

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["Function", "is_readable", "needs_derivative"]


class Function(torch.autograd.Function):
    """`torch.autograd.Function` whose calls do not work out the signature of `forward` again.

    Torch asks `inspect` for it at every call of a function with `setup_context`, which takes longer than the arithmetic
    of a small graph; where a signature is noted, it takes that.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "forward" in vars(cls):
            cls.forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]


def is_readable(x: Tensor) -> bool:
    """Whether the numbers of `x` can be looked at for nothing: on the CPU, neither compiled nor inside torch.func.

    Looking costs a synchronization elsewhere, breaks a compiled graph, and is refused under `vmap`.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(x)


def needs_derivative(x: Tensor) -> bool:
    """Whether derivatives by x are taken: in reverse mode, or in forward mode, where nothing requires a gradient."""
    if torch.is_grad_enabled() and x.requires_grad:
        return True
    # torch.compile does not trace forward mode.
    return not torch.compiler.is_compiling() and forward_ad.unpack_dual(x).tangent is not None
