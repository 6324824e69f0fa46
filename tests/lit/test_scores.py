import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from lspread.lit.scores import accuracy_row, class_table, cross_validate, reliability_table, wilson_interval
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
    row = {"key": "knn", "method": "kNN vote on the same embeddings", "accuracy": 0.5, "num_items": 12}
    assert rows == [{**row, "ci95": list(wilson_interval(6, 12)), "against_best": None}]


def test_methods_are_compared_with_the_best_on_the_same_hidden_labels():
    given = torch.arange(40) % 2
    wrong = {"graph": [0, 1], "knn": [1, *range(10, 22)], "logistic_regression": [2, 3]}

    def method(key):
        return lambda visible, index: torch.where(torch.isin(index, torch.tensor(wrong[key])), 99, given[index])

    rows = {row["key"]: row for row in cross_validate({key: method(key) for key in wrong}, given)}
    assert rows["graph"]["against_best"] is None  # of two that are equally right the first is the best
    knn = rows["knn"]["against_best"]
    assert (knn["won"], knn["lost"]) == (1, 12)
    # Both tails of thirteen fair coins: 2 (1 + 13) / 2^13.
    assert knn["p"] == pytest.approx(28 / 2**13)
    assert rows["logistic_regression"]["against_best"] == {"won": 2, "lost": 2, "p": 1.0}


def test_cross_validation_is_left_out_where_a_class_has_one_label():
    given = torch.full((9,), UNLABELED)
    assert cross_validate({}, given) == []
    given[:3] = torch.tensor([0, 0, 1])
    assert cross_validate({"knn": lambda visible, index: visible[index]}, given) == []


def test_class_table_is_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    probability = torch.randn(200, 4, generator=generator, dtype=torch.float64).softmax(1)
    truth = torch.randint(3, (200,), generator=generator)  # no item is of the last class
    table = class_table("test", probability, truth)
    answer = probability.argmax(1)
    precision, recall, f1, count = precision_recall_fscore_support(
        truth.numpy(), answer.numpy(), labels=range(4), zero_division=np.nan
    )
    assert table["count"] == count.tolist()
    assert table["precision"] == pytest.approx(precision.tolist())
    assert table["recall"][:3] == pytest.approx(recall[:3].tolist())
    assert table["f1"] == pytest.approx(f1.tolist())
    assert table["specificity"] == pytest.approx([float((answer != c)[truth != c].double().mean()) for c in range(4)])
    auroc = [roc_auc_score(truth == c, probability[:, c]) for c in range(3)]
    assert table["auroc"][:3] == pytest.approx(auroc, abs=1e-6)
    assert table["recall"][3] is None
    assert table["auroc"][3] is None


def test_classes_that_nothing_was_taken_for_have_no_precision():
    table = class_table("val", torch.eye(3)[[0, 0, 0]], torch.tensor([0, 1, 0]))
    assert table["precision"] == [pytest.approx(2 / 3), None, None]
    assert table["recall"] == [1.0, 0.0, None]
    assert table["specificity"] == [0.0, 1.0, 1.0]
    assert table["f1"] == [pytest.approx(0.8), 0.0, None]


def test_reliability_by_hand():
    confidence = torch.tensor([0.95, 0.92, 0.65, 0.61, 1.0])
    table = reliability_table("test", confidence, torch.tensor([True, False, True, True, True]))
    assert table["on"] == "test"
    assert table["count"] == [2, 3]
    assert table["confidence"] == pytest.approx([0.63, 2.87 / 3])
    assert table["accuracy"] == pytest.approx([1.0, 2 / 3])
    assert table["error"] == pytest.approx((0.74 + 0.87) / 5)
    assert reliability_table("test", confidence[:0], torch.zeros(0, dtype=torch.bool)) is None


def test_a_class_told_apart_without_a_mistake_has_an_auroc_of_one():
    """Rounding may not make it more: results.json would be refused, at the end of a long run."""
    generator = torch.Generator().manual_seed(12)
    num_items = int(torch.randint(3, 1500, (1,), generator=generator))
    truth = (torch.rand(num_items, generator=generator) < 0.1).long()
    chance = torch.where(
        truth > 0, 0.5 + torch.rand(num_items, generator=generator) / 2, torch.rand(num_items, generator=generator) / 2
    )
    table = class_table("test", torch.stack([1 - chance, chance], 1), truth)
    assert table["auroc"] == [1.0, 1.0]
