"""The few-label classifier: each piece of the loss against its formula, and what the loop promises."""

import itertools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lspread.data import StrongAugmentation, TensorData, WeakAugmentation, mix_images
from lspread.errors import ConfigError, DataError
from lspread.graph import SelfTuning
from lspread.labels import (
    Anchors,
    agreement_loss,
    contrastive_loss,
    fairness_loss,
    graph_contrastive_loss,
    label_matrix,
    mean_entropy_loss,
    normalize_scores,
    pseudo_label_loss,
)
from lspread.lit import FewLabelClassifier, RampedAveraging, RefreshPseudoLabels
from lspread.lit.averaging import averaged_module
from lspread.lit.random_state import RandomState
from lspread.lit.stage_losses import batch_graph_losses, second_stage_losses, warm_up_loss
from lspread.nn import AdaptiveThreshold, LabelPropagation, LabelSpreading, UsualFairness
from lspread.typing import UNLABELED

from .conftest import NUM_CLASSES, bars, make_data, make_model

SAME = nn.Identity()


class Darker(nn.Module):
    """A strong view that can be computed by hand."""

    def forward(self, image: Tensor) -> Tensor:
        return 0.5 * image


class Changing(nn.Module):
    """Two strong views that can be computed by hand: a little darker, then a little more."""

    number = 0

    def forward(self, image: Tensor) -> Tensor:
        self.number += 1
        return image * 0.9**self.number


class Spy(LabelSpreading):
    """Notes what it is asked."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen: list[tuple[Tensor, Tensor, Anchors | None]] = []

    def forward(self, z: Tensor, labels: Tensor, *, anchors: Anchors | None = None) -> Tensor:
        self.seen.append((z, labels, anchors))
        return super().forward(z, labels, anchors=anchors)


def first_batch(model: FewLabelClassifier, make_trainer: Callable[..., Trainer], **options: Any) -> dict[str, Any]:
    """Give the model its data and pseudo-labels as training would, and return one batch."""
    data = make_data(**options)
    data.setup()
    trainer = make_trainer()
    trainer.datamodule = data
    model.trainer = trainer
    model.setup("fit")
    refresh = RefreshPseudoLabels(k=5)
    refresh.refresh(trainer, model)
    loaders = data.train_dataloader()
    torch.manual_seed(3)
    return {name: next(iter(loader)) for name, loader in loaders.items()}


def embeddings(model: FewLabelClassifier, batch: dict[str, Any], *names: str) -> Tensor:
    image = torch.cat([batch[name]["image"] for name in names]).float() / 255
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in model.moments or ())
    return model.backbone((image - mean) / std)


def test_supervised_and_pseudo_losses_are_their_formulas(make_trainer: Callable[..., Trainer]) -> None:
    model = make_model(weak=SAME, strong=SAME)
    batch = first_batch(model, make_trainer)
    model.train()
    losses = second_stage_losses(model, batch)
    model.load_state_dict(model.state_dict())
    logits = model.head(embeddings(model, batch, "labeled", "pool"))
    given = model.given_label[batch["labeled"]["index"]]
    assert (given != UNLABELED).all()
    size = len(given)
    expected = -logits[:size].log_softmax(1)[torch.arange(size), given].mean()
    torch.testing.assert_close(losses["supervised"], expected)
    pseudo, rows = model.pseudo, batch["pool"]["index"]
    assert pseudo is not None
    weight = pseudo.weight[rows] * pseudo.class_weight[pseudo.label[rows]]
    loss = -logits[size:].log_softmax(1).gather(1, pseudo.label[rows, None]).squeeze(1)
    torch.testing.assert_close(losses["pseudo"], (weight * loss).sum() / weight.sum())
    assert set(losses) == {"supervised", "pseudo"}


def weak_and_strong(model: FewLabelClassifier, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Logits of the pool's two views; labeled ones go through the network with them, as batch normalization sees."""
    given, pool = batch["labeled"]["image"].float() / 255, batch["pool"]["image"].float() / 255
    logits = model.head(model.backbone(model.normalize(torch.cat([given, pool, 0.5 * pool]))))
    _, weak, strong = logits.split([len(given), len(pool), len(pool)])
    return weak, strong


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize(("threshold", "curriculum"), [(0.4, False), (None, False), (0.4, True)])
def test_confident_loss_is_its_formula(
    threshold: float | None, curriculum: bool, align: bool, make_trainer: Callable[..., Trainer]
) -> None:
    options = {"pseudo_weight": 0.0, "confident_weight": 1.0, "threshold": threshold, "align": align}
    options["curriculum"] = curriculum
    model = make_model(weak=SAME, strong=Darker(), **options)
    batch = first_batch(model, make_trainer)
    model.train()
    weak, strong = weak_and_strong(model, batch)
    q = weak.detach().softmax(1)
    if align:
        mean = 0.99 / NUM_CLASSES + 0.01 * q.mean(0)
        q = (q / mean) / (q / mean).sum(1, keepdim=True)
    largest, label = q.max(1)
    needed = torch.full((len(q),), 0.4)
    if threshold is None:
        level, frequency = 0.999 / NUM_CLASSES + 0.001 * largest.mean(), 0.999 / NUM_CLASSES + 0.001 * q.mean(0)
        needed = (frequency / frequency.max() * level)[label]
    if model.curriculum is not None:
        learned = int(label[0])  # the only class with sure predictions so far
        model.curriculum.label[model.data.split.pool] = learned
        needed = 0.4 * (label == learned)
    expected = ((largest >= needed) * -strong.log_softmax(1).gather(1, label[:, None]).squeeze(1)).mean()
    losses = second_stage_losses(model, batch)
    torch.testing.assert_close(losses["confident"], expected)
    assert set(losses) == {"supervised", "confident"}
    losses["confident"].backward()
    assert model.head.weight.grad is not None


def test_fairness_is_that_of_the_images_that_are_sure(make_trainer: Callable[..., Trainer]) -> None:
    options = {"pseudo_weight": 0.0, "confident_weight": 1.0, "threshold": None, "fairness_weight": 0.05}
    model = make_model(weak=SAME, strong=Darker(), **options)
    batch = first_batch(model, make_trainer)
    model.train()
    weak, strong = weak_and_strong(model, batch)
    q = weak.detach().softmax(1)
    needed = AdaptiveThreshold(NUM_CLASSES)(q)
    is_sure = q.max(1).values >= needed[q.argmax(1)]
    assert is_sure.any()
    expected = fairness_loss(strong, is_sure, UsualFairness(NUM_CLASSES)(q))
    losses = second_stage_losses(model, batch)
    torch.testing.assert_close(losses["fairness"], expected)
    assert set(losses) == {"supervised", "confident", "fairness"}
    assert model.usual_fairness is not None
    assert not torch.equal(model.usual_fairness.frequency, torch.full((NUM_CLASSES,), 1 / NUM_CLASSES))
    trainer = make_trainer(max_epochs=1)
    trainer.fit(model, datamodule=make_data())
    total = sum(getattr(model, f"{name}_weight") * trainer.callback_metrics[f"{name}_loss"] for name in losses)
    torch.testing.assert_close(trainer.callback_metrics["train_loss"], total)
    with pytest.raises(ConfigError, match="fairness_weight looks at the images that confident_weight learns from"):
        make_model(**options | {"confident_weight": 0.0})


def test_curriculum_lowers_the_threshold_and_is_kept_for_a_resumed_run(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    options = {"pseudo_weight": 0.0, "confident_weight": 1.0, "threshold": 0.2, "curriculum": True}
    model, data = make_model(weak=SAME, strong=Darker(), **options), make_data()
    trainer = make_trainer(max_epochs=1)
    trainer.fit(model, datamodule=data)
    assert model.curriculum is not None
    kept = model.curriculum.label.clone()
    assert set(torch.where(kept != UNLABELED)[0].tolist()) <= set(data.split.pool.tolist())
    assert (kept != UNLABELED).any()
    trainer.save_checkpoint(tmp_path / "one.ckpt")

    class Watch(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            assert isinstance(pl_module, FewLabelClassifier)
            assert pl_module.curriculum is not None
            self.label = pl_module.curriculum.label.clone()

    watch = Watch()
    second = make_model(weak=SAME, strong=Darker(), **options)
    make_trainer(watch, max_epochs=2).fit(second, datamodule=make_data(), ckpt_path=tmp_path / "one.ckpt")
    assert torch.equal(watch.label, kept)
    # Items were added since: nothing of the old count fits.
    second.setup("fit")
    checkpoint = torch.load(tmp_path / "one.ckpt", weights_only=True)
    second.on_load_checkpoint(checkpoint | {"sure_label": kept[1:]})
    assert second.curriculum is not None
    assert second.curriculum.label.tolist() == [UNLABELED] * len(kept)
    assert make_model(**options | {"confident_weight": 0.0}).curriculum is None
    with pytest.raises(ConfigError, match="curriculum=True lowers a threshold, and threshold is None"):
        make_model(**options | {"threshold": None})


def test_teacher_is_the_averaged_network_on_the_weak_view(make_trainer: Callable[..., Trainer]) -> None:
    model = make_model(weak=SAME, strong=Darker(), pseudo_weight=0.0, teacher_weight=3.0, lr=1e-2)
    batch = first_batch(model, make_trainer)
    with pytest.raises(ConfigError, match="teacher_weight > 0 needs a teacher: add a callback that averages weights"):
        second_stage_losses(model, batch)

    class Watch(Callback):
        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
        ) -> None:
            assert isinstance(pl_module, FewLabelClassifier)
            average = averaged_module(trainer)
            assert average is not None
            image = batch["pool"]["image"].float() / 255
            average.eval()
            taught = average.head(average.backbone(pl_module.normalize(image))).softmax(1)
            given = batch["labeled"]["image"].float() / 255
            state = {name: value.clone() for name, value in pl_module.state_dict().items()}
            logits = pl_module.head(pl_module.backbone(pl_module.normalize(torch.cat([given, 0.5 * image]))))
            pl_module.load_state_dict(state)  # running statistics as they were
            self.expected = (logits[len(given) :].softmax(1) - taught).square().mean().detach()

    watch = Watch()
    trainer = make_trainer(RampedAveraging(0.9), watch, max_epochs=1, limit_train_batches=1)
    trainer.fit(model, datamodule=make_data())
    torch.testing.assert_close(trainer.callback_metrics["teacher_loss"], watch.expected)


@pytest.mark.parametrize("others", [{}, {"entropy_weight": 0.5}])
@pytest.mark.parametrize("amounts", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_mixed_images_are_compared_with_both_labels(
    amounts: tuple[float, float], others: dict[str, float], make_trainer: Callable[..., Trainer]
) -> None:
    mixup, cutmix = amounts
    model = make_model(weak=SAME, strong=Darker(), mixup=mixup, cutmix=cutmix, **others)
    batch = first_batch(model, make_trainer)
    model.train()
    given, strong = batch["labeled"]["image"].float() / 255, batch["pool"]["image"].float() / 510
    torch.manual_seed(3)
    mixed, partner, share = mix_images(strong, mixup, cutmix)
    views = [given, strong, mixed] if others else [given, mixed]
    logits = model.head(model.backbone(model.normalize(torch.cat(views)))).split([len(view) for view in views])
    assert model.pseudo is not None
    both = [
        pseudo_label_loss(logits[-1], model.pseudo, index, reduction="weighted_mean")
        for index in (batch["pool"]["index"], batch["pool"]["index"][partner])
    ]
    torch.manual_seed(3)
    losses = second_stage_losses(model, batch)
    torch.testing.assert_close(losses["pseudo"], share * both[0] + (1 - share) * both[1])
    assert set(losses) == {"supervised", "pseudo"} | ({"entropy"} if others else set())
    if others:
        torch.testing.assert_close(losses["entropy"], mean_entropy_loss(torch.cat(logits[1:])))


def test_pool_baselines_train(make_trainer: Callable[..., Trainer]) -> None:
    layer = LabelPropagation(NUM_CLASSES, k=5, kernel=SelfTuning(4.0), symmetrize="max", ridge=1e-3)
    for options in (
        {"confident_weight": 1.0, "threshold": None, "align": True, "ramp_epochs": 1},
        {"teacher_weight": 10.0},
        {"spread_weight": 1.0, "spread_layer": layer},
    ):
        model = make_model(pseudo_weight=0.0, **options)
        before = model.head.weight.detach().clone()
        make_trainer(RampedAveraging(), max_epochs=2).fit(model, datamodule=make_data())
        assert torch.isfinite(model.head.weight).all()
        assert not torch.equal(model.head.weight, before)


def test_views_may_shrink_together_only(make_trainer: Callable[..., Trainer]) -> None:
    small = StrongAugmentation(flip=0, size=6)
    make_trainer(max_epochs=2).fit(make_model(view=small, warmup_epochs=1, pseudo_weight=0.0), datamodule=make_data())
    both = make_model(weak=WeakAugmentation(flip=0, size=6), strong=small, pseudo_weight=0.0, entropy_weight=1.0)
    make_trainer(max_epochs=1).fit(both, datamodule=make_data())
    model = make_model(strong=small, pseudo_weight=0.0, entropy_weight=1.0)
    with pytest.raises(ConfigError, match=r"'labeled': \(1, 8, 8\), 'strong': \(1, 6, 6\).*Set the same size in both"):
        make_trainer(max_epochs=1).fit(model, datamodule=make_data())


def test_contrastive_loss_sees_two_views_of_each_image(make_trainer: Callable[..., Trainer]) -> None:
    model = make_model(strong=SAME, warmup_epochs=1, temperature=0.3)
    batch = first_batch(model, make_trainer)
    loss = warm_up_loss(model, batch["pool"]["image"])
    projected = model.projection(embeddings(model, batch, "pool", "pool"))
    first, second = projected.chunk(2)
    torch.testing.assert_close(loss, contrastive_loss(first, second, temperature=0.3))


def test_in_batch_losses_hide_items_not_rows_and_reach_the_backbone(make_trainer: Callable[..., Trainer]) -> None:
    model = make_model(weak=SAME, strong=SAME, spread_weight=1.0, consistency_weight=1.0, spread_k=4, learn_spread=True)
    batch = first_batch(model, make_trainer)
    assert model.spread is not None
    assert model.pseudo is not None
    z = embeddings(model, batch, "labeled", "pool")
    index = torch.cat([batch["labeled"]["index"], batch["pool"]["index"]])
    torch.manual_seed(5)
    sizes = [len(batch["labeled"]["index"]), len(batch["pool"]["index"])]
    views = ("labeled", "strong")
    losses = batch_graph_losses(
        model,
        dict(zip(views, z.split(sizes), strict=True)),
        dict(zip(views, model.head(z).split(sizes), strict=True)),
        {name: batch[name]["index"] for name in ("labeled", "pool")},
    )
    torch.manual_seed(5)
    is_hidden = (torch.rand(len(model.given_label)) < 0.5)[index]
    label, trust = model.pseudo.label[index], model.pseudo.weight[index]
    scores = model.spread(z, label_matrix(label, NUM_CLASSES) * (trust * ~is_hidden)[:, None])
    share, is_reached = normalize_scores(scores)
    rows = (is_hidden & (share[torch.arange(len(label)), label] > 0)).nonzero().flatten()
    expected = -(trust[rows] * share[rows, label[rows]].log()).sum() / trust[rows].sum()
    torch.testing.assert_close(losses["spread"], expected)
    certain = 1 + torch.special.xlogy(share, share).sum(1) / math.log(NUM_CLASSES)
    weight = (certain * is_reached * is_hidden).detach()
    target = share.detach()
    expected = (weight * -(target * model.head(z).log_softmax(1)).sum(1)).mean()
    torch.testing.assert_close(losses["consistency"], expected)
    losses["spread"].backward()
    for parameter in (model.backbone.stem.weight, model.spread.logit_alpha, model.spread.log_bandwidth):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


def test_agreement_asks_the_graphs_of_both_views(make_trainer: Callable[..., Trainer]) -> None:
    model = make_model(weak=SAME, strong=Changing(), agreement_weight=1.0, spread_k=4, learn_spread=True)
    batch = first_batch(model, make_trainer)
    assert model.spread is not None
    model.strong.number = 0
    losses = second_stage_losses(model, batch)
    images = {name: batch[name]["image"].float() / 255 for name in ("labeled", "pool")}
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in model.moments or ())
    views = [images["labeled"], 0.9 * images["pool"], 0.9**2 * images["pool"]]
    labeled, strong, second = model.backbone((torch.cat(views) - mean) / std).split([len(view) for view in views])
    # The given labels teach; rows of the pool are asked, also where they show a labeled item.
    label = torch.full((len(labeled) + len(strong),), UNLABELED)
    label[: len(labeled)] = model.given_label[batch["labeled"]["index"]]
    answers = [model.spread(torch.cat([labeled, view]), label)[len(labeled) :] for view in (strong, second)]
    torch.testing.assert_close(losses["agreement"], agreement_loss(*answers))
    assert losses["agreement"] > 0
    losses["agreement"].backward()
    for parameter in (model.backbone.stem.weight, model.spread.logit_alpha, model.spread.log_bandwidth):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


def test_bank_stands_beside_the_batch_without_gradient_and_hides_with_it(make_trainer: Callable[..., Trainer]) -> None:
    layer = Spy(NUM_CLASSES, k=4)
    model = make_model(weak=SAME, strong=SAME, spread_weight=1.0, spread_layer=layer, bank_size=20)
    batch = first_batch(model, make_trainer)
    assert model.pseudo is not None
    seen: dict[int, Tensor] = {}
    for step in range(4):
        second_stage_losses(model, batch)
        z, _, anchors = layer.seen[-1]
        assert anchors is not None
        assert not anchors.embedding.requires_grad
        items = anchors.index
        assert len(items) == len(items.unique()) <= 20
        assert not torch.isin(items, torch.cat([batch[name]["index"] for name in ("labeled", "pool")])).any()
        if step == 0:
            assert not len(items), "nothing was seen before the first batch"
        known = anchors.label.sum(1)
        assert ((known == 0) | torch.isclose(known, model.pseudo.weight[items])).all()
        for item, row in zip(items.tolist(), anchors.embedding, strict=True):
            torch.testing.assert_close(row, seen[item])
        seen |= dict(zip(torch.cat([batch[name]["index"] for name in batch]).tolist(), z.detach(), strict=True))
        batch = {"labeled": batch["labeled"], "pool": next(iter(model.data.train_dataloader()["pool"]))}


def test_graph_contrast_joins_images_of_one_pseudo_label(make_trainer: Callable[..., Trainer]) -> None:
    model = make_model(weak=SAME, strong=Changing(), graph_contrastive_weight=1.0, temperature=0.3)
    batch = first_batch(model, make_trainer)
    assert model.pseudo is not None
    model.strong.number = 0
    losses = second_stage_losses(model, batch)
    images = {name: batch[name]["image"].float() / 255 for name in ("labeled", "pool")}
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in model.moments or ())
    views = [images["labeled"], 0.9 * images["pool"], 0.9**2 * images["pool"]]
    _, strong, second = model.backbone((torch.cat(views) - mean) / std).split([len(view) for view in views])
    first, other = model.projection(torch.cat([strong, second])).chunk(2)
    probability = model.pseudo.probability[batch["pool"]["index"]]
    expected = graph_contrastive_loss(first, other, probability, temperature=0.3)
    torch.testing.assert_close(losses["graph_contrastive"], expected)
    model.pseudo = None
    model.pseudo_weight = 0
    with pytest.raises(ConfigError, match="graph_contrastive_weight > 0 needs pseudo-labels"):
        second_stage_losses(model, batch)


def test_every_piece_of_the_graph_trains_together(make_trainer: Callable[..., Trainer]) -> None:
    model = make_model(
        warmup_epochs=1,
        spread_weight=0.1,
        consistency_weight=0.1,
        agreement_weight=0.1,
        graph_contrastive_weight=0.1,
        bank_size=20,
        spread_k=4,
    )
    trainer = make_trainer(RefreshPseudoLabels(k=5), RampedAveraging(0.9), max_epochs=3)
    trainer.fit(model, datamodule=make_data())
    logged = {name for name in trainer.callback_metrics if name.endswith("_loss")}
    assert {"spread_loss", "consistency_loss", "agreement_loss", "graph_contrastive_loss", "pseudo_loss"} <= logged
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert not any("bank" in name for name in model.state_dict())


def test_in_batch_path_needs_no_pseudo_labels(make_trainer: Callable[..., Trainer]) -> None:
    model = make_model(pseudo_weight=0.0, spread_weight=1.0, spread_k=4)
    make_trainer(max_epochs=2).fit(model, datamodule=make_data())
    assert model.pseudo is None
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_what_unlabeled_items_truly_are_changes_nothing(make_trainer: Callable[..., Trainer]) -> None:
    weights = []
    for is_scrambled in (False, True):
        data = make_data()
        data.setup()
        label = data.evaluator.label(torch.arange(60))
        if is_scrambled:
            hidden = data.split.unlabeled
            label[hidden] = (label[hidden] + 1) % NUM_CLASSES
        data = make_data(label, num_labels_per_class=None, labeled_indices=data.split.labeled.tolist())
        model = make_model(warmup_epochs=1, spread_weight=0.1, contrastive_weight=0.1)
        torch.manual_seed(1)
        make_trainer(RefreshPseudoLabels(k=5), max_epochs=3).fit(model, datamodule=data)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def test_losses_are_those_of_one_epoch(make_trainer: Callable[..., Trainer]) -> None:
    class Watch(Callback):
        def __init__(self) -> None:
            self.seen: list[Tensor] = []

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: object) -> None:
            self.seen.append(outputs["loss"].detach())

    watch = Watch()
    model, trainer = make_model(), make_trainer(RefreshPseudoLabels(k=5), watch, max_epochs=2)
    model.means.add({"train_loss": torch.tensor(1e6)}, 1000)  # of an epoch that was interrupted
    trainer.fit(model, datamodule=make_data())
    last = torch.stack(watch.seen[len(watch.seen) // 2 :])
    torch.testing.assert_close(trainer.callback_metrics["train_loss"], last.mean())


def test_an_epoch_that_max_steps_ends_keeps_its_losses(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer(RefreshPseudoLabels(k=5), max_steps=4)  # 3 steps an epoch
    trainer.fit(make_model(lr=1e-9), datamodule=make_data())
    assert trainer.callback_metrics["train_loss"] > 0


def test_training_learns_the_bars(make_trainer: Callable[..., Trainer]) -> None:
    torch.manual_seed(0)
    data, model = make_data(), make_model(lr=1e-2)
    make_trainer(RefreshPseudoLabels(k=5), max_epochs=15).fit(model, datamodule=data)
    predicted = torch.cat([model(batch["image"]) for batch in data.predict_dataloader()]).argmax(1)
    accuracy = data.evaluator.accuracy(predicted, data.split.unlabeled)
    assert accuracy is not None
    assert accuracy >= 0.9


def test_stopped_and_resumed_is_as_if_never_stopped(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.should_stop = trainer.current_epoch == 1

    def fit(*callbacks: Callback, checkpoint: Path | None = None) -> tuple[Trainer, list[Tensor]]:
        model = make_model(warmup_epochs=1, ramp_epochs=1)
        # Fresh pseudo-labels in epochs 1 and 3: epoch 2 of the resumed run must go on with the saved ones.
        refresh = RefreshPseudoLabels(k=5, every_n_epochs=2)
        trainer = make_trainer(RandomState(), refresh, *callbacks, max_epochs=4)
        trainer.fit(model, datamodule=make_data(), ckpt_path=checkpoint, weights_only=True)
        return trainer, list(model.parameters())

    torch.manual_seed(7)
    _, whole = fit()
    torch.manual_seed(7)
    trainer, _ = fit(Stop())
    assert trainer.current_epoch == 2
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    torch.manual_seed(99)
    _, resumed = fit(checkpoint=tmp_path / "stopped.ckpt")
    for before, after in zip(whole, resumed, strict=True):
        # Loaded optimizer states have another memory layout, which may move the last bit of a sum.
        torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-8)


def test_learning_rate_climbs_and_falls_in_both_stages(make_trainer: Callable[..., Trainer]) -> None:
    model = make_model(warmup_epochs=5, lr=1e-2, warmup_lr=3e-2)
    seen: list[float] = []

    class Watch(RandomState):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    make_trainer(Watch(), RefreshPseudoLabels(k=5), max_epochs=15).fit(model, datamodule=make_data())
    assert len(seen) == 45  # 60 images, 16 a step, the last 12 dropped
    warm, main = seen[:15], seen[15:]
    assert max(warm) == pytest.approx(3e-2)
    assert warm.index(max(warm)) <= 1
    assert warm[-1] < 1e-3
    assert max(main) == pytest.approx(1e-2)
    assert main.index(max(main)) <= 3
    assert main[-1] < 1e-3
    assert all(later <= earlier for earlier, later in itertools.pairwise(main[3:]))


def test_ramp_starts_small_and_ends_whole() -> None:
    model = make_model(warmup_epochs=2, ramp_epochs=3, pseudo_weight=0.8)
    found = []
    for epoch in range(2, 7):
        model.__class__ = type("At", (FewLabelClassifier,), {"current_epoch": epoch})
        found.append(model._weight("pseudo"))
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert model._weight("supervised") == 1.0


def test_checkpoint_knows_the_moments_of_the_images(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    model = make_model(pseudo_weight=0.0)
    data = make_data()
    trainer = make_trainer(max_epochs=1)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = FewLabelClassifier.load_from_checkpoint(
        tmp_path / "model.ckpt", backbone=make_model().backbone, num_classes=NUM_CLASSES
    )
    image = next(iter(data.predict_dataloader()))["image"]
    torch.testing.assert_close(again.eval()(image), model.eval()(image))
    assert model.moments == (pytest.approx(list(data.mean)), pytest.approx(list(data.std)))
    expected = model.head(model.backbone((image.float() / 255 - data.mean[0]) / data.std[0]))
    torch.testing.assert_close(model(image), expected)


def test_validation_and_test_accuracy_are_counted_by_hand(make_trainer: Callable[..., Trainer]) -> None:
    test = torch.arange(30, 60)
    data = make_data(test=test, val_fraction=0.2)
    model = make_model()
    trainer = make_trainer(RefreshPseudoLabels(k=5), max_epochs=2)
    trainer.fit(model, datamodule=data)
    model.eval()
    found = trainer.test(model, datamodule=data, verbose=False)[0]["test_accuracy"]
    image, truth = data.images.fetch(test), data.evaluator.label(test)
    assert found == pytest.approx(float((model(image).argmax(1) == truth).float().mean()))
    found = trainer.validate(model, datamodule=data, verbose=False)[0]["val_accuracy"]
    image, truth = data.images.fetch(data.split.val), data.evaluator.label(data.split.val)
    assert found == pytest.approx(float((model(image).argmax(1) == truth).float().mean()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, r"lr and temperature must be greater than 0; got lr=0.0"),
        ({"pseudo_weight": -1.0}, r"pseudo_weight must be 0 or more; got -1.0"),
        ({"warmup_epochs": -1}, r"warmup_epochs must be 0 or more"),
        (
            {"spread_layer": LabelPropagation(10, k=3)},
            r"for the 3 classes .* num_classes=10. Set --model.spread_layer.init_args.num_classes 3",
        ),
        ({"backbone": nn.Flatten()}, r"num_features; Flatten does not\. Use lspread\.nn\.create_backbone"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_model(**options)


def test_pseudo_labels_need_the_callback(make_trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(ConfigError, match=r"add the callback lspread\.lit\.RefreshPseudoLabels"):
        make_trainer().fit(make_model(), datamodule=make_data())


def test_pseudo_labels_are_missed_before_the_warm_up(make_trainer: Callable[..., Trainer]) -> None:
    with (
        pytest.warns(UserWarning, match="no callback gives pseudo-labels"),
        pytest.raises(ConfigError, match=r"add the callback lspread\.lit\.RefreshPseudoLabels"),
    ):
        make_trainer(max_epochs=2).fit(make_model(warmup_epochs=1), datamodule=make_data())

    class Own(Callback):
        gives_pseudo_labels = True

        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            assert isinstance(pl_module, FewLabelClassifier)
            pl_module.pseudo_weight = 0.0

    for callback, options in ((Own(), {}), (RefreshPseudoLabels(k=5), {}), (Callback(), {"pseudo_weight": 0.0})):
        model = make_model(warmup_epochs=1, **options)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="no callback gives pseudo-labels")
            make_trainer(callback, max_epochs=2, limit_train_batches=1).fit(model, datamodule=make_data())
    with warnings.catch_warnings():  # the warm-up alone needs none
        warnings.filterwarnings("error", message="no callback gives pseudo-labels")
        make_trainer(max_epochs=1).fit(make_model(warmup_epochs=1), datamodule=make_data())


def test_a_teacher_is_missed_before_the_warm_up(make_trainer: Callable[..., Trainer]) -> None:
    model = make_model(warmup_epochs=1, pseudo_weight=0.0, teacher_weight=1.0)
    with pytest.raises(ConfigError, match="teacher_weight > 0 needs a teacher"):
        make_trainer().fit(model, datamodule=make_data())
    assert model.global_step == 0


@pytest.mark.parametrize("kind", [EarlyStopping, ModelCheckpoint])
def test_nothing_can_watch_in_a_warm_up_what_is_measured_after_it(
    kind: type[Callback], make_trainer: Callable[..., Trainer]
) -> None:
    watch = kind(monitor="val_accuracy", mode="max")
    options: dict[str, Any] = {"enable_checkpointing": True, "max_epochs": 3}
    with pytest.raises(ConfigError, match=r"watches val_accuracy, which is measured after the warm-up of 1 epochs"):
        make_trainer(watch, **options).fit(make_model(warmup_epochs=1), datamodule=make_data(val_fraction=0.2))


def test_early_stopping_can_wait_for_the_end_of_the_warm_up(make_trainer: Callable[..., Trainer]) -> None:
    watch = EarlyStopping(monitor="val_accuracy", mode="max", patience=2, min_delta=2.0, strict=False)
    trainer = make_trainer(watch, RefreshPseudoLabels(k=5), max_epochs=9)
    trainer.fit(make_model(warmup_epochs=2), datamodule=make_data(val_fraction=0.2))
    assert trainer.current_epoch == 5  # two of the warm-up, the best, two that are no better


def test_accuracy_is_not_logged_where_no_truth_is_known(make_trainer: Callable[..., Trainer]) -> None:
    label = torch.arange(60) % 3
    label[40:] = UNLABELED
    data = make_data(label=label, val=torch.arange(40, 50), test=torch.arange(50, 60))
    trainer = make_trainer(RefreshPseudoLabels(k=5), max_epochs=1)
    model = make_model()
    trainer.fit(model, datamodule=data)
    assert "val_accuracy" not in trainer.callback_metrics
    assert trainer.test(model, datamodule=data, verbose=False) == [{}]


def test_a_head_that_was_never_trained_is_not_judged(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    data = make_data(test=torch.arange(50, 60))
    trainer = make_trainer(max_epochs=1)
    with pytest.warns(UserWarning, match="ends after 1 epochs, within its warm-up of 1"):
        trainer.fit(make_model(warmup_epochs=1), datamodule=data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    for judge in (make_trainer().test, make_trainer().predict):
        with pytest.raises(ConfigError, match="ended within its warm-up, before its classifier was trained"):
            judge(make_model(warmup_epochs=1), datamodule=data, ckpt_path=str(tmp_path / "model.ckpt"))
    # Further epochs train it.
    trainer = make_trainer(RefreshPseudoLabels(k=5), max_epochs=2)
    model = make_model(warmup_epochs=1)
    trainer.fit(model, datamodule=data, ckpt_path=str(tmp_path / "model.ckpt"))
    assert trainer.test(model, datamodule=data, verbose=False)[0]["test_accuracy"] >= 0


def test_features_that_were_fitted_to_other_rows_are_refused(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    data, trainer = make_data(), make_trainer(max_epochs=1)
    data.features_fingerprint = "a"
    trainer.fit(make_model(pseudo_weight=0.0), datamodule=data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    other = make_data()
    other.features_fingerprint = "b"
    with pytest.raises(DataError, match="the features of tensors are not those that this run was trained on"):
        make_trainer().predict(make_model(), datamodule=other, ckpt_path=str(tmp_path / "model.ckpt"))


@pytest.mark.parametrize("names", [["column", "diagonal", "line"], ["row", "column", "diagonal", "dot"]])
def test_classes_that_were_renamed_or_added_are_refused(
    names: list[str], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    trainer = make_trainer(max_epochs=1)
    trainer.fit(make_model(pseudo_weight=0.0), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    image, label = bars()
    other = TensorData(image, label, names, labeled_indices=[0, 1, 2])
    model = FewLabelClassifier(make_model().backbone, len(names), pseudo_weight=0.0)
    message = rf"classes of tensors are {', '.join(names)}, but this run was trained on row, column, diagonal, in this"
    for judge in (make_trainer().predict, make_trainer(max_epochs=2).fit):
        with pytest.raises(DataError, match=message):
            judge(model, datamodule=other, ckpt_path=str(tmp_path / "model.ckpt"))


def test_a_warm_up_knows_no_classes(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer = make_trainer(max_epochs=1)
    with pytest.warns(UserWarning, match="within its warm-up"):
        trainer.fit(make_model(warmup_epochs=1), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    image, label = bars()
    other = TensorData(image, label, ["a", "b", "c"], labeled_indices=[0, 1, 2])
    model = make_model(warmup_epochs=1, pseudo_weight=0.0)
    make_trainer(max_epochs=2).fit(model, datamodule=other, ckpt_path=str(tmp_path / "model.ckpt"))
    assert model.is_head_trained


def test_data_of_another_kind_is_refused(make_trainer: Callable[..., Trainer]) -> None:
    class Other(LightningDataModule):
        def train_dataloader(self) -> list[int]:
            return [0]

    with pytest.raises(ConfigError, match=r"trains on a lspread\.data\.FewLabelData; got Other"):
        make_trainer().fit(make_model(), datamodule=Other())


def test_other_number_of_classes_is_refused(make_trainer: Callable[..., Trainer]) -> None:
    model = FewLabelClassifier(make_model().backbone, 4)
    with pytest.raises(ConfigError, match=r"num_classes=4, but the data has 3 classes"):
        make_trainer().fit(model, datamodule=make_data())


def test_model_without_moments_says_so() -> None:
    with pytest.raises(ConfigError, match=r"does not know the mean and deviation"):
        make_model()(torch.zeros(1, 1, 8, 8))


def test_cross_entropy_is_taken_in_float32(make_trainer: Callable[..., Trainer]) -> None:
    model = make_model(weak=SAME, strong=SAME)
    batch = first_batch(model, make_trainer)
    with torch.autocast("cpu", torch.bfloat16):
        losses = second_stage_losses(model, batch)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    given = model.given_label[batch["labeled"]["index"]]
    exact = cross_entropy(model.head(embeddings(model, batch, "labeled", "pool"))[: len(given)], given)
    torch.testing.assert_close(losses["supervised"], exact, rtol=0.05, atol=0.05)


def test_sure_predictions_stay_when_a_run_is_tested_and_goes_on(make_trainer: Callable[..., Trainer]) -> None:
    options = {"pseudo_weight": 0.0, "confident_weight": 1.0, "threshold": 0.2, "curriculum": True}
    model, data = make_model(weak=SAME, strong=Darker(), **options), make_data()
    make_trainer(max_epochs=1).fit(model, datamodule=data)
    assert model.curriculum is not None
    kept = model.curriculum.label.clone()
    trainer = make_trainer()
    trainer.validate(model, datamodule=data)
    trainer.predict(model, datamodule=data)
    assert (kept != UNLABELED).any()
    assert torch.equal(model.curriculum.label, kept)
