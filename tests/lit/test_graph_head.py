"""The graph head: new items get the answer of the training graph, also after a trip through a file."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from lspread.data import TensorData
from lspread.data.features import pixel_features
from lspread.errors import ConfigError, DataError
from lspread.graph import CosinePower, Gaussian, SelfTuning, Uniform
from lspread.labels import PseudoLabels
from lspread.lit import RefreshPseudoLabels, load_graph_classifier, load_graph_head
from lspread.lit.graph_head import GRAPH_HEAD_FILE, GraphHead, make_graph_head, save_graph_head
from lspread.lit.saved_model import save_classifier
from lspread.nn import SmallResNet
from tests.reference import seeded

NUM_CLASSES = 3


def problem(n=60, d=6, m=15):
    """Embeddings whose axes differ in length, soft labels, the pool (all but two rows), and new embeddings."""
    scale = torch.tensor([30.0, 10.0, 3.0, 1.0, 0.3, 0.1])[:d]
    z = torch.randn(n, d, generator=seeded(0)) * scale + 5
    probability = torch.rand(n, NUM_CLASSES, generator=seeded(1)).softmax(1)
    is_reached = torch.arange(n) % 7 != 3
    is_given = torch.arange(n) % 20 == 0
    pseudo = PseudoLabels(
        label=probability.argmax(1),
        weight=is_reached.float(),
        class_weight=torch.ones(NUM_CLASSES),
        is_given=is_given,
        is_reached=is_reached | is_given,
        probability=probability,
    )
    return z, pseudo, torch.arange(n - 2), torch.randn(m, d, generator=seeded(2)) * scale + 5


def vote(z, pseudo, pool, new, *, k, num_components, metric, ridge):
    """Whiten by the pool's singular vectors, and let the k nearest reached rows vote."""
    z, new, reached = z[pool].double(), new.double(), pseudo.is_reached[pool]
    _, scale, axes = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    variance = scale.square() / (len(z) - 1)
    axes = axes[:num_components].T / (variance + ridge * variance[0])[:num_components].sqrt()
    bank, x = ((part - z.mean(0)) @ axes for part in (z[reached], new))
    if metric == "cosine":
        bank, x = nn.functional.normalize(bank, dim=1), nn.functional.normalize(x, dim=1)
    width = torch.cdist(bank, bank).sort(1).values[:, k]
    distance, index = torch.cdist(x, bank).topk(k, largest=False)
    weight = torch.exp(-(distance**2) / (distance[:, -1:] * width[index]))
    probability = pseudo.probability[pool][reached].double()[index]
    return (weight[:, :, None] * probability).sum(1) / weight.sum(1, keepdim=True), distance[:, -1], width


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("num_components", "ridge"), [(2, 1e-3), (6, 1e-3), (6, 0.1)])
def test_new_items_are_seen_as_the_graph_saw_its_own(num_components, ridge, metric):
    z, pseudo, pool, new = problem()
    new[-1] = z[0] + 10 * (z[0] - z.mean(0))
    refresh = RefreshPseudoLabels(k=5, num_components=num_components, ridge=ridge, metric=metric)
    head = make_graph_head(z, pseudo, pool, refresh)
    options = {"k": 5, "num_components": num_components, "ridge": ridge, "metric": metric}
    wanted, distance, width = vote(z, pseudo, pool, new, **options)
    probability, is_far = head.vote(new)
    # The bank is kept in half precision.
    torch.testing.assert_close(probability.double(), wanted, rtol=0, atol=5e-3)
    torch.testing.assert_close(head(new), probability)
    threshold = np.quantile(width.numpy(), 0.99, method="inverted_cdf")
    assert float(head.far_distance) == pytest.approx(threshold, rel=1e-4)
    clear = (distance - threshold).abs() > 1e-3
    assert torch.equal(is_far[clear], (distance > threshold)[clear])
    assert not is_far[:-1].all()
    assert bool(is_far[-1]) == (metric == "euclidean"), "on the sphere of the cosine, length counts for nothing"


def test_digits_that_nobody_trained_on_get_the_labels_of_the_graph():
    """Pixels in place of a network: 1,200 digits with two labels per class spread to, 597 others for the head."""
    X, y = load_digits(return_X_y=True)
    image, label = torch.from_numpy(X * 15).to(torch.uint8).view(-1, 1, 8, 8), torch.from_numpy(y)
    test = torch.arange(1200, 1797)
    data = TensorData(image, label, [str(c) for c in range(10)], test=test, num_labels_per_class=2)
    data.setup()
    refresh, z = RefreshPseudoLabels(k=10, whiten=False), pixel_features(image)
    spread = refresh.spread(z[data.split.pool], data)
    transductive = data.evaluator.accuracy(spread.pseudo.label, data.split.unlabeled)
    for max_rows in (20_000, 400):
        head = make_graph_head(z, spread.pseudo, data.split.pool, refresh, max_rows=max_rows)
        assert len(head.head.embedding) == min(1200, max_rows)
        probability, is_far = head.vote(z[test])
        accuracy = float((probability.argmax(1) == label[test]).float().mean())
        assert accuracy > transductive - 0.05
        assert accuracy > 0.85
        assert is_far.float().mean() < 0.06
        noise = pixel_features(torch.randint(0, 256, (50, 1, 8, 8), generator=seeded()))
        assert head.vote(noise)[1].float().mean() > 0.95


@pytest.mark.parametrize("max_rows", [1, 3, 20])
def test_a_bank_of_fewer_rows_keeps_given_labels_first(max_rows):
    z, pseudo, pool, _ = problem()
    refresh = RefreshPseudoLabels(k=5, metric="euclidean", whiten=False)
    whole = make_graph_head(z, pseudo, pool, refresh).head
    some = make_graph_head(z, pseudo, pool, refresh, max_rows=max_rows, seed=3).head
    assert len(whole.embedding) == int(pseudo.is_reached[pool].sum())
    rows = [int((whole.embedding == row).all(1).nonzero()) for row in some.embedding]
    assert len(rows) == max_rows
    assert rows == sorted(rows)
    items = pool[pseudo.is_reached[pool]][rows]
    assert int(pseudo.is_given[items].sum()) == min(3, max_rows)
    with pytest.raises(ConfigError, match="max_rows must be at least 1; got 0"):
        make_graph_head(z, pseudo, pool, refresh, max_rows=0)


@pytest.mark.parametrize(
    ("kernel", "weight", "bandwidth"),
    [
        (SelfTuning(4.0), "self_tuning", 0.5),
        (CosinePower(), "cosine", 1.0),
        (Uniform(), "uniform", 1.0),
        (Gaussian(0.3), "gaussian", 0.3),
        (lambda squared, neighbors: squared, "self_tuning", 1.0),
    ],
)
def test_votes_weigh_as_edges_do(kernel, weight, bandwidth):
    z, pseudo, pool, _ = problem()
    head = make_graph_head(z, pseudo, pool, RefreshPseudoLabels(k=7, kernel=kernel)).head
    assert (head.k, head.weight, head.bandwidth, head.metric) == (7, weight, bandwidth, "cosine")


@pytest.mark.parametrize("options", [{}, {"whiten": False}, {"metric": "euclidean"}, {"kernel": "cosine"}])
def test_a_saved_head_answers_the_same(options, tmp_path):
    z, pseudo, pool, new = problem()
    head = make_graph_head(z, pseudo, pool, RefreshPseudoLabels(k=5, **options))
    path = save_graph_head(tmp_path, head)
    loaded = load_graph_head(tmp_path)
    assert path == tmp_path / GRAPH_HEAD_FILE
    assert not loaded.training
    for found, wanted in zip(loaded.vote(new), head.vote(new), strict=True):
        # What was loaded lies elsewhere in memory, and MKL rounds by that.
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_half_precision_is_used_where_it_loses_little(tmp_path):
    z, pseudo, pool, new = problem()
    refresh = RefreshPseudoLabels(k=5, metric="euclidean", whiten=False)
    wanted = {True: torch.float16, False: torch.float32}
    for fits, scale in ((True, 1.0), (False, 1e4), (False, 1e-9)):
        head = make_graph_head(z * scale, pseudo, pool, refresh)
        save_graph_head(tmp_path, head)
        from safetensors.torch import load_file

        assert load_file(tmp_path / GRAPH_HEAD_FILE)["head.embedding"].dtype == wanted[fits]
        assert torch.equal(load_graph_head(tmp_path)(new * scale), head(new * scale))


def test_images_to_probabilities(tmp_path):
    backbone = SmallResNet(3, [4, 8]).eval()
    spec = {"class_path": "lspread.nn.SmallResNet", "init_args": {"in_channels": 3, "widths": [4, 8]}}
    options = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.1], "class_names": list("abc"), "image_shape": [3, 8, 8]}
    save_classifier(tmp_path, backbone, nn.Linear(8, 3), backbone_spec=spec, **options)
    image = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=seeded())
    x = image.float() / 255
    x = (x - torch.tensor(options["mean"])[:, None, None]) / torch.tensor(options["std"])[:, None, None]
    with torch.no_grad():
        z = backbone(x)
    _, pseudo, pool, _ = problem()
    head = make_graph_head(z, pseudo, pool, RefreshPseudoLabels(k=5))
    save_graph_head(tmp_path, head)
    model = load_graph_classifier(tmp_path)
    assert model.class_names == list("abc")
    assert model.image_shape == (3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(image), head(z), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(image.float() / 255), head(z), rtol=1e-4, atol=1e-5)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(DataError, match=rf"has no graph_head\.safetensors.*`lspread fit {tmp_path}` writes it"):
        load_graph_head(tmp_path)
    path = tmp_path / GRAPH_HEAD_FILE
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        load_graph_head(tmp_path)
    z, pseudo, pool, _ = problem()
    head = make_graph_head(z, pseudo, pool, RefreshPseudoLabels(k=5))
    assert isinstance(head, GraphHead)
    save_graph_head(tmp_path, head)
    path.write_bytes(path.read_bytes().replace(b"lspread-graph-head-1", b"lspread-graph-head-9"))
    with pytest.raises(DataError, match="ValueError: format lspread-graph-head-9"):
        load_graph_head(tmp_path)
