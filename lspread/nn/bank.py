"""A memory bank: the latest embedding of every item, from which a batch's graph takes its anchors."""

from typing import Any, Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from lspread.errors import ConfigError, GraphError
from lspread.labels import Anchors
from lspread.typing import UNLABELED

__all__ = ["BankOrder", "EmbeddingBank"]

BankOrder: TypeAlias = Literal["freshest", "random"]

NEVER: Final = -1
"""The step at which a row was written that holds nothing yet."""


class EmbeddingBank(nn.Module):
    """The latest embedding of every item of a data set, without gradient, and its label.

    A batch of 64 images seldom holds a labeled one of every class; with anchors from the bank its graph does:

        anchors = bank.sample(512, exclude=index)
        scores = layer(z, label, anchors=anchors)
        bank.update(index, z)

    Args:
        label: Given labels of all items `(n,)` int64 with `UNLABELED` (-1) where unknown, or soft `(n, c)` with zero
            rows there. Labeled items are the supports, which every sample keeps.
        dim: Width d of the embeddings.
        momentum: Share in [0, 1) of the old embedding that an update keeps; 0 replaces it.
        dtype: Of the stored embeddings; bfloat16 halves the memory.

    Attributes:
        embedding: Buffer `(n, d)`.
        label: Buffer `(n,)` or `(n, c)`.
        is_support: Buffer `(n,)` bool.
        written: Buffer `(n,)` int64, the step at which a row was last written, -1 where it never was.
        step: Buffer, 0-dimensional int64: how many updates there were.

    Raises:
        ConfigError: `dim` is below 1 or `momentum` outside [0, 1).
        GraphError: `label` has another shape or dtype.

    References:
        Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, section 3.1.
    """

    embedding: Tensor
    label: Tensor
    is_support: Tensor
    written: Tensor
    step: Tensor
    _num_supports: int
    _is_full: bool

    def __init__(self, label: Tensor, dim: int, *, momentum: float = 0.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if dim < 1 or not 0 <= momentum < 1:
            raise ConfigError(
                f"EmbeddingBank needs dim >= 1 and momentum in [0, 1); got dim={dim}, momentum={momentum}."
            )
        is_hard = label.dtype == torch.int64 and label.ndim == 1
        if not is_hard and not (label.is_floating_point() and label.ndim == 2):
            raise GraphError(
                f"label must be int64 of shape (n,) with {UNLABELED} for unlabeled, or soft (n, c); got "
                f"{tuple(label.shape)} {label.dtype}."
            )
        self.momentum = momentum
        self.register_buffer("label", label.detach().clone())
        self.register_buffer("is_support", label != UNLABELED if is_hard else (label.detach() != 0).any(1))
        self.register_buffer("embedding", torch.zeros(len(label), dim, dtype=dtype, device=label.device))
        self.register_buffer("written", torch.full((len(label),), NEVER, device=label.device))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device=label.device))
        self.register_load_state_dict_post_hook(_look_again)
        _look_again(self)

    @property
    def num_items(self) -> int:
        """Number of items n."""
        return len(self.label)

    @property
    def age(self) -> Tensor:
        """Updates since each row was written `(n,)` int64; -1 where it never was."""
        return torch.where(self.written == NEVER, NEVER, self.step - self.written)

    @torch.no_grad()
    def update(self, index: Tensor, z: Tensor, label: Tensor | None = None) -> None:
        """Write the embeddings of a batch, and labels if there are new ones; supports keep theirs.

        Args:
            index: Items `(m,)` int64; of an item that comes twice, one row is kept.
            z: Embeddings `(m, d)`, any floating dtype, detached here.
            label: New labels `(m,)` or `(m, c)`, as in the bank, e.g. pseudo-labels.

        Raises:
            GraphError: Shapes do not fit.
        """
        self._check(index, z)
        old = self.embedding[index]
        # What was never written has no past to keep.
        kept = self.momentum * (self.written[index] != NEVER).to(old.dtype).unsqueeze(1)
        z = z.to(old.dtype)
        # Infinity times no share is NaN, so what counts for nothing, or is no number, is left out.
        is_kept = (kept > 0) & old.isfinite().all(1, keepdim=True)
        self.embedding[index] = torch.where(is_kept, torch.lerp(z, old, kept), z)
        self.step += 1
        self.written[index] = self.step
        if label is not None:
            is_held = self.is_support[index].view(-1, *[1] * (self.label.ndim - 1))
            self.label[index] = torch.where(is_held, self.label[index], label.to(self.label.dtype))

    @torch.no_grad()
    def fill(self, z: Tensor) -> None:
        """Write the embeddings of all items `(n, d)`, e.g. from `embed`. Raises `GraphError` for another shape."""
        self._check(self.written, z)
        self.embedding.copy_(z)
        self.step += 1
        self.written.copy_(self.step.expand_as(self.written))
        self._is_full = True

    @torch.no_grad()
    def sample(
        self,
        size: int,
        *,
        exclude: Tensor | None = None,
        order: BankOrder = "freshest",
        generator: torch.Generator | None = None,
    ) -> Anchors:
        """Take all supports and as many other rows as there is room for.

        Args:
            size: Rows to take, supports among them. Fewer come back while the bank holds fewer.
            exclude: Items `(m,)` int64 to leave out: those of the batch itself, whose old copies would be their
                nearest neighbors and give hidden labels away.
            order: Which others: "freshest", written last, or "random".
            generator: For "random"; on the bank's device.

        Returns:
            `Anchors`, supports first, detached copies. Once every row was written, nothing is read from the device.

        Raises:
            ConfigError: `size` is below 1 or the number of supports, or `order` is unknown.
        """
        if order not in get_args(BankOrder):
            raise ConfigError(f"order must be one of {get_args(BankOrder)}; got {order!r}.")
        if size < max(1, self._num_supports):
            raise ConfigError(
                f"size must have room for all {self._num_supports} supports, which every sample keeps; got {size}."
            )
        is_there = self.written != NEVER
        if not self._is_full:
            self._is_full = bool(is_there.all())  # sync: until every row was written
        if exclude is not None:
            is_there = is_there.index_fill(0, exclude, False)
        if self._is_full:
            size = min(size, max(0, self.num_items - (0 if exclude is None else len(exclude))))
        else:
            size = min(size, int(is_there.sum()))  # sync: likewise
        if order == "freshest":
            rank = self.written + self.is_support * (self.step + 1)
        else:
            rank = torch.rand(self.num_items, generator=generator, device=self.label.device) + self.is_support
        index = torch.where(is_there, rank, NEVER).topk(size).indices
        return Anchors(self.embedding[index], self.label[index], index)

    def extra_repr(self) -> str:
        """Return what `print(bank)` shows."""
        return f"num_items={self.num_items}, dim={self.embedding.shape[1]}, momentum={self.momentum}"

    def _check(self, index: Tensor, z: Tensor) -> None:
        if index.ndim != 1 or z.shape != (len(index), self.embedding.shape[1]):
            raise GraphError(
                f"the bank needs index (m,) and z (m, {self.embedding.shape[1]}), m = {self.num_items} to fill it; got "
                f"{tuple(index.shape)} and {tuple(z.shape)}."
            )


def _look_again(bank: EmbeddingBank, _: Any = None) -> None:
    """Note what the host must know of the buffers."""
    bank._num_supports = int(bank.is_support.sum())  # sync: once, after construction and loading
    bank._is_full = False
