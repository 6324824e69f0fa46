import pytest
import torch

from lspread.errors import ConfigError
from lspread.labels import class_prior, match_prior, mean_shift, normalize_scores, propagate_labels, pseudo_labels
from tests import reference
from tests.reference import seeded


def test_class_prior():
    label = torch.tensor([0, 0, 0, 2, -1, -1])
    assert class_prior("none", label, 3) is None
    torch.testing.assert_close(class_prior("uniform", label, 3), torch.full((3,), 1 / 3))
    torch.testing.assert_close(class_prior("labeled", label, 3), torch.tensor([0.75, 0.0, 0.25]))
    torch.testing.assert_close(class_prior(torch.tensor([1, 2, 1]), label, 3), torch.tensor([0.25, 0.5, 0.25]))
    given = class_prior(torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64), label, 3)
    torch.testing.assert_close(given, torch.tensor([0.75, 0.25, 0.0], dtype=torch.float64))
    assert torch.isfinite(class_prior("labeled", torch.full((4,), -1), 3)).all()


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ("even", r"prior must be 'none', 'uniform', 'labeled' or a tensor of frequencies; got 'even'"),
        (torch.ones(4), r"one frequency per class, shape \(3,\); got \(4,\)"),
        (torch.ones(1, 3), r"shape \(3,\); got \(1, 3\)"),
        (torch.tensor([1.0, -1.0, 1.0]), r"not negative.*sum.*positive"),
        (torch.zeros(3), r"not negative.*sum.*positive"),
        (torch.tensor([1.0, torch.nan, 1.0]), r"not negative.*sum.*positive"),
        (torch.tensor([1.0, torch.inf, 1.0]), r"finite and not negative.*sum.*positive; got \[1.0, inf, 1.0\]"),
    ],
)
def test_class_prior_errors(prior, message):
    with pytest.raises(ConfigError, match=message):
        class_prior(prior, torch.zeros(5, dtype=torch.int64), 3)


def test_normalize_scores():
    scores = torch.tensor([[2.0, 6.0], [0.0, 0.0], [-1e-9, 3.0], [-1.0, -1.0], [1e-30, 1e-30]])
    probability, is_reached = normalize_scores(scores)
    torch.testing.assert_close(
        probability, torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.0, 1.0], [0.5, 0.5], [0.5, 0.5]])
    )
    assert is_reached.tolist() == [True, False, True, False, True]


def test_normalize_scores_gradient():
    scores = torch.rand(4, 3, generator=seeded(), dtype=torch.float64)
    scores[1] = 0
    scores.requires_grad_()
    normalize_scores(scores)[0].square().sum().backward()
    assert torch.isfinite(scores.grad).all()
    some = torch.rand(4, 3, generator=seeded(1), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: normalize_scores(s)[0], some)


def test_match_prior_is_class_mass_normalization():
    probability = torch.rand(20, 3, generator=seeded(2), dtype=torch.float64)
    probability /= probability.sum(1, keepdim=True)
    prior = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    found = match_prior(probability, torch.ones(20, dtype=torch.bool), prior)
    torch.testing.assert_close(found, reference.class_mass_normalize(probability, prior))


def test_match_prior_leaves_unreached_nodes_out():
    probability = torch.rand(20, 3, generator=seeded(3), dtype=torch.float64)
    probability /= probability.sum(1, keepdim=True)
    is_reached = torch.arange(20) % 4 != 0
    prior = torch.full((3,), 1 / 3, dtype=torch.float64)
    found = match_prior(probability, is_reached, prior)
    torch.testing.assert_close(found[is_reached], reference.class_mass_normalize(probability[is_reached], prior))
    assert torch.equal(found[~is_reached], probability[~is_reached])


def test_match_prior_of_an_empty_class():
    probability = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    is_reached = torch.ones(2, dtype=torch.bool)
    found = match_prior(probability, is_reached, torch.tensor([0.2, 0.4, 0.4]))
    assert found[:, 2].eq(0).all(), "a class without mass stays without"
    torch.testing.assert_close(found.sum(1), torch.ones(2))
    # A prior of zero for the only class that a node has leaves the node as it is.
    found = match_prior(probability, is_reached, torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))


def test_mean_shift():
    scores = torch.rand(12, 3, generator=seeded(4), dtype=torch.float64)
    close = torch.testing.assert_close
    close(mean_shift(scores), scores - scores.mean(0))
    close(mean_shift(mean_shift(scores)), mean_shift(scores))
    close(mean_shift(scores + torch.tensor([5.0, 1.0, 0.0]).double()), mean_shift(scores))
    ptr = torch.tensor([0, 5, 5, 12])
    close(mean_shift(scores, ptr=ptr), torch.cat([mean_shift(scores[:5]), mean_shift(scores[5:])]))
    holes = scores.clone()
    holes[::3] = 0
    found = mean_shift(holes)
    kept = torch.arange(12) % 3 != 0
    close(found[kept], mean_shift(scores[kept]))
    assert found[~kept].eq(0).all()
    assert mean_shift(torch.zeros(3, 2)).eq(0).all()


def test_mean_shift_gradient():
    scores = torch.rand(6, 2, generator=seeded(5), dtype=torch.float64)
    scores[2] = 0
    ptr = torch.tensor([0, 4, 6])

    def shift(s):
        return mean_shift(torch.where(torch.arange(6)[:, None] == 2, 0, s), ptr=ptr)

    assert torch.autograd.gradcheck(shift, scores.requires_grad_())
    assert torch.autograd.gradgradcheck(shift, scores)


def test_mean_shift_of_almost_constant_scores():
    """Two clusters and one label each: the harmonic scores lie on one side of a half, their shifts on both."""
    w = torch.block_diag(reference.random_weights(20), 3 * reference.random_weights(20, seed=1))
    w[:20, 20:] = w[20:, :20] = 0.02
    label = torch.full((40,), -1)
    label[0], label[20] = 0, 1
    targets = reference.one_hot(label, 2)
    scores = propagate_labels(reference.from_dense(w), targets, label != -1).value
    true = torch.arange(40) // 20
    wanted = reference.propagate(w, targets, label != -1)
    found = mean_shift(scores)
    torch.testing.assert_close(found, wanted - wanted.mean(0), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.sum(1), torch.zeros(40).double(), rtol=0, atol=1e-9)
    assert torch.equal(pseudo_labels(found, label).label, true)
    assert (scores.argmax(1) == true).sum() < 25


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_of_many_rows_in_half_precision(dtype):
    scores = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).repeat(100_000, 1)
    found = mean_shift(scores.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), mean_shift(scores), rtol=0, atol=4e-3)
