import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lspread.errors import ConfigError
from lspread.labels import align_distribution, fairness_loss, is_confident
from lspread.nn import AdaptiveThreshold, CurriculumThreshold, DistributionAlignment, UsualFairness
from lspread.typing import UNLABELED
from tests.reference import seeded


def batches(num=5, m=8, c=3):
    return torch.randn(num, m, c, generator=seeded(0), dtype=torch.float64).mul(3).softmax(-1)


def test_adaptive_threshold_is_freematch_equations_5_to_7():
    layer = AdaptiveThreshold(3, momentum=0.9).double()
    level, frequency = 1 / 3, [1 / 3] * 3
    for batch in batches():
        rows = batch.tolist()
        level = 0.9 * level + 0.1 * sum(max(row) for row in rows) / len(rows)
        frequency = [0.9 * p + 0.1 * sum(row[j] for row in rows) / len(rows) for j, p in enumerate(frequency)]
        expected = torch.tensor([p / max(frequency) * level for p in frequency], dtype=torch.float64)
        torch.testing.assert_close(layer(batch), expected)
    layer.eval()
    torch.testing.assert_close(layer(torch.rand(4, 3).double()), expected)


def test_curriculum_threshold_is_flexmatch_sections_3_1_to_3_3():
    items, pool, threshold = 10, 8, 0.7
    layer = CurriculumThreshold(3, threshold)
    layer.start(items, pool)
    sure: dict[int, int] = {}
    index = torch.stack([torch.randperm(pool, generator=seeded(i))[:4] for i in range(20)])
    seen = []
    for batch, rows in zip(batches(20, 4), index, strict=True):
        count = [sum(label == j for label in sure.values()) for j in range(3)]
        most = max(*count, pool - sum(count))
        expected = [threshold * (s / most) / (2 - s / most) for s in count]
        found = layer(batch, rows)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
        seen.append(found)
        for row, item in zip(batch.tolist(), rows.tolist(), strict=True):
            if max(row) > threshold:
                sure[item] = row.index(max(row))
    assert layer.label.tolist() == [sure.get(i, UNLABELED) for i in range(items)]
    assert not seen[0].any()  # nothing was sure yet
    assert seen[-1].max() == threshold  # the class learned best, once few items are left
    assert seen[-1].min() < threshold


def test_curriculum_threshold_never_reads_the_device_and_asks_for_its_items():
    layer = CurriculumThreshold(3)
    with pytest.raises(ConfigError, match=r"call start\(num_items, num_pool\) before the first batch"):
        layer(batches()[0], torch.arange(8))
    layer.start(10, 8)
    with FakeTensorMode():
        probability = torch.empty(4, 3, device="cuda").softmax(1)
        layer.label = torch.empty(10, dtype=torch.int64)
        found = layer(probability, torch.empty(4, dtype=torch.int64, device="cuda"))
    assert found.device.type == "cuda"
    for options in ({"num_classes": 1}, {"num_classes": 3, "threshold": 1.5}):
        with pytest.raises(ConfigError, match="num_classes must be 2 or more and threshold a probability"):
            CurriculumThreshold(**options)


def test_alignment_follows_a_running_mean():
    layer = DistributionAlignment(3, momentum=0.8).double()
    mean = torch.full((3,), 1 / 3, dtype=torch.float64)
    for batch in batches():
        mean = 0.8 * mean + 0.2 * batch.mean(0)
        torch.testing.assert_close(layer(batch), align_distribution(batch, mean))
    layer.eval()
    torch.testing.assert_close(layer(batch.flip(0)), align_distribution(batch.flip(0), mean))


def test_usual_fairness_is_its_formula():
    layer = UsualFairness(3, momentum=0.9).double()
    frequency, share = [1 / 3] * 3, [1 / 3] * 3
    for batch in batches():
        rows = batch.tolist()
        predicted = [row.index(max(row)) for row in rows]
        frequency = [0.9 * p + 0.1 * sum(row[j] for row in rows) / len(rows) for j, p in enumerate(frequency)]
        share = [0.9 * h + 0.1 * predicted.count(j) / len(rows) for j, h in enumerate(share)]
        quotient = [p / h for p, h in zip(frequency, share, strict=True)]
        expected = torch.tensor([q / sum(quotient) for q in quotient], dtype=torch.float64)
        torch.testing.assert_close(layer(batch), expected)
    layer.eval()
    torch.testing.assert_close(layer(torch.rand(4, 3).double()), expected)


def test_usual_fairness_of_a_class_never_predicted_is_finite_and_nothing_reads_the_device():
    layer = UsualFairness(3, momentum=0.1)
    for _ in range(60):
        found = layer(torch.tensor([[0.7, 0.2, 0.1]]))
    assert torch.isfinite(found).all()
    with FakeTensorMode():
        fake = UsualFairness(3).to("cuda")
        logits = torch.empty(4, 3, device="cuda")
        probability = logits.softmax(1)
        loss = fairness_loss(logits, is_confident(probability, 0.4), fake(probability))
    assert loss.device.type == "cuda"


@pytest.mark.parametrize("layer", [AdaptiveThreshold, DistributionAlignment, UsualFairness])
def test_state_is_saved_and_half_precision_is_taken(layer):
    first, second = layer(3), layer(3)
    first(batches()[0].to(torch.bfloat16))
    second.load_state_dict(first.state_dict())
    first.eval(), second.eval()
    probe = batches()[1].float()
    assert torch.equal(first(probe), second(probe))
    assert all(torch.isfinite(value).all() for value in first.state_dict().values())


@pytest.mark.parametrize("layer", [AdaptiveThreshold, DistributionAlignment, UsualFairness])
@pytest.mark.parametrize("options", [{"num_classes": 1}, {"num_classes": 3, "momentum": 1.0}])
def test_refuses(layer, options):
    with pytest.raises(ConfigError, match="num_classes must be 2 or more and momentum"):
        layer(**options)


@pytest.mark.parametrize("layer", [AdaptiveThreshold, DistributionAlignment, UsualFairness])
def test_running_means_go_on_in_half_precision(layer):
    whole, half = layer(3), layer(3).to(torch.bfloat16)
    for _ in range(2000):
        for batch in batches(1):
            whole(batch.float())
            half(batch.to(torch.bfloat16))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(half.state_dict()[name], value, rtol=0.02, atol=0)
    assert not torch.equal(whole.state_dict()[name], layer(3).state_dict()[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_curriculum_threshold_counts_in_whole_numbers(dtype):
    layer = CurriculumThreshold(2)
    layer.start(100_000, 100_000)
    layer.label[:60_000], layer.label[60_000:90_000] = 0, 1
    found = layer(torch.full((1, 2), 0.5, dtype=dtype), torch.tensor([0]))
    torch.testing.assert_close(found.float(), torch.tensor([0.95, 0.95 / 3]), rtol=0.01, atol=0)
