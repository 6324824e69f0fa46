import math

import pytest
import torch

from lspread.labels import calibration_error, fit_temperature, sharpen, stratified_folds
from tests.reference import seeded


def test_calibration_error_by_hand():
    probability = torch.tensor([[0.95, 0.05], [0.92, 0.08], [0.35, 0.65], [0.61, 0.39]], dtype=torch.float64)
    number = torch.tensor([0, 1, 1, 1])
    # Bin of 0.9 to 1: confidence 1.87, one right. Bin of 0.6 to 0.7: confidence 1.26, one right.
    assert calibration_error(probability, number) == pytest.approx((0.87 + 0.26) / 4)
    assert calibration_error(torch.eye(3), torch.arange(3)) == 0


def test_sharpen_is_a_power():
    probability = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
    squared = torch.tensor([[0.36, 0.09, 0.01]], dtype=torch.float64) / 0.46
    torch.testing.assert_close(sharpen(probability, 0.5), squared)
    torch.testing.assert_close(sharpen(probability, 1.0), probability)
    assert sharpen(torch.tensor([[1.0, 0.0]]), 2.0).isfinite().all()


@pytest.mark.parametrize("true_temperature", [0.2, 1.0, 3.0])
def test_temperature_is_found_again(true_temperature):
    logits = 2 * torch.randn(4000, 4, generator=seeded(0), dtype=torch.float64)
    number = torch.multinomial((logits / true_temperature).softmax(1), 1, generator=seeded(1)).squeeze(1)
    found = fit_temperature(logits.softmax(1), number)
    assert abs(math.log(found / true_temperature)) < 0.15
    before = calibration_error(logits.softmax(1), number)
    assert calibration_error(sharpen(logits.softmax(1), found), number) <= before + 1e-3


@pytest.mark.parametrize("seed", [0, 1])
def test_folds_split_every_class_evenly(seed):
    label = torch.tensor([0] * 7 + [2] * 5 + [3] * 6)
    fold = stratified_folds(label, 4, torch.Generator().manual_seed(seed))
    for value in (0, 2, 3):
        counts = fold[label == value].bincount(minlength=4)
        assert counts.max() - counts.min() <= 1
    totals = fold.bincount(minlength=4)
    assert totals.max() - totals.min() <= 1
