"""One patient, one side: by property tests, and in folders of images."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lspread.data import FewLabelSplit, ImageFolder, VectorData
from lspread.data.groups import check_groups, choose_held_out, hide_relatives, read_groups_csv, whole_groups
from lspread.errors import ConfigError, DataError
from lspread.typing import UNLABELED


@st.composite
def grouped_labels(draw: st.DrawFn) -> tuple[torch.Tensor, list[str]]:
    """Items of 3 to 12 groups of 1 to 6 items each, in any order, some without a class."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=3, max_size=12))
    group = draw(st.permutations([f"patient {g}" for g, size in enumerate(sizes) for _ in range(size)]))
    label = draw(st.lists(st.sampled_from([UNLABELED, 0, 0, 1, 1, 2]), min_size=len(group), max_size=len(group)))
    return torch.tensor(label), list(group)


fractions = st.sampled_from([0.0, 0.05, 0.2, 1 / 3, 0.45])


@settings(max_examples=150, deadline=None)
@given(data=grouped_labels(), test=fractions, val=fractions, seed=st.integers(0, 100))
def test_no_group_ever_stands_on_two_sides(
    data: tuple[torch.Tensor, list[str]], test: float, val: float, seed: int
) -> None:
    label, group = data
    try:
        found = choose_held_out(label, test_fraction=test, val_fraction=val, group=group, seed=seed)
    except DataError as error:
        # Only where nothing could be held out: groups are too few, or every kind of item is there once.
        kinds = torch.bincount(label + 1).max()
        if "at least 2" not in str(error) or (len(set(group)) > 3 and kinds > 2):
            raise
        return
    held_out = torch.cat([found["test"], found["val"]])
    sides = [
        {group[i] for i in rows}
        for rows in (
            found["test"].tolist(),
            found["val"].tolist(),
            sorted(set(range(len(label))) - set(held_out.tolist())),
        )
    ]
    assert not sides[0] & sides[1]
    assert not (sides[0] | sides[1]) & sides[2]
    assert sides[2], "nothing is left to train on"
    assert (bool(sides[0]), bool(sides[1])) == (test > 0, val > 0)
    assert len(held_out.unique()) == len(held_out)
    again = choose_held_out(label, test_fraction=test, val_fraction=val, group=group, seed=seed)
    assert all(again[part].equal(found[part]) for part in found)


@settings(max_examples=60, deadline=None)
@given(data=grouped_labels(), seed=st.integers(0, 20))
def test_a_data_module_keeps_groups_together_and_judges_strangers_only(
    data: tuple[torch.Tensor, list[str]], seed: int
) -> None:
    label, group = data
    try:
        held_out = choose_held_out(label, test_fraction=0.3, group=group, seed=seed)
        module = VectorData(
            torch.arange(float(len(label)))[:, None],
            label,
            list("abc"),
            group=group,
            fraction=0.3,
            seed=seed,
            **held_out,
        )
        module.setup()
    except DataError:  # too few groups, or the draw left one class
        return
    split = module.split
    seen, tested = ({group[i] for i in rows.tolist()} for rows in (split.pool, split.test))
    assert tested
    assert not seen & tested
    known = {group[i] for i in split.labeled.tolist()}
    truth = module.evaluator.label(torch.arange(len(label)))
    for row in range(len(label)):
        hidden = row in split.unlabeled and group[row] in known
        assert truth[row] == (UNLABELED if hidden else label[row])


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.25, 0.3, 0.5])
@pytest.mark.parametrize("is_grouped", [False, True])
def test_shares_are_met_in_every_class(fraction: float, is_grouped: bool) -> None:
    label = torch.arange(1200) % 3
    label[600:] = UNLABELED
    label[:30] = 2
    group = [str(i // 6) for i in range(1200)] if is_grouped else None
    rows = choose_held_out(label, test_fraction=fraction, group=group, seed=0)["test"]
    assert (label[rows] == UNLABELED).any() == is_grouped  # alone, an item of unknown class can judge nothing
    for c in range(3):
        share = (label[rows] == c).sum() / (label == c).sum()
        assert share == pytest.approx(fraction, abs=0.03 if is_grouped else 0.005)


def test_val_is_a_share_of_all_and_not_of_what_test_left() -> None:
    found = choose_held_out(torch.arange(1000) % 2, test_fraction=0.5, val_fraction=0.25, seed=1)
    assert (len(found["test"]), len(found["val"])) == (500, 250)
    assert not torch.isin(found["test"], found["val"]).any()


def test_what_is_apart_is_not_chosen() -> None:
    label, apart = torch.arange(100) % 2, torch.arange(50)
    rows = choose_held_out(label, test_fraction=0.4, apart=apart, seed=0)["test"]
    assert len(rows) == 20
    assert rows.min() >= 50


@pytest.mark.parametrize(
    ("label", "group", "options", "error", "message"),
    [
        (
            [0, 1, 0, 1],
            list("aaaa"),
            {"test_fraction": 0.2},
            DataError,
            "at least 2 groups to choose .* there are 1",
        ),
        ([0, 1], list("ab"), {"test_fraction": 0.2, "val_fraction": 0.2}, DataError, "at least 2"),
        ([-1, -1, 0], None, {"val_fraction": 0.2}, DataError, "at least 2 items with a known class .* there are 1"),
        ([0, 1, 2], None, {"val_fraction": 0.2}, DataError, "at least 2 items of one class"),
        ([0, 1], None, {"val_fraction": 0.5, "test_fraction": 0.5}, ConfigError, "together below 1; got 0.5 and 0.5"),
        ([0, 1], None, {"test_fraction": -0.1}, ConfigError, "must be 0 or more"),
    ],
)
def test_what_cannot_be_held_out(
    label: list[int], group: list[str] | None, options: dict[str, float], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        choose_held_out(torch.tensor(label), group=group, seed=0, **options)


def test_groups_by_hand() -> None:
    group = ["a", "b", "a", "c", "b", "c"]
    assert whole_groups(torch.tensor([1]), group).tolist() == [1, 4]
    assert whole_groups(torch.tensor([0, 5]), group).tolist() == [0, 2, 3, 5]
    split = FewLabelSplit.from_indices([0], num_items=6, num_classes=2, test=[3, 5])
    check_groups(split, group)
    label = torch.tensor([0, 1, 1, 0, 0, 1])
    assert hide_relatives(label, split, group).tolist() == [0, 1, UNLABELED, 0, 0, 1]
    with pytest.raises(DataError, match="group 'c' stands in the training pool and in test"):
        check_groups(FewLabelSplit.from_indices([0], num_items=6, num_classes=2, test=[3]), group)
    with pytest.raises(DataError, match="group 'b' stands in validation and in test"):
        check_groups(FewLabelSplit.from_indices([0, 2], num_items=6, num_classes=2, val=[1], test=[4]), group)


Make = Callable[..., Path]


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    """24 images of 8 patients, three each; of every patient one image has no label. Metadata stand in a second file."""
    with (
        (tmp_path / "labels.csv").open("w", newline="") as labels,
        (tmp_path / "meta.csv").open("w", newline="") as meta,
    ):
        rows, facts = csv.writer(labels), csv.writer(meta, delimiter=";")
        rows.writerow(["file", "patient", "label"])
        facts.writerow(["age", "item", "patient"])
        for number in range(24):
            Image.new("L", (6, 6), 10 * number).save(tmp_path / f"{number:02d}.png")
            patient = f"P{number % 8}"
            rows.writerow([f"{number:02d}.png", patient, "" if number >= 16 else ["sick", "well"][number % 2]])
            facts.writerow([40 + number, f"./{number:02d}.png", patient])
    return tmp_path


@pytest.mark.parametrize("groups_csv", [None, "meta.csv"])
def test_images_of_a_patient_stay_together(patients: Path, groups_csv: str | None) -> None:
    data = ImageFolder(
        str(patients),
        group_column="patient",
        groups_csv=groups_csv,
        val_fraction=0.25,
        test_fraction=0.25,
        image_size=6,
        in_channels=1,
    )
    data.setup()
    split = data.split
    places = [{row % 8 for row in part.tolist()} for part in (split.pool, split.val, split.test)]
    assert [len(place) for place in places] == [4, 2, 2]
    assert set.union(*places) == set(range(8))
    # What is held out is held out whole, and none of its labels is used.
    assert (len(split.val), len(split.test), len(split.labeled), len(split.unlabeled)) == (6, 6, 8, 4)
    # Both classes are judged, by the labels of the held-out patients.
    for part in (split.val, split.test):
        assert sorted(data.evaluator.label(part).tolist()) == [-1, -1, 0, 0, 1, 1]


def test_patients_of_a_test_file_leave_the_pool(patients: Path) -> None:
    text = (
        (patients / "labels.csv")
        .read_text()
        .replace("03.png,P3,well", "03.png,P3,")
        .replace("11.png,P3,well", "11.png,P3,")
    )
    (patients / "labels.csv").write_text(text)
    (patients / "test.csv").write_text("file,label\n03.png,well\n")
    data = ImageFolder(str(patients), test_csv="test.csv", group_column="patient", image_size=6)
    data.setup()
    assert data.split.test.tolist() == [3, 11, 19]
    assert data.evaluator.label(data.split.test).tolist() == [1, -1, -1]
    (patients / "test.csv").write_text("file,label\n03.png,well\n04.png,sick\n")
    text = text.replace("04.png,P4,sick", "04.png,P4,")
    (patients / "labels.csv").write_text(text)
    with pytest.raises(
        DataError, match=r"labels for training of 1 images whose group is in test_csv \(first: group 'P4'\)"
    ):
        ImageFolder(str(patients), test_csv="test.csv", group_column="patient", image_size=6).setup()


def test_groups_that_are_missing_are_named(patients: Path) -> None:
    def make(**options: Any) -> None:
        ImageFolder(str(patients), image_size=6, **options).setup()

    with pytest.raises(DataError, match=r"labels.csv has no column `doctor`; it has file, patient, label"):
        make(group_column="doctor")
    with pytest.raises(DataError, match=r"Unknown: patient"):
        make()
    with pytest.raises(DataError, match=r"There is no file .*none.csv"):
        make(group_column="patient", groups_csv="none.csv")
    Image.new("L", (6, 6)).save(patients / "new.png")
    with pytest.raises(DataError, match=r"`patient` is not known of 1 of 25 images \(first: new.png\). List every"):
        make(group_column="patient")
    with pytest.raises(ConfigError, match="test_fraction need group_column"):
        make(test_fraction=0.2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,patient\na.png, \n", "line 2: the cell `patient` of a.png is empty"),
        ("file,patient\na.png\n", "line 2: needs 2 cells, but has 1"),
        ("file,patient\n,P1\n", "line 2: the cell `file` is empty"),
        ("file,patient\n../a.png,P1\n", "line 2: ../a.png is outside the folder"),
        ("file,patient\na.png,1\na.png,2\n", "line 3: a.png is of '2' here and of '1' above"),
        ("patient,label\nP1,a\n", "has no column `file`; it has patient, label"),
    ],
)
def test_files_of_groups_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_groups_csv(tmp_path / "groups.csv", tmp_path, "patient")
