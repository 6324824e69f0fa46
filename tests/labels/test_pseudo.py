import math

import pytest
import torch

from lspread.errors import ConfigError, GraphError
from lspread.graph import normalize_graph
from lspread.labels import certainty, label_matrix, pseudo_labels, sharpen_pseudo_labels, spread_labels
from tests import reference
from tests.reference import from_dense, seeded


def entropy(row):
    return -sum(p * math.log(p) for p in row.tolist() if p > 0)


def sample(n=30, c=4, seed=0, dtype=torch.float64):
    """Scores of very different sizes, rows 3 and 7 unreached; rows 0 and 5 given, against their scores."""
    scores = torch.rand(n, c, generator=seeded(seed), dtype=dtype).pow(4) * 10.0 ** -torch.arange(n)[:, None].to(
        dtype
    ).fmod(9)
    scores[[3, 7]] = 0
    label = torch.full((n,), -1)
    label[0], label[5] = scores[0].argmin(), 2
    return scores, label


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_formulas(dtype):
    scores, label = sample(dtype=dtype)
    pseudo = pseudo_labels(scores, label)
    for i in range(30):
        row = scores[i] / scores[i].sum() if scores[i].sum() > 0 else torch.full((4,), 0.25, dtype=dtype)
        torch.testing.assert_close(pseudo.probability[i], row)
        if label[i] >= 0:
            assert pseudo.label[i] == label[i]
            assert pseudo.weight[i] == 1
        elif i in (3, 7):
            assert pseudo.weight[i] == 0
        else:
            assert pseudo.label[i] == scores[i].argmax()
            assert pseudo.weight[i].item() == pytest.approx(1 - entropy(row) / math.log(4), rel=1e-5, abs=1e-6)
    assert pseudo.is_given.nonzero().flatten().tolist() == [0, 5]
    assert (~pseudo.is_reached).nonzero().flatten().tolist() == [3, 7]
    assert pseudo.num_unreached == 2
    assert ((pseudo.weight >= 0) & (pseudo.weight <= 1)).all()
    assert pseudo.weight.dtype == pseudo.class_weight.dtype == dtype
    assert pseudo.label.dtype == torch.int64
    # Class weights: average size over own size, of the nodes that something reached.
    reached = [i for i in range(30) if i not in (3, 7)]
    count = torch.bincount(pseudo.label[reached], minlength=4).to(dtype)
    torch.testing.assert_close(pseudo.class_weight, count.mean() / torch.maximum(count, 0.1 * count.mean()))


def test_unreached_by_a_real_solve():
    w = torch.block_diag(reference.random_weights(9), reference.random_weights(7, seed=1))
    label = torch.full((16,), -1)
    label[0], label[4] = 0, 1
    scores = spread_labels(normalize_graph(from_dense(w)), label_matrix(label, 3, dtype=torch.float64)).value
    pseudo = pseudo_labels(scores, label, prior="labeled")
    assert pseudo.num_unreached == 7
    assert pseudo.weight[9:].eq(0).all()
    torch.testing.assert_close(pseudo.probability[9:], torch.full((7, 3), 1 / 3, dtype=torch.float64))
    assert torch.isfinite(pseudo.class_weight).all()
    assert pseudo.class_weight[2] == pytest.approx(10), "an empty class weighs 1 / balance_floor"


@pytest.mark.parametrize("floor", [0.1, 0.5, 1.0])
def test_empty_class_and_floor(floor):
    scores = torch.tensor([[1.0, 0.0, 0.0]] * 9 + [[0.0, 1.0, 0.0]] * 3)
    pseudo = pseudo_labels(scores, torch.full((12,), -1), balance_floor=floor)
    wanted = [4 / 9, 4 / max(3, floor * 4), 1 / floor]
    torch.testing.assert_close(pseudo.class_weight, torch.tensor(wanted).clamp(max=1 / floor))


def test_nothing_arrived_anywhere():
    pseudo = pseudo_labels(torch.zeros(5, 3), torch.full((5,), -1), prior="labeled")
    assert pseudo.num_unreached == 5
    assert pseudo.weight.eq(0).all()
    assert torch.isfinite(pseudo.class_weight).all()
    torch.testing.assert_close(pseudo.probability, torch.full((5, 3), 1 / 3))


def test_given_node_without_score_counts_as_reached():
    pseudo = pseudo_labels(torch.zeros(3, 2), torch.tensor([1, -1, -1]))
    assert pseudo.is_reached.tolist() == [True, False, False]
    assert pseudo.label[0] == 1
    assert pseudo.weight.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("name", ["uniform", "labeled", "given"])
def test_priors(name):
    scores, label = sample()
    scores = scores + 1e-12 * (scores.sum(1, keepdim=True) > 0)
    frequencies = {"uniform": torch.full((4,), 0.25), "labeled": torch.bincount(label[label >= 0], minlength=4) / 2.0}
    wanted_prior = frequencies.get(name, torch.tensor([0.1, 0.2, 0.3, 0.4])).double()
    pseudo = pseudo_labels(scores, label, prior=wanted_prior if name == "given" else name)
    reached = scores.sum(1) > 0
    probability = scores[reached] / scores[reached].sum(1, keepdim=True)
    wanted = reference.class_mass_normalize(probability, wanted_prior)
    torch.testing.assert_close(pseudo.probability[reached], wanted)
    is_free = (label < 0)[reached]
    assert torch.equal(pseudo.label[reached][is_free], wanted.argmax(1)[is_free])
    assert pseudo.label[0] == label[0]
    assert pseudo.label[5] == 2
    torch.testing.assert_close(pseudo.weight[reached][is_free], certainty(wanted)[is_free])


def test_size_of_scores_changes_nothing():
    scores, label = sample()
    one, other = pseudo_labels(scores, label), pseudo_labels(scores * 1e-20, label)
    assert torch.equal(one.label, other.label)
    torch.testing.assert_close(one.weight, other.weight)


def test_detached_and_certainty_of_corners():
    scores = torch.rand(4, 3, generator=seeded(4)).requires_grad_()
    pseudo = pseudo_labels(scores, torch.full((4,), -1))
    assert not any(getattr(pseudo, name).requires_grad for name in ("probability", "weight", "class_weight"))
    assert certainty(torch.tensor([[1.0, 0.0], [0.5, 0.5]])).tolist() == [1.0, 0.0]
    assert certainty(torch.ones(3, 1)).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("temperature", [0.5, 2.0, 1e-3, 1e3])
def test_sharpened_probabilities_are_powers(temperature):
    scores, label = sample()
    scores[3], scores[4] = torch.tensor([[1.0, 0, 0, 0], [1e-9, 1, 0, 1e-9]])
    before = pseudo_labels(scores, label)
    after = sharpen_pseudo_labels(before, temperature)
    relative = before.probability / before.probability.max(1, keepdim=True).values
    power = relative ** (1 / temperature)
    wanted = power / power.sum(1, keepdim=True)
    assert after.probability[3].tolist() == [1, 0, 0, 0], "who is quite sure stays so at any temperature"
    torch.testing.assert_close(after.probability, wanted)
    is_free = before.is_reached & ~before.is_given
    torch.testing.assert_close(after.weight[is_free], certainty(wanted)[is_free])
    assert (after.weight[~before.is_reached] == 0).all()
    assert (after.weight[before.is_given] == 1).all()
    assert after.weight.dtype == before.weight.dtype
    for name in ("label", "class_weight", "is_given", "is_reached"):
        assert getattr(after, name) is getattr(before, name)
    grows = after.weight[is_free] - before.weight[is_free]
    assert (grows * (1 - temperature) >= -1e-12).all(), "sharper is surer"


def test_temperature_one_changes_nothing_and_zero_is_refused():
    pseudo = pseudo_labels(*sample())
    assert sharpen_pseudo_labels(pseudo, 1.0) is pseudo
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match=f"temperature must be greater than 0; got {temperature}"):
            sharpen_pseudo_labels(pseudo, temperature)


def test_errors():
    scores = torch.rand(4, 3, generator=seeded(5))
    for label in (torch.zeros(5, dtype=torch.int64), torch.zeros(4), torch.zeros(4, 1, dtype=torch.int64)):
        with pytest.raises(GraphError, match=r"needs scores \(n, c\) and int64 labels \(n,\); got \(4, 3\)"):
            pseudo_labels(scores, label)
    for wrong in (-2, 3):
        with pytest.raises(GraphError, match=rf"labels must be -1 \(unlabeled\) or 0 to 2; got values from .*{wrong}"):
            pseudo_labels(scores, torch.tensor([0, wrong, -1, 1]))
    for floor in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"balance_floor must be greater than 0"):
            pseudo_labels(scores, torch.full((4,), -1), balance_floor=floor)


def test_classes_are_counted_in_more_than_half_precision():
    scores = torch.rand(200_000, 2, generator=seeded(0))
    label = torch.full((200_000,), -1)
    label[:2] = torch.tensor([0, 1])
    expected = pseudo_labels(scores, label).class_weight
    found = pseudo_labels(scores.half(), label).class_weight
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=0)
