"""Means over an epoch, weighted and begun anew."""

import pytest
import torch

from lspread.lit.epoch_means import EpochMeans


def test_means_are_weighted():
    means = EpochMeans()
    value = torch.tensor(2.0, requires_grad=True)
    means.add({"loss": value * 1, "share": torch.tensor(1.0)}, 3)
    means.add({"loss": torch.tensor(6.0, dtype=torch.bfloat16)}, 1)
    found = means.pop()
    assert {name: (float(mean), weight) for name, (mean, weight) in found.items()} == {
        "loss": (pytest.approx(3.0), 4),
        "share": (1.0, 3),
    }
    assert not found["loss"][0].requires_grad
    assert means.pop() == {}


def test_what_was_added_stays_as_it_is():
    means, value = EpochMeans(), torch.tensor(2.0)
    for _ in range(3):
        means.add({"loss": value}, 1)
    assert value == 2
