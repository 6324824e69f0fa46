"""RunFolder without the command line: a trainer, a tensor of pictures, and an island that no label reaches."""

import csv
import json

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lspread.data import TensorData
from lspread.errors import ConfigError
from lspread.lit import FewLabelClassifier, RefreshPseudoLabels, run_folder
from lspread.lit.graph_head import load_graph_classifier, load_graph_head
from lspread.lit.run_folder import RunFolder
from lspread.lit.run_logger import RunLogger
from lspread.lit.saved_model import load_classifier
from lspread.lit.scores import wilson_interval
from lspread.report import read_results
from lspread.typing import UNLABELED

NAMES = ["a, b", 'say "c"']


class Pixels(nn.Module):
    """The pixels themselves as embeddings, so that the test knows the graph."""

    num_features = 4

    def forward(self, image):
        return image.flatten(1)


class Collapsed(Pixels):
    """A backbone that gives all images one embedding."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, image):
        return torch.full_like(image.flatten(1), self.value)


def make_data():
    """Forty pictures of 2 x 2 pixels in three groups; two of them have labels, the third is an island."""
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(40) % 3
    base = torch.tensor([[255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 255, 0]])[group]
    noise = torch.randint(0, 40, (40, 4), generator=generator)
    image = (base - noise).clamp(0).to(torch.uint8).view(40, 1, 2, 2)
    label = group % 2  # the island belongs to class 0
    label[39] = UNLABELED
    test = torch.tensor([36, 37])
    labeled = [0, 1, 3, 4]
    return TensorData(image, label, NAMES, test=test, labeled_indices=labeled, batch_size=16, labeled_batch_size=4)


def fit(run_dir, *callbacks, folder=None, backbone=None, warmup_epochs=0, **options):
    torch.manual_seed(0)
    data = make_data()
    views = {"weak": nn.Identity(), "strong": nn.Identity()}
    model = FewLabelClassifier(backbone or Pixels(), 2, **views, lr=0.1, warmup_epochs=warmup_epochs)
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[*callbacks, folder or RunFolder(run_dir, seed=7)],
        logger=RunLogger(run_dir),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, datamodule=data)
    return data, model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run") / "deep" / "er"
    refresh = RefreshPseudoLabels(k=10, metric="euclidean", whiten=False)
    data, model = fit(run_dir, refresh)
    with (run_dir / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return run_dir, data, model, rows, json.loads((run_dir / "results.json").read_text())


def test_statuses(run):
    _, data, _, rows, results = run
    assert [row["item"] for row in rows] == data.items
    island = [i for i in range(40) if i % 3 == 2 and i != 36 and i != 37]
    expected = ["pseudo"] * 40
    for i in island:
        expected[i] = "unreached"
    for i in (36, 37):
        expected[i] = "held_out"
    for i in (0, 1, 3, 4):
        expected[i] = "given"
    assert [row["status"] for row in rows] == expected
    assert results["graph"]["num_unreached"] == len(island)


def test_labels_are_the_classifiers_and_given_ones_are_kept(run):
    _, data, model, rows, _ = run
    with torch.no_grad():
        confidence, predicted = model.eval()(data.images.fetch(torch.arange(40))).softmax(1).max(1)
    for i, row in enumerate(rows):
        if row["status"] == "given":
            assert (row["label"], row["confidence"]) == (NAMES[int(data.given_label[i])], "1.0000")
        else:
            assert row["label"] == NAMES[int(predicted[i])]
            assert float(row["confidence"]) == pytest.approx(float(confidence[i]), abs=1e-4)


def test_scores_count_known_items_and_the_graph_fails_where_it_has_no_answer(run):
    _, data, _, rows, results = run
    truth = data.evaluator.label(torch.arange(40)).tolist()
    score = {(entry["on"], entry["key"]): entry for entry in results["scores"]}
    methods = {"classifier", "knn", "logistic_regression"}
    assert set(score) == {("unlabeled", "graph")} | {(on, key) for on in ("unlabeled", "test") for key in methods}
    for on, index in (("unlabeled", data.split.unlabeled.tolist()), ("test", [36, 37])):
        known = [i for i in index if truth[i] != UNLABELED]
        right = sum(rows[i]["label"] == NAMES[truth[i]] for i in known)
        entry = score[on, "classifier"]
        assert (entry["accuracy"], entry["num_items"]) == (right / len(known), len(known))
        assert entry["ci95"] == pytest.approx(wilson_interval(right, len(known)))
    # Item 39, whose truth nobody knows, is not counted; the graph is right exactly outside the island.
    assert score["unlabeled", "graph"]["num_items"] == 33
    reached = [i for i in data.split.unlabeled.tolist() if i % 3 != 2 and i != 39]
    assert score["unlabeled", "graph"]["accuracy"] == len(reached) / 33
    assert results["confusion"]["on"] == "unlabeled"
    assert sum(map(sum, results["confusion"]["matrix"])) == 33
    assert results["class_counts"]["given"] == [2, 2]
    assert results["class_counts"]["true"] is None


def test_probabilities_are_judged_where_the_truth_is_known(run):
    _, data, _, rows, results = run
    truth = data.evaluator.label(torch.arange(40)).tolist()
    known = [i for i in data.split.unlabeled.tolist() if truth[i] != UNLABELED]
    table, curve = results["per_class"], results["reliability"]
    assert (table["on"], curve["on"]) == ("unlabeled", "unlabeled")
    assert table["count"] == [sum(truth[i] == c for i in known) for c in (0, 1)]
    matrix = results["confusion"]["matrix"]
    assert table["recall"] == pytest.approx([matrix[c][c] / sum(matrix[c]) for c in (0, 1)])
    assert sum(curve["count"]) == len(known)
    sure = np.mean([float(rows[i]["confidence"]) for i in known])
    mean = sum(n * value for n, value in zip(curve["count"], curve["confidence"], strict=True)) / len(known)
    assert mean == pytest.approx(sure, abs=1e-4)


def test_what_deserves_a_look(run):
    _, data, _, _, results = run
    novel = [one["index"] for one in results["novel"]]
    # The island, which no label reaches, and nothing else; held-out images are nobody's business.
    assert set(novel) <= {i for i in range(40) if i % 3 == 2 and i not in (36, 37)}
    assert len(novel) == 12
    assert {one["note"] for one in results["novel"]} == {"no label reaches it"}
    assert results["suspicious"] == []
    asked = [one["index"] for one in results["to_label"]]
    assert set(asked) <= set(data.split.unlabeled.tolist())
    assert asked[0] % 3 == 2
    assert all("speaks for about" in one["note"] for one in results["to_label"])
    assert results["not_sought"] == []


def test_cross_validation_and_seconds(run):
    _, _, _, _, results = run
    checks = {check["key"]: check for check in results["cross_validation"]}
    assert set(checks) == {"graph", "knn", "logistic_regression"}
    assert checks["graph"]["accuracy"] == 1.0
    assert {"fit", "embed", "neighbors", "graph", "spread", "baselines"} <= set(results["seconds"])
    assert all(value >= 0 for value in results["seconds"].values())


def test_the_report_can_read_it(run):
    run_dir, data, _, _, _ = run
    results = read_results(run_dir)
    assert (results.data_name, results.seed, results.num_labeled) == (data.name, "7", 4)
    assert results.class_names == NAMES


def test_the_graph_head_holds_what_a_label_reached_and_answers_as_the_graph(run):
    run_dir, data, _, rows, results = run
    model = load_graph_classifier(run_dir, backbone=Pixels())
    reached = [i for i, row in enumerate(rows) if row["status"] in ("given", "pseudo")]
    assert len(model.graph_head.head.embedding) == len(reached) == results["graph"]["head_rows"]
    probability = model(data.images.fetch(torch.arange(40)))
    group = torch.arange(40) % 3
    mainland = group != 2
    assert torch.equal(probability.argmax(1)[mainland], group[mainland])
    _, is_far = model.graph_head.vote(model.classifier.embed(data.images.fetch(torch.arange(40))))
    assert is_far[~mainland].all()
    assert not is_far[data.split.pool][mainland[data.split.pool]].any()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
def test_a_run_whose_embeddings_have_collapsed_ends_with_its_files(value, metric, tmp_path):
    data, _ = fit(tmp_path, RefreshPseudoLabels(k=10, metric=metric), backbone=Collapsed(value))
    results = json.loads((tmp_path / "results.json").read_text())
    confidence = [float(row["confidence"]) for row in csv.DictReader((tmp_path / "predictions.csv").open(newline=""))]
    assert len(confidence) == 40
    assert np.isfinite(confidence).all()
    graph = load_graph_classifier(tmp_path, backbone=Collapsed(value))
    assert len(graph.graph_head.head.embedding) == results["graph"]["head_rows"]
    probability = graph(data.images.fetch(torch.arange(5)))
    torch.testing.assert_close(probability.sum(1), torch.ones(5))


def test_no_graph_head_is_kept_where_none_is_wanted(tmp_path):
    refresh = RefreshPseudoLabels(k=10, metric="euclidean", whiten=False)
    fit(tmp_path, refresh, folder=RunFolder(tmp_path, graph_head_rows=10))
    assert len(load_graph_head(tmp_path).head.embedding) == 10
    folder = RunFolder(tmp_path, graph_head_rows=0)
    fit(tmp_path, refresh, folder=folder)
    assert folder.results["graph"]["head_rows"] == 0
    assert not (tmp_path / "graph_head.safetensors").exists(), "one of an earlier ending fits other weights"
    with pytest.raises(ConfigError, match="graph_head_rows must be 0 or more; got -1"):
        RunFolder(tmp_path, graph_head_rows=-1)


def test_a_model_made_in_python_is_loaded_into_a_backbone(run):
    run_dir, data, model, _, _ = run
    with pytest.raises(ConfigError, match="does not say how to build the backbone"):
        load_classifier(run_dir)
    loaded = load_classifier(run_dir, backbone=Pixels())
    image = data.images.fetch(torch.arange(40))
    torch.testing.assert_close(loaded(image), model.eval()(image))


def test_a_run_without_a_graph_says_so(tmp_path):
    model_options = {"pseudo_weight": 0.0}
    torch.manual_seed(0)
    data = make_data()
    model = FewLabelClassifier(Pixels(), 2, weak=nn.Identity(), strong=nn.Identity(), lr=0.1, **model_options)
    folder = RunFolder(tmp_path, title="mine")
    trainer = Trainer(max_epochs=1, accelerator="cpu", callbacks=[folder], logger=False, enable_checkpointing=False)
    trainer.fit(model, datamodule=data)
    assert folder.results["graph"] is None
    assert folder.results["not_sought"] == []
    assert folder.results["title"] == "mine"
    assert "graph" not in {entry["key"] for entry in folder.results["scores"]}
    table = (tmp_path / "predictions.csv").read_text()
    assert "unreached" not in table
    assert table.count("pseudo") == 34


def test_the_end_of_a_run_is_computed_where_the_run_was(tmp_path, monkeypatch):
    """Lightning has moved the module to the CPU by then."""
    moved = []
    to, cpu, run_outcome = FewLabelClassifier.to, FewLabelClassifier.cpu, run_folder.run_outcome
    monkeypatch.setattr(
        FewLabelClassifier, "to", lambda self, *args, **how: moved.append(args) or to(self, *args, **how)
    )
    monkeypatch.setattr(FewLabelClassifier, "cpu", lambda self: moved.append("cpu") or cpu(self))
    monkeypatch.setattr(run_folder, "run_outcome", lambda *args: moved.append("outcome") or run_outcome(*args))
    fit(tmp_path / "run", RefreshPseudoLabels(k=4))
    assert moved[-4:] == ["cpu", (torch.device("cpu"),), "outcome", "cpu"]


def test_a_run_that_ends_in_its_warm_up_leaves_a_classifier(tmp_path):
    """Its head was never trained, so it is a logistic regression on the embeddings."""
    with pytest.warns(UserWarning, match="training ended within the warm-up, before the classifier was trained"):
        fit(tmp_path, RefreshPseudoLabels(k=3, whiten=False), warmup_epochs=3)
    scores = {(row.key, row.on): row.accuracy for row in read_results(tmp_path).scores}
    assert scores["classifier", "unlabeled"] == scores["logistic_regression", "unlabeled"] > 0.6
    assert scores["classifier", "test"] == scores["logistic_regression", "test"]
    # What predicts new images is the same.
    data = make_data()
    data.setup()
    logits = load_classifier(tmp_path, backbone=Pixels())(data.images.fetch(torch.arange(40)))
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, c in zip(rows, logits.argmax(1).tolist(), strict=True):
        assert row["status"] == "given" or row["label"] == NAMES[c]


def test_fast_dev_run_writes_nothing(tmp_path):
    fit(tmp_path / "run", RefreshPseudoLabels(k=4), fast_dev_run=1)
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_goes_on_with_its_metrics(tmp_path):
    first = RunLogger(tmp_path)
    first.log_metrics({"loss": 1.0, "epoch": 0}, step=1)
    first.save()
    second = RunLogger(tmp_path)
    second.log_metrics({"loss": 0.5, "accuracy": 0.25, "epoch": 1}, step=2)
    second.save()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["loss"], row["accuracy"]) for row in rows] == [("1", "1.0", ""), ("2", "0.5", "0.25")]
