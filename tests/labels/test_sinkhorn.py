import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lspread.errors import ConfigError, GraphError, SolveError
from lspread.labels import class_prior, pseudo_labels, sinkhorn_prior
from tests import reference
from tests.reference import seeded


def problem(n=20, num_classes=3, sharpness=1.0, seed=0, dtype=torch.float64):
    generator = seeded(seed)
    p = (sharpness * torch.randn(n, num_classes, generator=generator, dtype=torch.float64)).softmax(1)
    prior = torch.rand(num_classes, generator=generator, dtype=torch.float64) + 0.2
    return p.to(dtype), (prior / prior.sum()).to(dtype)


def close(found, wanted, atol=1e-9):
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("sharpness", [0.5, 3.0, 8.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_a_plain_loop(sharpness, dtype):
    p, prior = problem(60, 4, sharpness, dtype=dtype)
    found = sinkhorn_prior(p, prior)
    atol = 1e-9 if dtype == torch.float64 else 1e-5
    close(found.double(), reference.sinkhorn(p.double(), prior.double()), atol=10 * atol)
    close(found.mean(0), prior, atol=atol)
    close(found.sum(1), torch.ones(60, dtype=dtype), atol=1e-6)


def test_weights_of_rows():
    p, prior = problem()
    weight = torch.rand(20, generator=seeded(1), dtype=torch.float64)
    weight[3] = 0
    found = sinkhorn_prior(p, prior, weight=weight)
    close(weight @ found / weight.sum(), prior)
    kept = weight > 0
    close(found[kept], reference.sinkhorn(p[kept], prior, weight[kept]))
    close(found[3].sum(), torch.ones((), dtype=torch.float64))


@given(st.integers(0, 10**6))
def test_law_scaling_rows_or_columns_changes_nothing(seed):
    p, prior = problem(12, seed=seed)
    generator = seeded(seed + 1)
    rows = torch.exp(4 * torch.randn(12, 1, generator=generator, dtype=torch.float64))
    columns = torch.exp(2 * torch.randn(3, generator=generator, dtype=torch.float64))
    plain = sinkhorn_prior(p, prior)
    close(sinkhorn_prior(rows * p * columns, prior), plain, atol=1e-8)
    order = torch.randperm(12, generator=generator)
    close(sinkhorn_prior(p[order], prior), plain[order], atol=1e-8)
    close(sinkhorn_prior(plain, prior), plain, atol=1e-8)
    ratio = (plain[:, 0] / plain[:, 1]) / (p[:, 0] / p[:, 1])
    close(ratio / ratio[0], torch.ones_like(ratio), atol=1e-8)


@pytest.mark.parametrize("num_steps", [50, 200])
def test_fixed_number_of_steps(num_steps):
    p, prior = problem()
    found = sinkhorn_prior(p, prior, max_steps=num_steps, check_every=0)
    close(found, reference.sinkhorn(p, prior))


def test_a_batch_is_its_loop():
    parts = [problem(n, seed=n) for n in (7, 15, 4)]
    ptr = torch.tensor([0, 7, 7, 22, 26])
    prior = torch.stack([parts[0][1], torch.ones(3).double(), parts[1][1], parts[2][1]])
    weight = torch.rand(26, generator=seeded(), dtype=torch.float64) + 0.1
    found = sinkhorn_prior(torch.cat([p for p, _ in parts]), prior, weight=weight, ptr=ptr)
    for rows, (p, own) in zip((slice(0, 7), slice(7, 22), slice(22, 26)), parts, strict=True):
        close(found[rows], sinkhorn_prior(p, own, weight=weight[rows]))
    shared = sinkhorn_prior(torch.cat([p for p, _ in parts]), parts[0][1], ptr=ptr)
    close(shared[7:22], sinkhorn_prior(parts[1][0], parts[0][1]))


# Ugly inputs


def test_rows_of_zeros_are_left_out():
    p, prior = problem()
    holes = p.clone()
    holes[::4] = 0
    found = sinkhorn_prior(holes, prior)
    kept = torch.arange(20) % 4 != 0
    assert found[~kept].eq(0).all()
    close(found[kept], sinkhorn_prior(p[kept], prior))
    assert sinkhorn_prior(torch.zeros(5, 3), torch.ones(3)).eq(0).all()
    assert sinkhorn_prior(torch.zeros(0, 3), torch.ones(3)).shape == (0, 3)


def test_classes_without_score_or_without_prior():
    p, prior = problem()
    empty = p.clone()
    empty[:, 1] = 0
    found = sinkhorn_prior(empty, prior)
    assert found[:, 1].eq(0).all()
    close(found.mean(0)[[0, 2]], prior[[0, 2]] / prior[[0, 2]].sum())
    unwanted = torch.tensor([0.3, 0.0, 0.7]).double()
    alone = torch.cat([p, torch.tensor([[0.0, 2.0, 0.0]]).double()])
    found = sinkhorn_prior(alone, unwanted)
    assert found[:20, 1].eq(0).all()
    close(found[:20].mean(0), unwanted)
    assert found[20].tolist() == [0, 1, 0], "its only class has no share: the row stays as it is"


def test_one_class_and_rounding_below_zero():
    close(sinkhorn_prior(torch.rand(4, 1), torch.ones(1)), torch.ones(4, 1))
    p, prior = problem()
    noisy = torch.where(p < p.median(), torch.tensor(-1e-9).double(), p)
    close(sinkhorn_prior(noisy, prior, on_failure="ignore"), sinkhorn_prior(noisy.clamp(min=0), prior))


def test_a_prior_that_cannot_be_met():
    """Three of four rows can only be class 0."""
    p = torch.tensor([[1.0, 0.0]] * 3 + [[0.5, 0.5]], dtype=torch.float64).requires_grad_()
    prior = torch.tensor([0.5, 0.5], dtype=torch.float64)
    with pytest.raises(SolveError, match=r"missed a class's share by 0.25, more than tol=1e-09.*one class only"):
        sinkhorn_prior(p, prior)
    with pytest.warns(RuntimeWarning, match="missed a class's share"):
        found = sinkhorn_prior(p, prior, on_failure="warn")
    close(found, torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]]).double(), atol=1e-2)
    found.square().sum().backward()
    assert torch.isfinite(p.grad).all()


def test_it_can_be_met_at_the_border():
    """Exactly met only by letting scores vanish: slow, but never wrong or NaN."""
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    found = sinkhorn_prior(p, torch.full((2,), 0.5).double(), on_failure="ignore")
    close(found, torch.eye(2).double(), atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_one_class_each(dtype):
    """Nothing to choose: no row feels the scales, and no gradient goes through them."""
    p = torch.tensor([[2.0, 0, 0], [0, 5, 0], [0, 1, 0], [0, 0, 1]], dtype=dtype).requires_grad_()
    found = sinkhorn_prior(p, torch.tensor([0.25, 0.5, 0.25], dtype=dtype))
    close(found, (p > 0).to(dtype), atol=1e-6)
    found[:, 0].sum().backward()
    close(p.grad, torch.zeros_like(p), atol=1e-6)


def test_pseudo_labels_of_matched_scores():
    p, _ = problem(300, 3, 2.0)
    p = p * torch.tensor([9.0, 1.0, 1.0]).double()
    label = torch.full((300,), -1)
    label[:3] = torch.arange(3)
    matched = sinkhorn_prior(p, class_prior("uniform", label, 3), tol=1e-6)
    close(matched.mean(0), torch.full((3,), 1 / 3).double(), atol=1e-6)
    count = torch.bincount(pseudo_labels(matched, label).label, minlength=3)
    assert count.min() > 70
    assert torch.bincount(pseudo_labels(p, label).label, minlength=3).min() < 50


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    p, prior = problem(dtype=dtype)
    wanted = sinkhorn_prior(p.float(), prior.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = sinkhorn_prior(p, prior)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


# Gradients


@pytest.mark.parametrize("num_graphs", [1, 2])
def test_gradients(num_graphs):
    p, prior = problem(7)
    p[2] = 0
    ptr = torch.tensor([0, 7]) if num_graphs == 1 else torch.tensor([0, 3, 7])
    weight = torch.rand(7, generator=seeded(), dtype=torch.float64) + 0.5

    def solve(p, prior, weight):
        reached = torch.where(torch.arange(7)[:, None] == 2, 0, p)
        return sinkhorn_prior(reached, prior, weight=weight, ptr=ptr)

    inputs = [tensor.requires_grad_() for tensor in (p, prior, weight)]
    assert torch.autograd.gradcheck(solve, inputs)
    assert torch.autograd.gradgradcheck(solve, inputs)


def test_gradient_is_that_of_the_unrolled_loop():
    p, prior = problem(15, sharpness=2.0)
    probe = torch.randn(15, 3, generator=seeded(4), dtype=torch.float64)
    leaves = [tensor.clone().requires_grad_() for tensor in (p, prior)]
    unrolled = reference.sinkhorn(leaves[0], leaves[1] / leaves[1].sum(), num_steps=400)
    wanted = torch.autograd.grad((unrolled * probe).sum(), leaves)
    found = torch.autograd.grad((sinkhorn_prior(*leaves) * probe).sum(), leaves)
    close(found[0], wanted[0])
    close(found[1], wanted[1])


def test_errors():
    p, prior = problem()
    for wrong in (prior[:2], prior[None].expand(2, 3)):
        with pytest.raises(GraphError, match=r"a prior \(c,\) or \(1, c\), one row per graph; got \(20, 3\) and"):
            sinkhorn_prior(p, wrong)
    with pytest.raises(GraphError, match=r"weight must be of shape \(20,\)"):
        sinkhorn_prior(p, prior, weight=torch.ones(3))
    for number in (-0.5, float("nan"), float("inf")):
        bad = torch.tensor([0.5, number, 0.5], dtype=torch.float64)
        for wrong in (bad, bad[None]):
            with pytest.raises(ConfigError, match=rf"prior must be finite and not negative; got \[{number}\] among 3"):
                sinkhorn_prior(p, wrong)
        with pytest.raises(ConfigError, match=rf"weight must be finite and not negative; got \[{number}\] among 20"):
            sinkhorn_prior(p, prior, weight=torch.ones(20).double().index_fill(0, torch.tensor(7), number))
    for options in ({"tol": -1.0}, {"max_steps": -1}, {"check_every": -1}):
        with pytest.raises(ConfigError, match=r"needs tol >= 0"):
            sinkhorn_prior(p, prior, **options)
    with pytest.raises(ConfigError, match=r"on_failure must be 'raise', 'warn' or 'ignore'; got 'stop'"):
        sinkhorn_prior(p, prior, on_failure="stop")
