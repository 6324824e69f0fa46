import numpy as np
import pytest
import torch
from scipy import special
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from lspread.errors import ConfigError, DataError
from lspread.lit.baselines import fit_linear, knn_vote, logistic_regression


def points(num_labeled, num_items, width=5, num_classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z_labeled = torch.randn(num_labeled, width, generator=generator)
    label = torch.arange(num_labeled) % num_classes
    z = torch.randn(num_items, width, generator=generator)
    return z_labeled, label[torch.randperm(num_labeled, generator=generator)], z


@pytest.mark.parametrize("k", [1, 3, 5, 12])
def test_knn_vote_equals_scikit_learn(k):
    z_labeled, label, z = points(12, 200)
    z[:3] = z_labeled[:3]  # distance zero decides alone
    found = knn_vote(z_labeled, label, z, k, num_classes=4)
    reference = KNeighborsClassifier(k, weights="distance", algorithm="brute").fit(z_labeled.numpy(), label.numpy())
    expected = torch.from_numpy(reference.predict_proba(z.numpy())).float()
    torch.testing.assert_close(found.probability, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.label, found.probability.argmax(dim=1))
    assert torch.equal(found.label[:3], label[:3])


def test_knn_vote_with_fewer_items_than_k_and_an_empty_class():
    z_labeled, label, z = points(3, 10, num_classes=3)
    found = knn_vote(z_labeled, label, z, k=50, num_classes=5)
    weight = 1 / torch.cdist(z, z_labeled)
    expected = torch.zeros(10, 5).index_add_(1, label, weight)
    torch.testing.assert_close(found.probability, expected / expected.sum(1, keepdim=True), rtol=1e-4, atol=1e-5)
    assert (found.probability[:, 3:] == 0).all()


def test_knn_vote_tiles_give_what_one_tile_gives(monkeypatch):
    z_labeled, label, z = points(12, 50)
    whole = knn_vote(z_labeled, label, z, 5, num_classes=4)
    monkeypatch.setattr("lspread.lit.baselines._ELEMENTS_PER_TILE", 100)
    tiled = knn_vote(z_labeled, label, z, 5, num_classes=4)
    torch.testing.assert_close(tiled.probability, whole.probability)


@pytest.mark.parametrize("inverse_penalty", [0.1, 1.0])
def test_logistic_regression_satisfies_its_own_optimality_condition(inverse_penalty):
    # A second opinion that is not scikit-learn's pipeline: refit by hand on standardized features, then compare, and
    # check that the gradient of the penalized loss vanishes there.
    z_labeled, label, z = points(24, 60)
    reference = torch.cat([z_labeled, z])
    found = logistic_regression(
        z_labeled, label, z, num_classes=4, inverse_penalty=inverse_penalty, reference=reference
    )
    scaler = StandardScaler().fit(reference.double().numpy())
    x = scaler.transform(z_labeled.double().numpy())
    model = LogisticRegression(C=inverse_penalty, max_iter=1000, tol=1e-8).fit(x, label.numpy())
    expected = special.softmax(scaler.transform(z.double().numpy()) @ model.coef_.T + model.intercept_, axis=1)
    np.testing.assert_allclose(found.probability.numpy(), expected, atol=2e-3)
    error = special.softmax(x @ model.coef_.T + model.intercept_, axis=1) - np.eye(4)[label.numpy()]
    np.testing.assert_allclose(inverse_penalty * error.T @ x + model.coef_, 0, atol=1e-3)


def test_logistic_regression_gives_absent_classes_zero_and_one_class_everything():
    z_labeled, label, z = points(6, 10, num_classes=2)
    found = logistic_regression(z_labeled, label * 3, z, num_classes=5)
    assert (found.probability[:, [1, 2, 4]] == 0).all()
    torch.testing.assert_close(found.probability.sum(1), torch.ones(10))
    assert set(found.label.tolist()) <= {0, 3}
    single = logistic_regression(z_labeled, torch.full((6,), 2), z, num_classes=5)
    assert (single.probability[:, 2] == 1).all()


@pytest.mark.parametrize("num_present", [2, 3])
def test_a_linear_layer_is_the_logistic_regression(num_present):
    z, label = 3 + 2 * torch.randn(60, 5), torch.arange(60) % num_present + 1
    labeled = torch.arange(12)
    weight, bias = fit_linear(z[labeled], label[labeled], num_classes=5, reference=z)
    expected = logistic_regression(z[labeled], label[labeled], z, num_classes=5, reference=z)
    torch.testing.assert_close((z @ weight.T + bias).softmax(1), expected.probability, atol=1e-5, rtol=1e-4)


def test_a_constant_feature_does_no_harm():
    z_labeled, label, z = points(12, 20)
    z_labeled[:, 0] = z[:, 0] = 7.0
    found = logistic_regression(z_labeled, label, z, num_classes=4)
    without = logistic_regression(z_labeled[:, 1:], label, z[:, 1:], num_classes=4)
    torch.testing.assert_close(found.probability, without.probability, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("baseline", [knn_vote, logistic_regression])
def test_bad_input_is_refused(baseline):
    z_labeled, label, z = points(6, 4)
    with pytest.raises(DataError, match=r"got \(6, 5\), \(5,\)"):
        baseline(z_labeled, label[:5], z, num_classes=4)
    with pytest.raises(DataError, match=r"0\.\.1; got values from 0 to 3"):
        baseline(z_labeled, label, z, num_classes=2)
    with pytest.raises(DataError, match="at least one labeled item"):
        baseline(z_labeled[:0], label[:0], z, num_classes=4)


def test_knn_vote_needs_a_voter():
    with pytest.raises(ConfigError, match="k=0"):
        knn_vote(*points(6, 4), k=0, num_classes=4)
