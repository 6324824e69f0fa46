"""What a checkpoint's weights were trained on, and whether data is that."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lspread.data import FewLabelData, FewLabelSplit
from lspread.data.vector_data import FeatureRows
from lspread.errors import DataError
from lspread.typing import UNLABELED

__all__ = ["check_trained_on", "count_unlearned", "describe_data"]

SAME = 1e-3
"""Share of the deviation by which means of the same features may differ, on other machines and numbers of threads."""
LIKE = 0.05
"""The same of the features of one item, on the average: a network may run in half precision."""
NUM_PROBES = 16
PARTS = ("labeled", "unlabeled", "val", "test")


def describe_data(data: FewLabelData) -> dict[str, Any]:
    """Return what a checkpoint has to know of its data."""
    known: dict[str, Any] = {
        "class_names": list(data.class_names),
        "features_fingerprint": data.features_fingerprint,
        "given_label": data.given_label.cpu(),
    }
    if data.has_names:
        known |= {"data_name": data.name, "item_key": data.item_keys, "item_part": _parts(data.split, len(data.items))}
        if _is_embedded(data):
            row = data.split.pool[:: max(1, len(data.split.pool) // NUM_PROBES)][:NUM_PROBES]
            known |= {"probe_row": row, "probe": data.images.fetch(row).flatten(1)}
    return known


def check_trained_on(checkpoint: Mapping[str, Any], data: FewLabelData, *, is_judged: bool = True) -> None:
    """Refuse data that the weights of a checkpoint do not fit; one from before this was kept fits all.

    Args:
        checkpoint: What `describe_data` said, among others.
        data: After `setup`.
        is_judged: Whether accuracies are to be measured, and not only labels to be given.

    Raises:
        DataError: The data has other classes than the checkpoint, features that were fitted to other rows or made by
            another network, or would be judged on items that were trained on.
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
    then, now = _shared_items(checkpoint, data)
    if len(then) and _is_embedded(data) and "probe" in checkpoint:
        _check_probe(checkpoint, data, then, now)
    if len(then) and is_judged and checkpoint.get("is_head_trained"):
        _check_not_judged(checkpoint, data, then, now)


def count_unlearned(checkpoint: Mapping[str, Any], data: FewLabelData) -> int:
    """Return how many of the data's given labels the weights of a checkpoint have not learned: added or changed since.

    Weights whose head is not trained, and those of a checkpoint from before labels were kept, lack none.
    """
    if "given_label" not in checkpoint or not checkpoint.get("is_head_trained"):
        return 0
    given, label = data.given_label.cpu(), checkpoint["given_label"]
    if data.has_names:
        then, now = _shared_items(checkpoint, data)
    else:
        then = now = torch.arange(min(len(label), len(given)))
    learned = torch.full_like(given, UNLABELED).index_copy(0, now, label[then])
    return int(((given != UNLABELED) & (given != learned)).sum())


def _shared_items(checkpoint: Mapping[str, Any], data: FewLabelData) -> tuple[Tensor, Tensor]:
    """Return the rows of the items that a checkpoint knows, there and in the data `(m,)` each."""
    none = torch.empty(0, dtype=torch.int64)
    if not data.has_names or checkpoint.get("data_name") != data.name:
        return none, none
    key, order = checkpoint["item_key"].sort()
    place = torch.searchsorted(key, data.item_keys).clamp(max=len(key) - 1)
    now = (key[place] == data.item_keys).nonzero().flatten()
    return order[place[now]], now


def _check_probe(checkpoint: Mapping[str, Any], data: FewLabelData, then: Tensor, now: Tensor) -> None:
    """Refuse embeddings of another network than those that the weights were trained on."""
    row_now = torch.full((len(checkpoint["item_key"]),), -1).index_copy(0, then, now)[checkpoint["probe_row"]]
    is_here = row_now >= 0
    found, known = data.images.fetch(row_now[is_here]).flatten(1), checkpoint["probe"][is_here]
    limit = LIKE * torch.tensor(data.std)
    if found.shape == known.shape and not ((found - known).abs() > limit).float().mean(1).gt(0.5).any():
        return
    raise DataError(
        f"the embeddings of {data.name} are not those that this run was trained on: the same items have other numbers. "
        "Embed them again with the network and the settings of then, or train again."
    )


def _check_not_judged(checkpoint: Mapping[str, Any], data: FewLabelData, then: Tensor, now: Tensor) -> None:
    """Refuse to judge the weights on items that they learned from."""
    part_then, part_now = checkpoint["item_part"][then], _parts(data.split, len(data.items))[now]
    labeled, unlabeled, val = (PARTS.index(name) for name in ("labeled", "unlabeled", "val"))
    is_seen = (part_then <= unlabeled) & (part_now >= val)
    is_told = (part_then == labeled) & (part_now == unlabeled)
    judged = now[data.evaluator.is_known(now) & (is_seen | is_told)]
    if len(judged):
        raise DataError(
            f"{len(judged):,} items of {data.name} that this run was trained on would be judged as if it had never "
            f"seen them or their labels (first: {data.items[int(judged[0])]}): labels, items or the options "
            "that draw them have changed since. Put them back as they were, name held-out items in files of their own "
            "(val_csv, test_csv), or train again. Other items that happen to have these names need another name of "
            "the data."
        )


def _parts(split: FewLabelSplit, num_items: int) -> Tensor:
    """Return where each item stands, a place in `PARTS` `(n,)` int8."""
    part = torch.full((num_items,), PARTS.index("unlabeled"), dtype=torch.int8)
    for number, name in enumerate(PARTS):
        part[getattr(split, name)] = number
    return part


def _is_embedded(data: FewLabelData) -> bool:
    """Whether a network elsewhere made the features, which nothing else tells from those of another."""
    return isinstance(data.images, FeatureRows) and data.features_fingerprint is None


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
