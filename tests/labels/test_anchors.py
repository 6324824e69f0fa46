import pytest
import torch

from lspread.errors import GraphError
from lspread.labels import Anchors, join_anchors
from tests.reference import seeded


def rows(*shape):
    return torch.randn(*shape, generator=seeded(1), dtype=torch.float64)


def test_one_graph():
    z, near = rows(4, 3), rows(2, 3).float()
    label, given = torch.tensor([0, -1, 1, -1]), torch.tensor([1, -1])
    joined, both = join_anchors(z, label, Anchors(near, given), 2)
    assert torch.equal(joined, torch.cat([z, near.double()]))
    assert both.tolist() == [0, -1, 1, -1, 1, -1]


@pytest.mark.parametrize("is_shared", [True, False])
def test_equal_graphs(is_shared):
    z = rows(3, 4, 2)
    near = rows(5, 2) if is_shared else rows(3, 5, 2)
    label, given = torch.zeros(3, 4, dtype=torch.int64), torch.ones(near.shape[:-1], dtype=torch.int64)
    joined, both = join_anchors(z, label, Anchors(near, given), 2)
    assert joined.shape == (3, 9, 2)
    for g in range(3):
        assert torch.equal(joined[g], torch.cat([z[g], near if is_shared else near[g]]))
        assert both[g].tolist() == [0] * 4 + [1] * 5


@pytest.mark.parametrize("who", ["batch", "anchors", "both"])
@pytest.mark.parametrize("stack", [(), (2,)])
def test_soft_and_hard_labels_become_soft(who, stack):
    hard = torch.tensor([1, -1, 0]).expand(*stack, 3)
    soft = torch.rand(*stack, 3, 2, generator=seeded(2), requires_grad=True)
    one_hot = torch.tensor([[0.0, 1], [0, 0], [1, 0]]).expand(*stack, 3, 2)
    label, given = {"batch": (soft, hard), "anchors": (hard, soft), "both": (soft, soft)}[who]
    wanted = {"batch": (soft, one_hot), "anchors": (one_hot, soft), "both": (soft, soft)}[who]
    _, both = join_anchors(rows(*stack, 3, 2), label, Anchors(rows(*stack, 3, 2), given), 2)
    assert torch.equal(both, torch.cat(wanted, -2).double())
    (grad,) = torch.autograd.grad(both.sum(), soft)
    assert torch.equal(grad, torch.full_like(grad, 2.0 if who == "both" else 1.0))


def test_map():
    anchors = Anchors(rows(4, 3), torch.zeros(4, dtype=torch.int64), torch.arange(4))
    weight = rows(3, 2).requires_grad_()
    mapped = anchors.map(lambda z: z @ weight)
    assert torch.equal(mapped.embedding, anchors.embedding @ weight)
    assert mapped.embedding.requires_grad
    assert mapped.index is anchors.index
    assert mapped.label is anchors.label


@pytest.mark.parametrize(
    ("z", "label", "near", "given", "message"),
    [
        ((4, 3), (4,), (2, 2), (2,), r"anchors.embedding must be of shape \(a, d\) on.*are \(4, 3\).*got \(2, 2\)"),
        ((4, 3), (4,), (1, 2, 3), (1, 2), r"anchors.embedding must be of shape \(a, d\) on.*got \(1, 2, 3\)"),
        ((2, 4, 3), (2, 4), (3, 2, 3), (3, 2), r"\(a, d\) or \(b, a, d\).*got \(3, 2, 3\)"),
        ((4, 3), (4,), (2, 3), (3,), r"anchors.label must have one row per anchor, shape \(2,\) or.*got \(3,\)"),
        ((4, 3), (4,), (2, 3), (2, 5), r"or \(2, 7\); got \(2, 5\)"),
        ((4, 3), (6,), (2, 3), (2,), r"labels must have one row per row of the batch, \(4,\); got \(6,\)"),
    ],
)
def test_errors(z, label, near, given, message):
    label = torch.zeros(label, dtype=torch.int64)
    with pytest.raises(GraphError, match=message):
        join_anchors(torch.zeros(z), label, Anchors(torch.zeros(near), torch.zeros(given, dtype=torch.int64)), 7)
