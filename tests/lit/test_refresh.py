"""The epoch path: what the callback hands to the module is what the functions give, step by step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from lspread.data import TensorData
from lspread.errors import ConfigError
from lspread.graph import build_graph, find_neighbors, normalize_graph, whiten
from lspread.labels import label_matrix, pseudo_labels, reinforce_labels, sharpen_pseudo_labels, spread_labels
from lspread.lit import RefreshPseudoLabels
from lspread.lit.refresh import averaged_backbone

from .conftest import bars, make_data, make_model


@pytest.mark.parametrize("reinforce", [0, 2])
def test_pseudo_labels_are_those_of_the_functions(make_trainer: Callable[..., Trainer], reinforce: int) -> None:
    test = torch.arange(50, 60)
    data = make_data(test=test)
    model = make_model(lr=1e-12)  # so that the weights embed now what they embedded when the epoch started
    refresh = RefreshPseudoLabels(k=5, alpha=0.9, prior="uniform", reinforce=reinforce)
    make_trainer(refresh, max_epochs=1).fit(model, datamodule=data)
    assert refresh.last is not None
    torch.manual_seed(0)
    model = make_model()
    model.set_moments(data.mean, data.std)
    pool = data.split.pool
    with torch.no_grad():
        z = whiten(model.backbone.eval()(model.normalize(data.images.fetch(pool))))
    graph = normalize_graph(build_graph(z, find_neighbors(z, 5, metric="cosine")))
    given = data.given_label[pool]
    if reinforce:
        scores = reinforce_labels(graph, given, 3, alpha=0.9, rounds=reinforce).value
    else:
        scores = spread_labels(graph, label_matrix(given, 3, balance=True), alpha=0.9).value
    expected = pseudo_labels(scores, given, prior="uniform")
    found = refresh.last.pseudo
    torch.testing.assert_close(refresh.last.scores, scores, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.weight[pool], expected.weight, rtol=1e-3, atol=1e-4)
    assert torch.equal(found.label[pool], expected.label)
    # Items outside the pool carry nothing.
    assert found.weight[test].abs().max() == 0
    assert not found.is_reached[test].any()
    assert torch.equal(found.is_given.nonzero().flatten(), data.split.labeled)
    assert refresh.last.facts["num_unreached"] == int((~expected.is_reached).sum())
    assert refresh.last.facts["num_edges"] == graph.num_edges
    assert set(refresh.last.seconds) == {"embed", "neighbors", "graph", "spread"}


def test_a_larger_ridge_keeps_noise_from_drowning_two_classes() -> None:
    """One axis tells the classes apart; whitened without restraint, it is one among 32."""
    label = torch.arange(120) % 2
    z = torch.randn(120, 32, generator=torch.Generator().manual_seed(0))
    z[:, 0] = 10.0 * (2 * label - 1) + z[:, 0]
    given = torch.full((120,), -1)
    given[:20] = label[:20]
    right = {}
    for ridge in (1e-3, 0.1):
        refresh = RefreshPseudoLabels(k=15, ridge=ridge)
        _, found = refresh.solve(refresh.build_graph(z), given, 2)
        right[ridge] = float((found.label == label)[20:].float().mean())
    assert right[0.1] == 1.0
    assert right[1e-3] < 0.9


def test_everything_is_logged(make_trainer: Callable[..., Trainer]) -> None:
    data, model, refresh = make_data(), make_model(), RefreshPseudoLabels(k=5)
    trainer = make_trainer(refresh, max_epochs=1)
    trainer.fit(model, datamodule=data)
    logged = trainer.callback_metrics
    names = {"embed_seconds", "neighbors_seconds", "graph_seconds", "spread_seconds", "solver_steps", "solve_converged"}
    names |= {"num_unreached", "pseudo_weight_mean", "pseudo_accuracy", "train_loss"}
    assert names <= set(logged)
    assert refresh.last is not None
    right = data.evaluator.accuracy(refresh.last.pseudo.label, data.split.unlabeled)
    assert float(logged["pseudo_accuracy"]) == pytest.approx(right)
    assert float(logged["solve_converged"]) == 1.0


def test_sharpened_pseudo_labels_train_and_the_graph_answers_as_before(make_trainer: Callable[..., Trainer]) -> None:
    data, model, refresh = make_data(), make_model(), RefreshPseudoLabels(k=5, temperature=0.5)
    trainer = make_trainer(refresh, max_epochs=1)
    trainer.fit(model, datamodule=data)
    assert refresh.last is not None
    assert model.pseudo is not None
    plain = refresh.last.pseudo
    assert torch.equal(plain.weight[data.split.pool], pseudo_labels(refresh.last.scores, data.given_label).weight)
    torch.testing.assert_close(model.pseudo.weight, sharpen_pseudo_labels(plain, 0.5).weight)
    assert model.pseudo.weight.mean() > plain.weight.mean()
    assert float(trainer.callback_metrics["pseudo_weight_mean"]) == pytest.approx(float(model.pseudo.weight.mean()))

    # A resumed run has them sharpened once, not twice.
    again = RefreshPseudoLabels(k=5, temperature=0.5)
    again.load_state_dict(refresh.state_dict())
    other = make_model()
    other.trainer = trainer
    again.on_train_start(trainer, other)
    assert other.pseudo is not None
    torch.testing.assert_close(other.pseudo.weight, model.pseudo.weight)


def test_refreshes_when_due(make_trainer: Callable[..., Trainer]) -> None:
    epochs: list[int] = []

    class Counted(RefreshPseudoLabels):
        def refresh(self, trainer: Trainer, pl_module: Any, **options: Any) -> Any:
            epochs.append(trainer.current_epoch)
            return super().refresh(trainer, pl_module, **options)

    model = make_model(warmup_epochs=2)
    make_trainer(Counted(k=5, every_n_epochs=3), max_epochs=9).fit(model, datamodule=make_data())
    assert epochs == [2, 5, 8]


def test_averaged_weights_embed(make_trainer: Callable[..., Trainer]) -> None:
    model, refresh, seen = make_model(lr=0.1), RefreshPseudoLabels(k=5), []

    class Look(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            average = next(c for c in trainer.callbacks if isinstance(c, EMAWeightAveraging))._average_model
            assert average is not None
            found = averaged_backbone(trainer, pl_module)
            same = torch.equal(found.stem.weight, pl_module.backbone.stem.weight)
            seen.append((found is average.module.backbone, same))

    make_trainer(Look(), EMAWeightAveraging(decay=0.9), refresh, max_epochs=2).fit(model, datamodule=make_data())
    assert seen == [(True, True), (True, False)]


def test_a_class_without_labels_and_too_few_images_for_k(make_trainer: Callable[..., Trainer]) -> None:
    labeled = [0, 1, 3, 4]  # classes 0 and 1; nobody labelled class 2
    data = make_data(num_labels_per_class=None, labeled_indices=labeled)
    refresh = RefreshPseudoLabels(k=500)
    make_trainer(refresh, max_epochs=2).fit(make_model(), datamodule=data)
    assert refresh.last is not None
    assert refresh.last.facts["k"] == 59
    assert torch.isfinite(refresh.last.pseudo.class_weight).all()
    assert (refresh.last.pseudo.label != 2).all()


def test_a_prior_that_does_not_fit_is_refused_before_the_warm_up(make_trainer: Callable[..., Trainer]) -> None:
    steps: list[int] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
            steps.append(trainer.global_step)

    with pytest.raises(ConfigError, match=r"one frequency per class, shape \(3,\); got \(2,\)"):
        make_trainer(RefreshPseudoLabels(prior=[0.5, 0.5]), Watch()).fit(
            make_model(warmup_epochs=1), datamodule=make_data()
        )
    assert steps == []


def test_items_that_no_label_reached_count_as_wrong(make_trainer: Callable[..., Trainer]) -> None:
    """Class 0 lies apart from the two labeled classes."""
    data = make_data(num_labels_per_class=None, labeled_indices=[1, 2, 4, 5])
    data.setup()
    place = 100.0 * torch.eye(3)[torch.arange(60) % 3] + torch.rand(60, 3, generator=torch.Generator().manual_seed(0))

    class Placed(RefreshPseudoLabels):
        def refresh(self, trainer: Trainer, pl_module: Any) -> Any:
            self.last = self.spread(place, data)
            pl_module.pseudo = self.last.pseudo
            return self.last

    trainer = make_trainer(Placed(k=5, whiten=False), max_epochs=1)
    trainer.fit(make_model(), datamodule=data)
    assert trainer.callback_metrics["num_unreached"] == 20
    assert trainer.callback_metrics["pseudo_accuracy"] == pytest.approx(36 / 56)


@pytest.mark.parametrize("epoch", [0, 2])
def test_an_interrupt_after_the_last_batch_of_an_epoch_loses_no_refresh(
    epoch: int, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Lightning resumes there within the next epoch, without its start."""
    epochs: list[int] = []

    class Counted(RefreshPseudoLabels):
        def refresh(self, trainer: Trainer, pl_module: Any) -> Any:
            epochs.append(trainer.current_epoch)
            return super().refresh(trainer, pl_module)

    class Interrupt(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
            if trainer.current_epoch == epoch and trainer.is_last_batch:
                raise KeyboardInterrupt

    def keep() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, filename="last", save_on_exception=True, enable_version_counter=False)

    options: dict[str, Any] = {"max_epochs": 5, "enable_checkpointing": True}
    with pytest.raises(SystemExit):
        make_trainer(Counted(k=5), Interrupt(), keep(), **options).fit(
            make_model(warmup_epochs=1), datamodule=make_data()
        )
    make_trainer(Counted(k=5), keep(), **options).fit(
        make_model(warmup_epochs=1), datamodule=make_data(), ckpt_path=str(tmp_path / "last.ckpt")
    )
    assert epochs == [1, 2, 3, 4]


def test_what_was_refreshed_when_outlasts_two_interrupts() -> None:
    """A run that is interrupted again before its next refresh saves what it was given."""
    saved = {"label": torch.arange(3), "weight": torch.ones(3), "refreshed_in": 4, "items": "a hash"}
    refresh = RefreshPseudoLabels(k=5)
    refresh.load_state_dict(saved)
    assert refresh.state_dict() == saved
    assert RefreshPseudoLabels(k=5).state_dict() == {}


def test_pseudo_labels_of_other_labels_are_computed_anew(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    """A label was put right since: training must not go on with the wrong one until the next refresh."""
    trainer = make_trainer(RefreshPseudoLabels(k=5, every_n_epochs=5), max_epochs=1)
    trainer.fit(make_model(), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    data, model = make_data(), make_model()
    data.setup()
    row = int(data.split.labeled[0])
    data.given_label[row] = (data.given_label[row] + 1) % 3
    right = int(data.given_label[row])
    trainer = make_trainer(RefreshPseudoLabels(k=5, every_n_epochs=5), max_epochs=2)
    trainer.fit(model, datamodule=data, ckpt_path=str(tmp_path / "last.ckpt"))
    assert model.pseudo is not None
    assert int(model.pseudo.label[row]) == right


@pytest.mark.parametrize("is_longer", [True, False])
def test_pseudo_labels_of_other_items_are_computed_anew(
    is_longer: bool, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Items changed since: the second epoch is due no refresh, but the saved pseudo-labels are not about these."""
    trainer = make_trainer(RefreshPseudoLabels(k=5, every_n_epochs=5), max_epochs=1)
    trainer.fit(make_model(), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    image, label = bars()
    rows = [*range(60), 0] if is_longer else [*range(30, 60), *range(30)]
    other = TensorData(
        image[rows],
        label[rows],
        ["row", "column", "diagonal"],
        num_labels_per_class=2,
        batch_size=16,
        names=[f"bar {row}" for row in rows[:60]] + ["one more"] * is_longer,
    )
    model, refresh = make_model(), RefreshPseudoLabels(k=5, every_n_epochs=5)
    trainer = make_trainer(refresh, max_epochs=2)
    trainer.fit(model, datamodule=other, ckpt_path=str(tmp_path / "last.ckpt"))
    assert model.pseudo is not None
    assert len(model.pseudo.label) == len(rows)
    assert refresh.last is not None
    assert model.pseudo.label[other.split.labeled].equal(other.given_label[other.split.labeled])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_epochs": 0}, r"every_n_epochs must be at least 1; got 0"),
        ({"ridge": 0.0}, r"ridge must be greater than 0; got 0"),
        ({"temperature": 0.0}, r"temperature must be greater than 0; got 0"),
        ({"reinforce": -1}, r"reinforce must be 0 or more, and above 0 only with balance; got -1"),
        ({"reinforce": 1, "balance": False}, r"reinforce must be 0 or more, and above 0 only with balance; got 1"),
        ({"k": 0}, r"k and num_components must be at least 1; got k=0, num_components=128"),
        ({"alpha": 1.0}, r"alpha must lie in \[0, 1\)"),
        ({"metric": "cosin"}, r"metric must be one of \('euclidean', 'cosine'\); got 'cosin'"),
        ({"symmetrize": "meen"}, r"symmetrize must be one of \('mean', 'max', 'mutual'\); got 'meen'"),
        ({"kernel": "cosine", "metric": "euclidean"}, r"the kernel 'cosine' needs metric='cosine'; got 'euclidean'"),
        ({"prior": "equal"}, r"prior must be 'none', 'uniform', 'labeled' or a list of frequencies; got 'equal'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RefreshPseudoLabels(**options)
