"""What comes out of a run, and the map of its embeddings."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from sklearn.decomposition import PCA

from lspread.lit.outcome import FEW_AXES, draw_map, run_outcome

from .conftest import make_data, make_model


@pytest.mark.parametrize(("n", "d"), [(700, 20), (3, 900), (40, 900), (FEW_AXES + 60, FEW_AXES + 200)])
def test_map_is_a_principal_component_analysis(n, d):
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(3, 0.5, d) ** 2
    z = 1 + torch.randn(n, d, generator=generator) * scale
    label, is_given = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.bool)
    found = draw_map(z, label, torch.ones(n), is_given, torch.arange(n), seed=0)
    unit = torch.nn.functional.normalize(z.double(), dim=1).numpy()
    pca = PCA(2, svd_solver="full").fit(unit)
    expected = pca.transform(unit)
    for column, name in enumerate(("x", "y")):
        sign = np.sign(expected[:, column] @ np.array(found[name]))
        assert np.array(found[name]) == pytest.approx(sign * expected[:, column], abs=2e-4)
    assert found["explained"] == pytest.approx(pca.explained_variance_ratio_.sum(), abs=1e-4)


def test_few_points_in_a_wide_space_need_no_matrix_of_its_axes():
    """A hundred thousand axes: their matrix would have 80 GB."""
    z = torch.zeros(30, 100_000)
    z[:, :2] = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    found = draw_map(z, torch.zeros(30).long(), torch.ones(30), torch.zeros(30).bool(), torch.arange(30), seed=0)
    assert found["explained"] == pytest.approx(1.0)


def test_embeddings_that_are_all_equal_lie_in_one_place():
    z = torch.ones(600, 600)
    found = draw_map(z, torch.zeros(600).long(), torch.ones(600), torch.zeros(600).bool(), torch.arange(600), seed=0)
    assert set(found["x"]) == {0.0}
    assert found["explained"] == pytest.approx(1.0)  # the mean of equal rows is rounded, each time otherwise


@pytest.mark.parametrize(("known", "is_kept"), [(True, True), (None, True), (False, False)])
def test_only_a_head_that_was_surely_never_trained_is_replaced(
    known: bool | None, is_kept: bool, make_trainer: Callable[..., Trainer]
) -> None:
    model, data, trainer = make_model(pseudo_weight=0.0), make_data(), make_trainer(max_epochs=1)
    trainer.fit(model, datamodule=data)
    before = model.head.weight.detach().clone()
    model.is_head_trained = known  # None: a checkpoint from before this was kept
    run_outcome(trainer, model, data, None)
    assert torch.equal(model.head.weight, before) == is_kept
