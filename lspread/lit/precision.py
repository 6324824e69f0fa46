"""The number format that a run trains in: bfloat16 only where the hardware is natively fast at it."""

from typing import Literal, NamedTuple

import torch

__all__ = ["PrecisionChoice", "choose_precision"]


class PrecisionChoice(NamedTuple):
    """`value`: what Lightning's Trainer gets; `reason`: one sentence for the user."""

    value: Literal["bf16-mixed", "32-true"]
    reason: str


def choose_precision(accelerator: str = "auto") -> PrecisionChoice:
    """Choose between bfloat16 mixed precision and float32 for this machine.

    Args:
        accelerator: The Trainer's accelerator option: "auto", "cpu", "gpu", "cuda", ...

    Returns:
        "bf16-mixed" on CUDA devices with bfloat16 units (compute capability 8.0 and later) and on CPUs with AMX or
        AVX-512 BF16 instructions, else "32-true": emulated bfloat16 rounds without being faster. float16 is never
        chosen; it needs loss scaling and is slower than float32 on CPUs.
    """
    if accelerator in {"auto", "gpu", "cuda"} and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return PrecisionChoice("bf16-mixed", f"{name} computes bfloat16 natively")
        return PrecisionChoice("32-true", f"{name} has no bfloat16 units")
    if accelerator in {"auto", "cpu"} and not _has_other_accelerator(accelerator):
        if _cpu_reports("_is_amx_tile_supported"):
            return PrecisionChoice("bf16-mixed", "this CPU has AMX tiles for bfloat16")
        if _cpu_reports("_is_avx512_bf16_supported"):
            return PrecisionChoice("bf16-mixed", "this CPU has AVX-512 bfloat16 instructions")
        return PrecisionChoice("32-true", "this CPU has no bfloat16 instructions")
    return PrecisionChoice("32-true", f"nothing is known about bfloat16 on accelerator {accelerator!r}")


def _has_other_accelerator(accelerator: str) -> bool:
    return accelerator == "auto" and torch.backends.mps.is_available()


def _cpu_reports(name: str) -> bool:
    # torch has no public name for these flags; an absent one counts as "no".
    probe = getattr(torch.cpu, name, None)
    return bool(probe()) if callable(probe) else False
