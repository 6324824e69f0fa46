import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lspread.errors import ConfigError, GraphError
from lspread.labels import Anchors, label_matrix
from lspread.nn import EmbeddingBank, LabelPropagation, LabelSpreading
from lspread.solve import ConjugateGradient
from tests import reference
from tests.reference import seeded
from tests.test_fake_cuda import StayOnDevice, needs_slices

K = 5
LABEL = torch.tensor([-1, 0, -1, 1, -1, -1, 2, -1, -1, -1])


def rows(*shape, seed=1):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def full_bank(**options):
    bank = EmbeddingBank(LABEL, 4, dtype=torch.float64, **options)
    bank.fill(rows(10, 4))
    return bank


# What it keeps


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_update_follows_the_moving_average(momentum):
    bank = EmbeddingBank(LABEL, 4, momentum=momentum, dtype=torch.float64)
    wanted = {}
    for step in range(6):
        index = torch.randperm(10, generator=seeded(step))[:4]
        z = rows(4, 4, seed=step).requires_grad_()
        bank.update(index, z)
        for i, row in zip(index.tolist(), z.detach(), strict=True):
            wanted[i] = momentum * wanted[i] + (1 - momentum) * row if i in wanted else row
            assert bank.age[i] == 0
    assert not bank.embedding.requires_grad
    for i in range(10):
        torch.testing.assert_close(bank.embedding[i], wanted.get(i, torch.zeros(4, dtype=torch.float64)))
        assert (bank.age[i] == -1) == (i not in wanted)


def test_age_counts_updates():
    bank = EmbeddingBank(LABEL, 4)
    for index in ([0, 1], [2], [1, 3]):
        bank.update(torch.tensor(index), torch.zeros(len(index), 4))
    assert bank.age.tolist() == [2, 0, 1, 0, -1, -1, -1, -1, -1, -1]


def test_given_labels_stay():
    bank = EmbeddingBank(LABEL, 4)
    bank.update(torch.tensor([0, 1, 2]), torch.zeros(3, 4), torch.tensor([2, 2, 1]))
    assert bank.label[:4].tolist() == [2, 0, 1, 1]
    assert torch.equal(bank.is_support, LABEL != -1)
    soft = EmbeddingBank(label_matrix(LABEL, 3), 4)
    assert torch.equal(soft.is_support, LABEL != -1)
    soft.update(torch.tensor([0, 1]), torch.zeros(2, 4), torch.full((2, 3), 0.3))
    assert torch.equal(soft.label[:2], torch.tensor([[0.3, 0.3, 0.3], [1, 0, 0]]))


def test_half_precision():
    bank = EmbeddingBank(LABEL, 4, dtype=torch.bfloat16)
    bank.update(torch.arange(4), rows(4, 4))
    assert torch.equal(bank.embedding[:4], rows(4, 4).bfloat16())


# What it hands out


@pytest.mark.parametrize("order", ["freshest", "random"])
@pytest.mark.parametrize("size", [3, 5, 10, 99])
def test_supports_are_always_there(order, size):
    bank = full_bank()
    found = bank.sample(size, order=order, generator=seeded(3))
    assert sorted(found.index[:3].tolist()) == [1, 3, 6]
    assert len(set(found.index.tolist())) == len(found.index) == min(size, 10)
    assert torch.equal(found.embedding, bank.embedding[found.index])
    assert torch.equal(found.label, LABEL[found.index])
    assert not found.embedding.requires_grad
    found.embedding.zero_()
    assert torch.equal(bank.embedding, rows(10, 4)), "a copy was handed out"


def test_freshest_come_first():
    bank = full_bank()
    for i in (5, 0, 9):
        bank.update(torch.tensor([i]), rows(1, 4))
    assert bank.sample(6).index[3:].tolist() == [9, 0, 5]
    assert bank.sample(4, exclude=torch.tensor([0, 1])).index[2:].tolist() == [9, 5]


def test_random_rows_are_uniform_and_seeded():
    bank = full_bank()
    first = bank.sample(5, order="random", generator=seeded(0)).index
    assert torch.equal(first, bank.sample(5, order="random", generator=seeded(0)).index)
    generator, count = seeded(0), torch.zeros(10)
    for _ in range(700):
        count[bank.sample(5, order="random", generator=generator).index] += 1
    assert (count[LABEL != -1] == 700).all()
    assert (count[LABEL == -1] - 200).abs().max() < 60  # five standard deviations


@pytest.mark.parametrize("order", ["freshest", "random"])
def test_excluded_and_empty_rows_never_come(order):
    bank = full_bank()
    exclude = torch.tensor([1, 2, 9])
    assert sorted(bank.sample(99, exclude=exclude, order=order).index.tolist()) == [0, 3, 4, 5, 6, 7, 8]
    young = EmbeddingBank(LABEL, 4)
    assert len(young.sample(4, order=order).index) == 0
    young.update(torch.tensor([2, 3, 5]), torch.ones(3, 4))
    found = young.sample(4, exclude=torch.tensor([5, 7]), order=order)
    assert found.index.tolist() == [3, 2]
    assert (found.embedding == 1).all()


# In a layer


@pytest.mark.parametrize("shape", [(12,), (3, 12)])
@pytest.mark.parametrize("is_soft", [False, True])
def test_scores_are_those_of_one_dense_graph(shape, is_soft):
    z = rows(*shape, 4, seed=7)
    label = torch.randint(-1, 3, shape, generator=seeded(5))
    anchors = full_bank().sample(7, order="random", generator=seeded(2))
    given = label_matrix(anchors.label, 3, dtype=torch.float64) * 0.7 if is_soft else anchors.label
    found = LabelSpreading(3, k=K, alpha=0.9)(z, label, anchors=Anchors(anchors.embedding, given))
    assert found.shape == (*shape, 3)
    for one, mine, scores in zip(z.view(-1, 12, 4), label.view(-1, 12), found.view(-1, 12, 3), strict=True):
        together = torch.cat([one, anchors.embedding])
        index, distance = reference.knn(together, K)
        w = reference.symmetrize(reference.scatter(reference.self_tuning(distance, index), index), "mean")
        targets = torch.cat([reference.one_hot(mine, 3), reference.one_hot(anchors.label, 3) * (0.7 if is_soft else 1)])
        wanted = reference.spread(reference.normalize(w), targets, 0.9)[:12]
        torch.testing.assert_close(scores, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("layer", [LabelSpreading(3, k=3, alpha=0.7), LabelPropagation(3, k=3)])
def test_gradient_reaches_the_batch_alone(layer):
    bank = full_bank()
    anchors = bank.sample(6)
    z, label = rows(6, 4, seed=8).requires_grad_(), torch.tensor([0, -1, -1, 2, -1, -1])
    assert torch.autograd.gradcheck(lambda z: layer(z, label, anchors=anchors), z)
    layer(z, label, anchors=anchors).sum().backward()
    assert (z.grad != 0).any()
    assert anchors.embedding.grad is None
    assert bank.embedding.grad is None
    # Joined by hand, with the gradient of the anchors thrown away.
    joined = torch.cat([z, anchors.embedding])
    (wanted,) = torch.autograd.grad(layer(joined, torch.cat([label, anchors.label]))[:6].sum(), z)
    torch.testing.assert_close(z.grad, wanted)


def test_supports_in_the_bank_label_a_batch_without_labels():
    generator = seeded(4)
    center = 6 * torch.eye(3, 4)
    true = torch.arange(90) % 3
    z = center[true] + torch.randn(90, 4, generator=generator)
    shown = torch.where(torch.arange(90) < 6, true, -1)
    bank = EmbeddingBank(shown, 4)
    bank.fill(z)
    index = torch.arange(60, 90)
    layer = LabelSpreading(3, k=K)
    assert (layer(z[index], shown[index]) == 0).all()
    scores = layer(z[index], shown[index], anchors=bank.sample(40, exclude=index))
    assert (scores.argmax(1) == true[index]).all()


# A module among modules


@pytest.mark.parametrize("is_full", [False, True])
def test_state_dict_round_trip(is_full):
    bank, other = EmbeddingBank(LABEL, 4, dtype=torch.float64), full_bank()
    if is_full:
        bank.fill(rows(10, 4, seed=9))
    bank.update(torch.tensor([3, 4]), rows(2, 4, seed=3))
    other.sample(5)
    other.load_state_dict(bank.state_dict())
    for twin in (other, copy.deepcopy(bank)):
        for name, buffer in bank.named_buffers():
            assert torch.equal(getattr(twin, name), buffer)
        assert torch.equal(twin.sample(5).index, bank.sample(5).index)
    assert list(bank.parameters()) == []
    assert "num_items=10, dim=4" in repr(bank)


@needs_slices
@pytest.mark.filterwarnings("ignore:CUDA is not available:UserWarning")
@pytest.mark.parametrize("shape", [(20,), (2, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_read_from_the_device(shape, dtype):
    bank = EmbeddingBank(torch.where(torch.arange(50) < 5, 1, -1), 4, momentum=0.5)
    layer = LabelSpreading(3, k=K, solver=ConjugateGradient(max_steps=2, check_every=0), on_failure="ignore")
    with FakeTensorMode(), StayOnDevice():
        for name, buffer in bank.named_buffers():
            setattr(bank, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda"))
        index = torch.empty(20, dtype=torch.int64, device="cuda")
        z = torch.empty(*shape, 4, device="cuda", dtype=dtype, requires_grad=True)
        label = torch.empty(shape, dtype=torch.int64, device="cuda")
        bank.fill(torch.empty(50, 4, device="cuda"))
        bank.update(index, z.view(-1, 20, 4)[0])
        for order in ("freshest", "random"):
            anchors = bank.sample(30, exclude=index, order=order)
            assert anchors.embedding.shape == (30, 4)
            with torch.autocast("cuda", torch.bfloat16):
                found = layer(z, label, anchors=anchors)
            assert found.shape == (*shape, 3)
            assert found.device.type == "cuda"
            assert found.requires_grad


# Errors


def test_errors():
    with pytest.raises(ConfigError, match=r"needs dim >= 1 and momentum in \[0, 1\); got dim=0, momentum=0"):
        EmbeddingBank(LABEL, 0)
    with pytest.raises(ConfigError, match=r"got dim=4, momentum=1"):
        EmbeddingBank(LABEL, 4, momentum=1.0)
    with pytest.raises(GraphError, match=r"label must be int64 of shape \(n,\).*got \(10, 1\) torch.int64"):
        EmbeddingBank(LABEL[:, None], 4)
    bank = full_bank()
    with pytest.raises(GraphError, match=r"z \(m, 4\), m = 10 to fill it; got \(10,\) and \(9, 4\)"):
        bank.fill(torch.zeros(9, 4))
    with pytest.raises(GraphError, match=r"got \(2,\) and \(2, 3\)"):
        bank.update(torch.arange(2), torch.zeros(2, 3))
    with pytest.raises(ConfigError, match=r"size must have room for all 3 supports.*got 2"):
        bank.sample(2)
    with pytest.raises(ConfigError, match=r"order must be one of.*got 'oldest'"):
        bank.sample(5, order="oldest")
    z, label, layer = rows(12, 4), torch.zeros(12, dtype=torch.int64), LabelSpreading(3, k=K)
    with pytest.raises(GraphError, match=r"anchors join embeddings.*got them with a Graph"):
        layer(layer.build_graph(z), label, anchors=bank.sample(5))
    with pytest.raises(GraphError, match=r"anchors join embeddings.*got them with batch"):
        layer(z, label, torch.zeros(12, dtype=torch.int64), anchors=bank.sample(5))


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_row_that_was_no_number_heals_with_its_next_update(momentum):
    bank = EmbeddingBank(label_matrix(torch.tensor([0, 1, -1]), 2), 2, momentum=momentum)
    rows = torch.tensor([0, 1])
    bank.update(rows, torch.tensor([[torch.inf, 1.0], [2.0, 4.0]]))
    bank.update(rows, torch.tensor([[3.0, 1.0], [4.0, 8.0]]))
    kept = momentum * torch.tensor([2.0, 4.0]) + (1 - momentum) * torch.tensor([4.0, 8.0])
    assert torch.equal(bank.embedding[:2], torch.stack([torch.tensor([3.0, 1.0]), kept]))
