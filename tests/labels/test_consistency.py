import math

import pytest
import torch

from lspread.errors import ConfigError, GraphError
from lspread.labels import (
    align_distribution,
    confident_loss,
    fairness_loss,
    is_confident,
    mean_entropy_loss,
    mean_teacher_loss,
)
from tests.reference import seeded

Q = torch.tensor([[0.96, 0.03, 0.01], [0.5, 0.3, 0.2], [0.02, 0.03, 0.95], [0.1, 0.8, 0.1]], dtype=torch.float64)


def cross_entropy(row, label):
    return math.log(sum(math.exp(x) for x in row)) - row[label]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("threshold", "rows"),
    [
        (0.95, {0: 0, 2: 2}),
        (0.0, {0: 0, 1: 0, 2: 2, 3: 1}),  # Lee 2013: every row has a pseudo-label
        (0.99, {}),
        (torch.tensor([0.97, 0.7, 0.95], dtype=torch.float64), {2: 2, 3: 1}),  # FreeMatch: one per class
    ],
)
def test_confident_loss_is_fixmatch_equation_4(threshold, rows, dtype):
    logits = torch.randn(4, 3, generator=seeded(0), dtype=torch.float64).to(dtype)
    expected = sum(cross_entropy(logits[row].tolist(), label) for row, label in rows.items()) / 4
    assert confident_loss(logits, Q, threshold=threshold).item() == pytest.approx(expected, rel=1e-5)
    assert is_confident(Q, threshold).nonzero().flatten().tolist() == list(rows)


def test_confident_loss_gradient_reaches_the_student_only():
    logits = torch.randn(4, 3, generator=seeded(1), dtype=torch.float64).requires_grad_()
    teacher = Q.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: confident_loss(x, teacher), logits)
    confident_loss(logits, teacher).backward()
    assert teacher.grad is None
    assert (logits.grad.abs().sum(1) > 0).tolist() == [True, False, True, False]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_fairness_loss_is_its_formula(dtype):
    logits = torch.randn(9, 4, generator=seeded(3), dtype=torch.float64).mul(2).to(dtype)
    logits[:, 3] -= 9  # a class that no row is predicted as
    is_sure = torch.tensor([True, False, True, True, False, True, True, False, True])
    usual = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    rows = [row for row, sure in zip(logits.double().softmax(1).tolist(), is_sure.tolist(), strict=True) if sure]
    mean = [sum(row[j] for row in rows) / len(rows) for j in range(4)]
    share = [sum(row.index(max(row)) == j for row in rows) / len(rows) for j in range(4)]
    quotient = [p / h if h else 0 for p, h in zip(mean, share, strict=True)]
    assert sum(q > 0 for q in quotient) == 3
    expected = sum(u * math.log(q / sum(quotient)) for u, q in zip(usual.tolist(), quotient, strict=True) if q)
    assert fairness_loss(logits, is_sure, usual).item() == pytest.approx(expected, rel=1e-5)


def test_fairness_loss_gradient_reaches_sure_rows_only():
    logits = torch.randn(6, 3, generator=seeded(3), dtype=torch.float64).requires_grad_()
    is_sure = torch.tensor([True, True, False, True, False, True])
    usual = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: fairness_loss(x, is_sure, usual), logits)
    fairness_loss(logits, is_sure, usual).backward()
    assert usual.grad is None
    assert (logits.grad.abs().sum(1) > 0).tolist() == is_sure.tolist()
    logits.grad = None
    none = fairness_loss(logits, torch.zeros(6, dtype=torch.bool), usual)
    none.backward()
    assert none.item() == 0
    assert not logits.grad.any()


def test_fairness_loss_refuses_other_shapes():
    for sure, usual in ((4, 3), (5, 2)):
        with pytest.raises(GraphError, match=r"needs logits \(m, c\), is_sure \(m,\) and usual \(c,\); got \(5, 3\)"):
            fairness_loss(torch.zeros(5, 3), torch.ones(sure, dtype=torch.bool), torch.ones(usual) / usual)


def test_mean_teacher_loss():
    logits = torch.randn(4, 3, generator=seeded(2), dtype=torch.float64).requires_grad_()
    teacher = Q.clone().requires_grad_()
    expected = 0.0
    for row, target in zip(logits.tolist(), Q.tolist(), strict=True):
        total = sum(math.exp(x) for x in row)
        expected += sum((math.exp(x) / total - q) ** 2 for x, q in zip(row, target, strict=True)) / 12
    loss = mean_teacher_loss(logits, teacher)
    assert loss.item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda x: mean_teacher_loss(x, teacher), logits)
    loss.backward()
    assert teacher.grad is None


def test_align_distribution():
    mean, prior = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    for wanted, given in ((torch.full((3,), 1 / 3, dtype=torch.float64), None), (prior, prior)):
        aligned = align_distribution(Q, mean, given)
        scaled = [
            [q * w / m for q, w, m in zip(row, wanted.tolist(), mean.tolist(), strict=True)] for row in Q.tolist()
        ]
        expected = torch.tensor([[x / sum(row) for x in row] for row in scaled], dtype=torch.float64)
        torch.testing.assert_close(aligned, expected)
    torch.testing.assert_close(align_distribution(Q, prior, prior), Q)
    never = align_distribution(Q, torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64))
    assert torch.isfinite(never).all()


def test_align_distribution_without_the_only_class_of_a_row():
    probability = torch.tensor([[1.0, 0.0], [0.3, 0.7]], dtype=torch.float64).requires_grad_()
    aligned = align_distribution(probability, torch.tensor([0.5, 0.5]).double(), torch.tensor([0.0, 1.0]).double())
    assert aligned.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    aligned.square().sum().backward()
    assert torch.isfinite(probability.grad).all()
    for number in (-0.5, math.nan, math.inf):
        with pytest.raises(ConfigError, match=rf"prior must be finite and not negative; got \[{number}\] among 3"):
            align_distribution(Q, torch.ones(3).double() / 3, torch.tensor([0.5, number, 0.5]).double())


@pytest.mark.parametrize("loss", [confident_loss, mean_teacher_loss])
def test_shapes_must_fit(loss):
    with pytest.raises(GraphError, match=r"of one shape \(m, c\); got \(4, 2\) and \(4, 3\)"):
        loss(torch.zeros(4, 2), Q)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_mean_entropy_loss_is_its_formula(dtype):
    logits = torch.randn(6, 3, generator=seeded(4), dtype=torch.float64).to(dtype)
    mean = logits.double().softmax(1).mean(0)
    expected = math.log(3) + (mean * mean.log()).sum()
    torch.testing.assert_close(mean_entropy_loss(logits).double(), expected, rtol=1e-5, atol=1e-6)


def test_mean_entropy_loss_is_zero_for_even_answers_and_largest_for_a_single_one():
    sure = 1000 * torch.eye(4, dtype=torch.float64).requires_grad_()
    assert mean_entropy_loss(sure).item() == pytest.approx(0, abs=1e-12)
    one = sure.detach()[[0, 0, 0]].requires_grad_()
    loss = mean_entropy_loss(one)
    assert loss.item() == pytest.approx(math.log(4))
    loss.backward()
    assert torch.isfinite(one.grad).all()
    logits = torch.randn(5, 3, generator=seeded(5), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(mean_entropy_loss, logits)
