import pytest
import torch
from scipy.stats import binomtest

from lspread.lit.scores import accuracy_row, cross_validate, wilson_interval
from lspread.typing import UNLABELED


@pytest.mark.parametrize(("num_right", "num_items"), [(0, 10), (10, 10), (3, 7), (850, 1000), (1, 1), (59999, 60000)])
def test_wilson_interval_equals_scipy(num_right, num_items):
    expected = binomtest(num_right, num_items).proportion_ci(method="wilson")
    assert wilson_interval(num_right, num_items) == pytest.approx((expected.low, expected.high), abs=1e-12)


class Truth:
    def __init__(self, true_label):
        self.true_label = true_label

    def has_truth(self, index):
        return bool((self.true_label[index] != UNLABELED).any())

    def label(self, index):
        return self.true_label[index]


def test_accuracy_row_counts_known_items_only_and_no_answer_as_wrong():
    truth = Truth(torch.tensor([0, 1, 2, UNLABELED, 1]))
    prediction = torch.tensor([0, 1, UNLABELED, 0, 0])
    row = accuracy_row("knn", "test", prediction, torch.arange(5), truth)
    assert (row["accuracy"], row["num_items"], row["on"]) == (0.5, 4, "test")
    assert row["ci95"] == pytest.approx(list(wilson_interval(2, 4)))
    assert accuracy_row("knn", "test", prediction, torch.tensor([3]), truth) is None
    assert accuracy_row("knn", "val", prediction, torch.tensor([], dtype=torch.int64), truth) is None


def test_cross_validation_hides_each_given_label_once():
    given = torch.full((30,), UNLABELED)
    given[:12] = torch.arange(12) % 3
    asked = []

    def oracle_for_even_rows(visible, index):
        assert (visible[index] == UNLABELED).all()
        assert ((visible == given) | (visible == UNLABELED)).all()
        asked.append(index)
        return torch.where(index % 2 == 0, given[index], 99)

    rows = cross_validate({"knn": oracle_for_even_rows}, given)
    assert torch.equal(torch.cat(asked).sort().values, torch.arange(12))
    assert len(asked) == 4  # four labels in the smallest class
    assert rows == [{"key": "knn", "method": "kNN vote on the same embeddings", "accuracy": 0.5, "num_items": 12}]


def test_cross_validation_is_left_out_where_a_class_has_one_label():
    given = torch.full((9,), UNLABELED)
    assert cross_validate({}, given) == []
    given[:3] = torch.tensor([0, 0, 1])
    assert cross_validate({"knn": lambda visible, index: visible[index]}, given) == []
