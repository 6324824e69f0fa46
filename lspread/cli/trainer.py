"""Lightning's Trainer with defaults for this package and a precision that fits the machine."""

from typing import Any, Literal

from lightning.pytorch import Trainer

from lspread.lit.precision import choose_precision

__all__ = ["RunTrainer"]

# Images come as float32 and graphs are solved in it: weights of another dtype would not fit them.
_Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


class RunTrainer(Trainer):
    """Lightning's Trainer with `precision="auto"`.

    Args:
        precision: "auto" takes bfloat16 where this machine is natively fast at it, else float32 (see
            `lspread.lit.precision`); the others are Lightning's. Weights are float32 in all of them.
        accelerator: As in Lightning's Trainer.
        devices: As in Lightning's Trainer; one device by default.
        num_sanity_val_steps: As in Lightning's Trainer; none by default, since nothing is known before training.
        enable_model_summary: As in Lightning's Trainer; off by default.
        **kwargs: Other options of Lightning's Trainer.
    """

    def __init__(
        self,
        *,
        precision: _Precision = "auto",
        accelerator: str = "auto",
        devices: list[int] | str | int = 1,
        num_sanity_val_steps: int = 0,
        enable_model_summary: bool = False,
        **kwargs: Any,
    ) -> None:
        chosen: str = precision
        if precision == "auto":
            choice = choose_precision(accelerator)
            chosen = choice.value
            print(f"precision: {choice.value} ({choice.reason}; --trainer.precision sets another)")
        super().__init__(
            precision=chosen,  # type: ignore[arg-type]
            accelerator=accelerator,
            devices=devices,
            num_sanity_val_steps=num_sanity_val_steps,
            enable_model_summary=enable_model_summary,
            **kwargs,
        )
