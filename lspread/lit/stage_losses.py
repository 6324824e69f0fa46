"""The losses of both stages of training, from the pieces whose weight is above zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lspread.errors import ConfigError
from lspread.labels import (
    PseudoLabels,
    confident_loss,
    contrastive_loss,
    fairness_loss,
    graph_contrastive_loss,
    is_confident,
    mean_entropy_loss,
    mean_teacher_loss,
)
from lspread.lit.averaging import teach
from lspread.lit.batch import Batch, to_float
from lspread.lit.in_batch import label_and_trust
from lspread.lit.views import ON_STRONG, make_views, mixed_pseudo_loss

if TYPE_CHECKING:
    from lspread.lit.module import FewLabelClassifier

__all__ = ["batch_graph_losses", "second_stage_losses", "warm_up_loss"]


def warm_up_loss(model: FewLabelClassifier, image: Tensor) -> Tensor:
    """Return the contrastive loss of two views of each image `(m, ch, h, w)`."""
    image = to_float(image)
    views = torch.cat([model.view(image), model.view(image)])
    first, second = _project(model, model.backbone(model.normalize(views))).chunk(2)
    return contrastive_loss(first, second, temperature=model.temperature)


def second_stage_losses(model: FewLabelClassifier, batch: Batch) -> dict[str, Tensor]:
    """Return each piece of the second stage's loss; all views share one pass through the backbone."""
    labeled, pool = batch["labeled"], batch["pool"]
    pieces = [name for name in ("pseudo", *ON_STRONG) if getattr(model, f"{name}_weight")]
    images = to_float(labeled["image"]), to_float(pool["image"])
    views, mixing = make_views(*images, model.weak, model.strong, pieces, mixup=model.mixup, cutmix=model.cutmix)
    # The teacher alone looks at weakly changed images without gradient.
    weak = views["weak"] if model.confident_weight else views.pop("weak", None)
    z = model.backbone(model.normalize(torch.cat(list(views.values()))))
    sizes = [len(view) for view in views.values()]
    z_of = dict(zip(views, z.split(sizes), strict=True))
    logits_of = dict(zip(views, model.head(z).split(sizes), strict=True))
    given = _given(model, labeled["index"])
    losses = {"supervised": cross_entropy(logits_of["labeled"].float(), given)}
    if model.pseudo_weight:
        logits = logits_of["strong" if mixing is None else "mixed"]
        losses["pseudo"] = mixed_pseudo_loss(logits, _pseudo(model), pool["index"], mixing, model.pseudo_reduction)
    if model.confident_weight:
        losses |= _confident(model, logits_of["strong"], logits_of["weak"], pool["index"])
    if model.teacher_weight and weak is not None:
        logits = teach(model.trainer, model.normalize(weak))
        losses["teacher"] = mean_teacher_loss(logits_of["strong"], logits.float().softmax(1))
    if model.entropy_weight:
        losses["entropy"] = mean_entropy_loss(torch.cat([v for n, v in logits_of.items() if n != "labeled"]))
    if model.contrastive_weight or model.graph_contrastive_weight:
        first, second = _project(model, torch.cat([z_of["strong"], z_of["second"]])).chunk(2)
        if model.contrastive_weight:
            losses["contrastive"] = contrastive_loss(first, second, temperature=model.temperature)
        if model.graph_contrastive_weight:
            probability = _pseudo(model, "graph_contrastive_weight").probability[pool["index"]]
            losses["graph_contrastive"] = graph_contrastive_loss(
                first, second, probability, temperature=model.temperature
            )
    if model.spread is not None:
        losses |= batch_graph_losses(model, z_of, logits_of, {"labeled": labeled["index"], "pool": pool["index"]})
    return losses


def batch_graph_losses(
    model: FewLabelClassifier, z: dict[str, Tensor], logits: dict[str, Tensor], index: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the losses of the batch's own graph, of views and items by name."""
    assert model.spread is not None
    known = label_and_trust(model.pseudo, _given(model, slice(None)))
    wanted = [name for name in ("spread", "consistency", "agreement") if getattr(model, f"{name}_weight")]
    return model.in_batch.losses(model.spread, z, logits, index, *known, wanted)


def _project(model: FewLabelClassifier, z: Tensor) -> Tensor:
    assert model.projection is not None
    projected: Tensor = model.projection(z)
    return projected


def _confident(model: FewLabelClassifier, strong: Tensor, weak: Tensor, index: Tensor) -> dict[str, Tensor]:
    """Return FixMatch's loss and FreeMatch's fairness, and log the share of images that the classifier is sure of."""
    probability = weak.detach().float().softmax(1)
    if model.alignment is not None:
        probability = model.alignment(probability)
    threshold: float | Tensor | None = model.threshold
    if model.adaptive_threshold is not None:
        threshold = model.adaptive_threshold(probability)
    elif model.curriculum is not None:
        threshold = model.curriculum(probability, index)
    assert threshold is not None
    is_sure = is_confident(probability, threshold)
    if model.trainer.training:
        model.means.add({"confident_share": is_sure.float().mean()}, len(weak))
    losses = {"confident": confident_loss(strong, probability, threshold=threshold)}
    if model.usual_fairness is not None:
        losses["fairness"] = fairness_loss(strong, is_sure, model.usual_fairness(probability))
    return losses


def _given(model: FewLabelClassifier, index: Tensor | slice) -> Tensor:
    if model.given_label.device != model.device:
        model.given_label = model.given_label.to(model.device)
    return model.given_label[index]


def _pseudo(model: FewLabelClassifier, name: str = "pseudo_weight") -> PseudoLabels:
    if model.pseudo is None:
        raise ConfigError(
            f"{name} > 0 needs pseudo-labels; add the callback lspread.lit.RefreshPseudoLabels, or train with {name}=0."
        )
    return model.pseudo
