"""One run, one folder: everything needed to read, check, use and resume it."""

import csv
import json
import platform
import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from lspread.data import FewLabelData
from lspread.data.row_encoder import save_row_encoder
from lspread.data.vector_data import FeatureRows
from lspread.errors import ConfigError
from lspread.lit.advice import Shown, advise, choose_shown, missing_advice
from lspread.lit.averaging import averaged_module
from lspread.lit.graph_head import GRAPH_HEAD_FILE, MAX_ROWS, make_graph_head, save_graph_head
from lspread.lit.module import FewLabelClassifier
from lspread.lit.outcome import STATUSES, Outcome, draw_map, final_label, judge, run_outcome, status_of
from lspread.lit.refresh import RefreshPseudoLabels
from lspread.lit.saved_model import save_classifier
from lspread.lit.trained_on import count_unlearned
from lspread.typing import UNLABELED

__all__ = [
    "CONFIG_FILE",
    "LAST_CHECKPOINT",
    "RunFolder",
    "package_versions",
    "save_thumbnail",
    "write_json",
    "write_predictions",
]

CONFIG_FILE = "config.yaml"
LAST_CHECKPOINT = "checkpoints/last.ckpt"
_PACKAGES = ("lspread", "torch", "torchvision", "lightning", "torch-geometric", "scikit-learn", "numpy", "scipy")
_THUMBNAIL_SIZE = 160
_WORDS = {"image": "images", "text": "texts", "table": "rows"}


class RunFolder(Callback):
    """Writes what a run found into its folder.

    When training starts: split.json and versions.json. When it ends: predictions.csv, model.safetensors, model.json,
    graph_head.safetensors (of a run with a graph), features.json (of one on the rows of a CSV file, with
    features.safetensors for words), thumbnails/ and results.json, from which `lspread.report.write_report` makes the
    report. All of it comes from the final weights (the averaged ones where a weight-averaging callback keeps some).

    Args:
        run_dir: The folder; made where it is missing.
        title: Headline of the report; default: data name and number of labels.
        command: How the run was started, for the report.
        seed: The run's seed, for the report and for what is drawn at random in it.
        backbone_spec: How to build the backbone, `{"class_path": ..., "init_args": {...}}`, for model.json.
        graph_head_rows: Training images that `graph_head.safetensors` keeps at most, as in `make_graph_head`; 0 writes
            no such file.
        num_shown: How many items to show of the most certain, the least certain, and each kind that deserves a look.

    Attributes:
        warm_up: The checkpoint of an earlier run's warm-up that this run went on from, for the report; None: its own.

    Raises:
        ConfigError: `graph_head_rows` is below 0.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        title: str | None = None,
        command: str | None = None,
        seed: int | None = None,
        backbone_spec: Mapping[str, Any] | None = None,
        graph_head_rows: int = MAX_ROWS,
        num_shown: int = 12,
    ) -> None:
        if graph_head_rows < 0:
            raise ConfigError(f"graph_head_rows must be 0 or more; got {graph_head_rows}.")
        self.run_dir = Path(run_dir)
        self.title = title
        self.command = command
        self.seed = seed
        self.backbone_spec = backbone_spec
        self.graph_head_rows = graph_head_rows
        self.num_shown = num_shown
        self.warm_up: str | None = None
        self.results: dict[str, Any] | None = None
        self._start = 0.0
        self._fit_seconds = 0.0
        self._num_unlearned = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is known before training."""
        self._start = time.perf_counter()
        if self._is_active(trainer):
            self.run_dir.mkdir(parents=True, exist_ok=True)
            _data_of(trainer).split.save(self.run_dir / "split.json")
            write_json(self.run_dir / "versions.json", package_versions())

    def state_dict(self) -> dict[str, Any]:
        """Return the time spent so far, so that a resumed run counts all of it, and where its warm-up came from."""
        running = time.perf_counter() - self._start if self._start else 0.0
        return {"fit_seconds": self._fit_seconds + running, "warm_up": self.warm_up}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the time spent before the checkpoint, and where the warm-up came from."""
        self._fit_seconds = float(state_dict["fit_seconds"])
        self.warm_up = self.warm_up or state_dict.get("warm_up")

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count the given labels that the checkpoint's weights have not learned."""
        self._num_unlearned = count_unlearned(checkpoint, _data_of(trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget that count: training learns them."""
        self._num_unlearned = 0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._fit_seconds += time.perf_counter() - self._start
        self._start = 0.0

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what came out; `results` holds the content of results.json afterwards."""
        if not self._is_active(trainer):
            return
        if not isinstance(pl_module, FewLabelClassifier):
            raise ConfigError(f"RunFolder works with FewLabelClassifier; got {type(pl_module).__name__}.")
        if self._start:
            # Lightning skips a training whose checkpoint has come to its end, and what others do then.
            self.on_train_end(trainer, pl_module)
            average = averaged_module(trainer)
            if average is not None:
                pl_module.load_state_dict(average.state_dict())
        if self._num_unlearned:
            warnings.warn(
                f"{self._num_unlearned:,} of the given labels were added or changed after training had ended: the "
                "classifier has not learned them. Go on with more epochs (--trainer.max_epochs), or start a new run "
                f"of {self.run_dir / CONFIG_FILE} with another --run_dir.",
                stacklevel=2,
            )
        data = _data_of(trainer)
        refresh = next(
            (callback for callback in trainer.callbacks if isinstance(callback, RefreshPseudoLabels)),  # type: ignore[attr-defined]
            None,
        )
        # Lightning has moved the module to the CPU by now.
        pl_module.to(trainer.strategy.root_device)
        try:
            outcome = run_outcome(trainer, pl_module, data, refresh)
        finally:
            pl_module.cpu()
        mean, std = pl_module.moments or (data.mean, data.std)
        _write_table(self.run_dir / "predictions.csv", data, outcome.label, outcome.confidence, outcome.status)
        save_classifier(
            self.run_dir,
            pl_module.backbone,
            pl_module.head,
            mean=mean,
            std=std,
            class_names=data.class_names,
            image_shape=data.image_shape,
            window=data.window,
            backbone_spec=self.backbone_spec,
        )
        if data.row_encoder is not None:
            save_row_encoder(self.run_dir, data.row_encoder)
        num_kept = self._save_graph_head(outcome, data, refresh)
        self.results = self._describe(outcome, data, refresh, num_kept)
        write_json(self.run_dir / "results.json", self.results)

    def _save_graph_head(self, outcome: Outcome, data: FewLabelData, refresh: RefreshPseudoLabels | None) -> int:
        """Write graph_head.safetensors, and return how many items it keeps."""
        (self.run_dir / GRAPH_HEAD_FILE).unlink(missing_ok=True)  # one of an earlier ending fits other weights
        if refresh is None or outcome.pseudo is None or not self.graph_head_rows:
            return 0
        graph = make_graph_head(
            outcome.embedding,
            outcome.pseudo,
            data.split.pool,
            refresh,
            max_rows=self.graph_head_rows,
            seed=self.seed or 0,
        )
        save_graph_head(self.run_dir, graph)
        return len(graph.head.embedding)

    def _is_active(self, trainer: Trainer) -> bool:
        return trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]

    def _describe(
        self, outcome: Outcome, data: FewLabelData, refresh: RefreshPseudoLabels | None, num_kept: int
    ) -> dict[str, Any]:
        split = data.split
        advice = self._advice(outcome, data)
        found = judge(outcome, data, refresh, seed=self.seed or 0)
        seconds = {"fit": self._fit_seconds, **outcome.seconds, **found.pop("seconds")}
        return {
            "title": self.title
            or f"{data.name}: {len(data.items):,} {_WORDS[data.kind]} from {len(split.labeled):,} labels",
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": self.command,
            "warm_up": self.warm_up,
            "seed": self.seed,
            "data": {
                "name": data.name,
                "kind": data.kind,
                "num_items": len(data.items),
                "num_classes": data.num_classes,
                "class_names": list(data.class_names),
                "num_labeled": len(split.labeled),
                "num_unlearned": self._num_unlearned,
                "num_unlabeled": len(split.unlabeled),
                "num_val": len(split.val),
                "num_test": len(split.test),
                "image_shape": list(data.image_shape) if _has_pictures(data) else None,
            },
            "graph": None if outcome.facts is None else {**outcome.facts, "head_rows": num_kept},
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            **found,
            **self._pictures(outcome, data, advice),
            "not_sought": missing_advice(advice) if advice else [],
            "map": draw_map(
                outcome.embedding,
                outcome.label,
                outcome.confidence,
                outcome.status == STATUSES.index("given"),
                split.pool,
                seed=self.seed or 0,
            ),
            "versions": package_versions(),
        }

    def _pictures(self, outcome: Outcome, data: FewLabelData, advice: Shown) -> dict[str, list[dict[str, Any]]]:
        given = data.given_label.cpu()
        shown = choose_shown(outcome.confidence, outcome.predicted, given, data.split.unlabeled, self.num_shown)
        chosen = {**shown, **advice}
        folder = self.run_dir / "thumbnails"
        has_pictures = _has_pictures(data)
        if has_pictures:
            folder.mkdir(exist_ok=True)
        truth = data.evaluator.label(torch.arange(len(data.items)))
        pictures: dict[str, list[dict[str, Any]]] = {}
        for kind, rows in chosen.items():
            pictures[kind] = []
            for row, note in rows:
                name = f"{row:06d}.png"
                if has_pictures:
                    save_thumbnail(folder / name, data.images.fetch(torch.tensor([row]))[0])
                true = int(truth[row])
                pictures[kind].append(
                    {
                        "item": data.items[row],
                        "index": row,
                        "label": data.class_names[int(outcome.label[row])],
                        "confidence": round(float(outcome.confidence[row]), 4),
                        "true_label": None if true == UNLABELED else data.class_names[true],
                        "thumbnail": f"thumbnails/{name}" if has_pictures else None,
                        "note": note,
                        "text": None if data.excerpts is None else data.excerpts[row],
                    }
                )
        return pictures

    def _advice(self, outcome: Outcome, data: FewLabelData) -> Shown:
        """Return the items that deserve a look, and why; nothing for a run without a graph."""
        if outcome.graph is None:
            return {}
        pool, device = data.split.pool, outcome.graph.device
        found = advise(
            normalize(outcome.embedding[pool].to(device), dim=1),
            outcome.graph,
            data.given_label[pool].to(device),
            data.class_names,
            num_shown=self.num_shown,
            seed=self.seed or 0,
        )
        return {kind: [(int(pool[row]), note) for row, note in rows] for kind, rows in found.items()}


def write_predictions(run_dir: str | Path, data: FewLabelData, batches: Sequence[Mapping[str, Tensor]]) -> Path:
    """Write the labels that `Trainer.predict` gave to all items of a data module.

    Args:
        run_dir: Where to write predict.csv: item, label, confidence, status (given, pseudo or held_out).
        data: The data module that was predicted.
        batches: Batches `{"index": (m,), "probability": (m,c)}` that hold every item once.

    Returns:
        The path.
    """
    index = torch.cat([batch["index"].cpu() for batch in batches])
    probability = torch.cat([batch["probability"].cpu() for batch in batches])[index.argsort()]
    confidence, predicted = probability.max(dim=1)
    label, confidence = final_label(predicted, confidence, data.given_label.cpu())
    path = Path(run_dir) / "predict.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_table(path, data, label, confidence, status_of(data))
    return path


def _write_table(path: Path, data: FewLabelData, label: Tensor, confidence: Tensor, status: Tensor) -> None:
    # A file name may carry bytes that are no UTF-8; the escape keeps them readable back.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["item", "label", "confidence", "status"])
        for item, c, share, kind in zip(data.items, label.tolist(), confidence.tolist(), status.tolist(), strict=True):
            writer.writerow([item, data.class_names[c], f"{share:.4f}", STATUSES[kind]])


def write_json(path: Path, content: Any) -> None:
    """Write JSON that holds no NaN."""
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def save_thumbnail(path: Path, image: Tensor) -> None:
    """Write a small picture of an image `(ch, h, w)`: uint8, or floats shown from the darkest to the brightest."""
    if image.is_floating_point():
        low, high = image.aminmax()
        image = ((image - low) / (high - low).clamp(min=1e-9) * 255).round().to(torch.uint8)
    array = image.permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(array[:, :, 0] if array.shape[2] != 3 else array)
    picture.thumbnail((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE))
    picture.save(path)


def package_versions() -> dict[str, str]:
    """Return versions of what a run depends on, and the machine."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found["os"] = platform.platform()
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return found


def _has_pictures(data: FewLabelData) -> bool:
    return not isinstance(data.images, FeatureRows)


def _data_of(trainer: Trainer) -> FewLabelData:
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, FewLabelData):
        raise ConfigError(f"RunFolder needs a lspread.data.FewLabelData; got {type(data).__name__}.")
    return data
