"""New items after spreading: a vote of the nearest items whose scores are known."""

from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lspread.errors import ConfigError, GraphError
from lspread.graph import find_neighbors
from lspread.labels import normalize_scores
from lspread.typing import Metric

__all__ = ["InductiveHead", "VoteWeight"]

VoteWeight: TypeAlias = Literal["self_tuning", "gaussian", "cosine", "uniform"]
"""Weights of the k votes at distance d: exp(-d^2 / (bandwidth^2 s_x s_j)) with s the distance to the k-th neighbour,
exp(-d^2 / (2 bandwidth^2)), max(cos, 0)^3, or 1."""

SPARE = 8
"""Candidates beyond k that are measured again, so that rounding in the product cannot push out a neighbour."""
COSINE_POWER = 3


class InductiveHead(nn.Module):
    """Class probabilities of new embeddings from a bank: p(x) = sum_j w(x, z_j) p_j / sum_j w(x, z_j), j the k nearest.

    It is where the scores of a new node settle that listens to its neighbours but that they do not listen to. Bank
    and scores are buffers: they move with `.to(device)`, are saved in `state_dict`, and are part of what
    `torch.export` writes. `load_state_dict` takes a bank of any number of rows.

    Args:
        embedding: Bank `(n, d)`, e.g. of the training images.
        scores: Of the bank's rows `(n, c)`, e.g. from `spread_labels`; scaled to sum one. Rows of zeros (no label
            arrived) have no vote and are left out of the bank, by metric "cosine" also embeddings of zeros.
        k: Neighbours that vote; at most the rows of the bank do.
        weight: "self_tuning", "gaussian", "cosine" or "uniform"; with "cosine" neighbours are found by it too.
        bandwidth: Width of "self_tuning" (in units of the local distances) and "gaussian", > 0.
        metric: "euclidean" or "cosine".

    Attributes:
        embedding: Buffer `(n, d)`, the rows that vote; by metric "cosine" at length one.
        probability: Buffer `(n, c)`, their class probabilities.
        width: Buffer `(n,)`, the distance of each to its k-th neighbor in the bank.

    Example:
        >>> head = InductiveHead(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), k=2)
        >>> head(torch.tensor([[0.1], [0.8]])).argmax(1).tolist()
        [0, 1]

    References:
        Delalleau, Bengio and Le Roux, "Efficient Non-Parametric Function Induction in Semi-Supervised Learning",
        AISTATS 2005, equation 7.
    """

    embedding: Tensor
    probability: Tensor
    width: Tensor
    middle: Tensor

    def __init__(
        self,
        embedding: Tensor,
        scores: Tensor,
        *,
        k: int = 15,
        weight: VoteWeight = "self_tuning",
        bandwidth: float = 1.0,
        metric: Metric = "euclidean",
    ) -> None:
        super().__init__()
        if embedding.ndim != 2 or scores.ndim != 2 or len(scores) != len(embedding):
            raise GraphError(
                f"InductiveHead needs embeddings (n, d) and their scores (n, c); got {tuple(embedding.shape)} and "
                f"{tuple(scores.shape)}."
            )
        for name, value, choices in (("weight", weight, get_args(VoteWeight)), ("metric", metric, get_args(Metric))):
            if value not in choices:
                raise ConfigError(f"{name} must be one of {choices}; got {value!r}.")
        if k < 1 or not bandwidth > 0:
            raise ConfigError(f"k must be at least 1 and bandwidth greater than 0; got k={k}, bandwidth={bandwidth}.")
        self.k, self.weight, self.bandwidth = k, weight, float(bandwidth)
        self.metric: Metric = "cosine" if weight == "cosine" else metric
        dtype = torch.float64 if embedding.dtype == torch.float64 else torch.float32
        probability, is_reached = normalize_scores(scores.detach().to(dtype))
        bank = self._prepare(embedding.detach().to(dtype))
        has_vote = is_reached & (bank != 0).any(1) if self.metric == "cosine" else is_reached
        bank = bank[has_vote]
        self.register_buffer("embedding", bank)
        self.register_buffer("probability", probability[has_vote])
        self.register_buffer("width", self._widths(bank))
        # Known from the bank, so no file holds it.
        self.register_buffer("middle", _middle(bank), persistent=False)

    def _prepare(self, z: Tensor) -> Tensor:
        return normalize(z, dim=1) if self.metric == "cosine" else z

    def _widths(self, bank: Tensor) -> Tensor:
        """Return the distance of every row to its last neighbour `(n,)`; the mean where all coincide with it."""
        if len(bank) < 2:
            return torch.ones_like(bank[:, 0])
        width = find_neighbors(bank, min(self.k, len(bank) - 1)).distance[:, -1]
        mean = width.sum() / (width > 0).sum().clamp(min=1)
        return torch.where(width > 0, width, torch.where(mean > 0, mean, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return class probabilities of new embeddings.

        Args:
            x: `(m, d)`, any floating dtype.

        Returns:
            `(m, c)` of the bank's dtype, rows sum to one; uniform where the bank is empty or no vote has weight, as for
            x = 0 by metric "cosine"; never NaN for finite x. Gradient to `x` through the weights. Computed outside
            autocast; O(m n d) time and O(m n) memory, so give a large set in batches.

        Raises:
            GraphError: `x` has another width than the bank.
        """
        return self.vote(x)[0]

    def vote(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `forward` does, and how far away its voters are.

        Args:
            x: As in `forward`.

        Returns:
            Probabilities `(m, c)`, and the distance of each row to its k-th neighbor in the bank `(m,)`: Euclidean, by
            metric "cosine" between vectors of length one; infinite where the bank is empty; no gradient. The buffer
            `width` holds the same of the bank's own rows.
        """
        if x.ndim != 2 or x.shape[1] != self.embedding.shape[1]:
            raise GraphError(
                f"x must hold embeddings (m, {self.embedding.shape[1]}), as wide as the bank; got {tuple(x.shape)}."
            )
        with torch.autocast(x.device.type, enabled=False):
            x = self._prepare(x.to(self.embedding.dtype))
            squared, index = self._nearest(x)
            weight = self._vote(squared, index)
            if self.metric == "cosine":
                # A vector of length zero has no direction: at right angles to all, as in the search.
                is_zero = (x == 0).all(1, keepdim=True)
                weight, squared = torch.where(is_zero, 0, weight), torch.where(is_zero, 2, squared)
            mass = (weight.unsqueeze(2) * self.probability[index]).sum(1)
            total = weight.sum(1, keepdim=True)
            probability = torch.where(total > 0, mass / torch.where(total > 0, total, 1), 1 / self.probability.shape[1])
            distance = squared[:, -1].detach().sqrt() if squared.shape[1] else torch.full_like(total[:, 0], torch.inf)
            return probability, distance

    def _nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return squared distances `(m, k)`, nearest first, and rows of the bank."""
        bank = self.embedding
        k = min(self.k, len(bank))
        with torch.no_grad():
            # Half the squared distance up to |x|^2 / 2; near the bank's middle the product loses the fewest digits.
            # In float32 these are still too few for tight clusters far apart; float64 takes less than twice as long.
            wide = bank.dtype if bank.device.type == "mps" else torch.float64  # which MPS does not have
            near = bank.to(wide) - self.middle
            score = torch.addmm(near.square().sum(1) / 2, x.to(wide) - self.middle, near.T, alpha=-1)
            candidate = score.topk(min(k + SPARE, len(bank)), largest=False).indices
            measured = (x[:, None] - bank[candidate]).square().sum(2)
            index = candidate.gather(1, measured.topk(k, largest=False).indices)
        return (x[:, None] - bank[index]).square().sum(2), index

    def _vote(self, squared: Tensor, index: Tensor) -> Tensor:
        """Return the weights of the votes `(m, k)`, up to one factor per row."""
        if self.weight == "uniform" or not index.shape[1]:
            return torch.ones_like(squared)
        if self.weight == "cosine":
            return (1 - squared / 2).clamp(min=0) ** COSINE_POWER
        if self.weight == "gaussian":
            exponent = squared / (2 * self.bandwidth**2)
        else:
            tiny = torch.finfo(squared.dtype).tiny
            own = squared[:, -1:].clamp(min=tiny).sqrt()
            exponent = squared / (self.bandwidth**2 * own * self.width[index])
        # The largest weight is one: far from the bank all would vanish.
        return torch.exp(exponent.detach().amin(1, keepdim=True) - exponent)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("embedding", "probability", "width"):
            saved, own = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(saved, Tensor) and saved.shape[1:] == own.shape[1:]:
                setattr(self, name, own.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.middle = _middle(self.embedding)

    def extra_repr(self) -> str:
        """Return what `print(head)` shows."""
        rows, width = self.embedding.shape
        return (
            f"bank=({rows}, {width}), num_classes={self.probability.shape[1]}, k={self.k}, weight={self.weight!r}, "
            f"bandwidth={self.bandwidth:g}, metric={self.metric!r}"
        )


def _middle(bank: Tensor) -> Tensor:
    """Return the median of each number `(d,)`: one row far off would draw a mean along, and take the digits of all."""
    return bank.median(0).values if len(bank) else bank.sum(0)
