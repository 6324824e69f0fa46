"""A folder of pictures and six labels in, a run folder out; its files agree with one another."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torchvision.datasets import cifar, stl10, svhn
from torchvision.models import resnet18

from lspread.cli.main import main
from lspread.cli.progress import EpochLines
from lspread.data import FashionMNIST, FewLabelSplit, decode_image
from lspread.lit.saved_model import load_classifier
from lspread.report import read_results
from tests.cli import test_domains as domains
from tests.cli import test_items as items
from tests.data import test_torchvision_images as benchmarks
from tests.data.test_medmnist import write as write_medmnist


def read_table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_file_is_there(finished_run):
    found = {str(path.relative_to(finished_run)) for path in finished_run.rglob("*") if path.is_file()}
    expected = {
        "checkpoints/last.ckpt",
        "config.yaml",
        "graph_head.safetensors",
        "metrics.csv",
        "model.json",
        "model.safetensors",
        "predictions.csv",
        "report.html",
        "results.json",
        "split.json",
        "versions.json",
    }
    assert {name for name in found if not name.startswith("thumbnails/")} == expected


def test_predictions_have_a_row_for_every_picture_and_keep_given_labels(finished_run, photos):
    rows = {row["item"]: row for row in read_table(finished_run / "predictions.csv")}
    assert sorted(rows) == sorted(photos.label)
    for file, row in rows.items():
        if file in photos.given:
            assert (row["label"], row["confidence"], row["status"]) == (photos.given[file], "1.0000", "given")
        else:
            assert row["status"] == ("held_out" if file in photos.val else "pseudo")
            assert 1 / 3 - 1e-4 <= float(row["confidence"]) <= 1


def test_results_agree_with_predictions_and_truth(finished_run, photos):
    rows = {row["item"]: row for row in read_table(finished_run / "predictions.csv")}
    results = read_json(finished_run / "results.json")
    data = results["data"]
    assert data["class_names"] == ["blue", "green", "red"]
    assert (data["num_items"], data["num_labeled"], data["num_unlabeled"], data["num_val"]) == (42, 6, 30, 6)
    assert data["image_shape"] == [3, 12, 12]
    assert results["class_counts"]["given"] == [2, 2, 2]
    unlabeled = Counter(row["label"] for row in rows.values() if row["status"] == "pseudo")
    assert results["class_counts"]["predicted"] == [unlabeled[name] for name in data["class_names"]]
    assert results["class_counts"]["true"] is None  # nobody told the run
    # The only truth beside the given labels is in val.csv.
    assert {score["on"] for score in results["scores"]} == {"val"}
    score = {score["key"]: score for score in results["scores"]}
    assert set(score) == {"classifier", "knn", "logistic_regression"}
    right = sum(rows[file]["label"] == label for file, label in photos.val.items())
    assert score["classifier"]["accuracy"] == right / 6
    assert np.trace(results["confusion"]["matrix"]) == right
    assert np.sum(results["confusion"]["matrix"]) == 6
    checks = {check["key"]: check for check in results["cross_validation"]}
    assert set(checks) == {"graph", "knn", "logistic_regression"}
    assert all(check["num_items"] == 6 for check in checks.values())
    # Colors are easy: what everybody can do must not come out as nonsense.
    assert score["knn"]["accuracy"] == 1


def test_shown_pictures_are_the_right_ones(finished_run, photos):
    rows = {row["item"]: row for row in read_table(finished_run / "predictions.csv")}
    results = read_json(finished_run / "results.json")
    assert {picture["item"] for picture in results["given"]} == set(photos.given)
    for kind in ("most_certain", "least_certain", "given"):
        for picture in results[kind]:
            row = rows[picture["item"]]
            assert picture["label"] == row["label"]
            assert picture["confidence"] == float(row["confidence"])
            thumbnail = np.asarray(Image.open(finished_run / picture["thumbnail"]))
            expected = decode_image(photos.root / picture["item"], 12, 3).permute(1, 2, 0).numpy()
            assert np.array_equal(thumbnail, expected)
    confidence = [float(row["confidence"]) for row in rows.values() if row["status"] == "pseudo"]
    assert results["most_certain"][0]["confidence"] == max(confidence)
    assert results["least_certain"][0]["confidence"] == min(confidence)
    # The most certain ones take turns by class: no class shows its second best before each has shown its best.
    labels = [picture["label"] for picture in results["most_certain"]]
    num_classes = len({row["label"] for row in rows.values() if row["status"] == "pseudo"})
    assert len(set(labels[:num_classes])) == min(num_classes, len(labels))


def test_map_is_a_principal_component_analysis(finished_run):
    place = read_json(finished_run / "results.json")["map"]
    assert len(place["x"]) == len(place["y"]) == len(place["label"]) == 36  # the pool
    assert sum(place["given"]) == 6
    xy = np.array([place["x"], place["y"]])
    assert abs(xy.mean(1)).max() < 1e-4
    covariance = np.cov(xy)
    assert abs(covariance[0, 1]) < 1e-4
    assert covariance[0, 0] >= covariance[1, 1]
    assert 0 < place["explained"] <= 1


def test_split_versions_metrics_and_report(finished_run, photos):
    split = FewLabelSplit.load(finished_run / "split.json")
    items = sorted(photos.label)
    assert {items[i] for i in split.labeled.tolist()} == set(photos.given)
    assert {items[i] for i in split.val.tolist()} == set(photos.val)
    versions = read_json(finished_run / "versions.json")
    assert versions["torch"] == torch.__version__.split("+")[0] or versions["torch"] == torch.__version__
    assert {"python", "lightning", "lspread", "os"} <= set(versions)
    metrics = read_table(finished_run / "metrics.csv")
    assert {row["epoch"] for row in metrics} == {"0", "1", "2", "3"}
    page = (finished_run / "report.html").read_text(encoding="utf-8")
    assert read_results(finished_run).title in page
    assert "42" in page


def test_config_is_complete_and_makes_the_same_model(finished_run, photos):
    config = yaml.safe_load((finished_run / "config.yaml").read_text())
    assert config["run_dir"] == str(finished_run)
    assert config["data"]["init_args"]["root"] == str(photos.root)
    assert config["model"]["backbone"]["init_args"]["widths"] == [8, 16]
    assert config["seed_everything"] == 0
    assert config["graph_head_rows"] == 20_000
    assert config["trainer"]["precision"] == "auto"


def test_saved_model_predicts_what_the_table_says(finished_run, photos):
    rows = {row["item"]: row for row in read_table(finished_run / "predictions.csv")}
    model = load_classifier(finished_run)
    files = [file for file in photos.label if file not in photos.given]
    image = torch.stack([decode_image(photos.root / file, 12, 3) for file in files])
    with torch.no_grad():
        confidence, c = model(image).softmax(1).max(1)
    assert [model.class_names[i] for i in c.tolist()] == [rows[file]["label"] for file in files]
    expected = torch.tensor([float(rows[file]["confidence"]) for file in files])
    torch.testing.assert_close(confidence, expected, atol=2e-3, rtol=0)


def test_summary_is_printed_last(finished_run, photos, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    (copy / "report.html").unlink()
    assert main(["report", str(copy)]) == 0
    assert capsys.readouterr().out == f"{copy / 'report.html'}\n"
    assert (copy / "report.html").stat().st_size > 10_000
    assert main(["fit", str(copy), "--trainer.max_epochs", "5"]) == 0
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert lines[-1].strip().startswith(str(copy / "checkpoints" / "last.ckpt"))
    text = "\n".join(lines)
    for name in ("report.html", "predictions.csv", "model.safetensors"):
        assert str(copy / name) in text
    assert "trained classifier" in text
    assert "logistic regression on the same embeddings" in text
    assert "precision: " in text
    # One epoch more than before, on top of the old ones.
    assert {row["epoch"] for row in read_table(copy / "metrics.csv")} == {"0", "1", "2", "3", "4"}


def test_a_finished_run_that_has_nothing_left_to_train_keeps_its_averaged_weights(finished_run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    assert main(["fit", str(copy)]) == 0
    assert "epoch " not in capsys.readouterr().out.split("method")[0]
    for name in ("model.safetensors", "predictions.csv", "metrics.csv"):
        assert (copy / name).read_bytes() == (finished_run / name).read_bytes(), name


def test_labels_that_came_after_the_end_are_said_to_be_unlearned(finished_run, photos, tmp_path, capsys):
    copy, labels = tmp_path / "run", tmp_path / "labels.csv"
    shutil.copytree(finished_run, copy)
    new = [file for file in photos.label if file not in photos.given and file not in photos.val][:2]
    with labels.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([("file", "label"), *[(f, photos.label[f]) for f in (*photos.given, *new)]])
    asked = ["fit", str(copy), "--data.labels_csv", str(labels)]
    note = "has not learned 2 of these labels"
    for _ in range(2):  # being told of them is not learning them
        with pytest.warns(UserWarning, match="2 of the given labels were added or changed after training had ended"):
            assert main(asked) == 0
        assert note in " ".join(capsys.readouterr().out.split())
    assert note in (copy / "report.html").read_text(encoding="utf-8")
    assert {row["item"] for row in read_table(copy / "predictions.csv") if row["status"] == "given"} >= set(new)
    assert main([*asked, "--trainer.max_epochs", "5"]) == 0
    assert note not in " ".join(capsys.readouterr().out.split())
    assert read_json(copy / "results.json")["data"]["num_unlearned"] == 0


def test_settings_of_a_resumed_run_start_another_one_from_scratch(finished_run, photo_arguments, tmp_path, capsys):
    copy, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(finished_run, copy)
    assert main(["fit", str(copy), "--trainer.max_epochs", "5"]) == 0
    config = yaml.safe_load((copy / "config.yaml").read_text())
    assert (config["ckpt_path"], config["trainer"]["max_epochs"]) == (None, 5)
    assert main(["fit", "--config", str(copy / "config.yaml"), "--run_dir", str(other)]) == 0
    assert {row["epoch"] for row in read_table(other / "metrics.csv")} == {"0", "1", "2", "3", "4"}


def test_a_finished_run_is_not_overwritten(finished_run, photo_arguments, capsys):
    before = (finished_run / "results.json").read_bytes()
    assert main(photo_arguments(finished_run)) == 1
    said = capsys.readouterr().err
    assert f"{finished_run} already holds a run. Go on with it: lspread fit {finished_run}" in said
    assert (finished_run / "results.json").read_bytes() == before


def test_nobody_is_told_to_go_on_with_a_run_that_has_no_checkpoint(finished_run, photo_arguments, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    shutil.copyfile(finished_run / "config.yaml", tmp_path / "run" / "config.yaml")
    assert main(photo_arguments(tmp_path / "run")) == 1
    said = capsys.readouterr().err
    assert "already holds a run. It ended before its first checkpoint: remove the folder, or choose another." in said


def test_validate_and_predict_leave_the_run_as_it_is(finished_run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert main(["validate", str(copy)]) == 0
    printed = capsys.readouterr().out
    score = next(s for s in read_json(copy / "results.json")["scores"] if s["key"] == "classifier")
    assert "val_accuracy" in printed
    assert f"{score['accuracy']:.4f}"[:5] in printed
    assert main(["predict", str(copy)]) == 0
    path = copy / "predict.csv"
    assert str(path) in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before
    kinds = {"pseudo", "unreached"}
    for old, new in zip(read_table(copy / "predictions.csv"), read_table(path), strict=True):
        assert (old["item"], old["label"]) == (new["item"], new["label"])
        assert old["status"] == new["status"] or {old["status"], new["status"]} == kinds
        assert float(old["confidence"]) == pytest.approx(float(new["confidence"]), abs=2e-3)


def test_testing_needs_items_that_were_kept_for_it(finished_run, capsys):
    assert main(["test", str(finished_run)]) == 1
    said = capsys.readouterr().err
    assert "nothing to test: no item of my photos was kept for test" in said
    assert f"`lspread predict {finished_run}` labels all items" in said
    assert main(["validate", str(finished_run), "--data.val_csv", "null"]) == 1
    assert "was kept for validation" in capsys.readouterr().err


def test_testing_needs_a_trained_run(tmp_path, capsys):
    assert main(["test", str(tmp_path)]) == 1
    assert "run folder with config.yaml and checkpoints/last.ckpt" in capsys.readouterr().err
    assert main(["test", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true", "transformer-engine"])
def test_precisions_that_no_run_could_train_in_are_refused(precision, photo_arguments, tmp_path, capsys):
    assert main(photo_arguments(tmp_path / "run", "--trainer.precision", precision)) == 2
    said = capsys.readouterr().err
    assert '"trainer.precision"' in said
    assert f"Got value: {precision}" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,label\n", "label"),
        ("file,label\n01 picture.png,green\n02 picture.png,green\n", "one class only"),
        ("file,label\nnot there.png,green\n01 picture.png,red\n", "not there.png"),
    ],
)
def test_bad_labels_are_explained_before_training(table, message, photos, photo_arguments, tmp_path, capsys):
    labels = tmp_path / "labels.csv"
    labels.write_text(table)
    run_dir = tmp_path / "run"
    arguments = photo_arguments(run_dir, "--data.labels_csv", str(labels), "--data.val_csv", "null")
    assert main(arguments) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("lspread: error: ")
    assert message in printed.lower()
    assert not (run_dir / "checkpoints").exists()


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(photo_arguments, tmp_path, monkeypatch, capsys):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    # Equal to float32's last digits, whatever this CPU would choose: bfloat16 rounds away more than is compared here.
    exact = ("--trainer.precision", "32-true")
    assert main(photo_arguments(whole, *exact)) == 0
    on_train_epoch_start = EpochLines.on_train_epoch_start

    def press_ctrl_c(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt
        on_train_epoch_start(self, trainer, pl_module)

    monkeypatch.setattr(EpochLines, "on_train_epoch_start", press_ctrl_c)
    assert main(photo_arguments(halves, *exact)) == 130
    printed = capsys.readouterr().err
    command = f"lspread fit --config {halves}/config.yaml --ckpt_path {halves}/checkpoints/last.ckpt"
    assert command in printed
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert not (halves / "results.json").exists()
    monkeypatch.setattr(EpochLines, "on_train_epoch_start", on_train_epoch_start)
    assert main(command.split()[1:]) == 0
    expected, found = load_file(whole / "model.safetensors"), load_file(halves / "model.safetensors")
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")
    assert (whole / "predictions.csv").read_text() == (halves / "predictions.csv").read_text()


@pytest.mark.parametrize(("epoch", "batch"), [(0, 1), (1, 1), (2, 0)])
def test_a_run_interrupted_inside_an_epoch_goes_on(epoch, batch, photo_arguments, tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "run"

    def press_ctrl_c(self, trainer, pl_module, *others):
        if (trainer.current_epoch, others[-1]) == (epoch, batch):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EpochLines, "on_train_batch_start", press_ctrl_c)
        assert main(photo_arguments(run_dir)) == 130
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2 * epoch + batch
    capsys.readouterr()
    start = time.perf_counter()
    assert main(["fit", str(run_dir)]) == 0
    seconds = re.findall(r"^epoch \d+/\d+  ([\d.]+) s", capsys.readouterr().out, re.MULTILINE)
    # The epoch that went on counts from there, not from the start of the process's clock.
    assert len(seconds) == 4 - epoch
    assert max(map(float, seconds)) <= time.perf_counter() - start
    assert (run_dir / "report.html").exists()
    assert torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 8


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a child process")
def test_ctrl_c_inside_an_epoch_leaves_a_run_that_can_go_on(photo_arguments, tmp_path):
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "lspread", *photo_arguments(run_dir, "--trainer.max_epochs", "100000")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell may have started the tests with SIGINT ignored, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        for line in process.stdout:
            if line.startswith("epoch 4/"):
                break
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, printed
    assert f"lspread fit --config {run_dir}/config.yaml --ckpt_path {run_dir}/checkpoints/last.ckpt" in printed
    assert "Traceback" not in printed
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] >= 4
    stop = str(checkpoint["epoch"] + 2)
    assert main(["fit", str(run_dir), "--trainer.max_epochs", stop]) == 0
    assert (run_dir / "report.html").exists()


def write_fashion(folder):
    """Write four idx files with 200 training and 40 test images."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 200), ("t10k", 40)):
        label = np.arange(count) % 10
        image = draw.integers(0, 60, (count, 28, 28)) + 15 * label[:, None, None]
        for kind, array, rank in (("images", image, 3), ("labels", label, 1)):
            header = bytes([0, 0, 8, rank]) + b"".join(int(size).to_bytes(4, "big") for size in array.shape)
            (folder / f"{part}-{kind}-idx{rank}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())


CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = ["digits", "fashion_mnist", "fashion_mnist_10min", "image_folder", "pretrained"]
BENCHMARKS = ["cifar10", "cifar100", "image_classes", "medical_images", "medmnist", "stl10", "svhn", "table", "text"]


def test_no_settings_file_is_forgotten():
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == sorted(FILES + BENCHMARKS)


@pytest.mark.parametrize("name", FILES)
def test_every_settings_file_builds_and_takes_a_step(name, photos, tmp_path, config_path):
    arguments = ["fit", "--config", config_path(name), "--run_dir", str(tmp_path / "run"), "--trainer.accelerator=cpu"]
    config = yaml.safe_load(Path(config_path(name)).read_text(encoding="utf-8"))
    warmup = config["model"]["warmup_epochs"]
    # One step of each stage: the contrastive one, if there is one, and the one with pseudo-labels.
    arguments += ["--trainer.limit_train_batches=1", f"--model.warmup_epochs={min(1, warmup)}"]
    arguments += [f"--trainer.max_epochs={1 + min(1, warmup)}", "--data.batch_size=32"]
    if config["data"]["class_path"] == "lspread.data.FashionMNIST":
        write_fashion(tmp_path)
        arguments += ["--data.root", str(tmp_path)]
        assert FashionMNIST(str(tmp_path)).num_classes == 10
    if name in ("image_folder", "pretrained"):
        arguments += ["--data.root", str(photos.root)]
    if name == "pretrained":
        weights = tmp_path / "resnet18.pth"
        torch.save(resnet18(num_classes=3).state_dict(), weights)
        arguments += ["--model.backbone.checkpoint", str(weights), "--data.image_size=32"]
        arguments += ["--trainer.max_epochs=5"]  # two of them with all of the network
    assert main(arguments) == 0
    results = read_results(tmp_path / "run")
    assert results.graph
    assert results.num_labeled == {"digits": 10, "image_folder": 6, "pretrained": 6}.get(name, 100)


def write_benchmark(name, folder, monkeypatch):
    """Write tiny files in the layout of a benchmark, and return the options that name them."""
    if name == "medmnist":
        return ["--data.path", write_medmnist(folder / "some.npz", color=True), "--data.num_labels_per_class=2"]
    if name == "table":
        return ["--data.path", str(domains.write_cancer(folder / "t.csv")), "--data.num_labels_per_class=5"]
    if name == "text":
        return ["--data.path", str(items.write(folder / "t.csv", ["text", "label"], items.TEXTS))]
    if name == "medical_images":
        domains.write_scans(folder / "scans")
        return ["--data.root", str(folder / "scans"), "--data.image_size=8"]
    if name == "image_classes":
        for number in range(40):
            path = folder / "photos" / f"n{number % 2:08d}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((12, 12, 3), 100 * (number % 2) + number, dtype=np.uint8)).save(path)
        small = ["--data.image_size=32", "--data.num_labels_per_class=2", "--data.val_fraction=0.1"]
        return ["--data.root", str(folder / "photos"), *small, "--model.backbone.name=torchvision/resnet18"]
    for module in (cifar, stl10, svhn):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).is_file())
    benchmarks.write(name, folder)
    smaller = ["--model.backbone.widths=[4,8]", "--model.backbone.blocks_per_stage=1", "--data.num_labels_per_class=1"]
    return ["--data.root", str(folder), *smaller]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_builds_and_takes_a_step(name, tmp_path, config_path, monkeypatch):
    arguments = ["fit", "--config", config_path(name), "--run_dir", str(tmp_path / "run"), "--trainer.accelerator=cpu"]
    arguments += ["--trainer.limit_train_batches=1", "--model.warmup_epochs=1", "--trainer.max_epochs=2"]
    arguments += ["--data.batch_size=16", "--data.labeled_batch_size=8", *write_benchmark(name, tmp_path, monkeypatch)]
    assert main(arguments) == 0
    results = read_results(tmp_path / "run")
    assert results.graph
    losses = {key for row in read_table(tmp_path / "run" / "metrics.csv") for key, value in row.items() if value}
    assert {"contrastive_loss", "pseudo_loss", "supervised_loss"} <= losses


METHODS = sorted((CONFIGS / "methods").glob("*.yaml"))


@pytest.mark.parametrize("path", METHODS, ids=[path.stem for path in METHODS])
def test_every_method_builds_and_takes_a_step(path, tmp_path, config_path):
    write_fashion(tmp_path)
    arguments = ["fit", "--config", config_path("fashion_mnist"), "--config", str(path), "--data.root", str(tmp_path)]
    arguments += ["--run_dir", str(tmp_path / "run"), "--trainer.accelerator=cpu", "--trainer.limit_train_batches=1"]
    arguments += ["--model.warmup_epochs=0", "--trainer.max_epochs=1", "--data.batch_size=32"]
    assert main(arguments) == 0
    metrics = read_table(tmp_path / "run" / "metrics.csv")
    losses = {name for row in metrics for name, value in row.items() if name.endswith("_loss") and value}
    expected = {
        "supervised": set(),
        "linear_probe": set(),
        "pseudo_label": {"confident_loss"},
        "mean_teacher": {"teacher_loss"},
        "fixmatch": {"confident_loss"},
        "lp_deepssl": {"pseudo_loss"},
        "gll": {"spread_loss"},
    }
    assert losses == {"train_loss", "supervised_loss"} | expected[path.stem]


def test_lp_deepssl_is_as_published_whatever_the_data_file_says(tmp_path, config_path):
    write_fashion(tmp_path)
    files = ["--config", config_path("fashion_mnist"), "--config", config_path("methods/lp_deepssl")]
    arguments = ["fit", *files, "--data.root", str(tmp_path), "--run_dir", str(tmp_path / "run")]
    arguments += ["--trainer.accelerator=cpu", "--trainer.limit_train_batches=1", "--model.warmup_epochs=0"]
    assert main([*arguments, "--trainer.max_epochs=1", "--data.batch_size=32"]) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    refresh = config["trainer"]["callbacks"][0]["init_args"]
    published = {"k": 50, "alpha": 0.99, "metric": "cosine", "kernel": "cosine", "whiten": False, "balance": False}
    published |= {"prior": "none", "reinforce": 0, "every_n_epochs": 1, "symmetrize": "mean"}
    assert {name: refresh[name] for name in published} == published
    model = config["model"]
    assert (model["mixup"], model["pseudo_weight"], model["pseudo_reduction"]) == (0.0, 1.0, "mean")


def test_a_method_for_ten_classes_is_refused_before_training(photo_arguments, config_path, tmp_path, capsys):
    gll = ["--config", config_path("methods/gll")]
    assert main([*photo_arguments(tmp_path / "run"), *gll]) == 1
    assert "Set --model.spread_layer.init_args.num_classes 3." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    fitting = [*gll, "--model.spread_layer.init_args.num_classes=3", "--model.spread_layer.init_args.k=5"]
    assert main([*photo_arguments(tmp_path / "run"), *fitting]) == 0


def test_a_run_starts_another_one_that_holds_its_network(finished_run, photo_arguments, photos, tmp_path):
    config = yaml.safe_load((finished_run / "config.yaml").read_text(encoding="utf-8"))
    options = {name: value for name, value in config["model"]["backbone"]["init_args"].items() if name != "in_channels"}
    options |= {"name": "small_resnet", "checkpoint": str(finished_run / "model.safetensors"), "freeze": True}
    start = tmp_path / "start.yaml"
    backbone = {"class_path": "lspread.nn.NamedBackbone", "init_args": options}
    start.write_text(yaml.safe_dump({"model": {"backbone": backbone, "warmup_epochs": 0, "contrastive_weight": 0.0}}))
    run_dir = tmp_path / "run"
    assert main([*photo_arguments(run_dir), "--config", str(start)]) == 0
    first, second = (load_file(folder / "model.safetensors") for folder in (finished_run, run_dir))
    for name, value in first.items():
        if name.startswith("backbone."):
            torch.testing.assert_close(second[name.replace("backbone.", "backbone.network.")], value, rtol=0, atol=0)
    # What was saved says how to build the network, and needs the first run no more.
    assert json.loads((run_dir / "model.json").read_text())["backbone"]["init_args"].get("checkpoint") is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # its weights are no random ones
        assert load_classifier(run_dir).backbone.is_frozen


def test_demo_is_the_digits_file(tmp_path, capsys):
    run_dir = tmp_path / "run"
    quick = ["--trainer.max_epochs=2", "--model.warmup_epochs=1", "--trainer.limit_train_batches=1"]
    assert main(["demo", "--seed", "3", "--run_dir", str(run_dir), *quick]) == 0
    printed = capsys.readouterr().out
    assert "ten of them labeled" in printed
    assert "digits.yaml" in printed
    rows = read_table(run_dir / "predictions.csv")
    assert len(rows) == 1797
    assert sorted(row["label"] for row in rows if row["status"] == "given") == list("0123456789")
    assert printed.rstrip().splitlines()[-1].strip().startswith(str(run_dir))
    assert main(["demo", "--help"]) == 0
