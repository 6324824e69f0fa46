"""The in-batch path: half of a batch's labels are hidden and asked for through the batch's own graph."""

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lspread.labels import certainty, label_matrix, normalize_scores, spread_score_loss

__all__ = ["in_batch_losses"]


def in_batch_losses(
    layer: nn.Module, z: Tensor, logits: Tensor, label: Tensor, trust: Tensor, is_hidden: Tensor
) -> dict[str, Tensor]:
    """Spread the labels that are not hidden over the batch's graph, and ask for the hidden ones.

    Args:
        layer: From embeddings and soft targets to scores, such as `LabelSpreading`.
        z: Embeddings `(m, d)`.
        logits: Of the classifier `(m, c)`.
        label: `(m,)` int64; rows without trust may hold `UNLABELED`.
        trust: How far each label is trusted `(m,)`; 0 where there is none.
        is_hidden: `(m,)` bool; copies of one item must be hidden together, or one gives the other away.

    Returns:
        "spread": negative log of the share that the hidden label got, with gradient to embeddings and layer;
        "consistency": cross entropy of the classifier to the graph's answer for hidden rows, by its certainty.
    """
    targets = label_matrix(label, logits.shape[1]) * (trust * ~is_hidden)[:, None]
    scores = layer(z, targets)
    probability, is_reached = normalize_scores(scores.detach())
    weight = certainty(probability) * is_reached * is_hidden
    return {
        "spread": spread_score_loss(scores, label.clamp(min=0), trust * is_hidden),
        "consistency": (weight * cross_entropy(logits.float(), probability, reduction="none")).mean(),
    }
