"""The few-label classifier: one module, both training paths, every piece switched by its weight."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lspread.data import FewLabelData, StrongAugmentation, WeakAugmentation
from lspread.errors import ConfigError
from lspread.labels import PseudoLabels
from lspread.lit.averaging import SwapBack
from lspread.lit.batch import Batch, ImageBatch, to_float
from lspread.lit.epoch_means import EpochMeans
from lspread.lit.in_batch import InBatchPath
from lspread.lit.moments import ImageMoments
from lspread.lit.options import check_callbacks, check_options, make_projection
from lspread.lit.schedule import configure_adamw, count_steps, seconds_gone, share_of_time
from lspread.lit.stage_losses import second_stage_losses, warm_up_loss
from lspread.lit.trained_on import check_trained_on, describe_data
from lspread.nn import AdaptiveThreshold, CurriculumThreshold, DistributionAlignment, LabelSpreading, UsualFairness
from lspread.typing import UNLABELED

__all__ = ["FewLabelClassifier"]


class FewLabelClassifier(LightningModule):
    """A backbone and a linear head, trained from few labels and a graph over all images.

    Training has two stages. In the first `warmup_epochs`, the backbone learns without labels to recognize two views of
    one image (contrastive). From then on the loss is the sum of the pieces below whose weight is above zero. Only
    given labels are read; what the other images are is known to the evaluator alone.

    Supervised training on the labels alone is this module with `pseudo_weight=0`.

    Args:
        backbone: Images `(m, ch, h, w)` to embeddings `(m, d)`, with the attribute `num_features` = d.
        num_classes: Number of classes c.
        weak: Augmentation of labelled images, on float images in [0, 1].
        strong: Augmentation of pool images.
        view: Augmentation of both contrastive views; None takes `strong`. Contrast wants more change than a
            classifier bears.
        warmup_epochs: Epochs of the contrastive stage.
        temperature: Of the contrastive loss.
        projection_features: Width of the contrastive projection.
        supervised_weight: Weight of cross entropy on given labels.
        pseudo_weight: Weight of cross entropy to pseudo-labels over all images (the epoch path; needs the callback
            `RefreshPseudoLabels`).
        pseudo_reduction: As in `pseudo_label_loss`: "weighted_mean", or "mean" as LP-DeepSSL has it.
        mixup: Concentration of the mixing of pool images in pairs before they are compared with their pseudo-labels, as
            in `mix_images`; 0 blends nothing. Costs a view where other pieces look at the strong one.
        cutmix: The same for boxes that are cut from the other image; 0 cuts nothing.
        confident_weight: Weight of cross entropy of strongly changed pool images to the classes that the classifier is
            sure of when they are weakly changed (FixMatch); costs a second view.
        threshold: How sure that is, a probability in [0, 1]; None takes thresholds per class that follow training
            (FreeMatch).
        curriculum: Lower `threshold` for classes of which few images were predicted surely so far (FlexMatch).
        align: Scale these predictions so that on the average all classes are predicted equally often.
        fairness_weight: Weight of `fairness_loss` of the images that the classifier is sure of, beside
            `confident_weight` (FreeMatch, with 0.01 to 0.05 there).
        teacher_weight: Weight of the squared difference to the probabilities of the averaged weights on a weakly
            changed view (Mean Teacher); needs a callback that averages weights.
        entropy_weight: Weight of `mean_entropy_loss` of all views of pool images, against a single answer to all.
        ramp_epochs: Epochs over which `pseudo_weight`, `confident_weight` and `teacher_weight` grow from zero after
            the warm-up.
        contrastive_weight: Weight of the contrastive loss after the warm-up; costs a second view.
        graph_contrastive_weight: Weight of `graph_contrastive_loss` with pseudo-labels: images of one probable class
            shall look alike; costs a second view.
        spread_weight: Weight of the in-batch path: half of the batch's labels are hidden and predicted through the
            batch's own graph, with gradient to the embeddings.
        consistency_weight: Weight of cross entropy of the classifier to the in-batch graph's answer for hidden rows.
        agreement_weight: Weight of `agreement_loss` of in-batch graphs on two views of the pool's images; costs the
            second view and two solves.
        bank_size: So many other images, with their latest embeddings, take part in the in-batch graphs.
        spread_layer: Layer of the in-batch path, such as `LabelPropagation`; None takes `LabelSpreading` with the next
            three.
        spread_k: Neighbours of the in-batch graph.
        spread_alpha: Alpha of the in-batch graph, where learning starts if `learn_spread`.
        learn_spread: Learn alpha and bandwidth of the in-batch graph.
        lr: Largest learning rate of AdamW in the second stage; in both stages it climbs for 5 % of the steps and falls
            as a half cosine. With `Trainer(max_time=...)` the second stage falls by the time that is gone.
        warmup_lr: The same for the contrastive stage; None takes `lr`.
        weight_decay: Of AdamW, on all weights with two or more dimensions.

    Attributes:
        pseudo: Pseudo-labels of all items, from `RefreshPseudoLabels` or whoever sets them; None: not yet.
        is_head_trained: Whether a run got beyond its warm-up; None: nobody knows.

    Raises:
        ConfigError: A weight or size is out of range, the backbone has no `num_features`, or `spread_layer` is for
            another number of classes.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        weak: nn.Module | None = None,
        strong: nn.Module | None = None,
        view: nn.Module | None = None,
        warmup_epochs: int = 0,
        temperature: float = 0.5,
        projection_features: int = 64,
        supervised_weight: float = 1.0,
        pseudo_weight: float = 1.0,
        pseudo_reduction: Literal["mean", "weighted_mean"] = "weighted_mean",
        mixup: float = 0.0,
        cutmix: float = 0.0,
        confident_weight: float = 0.0,
        threshold: float | None = 0.95,
        curriculum: bool = False,
        align: bool = False,
        fairness_weight: float = 0.0,
        teacher_weight: float = 0.0,
        entropy_weight: float = 0.0,
        ramp_epochs: int = 0,
        contrastive_weight: float = 0.0,
        graph_contrastive_weight: float = 0.0,
        spread_weight: float = 0.0,
        consistency_weight: float = 0.0,
        agreement_weight: float = 0.0,
        bank_size: int = 0,
        spread_layer: nn.Module | None = None,
        spread_k: int = 10,
        spread_alpha: float = 0.9,
        learn_spread: bool = False,
        lr: float = 3e-3,
        warmup_lr: float | None = None,
        weight_decay: float = 1e-3,
    ) -> None:
        super().__init__()
        check_options(
            backbone,
            num_classes,
            lr=lr,
            temperature=temperature,
            threshold=threshold,
            curriculum=curriculum,
            fairness_weight=fairness_weight,
            spread_layer=spread_layer,
            weights={
                "supervised_weight": supervised_weight,
                "pseudo_weight": pseudo_weight,
                "confident_weight": confident_weight,
                "fairness_weight": fairness_weight,
                "teacher_weight": teacher_weight,
                "entropy_weight": entropy_weight,
                "mixup": mixup,
                "cutmix": cutmix,
                "contrastive_weight": contrastive_weight,
                "graph_contrastive_weight": graph_contrastive_weight,
                "spread_weight": spread_weight,
                "consistency_weight": consistency_weight,
                "agreement_weight": agreement_weight,
                "bank_size": bank_size,
                "warmup_epochs": warmup_epochs,
                "ramp_epochs": ramp_epochs,
                "weight_decay": weight_decay,
            },
        )
        self.backbone = backbone
        self.num_classes = num_classes
        self.weak = WeakAugmentation() if weak is None else weak
        self.strong = StrongAugmentation() if strong is None else strong
        self.view = self.strong if view is None else view
        self.warmup_epochs, self.temperature, self.threshold = warmup_epochs, temperature, threshold
        self.supervised_weight, self.pseudo_weight, self.ramp_epochs = supervised_weight, pseudo_weight, ramp_epochs
        self.contrastive_weight, self.graph_contrastive_weight = contrastive_weight, graph_contrastive_weight
        self.spread_weight, self.consistency_weight = spread_weight, consistency_weight
        self.agreement_weight, self.confident_weight = agreement_weight, confident_weight
        self.fairness_weight, self.teacher_weight, self.entropy_weight = fairness_weight, teacher_weight, entropy_weight
        self.pseudo_reduction: Literal["mean", "weighted_mean"] = pseudo_reduction
        self.mixup, self.cutmix = mixup, cutmix
        has_own = bool(confident_weight) and threshold is None
        self.adaptive_threshold = AdaptiveThreshold(num_classes) if has_own else None
        self.curriculum: CurriculumThreshold | None = None
        if confident_weight and curriculum and threshold is not None:
            self.curriculum = CurriculumThreshold(num_classes, threshold)
        self.alignment = DistributionAlignment(num_classes) if confident_weight and align else None
        self.usual_fairness = UsualFairness(num_classes) if fairness_weight else None
        self.lr, self.warmup_lr, self.weight_decay = lr, lr if warmup_lr is None else warmup_lr, weight_decay

        width = int(backbone.num_features)  # type: ignore[arg-type]
        self.head = nn.Linear(width, num_classes)
        self.projection: nn.Module | None = None
        if warmup_epochs or contrastive_weight or graph_contrastive_weight:
            self.projection = make_projection(width, projection_features)
        self.spread: nn.Module | None = None
        if spread_weight or consistency_weight or agreement_weight:
            self.spread = spread_layer or LabelSpreading(
                num_classes,
                k=spread_k,
                alpha=spread_alpha,
                learn_alpha=learn_spread,
                learn_bandwidth=learn_spread,
                metric="cosine",
                on_failure="warn",
            )
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro", ignore_index=UNLABELED)
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro", ignore_index=UNLABELED)
        # What comes from the data is no buffer: weight averaging copies the module before it sees the data, and would
        # average n labels at every step. `RefreshPseudoLabels` keeps and saves the pseudo-labels.
        self._moments = ImageMoments()
        self.in_batch = InBatchPath(bank_size)
        self.means = EpochMeans()
        self._warmup_seconds: float | None = None
        self._is_judged = {"val": False, "test": False}
        self.is_head_trained: bool | None = None
        self.pseudo: PseudoLabels | None = None
        self.given_label: Tensor = torch.zeros(0, dtype=torch.int64)

    @property
    def data(self) -> FewLabelData:
        """The data module that the trainer was given."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, FewLabelData):
            raise ConfigError(
                f"FewLabelClassifier trains on a lspread.data.FewLabelData; got {type(data).__name__}. "
                "Pass datamodule=Digits(...), FashionMNIST(...), ImageFolder(...) or your own subclass."
            )
        return data

    @property
    def is_warming_up(self) -> bool:
        """True during the contrastive stage of training."""
        return self.trainer.training and self.current_epoch < self.warmup_epochs

    def configure_callbacks(self) -> list[Callback]:
        """Bring along what keeps interrupted validations from harm."""
        return [SwapBack()]

    def normalize(self, image: Tensor) -> Tensor:
        """Return float images `(m, ch, h, w)`, zero mean and unit deviation per channel, from uint8 or [0, 1]."""
        return self._moments.normalize(to_float(image))

    def set_moments(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the mean and standard deviation of each channel, in [0, 1] units; training takes them from the data."""
        self._moments.set(mean, std)

    @property
    def moments(self) -> tuple[list[float], list[float]] | None:
        """Mean and standard deviation of each channel, in [0, 1] units; None before they are known."""
        return self._moments.as_lists()

    def forward(self, image: Tensor) -> Tensor:
        """Return logits `(m, c)` of images `(m, ch, h, w)`, uint8 or float in [0, 1]."""
        logits: Tensor = self.head(self.backbone(self.normalize(image)))
        return logits

    def setup(self, stage: str) -> None:
        """Take what the data knows: given labels, and the mean and deviation of its pixels."""
        data = self.data
        if data.num_classes != self.num_classes:
            raise ConfigError(f"num_classes={self.num_classes}, but the data has {data.num_classes} classes.")
        self.given_label = data.given_label
        self.in_batch.start(data.split.pool)
        if self.curriculum is not None and stage == "fit":
            self.curriculum.start(len(self.given_label), len(data.split.pool))
        self._is_judged = {part: data.evaluator.has_truth(getattr(data.split, part)) for part in ("val", "test")}
        if stage == "fit":
            check_callbacks(
                self.trainer,
                warmup_epochs=self.warmup_epochs,
                needs_teacher=self.teacher_weight > 0,
                lacks_pseudo=self.pseudo is None and bool(self.pseudo_weight or self.graph_contrastive_weight),
            )
            self.is_head_trained = bool(self.is_head_trained)
        if self.moments is None:
            self.set_moments(data.mean, data.std)
        if self.pseudo is not None and len(self.pseudo.label) != len(data.given_label):
            self.pseudo = None
        self.to(memory_format=torch.channels_last)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the weights were trained on, the moments of the images, and how far training is."""
        checkpoint.update(describe_data(self.data))
        checkpoint["image_moments"] = self.moments
        checkpoint["warmup_seconds"] = self._warmup_seconds
        checkpoint["is_head_trained"] = self.is_head_trained
        if self.curriculum is not None:
            checkpoint["sure_label"] = self.curriculum.label

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the moments of the images and the time of the warm-up; refuse other data than that of the checkpoint."""
        if self._trainer is not None:
            check_trained_on(checkpoint, self.data, is_judged=self.trainer.state.fn != "predict")
        if checkpoint.get("image_moments") is not None:
            self.set_moments(*checkpoint["image_moments"])
        self._warmup_seconds = checkpoint.get("warmup_seconds")
        self.is_head_trained = checkpoint.get("is_head_trained")
        sure_label = checkpoint.get("sure_label", ())
        # A run may go on after items were added: then it counts anew.
        if self.curriculum is not None and len(sure_label) == len(self.curriculum.label):
            self.curriculum.label = sure_label

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one step: contrastive in the warm-up, else the weighted sum of its pieces."""
        if self.is_warming_up:
            total = warm_up_loss(self, batch["pool"]["image"])
            losses = {"contrastive": total}
        else:
            losses = second_stage_losses(self, batch)
            total = torch.stack([self._weight(name) * loss for name, loss in losses.items()]).sum()
        size = len(batch["pool"]["index"])
        self.means.add({f"{name}_loss": loss for name, loss in losses.items()} | {"train_loss": total}, size)
        return total

    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:
        """Log the means over the epoch when its last step is done, or the clock or `max_steps` ends it."""
        trainer = self.trainer
        if trainer.is_last_batch or trainer.should_stop or trainer.global_step == trainer.max_steps:
            self.means.log(self)

    def _weight(self, name: str) -> float:
        weight: float = getattr(self, f"{name}_weight")
        if name in ("pseudo", "confident", "teacher") and self.ramp_epochs:
            weight *= min(1.0, (self.current_epoch - self.warmup_epochs + 1) / (self.ramp_epochs + 1))
        return weight

    def on_test_start(self) -> None:
        """Refuse to judge a head that was never trained."""
        if self.is_head_trained is False:
            raise ConfigError(
                "this run ended within its warm-up, before its classifier was trained. Go on with it for more epochs: "
                "lspread fit RUN --trainer.max_epochs N. Its report says how good its embeddings are."
            )

    def on_validation_start(self) -> None:
        """Refuse to judge a head that was never trained; during training, its time is to come."""
        if self.trainer.state.fn != "fit":
            self.on_test_start()

    def on_predict_start(self) -> None:
        """Refuse the answers of a head that was never trained."""
        self.on_test_start()

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Count right answers on validation images; the head says nothing before it was trained."""
        is_early = self.trainer.state.fn == "fit" and self.current_epoch < self.warmup_epochs
        if is_early or not self._is_judged["val"]:
            return
        self.val_accuracy(self(batch["image"]), self.data.evaluator.label(batch["index"]))
        self.log("val_accuracy", self.val_accuracy, prog_bar=True, **_PER_EPOCH)

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Count right answers on test images."""
        if not self._is_judged["test"]:
            return
        self.test_accuracy(self(batch["image"]), self.data.evaluator.label(batch["index"]))
        self.log("test_accuracy", self.test_accuracy, **_PER_EPOCH)

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return which items these are `(m,)` and their class probabilities `(m, c)`."""
        return {"index": batch["index"], "probability": self(batch["image"]).float().softmax(1)}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW; in each stage the learning rate climbs briefly and falls as a half cosine, by steps or by time."""
        num_steps, num_warmup = count_steps(self.trainer, self.warmup_epochs)
        return configure_adamw(
            self.parameters(),
            lr=self.lr,
            warmup_lr=self.warmup_lr,
            weight_decay=self.weight_decay,
            num_steps=num_steps,
            num_warmup=num_warmup,
            time_share=lambda: share_of_time(self.trainer, self._warmup_seconds),
        )

    def on_train_epoch_start(self) -> None:
        """Forget the losses of an epoch that was interrupted."""
        self.means.pop()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Note when the warm-up ended, and that the head is trained from then on."""
        if self.current_epoch >= self.warmup_epochs:
            self.is_head_trained = True
            if self._warmup_seconds is None:
                self._warmup_seconds = seconds_gone(self.trainer)


_PER_EPOCH: dict[str, Any] = {"on_step": False, "on_epoch": True}
