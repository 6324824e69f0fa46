"""`lspread predict RUN IMAGES`: new pictures of a finished run, good ones, broken ones and strange ones."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from lspread.cli.config import bundled_config
from lspread.cli.main import main
from lspread.cli.summary import format_summary
from lspread.data import decode_image
from lspread.lit import load_classifier, load_graph_classifier
from tests.cli.conftest import COLORS


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def new(tmp_path):
    """Nine colored pictures of two sizes in a folder and in one below it, one of noise, and two that are none."""
    folder = tmp_path / "new ones"
    (folder / "deeper").mkdir(parents=True)
    draw = np.random.default_rng(1)
    for number in range(9):
        pixel = np.array(list(COLORS.values())[number % 3]) + draw.normal(0, 25, (12 + number, 12, 3))
        name = f"{'deeper/' if number > 5 else ''}{number}.png"
        Image.fromarray(pixel.clip(0, 255).astype(np.uint8)).save(folder / name)
    Image.fromarray(draw.integers(0, 2, (12, 12, 3)).astype(np.uint8) * 255).save(folder / "noise.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "deeper" / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("not an image, not looked at")
    return folder


@pytest.mark.parametrize("head", ["classifier", "graph"])
def test_new_images_get_the_answers_of_the_saved_network(finished_run, new, tmp_path, capsys, head):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["predict", str(run), str(new), "--head", head, "--batch-size", "4"]) == 0
    printed = capsys.readouterr()
    table = run / f"predictions-new ones{'-graph' if head == 'graph' else ''}" / "predictions.csv"
    assert f"wrote {table}" in printed.out
    assert f"10 images of {new}, labeled by the {head} (mean confidence " in printed.out
    assert f"left out, unreadable: {new / 'broken.jpg'}: its content is not a known image format" in printed.err
    assert f"left out, unreadable: {new / 'deeper' / 'empty.png'}: the file is empty" in printed.err
    rows = read(table)
    files = ["0.png", "1.png", "2.png", "3.png", "4.png", "5.png", "deeper/6.png", "deeper/7.png", "deeper/8.png"]
    assert [row["file"] for row in rows] == [*files, "noise.png"]
    image = torch.stack([decode_image(new / row["file"], 12, 3) for row in rows])
    graph = load_graph_classifier(run)
    with torch.no_grad():
        z = graph.classifier.embed(image)
        probability = graph.graph_head(z) if head == "graph" else load_classifier(run)(image).softmax(1)
        is_far = graph.graph_head.vote(z)[1]
    confidence, label = probability.max(1)
    assert [row["label"] for row in rows] == [graph.class_names[c] for c in label.tolist()]
    assert [float(row["confidence"]) for row in rows] == pytest.approx(confidence.tolist(), abs=1e-4)
    assert {row["head"] for row in rows} == {head}
    assert [row["far"] for row in rows] == ["yes" if far else "no" for far in is_far.tolist()]
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_on_images_says_how_its_graph_labels_new_ones(finished_run):
    assert "lspread predict RUN IMAGES --head graph" in format_summary(finished_run)


def test_json_for_scripts(finished_run, new, tmp_path, capsys):
    assert main(["predict", str(finished_run), str(new), "-o", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = read(tmp_path / "out" / "predictions.csv")
    assert found["output"] == str(tmp_path / "out" / "predictions.csv")
    assert (found["head"], found["num_images"]) == ("classifier", 10)
    counted = {name: sum(row["label"] == name for row in rows) for name in ("blue", "green", "red")}
    assert found["labels"] == counted
    assert found["num_far"] == sum(row["far"] == "yes" for row in rows)
    assert found["mean_confidence"] == pytest.approx(np.mean([float(row["confidence"]) for row in rows]), abs=1e-3)
    assert found["unreadable"] == [str(new / "broken.jpg"), str(new / "deeper" / "empty.png")]


def test_one_file(finished_run, new, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    assert main(["predict", str(run), str(new / "4.png")]) == 0
    (row,) = read(run / "predictions-4" / "predictions.csv")
    assert row["file"] == "4.png"
    printed = capsys.readouterr().out
    assert f"1 image of {new / '4.png'}, labeled by the classifier (mean" in printed
    assert f"  {row['label']}: 1\n" in printed


def test_runs_without_training_embeddings(finished_run, new, tmp_path, capsys):
    run = tmp_path / "older"
    shutil.copytree(finished_run, run)
    (run / "graph_head.safetensors").unlink()
    assert main(["predict", str(run), str(new)]) == 0
    assert "far is not known" in capsys.readouterr().out
    rows = read(run / "predictions-new ones" / "predictions.csv")
    assert {row["far"] for row in rows} == {""}
    assert main(["predict", str(run), str(new), "--head", "graph"]) == 1
    assert f"{run} has no graph_head.safetensors" in capsys.readouterr().err
    # What the message says to do helps, and trains nothing.
    weights = load_file(run / "model.safetensors")
    assert main(["fit", str(run)]) == 0
    capsys.readouterr()
    for name, value in load_file(run / "model.safetensors").items():
        torch.testing.assert_close(value, weights[name], rtol=1e-5, atol=1e-7)
    assert main(["predict", str(run), str(new), "--head", "graph"]) == 0
    assert main(["fit", str(run), "--graph_head_rows", "10"]) == 0
    assert "keeps 10 of 36 training images (--graph_head_rows)" in capsys.readouterr().out
    assert len(load_graph_classifier(run).graph_head.head.embedding) == 10


def test_an_older_settings_file_is_read(finished_run, tmp_path, capsys):
    run = tmp_path / "older"
    shutil.copytree(finished_run, run)
    config = run / "config.yaml"
    config.write_text("\n".join(line for line in config.read_text().split("\n") if "graph_head_rows" not in line))
    assert main(["predict", str(run)]) == 0
    assert f"labels of 42 items: {run / 'predict.csv'}" in capsys.readouterr().out


def test_tables_of_the_run_and_of_other_images_are_not_replaced(finished_run, new, tmp_path, capsys):
    run, other = tmp_path / "run", tmp_path / "elsewhere" / new.name
    shutil.copytree(finished_run, run)
    shutil.copytree(new, other)
    before = (run / "predictions.csv").read_bytes()
    assert main(["predict", str(run), str(new), "-o", str(tmp_path / "nowhere" / ".." / "run")]) == 1
    assert "is the run itself; choose another folder" in capsys.readouterr().err
    assert (run / "predictions.csv").read_bytes() == before
    for _ in range(2):  # the same images again
        assert main(["predict", str(run), str(new)]) == 0
    table = run / f"predictions-{new.name}" / "predictions.csv"
    before = table.read_bytes()
    capsys.readouterr()
    assert main(["predict", str(run), str(other)]) == 1
    assert f"{table} is of {new}, and would be replaced by the labels of {other}" in capsys.readouterr().err
    assert table.read_bytes() == before
    assert main(["predict", str(run), str(new), "-o", str(finished_run)]) == 1
    assert f"{finished_run / 'predictions.csv'} is not of this command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{run}", "{nothing}"], 1, "There is no folder and no image"),
        (["{run}", "{empty}"], 1, "There are no images under"),
        (["{run}", "{new}/broken.jpg"], 1, "None of the 1 image files of"),
        (["{empty}", "{new}"], 1, "has no model.json"),
        (["{run}", "{table}"], 1, "the run was trained on images, and"),
        (["{run}", "{new}", "--id=name"], 1, "--id names a column of a CSV file, but"),
        (["{run}", "{new}", "--batch-size=0"], 1, "--batch-size must be at least 1; got 0"),
        (["{run}", "{new}", "--device=gpu9"], 1, "--device gpu9 cannot be used here"),
        (["{run}", "--json"], 2, "the following arguments are required: NEW"),
        (["{run}", "{new}", "--head=knn"], 2, "invalid choice: 'knn'"),
        (["{run}", "{new}", "--model.lr=1"], 2, "unrecognized arguments: --model.lr=1"),
    ],
)
def test_errors_say_what_to_do(finished_run, new, tmp_path, capsys, arguments, code, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("x\n1\n")
    places = {"run": finished_run, "new": new, "nothing": tmp_path / "nothing", "empty": tmp_path / "empty"}
    places["table"] = tmp_path / "table.csv"
    assert main(["predict", *(part.format(**places) for part in arguments)]) == code
    assert message in capsys.readouterr().err
    assert not list(finished_run.glob("predictions-*"))


def test_images_that_are_no_squares_are_refused(finished_run, new, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    spec = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(json.dumps({**spec, "image_shape": [3, 12, 20]}))
    assert main(["predict", str(run), str(new)]) == 1
    assert "was trained on images of 12 x 20 pixels" in capsys.readouterr().err


def test_a_log_file_gets_no_bar(finished_run, new, tmp_path):
    command = [sys.executable, "-m", "lspread", "predict", str(finished_run), str(new), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert [line.startswith("left out, unreadable") for line in done.stderr.splitlines()] == [True, True]


@pytest.mark.slow
def test_heads_are_about_as_good_on_digits_that_nobody_trained_on(tmp_path, capsys):
    X, y = load_digits(return_X_y=True)
    true = {}
    for number in range(1797):
        part = tmp_path / ("new" if number >= 1400 else "train")
        part.mkdir(exist_ok=True)
        name = f"{number:04d}.png"
        Image.fromarray((X[number].reshape(8, 8) * 15).astype(np.uint8)).save(part / name)
        true[name] = f"digit {y[number]}"
    few = [name for c in range(10) for name in [n for n, kind in true.items() if kind == f"digit {c}"][:4]]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *((name, true[name]) for name in few)])
    config = bundled_config("digits").read_text().split("data:\n")[0]
    config += "data:\n  class_path: lspread.data.ImageFolder\n  init_args: {image_size: 8, in_channels: 1}\n"
    config += "model:\n" + bundled_config("digits").read_text().split("\nmodel:\n")[1]
    (tmp_path / "config.yaml").write_text(config)
    options = ["--data.root", tmp_path / "train", "--data.labels_csv", tmp_path / "labels.csv"]
    run = ["--trainer.accelerator=cpu", "--run_dir", tmp_path / "run"]
    assert main([str(part) for part in ("fit", "--config", tmp_path / "config.yaml", *options, *run)]) == 0
    accuracy = {}
    for head in ("classifier", "graph"):
        folder = tmp_path / head
        arguments = ["predict", tmp_path / "run", tmp_path / "new", "--head", head, "-o", folder, "--json"]
        capsys.readouterr()
        assert main([str(part) for part in arguments]) == 0
        rows = read(folder / "predictions.csv")
        assert len(rows) == 397
        assert sum(row["far"] == "yes" for row in rows) < 40
        accuracy[head] = np.mean([row["label"] == true[row["file"]] for row in rows])
    assert min(accuracy.values()) > 0.8
    assert accuracy["graph"] > accuracy["classifier"] - 0.03
