"""The epoch path: every few epochs, from all images to fresh pseudo-labels."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lspread.data import FewLabelData
from lspread.errors import ConfigError
from lspread.graph import (
    CosinePower,
    Graph,
    Kernel,
    SelfTuning,
    Uniform,
    Whitening,
    build_graph,
    find_neighbors,
    fit_whitening,
    normalize_graph,
)
from lspread.labels import (
    ClassPrior,
    PseudoLabels,
    check_alpha,
    class_prior,
    label_matrix,
    pseudo_labels,
    reinforce_labels,
    sharpen_pseudo_labels,
    spread_labels,
)
from lspread.lit.averaging import averaged_module
from lspread.lit.module import FewLabelClassifier
from lspread.nn import embed
from lspread.solve import ConjugateGradient, Solution, Solver
from lspread.typing import UNLABELED, Metric, Symmetrize

__all__ = ["RefreshPseudoLabels", "Spread", "averaged_backbone"]

KERNELS: dict[str, Callable[[], Kernel]] = {"self_tuning": SelfTuning, "cosine": CosinePower, "uniform": Uniform}
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Spread:
    """What one refresh found; graph rows are pool items in ascending order.

    Attributes:
        graph: Normalized graph of the p pool items.
        scores: `(p, c)` spread scores.
        pseudo: Pseudo-labels of all n items; items outside the pool have weight 0 and are not reached.
        facts: Numbers and words about graph and solve: k, metric, whiten, kernel, alpha, num_edges, num_unreached,
            solver, num_steps, status, error_bound.
        seconds: Time of each stage: embed, neighbors, graph, spread.
    """

    graph: Graph
    scores: Tensor
    pseudo: PseudoLabels
    facts: dict[str, Any]
    seconds: dict[str, float]


class RefreshPseudoLabels(Callback):
    """Embeds all pool images, builds their graph, spreads the given labels and hands the module its pseudo-labels.

    Runs when an epoch starts, first after the module's warm-up. It uses the averaged weights where a weight-averaging
    callback keeps some, the evaluation transform, and the last scores as a first guess. Logs the time of each stage,
    solver steps, whether the solve converged, unreached items, the mean weight and, where the evaluator knows the
    truth, the accuracy of pseudo-labels (for people to look at; nothing depends on it).

    Args:
        k: Neighbours per image.
        alpha: How much an image listens to its neighbours, in [0, 1).
        metric: "cosine" or "euclidean", between embeddings.
        whiten: Whiten embeddings before neighbours are searched, so that no direction rules the distances.
        num_components: How many leading axes whitening keeps at most; fewer make the search faster.
        ridge: Share of the largest variance that whitening adds to every variance, greater than 0. Near 0 all axes
            count alike, also those in which a trained backbone left noise only; 1 and more leave distances nearly as
            they are. With two or three classes, whose differences need one or two axes, take 0.1.
        kernel: "self_tuning", "cosine" (cubed; wants metric "cosine"), "uniform", or a `Kernel` with its own options.
        symmetrize: "mean", "max" or "mutual".
        balance: Let classes with more labels send out no more in total.
        prior: Class frequencies that pseudo-labels should match: "none", "uniform", "labeled", or a list of one
            number per class.
        reinforce: Rounds in which the surest half of every class's answers become labels, as in `reinforce_labels`;
            helps with one or a few labels per class. Needs `balance`.
        temperature: Below 1 makes the pseudo-labels that train surer, above 1 less sure, as in `sharpen_pseudo_labels`;
            what the graph answers in the end stays as it is.
        every_n_epochs: Epochs between refreshes.
        solver: How to solve.

    Attributes:
        gives_pseudo_labels: True; a callback that sets the module's pseudo-labels may say so, and nobody misses this.
        last: What the latest refresh found; None before.
    """

    gives_pseudo_labels = True

    def __init__(
        self,
        k: int = 15,
        alpha: float = 0.99,
        *,
        metric: Metric = "cosine",
        whiten: bool = True,
        num_components: int = 128,
        ridge: float = 1e-3,
        kernel: Literal["self_tuning", "cosine", "uniform"] | Kernel = "self_tuning",
        symmetrize: Symmetrize = "mean",
        balance: bool = True,
        prior: str | list[float] = "none",
        reinforce: int = 0,
        temperature: float = 1.0,
        every_n_epochs: int = 1,
        solver: Solver | None = None,
    ) -> None:
        if every_n_epochs < 1:
            raise ConfigError(f"every_n_epochs must be at least 1; got {every_n_epochs}.")
        if reinforce < 0 or (reinforce and not balance):
            raise ConfigError(f"reinforce must be 0 or more, and above 0 only with balance; got {reinforce}.")
        if not temperature > 0:
            raise ConfigError(f"temperature must be greater than 0; got {temperature}.")
        if isinstance(prior, str) and prior not in ("none", "uniform", "labeled"):
            raise ConfigError(f"prior must be 'none', 'uniform', 'labeled' or a list of frequencies; got {prior!r}.")
        if not ridge > 0:
            raise ConfigError(f"ridge must be greater than 0; got {ridge}.")
        if min(k, num_components) < 1:
            raise ConfigError(f"k and num_components must be at least 1; got k={k}, num_components={num_components}.")
        check_alpha(alpha)
        for option, value, known in (("metric", metric, Metric), ("symmetrize", symmetrize, Symmetrize)):
            if value not in get_args(known):
                raise ConfigError(f"{option} must be one of {get_args(known)}; got {value!r}.")
        self.k, self.alpha, self.balance = k, alpha, balance
        self.whiten, self.num_components, self.ridge = whiten, num_components, ridge
        self.metric: Metric = metric
        if isinstance(kernel, str) and kernel not in KERNELS:
            raise ConfigError(f"kernel must be one of {tuple(KERNELS)} or a Kernel; got {kernel!r}.")
        self.kernel: Kernel = KERNELS[kernel]() if isinstance(kernel, str) else kernel
        if isinstance(self.kernel, CosinePower) and metric != "cosine":
            raise ConfigError(f"the kernel 'cosine' needs metric='cosine'; got {metric!r}.")
        self.symmetrize: Symmetrize = symmetrize
        self.prior: ClassPrior = torch.tensor(prior) if isinstance(prior, list) else prior  # type: ignore[assignment]
        self.reinforce, self.temperature, self.every_n_epochs = reinforce, temperature, every_n_epochs
        self.solver: Solver = ConjugateGradient() if solver is None else solver
        self.last: Spread | None = None
        self._saved: dict[str, Tensor] | None = None
        self._refreshed_in: int | None = None  # epoch
        self._items: str | None = None  # hash of the items and labels that `last` or `_saved` is about

    def fit_whitening(self, z: Tensor) -> Whitening | None:
        """Return what is done to embeddings `(p, d)` before neighbours are searched; None for nothing."""
        return fit_whitening(z, num_components=self.num_components, ridge=self.ridge) if self.whiten else None

    def build_graph(self, z: Tensor, seconds: dict[str, float] | None = None) -> Graph:
        """Return the normalized graph of embeddings `(p, d)`; the time of its stages is added to `seconds`."""
        seconds = {} if seconds is None else seconds
        k = min(self.k, len(z) - 1)
        whitening = self.fit_whitening(z)
        points = z if whitening is None else whitening(z)
        neighbors = _timed(seconds, "neighbors", lambda: find_neighbors(points, k, metric=self.metric))
        return _timed(
            seconds,
            "graph",
            lambda: normalize_graph(build_graph(points, neighbors, kernel=self.kernel, symmetrize=self.symmetrize)),
        )

    def solve(
        self, graph: Graph, label: Tensor, num_classes: int, *, initial: Tensor | None = None
    ) -> tuple[Solution, PseudoLabels]:
        """Spread labels `(p,)` int64, `UNLABELED` where unknown, over the graph of the p pool items.

        Args:
            graph: From `build_graph`.
            label: One label per node.
            num_classes: Number of classes c.
            initial: First guess of the scores `(p, c)`.
        """
        if self.reinforce:
            solution = reinforce_labels(
                graph,
                label,
                num_classes,
                alpha=self.alpha,
                rounds=self.reinforce,
                prior=self.prior,
                solver=self.solver,
                initial=initial,
                on_failure="warn",
            )
        else:
            targets = label_matrix(label, num_classes, balance=self.balance)
            solution = spread_labels(
                graph, targets, alpha=self.alpha, solver=self.solver, initial=initial, on_failure="warn"
            )
        return solution, pseudo_labels(solution.value, label, prior=self.prior)

    def spread(self, z: Tensor, data: FewLabelData, *, initial: Tensor | None = None) -> Spread:
        """Build the graph of pool embeddings, spread the given labels, and return all that came of it.

        Args:
            z: Embeddings of the pool's items in ascending order `(p, d)`.
            data: Whose split and given labels to use.
            initial: First guess of the scores `(p, c)`.
        """
        seconds: dict[str, float] = {}
        label, pool = data.given_label.to(z.device), data.split.pool.to(z.device)
        graph = self.build_graph(z, seconds)
        solution, found = _timed(
            seconds, "spread", lambda: self.solve(graph, label[pool], data.num_classes, initial=initial)
        )
        facts = {
            "k": min(self.k, len(z) - 1),
            "metric": self.metric,
            "whiten": self.whiten,
            "kernel": type(self.kernel).__name__,
            "alpha": self.alpha,
            "reinforce": self.reinforce,
            "num_edges": graph.num_edges,
            "num_unreached": int(found.num_unreached),
            "solver": type(self.solver).__name__,
            "num_steps": solution.num_steps,
            "status": solution.status.value,
            "error_bound": float(solution.error_bound.max()),
        }
        return Spread(graph, solution.value, _scatter(found, pool, label), facts, seconds)

    def refresh(self, trainer: Trainer, pl_module: FewLabelClassifier) -> Spread:
        """Embed the pool with the module's best weights, spread, and give the module its pseudo-labels."""
        data = pl_module.data
        start = time.perf_counter()
        with trainer.precision_plugin.forward_context():
            backbone = averaged_backbone(trainer, pl_module)
            z = embed(backbone, data.pool_dataloader(), preprocess=pl_module.normalize)
        seconds = {"embed": time.perf_counter() - start}
        shape = (len(z), data.num_classes)
        initial = self.last.scores if self.last is not None and self.last.scores.shape == shape else None
        self.last = self.spread(z, data, initial=initial)
        self.last.seconds.update(seconds)
        self._items = _fingerprint(data)
        pl_module.pseudo = sharpen_pseudo_labels(self.last.pseudo, self.temperature)
        return self.last

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse before a warm-up what could not be done after it."""
        if stage != "fit":
            return
        if not isinstance(pl_module, FewLabelClassifier):
            raise ConfigError(f"RefreshPseudoLabels works with FewLabelClassifier; got {type(pl_module).__name__}.")
        class_prior(self.prior, torch.empty(0, dtype=torch.int64), pl_module.num_classes)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give a resumed module the pseudo-labels that it had: inside an epoch, training goes on without a refresh."""
        if self._saved is not None and isinstance(pl_module, FewLabelClassifier):
            if self._items != _fingerprint(pl_module.data):  # of other items or labels: they are computed anew
                self._saved = None
                return
            saved = PseudoLabels(**{name: value.to(pl_module.device) for name, value in self._saved.items()})
            pl_module.pseudo = sharpen_pseudo_labels(saved, self.temperature)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refresh when it is due."""
        self._refresh_if_due(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Refresh where this epoch has not: one resumed between two epochs begins without a start."""
        self._refresh_if_due(trainer, pl_module)

    def _refresh_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, FewLabelClassifier)
        epoch = trainer.current_epoch - pl_module.warmup_epochs
        is_due = epoch % self.every_n_epochs == 0 and self._refreshed_in != trainer.current_epoch
        if epoch < 0 or not (is_due or pl_module.pseudo is None):
            return
        found = self.refresh(trainer, pl_module)
        self._refreshed_in = trainer.current_epoch
        data = pl_module.data
        logged: dict[str, float] = {f"{name}_seconds": value for name, value in found.seconds.items()}
        logged["solver_steps"] = found.facts["num_steps"]
        logged["solve_converged"] = float(found.facts["status"] == "converged")
        logged["num_unreached"] = found.facts["num_unreached"]
        weight = sharpen_pseudo_labels(found.pseudo, self.temperature).weight
        logged["pseudo_weight_mean"] = float(weight[data.split.pool].mean())
        reached = torch.where(found.pseudo.is_reached, found.pseudo.label, UNLABELED)
        accuracy = data.evaluator.accuracy(reached, data.split.unlabeled)
        if accuracy is not None:
            logged["pseudo_accuracy"] = accuracy
        for name, value in logged.items():
            pl_module.log(name, float(value), on_step=False, on_epoch=True, prog_bar=name == "pseudo_accuracy")

    def state_dict(self) -> dict[str, Any]:
        """Return the pseudo-labels, so that a resumed run goes on with the same ones."""
        found = self._saved or {}
        if self.last is not None:
            pseudo = self.last.pseudo
            found = {field.name: getattr(pseudo, field.name).cpu() for field in fields(pseudo)}
        return {**found, "refreshed_in": self._refreshed_in, "items": self._items} if found else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take saved pseudo-labels; the module gets them when its next epoch starts."""
        saved = dict(state_dict)
        self._refreshed_in, self._items = saved.pop("refreshed_in", None), saved.pop("items", None)
        self._saved = saved or None


def averaged_backbone(trainer: Trainer, pl_module: FewLabelClassifier) -> nn.Module:
    """Return the backbone with averaged weights where a callback keeps some, else the one being trained."""
    backbone: nn.Module = (averaged_module(trainer) or pl_module).backbone  # type: ignore[assignment]
    return backbone


def _fingerprint(data: FewLabelData) -> str:
    digest = hashlib.blake2b("\0".join(data.items).encode("utf-8", "surrogateescape"), digest_size=16)
    for part in (data.given_label, data.split.pool):
        digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()


def _timed(seconds: dict[str, float], name: str, compute: Callable[[], T]) -> T:
    start = time.perf_counter()
    result = compute()
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # sync: the time of a stage is the time of its work
    seconds[name] = time.perf_counter() - start
    return result


def _scatter(found: PseudoLabels, pool: Tensor, label: Tensor) -> PseudoLabels:
    """Return pseudo-labels of all n items from those of the pool."""
    num_items, num_classes = len(label), found.probability.shape[1]

    def place(values: Tensor, default: float) -> Tensor:
        out = torch.full((num_items, *values.shape[1:]), default, dtype=values.dtype, device=values.device)
        out[pool] = values
        return out

    return PseudoLabels(
        label=place(found.label, 0),
        weight=place(found.weight, 0.0),
        class_weight=found.class_weight,
        is_given=place(found.is_given, False),
        is_reached=place(found.is_reached, False),
        probability=place(found.probability, 1 / num_classes),
    )
