"""`embed`, `spread`, `suggest`, `audit`, `doctor`: from files to files, on real pictures, texts and tables."""

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_breast_cancer, load_digits

from lspread.cli import audit as audit_module
from lspread.cli import embed as embed_module
from lspread.cli import spread as spread_module
from lspread.cli.main import main
from lspread.data import EmbeddedItems, FolderImages, decode_image
from lspread.data.features import pixel_features
from lspread.lit import load_classifier, load_graph_classifier

TEXTS = [
    ("the goalkeeper saved the penalty in the last minute of the match", "sport"),
    ("our team won the match after a late goal", "sport"),
    ("the striker scored a goal and the team won the cup", "sport"),
    ("the coach praised the team after the match", "sport"),
    ("fans sang while the striker took the penalty", "sport"),
    ("a late penalty decided the cup match", "sport"),
    ("the goalkeeper and the coach left the team", "sport"),
    ("the match ended without a goal", "sport"),
    ("the team trains for the cup with a new coach", "sport"),
    ("the striker missed the goal in the match", "sport"),
    ("simmer the sauce with garlic and tomato", "food"),
    ("bake the bread in a hot oven", "food"),
    ("add salt and garlic to the soup", "food"),
    ("the oven bakes bread with butter and salt", "food"),
    ("stir the tomato soup and simmer with butter", "food"),
    ("a sauce of butter, garlic and salt", "food"),
    ("slice the bread and toast with garlic butter", "food"),
    ("serve the soup with fresh bread", "food"),
    ("tomato sauce needs garlic, oil and salt", "food"),
    ("bake tomato and bread in the oven", "food"),
]


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def call(capsys, *arguments):
    """Run a command that must succeed, and return what it printed."""
    capsys.readouterr()
    assert main([str(part) for part in arguments]) == 0
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """300 real digits as PNG files, their classes, and a labels file with three per class."""
    folder = tmp_path_factory.mktemp("digits")
    (folder / "photos").mkdir()
    X, y = load_digits(return_X_y=True)
    true = {}
    for number in range(300):
        name = f"{number:03d}.png"
        Image.fromarray((X[number].reshape(8, 8) * 15).astype(np.uint8)).save(folder / "photos" / name)
        true[name] = f"digit {y[number]}"
    given = [name for c in range(10) for name in [n for n, kind in true.items() if kind == f"digit {c}"][:3]]
    write(folder / "labels.csv", ["file", "label"], [[name, true[name]] for name in given])
    assert main(["embed", str(folder / "photos"), "-o", str(folder / "z.safetensors"), "--image-size=8"]) == 0
    return folder, true, given


def test_embed_pixels_are_the_features_of_each_image(digits):
    folder, true, _ = digits
    items = EmbeddedItems.load(folder / "z.safetensors")
    assert items.items == sorted(true)
    assert (items.kind, items.metric, items.root) == ("image", "cosine", str((folder / "photos").resolve()))
    image = FolderImages([folder / "photos" / name for name in items.items], 8, 3).fetch(torch.arange(300))
    torch.testing.assert_close(items.embedding, pixel_features(image))
    assert not list(folder.glob("*.part*"))


def test_embed_goes_on_where_it_stopped(digits, tmp_path, monkeypatch, capsys):
    folder, _, _ = digits
    monkeypatch.setattr(embed_module, "PART", 100)
    done = []
    real = embed_module._embed_part

    def stop_in_the_third(images, rows, *others):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(int(rows[0]))
        return real(images, rows, *others)

    arguments = ["embed", str(folder / "photos"), "-o", str(tmp_path / "z.safetensors"), "--image-size=8"]
    monkeypatch.setattr(embed_module, "_embed_part", stop_in_the_third)
    assert main(arguments) == 130
    assert not (tmp_path / "z.safetensors").exists()
    later = []
    monkeypatch.setattr(
        embed_module, "_embed_part", lambda images, rows, *o: later.append(int(rows[0])) or real(images, rows, *o)
    )
    assert main(arguments) == 0
    assert (done, later) == ([0, 100], [200])
    found = EmbeddedItems.load(tmp_path / "z.safetensors").embedding
    torch.testing.assert_close(found, EmbeddedItems.load(folder / "z.safetensors").embedding)
    # Parts of another source are not taken.
    monkeypatch.setattr(embed_module, "_embed_part", stop_in_the_third)
    done.clear()
    assert main(arguments) == 130
    later.clear()
    monkeypatch.setattr(
        embed_module, "_embed_part", lambda images, rows, *o: later.append(int(rows[0])) or real(images, rows, *o)
    )
    assert main([*arguments[:-1], "--image-size=4"]) == 0
    assert later == [0, 100, 200]
    # Nor those of other pictures of the same names.
    monkeypatch.setattr(embed_module, "_embed_part", stop_in_the_third)
    done.clear()
    assert main(arguments) == 130
    shutil.copytree(folder / "photos", tmp_path / "photos")
    later.clear()
    monkeypatch.setattr(
        embed_module, "_embed_part", lambda images, rows, *o: later.append(int(rows[0])) or real(images, rows, *o)
    )
    assert main(["embed", str(tmp_path / "photos"), *arguments[2:]]) == 0
    assert later == [0, 100, 200]
    assert EmbeddedItems.load(tmp_path / "z.safetensors").root == str(tmp_path / "photos")


def test_embed_begins_anew_with_other_weights_of_the_same_name(photos, finished_run, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    monkeypatch.setattr(embed_module, "PART", 30)
    real = embed_module._embed_part
    done = []

    def watch(images, rows, *others):
        if done == [0]:
            raise KeyboardInterrupt
        done.append(int(rows[0]))
        return real(images, rows, *others)

    monkeypatch.setattr(embed_module, "_embed_part", watch)
    arguments = ["embed", str(photos.root), "-o", str(tmp_path / "z.safetensors"), "--run", str(run), "--device=cpu"]
    assert main(arguments) == 130
    weights = load_file(run / "model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, run / "model.safetensors")
    done[:] = ["other weights"]
    assert main(arguments) == 0
    assert done == ["other weights", 0, 30]


def test_embed_keeps_its_parts_until_all_is_written(digits, tmp_path, monkeypatch):
    folder, _, _ = digits
    arguments = ["embed", str(folder / "photos"), "-o", str(tmp_path / "z.safetensors"), "--image-size=8"]

    def fill_the_disk(self, path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedItems, "save", fill_the_disk)
        assert main(arguments) == 130
    monkeypatch.setattr(embed_module, "_embed_part", None)  # nothing is left to embed
    assert main(arguments) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["z.safetensors"]


def test_embed_with_the_network_of_a_run(photos, finished_run, tmp_path, capsys):
    call(capsys, "embed", photos.root, "-o", tmp_path / "z.safetensors", "--run", finished_run, "--device=cpu")
    items = EmbeddedItems.load(tmp_path / "z.safetensors")
    saved = load_classifier(finished_run)
    image = FolderImages([photos.root / name for name in items.items], 12, 3).fetch(torch.arange(42)).float() / 255
    with torch.no_grad():
        torch.testing.assert_close(
            items.embedding, saved.backbone((image - saved.mean) / saved.std), rtol=1e-4, atol=1e-5
        )


def test_unreadable_images(tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (6, 6), (40 * number, 90, 10)).save(folder / f"{number}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    arguments = ["embed", str(folder), "-o", str(tmp_path / "z.safetensors")]
    assert main(arguments) == 1
    assert "bad.png: its content is not a known image format" in capsys.readouterr().err
    assert main([*arguments, "--skip-unreadable"]) == 0
    assert f"left out, unreadable: {folder / 'bad.png'}" in capsys.readouterr().err
    assert len(EmbeddedItems.load(tmp_path / "z.safetensors").items) == 4
    assert main(["doctor", str(folder)]) == 1
    printed = capsys.readouterr().out
    assert "4 of 5 images can be read" in printed
    assert "problem: " in printed
    (folder / "bad.png").unlink()
    assert main(["doctor", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["folder"] == {"num_images": 4, "unreadable": []}
    assert found["packages"]["torch"]


def test_spread_labels_most_digits_right_and_says_so(digits, tmp_path, capsys):
    folder, true, given = digits
    printed = call(
        capsys, "spread", folder / "z.safetensors", "--labels", folder / "labels.csv", "-o", tmp_path / "out"
    )
    rows = read(tmp_path / "out" / "predictions.csv")
    assert [row["item"] for row in rows] == sorted(true)
    assert {row["item"] for row in rows if row["status"] == "given"} == set(given)
    assert all(row["label"] == true[row["item"]] for row in rows if row["status"] == "given")
    right = [row["label"] == true[row["item"]] for row in rows if row["status"] != "given"]
    assert np.mean(right) > 0.8
    for method in ("label spreading", "kNN vote", "logistic regression"):
        assert method in printed
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "270 unlabeled images got a label" in page
    assert page.count("data:image/png;base64") > 20


def test_target_precision_writes_what_is_sure_enough(digits, tmp_path, capsys):
    folder, true, given = digits
    arguments = ["spread", folder / "z.safetensors", "--labels", folder / "labels.csv", "-o", tmp_path, "--json"]
    found = json.loads(call(capsys, *arguments, "--target-precision=0.9"))
    rows = read(tmp_path / "predictions.csv")
    written = [row for row in rows if row["label"]]
    assert len(written) == found["num_written"] < 300
    assert found["precision"] >= 0.9
    num_sure = len(written) - len(given)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{num_sure} of 270 unlabeled images got a label; the others are not sure enough." in page
    sure = [row for row in written if row["status"] != "given"]
    assert all(float(row["confidence"]) >= found["threshold"] - 1e-4 for row in sure)
    assert np.mean([row["label"] == true[row["item"]] for row in sure]) > 0.85
    assert {row["item"] for row in written} >= set(given)
    whole = json.loads(call(capsys, *arguments))
    assert whole["num_written"] == 300
    assert [check["key"] for check in whole["checks"]] == ["graph", "knn", "logistic_regression"]


@pytest.mark.parametrize(
    ("sure", "right", "target", "threshold", "num_above"),
    [
        # 25 right at 0.9, and two of equal confidence below, one of them wrong: 26 of 27 are less than 98 %.
        ([0.9] * 25 + [0.6, 0.6], [True] * 26 + [False], 0.98, 0.9, 25),
        ([0.6, 0.6] + [0.9] * 25, [True, False] + [True] * 25, 0.96, 0.6, 27),
        ([0.7, 0.7, 0.7], [True, True, False], 0.9, None, 0),
        ([0.2, 0.8, 0.5], [False, True, True], 1.0, 0.5, 2),
    ],
)
def test_the_threshold_keeps_its_promise_among_equal_confidences(sure, right, target, threshold, num_above):
    sure, right = torch.tensor(sure, dtype=torch.float64), torch.tensor(right)
    found = spread_module._threshold(sure, right, target)
    assert (found["threshold"], found["num_above"]) == (threshold, num_above)
    if threshold is not None:
        is_above = sure >= found["threshold"]
        assert found["num_above"] == int(is_above.sum())
        assert found["precision"] == float(right[is_above].double().mean()) >= target


def test_items_as_sure_as_the_threshold_get_a_label(digits, tmp_path, capsys, monkeypatch):
    folder, _, given = digits
    confidence = []

    def fit(*arguments, **options):
        model = real(*arguments, **options)
        confidence.append(model.label_distributions_.max(1))
        return model

    def threshold(*_):
        lost = [one for one in confidence[0] if np.float32(one) < one]  # what float32 would round below itself
        return {
            "threshold": float(sorted(lost)[-20]),
            "precision": 1.0,
            "num_hidden": 30,
            "num_above": 30,
            "interval": [0, 1],
        }

    real = spread_module._fit
    monkeypatch.setattr(spread_module, "_fit", fit)
    monkeypatch.setattr(spread_module, "_threshold", threshold)
    arguments = ["--labels", folder / "labels.csv", "-o", tmp_path, "--target-precision=0.9", "--json"]
    out = json.loads(call(capsys, "spread", folder / "z.safetensors", *arguments))
    is_given = [row["item"] in given for row in read(tmp_path / "predictions.csv")]
    assert out["num_written"] == int(((confidence[0] >= out["threshold"]) | is_given).sum())


@pytest.mark.parametrize("name", ["config.yaml", "model.json"])
def test_spread_does_not_write_over_a_trained_run(digits, tmp_path, capsys, name):
    folder, _, _ = digits
    (tmp_path / name).write_text("")
    arguments = ["spread", folder / "z.safetensors", "--labels", folder / "labels.csv", "-o", tmp_path]
    assert main([str(part) for part in arguments]) == 1
    assert f"-o {tmp_path} holds {name}, as a trained run does" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_suggest_without_a_label_covers_the_classes(digits, tmp_path, capsys):
    folder, true, _ = digits
    printed = call(capsys, "suggest", folder / "z.safetensors", "-n", 15, "-o", tmp_path)
    rows = read(tmp_path / "suggestions.csv")
    assert [set(row) for row in rows] == [{"file", "label"}] * 15
    assert len({true[row["file"]] for row in rows}) >= 8
    assert "speaks for about" in printed
    with Image.open(tmp_path / "suggestions.png") as sheet:
        assert sheet.width > 8 * 128
    # Filled in, it is a labels file.
    filled = write(tmp_path / "filled.csv", ["file", "label"], [[row["file"], true[row["file"]]] for row in rows])
    out = json.loads(
        call(
            capsys,
            "suggest",
            folder / "z.safetensors",
            "--labels",
            filled,
            "--strategy=margin",
            "--json",
            "-o",
            tmp_path,
        )
    )
    assert len(out["suggestions"]) == 10
    assert not {one["item"] for one in out["suggestions"]} & {row["file"] for row in rows}
    assert "'digit " in out["suggestions"][0]["reason"]


def test_suggest_does_not_write_over_labels_that_were_filled_in(digits, tmp_path, capsys):
    folder, true, _ = digits
    asked = ["suggest", str(folder / "z.safetensors"), "-n", "12", "-o", str(tmp_path)]
    table = tmp_path / "suggestions.csv"
    call(capsys, *asked)
    call(capsys, *asked)  # nothing would be lost
    rows = read(table)
    # A spreadsheet program may write other separators.
    table.write_text("\n".join(["\ufefffile;label", *(f"{row['file']};{true[row['file']]}" for row in rows)]))
    filled = table.read_bytes()
    assert main([*asked, "--labels", str(table)]) == 1
    assert f"{table} holds labels that were filled in" in capsys.readouterr().err
    assert table.read_bytes() == filled
    for content in (filled.replace(b"label", b" label "), filled.decode("utf-8-sig").encode("utf-16"), b"mine"):
        table.write_bytes(content)
        assert main(asked) == 1
        assert table.read_bytes() == content
    table.write_bytes(filled)
    call(capsys, *asked[:-1], tmp_path / "next", "--labels", table)
    table.write_bytes(b"")
    call(capsys, *asked)


@pytest.mark.parametrize("strategy", ["coverage", "probcover", "typiclust", "vopt", "entropy", "random", "auto"])
def test_every_strategy_answers(digits, tmp_path, capsys, strategy):
    folder, _, _ = digits
    arguments = ("--labels", folder / "labels.csv", "--strategy", strategy, "-n", 4, "--json", "-o", tmp_path)
    out = json.loads(call(capsys, "suggest", folder / "z.safetensors", *arguments))
    assert len({one["item"] for one in out["suggestions"]}) == 4


def test_audit_finds_exchanged_labels_and_changes_nothing(digits, tmp_path, capsys):
    folder, true, _ = digits
    names = sorted(true)[:120]
    wrong = set(names[::10])
    classes = sorted(set(true.values()))
    label = {n: classes[(classes.index(true[n]) + 3) % 10] if n in wrong else true[n] for n in names}
    labels = write(tmp_path / "labels.csv", ["file", "label"], label.items())
    before = labels.read_bytes()
    printed = call(capsys, "audit", folder / "z.safetensors", "--labels", labels, "-o", tmp_path / "audit")
    assert labels.read_bytes() == before
    rows = read(tmp_path / "audit" / "audit.csv")
    assert [float(row["suspicion"]) for row in rows] == sorted((float(row["suspicion"]) for row in rows), reverse=True)
    assert len({row["file"] for row in rows[:12]} & wrong) >= 10
    worst = rows[0]
    assert worst["suggested"] == true[worst["file"]]
    assert f"given '{worst['label']}', rather '{worst['suggested']}'" in printed
    assert worst["nearest of other classes"].count("(") == 5
    noise = read(tmp_path / "audit" / "noise.csv")
    assert len(noise) == 10
    with Image.open(tmp_path / "audit" / "audit.png") as sheet:
        assert sheet.width == 6 * 136 + 8


def test_the_report_of_spread_says_what_audit_and_suggest_say(digits, tmp_path, capsys):
    folder, true, _ = digits
    names = sorted(true)[:120]
    wrong = names[::20]
    label = {n: ("digit 0" if true[n] != "digit 0" else "digit 1") if n in wrong else true[n] for n in names}
    labels = write(tmp_path / "labels.csv", ["file", "label"], label.items())
    z = folder / "z.safetensors"
    call(capsys, "spread", z, "--labels", labels, "-o", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    call(capsys, "audit", z, "--labels", labels, "-o", tmp_path / "audit")
    doubted = [row for row in read(tmp_path / "audit" / "audit.csv") if row["suggested"] != row["label"]][:12]
    assert [one["item"] for one in results["suspicious"]] == [row["file"] for row in doubted]
    assert [one["label"] for one in results["suspicious"]] == [row["label"] for row in doubted]
    assert f"looks like {doubted[0]['suggested']}, " in results["suspicious"][0]["note"]
    out = json.loads(call(capsys, "suggest", z, "--labels", labels, "-n", 12, "--json", "-o", tmp_path / "next"))
    assert [(one["item"], one["note"]) for one in results["to_label"]] == [
        (one["item"], one["reason"]) for one in out["suggestions"]
    ]
    # How sure is right comes from the given labels alone.
    found = results["reliability"]
    graph = next(check for check in results["cross_validation"] if check["key"] == "graph")
    assert found["on"] == "given"
    assert sum(found["count"]) == graph["num_items"] == 120
    right = sum(n * share for n, share in zip(found["count"], found["accuracy"], strict=True)) / 120
    assert right == pytest.approx(graph["accuracy"])


def test_the_report_of_spread_says_what_it_did_not_seek(digits, tmp_path, capsys, monkeypatch):
    folder, true, _ = digits
    monkeypatch.setattr("lspread.lit.advice.WORK", 0)
    labels = write(tmp_path / "labels.csv", ["file", "label"], [(name, true[name]) for name in sorted(true)[:40]])
    call(capsys, "spread", folder / "z.safetensors", "--labels", labels, "-o", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["not_sought"] == ["suspicious", "to_label"]
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8").count("Not sought here") == 2


@pytest.mark.parametrize("model", [None, "wordllama"])
def test_texts(tmp_path, capsys, model):
    if model:
        pytest.importorskip("wordllama", reason="needs the package wordllama (extra dev)")
    rows = [[f"t{number}", text] for number, (text, _) in enumerate(TEXTS)]
    source = write(tmp_path / "texts.csv", ["id", "text"], rows)
    labels = write(
        tmp_path / "labels.csv", ["item", "label"], [["t0", "sport"], ["t1", "sport"], ["t10", "food"], ["t12", "food"]]
    )
    call(capsys, "embed", source, "-o", tmp_path / "z.safetensors", *(["--model", model] if model else []))
    assert EmbeddedItems.load(tmp_path / "z.safetensors").kind == "text"
    call(capsys, "spread", tmp_path / "z.safetensors", "--labels", labels, "-o", tmp_path / "out")
    found = read(tmp_path / "out" / "predictions.csv")
    right = [row["label"] == TEXTS[number][1] for number, row in enumerate(found)]
    assert np.mean(right) >= 0.9
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "16 unlabeled texts got a label" in page
    assert f'<span class="text">{TEXTS[0][0]}</span>' in page
    call(capsys, "suggest", tmp_path / "z.safetensors", "--labels", labels, "-n", 3, "-o", tmp_path / "next")
    assert len(read(tmp_path / "next" / "suggestions.csv")) == 3
    call(capsys, "audit", tmp_path / "z.safetensors", "--labels", labels, "-o", tmp_path / "audit")


def test_the_embedded_texts_bring_their_labels(tmp_path, capsys):
    given = {0, 1, 10, 12}
    rows = [[text, label if row in given else ""] for row, (text, label) in enumerate(TEXTS)]
    source, z = write(tmp_path / "texts.csv", ["text", "label"], rows), tmp_path / "z.safetensors"
    printed = call(capsys, "embed", source, "-o", z)
    assert f"lspread spread {z} --labels {source} -o out/" in printed
    call(capsys, "spread", z, "--labels", source, "-o", tmp_path / "out")
    found = read(tmp_path / "out" / "predictions.csv")
    assert {int(row["item"]) - 1 for row in found if row["status"] == "given"} == given
    assert np.mean([row["label"] == label for row, (_, label) in zip(found, TEXTS, strict=True)]) >= 0.9
    write(source, ["text"], [[text] for text, _ in TEXTS])
    assert "labels.csv has the columns item and label; items are 1, 2, 3, ..." in call(capsys, "embed", source, "-o", z)


def test_a_table_of_measurements(tmp_path, capsys):
    data = load_breast_cancer()
    names = [name.replace(" ", "_") for name in data.feature_names]
    kinds = ["benign" if value else "malignant" for value in data.target]
    rows = [[f"case {i}", *map(str, row), kind] for i, (row, kind) in enumerate(zip(data.data, kinds, strict=True))]
    source = write(tmp_path / "cases.csv", ["item", *names, "label"], rows)
    given = [i for kind in ("benign", "malignant") for i in [j for j, k in enumerate(kinds) if k == kind][:5]]
    labels = write(tmp_path / "labels.csv", ["item", "label"], [[f"case {i}", kinds[i]] for i in given])
    out = json.loads(call(capsys, "embed", source, "-o", tmp_path / "z.safetensors", "--json"))
    assert out["num_features"] == 30, "the column of labels is no feature"
    assert "label" in out["left out"]
    call(capsys, "spread", tmp_path / "z.safetensors", "--labels", labels, "-o", tmp_path / "out", "--prior=none")
    found = read(tmp_path / "out" / "predictions.csv")
    assert np.mean([row["label"] == kind for row, kind in zip(found, kinds, strict=True)]) > 0.88
    shown = json.loads((tmp_path / "out" / "results.json").read_text())["given"][0]
    cells = [f"{name} {value}" for name, value in zip(names[:6], data.data[shown["index"]], strict=False)]
    assert shown["text"] == ", ".join(cells)  # and not the column of labels
    # A file that no longer holds these rows is not read: its rows would stand beside other items' labels.
    write(source, ["item", *names, "label"], rows[1:])
    call(capsys, "spread", tmp_path / "z.safetensors", "--labels", labels, "-o", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "results.json").read_text())["given"][0]["text"] is None


def test_spread_without_the_pictures_at_hand(digits, tmp_path, capsys):
    """Embedded on one machine, spread on another."""
    folder, _, _ = digits
    items = EmbeddedItems.load(folder / "z.safetensors")
    items = dataclasses.replace(items, root=str(tmp_path / "elsewhere"))
    items.save(tmp_path / "z.safetensors")
    call(capsys, "spread", tmp_path / "z.safetensors", "--labels", folder / "labels.csv", "-o", tmp_path / "out")
    assert len(read(tmp_path / "out" / "predictions.csv")) == 300
    assert not (tmp_path / "out" / "thumbnails").exists()
    assert "000.png" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_names_of_rows_are_no_paths(tmp_path, capsys):
    """What `suggest` writes can be filled in and read, whatever rows are called."""
    names = ["https://a.b/c", "/products/12", "12/", "..", "a\\b", " padded ", "./x", "plain"]
    rows = [[name, text, label] for name, (text, label) in zip(names, TEXTS[:4] + TEXTS[10:14], strict=True)]
    write(tmp_path / "mails.csv", ["id", "text", "kind"], rows)
    call(capsys, "embed", tmp_path / "mails.csv", "-o", tmp_path / "z.safetensors", "--leave-out", "kind")
    call(capsys, "suggest", tmp_path / "z.safetensors", "-n", 8, "-o", tmp_path / "next")
    true = {name.strip(): label for name, _, label in rows}
    asked = read(tmp_path / "next" / "suggestions.csv")
    assert {row["item"] for row in asked} == set(true)
    labels = write(tmp_path / "labels.csv", ["item", "label"], [[r["item"], true[r["item"]]] for r in asked[:6]])
    call(capsys, "spread", tmp_path / "z.safetensors", "--labels", labels, "-o", tmp_path / "out")
    found = {row["item"]: row["label"] for row in read(tmp_path / "out" / "predictions.csv")}
    assert all(found[row["item"]] == true[row["item"]] for row in asked[:6])


@pytest.mark.skipif(sys.platform != "linux", reason="macOS and Windows know no file names beside Unicode")
def test_files_whose_names_are_no_utf8(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    names = [b"caf\xe9 %d.png" % number for number in range(8)]
    for number, name in enumerate(names):
        Image.new("L", (8, 8), 20 * number).save(os.fsdecode(os.path.join(os.fsencode(photos), name)))
    call(capsys, "init", photos)
    labels = photos / "labels.csv"
    lines = labels.read_bytes().splitlines()
    assert names[0] in labels.read_bytes()
    filled = [line.rstrip(b",") + b"," + (b"dark" if at < 4 else b"light") for at, line in enumerate(lines[1:])]
    labels.write_bytes(b"\n".join([lines[0], *filled[:2], *filled[-2:]]))
    call(capsys, "embed", photos, "-o", tmp_path / "z.safetensors", "--image-size=4")
    call(capsys, "spread", tmp_path / "z.safetensors", "--labels", labels, "-o", tmp_path / "out", "--metric=euclidean")
    labels.write_bytes(labels.read_bytes().replace(b"dark", b"d\xfcster"))
    assert main(["spread", str(tmp_path / "z.safetensors"), "--labels", str(labels), "-o", str(tmp_path / "o")]) == 1
    assert "line 2: the label is not UTF-8 text" in capsys.readouterr().err


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_who_contradicts_a_label_is_the_nearest_of_another_class(metric, monkeypatch):
    z = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    given = torch.arange(40) % 3
    monkeypatch.setattr(audit_module, "MOST_DISTANCES", 100)
    found = audit_module._contradicting(z, given, metric)
    unit = torch.nn.functional.normalize(z, dim=1) if metric == "cosine" else z
    distance = (unit[:, None] - unit).norm(dim=2)
    for row in range(40):
        others = [other for other in distance[row].argsort().tolist() if given[other] != given[row]]
        assert found[row] == others[:5]
    assert audit_module._contradicting(z[:3], torch.tensor([0, 0, 1]), metric) == [[2], [2], found_order(z[:3], metric)]


def found_order(z, metric):
    unit = torch.nn.functional.normalize(z, dim=1) if metric == "cosine" else z
    return (unit[2] - unit[:2]).norm(dim=1).argsort().tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "{nothing}", "-o", "z.safetensors"], "There is no folder and no file"),
        (["embed", "{photos}", "-o", "z.npy"], "-o needs a name that ends in .safetensors; got z.npy"),
        (["embed", "{photos}", "-o", "z.safetensors", "--backbone=torchvision/resnet18"], "needs --weights FILE"),
        (["embed", "{empty}", "-o", "z.safetensors"], "There are no images under"),
        (["spread", "{nothing}", "--labels", "{labels}", "-o", "out"], "There is no embedding file"),
        (["spread", "{labels}", "--labels", "{labels}", "-o", "out"], "is not a file of `lspread embed`"),
        (
            ["spread", "{z}", "--labels", "{labels}", "-o", "out", "--target-precision=2"],
            "above 0 and at most 1; got 2",
        ),
        (["spread", "{z}", "--labels", "{wrong}", "-o", "out"], "files that are not images under"),
        (["audit", "{z}", "--labels", "{nothing}"], "There is no label file"),
        (["suggest", "{z}", "-n", "0"], "num_queries must be at least 1; got 0"),
        (["suggest", "{z}", "--k", "0"], "--k must be at least 1; got 0"),
        (["doctor", "{nothing}"], "There is no folder"),
    ],
)
def test_errors_say_what_to_do(digits, tmp_path, capsys, monkeypatch, arguments, message):
    folder, _, _ = digits
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "wrong.csv", ["file", "label"], [["none.png", "a"], ["nor this.png", "b"]])
    places = {
        "nothing": tmp_path / "nothing",
        "empty": tmp_path / "empty",
        "photos": folder / "photos",
        "labels": folder / "labels.csv",
        "wrong": tmp_path / "wrong.csv",
        "z": folder / "z.safetensors",
    }
    assert main([part.format(**places) for part in arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "option", "message"),
    [
        ("photos", ["--leave-out", "x"], "--leave-out is for rows of a CSV file, and"),
        ("labels.csv", ["--image-size=8"], "--image-size is for a folder of images, and"),
        ("labels.csv", ["--skip-unreadable"], "--skip-unreadable is for a folder of images, and"),
        ("photos", ["--weights=none.pth"], "--weights is for a network, which --backbone names, or --run"),
        ("photos", ["--device=cuda"], "--device is for a network, which --backbone names, or --run"),
        ("photos", ["--run=r", "--weights=none.pth"], "--weights is for another network than that of --run"),
    ],
)
def test_options_that_would_do_nothing_are_refused(digits, tmp_path, capsys, source, option, message):
    assert main(["embed", str(digits[0] / source), "-o", str(tmp_path / "z.safetensors"), *option]) == 2
    assert message in capsys.readouterr().err


def test_rows_that_no_label_reaches_are_called_so(tmp_path, capsys):
    z = torch.cat([torch.randn(20, 2), torch.randn(20, 2) + 1000])
    EmbeddedItems(z, [str(i) for i in range(40)], "table", "nowhere.csv", "euclidean", {"features": "x"}).save(
        tmp_path / "z.safetensors"
    )
    labels = write(tmp_path / "labels.csv", ["item", "label"], [["0", "a"], ["1", "b"], ["2", "a"], ["3", "b"]])
    call(capsys, "spread", tmp_path / "z.safetensors", "--labels", labels, "-o", tmp_path / "out", "--k=3")
    status = [row["status"] for row in read(tmp_path / "out" / "predictions.csv")]
    assert status == ["given"] * 4 + ["pseudo"] * 16 + ["unreached"] * 20


@pytest.mark.parametrize(
    "command", ["embed", "spread", "suggest", "audit", "doctor", "init", "compare", "export", "fit", "test", "predict"]
)
def test_help_loads_nothing_heavy(command):
    code = (
        "import sys\nfrom lspread.cli.main import main\n"
        f"code = main([{command!r}, '--help'])\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'lightning', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\nsys.exit(code)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout
    assert time.perf_counter() - start < 60


def test_init_writes_what_fit_needs(photos, tmp_path, capsys):
    folder = tmp_path / "my photos"
    shutil.copytree(photos.root, folder, ignore=shutil.ignore_patterns("*.csv"))
    printed = call(capsys, "init", folder)
    assert f"wrote {folder / 'labels.csv'}" in printed
    rows = read(folder / "labels.csv")
    assert {row["file"] for row in rows} == set(photos.label)
    assert {row["label"] for row in rows} == {""}
    assert main(["fit", "--config", str(folder / "config.yaml")]) == 1
    assert "No labels at all" in capsys.readouterr().err
    filled = [[row["file"], photos.given.get(row["file"], "")] for row in rows]
    write(folder / "labels.csv", ["file", "label"], filled)
    before = (folder / "config.yaml").read_bytes()
    assert "left as it was" in call(capsys, "init", folder)
    assert read(folder / "labels.csv")[0] == dict(zip(["file", "label"], filled[0], strict=True))
    assert (folder / "config.yaml").read_bytes() == before
    quick = ["--trainer.max_epochs=2", "--model.warmup_epochs=1", "--trainer.accelerator=cpu", "--data.image_size=12"]
    call(capsys, "fit", "--config", folder / "config.yaml", *quick, "--run_dir", tmp_path / "run")
    assert len(read(tmp_path / "run" / "predictions.csv")) == 42
    assert main(["init", str(tmp_path / "nothing")]) == 1
    assert "There is no folder" in capsys.readouterr().err


def test_compare_shows_the_accuracies_of_each_run(finished_run, tmp_path, capsys):
    second = tmp_path / "second"
    shutil.copytree(finished_run, second)
    results = json.loads((second / "results.json").read_text())
    results["scores"] = [row for row in results["scores"] if row["on"] == "val" and row["key"] == "classifier"]
    (second / "results.json").write_text(json.dumps(results))
    figure = tmp_path / "figures" / "both.png"
    printed = call(capsys, "compare", finished_run, second, "-o", figure)
    accuracy = results["scores"][0]["accuracy"]
    lines = [line for line in printed.splitlines() if line.startswith((finished_run.name, "second"))]
    assert [f"{100 * accuracy:.1f} +- " in line for line in lines] == [True, True]
    with Image.open(figure) as picture:
        assert picture.width > 300
    found = json.loads(call(capsys, "compare", second, finished_run, "-o", figure, "--json"))
    assert [row["validation"] for row in found["runs"]] == [accuracy, accuracy]
    assert main(["compare", str(tmp_path)]) == 1
    assert "results.json" in capsys.readouterr().err
    assert main(["compare", str(second), "-o", str(tmp_path / "table.csv")]) == 2
    assert "-o needs a name that ends in .png, .pdf or .svg; got" in capsys.readouterr().err
    results["scores"], results["cross_validation"] = [], []
    (second / "results.json").write_text(json.dumps(results))
    assert main(["compare", str(second)]) == 1
    assert "nothing to compare" in capsys.readouterr().err


def test_runs_of_a_few_labels_are_compared_by_given_labels_hidden_in_turn(digits, finished_run, tmp_path, capsys):
    folder, _, _ = digits
    arguments = ["spread", folder / "z.safetensors", "--labels", folder / "labels.csv"]
    call(capsys, *arguments, "-o", tmp_path / "one")
    call(capsys, *arguments, "--alpha=0.5", "-o", tmp_path / "two")
    figure = tmp_path / "both.png"
    printed = call(capsys, "compare", tmp_path / "one", tmp_path / "two", "-o", figure)
    found = json.loads(call(capsys, "compare", tmp_path / "one", tmp_path / "two", "-o", figure, "--json"))
    for run, name in zip(found["runs"], ("one", "two"), strict=True):
        checks = json.loads((tmp_path / name / "results.json").read_text())["cross_validation"]
        expected = {check["key"]: check["accuracy"] for check in checks}
        titles = {"graph": "given, graph", "knn": "given, kNN", "logistic_regression": "given, logistic"}
        assert {key: run[title] for key, title in titles.items()} == expected
        (line,) = [line for line in printed.splitlines() if line.startswith(name)]
        assert f" {100 * expected['graph']:.1f} +- " in line
    assert "given labels, each hidden in turn" in printed
    # Where every run knows other truth, that decides.
    assert "given" not in call(capsys, "compare", finished_run, "-o", figure)


@pytest.mark.parametrize("head", ["classifier", "graph"])
@pytest.mark.parametrize("to", ["safetensors", "torch-export", "onnx"])
def test_exported_networks_answer_as_the_run_does(finished_run, photos, tmp_path, capsys, to, head):
    if to == "onnx":
        for package in ("onnxruntime", "onnxscript"):
            pytest.importorskip(package, reason="needs the packages onnx, onnxscript and onnxruntime")
    out = json.loads(call(capsys, "export", finished_run, "--to", to, "--head", head, "-o", tmp_path, "--json"))
    load = load_classifier if head == "classifier" else load_graph_classifier
    saved = load(finished_run)
    pictures = torch.stack([decode_image(photos.root / file, 12, 3) for file in list(photos.label)[:20]]).float() / 255
    image = torch.cat([pictures, torch.rand(5, 3, 12, 12)])
    with torch.no_grad():
        expected = saved(image)
        if to == "safetensors":
            found = load(tmp_path)(image)
        elif to == "torch-export":
            found = torch.export.load(out["output"]).module()(image)
        else:
            import onnxruntime

            session = onnxruntime.InferenceSession(out["output"], providers=["CPUExecutionProvider"])
            found = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert "agree with the run's" in out["check"]
    if head == "graph":
        torch.testing.assert_close(found.sum(1), torch.ones(25))
        assert Path(out["output"]).name in ("graph_head.safetensors", "graph.pt2", "graph.onnx")
    if to != "safetensors":
        assert json.loads((tmp_path / "classes.json").read_text()) == saved.class_names


def test_exporting_answers_to_new_images_and_not_over_the_run(finished_run, photos, tmp_path, capsys):
    call(capsys, "predict", finished_run, photos.root, "-o", tmp_path / "new")
    call(capsys, "export", tmp_path / "new", "--to", "label-studio", "-o", tmp_path / "tasks")
    tasks = json.loads((tmp_path / "tasks" / "predictions.json").read_text())
    assert len(tasks) == 42
    assert all("predictions" in task for task in tasks)
    assert main(["export", str(finished_run), "--to", "safetensors", "-o", str(finished_run)]) == 1
    assert "is the run itself; choose another folder" in capsys.readouterr().err


def test_exported_tasks_keep_what_people_said_apart_from_guesses(finished_run, photos, tmp_path, capsys):
    printed = call(
        capsys, "export", finished_run, "--to", "label-studio", "-o", tmp_path, "--url-prefix", "https://host/"
    )
    tasks = {task["data"]["image"]: task for task in json.loads((tmp_path / "predictions.json").read_text())}
    assert len(tasks) == 42
    for row in read(finished_run / "predictions.csv"):
        task = tasks["https://host/" + row["item"]]
        (one,) = task["annotations" if row["item"] in photos.given else "predictions"]
        assert one["result"][0]["value"] == {"choices": [row["label"]]}
        if row["item"] not in photos.given:
            assert one["score"] == float(row["confidence"])
    assert "42 tasks, 6 annotated" in printed


def test_export_says_what_is_missing(finished_run, tmp_path, capsys, monkeypatch):
    assert main(["export", str(tmp_path), "--to=safetensors", "-o", str(tmp_path / "out")]) == 1
    assert "has no model.json" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--to=label-studio", "-o", str(tmp_path / "out")]) == 1
    assert "has no predictions.csv" in capsys.readouterr().err
    older = shutil.copytree(finished_run, tmp_path / "older", ignore=shutil.ignore_patterns("graph_head*"))
    assert main(["export", str(older), "--to=onnx", "--head=graph", "-o", str(tmp_path / "out")]) == 1
    assert "older has no graph_head.safetensors" in capsys.readouterr().err
    assert main(["export", str(finished_run), "--to=label-studio", "--head=graph", "-o", str(tmp_path / "out")]) == 1
    assert "--head graph is for networks" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", str(finished_run), "--to=onnx", "-o", str(tmp_path / "out")]) == 1
    assert "pip install onnx onnxscript onnxruntime" in capsys.readouterr().err


def test_output_that_cannot_be_is_told_before_the_work(digits, tmp_path, capsys, monkeypatch):
    folder, _, _ = digits
    (tmp_path / "taken").write_text("")
    monkeypatch.setattr(spread_module, "_fit", None)  # never reached
    z, labels = folder / "z.safetensors", folder / "labels.csv"
    for asked in (["spread", z, "--labels", labels], ["suggest", z], ["audit", z, "--labels", labels]):
        for output in (tmp_path / "taken", tmp_path / "taken" / "more"):
            assert main([str(part) for part in [*asked, "-o", output]]) == 1
            message = f"-o {output} is to be a folder, but {tmp_path / 'taken'} is a file; choose another name"
            assert message in capsys.readouterr().err


def test_suggest_hears_how_far_labels_spread_and_how_many_classes_there_are(digits, tmp_path, capsys):
    folder, true, _ = digits
    asked = ["suggest", folder / "z.safetensors", "-n", "5", "--json", "--seed=3"]

    def items(*more):
        found = json.loads(call(capsys, *asked, *more, "-o", tmp_path / str(len(list(tmp_path.iterdir())))))
        return [(one["item"], round(one["score"], 4)) for one in found["suggestions"]]

    for strategy in ("coverage", "auto"):
        assert items("--strategy", strategy) == items("--strategy", strategy, "--alpha=0.98")
        assert items("--strategy", strategy) != items("--strategy", strategy, "--alpha=0.5")
    assert items("--strategy=vopt") != items("--strategy=vopt", "--alpha=0.5")
    assert main([str(part) for part in [*asked, "--strategy=typiclust", "--alpha=0.5"]]) == 2
    assert "--alpha is for strategies that spread labels; typiclust does not" in capsys.readouterr().err
    few = [[file, label] for file, label in true.items() if label in list(dict.fromkeys(true.values()))[:3]][:15]
    labels = write(tmp_path / "few.csv", ["file", "label"], few)
    # Fifteen labels are enough for three classes, and few for ten.
    early, late = items("--labels", labels, "--num-classes=10"), items("--labels", labels)
    assert early == items("--labels", labels, "--num-classes=10", "--strategy=coverage")
    assert late == items("--labels", labels, "--strategy=margin")
