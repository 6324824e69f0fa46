import pytest
import torch

from lspread.errors import GraphError
from lspread.labels import label_matrix
from tests import reference
from tests.reference import seeded


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_hot(dtype):
    label = torch.tensor([2, -1, 0, 2, -1])
    found = label_matrix(label, 4, dtype=dtype)
    assert found.dtype == dtype
    assert torch.equal(found.double(), reference.one_hot(label, 4))


def test_balance():
    label = torch.tensor([0, 0, 0, 1, -1, -1])
    wanted = torch.tensor([[1 / 3, 0, 0]] * 3 + [[0, 1, 0]] + [[0, 0, 0]] * 2)
    torch.testing.assert_close(label_matrix(label, 3, balance=True), wanted)


def test_balance_is_the_formula():
    """Every column divided by the number of its labels, so each class has one unit in total."""
    label = torch.randint(-1, 3, (50,), generator=seeded(1))
    found = label_matrix(label, 4, balance=True, dtype=torch.float64)
    count = torch.stack([(label == c).sum() for c in range(4)])
    torch.testing.assert_close(found, reference.one_hot(label, 4) / count.clamp(min=1))
    torch.testing.assert_close(found.sum(0), torch.tensor([1.0, 1, 1, 0]).double())


def test_balance_of_a_batch_is_its_loop():
    label = torch.tensor([0, 0, 1, -1, 0, 1, 1, 1])
    ptr = torch.tensor([0, 4, 4, 8])
    found = label_matrix(label, 2, balance=True, ptr=ptr)
    wanted = torch.cat([label_matrix(label[:4], 2, balance=True), label_matrix(label[4:], 2, balance=True)])
    torch.testing.assert_close(found, wanted)


def test_soft_targets_keep_dtype_and_gradient():
    soft = torch.rand(5, 3, generator=seeded(), dtype=torch.float64).requires_grad_()
    assert label_matrix(soft, 3) is soft
    assert torch.autograd.gradcheck(lambda soft: label_matrix(soft, 3, balance=True), soft)
    torch.testing.assert_close(label_matrix(soft, 3, balance=True), soft / soft.sum(0))
    assert label_matrix(soft.bfloat16(), 3).dtype == torch.bfloat16


def test_no_nodes_and_no_labels():
    assert label_matrix(torch.zeros(0, dtype=torch.int64), 3).shape == (0, 3)
    assert label_matrix(torch.full((4,), -1), 3, balance=True).eq(0).all()


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (torch.tensor([0, 3]), r"labels must be -1 \(unlabeled\) or 0 to 2; got values from 0 to 3"),
        (torch.tensor([-2, 1]), r"got values from -2 to 1"),
        (torch.tensor([0, 1], dtype=torch.int32), r"labels must be int64 of shape \(n,\).*torch.int32"),
        (torch.zeros(2, 3, dtype=torch.int64), r"labels must be int64 of shape \(n,\).*\(2, 3\)"),
        (torch.rand(4, 2), r"soft targets must be of shape \(n, 3\), one column per class; got \(4, 2\)"),
        (torch.rand(3), r"soft targets must be of shape \(n, 3\).*got \(3,\)"),
    ],
)
def test_errors(label, message):
    with pytest.raises(GraphError, match=message):
        label_matrix(label, 3)
