import pickle

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris, load_wine, make_circles
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelPropagation, LabelSpreading
from sklearn.utils.estimator_checks import check_estimator
from torch_geometric.data import Data

from lspread.errors import ConfigError, DataError
from lspread.estimators import LabelPropagationClassifier, LabelSpreadingClassifier, PoissonClassifier, engine
from lspread.graph import build_graph, find_neighbors
from lspread.labels import label_matrix, poisson_labels

ALL = (LabelSpreadingClassifier, LabelPropagationClassifier, PoissonClassifier)


def blobs(n=60, c=3, seed=0):
    random = np.random.default_rng(seed)
    true = np.arange(n) % c
    return random.normal(size=(n, 2)) + 6 * np.stack([np.cos(true), np.sin(true)], 1), true


def few(true, per_class, seed=0):
    random = np.random.default_rng(seed)
    y = np.full(len(true), -1)
    for c in np.unique(true):
        chosen = random.permutation(np.flatnonzero(true == c))[:per_class]
        y[chosen] = c
    return y


@pytest.mark.parametrize("estimator", ALL)
def test_every_check_of_scikit_learn_passes(estimator):
    results = check_estimator(estimator(), on_fail=None, on_skip=None)
    failed = [(found["check_name"], found["exception"]) for found in results if found["status"] == "failed"]
    assert not failed
    assert {found["check_name"] for found in results if found["status"] == "skipped"} <= {"check_array_api_input"}
    assert len(results) > 50


@pytest.mark.parametrize("alpha", [0.2, 0.9, 0.99])
def test_spreading_is_the_fixed_point_of_scikit_learn(alpha):
    X, true = blobs()
    y = few(true, 2)
    theirs = LabelSpreading(kernel="rbf", gamma=0.3, alpha=alpha, max_iter=100_000, tol=0).fit(X, y)
    ours = LabelSpreadingClassifier(kernel="rbf", gamma=0.3, alpha=alpha, balance=False, tol=1e-12).fit(X, y)
    np.testing.assert_allclose(ours.label_distributions_, theirs.label_distributions_, rtol=1e-7, atol=1e-9)
    np.testing.assert_array_equal(ours.classes_, theirs.classes_)
    new = blobs(seed=1)[0]
    np.testing.assert_allclose(ours.predict_proba(new), theirs.predict_proba(new), rtol=1e-6, atol=1e-9)


def test_propagation_is_the_fixed_point_of_scikit_learn():
    X, true = blobs()
    y = few(true, 2)
    theirs = LabelPropagation(kernel="rbf", gamma=0.3, max_iter=100_000, tol=0).fit(X, y)
    ours = LabelPropagationClassifier(kernel="rbf", gamma=0.3, tol=1e-12).fit(X, y)
    np.testing.assert_allclose(ours.label_distributions_, theirs.label_distributions_, rtol=1e-6, atol=1e-8)


def test_poisson_is_the_function_of_the_core():
    X, true = blobs()
    y = few(true, 2)
    z = torch.from_numpy(X)
    graph = build_graph(z, find_neighbors(z, 6))
    scores = poisson_labels(graph, label_matrix(torch.from_numpy(y), 3, balance=True, dtype=z.dtype)).value.clamp(min=0)
    ours = PoissonClassifier(tol=1e-10).fit(X, y)
    np.testing.assert_allclose(ours.label_distributions_, scores / scores.sum(1, keepdim=True), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (np.array(["cat", "dog", "eel"]), ""),
        (np.array(["cat", "dog", "eel"], dtype=object), None),
        (np.array(["cat", "dog", "eel"], dtype=object), np.nan),
        (np.array(["cat", "dog", "eel"], dtype=object), -1),
        (np.array([4.0, 7.0, 9.0]), np.nan),
        (np.array([4, 7, 9]), -1),
    ],
)
def test_every_way_to_say_that_a_label_is_missing(estimator, names, missing):
    X, true = blobs()
    number = few(true, 2)
    y = names[number.clip(0)]
    y[number < 0] = missing
    model = estimator().fit(X, y)
    np.testing.assert_array_equal(model.classes_, names)
    assert (model.transduction_ == names[true]).mean() > 0.95
    assert (model.predict(X) == names[true]).mean() > 0.95
    reference = estimator().fit(X, number)
    np.testing.assert_array_equal(model.label_distributions_, reference.label_distributions_)


@pytest.mark.parametrize("estimator", ALL)
def test_attributes(estimator):
    X, true = blobs()
    model = estimator().fit(X, few(true, 2))
    assert model.label_distributions_.shape == (60, 3)
    np.testing.assert_allclose(model.label_distributions_.sum(1), 1)
    np.testing.assert_array_equal(model.transduction_, model.classes_[model.label_distributions_.argmax(1)])
    p = model.label_distributions_.clip(1e-300)
    np.testing.assert_allclose(model.confidence_, 1 + (p * np.log(p)).sum(1) / np.log(3), atol=1e-6)
    assert model.converged_
    assert 0 <= model.residual_ <= 1e-10
    assert model.n_iter_ >= 1
    assert model.n_unreached_ == 0
    assert model.graph_.num_nodes == 60
    assert model.graph_.is_symmetric
    np.testing.assert_allclose(model.class_prior_, 1 / 3)
    np.testing.assert_array_equal(model.X_, X)
    assert np.isnan(model.calibration_error_)
    assert model.n_features_in_ == 2


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize("form", [np.asarray, scipy.sparse.csr_array, scipy.sparse.coo_matrix, "pyg", "graph"])
def test_precomputed_graphs(estimator, form):
    X, true = blobs()
    y = few(true, 2)
    reference = estimator(tol=1e-10).fit(X, y)
    weight = reference.graph_.to_dense().numpy()
    if form == "pyg":
        edge = reference.graph_.edge_index.flip(0)
        given = Data(edge_index=edge, edge_attr=reference.graph_.edge_weight, num_nodes=60)
    else:
        given = reference.graph_ if form == "graph" else form(weight)
    model = estimator(kernel="precomputed", tol=1e-10).fit(given, y)
    np.testing.assert_allclose(model.label_distributions_, reference.label_distributions_, rtol=1e-6, atol=1e-9)
    votes = weight @ model.label_distributions_
    np.testing.assert_allclose(model.predict_proba(weight), votes / votes.sum(1, keepdims=True), rtol=1e-6)
    nowhere = model.predict_proba(np.zeros((1, 60)))
    np.testing.assert_allclose(nowhere, [model.class_prior_])


def test_precomputed_rows_of_weight_zero_have_no_part():
    X, true = blobs()
    y = few(true, 2)
    weight = rbf_kernel(X, gamma=0.3)
    left_out = np.flatnonzero(y >= 0)[:1]
    trust = np.ones(60)
    trust[left_out] = 0
    model = LabelSpreadingClassifier(kernel="precomputed").fit(weight, y, sample_weight=trust)
    kept = np.setdiff1d(np.arange(60), left_out)
    smaller = LabelSpreadingClassifier(kernel="precomputed").fit(weight[np.ix_(kept, kept)], y[kept])
    np.testing.assert_allclose(model.label_distributions_[kept], smaller.label_distributions_, rtol=1e-6)
    new = rbf_kernel(blobs(seed=1)[0], X, gamma=0.3)
    np.testing.assert_allclose(model.predict_proba(new), smaller.predict_proba(new[:, kept]), rtol=1e-6)


@pytest.mark.parametrize("estimator", ALL)
def test_a_function_as_kernel_is_the_named_kernel(estimator):
    X, true = blobs()
    y = few(true, 2)
    named = estimator(kernel="rbf", gamma=0.3).fit(X, y)
    given = estimator(kernel=lambda a, b: rbf_kernel(a, b, gamma=0.3)).fit(X, y)
    np.testing.assert_allclose(given.label_distributions_, named.label_distributions_, rtol=1e-5, atol=1e-8)
    new = blobs(seed=1)[0]
    np.testing.assert_allclose(given.predict_proba(new), named.predict_proba(new), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("estimator", ALL)
def test_sparse_rows_are_dense_rows(estimator):
    X, true = blobs()
    X[X < 0] = 0
    y = few(true, 2)
    dense, sparse = (estimator().fit(form(X), y) for form in (np.asarray, scipy.sparse.csr_matrix))
    np.testing.assert_allclose(sparse.label_distributions_, dense.label_distributions_)
    np.testing.assert_allclose(sparse.predict_proba(scipy.sparse.csr_matrix(X)), dense.predict_proba(X))


@pytest.mark.parametrize("estimator", ALL)
def test_equal_rows_are_one_node(estimator):
    X, true = blobs()
    y = few(true, 2)
    once = estimator().fit(X, y)
    again = np.arange(60).repeat(np.arange(60) % 3 + 1)
    many = estimator().fit(X[again], np.where(np.r_[True, np.diff(again) > 0], y[again], -1))
    assert many.graph_.num_nodes == 60
    np.testing.assert_allclose(many.label_distributions_, once.label_distributions_[again], rtol=1e-6, atol=1e-9)
    # Two labels of one place: the answer lies between.
    both = estimator().fit(np.r_[X, X[y == 0], X[y == 1]], np.r_[y, np.full(2, 1), np.full(2, 0)])
    torn = both.label_distributions_[:60][y == 0]
    assert abs(torn[:, 0] - torn[:, 1]).max() < 0.5
    assert torn.min(0)[:2].min() > 0.1


@pytest.mark.parametrize("estimator", ALL)
def test_a_small_weight_makes_a_wrong_label_harmless(estimator):
    X, true = blobs(n=90)
    y = few(true, 3)
    wrong = np.flatnonzero(y == 0)[0]
    y[wrong] = 1
    trust = np.ones(90)
    trust[wrong] = 0.01
    naive, careful = estimator().fit(X, y), estimator().fit(X, y, sample_weight=trust)
    near = true == 0
    assert careful.label_distributions_[near, 0].mean() >= naive.label_distributions_[near, 0].mean()
    assert careful.transduction_[wrong] == 0


def test_a_label_that_pulls_is_an_average_by_hand():
    """Zhu's dongle: with trust w a row is w times its label and 1 - w times the mean of its neighbors."""
    weight = np.array([[0, 2.0, 0], [2.0, 0, 1.0], [0, 1.0, 0]])
    y = np.array([0, 1, 1])
    model = LabelPropagationClassifier(kernel="precomputed", tol=1e-12)
    model.fit(weight, y, sample_weight=[1, 0.25, 1])
    expected = 0.25 * np.array([0, 1]) + 0.75 * (2 * np.array([1, 0]) + 1 * np.array([0, 1])) / 3
    np.testing.assert_allclose(model.label_distributions_[1], expected)
    np.testing.assert_allclose(model.label_distributions_[[0, 2]], [[1, 0], [0, 1]])


@pytest.mark.parametrize("estimator", ALL)
def test_what_no_label_reaches_is_counted_and_takes_the_nearest(estimator):
    X = np.r_[blobs()[0], blobs()[0] + [0, 100], blobs()[0] + [100, 0]]
    true = blobs()[1]
    y = np.r_[few(true, 2), np.full(120, -1)]
    with pytest.warns(UserWarning, match="no label reaches 120 of 180 rows"):
        model = estimator(n_neighbors=5).fit(X, y)
    assert model.n_unreached_ == 120
    assert np.isfinite(model.label_distributions_).all()
    np.testing.assert_allclose(model.label_distributions_.sum(1), 1)
    assert model.confidence_[60:].max() < 1e-4
    given = np.flatnonzero(y >= 0)
    nearest = given[((X[60:, None] - X[given]) ** 2).sum(2).argmin(1)]
    np.testing.assert_array_equal(model.transduction_[60:], y[nearest])
    far = model.predict_proba([[1e6, 1e6]])
    assert np.isfinite(far).all()


def test_weights_that_vanish_are_no_silent_class_zero():
    """scikit-learn's default on raw digits: every weight exp(-20 d^2) is zero."""
    X, true = load_digits(return_X_y=True)
    y = few(true, 5)
    with pytest.warns(UserWarning, match="no label reaches"):
        model = LabelSpreadingClassifier(kernel="rbf").fit(X, y)
    assert model.n_unreached_ == 1747
    assert (model.transduction_ == true)[y < 0].mean() > 0.75


def test_labels_of_which_many_are_wrong():
    X, true = load_digits(return_X_y=True)
    random = np.random.default_rng(0)
    y = few(true, 20)
    given = np.flatnonzero(y >= 0)
    flipped = random.permutation(given)[:80]
    y[flipped] = (y[flipped] + random.integers(1, 10, 80)) % 10
    naive, robust = (LabelSpreadingClassifier(alpha=0.9, robust=robust).fit(X, y) for robust in (False, True))
    unknown = y < 0
    accuracy = [(model.transduction_ == true)[unknown].mean() for model in (naive, robust)]
    assert accuracy[1] > accuracy[0] + 0.05
    assert accuracy[1] > 0.94
    assert np.isnan(robust.label_trust_[unknown]).all()
    assert robust.label_trust_[flipped].mean() < 0.2 < 0.8 < robust.label_trust_[np.setdiff1d(given, flipped)].mean()
    assert set(naive.label_trust_[given]) == {1.0}


def test_calibration_makes_probabilities_honest():
    X, true = load_digits(return_X_y=True)
    y = few(true, 20)
    raw, calibrated = (LabelSpreadingClassifier(calibrate=calibrate).fit(X, y) for calibrate in (False, True))
    np.testing.assert_array_equal(raw.transduction_, calibrated.transduction_)
    unknown = y < 0

    def error(model):
        confidence = model.label_distributions_[unknown].max(1)
        is_right = (model.transduction_ == true)[unknown]
        bins = np.minimum((confidence * 10).astype(int), 9)
        return sum(abs((confidence - is_right)[bins == b].sum()) for b in range(10)) / len(confidence)

    assert error(calibrated) < error(raw) / 2
    assert error(calibrated) < 0.05
    assert calibrated.calibration_error_ == pytest.approx(error(calibrated), abs=0.05)
    assert calibrated.temperature_ != 1
    with pytest.warns(UserWarning, match="calibrate=True needs two labels of every class"):
        LabelSpreadingClassifier(calibrate=True).fit(X, few(true, 1))


def test_prior():
    X, true = blobs(n=300)
    y = few(true, 3)
    wanted = np.array([0.5, 0.3, 0.2])
    model = LabelSpreadingClassifier(prior=wanted, balance=False).fit(X, y)
    uniform = LabelSpreadingClassifier(prior="uniform").fit(X, y)
    plain = LabelSpreadingClassifier(prior="none").fit(X, y)
    means = [one.label_distributions_.mean(0) for one in (model, plain, uniform)]
    assert np.argmax(means[0] - means[1]) == 0
    assert abs(means[2] - 1 / 3).max() <= abs(means[1] - 1 / 3).max() + 1e-9


def test_life_in_scikit_learn():
    X, true = blobs(n=90)
    y = few(true, 10)
    pipeline = make_pipeline(StandardScaler(), LabelSpreadingClassifier())
    search = GridSearchCV(pipeline, {"labelspreadingclassifier__n_neighbors": [3, 8]}, cv=3)
    is_given = y >= 0
    search.fit(X[is_given], y[is_given])
    assert search.best_score_ > 0.9
    model = pipeline.fit(X, y)[-1]
    copy = pickle.loads(pickle.dumps(model))
    scaled = pipeline[0].transform(X)
    np.testing.assert_array_equal(copy.predict_proba(scaled), model.predict_proba(scaled))
    assert clone(model).get_params() == model.get_params()


def test_binary_labels_of_minus_one_and_one_are_two_classes():
    X, true = blobs(c=2)
    with pytest.warns(UserWarning, match="nothing but -1 and 1, so they are taken as two classes"):
        model = LabelSpreadingClassifier().fit(X, 2 * true - 1)
    np.testing.assert_array_equal(model.classes_, [-1, 1])


def test_a_solve_that_ends_early_says_so():
    X, true = blobs()
    with pytest.warns(ConvergenceWarning, match="ended after max_iter=1 steps.*above tol"):
        model = LabelSpreadingClassifier(max_iter=1).fit(X, few(true, 2))
    assert not model.converged_
    assert model.residual_ > 1e-6


def test_float32_for_many_rows_agrees(monkeypatch):
    X, true = blobs(n=200)
    y = few(true, 2)
    double = LabelSpreadingClassifier().fit(X, y)
    monkeypatch.setattr(engine, "SINGLE_NODES", 10)
    single = LabelSpreadingClassifier().fit(X, y)
    assert single.converged_
    assert single.graph_.edge_weight.dtype == torch.float64
    np.testing.assert_allclose(single.label_distributions_, double.label_distributions_, atol=1e-3)


def test_an_offset_costs_no_digits(monkeypatch):
    """Columns such as seconds since 1970, of which float32 holds every 128th."""
    X, true = blobs(n=200)
    y = few(true, 2)
    plain = LabelSpreadingClassifier().fit(X, y)
    monkeypatch.setattr(engine, "SINGLE_NODES", 10)
    moved = LabelSpreadingClassifier().fit(X + 1.7e9, y)
    np.testing.assert_allclose(moved.label_distributions_, plain.label_distributions_, atol=1e-3)
    np.testing.assert_allclose(moved.predict_proba(X + 1.7e9), plain.predict_proba(X), atol=2e-3)


def test_predict_in_small_parts_answers_alike(monkeypatch):
    X, true = blobs()
    model = LabelSpreadingClassifier().fit(X, few(true, 2))
    whole = model.predict_proba(X)
    monkeypatch.setattr(engine, "MOST_DISTANCES", 150)
    np.testing.assert_allclose(model.predict_proba(X), whole)


class Missing:
    """Answers neither yes nor no, as pandas.NA does."""

    def __eq__(self, other):
        return self

    def __ne__(self, other):
        return self

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")


@pytest.mark.parametrize("missing", [-1, None, float("nan"), "", np.nan, Missing()])
@pytest.mark.parametrize("kind", [list, tuple, lambda y: np.array(y, dtype=object)])
@pytest.mark.parametrize("classes", [("cat", "dog", "eel"), (0, 1, 2), (0.0, 1.0, 2.0)])
def test_missing_labels_beside_any_classes(missing, kind, classes):
    X, true = blobs(n=30)
    y = kind([classes[c] if row < 6 else missing for row, c in enumerate(true)])
    model = LabelSpreadingClassifier().fit(X, y)
    assert model.classes_.tolist() == list(classes)
    assert (~np.isnan(model.label_trust_)).sum() == 6


def test_propagation_over_weights_of_any_size():
    """Weights of exp(-2 d^2) differ by fifty orders of magnitude; against elimination without subtraction."""
    X, true = load_wine(return_X_y=True)
    X, y = StandardScaler().fit_transform(X), few(true, 3)
    model = LabelPropagationClassifier(kernel="rbf", gamma=2.0).fit(X, y)
    step = rbf_kernel(X, gamma=2.0)
    np.fill_diagonal(step, 0)
    free, left = np.flatnonzero(y < 0), np.ones(len(y), dtype=bool)
    paths = []
    for node in free:  # a walk through it goes on to who is left
        left[node] = False
        onward = step[node] * left / (step[node] * left).sum()
        paths.append((node, onward))
        step = step + np.outer(step[:, node], onward)
    exact = np.eye(3)[y] * (y >= 0)[:, None]
    for node, onward in reversed(paths):
        exact[node] = onward @ exact
    assert model.converged_
    assert model.n_unreached_ == 0
    np.testing.assert_allclose(model.label_distributions_, exact, atol=1e-3)


@pytest.mark.parametrize("weight", [(0.2, 0.7, 0.1), (0.1, 0.7, 0.2), (1 - 1e-10,)])
def test_weights_that_sum_to_one_up_to_rounding_hold_their_row(weight):
    X, true = blobs(c=2)
    y = few(true, 2)
    given = np.flatnonzero(y >= 0)[0]
    copies = [given] * (len(weight) - 1)
    y_all = np.concatenate([y, [1 - y[given]] * len(copies)])
    trust = np.ones(len(y_all))
    trust[[given, *range(len(y), len(y_all))]] = weight
    model = LabelPropagationClassifier().fit(np.concatenate([X, X[copies]]), y_all, sample_weight=trust)
    assert model.n_unreached_ == 0
    assert model.label_distributions_[given, y[given]] == pytest.approx(weight[0], abs=1e-6)


def test_unreached_rows_are_told_what_they_get():
    X, true = blobs()
    weight = rbf_kernel(X, gamma=1.0)
    weight[:, 50:] = weight[50:] = 0
    y = np.where(np.arange(60) < 6, true, -1)
    with pytest.warns(UserWarning, match="10 of 60 rows: they take the most frequent class, .* among them[.]$"):
        LabelSpreadingClassifier("precomputed").fit(weight, y)
    with pytest.warns(UserWarning, match="the class of the nearest labeled row, .* or lower gamma[.]$"):
        LabelSpreadingClassifier("rbf", gamma=1e4).fit(X, y)


def test_threads_and_voice(capsys):
    X, true = blobs()
    before = torch.get_num_threads()
    LabelSpreadingClassifier(n_jobs=1, verbose=True).fit(X, few(true, 2))
    assert torch.get_num_threads() == before
    said = capsys.readouterr().out
    assert "LabelSpreadingClassifier: graph: 60 nodes" in said
    assert "solve:" in said


def test_one_row():
    model = LabelSpreadingClassifier().fit([[1.0, 2.0]], [3])
    assert model.predict([[5.0, 5.0]]).tolist() == [3]


@pytest.mark.parametrize(
    ("make", "X", "y", "message"),
    [
        (lambda: LabelSpreadingClassifier(kernel="poly"), blobs()[0], blobs()[1], "kernel must be 'knn', 'rbf'"),
        (
            lambda: LabelSpreadingClassifier(n_neighbors=0),
            blobs()[0],
            blobs()[1],
            "n_neighbors must be at least 1",
        ),
        (lambda: LabelSpreadingClassifier(gamma=0), blobs()[0], blobs()[1], "gamma must be greater than 0; got 0"),
        (lambda: LabelSpreadingClassifier(alpha=1.0), blobs()[0], blobs()[1], "alpha"),
        (LabelSpreadingClassifier, blobs()[0], np.full(60, -1), "y holds no label: 60 rows"),
        (LabelSpreadingClassifier, blobs()[0], blobs()[1][:5], r"one label per row of X, shape \(60,\); got \(5,\)"),
        (lambda: PoissonClassifier(prior="odd"), blobs()[0], blobs()[1], "prior must be"),
        (lambda: PoissonClassifier(kernel="precomputed"), np.ones((60, 3)), blobs()[1], "must be square"),
        (
            lambda: PoissonClassifier(kernel="precomputed"),
            np.triu(np.ones((60, 60))),
            blobs()[1],
            "must be symmetric and not normalized",
        ),
    ],
)
def test_errors(make, X, y, message):
    with pytest.raises(ConfigError if "must be at" in message or "greater" in message else ValueError, match=message):
        make().fit(X, y)


def test_errors_of_weights_and_size(monkeypatch):
    X, true = blobs()
    with pytest.raises(DataError, match="sample_weight must be 0 or more; the smallest is -1"):
        LabelSpreadingClassifier().fit(X, true, sample_weight=np.full(60, -1.0))
    with pytest.raises(DataError, match="every labeled row has sample_weight 0"):
        LabelSpreadingClassifier().fit(X, few(true, 1), sample_weight=(few(true, 1) < 0).astype(float))
    monkeypatch.setattr("lspread.estimators.reading.MOST_DENSE", 100)
    with pytest.raises(DataError, match=r"a sparse X of shape \(60, 2\) is too large.*TruncatedSVD"):
        LabelSpreadingClassifier().fit(scipy.sparse.csr_matrix(X), true)


# scikit-learn's published examples with the import line exchanged.


def test_example_of_two_circles():
    X, _ = make_circles(n_samples=200, shuffle=False)
    y = np.full(200, -1)
    y[0], y[-1] = 0, 1
    ours = LabelSpreadingClassifier(kernel="knn", alpha=0.8).fit(X, y)
    theirs = LabelSpreading(kernel="knn", alpha=0.8).fit(X, y)
    true = np.repeat([0, 1], 100)
    assert (ours.transduction_ == true).all()
    assert (ours.transduction_ == true).mean() >= (theirs.transduction_ == true).mean()


def test_example_of_digits():
    digits = load_digits()
    order = np.random.RandomState(2).permutation(len(digits.data))[:340]
    X, true = digits.data[order], digits.target[order]
    y = true.copy()
    y[40:] = -1
    theirs = LabelSpreading(gamma=0.25, max_iter=20).fit(X, y)
    ours = LabelSpreadingClassifier(gamma=0.25, max_iter=20).fit(X, y)
    accuracy = [(model.transduction_ == true)[40:].mean() for model in (ours, theirs)]
    assert accuracy[0] >= accuracy[1]
    # Most of these scores are below 1e-20, and still tell the classes apart.
    same = LabelSpreadingClassifier(kernel="rbf", gamma=0.25, alpha=0.2, balance=False).fit(X, y)
    settled = LabelSpreading(kernel="rbf", gamma=0.25, alpha=0.2, max_iter=1000, tol=0).fit(X, y)
    assert (same.transduction_ == settled.transduction_).mean() > 0.99
    assert (same.transduction_ == true)[40:].mean() >= accuracy[1] - 0.01


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_example_of_iris(share):
    X, true = load_iris(return_X_y=True)
    X = X[:, :2]
    random = np.random.RandomState(0)
    y = true.copy()
    y[random.rand(len(y)) < 1 - share] = -1
    hidden = y < 0
    theirs = LabelSpreading().fit(X, y)
    ours = LabelSpreadingClassifier(kernel="rbf", alpha=0.2).fit(X, y)
    accuracy = [(model.transduction_ == true)[hidden].mean() for model in (ours, theirs)]
    assert accuracy[0] >= accuracy[1] - 1e-12


@pytest.mark.parametrize("change", [None, "far", "tiny"])
def test_rows_far_off_and_tiny_units_change_nothing_for_the_others(change):
    X, truth = make_circles(2200, noise=0.02, factor=0.4, random_state=0)
    y = np.full(2200, -1)
    y[:40] = truth[:40]
    if change == "far":
        X[-1] = 3e11
    X = X * 1e-27 if change == "tiny" else X
    found = LabelSpreadingClassifier().fit(X, y).transduction_
    assert (found == truth)[:-1].mean() > 0.99


def test_text_that_numpy_makes_of_missing_labels_is_told():
    X, y = np.arange(8.0)[:, None], np.array(["a", "b", -1, -1, "a", "b", -1, -1])
    with pytest.warns(UserWarning, match="y holds the text '-1', which is taken as a class"):
        assert list(LabelSpreadingClassifier().fit(X, y).classes_) == ["-1", "a", "b"]
    plain = np.array(["a", "b", -1, -1, "a", "b", -1, None], dtype=object)
    assert list(LabelSpreadingClassifier().fit(X, plain).classes_) == ["a", "b"]
