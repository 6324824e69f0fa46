import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from lspread.errors import DataError
from lspread.report import write_report

HOSTILE = "<script>alert(1)</script>"
GALLERIES = ("given", "most_certain", "least_certain", "novel", "suspicious", "to_label")
"""Lists of pictures in results.json, as they follow each other on the page."""


class Reader(HTMLParser):
    """What a browser would see: the elements with their attributes, the text, and the tables."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self._cell: list[str] | None = None
        self._style = False
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._style = tag == "style"
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        self._style = False
        if tag in ("td", "th") and self._cell is not None:
            self.rows[-1].append(" ".join("".join(self._cell).split()))
            self._cell = None

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.words.append(data)
        if self._cell is not None:
            self._cell.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def load(run_dir: Path) -> dict:
    return json.loads((run_dir / "results.json").read_text())


def save(run_dir: Path, results: dict) -> None:
    (run_dir / "results.json").write_text(json.dumps(results))


def read(run_dir: Path) -> Reader:
    return Reader(write_report(run_dir).read_text(encoding="utf-8"))


def row(page: Reader, first: str) -> list[list[str]]:
    return [cells for cells in page.rows if cells and cells[0] == first]


def test_the_page_lies_in_the_run_folder_and_nothing_else_changes(run_dir: Path) -> None:
    before = {path.name for path in run_dir.iterdir()}
    path = write_report(str(run_dir))
    assert path == run_dir / "report.html"
    assert {path.name for path in run_dir.iterdir()} == before | {"report.html"}
    first = path.read_bytes()
    assert write_report(run_dir).read_bytes() == first  # the same run gives the same page, byte for byte


def test_accuracies_and_intervals_are_those_of_the_json(run_dir: Path) -> None:
    page, results = read(run_dir), load(run_dir)
    assert len(results["scores"]) == 4
    for score in results["scores"]:
        low, high = score["ci95"]
        expected = [score["method"], f"{score['accuracy'] * 100:.1f} %", f"{low * 100:.1f} % – {high * 100:.1f} %"]
        assert expected in page.rows
        assert page.words.count(expected[1]) >= 2  # in the table and, as text, in the figure
    assert "Accuracy on 1,787 unlabeled images, best first" in page.text


def test_summary_is_the_first_heading(run_dir: Path) -> None:
    page, results = read(run_dir), load(run_dir)
    accuracy = {score["key"]: f"{100 * score['accuracy']:.1f} %" for score in results["scores"]}
    ours, other = accuracy["classifier"], accuracy["logistic_regression"]
    assert [name for name, _ in page.elements].index("h1") < [name for name, _ in page.elements].index("h2")
    assert (
        f"With 10 labels (1 per class), the trained classifier gets {ours} of 1,787 unlabeled images right; "
        f"the best baseline, logistic regression on the same embeddings, gets {other} ."
    ) in page.text


def test_class_counts_and_confusions(run_dir: Path) -> None:
    page, results = read(run_dir), load(run_dir)
    counts, matrix, names = results["class_counts"], results["confusion"]["matrix"], results["data"]["class_names"]
    for c, name in enumerate(names):
        assert [name, *(f"{counts[column][c]:,}" for column in ("given", "predicted", "true"))] in page.rows
    right = sum(matrix[c][c] for c in range(10))
    assert f"{right:,} of 1,787 lie on the diagonal" in page.text
    worst = max((matrix[i][j], i, j) for i in range(10) for j in range(10) if i != j)
    share = round(100 * worst[0] / sum(matrix[worst[1]]))
    assert f"{names[worst[1]]} taken for {names[worst[2]]} : {worst[0]} ({share} % of {names[worst[1]]})" in page.text


def test_pictures_hold_the_pixels_of_the_thumbnails(run_dir: Path) -> None:
    page, results = read(run_dir), load(run_dir)
    shown = [picture for part in GALLERIES for picture in results[part]]
    images = page.all("img")
    assert len(images) == len(shown)
    for attrs, picture in zip(images, shown, strict=True):
        source, alt = attrs["src"], attrs["alt"]
        assert source is not None
        assert alt is not None
        data = base64.b64decode(source.removeprefix("data:image/png;base64,"))
        with Image.open(io.BytesIO(data)) as inlined, Image.open(run_dir / picture["thumbnail"]) as original:
            assert inlined.tobytes() == original.tobytes()
        assert alt.startswith(f"{picture['item']}: ")
        assert picture["label"] in alt
    right = sum(picture["label"] == picture["true_label"] for picture in results["least_certain"])
    assert f"{right} of these 24 are right." in page.text


def test_map_draws_every_point_and_every_star(run_dir: Path) -> None:
    html, results = write_report(run_dir).read_text(), load(run_dir)
    start = html.index('<section id="map">')
    section = html[start : html.index("</section>", start)]
    assert section.count("<use ") == len(results["map"]["x"]) == 1210
    assert f"{100 * results['map']['explained']:.0f} % of the variance" in section
    for name in results["data"]["class_names"]:
        assert f">{name}</text>" in section


def test_curves_graph_facts_times_and_settings(run_dir: Path) -> None:
    page, results = read(run_dir), load(run_dir)
    lines = [line.split(",") for line in (run_dir / "metrics.csv").read_text().split()]
    for name in ("train_loss", "pseudo_accuracy"):
        last = [line[lines[0].index(name)] for line in lines[1:] if line[lines[0].index(name)]][-1]
        assert f"{name} {float(last):.3g}" in page.text
    assert row(page, "solver_steps") == [["solver_steps", "47", "20"]]
    assert row(page, "edges") == [["edges", "36,482"]]
    assert row(page, "distance to the exact solution, at most")[0][1] == "3.1e-05"
    assert row(page, "training, all in all") == [["training, all in all", "1 min 14 s"]]
    assert row(page, "finding neighbors") == [["finding neighbors", "210 ms"]]
    assert row(page, "torch") == [["torch", results["versions"]["torch"]]]
    assert "class_path: lspread.data.Digits" in page.text
    assert "lspread fit --config configs/digits.yaml" in page.text


def test_the_page_loads_nothing_and_runs_nothing(run_dir: Path) -> None:
    html = write_report(run_dir).read_text()
    page = Reader(html)
    written = re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", written, re.IGNORECASE)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    for _, attrs in page.elements:
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "href", "srcset", "action", "poster"):
            if attrs.get(name):
                assert attrs[name].startswith(("data:image/", "#"))
    policy = next(
        attrs["content"] for attrs in page.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")


def test_the_page_is_well_formed_and_accessible(run_dir: Path) -> None:
    html = write_report(run_dir).read_text()
    page = Reader(html)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for anchor in (attrs["href"] for attrs in page.all("a")):
        assert anchor.removeprefix("#") in ids
    for used in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html):
        assert (used[0] or used[1]) in ids
    assert all(attrs.get("alt") for attrs in page.all("img"))
    plots = [attrs for attrs in page.all("div") if attrs.get("class") == "plot"]
    assert len(plots) == len(page.all("svg")) == 6
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in plots)
    assert all(attrs.get("scope") for attrs in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert page.all("html")[0]["lang"] == "en"
    assert any(attrs.get("name") == "viewport" for attrs in page.all("meta"))
    assert "prefers-color-scheme: dark" in html
    for tag in ("svg", "g", "section", "table", "div", "figure", "details", "ul", "li", "p"):
        assert len(re.findall(rf"<{tag}[ >]", html)) == html.count(f"</{tag}>"), tag
    assert "#01020" not in html  # every stand-in color has become a variable


def test_a_warm_up_of_an_earlier_run_is_named(run_dir: Path) -> None:
    assert "taken from an earlier run's, /cache/warm_ups/0123.ckpt" in read(run_dir).text
    results = load(run_dir)
    results["warm_up"] = None
    save(run_dir, results)
    assert "earlier run" not in read(run_dir).text


def test_hostile_names_are_text(run_dir: Path) -> None:
    results = load(run_dir)
    names = [f"{HOSTILE}{c}" for c in range(8)] + ["$x_1$ & \"q\" 'r'", "--><b>x"]
    results["data"]["class_names"] = names
    results["title"] = results["command"] = results["data"]["name"] = HOSTILE
    results["scores"][0]["method"] = HOSTILE
    results["versions"][HOSTILE] = HOSTILE
    for picture in results["given"] + results["most_certain"]:
        picture["item"] = f'"><img src=x onerror=alert(1)>{HOSTILE}.png'
        picture["label"] = names[0]
        picture["true_label"] = HOSTILE
    save(run_dir, results)
    (run_dir / "config.yaml").write_text(f"title: {HOSTILE}</pre>")
    (run_dir / "metrics.csv").write_text(f"epoch,step,{HOSTILE}_loss,{HOSTILE}_fraction\n0,1,0.5,0.5\n1,2,0.25,0.75\n")
    html = write_report(run_dir).read_text()
    page = Reader(html)
    assert "<script" not in html.lower()
    assert "<img src=x" not in html
    assert "<b>x" not in html
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert row(page, names[3])[0][0] == names[3]  # and they read as they were written
    assert row(page, names[8])[0][0] == names[8]
    assert f"{HOSTILE}_loss 0.25" in page.text
    assert f"title: {HOSTILE}</pre>" in page.text


def test_names_that_are_no_unicode_become_readable(run_dir: Path) -> None:
    results = load(run_dir)
    results["given"][0]["item"] = "photo-\udcff\n1.png"
    results["data"]["class_names"][2] = "猫\tcat"
    save(run_dir, results)
    page = read(run_dir)
    assert "photo-? 1.png" in page.text
    assert row(page, "猫 cat")


def test_a_better_baseline_is_called_better(run_dir: Path) -> None:
    results = load(run_dir)
    for score in results["scores"]:
        score["accuracy"], score["ci95"] = {
            "classifier": (0.701, [0.68, 0.72]),
            "graph": (0.69, [0.67, 0.71]),
            "knn": (0.834, [0.82, 0.85]),
            "logistic_regression": (0.71, [0.69, 0.73]),
        }[score["key"]]
    save(run_dir, results)
    page = read(run_dir)
    assert (
        "gets 70.1 % of 1,787 unlabeled images right, but the k-nearest-neighbor vote is better here, with 83.4 % ."
        in page.text
    )
    assert "Better, too: logistic regression on the same embeddings ( 71.0 % )." in page.text
    assert next(cells[0] for cells in page.rows if len(cells) == 3 and "–" in cells[2]) == "k-nearest-neighbor vote"


def test_without_truth_the_page_says_so(run_dir: Path) -> None:
    results = load(run_dir)
    results["scores"], results["confusion"], results["class_counts"]["true"] = [], None, None
    results["cross_validation"] = [
        {
            "key": "graph",
            "method": "label spreading, one left out",
            "accuracy": 0.7,
            "num_items": 10,
            "ci95": [0.4, 0.9],
        },
        {"key": "knn", "method": "kNN vote, one left out", "accuracy": 0.8, "num_items": 10},
    ]
    for picture in (picture for part in GALLERIES for picture in results[part]):
        picture["true_label"] = None
    save(run_dir, results)
    page = read(run_dir)
    assert "1,787 unlabeled images got a label; their true labels are not known" in page.text
    assert "By that measure the k-nearest-neighbor vote is better here." in page.text
    assert row(page, "label spreading, one left out") == [
        ["label spreading, one left out", "70.0 %", "40.0 % – 90.0 %", "10"]
    ]
    assert "No true labels are known beyond the given ones" in page.text
    assert "No confusion matrix" in page.text
    assert not re.search(r"\d+ of these", page.text)
    assert "Go by the k-nearest-neighbor vote: it is right most often of the 10 given labels" in page.text
    assert "✗" not in page.text
    assert ["zero", "1", f"{results['class_counts']['predicted'][0]:,}"] in page.rows


def test_the_least_that_a_run_can_say(tmp_path: Path) -> None:
    save(tmp_path, {"data": {"num_classes": 2, "num_labeled": 2, "num_unlabeled": 5}})
    page = read(tmp_path)
    for sentence in (
        "With 2 labels, 5 unlabeled items got a label",
        "The run kept no pictures of the labeled items.",
        "The run kept no map of its embeddings.",
        "The run kept no list of its most certain items.",
        "The run kept no list of its least certain items.",
        "The run kept no counts of its classes.",
        "There is no metrics.csv in the run folder, so there are no curves.",
        "The run used no graph, or kept no facts of it.",
        "The run kept no times.",
        "There is no config.yaml in the run folder.",
        "The run kept no versions.",
    ):
        assert sentence in page.text
    assert not page.all("svg")


PARTS = ("title", "created", "command", "seed", "graph", "seconds", "scores", "class_counts", "confusion", "map")
PARTS += ("versions", "most_certain", "least_certain", "given", "cross_validation", "per_class", "reliability")


@pytest.mark.parametrize("first", range(5))
def test_parts_may_be_absent(run_dir: Path, first: int) -> None:
    results = load(run_dir)
    results["map"] |= {name: results["map"][name][:20] for name in ("x", "y", "label", "confidence", "given")}
    for part in PARTS[first::5]:
        del results[part]
    save(run_dir, results)
    (run_dir / "metrics.csv").unlink()
    assert len(read(run_dir).all("section")) == 12


@pytest.mark.parametrize(("part", "place"), [("novel", "novel"), ("suspicious", "suspicious"), ("to_label", "next")])
def test_what_nobody_needs_to_look_at_has_no_section(run_dir: Path, part: str, place: str) -> None:
    results = load(run_dir)
    assert any(attrs.get("id") == place for attrs in read(run_dir).all("section"))
    results[part] = []
    save(run_dir, results)
    page = read(run_dir)
    assert not any(attrs.get("id") == place for attrs in page.all("section"))
    assert not any(attrs["href"] == f"#{place}" for attrs in page.all("a"))


@pytest.mark.parametrize(
    ("part", "place", "command"), [("suspicious", "suspicious", "audit"), ("to_label", "next", "suggest")]
)
def test_what_was_not_sought_is_said(run_dir: Path, part: str, place: str, command: str) -> None:
    results = load(run_dir)
    del results[part]
    assert "Not sought here" not in read(run_dir).text
    save(run_dir, {**results, "not_sought": [part]})
    page = read(run_dir)
    assert any(attrs.get("id") == place for attrs in page.all("section"))
    assert any(attrs["href"] == f"#{place}" for attrs in page.all("a"))
    assert page.text.count("Not sought here") == 1
    assert f"lspread {command} seeks" in page.text


def test_what_deserves_a_look_comes_with_its_reason(run_dir: Path) -> None:
    results, page = load(run_dir), read(run_dir)
    for part in ("novel", "suspicious", "to_label"):
        for picture in results[part]:
            assert picture["note"] in page.text
    # Of a given label nothing is known but what was given: it is neither right nor wrong.
    alt = next(attrs["alt"] for attrs in page.all("img") if "looks like eight" in (attrs["alt"] or ""))
    assert alt == f"{results['suspicious'][0]['item']}: given label three, looks like eight, 71 %"


def test_measures_of_each_class_and_their_mean(run_dir: Path) -> None:
    results, page = load(run_dir), read(run_dir)
    found = results["per_class"]
    names = ("precision", "recall", "specificity", "f1", "auroc")
    cells = [f"{100 * found[name][3]:.1f} %" for name in names]
    assert ["three", f"{found['count'][3]:,}", *cells] in page.rows
    means = [f"{100 * sum(found[name]) / 10:.1f} %" for name in names]
    assert ["mean", "", *means] in page.rows
    found["recall"][3] = found["auroc"][3] = None
    save(run_dir, results)
    page = read(run_dir)
    assert ["three", f"{found['count'][3]:,}", cells[0], "–", cells[2], cells[3], "–"] in page.rows
    known = [value for value in found["recall"] if value is not None]
    assert f"{100 * sum(known) / 9:.1f} %" in next(cells for cells in page.rows if cells[0] == "mean")[3]


@pytest.mark.parametrize(("on", "where"), [("unlabeled", "unlabeled images"), ("given", "given labels, each hidden")])
def test_reliability_says_how_sure_and_how_right(run_dir: Path, on: str, where: str) -> None:
    results = load(run_dir)
    results["reliability"] = {
        "on": on,
        "count": [30, 10],
        "confidence": [0.5, 0.9],
        "accuracy": [0.6, 0.8],
        "error": 0.1,
    }
    save(run_dir, results)
    page = read(run_dir)
    assert f"On 40 {where}" in page.text
    assert "60.0 % sure on the average, 65.0 % right." in page.text
    assert "(expected calibration error) is 10.0 %." in page.text
    alt = next(attrs["aria-label"] for attrs in page.all("div") if "Reliability" in (attrs.get("aria-label") or ""))
    assert alt is not None
    assert alt.endswith("50.0 % sure, 60.0 % right; 90.0 % sure, 80.0 % right.")


def test_rows_of_a_table_have_no_place_for_a_picture(run_dir: Path) -> None:
    results = load(run_dir)
    results["data"]["image_shape"] = None
    for picture in (picture for part in GALLERIES for picture in results[part]):
        picture["thumbnail"] = None
    save(run_dir, results)
    page = read(run_dir)
    assert not page.all("img")
    assert "no picture" not in page.text
    assert "are not in the run folder" not in page.text
    assert results["given"][0]["item"] in page.text


def test_null_is_as_good_as_absent(run_dir: Path) -> None:
    results = {"data": load(run_dir)["data"]}
    save(run_dir, results)
    absent = write_report(run_dir).read_bytes()
    save(run_dir, results | dict.fromkeys(PARTS))
    assert write_report(run_dir).read_bytes() == absent


def test_versions_file_stands_in_for_versions(run_dir: Path) -> None:
    results = load(run_dir)
    del results["versions"]
    save(run_dir, results)
    (run_dir / "versions.json").write_text('{"numpy": "9.9.9"}')
    assert row(read(run_dir), "numpy") == [["numpy", "9.9.9"]]


def test_many_classes_and_large_color_thumbnails_stay_small(run_dir: Path) -> None:
    results = load(run_dir)
    c = 120
    results["data"] |= {"num_classes": c, "class_names": [f"a rather long class name {i}" for i in range(c)]}
    results["class_counts"] = {"given": [1] * c, "predicted": [3] * c, "true": None}
    results["per_class"] = {"on": "test", "count": [3] * c, "recall": [0.5] * c}
    results["confusion"] = {
        "on": "test",
        "matrix": [[int(i == j) * 5 + (i * j) % 3 for j in range(c)] for i in range(c)],
    }
    noise = Image.effect_noise((900, 700), 90).convert("RGB")
    noise.save(run_dir / "thumbnails" / "large.png")
    results["given"][0]["thumbnail"] = "thumbnails/large.png"
    save(run_dir, results)
    path = write_report(run_dir)
    assert path.stat().st_size < 600_000
    source = Reader(path.read_text()).all("img")[0]["src"]
    assert source is not None
    with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as image:
        assert max(image.size) == 128


def test_thumbnails_that_are_gone_or_broken_leave_a_note(run_dir: Path) -> None:
    results = load(run_dir)
    (run_dir / results["given"][0]["thumbnail"]).unlink()
    (run_dir / results["given"][1]["thumbnail"]).write_bytes(b"no image")
    results["given"][2]["thumbnail"] = None
    save(run_dir, results)
    page = read(run_dir)
    assert page.text.count("no picture") == 3
    assert "2 of 10 thumbnails are not in the run folder or are no images." in page.text
    assert page.text.count("no picture") == 3


def test_unreached_items_and_an_unfinished_solve_are_said_aloud(run_dir: Path) -> None:
    results = load(run_dir)
    results["graph"] |= {"num_unreached": 1234, "status": "max_steps"}
    results["map"]["label"][0] = -1
    save(run_dir, results)
    page = read(run_dir)
    assert "No label reaches 1,234 images through the graph" in page.text
    assert "The solver did not reach its tolerance (max_steps)" in page.text
    assert "no label reached it" in page.text


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("data", "gone", "data must be an object"),
        ("data.num_labeled", None, "data.num_labeled must be a value; got None"),
        ("data.num_classes", 0, "data.num_classes must be at least 1; got 0"),
        ("data.class_names", ["a"], "data.class_names must be a list of 10 values; got a list of 1"),
        ("scores", {}, "scores must be a list; got {}"),
        ("scores.1.accuracy", 1.5, "scores[1].accuracy must be a finite number between 0 and 1; got 1.5"),
        ("scores.1.accuracy", "high", "scores[1].accuracy must be a finite number between 0 and 1; got 'high'"),
        ("scores.0.ci95", [0.9, 0.1], "scores[0].ci95 must be [low, high]"),
        ("map.y", [1.0], "map.y must be a list of 1210 values; got a list of 1"),
        ("map.x.7", float("nan"), "map.x[7] must be a finite number; got nan"),
        ("map.label.3", 10, "map.label[3] must be a finite number between -1 and 9; got 10"),
        ("confusion.matrix", [], "confusion.matrix must be a list of 10 values; got a list of 0"),
        ("confusion.matrix.2", [1], "confusion.matrix[2] must be a list of 10 values; got a list of 1"),
        ("class_counts.given.0", 0.5, "class_counts.given[0] must be a whole number; got 0.5"),
        ("given.0.confidence", True, "given[0].confidence must be a finite number"),
        ("given.0.thumbnail", "../../secret.png", "the thumbnail '../../secret.png' lies outside the run folder"),
    ],
)
def test_values_that_cannot_be_right_are_named(run_dir: Path, place: str, value: object, message: str) -> None:
    results = load(run_dir)
    *path, name = [int(word) if word.isdigit() else word for word in place.split(".")]
    inner = results
    for word in path:
        inner = inner[word]
    inner[name] = value
    save(run_dir, results)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        write_report(run_dir)
    assert "results.json" in str(caught.value)
    assert not (run_dir / "report.html").exists()


def test_missing_folder_and_files_are_named(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is no folder"):
        write_report(tmp_path / "nowhere")
    (run_dir / "results.json").write_text('{"data": {"num_')
    with pytest.raises(DataError, match=r"results\.json is not readable as JSON .* repeat the run"):
        write_report(run_dir)
    (run_dir / "results.json").write_text("[]")
    with pytest.raises(DataError, match=r"the file must be an object"):
        write_report(run_dir)
    (run_dir / "results.json").unlink()
    with pytest.raises(DataError, match=r"needs .*results\.json, and there is no such file.*let the run finish"):
        write_report(run_dir)


def test_other_files_that_cannot_be_read_are_named(run_dir: Path) -> None:
    (run_dir / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"config\.yaml cannot be read as UTF-8"):
        write_report(run_dir)
    (run_dir / "config.yaml").unlink()
    results = load(run_dir)
    del results["versions"]
    save(run_dir, results)
    for content in ("{", "[1]"):
        (run_dir / "versions.json").write_text(content)
        with pytest.raises(DataError, match=r"versions\.json"):
            write_report(run_dir)


def test_losses_over_many_magnitudes_have_numbers_at_their_axis(run_dir: Path) -> None:
    (run_dir / "metrics.csv").write_text("epoch,step,loss,num_unreached\n0,1,10,0\n1,2,0.1,0\n2,3,0.001,0\n")
    html = write_report(run_dir).read_text()
    assert "mathdefault" not in html
    for tick in ("0.01", "0.1", "1", "10"):
        assert f">{tick}</text>" in html
    assert row(Reader(html), "num_unreached") == [
        ["num_unreached", "0", "3"]
    ]  # a count is no fraction, even a small one


def test_what_training_would_have_done_is_said_of_trained_runs_only(run_dir: Path) -> None:
    results = load(run_dir)
    results["cross_validation"] = [{"key": "graph", "method": "graph", "accuracy": 0.5, "num_items": 10}]
    (run_dir / "metrics.csv").unlink()
    save(run_dir, results)
    assert "the network has learned from their labels" in read(run_dir).text
    results["seconds"] = {"spread": 1.0}
    save(run_dir, results)
    page = read(run_dir)
    assert "the network has learned" not in page.text
    assert "Nothing was trained" in page.text


def test_texts_are_shown_where_there_are_no_pictures(run_dir: Path) -> None:
    results = load(run_dir)
    results["data"] |= {"kind": "text", "image_shape": None}
    for number, picture in enumerate(results["given"]):
        picture |= {"thumbnail": None, "text": f"number {number} {HOSTILE}"}
    save(run_dir, results)
    page = read(run_dir)
    assert "1,787 unlabeled texts" in page.text
    assert "no picture" not in page.text
    for number in range(len(results["given"])):
        assert f"number {number} {HOSTILE}" in page.text
