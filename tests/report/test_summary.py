import json
from pathlib import Path

import pytest

from lspread.report import Summary, read_results, summarize
from lspread.report.summary import recommend

DATA = {"num_classes": 2, "num_labeled": 4, "num_unlabeled": 96, "num_test": 1500, "image_shape": [1, 28, 28]}


def score(key: str, accuracy: float, on: str = "unlabeled", interval: list | None = None, num_items: int = 96) -> dict:
    return {"key": key, "method": key.upper(), "on": on, "accuracy": accuracy, "num_items": num_items, "ci95": interval}


def say(folder: Path, scores: list, **parts) -> Summary:
    (folder / "results.json").write_text(json.dumps({"data": DATA, "scores": scores} | parts))
    return summarize(read_results(folder))


def test_ours_ahead(tmp_path: Path) -> None:
    scores = [score("knn", 0.7), score("classifier", 0.9), score("graph", 0.8), score("logistic_regression", 0.6)]
    summary = say(tmp_path, scores, class_counts={"given": [2, 2]})
    assert summary.headline == (
        "With 4 labels (2 per class), the trained classifier gets 90.0 % of 96 unlabeled images right; "
        "the best baseline, the k-nearest-neighbor vote, gets 70.0 %."
    )
    assert (summary.notes, summary.tone) == ((), "good")


def test_a_baseline_ahead(tmp_path: Path) -> None:
    summary = say(tmp_path, [score("classifier", 0.5), score("knn", 0.75)], class_counts={"given": [1, 3]})
    assert summary.headline == (
        "With 4 labels (1 to 3 per class), the trained classifier gets 50.0 % of 96 unlabeled images right, "
        "but the k-nearest-neighbor vote is better here, with 75.0 %."
    )
    assert summary.tone == "beaten"


@pytest.mark.parametrize(("other", "chance"), [([0.6, 0.72], True), ([0.6, 0.69], False)])
def test_differences_within_the_intervals_are_called_so(tmp_path: Path, other: list, chance: bool) -> None:
    ours = score("classifier", 0.75, interval=[0.7, 0.8])
    summary = say(tmp_path, [ours, score("linear_probe", 0.65, interval=other)])
    assert summary.headline.endswith("may be chance).") is chance
    assert "LINEAR_PROBE, gets 65.0 %" in summary.headline


@pytest.mark.parametrize("other", [0.7496, 0.75, 0.7504])
def test_a_tie_and_a_better_graph(tmp_path: Path, other: float) -> None:
    summary = say(tmp_path, [score("classifier", 0.75), score("graph", 0.875), score("knn", other)])
    assert summary.tone == "good"
    assert summary.headline.endswith("right; the k-nearest-neighbor vote does just as well.")
    assert summary.notes[0].startswith("Label spreading on the graph alone reaches 87.5 %")


def test_the_set_is_one_on_which_ours_was_scored(tmp_path: Path) -> None:
    scores = [
        score("knn", 0.9),
        score("classifier", 0.8, on="test", num_items=1500),
        score("classifier", 0.7, on="val", num_items=20),
    ]
    summary = say(tmp_path, scores)
    assert summary.headline == "With 4 labels, the trained classifier gets 80.0 % of 1,500 test images right."
    assert summary.notes == ("On 20 validation images: 70.0 %.",)


def test_only_baselines(tmp_path: Path) -> None:
    summary = say(tmp_path, [score("knn", 0.5), score("logistic_regression", 0.625)])
    assert "logistic regression on the same embeddings gets 62.5 % of 96" in summary.headline
    assert "no classifier of ours was scored" in summary.headline
    assert summary.tone == "unknown"


def test_no_truth(tmp_path: Path) -> None:
    summary = say(tmp_path, [])
    assert "96 unlabeled images got a label; their true labels are not known" in summary.headline
    assert "validation" in summary.notes[0]
    checks = [
        {"key": "graph", "method": "g", "accuracy": 0.75, "num_items": 4},
        {"key": "x", "method": "x", "accuracy": 0.5},
    ]
    summary = say(tmp_path, [], cross_validation=checks)
    assert summary.notes == (
        "Each given label hidden in turn and predicted from the others: "
        "label spreading on the graph 75.0 %, x 50.0 % right.",
    )


def recommended(folder: Path, duels: dict, **parts) -> str:
    accuracy = {"graph": 0.9, "knn": 0.7, "logistic_regression": 0.6}
    rows = [
        {"key": key, "method": key, "accuracy": accuracy[key], "num_items": 40, "ci95": [0.4, 1], "against_best": duel}
        for key, duel in duels.items()
    ]
    content = {"data": DATA, "scores": [], "cross_validation": rows} | parts
    (folder / "results.json").write_text(json.dumps(content))
    return recommend(read_results(folder))


def test_pairs_decide_although_the_intervals_overlap(tmp_path: Path) -> None:
    clear, open_ = {"won": 1, "lost": 9, "p": 0.0216}, {"won": 4, "lost": 12, "p": 0.0768}
    said = recommended(tmp_path, {"graph": None, "knn": clear, "logistic_regression": {**clear, "p": 1e-6}})
    assert said.startswith("Go by label spreading on the graph: it is right most often of the 40 given labels")
    assert said.endswith(
        "by more than chance explains: beside the k-nearest-neighbor vote, it alone was right about 9 labels and it "
        "alone wrong about 1 (sign test, p = 0.022)."
    )
    said = recommended(tmp_path, {"graph": None, "knn": clear, "logistic_regression": open_})
    assert said.endswith("but the difference to logistic regression on the same embeddings is within noise.")
    said = recommended(tmp_path, {"graph": None, "knn": open_, "logistic_regression": open_})
    assert "the k-nearest-neighbor vote and logistic regression on the same embeddings is within noise" in said
    # Folders of earlier versions have intervals at most.
    assert "intervals overlap" in recommended(tmp_path, {"graph": None, "knn": None})


@pytest.mark.parametrize(("p", "said"), [(0.5, "ahead, though by no more than chance explains"), (0.01, "better here")])
def test_a_lead_of_a_baseline_that_chance_explains_is_called_so(tmp_path: Path, p: float, said: str) -> None:
    checks = [
        {"key": "knn", "method": "k", "accuracy": 0.9, "against_best": None},
        {"key": "graph", "method": "g", "accuracy": 0.8, "against_best": {"won": 1, "lost": 3, "p": p}},
    ]
    assert say(tmp_path, [], cross_validation=checks).notes[1].endswith(f"the k-nearest-neighbor vote is {said}.")


def test_a_class_with_one_label_is_named(tmp_path: Path) -> None:
    data = {**DATA, "class_names": ["cat", "dog"]}
    said = recommended(tmp_path, {}, data=data, class_counts={"given": [1, 3]})
    assert "two labels of every class or more ('cat' has one)" in said
