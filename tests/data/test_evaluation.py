import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix

from lspread.data import Evaluator
from lspread.errors import DataError


def test_accuracy_and_confusion_against_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(-1, 4, (200,), generator=generator)
    prediction = torch.randint(0, 4, (200,), generator=generator)
    index = torch.randperm(200, generator=generator)[:120]
    evaluator = Evaluator(true, 4)
    known = index[true[index] >= 0]
    assert 0 < len(known) < 120
    assert evaluator.num_known(index) == len(known)
    assert evaluator.accuracy(prediction, index) == pytest.approx(accuracy_score(true[known], prediction[known]))
    expected = confusion_matrix(true[known], prediction[known], labels=range(4))
    np.testing.assert_array_equal(evaluator.confusion(prediction, index), expected)


def test_unknown_truth() -> None:
    evaluator = Evaluator(torch.tensor([0, -1, 1]), 2)
    assert evaluator.has_truth(torch.tensor([0, 1]))
    assert not evaluator.has_truth(torch.tensor([1]))
    assert not evaluator.has_truth(torch.empty(0, dtype=torch.int64))
    assert evaluator.accuracy(torch.tensor([0, 0, 0]), torch.tensor([1])) is None
    assert evaluator.label(torch.tensor([2, 1])).tolist() == [1, -1]


def test_unlabeled_predictions_are_wrong_and_left_out_of_the_confusion() -> None:
    evaluator = Evaluator(torch.tensor([0, 1, 1, 0]), 2)
    prediction = torch.tensor([0, -1, 1, 1])
    index = torch.arange(4)
    assert evaluator.accuracy(prediction, index) == 0.5
    assert evaluator.confusion(prediction, index).tolist() == [[1, 1], [0, 1]]


def test_the_truth_cannot_be_changed_from_outside() -> None:
    true = torch.tensor([0, 1])
    evaluator = Evaluator(true, 2)
    true[0] = 1
    evaluator.label(torch.arange(2))[1] = 0
    assert evaluator.label(torch.arange(2)).tolist() == [0, 1]


def test_errors() -> None:
    with pytest.raises(DataError, match=r"item 1 has 2, outside the classes"):
        Evaluator(torch.tensor([0, 2]), 2)
    with pytest.raises(DataError, match=r"needs shape \(n,\) and dtype int64; got shape \(2, 1\)"):
        Evaluator(torch.zeros(2, 1), 2)
    evaluator = Evaluator(torch.tensor([0, 1]), 2)
    with pytest.raises(DataError, match=r"one class for each of the 2 items, shape \(2,\); got shape \(1,\)"):
        evaluator.accuracy(torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(DataError, match="Predictions must be 0 to 1 for 2 classes; got 2"):
        evaluator.confusion(torch.tensor([2, 0]), torch.arange(2))
