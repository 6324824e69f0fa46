import pytest
import torch

from lspread.errors import ConfigError
from lspread.labels import class_prior, match_prior, normalize_scores
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
