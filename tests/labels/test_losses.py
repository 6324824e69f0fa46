import math

import pytest
import torch

from lspread.errors import ConfigError, GraphError
from lspread.labels import (
    agreement_loss,
    contrastive_loss,
    graph_contrastive_loss,
    pseudo_label_loss,
    pseudo_labels,
    spread_score_loss,
)
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


@pytest.mark.parametrize("sharpening", [0.25, 1.0])
def test_agreement_loss_by_hand(sharpening):
    first = torch.tensor([[0.3, 0.1, 0.1], [0.2, 0.0, 0.2], [0.0, 0.0, 0.0], [0.1, 0.2, 0.3]], dtype=torch.float64)
    second = torch.tensor([[0.1, 0.1, 0.2], [0.1, 0.2, 0.1], [0.4, 0.1, 0.1], [0.0, 0.0, 0.0]], dtype=torch.float64)

    def sharpen(row):
        powers = [x ** (1 / sharpening) for x in row]
        return [x / sum(powers) for x in powers]

    def cross(target, row):
        return -sum(t * math.log(p / sum(row)) for t, p in zip(sharpen(target), row, strict=True) if t > 0)

    # Rows 2 and 3 are reached by one graph only; in row 1 the second view's target asks for a class that the first's
    # graph gave nothing, which counts with the smallest number that there is.
    rows = [(cross(first[0].tolist(), second[0].tolist()) + cross(second[0].tolist(), first[0].tolist())) / 2]
    assert agreement_loss(first[[0, 2, 3]], second[[0, 2, 3]], sharpening=sharpening).item() == pytest.approx(rows[0])
    assert math.isfinite(agreement_loss(first, second, sharpening=sharpening).item())
    assert agreement_loss(second, first).item() == pytest.approx(agreement_loss(first, second).item())
    assert agreement_loss(first[2:], second[2:]).item() == 0
    sure = torch.eye(3, dtype=torch.float64)
    assert agreement_loss(sure, sure).item() == 0
    assert agreement_loss(sure, sure.roll(1, 0)).item() > 100


def test_agreement_loss_gradient():
    first, second = (part.requires_grad_() for part in torch.rand(2, 5, 3, generator=seeded(8), dtype=torch.float64))
    fixed = [part.detach() for part in (first, second)]

    def with_fixed_targets(one, other):
        logs = [(part / part.sum(1, keepdim=True)).log() for part in (one, other)]
        targets = [part**4 / (part**4).sum(1, keepdim=True) for part in fixed]
        return -(targets[1] * logs[0] + targets[0] * logs[1]).sum(1).mean() / 2

    wanted = torch.autograd.grad(with_fixed_targets(first, second), (first, second))
    found = torch.autograd.grad(agreement_loss(first, second), (first, second))
    torch.testing.assert_close(found, wanted)
    dead = torch.tensor([[0.5, 0.0]], dtype=torch.float64, requires_grad=True)
    agreement_loss(dead, torch.tensor([[0.0, 0.5]], dtype=torch.float64)).backward()
    assert dead.grad.isfinite().all()


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.1])
def test_graph_contrastive_loss_against_a_double_loop(threshold):
    first, second = torch.randn(2, 5, 4, generator=seeded(9), dtype=torch.float64)
    probability = torch.randn(5, 3, generator=seeded(10), dtype=torch.float64).mul(2).softmax(1)
    total = 0.0
    for i in range(5):
        joined, cosines = [], []
        for j in range(5):
            both = (probability[i] @ probability[j]).item()
            joined.append(1.0 if i == j else both if both >= threshold else 0.0)
            cosines.append((first[i] @ second[j] / (first[i].norm() * second[j].norm())).item() / 0.3)
        log_sum = math.log(sum(math.exp(x) for x in cosines))
        total -= sum(w * (x - log_sum) for w, x in zip(joined, cosines, strict=True)) / sum(joined)
    found = graph_contrastive_loss(first, second, probability, temperature=0.3, threshold=threshold)
    assert found.item() == pytest.approx(total / 5, rel=1e-10)


def test_graph_contrastive_loss_gradient_and_types():
    first, second = (part.requires_grad_() for part in torch.randn(2, 4, 3, generator=seeded(11), dtype=torch.float64))
    probability = torch.eye(4, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: graph_contrastive_loss(a, b, probability), (first, second))
    graph_contrastive_loss(first, second, probability).backward()
    assert probability.grad is None
    half = graph_contrastive_loss(first.bfloat16(), second.bfloat16(), probability.float())
    assert half.dtype == torch.float32


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
    with pytest.raises(GraphError, match=r"agreement_loss needs scores \(m, c\) of two views"):
        agreement_loss(torch.zeros(3, 2), torch.zeros(2, 2))
    with pytest.raises(ConfigError, match=r"sharpening must be in \(0, 1\]; got 0"):
        agreement_loss(torch.zeros(3, 2), torch.zeros(3, 2), sharpening=0)
    with pytest.raises(GraphError, match=r"needs two views \(m, d\) and probabilities \(m, c\)"):
        graph_contrastive_loss(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(2, 2))


@pytest.mark.parametrize("name", ["contrastive", "graph_contrastive"])
def test_contrast_is_measured_in_single_precision_under_autocast(name):
    first, second = torch.randn(2, 64, 16, generator=seeded(7)).unbind()
    probability = (3 * torch.randn(64, 4, generator=seeded(8))).softmax(1)

    def slope(is_autocast):
        view = first.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
            if name == "contrastive":
                loss = contrastive_loss(view, second, temperature=0.2)
            else:
                loss = graph_contrastive_loss(view, second, probability)
        return torch.autograd.grad(loss, view)[0]

    assert torch.equal(slope(True), slope(False))
