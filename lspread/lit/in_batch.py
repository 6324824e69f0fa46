"""The in-batch path: each batch has its own graph, through which the gradient reaches the backbone."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lspread.labels import (
    Anchors,
    PseudoLabels,
    agreement_loss,
    certainty,
    label_matrix,
    normalize_scores,
    spread_score_loss,
)
from lspread.nn import EmbeddingBank
from lspread.typing import UNLABELED

__all__ = ["InBatchPath", "in_batch_losses", "label_and_trust"]


class InBatchPath:
    """Asks the graph of each batch for labels that it hides, and for one answer to two views.

    No module, so that weight averaging and checkpoints leave its bank alone: a resumed run fills it again.

    Args:
        bank_size: So many other items stand beside each batch in its graph, with the embedding that they had last and
            without gradient; 0 keeps no bank.
    """

    def __init__(self, bank_size: int = 0) -> None:
        self.bank_size = bank_size
        self._bank: EmbeddingBank | None = None
        self._pool = torch.zeros(0, dtype=torch.int64)

    def start(self, pool: Tensor) -> None:
        """Forget all embeddings; items of the pool `(p,)` int64, ascending, are what the bank will hold."""
        self._pool, self._bank = pool, None

    def losses(
        self,
        layer: nn.Module,
        z: Mapping[str, Tensor],
        logits: Mapping[str, Tensor],
        index: Mapping[str, Tensor],
        label: Tensor,
        trust: Tensor,
        wanted: Collection[str],
    ) -> dict[str, Tensor]:
        """Return those of "spread", "consistency" (see `in_batch_losses`) and "agreement" that are wanted.

        Args:
            layer: From embeddings and soft targets to scores, such as `LabelSpreading`.
            z: Embeddings of the views "labeled", "strong" and, for "agreement", "second" of the pool's images.
            logits: Of the classifier, for "labeled" and "strong".
            index: Which items they are, "labeled" and "pool".
            label: Of all items `(n,)` int64.
            trust: How far each label is trusted `(n,)`; 0 where there is none.
            wanted: Names of losses.
        """
        num_classes = logits["strong"].shape[1]
        items = torch.cat([index["labeled"], index["pool"]])
        rows = torch.cat([z["labeled"], z["strong"]])
        beside = self._sample(rows, items)
        # Drawn per item, not per row: another copy of the same image must not give the answer away.
        is_hidden = torch.rand(len(label), device=rows.device) < 0.5
        found = {}
        if "spread" in wanted or "consistency" in wanted:
            anchors = _with_labels(beside, label, trust * ~is_hidden, num_classes)
            both = torch.cat([logits["labeled"], logits["strong"]])
            found = in_batch_losses(layer, rows, both, label[items], trust[items], is_hidden[items], anchors)
        if "agreement" in wanted:
            anchors = _with_labels(beside, label, trust, num_classes)
            targets = label_matrix(label[items], num_classes) * trust[items, None]
            targets[len(z["labeled"]) :] = 0  # what is asked
            first, second = (
                layer(torch.cat([z["labeled"], z[view]]), targets, anchors=anchors)[len(z["labeled"]) :]
                for view in ("strong", "second")
            )
            found["agreement"] = agreement_loss(first, second)
        self._remember(rows, items)
        return {name: loss for name, loss in found.items() if name in wanted}

    def _sample(self, rows: Tensor, items: Tensor) -> Anchors | None:
        """Return rows of the bank beside the batch, numbered as items; None without a bank."""
        if not self.bank_size:
            return None
        if self._bank is None:
            self._pool = self._pool.to(rows.device)
            self._bank = EmbeddingBank(torch.full_like(self._pool, UNLABELED), rows.shape[1]).to(rows.device)
        anchors = self._bank.sample(self.bank_size, exclude=torch.searchsorted(self._pool, items), order="random")
        return Anchors(anchors.embedding, anchors.label, self._pool[anchors.index])

    def _remember(self, rows: Tensor, items: Tensor) -> None:
        if self._bank is not None:
            self._bank.update(torch.searchsorted(self._pool, items), rows)


def in_batch_losses(
    layer: nn.Module,
    z: Tensor,
    logits: Tensor,
    label: Tensor,
    trust: Tensor,
    is_hidden: Tensor,
    anchors: Anchors | None = None,
) -> dict[str, Tensor]:
    """Spread the labels that are not hidden over the batch's graph, and ask for the hidden ones.

    Args:
        layer: From embeddings and soft targets to scores, such as `LabelSpreading`.
        z: Embeddings `(m, d)`.
        logits: Of the classifier `(m, c)`.
        label: `(m,)` int64; rows without trust may hold `UNLABELED`.
        trust: How far each label is trusted `(m,)`; 0 where there is none.
        is_hidden: `(m,)` bool; copies of one item must be hidden together, or one gives the other away.
        anchors: Other items of the graph.

    Returns:
        "spread": negative log of the share that the hidden label got, with gradient to embeddings and layer;
        "consistency": cross entropy of the classifier to the graph's answer for hidden rows, by its certainty.
    """
    targets = label_matrix(label, logits.shape[1]) * (trust * ~is_hidden)[:, None]
    scores = layer(z, targets, anchors=anchors)
    probability, is_reached = normalize_scores(scores.detach())
    weight = certainty(probability) * is_reached * is_hidden
    return {
        "spread": spread_score_loss(scores, label.clamp(min=0), trust * is_hidden),
        "consistency": (weight * cross_entropy(logits.float(), probability, reduction="none")).mean(),
    }


def _with_labels(beside: Anchors | None, label: Tensor, trust: Tensor, num_classes: int) -> Anchors | None:
    """Give the rows of the bank what is known of their labels."""
    if beside is None or beside.index is None:
        return None
    targets = label_matrix(label[beside.index], num_classes) * trust[beside.index, None]
    return Anchors(beside.embedding, targets, beside.index)


def label_and_trust(pseudo: PseudoLabels | None, given: Tensor) -> tuple[Tensor, Tensor]:
    """Return a label `(n,)` and its weight `(n,)` for every item: pseudo-labels, or at first the given ones."""
    if pseudo is None:
        return given, (given != UNLABELED).to(torch.float32)
    return pseudo.label, pseudo.weight
