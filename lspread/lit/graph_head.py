"""The graph of a finished run as a head for new images: a bank of training embeddings whose labels vote."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lspread.errors import ConfigError, DataError
from lspread.graph import CosinePower, Gaussian, Kernel, SelfTuning, Uniform, Whitening
from lspread.labels import PseudoLabels
from lspread.lit.refresh import RefreshPseudoLabels
from lspread.lit.saved_model import SavedClassifier, load_classifier
from lspread.nn import InductiveHead

__all__ = [
    "GRAPH_HEAD_FILE",
    "MAX_ROWS",
    "GraphClassifier",
    "GraphHead",
    "load_graph_classifier",
    "load_graph_head",
    "make_graph_head",
    "save_graph_head",
]

GRAPH_HEAD_FILE = "graph_head.safetensors"
MAX_ROWS = 20_000
FAR_QUANTILE = 0.99
"""Share of the bank's own rows that are nearer to their k-th neighbor than what is called far."""
_FORMAT, _FACTS = "lspread-graph-head-1", "lspread"


class GraphHead(nn.Module):
    """Class probabilities of new embeddings: whiten them as the graph did, then let the nearest bank rows vote.

    Args:
        head: The bank, of embeddings as the graph saw them.
        whitening: What was done to the backbone's embeddings before; None for nothing.
        far_distance: A new item is far if its k-th neighbor in the bank is further away than this; None takes what 99 %
            of the bank's own rows stay below. With an empty bank everything is far.
    """

    center: Tensor | None
    axes: Tensor | None
    far_distance: Tensor

    def __init__(
        self,
        head: InductiveHead,
        whitening: Whitening | None = None,
        *,
        far_distance: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("center", None if whitening is None else whitening.center)
        self.register_buffer("axes", None if whitening is None else whitening.axes)
        if far_distance is None:
            rank = max(1, round(FAR_QUANTILE * len(head.width)))
            far_distance = head.width.kthvalue(rank).values if len(head.width) else head.width.new_zeros(())
        self.register_buffer("far_distance", far_distance)

    def forward(self, z: Tensor) -> Tensor:
        """Return class probabilities `(m, c)` of the backbone's embeddings `(m, d)`."""
        return self.vote(z)[0]

    def vote(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return class probabilities `(m, c)`, and which embeddings are far from all training items `(m,)` bool."""
        with torch.autocast(z.device.type, enabled=False):
            if self.center is not None and self.axes is not None:
                z = Whitening(self.center, self.axes)(z)
            probability, distance = self.head.vote(z)
        # The bank's rows are rounded to half precision, so their sum is one to three digits only.
        return probability / probability.sum(1, keepdim=True), distance > self.far_distance


class GraphClassifier(nn.Module):
    """Images in, class probabilities of the graph head out.

    Args:
        classifier: The run's network.
        graph_head: The head that answers in place of the classifier's own.
    """

    def __init__(self, classifier: SavedClassifier, graph_head: GraphHead) -> None:
        super().__init__()
        self.classifier = classifier
        self.graph_head = graph_head  # not `graph`: that name is torch.fx's, and torch.export stumbles over it
        self.class_names = classifier.class_names
        self.image_shape = classifier.image_shape

    def forward(self, image: Tensor) -> Tensor:
        """Return probabilities `(m, c)` of images `(m, ch, h, w)`: uint8, or float in [0, 1]."""
        probability: Tensor = self.graph_head(self.classifier.embed(image))
        return probability


def make_graph_head(
    z: Tensor,
    pseudo: PseudoLabels,
    pool: Tensor,
    refresh: RefreshPseudoLabels,
    *,
    max_rows: int = MAX_ROWS,
    seed: int = 0,
) -> GraphHead:
    """Build the head from a run's last graph.

    Args:
        z: The backbone's embeddings of all n items `(n, d)`.
        pseudo: What was spread over the graph, of all n items.
        pool: Items that the graph consists of `(p,)` int64.
        refresh: How the graph was built: whitening, metric, k and kernel are taken over. The votes of a cosine kernel
            are cubed, those of a kernel of one's own are self-tuning.
        max_rows: Rows of the bank at most. Of a larger pool, given labels and a random choice of the others stay: a
            random choice is as dense here and there as the pool, so neighbors keep their meaning. Items that no label
            reached are never in it.
        seed: Of the choice.

    Returns:
        The head on the CPU. Embeddings and probabilities are rounded to half precision, as they are saved (unless
        that would lose more than a thousandth); its answers before and after saving are the same.

    Raises:
        ConfigError: `max_rows` is below 1.
    """
    if max_rows < 1:
        raise ConfigError(f"max_rows must be at least 1; got {max_rows}.")
    pool = pool.cpu()
    z = z.detach().cpu().float()[pool]
    whitening = refresh.fit_whitening(z)
    is_given, is_reached, probability = (
        value.cpu()[pool] for value in (pseudo.is_given, pseudo.is_reached, pseudo.probability)
    )
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
    order = order[is_reached[order]]
    order = torch.cat([order[is_given[order]], order[~is_given[order]]])
    rows = order[:max_rows].sort().values
    head = InductiveHead(
        z[rows] if whitening is None else whitening(z[rows]),
        probability[rows],
        k=refresh.k,
        metric=refresh.metric,
        **_vote_options(refresh.kernel),
    )
    head.embedding.copy_(_shorten(head.embedding))
    head.probability.copy_(_shorten(head.probability))
    return GraphHead(head, whitening).eval()


def save_graph_head(folder: str | Path, graph: GraphHead) -> Path:
    """Write `graph_head.safetensors`: whitening, bank and votes as tensors, their options as JSON in its metadata."""
    from safetensors.torch import save

    head = graph.head
    facts = {
        "format": _FORMAT,
        "k": head.k,
        "weight": head.weight,
        "bandwidth": head.bandwidth,
        "metric": head.metric,
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in graph.state_dict().items()}
    for name in ("head.embedding", "head.probability"):
        tensors[name] = _shorten(tensors[name])
    path = Path(folder) / GRAPH_HEAD_FILE
    path.write_bytes(save(tensors, metadata={_FACTS: json.dumps(facts)}))
    return path


def load_graph_head(folder: str | Path) -> GraphHead:
    """Read what `save_graph_head` wrote, in eval mode on the CPU; nothing is unpickled.

    Raises:
        DataError: The folder has no graph head, or the file is damaged.
    """
    import safetensors

    path = Path(folder) / GRAPH_HEAD_FILE
    if not path.is_file():
        raise DataError(
            f"{folder} has no {GRAPH_HEAD_FILE}: the run has no graph (RefreshPseudoLabels), was told to keep none "
            f"(graph_head_rows 0), or is older than graph heads. For an older one, `lspread fit {folder}` writes it "
            "without training again."
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[_FACTS])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if facts["format"] != _FORMAT:
            raise ValueError(f"format {facts['format']}")
        bank, probability = tensors["head.embedding"].float(), tensors["head.probability"].float()
        # One row to begin with: the widths of the others are in the file and need not be searched again.
        options: dict[str, Any] = {name: facts[name] for name in ("k", "weight", "bandwidth", "metric")}
        head = InductiveHead(bank[:1], probability[:1], **options)
        whitening = Whitening(tensors["center"], tensors["axes"]) if "axes" in tensors else None
        graph = GraphHead(head, whitening, far_distance=tensors["far_distance"])
        graph.load_state_dict(tensors)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {error}).") from error
    return graph.eval()


def load_graph_classifier(folder: str | Path, *, backbone: nn.Module | None = None) -> GraphClassifier:
    """Rebuild the network of a run with its graph head; arguments and errors are those of the two loaders."""
    return GraphClassifier(load_classifier(folder, backbone=backbone), load_graph_head(folder)).eval()


def _vote_options(kernel: Kernel) -> dict[str, Any]:
    """Return the vote that weighs as a kernel weighs its edges."""
    if isinstance(kernel, CosinePower):
        return {"weight": "cosine"}
    if isinstance(kernel, Uniform):
        return {"weight": "uniform"}
    if isinstance(kernel, Gaussian):
        return {"weight": "gaussian", "bandwidth": float(kernel.bandwidth)}
    return {"bandwidth": float(kernel.scale) ** -0.5 if isinstance(kernel, SelfTuning) else 1.0}


def _shorten(value: Tensor) -> Tensor:
    """Return a tensor in half precision, or as it is where that would lose too much."""
    half = value.half()
    # By the cosine, embeddings of zeros are in no bank; the mean of none is NaN.
    if not value.numel():
        return half
    is_close = torch.allclose(half.float(), value, rtol=1e-3, atol=1e-3 * float(value.abs().mean()))
    return half if is_close else value
