import math

import pytest
import torch

from lspread.errors import ConfigError, GraphError
from lspread.labels import contrastive_loss, pseudo_label_loss, pseudo_labels, spread_score_loss
from tests.reference import seeded


def pseudo(n=12, c=3, seed=0):
    scores = torch.rand(n, c, generator=seeded(seed), dtype=torch.float64)
    scores[2] = 0
    label = torch.full((n,), -1)
    label[0] = 1
    return pseudo_labels(scores, label)


def by_hand(logits, labels, index):
    """Sum over rows, in Python floats: weights, and weights times cross entropy."""
    weights, total = 0.0, 0.0
    for row, item in zip(logits.tolist(), index.tolist(), strict=True):
        c = labels.label[item].item()
        weight = labels.weight[item].item() * labels.class_weight[c].item()
        total += weight * (math.log(sum(math.exp(x) for x in row)) - row[c])
        weights += weight
    return total, weights


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_pseudo_label_loss(dtype):
    labels, index = pseudo(), torch.tensor([0, 2, 5, 5, 11])
    logits = torch.randn(5, 3, generator=seeded(1), dtype=torch.float64).to(dtype)
    total, weights = by_hand(logits, labels, index)
    found = pseudo_label_loss(logits, labels, index)
    assert found.ndim == 0
    assert found.item() == pytest.approx(total / 5, rel=1e-5)
    weighted = pseudo_label_loss(logits, labels, index, reduction="weighted_mean")
    assert weighted.item() == pytest.approx(total / weights, rel=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "weighted_mean"])
def test_pseudo_label_loss_gradient(reduction):
    labels, index = pseudo(), torch.tensor([0, 2, 5, 11])
    logits = torch.randn(4, 3, generator=seeded(2), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pseudo_label_loss(x, labels, index, reduction=reduction), logits)
    pseudo_label_loss(logits, labels, index, reduction=reduction).backward()
    assert logits.grad[1].eq(0).all(), "an unreached item adds nothing"
    assert logits.grad[[0, 2, 3]].abs().sum(1).gt(0).all()
    only_unreached = pseudo_label_loss(logits[:1], labels, torch.tensor([2]), reduction=reduction)
    assert only_unreached.item() == 0


def test_spread_score_loss():
    scores = torch.tensor([[0.3, 0.1], [0.0, 0.2], [0.0, 0.0], [-1e-9, 0.4]], dtype=torch.float64)
    label = torch.tensor([0, 0, 1, 1])
    # Row 1 got nothing of its class and row 2 nothing at all: they do not count.
    assert spread_score_loss(scores, label).item() == pytest.approx((-math.log(0.75) - 0) / 2)
    weight = torch.tensor([3.0, 5.0, 7.0, 1.0], dtype=torch.float64)
    assert spread_score_loss(scores, label, weight).item() == pytest.approx(-3 * math.log(0.75) / 4)
    assert spread_score_loss(scores[1:3], label[1:3]).item() == 0
    assert spread_score_loss(scores, label, torch.zeros(4).double()).item() == 0


def test_spread_score_loss_gradient():
    scores = torch.rand(5, 3, generator=seeded(3), dtype=torch.float64).requires_grad_()
    label, weight = torch.tensor([0, 1, 2, 0, 1]), torch.rand(5, generator=seeded(4), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: spread_score_loss(s, label, weight), scores)
    dead = torch.zeros(3, 2, dtype=torch.float64).requires_grad_()
    spread_score_loss(dead, torch.tensor([0, 1, 0])).backward()
    assert dead.grad.eq(0).all()


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_contrastive_loss_against_a_double_loop(temperature):
    first, second = torch.randn(2, 5, 4, generator=seeded(5), dtype=torch.float64)
    views = torch.cat([first, second])
    total = 0.0
    for i in range(10):
        partner = (i + 5) % 10
        terms = {
            j: math.exp((views[i] @ views[j] / (views[i].norm() * views[j].norm())).item() / temperature)
            for j in range(10)
            if j != i
        }
        total -= math.log(terms[partner] / sum(terms.values()))
    assert contrastive_loss(first, second, temperature=temperature).item() == pytest.approx(total / 10, rel=1e-10)


def test_contrastive_loss_gradient_and_types():
    first, second = (part.requires_grad_() for part in torch.randn(2, 4, 3, generator=seeded(6), dtype=torch.float64))
    assert torch.autograd.gradcheck(contrastive_loss, (first, second))
    half = contrastive_loss(first.bfloat16(), second.bfloat16())
    assert half.dtype == torch.float32
    wanted = contrastive_loss(first.bfloat16().double(), second.bfloat16().double())
    torch.testing.assert_close(half.double(), wanted, rtol=1e-5, atol=1e-6)
    assert contrastive_loss(first * 1e3, second * 1e-3).item() == pytest.approx(contrastive_loss(first, second).item())
    assert contrastive_loss(second, first).item() == pytest.approx(contrastive_loss(first, second).item())


def test_errors():
    with pytest.raises(GraphError, match=r"needs logits \(m, c\) and one item number per row.*got \(3, 2\) and \(2,\)"):
        pseudo_label_loss(torch.zeros(3, 2), pseudo(), torch.tensor([0, 1]))
    with pytest.raises(ConfigError, match=r"reduction must be 'mean' or 'weighted_mean'; got 'sum'"):
        pseudo_label_loss(torch.zeros(1, 3), pseudo(), torch.tensor([0]), reduction="sum")
    for first, second in (
        (torch.zeros(1, 3), torch.zeros(1, 3)),
        (torch.zeros(4, 3), torch.zeros(3, 3)),
        (torch.zeros(4), torch.zeros(4)),
    ):
        with pytest.raises(GraphError, match=r"needs two views \(m, d\) of at least 2 images"):
            contrastive_loss(first, second)
