"""What a checkpoint's weights were trained on, and whether data is that."""

from collections.abc import Mapping
from typing import Any

from lspread.data import FewLabelData
from lspread.errors import DataError

__all__ = ["check_trained_on", "describe_data"]

SAME = 1e-3
"""Share of the deviation by which means of the same features may differ, on other machines and numbers of threads."""


def describe_data(data: FewLabelData) -> dict[str, Any]:
    """Return what a checkpoint has to know of its data."""
    return {"class_names": list(data.class_names), "features_fingerprint": data.features_fingerprint}


def check_trained_on(checkpoint: Mapping[str, Any], data: FewLabelData) -> None:
    """Refuse data that the weights of a checkpoint do not fit; one from before this was kept fits all.

    Raises:
        DataError: The data has other classes than the checkpoint, or features that were fitted to other rows.
    """
    names: list[str] = checkpoint.get("class_names", [])
    # Before the head is trained, no weight knows a class: other labels may start from a kept warm-up.
    is_free = not checkpoint.get("is_head_trained") and len(names) == data.num_classes
    if names and not is_free and names != list(data.class_names):
        raise DataError(
            f"the classes of {data.name} are {', '.join(data.class_names)}, but this run was trained on "
            f"{', '.join(names)}, in this order. Put these names back where the labels are, list them as "
            "--data.class_names (where a class has lost its last label), or train again."
        )
    if data.features_fingerprint is not None and not _has_features(checkpoint, data):
        raise DataError(
            f"the features of {data.name} are not those that this run was trained on: words and scales come from the "
            "rows of the training pool, and rows, labels or held-out shares have changed since. Put the file and the "
            "settings back as they were, or train again. `lspread predict RUN NEW.csv` labels new rows without them."
        )


def _has_features(checkpoint: Mapping[str, Any], data: FewLabelData) -> bool:
    """Whether data has the features of a checkpoint: fitted to the same rows, and with the same mean.

    The mean tells where features of these rows were made otherwise, by an earlier version.
    """
    if checkpoint.get("features_fingerprint", data.features_fingerprint) != data.features_fingerprint:
        return False
    if checkpoint.get("image_moments") is None:
        return True
    mean = checkpoint["image_moments"][0]
    return len(mean) == len(data.mean) and all(
        abs(value - other) <= SAME * deviation
        for value, other, deviation in zip(mean, data.mean, data.std, strict=True)
    )
