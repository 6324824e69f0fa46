"""Which settings a warm-up depends on, and where finished ones are kept."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["warm_up_folder", "warm_up_settings"]

_LATER = {
    *("num_classes", "weak", "supervised_weight", "pseudo_weight", "pseudo_reduction", "mixup", "cutmix"),
    *("confident_weight", "threshold", "curriculum", "align", "fairness_weight"),
    *("teacher_weight", "entropy_weight", "ramp_epochs"),
    *("contrastive_weight", "graph_contrastive_weight", "spread_weight", "consistency_weight", "agreement_weight"),
    *("bank_size", "spread_layer", "spread_k", "spread_alpha", "learn_spread"),
}
"""Settings of the model that nothing reads before the warm-up is over; those that add weights change its first ones."""
_AROUND = {
    *("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time", "logger", "fast_dev_run", "profiler"),
    *("limit_test_batches", "limit_predict_batches", "num_sanity_val_steps", "log_every_n_steps", "barebones"),
    *("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "inference_mode", "default_root_dir"),
}
"""Settings of the trainer that change nothing of what a warm-up learns. Validation does: its loader draws a number."""
_LATER_CALLBACKS = ("lspread.lit.RefreshPseudoLabels",)


def warm_up_folder(option: str | None) -> Path | None:
    """Return the folder that `--warmup_cache` means: "auto" is one of the user's cache, null none."""
    if option is None:
        return None
    if option != "auto":
        return Path(option).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lspread" / "warm_ups"


def warm_up_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the contrastive stage depends on, of all settings of a run but those of its data.

    What is not known to belong to the rest counts, so a new setting may train a warm-up anew, never take a wrong one.
    """
    model = {name: value for name, value in config["model"].items() if name not in _LATER}
    trainer = {name: value for name, value in config["trainer"].items() if name not in _AROUND}
    if model["warmup_lr"] is not None:
        del model["lr"]
    if model["view"] is not None:
        del model["strong"]
    # A timed run goes on with the clock of the run that trained the warm-up, if that had one.
    trainer["is_timed"] = config["trainer"].get("max_time") is not None
    callbacks = trainer.get("callbacks") or []
    trainer["callbacks"] = [one for one in callbacks if one["class_path"] not in _LATER_CALLBACKS]
    return {"seed": config["seed_everything"], "model": model, "trainer": trainer}
