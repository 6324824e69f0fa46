import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lspread.data import FolderImages, ImageFolder, TensorImages
from lspread.data.image_folder import find_images
from lspread.errors import ConfigError, DataError

Make = Callable[..., Path]
FILES = ["a.png", "b.JPG", "sub/c.png", "sub/deep/d.webp", "e.bmp", "f.png"]
CSV = "file,label\na.png,dog\nsub/c.png,cat\nf.png,\n"


def ready(root: Path, *args: Any, **options: Any) -> ImageFolder:
    data = ImageFolder(str(root), *args, **{"image_size": 8, **options})
    data.setup()
    return data


def test_folder_with_a_label_file(make_folder: Make) -> None:
    root = make_folder(FILES, CSV)
    data = ImageFolder(str(root), image_size=8)
    assert (data.name, data.num_classes, data.class_names, data.in_channels) == ("photos", 2, ["cat", "dog"], 3)
    data.setup()
    assert data.items == ["a.png", "b.JPG", "e.bmp", "f.png", "sub/c.png", "sub/deep/d.webp"]
    assert data.split.labeled.tolist() == [0, 4]
    assert data.split.unlabeled.tolist() == [1, 2, 3, 5]
    assert data.given_label.tolist() == [1, -1, -1, -1, 0, -1]
    assert not data.evaluator.has_truth(data.split.unlabeled)
    assert data.image_shape == (3, 8, 8)
    batch = next(iter(data.predict_dataloader()))
    # Each file is of one grey value: 10 times its place in FILES, counted from 1. JPEG and WebP lose a little.
    grey = [10 * (FILES.index(item) + 1) for item in data.items]
    assert (batch["image"].float().mean((1, 2, 3)) - torch.tensor(grey)).abs().max() <= 1
    assert batch["image"].float().std((1, 2, 3)).max() == 0


def test_validation_and_test_files(make_folder: Make) -> None:
    root = make_folder(FILES, CSV)
    (root / "val.csv").write_text("file,label\nf.png,cat\nb.JPG,dog\n")
    (root / "test.csv").write_text("file,label\ne.bmp,cat\n")
    data = ready(root, val_csv="val.csv", test_csv="test.csv")
    assert data.split.val.tolist() == [1, 3]
    assert data.split.test.tolist() == [2]
    assert data.split.unlabeled.tolist() == [5]
    assert data.evaluator.label(torch.tensor([1, 3, 2])).tolist() == [1, 0, 0]
    assert data.given_label.tolist() == [1, -1, -1, -1, 0, -1]


def test_subfolders_as_classes(make_folder: Make) -> None:
    files = [f"cat/{i}.png" for i in range(4)] + [f"dog/x/{i}.png" for i in range(3)] + ["loose.png"]
    root = make_folder(files)
    (root / "empty").mkdir()
    data = ImageFolder(str(root), num_labels_per_class=2, image_size=8)
    assert data.class_names == ["cat", "dog"]
    data.setup()
    assert data.evaluator.label(torch.arange(8)).tolist() == [0, 0, 0, 0, 1, 1, 1, -1]
    assert data.given_label[data.split.labeled].tolist() == [0, 0, 1, 1]
    assert data.items[7] == "loose.png"
    assert 7 in data.split.unlabeled
    assert ready(root, None, fraction=1.0).split.labeled.numel() == 7
    with pytest.raises(
        DataError, match=r"class 1 \('dog'\) has 3. Draw at most 3 per class, or give class 1 \('dog'\) more"
    ):
        ready(root, num_labels_per_class=4)


@pytest.mark.parametrize("name", ["unlabeled", "Unlabelled"])
def test_a_subfolder_of_unlabeled_images_is_no_class(make_folder: Make, name: str) -> None:
    files = [f"{folder}/{i}.png" for folder in ("cat", "dog", name) for i in range(3)] + ["loose.png"]
    root = make_folder(files)
    data = ready(root)
    assert data.class_names == ["cat", "dog"]
    is_given = torch.tensor([item.startswith(("cat", "dog")) for item in data.items])
    assert data.given_label[is_given].tolist() == [0, 0, 0, 1, 1, 1]
    assert (data.given_label[~is_given] == -1).all()
    assert not data.evaluator.has_truth(data.split.unlabeled)
    assert ready(root, num_labels_per_class=1).split.labeled.numel() == 2
    assert ready(root, val_fraction=0.3).split.val.numel() == 2
    named = ready(root, class_names=["cat", "dog", name], num_labels_per_class=1)
    assert named.split.labeled.numel() == 3, "who names it as a class has one"
    (root / "labels.csv").write_text("file,label\ncat/0.png,cat\ndog/0.png,dog\n")
    assert ready(root).split.labeled.numel() == 2


def test_unlabeled_images_alone_have_no_classes(make_folder: Make) -> None:
    with pytest.raises(DataError, match="There is no label file"):
        ready(make_folder(["unlabeled/0.png", "unlabeled/1.png"]))
    with pytest.raises(DataError, match="One class only"):
        ready(make_folder(["unlabeled/0.png", "cat/1.png"]))


def test_drawing_from_a_label_file_hides_the_other_labels(make_folder: Make) -> None:
    files = [f"{i}.png" for i in range(8)]
    root = make_folder(files, "file,label\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(6)))
    data = ready(root, num_labels_per_class=1, val_fraction=0.34)
    assert data.split.labeled.numel() == data.split.val.numel() == 2
    assert data.evaluator.num_known(data.split.unlabeled) == 2
    assert int((data.given_label >= 0).sum()) == 2


def test_given_class_names_set_the_order(make_folder: Make) -> None:
    root = make_folder(FILES, CSV)
    data = ready(root, class_names=["dog", "cat", "cow"])
    assert data.num_classes == 3
    assert data.given_label.tolist() == [0, -1, -1, -1, 1, -1]
    with pytest.raises(DataError, match=r"line 2: label 'dog' is outside the classes cat, cow\. Correct"):
        ImageFolder(str(root), class_names=["cat", "cow"])
    with pytest.raises(ConfigError, match="class_names must differ from each other, but are cat, cat"):
        ImageFolder(str(root), class_names=["cat", "cat"])


def test_a_small_cache_decodes_on_demand(make_folder: Make) -> None:
    root = make_folder(FILES, CSV)
    memory = ready(root, in_channels=1)
    files = ready(root, in_channels=1, cache_gib=0.0)
    assert isinstance(memory.images, TensorImages)
    assert isinstance(files.images, FolderImages)
    assert (files.mean, files.std) == (memory.mean, memory.std)
    for one, other in zip(files.predict_dataloader(), memory.predict_dataloader(), strict=True):
        assert one["image"].equal(other["image"])
        assert one["index"].equal(other["index"])
    pool = memory.images.fetch(memory.split.pool).numpy() / 255
    np.testing.assert_allclose(memory.mean, [pool.mean()])
    np.testing.assert_allclose(memory.std, [pool.std()])


def test_hidden_files_and_link_loops(make_folder: Make) -> None:
    root = make_folder(["a.png", ".b.png", ".cache/c.png", "sub/d.png"])
    (root / "notes.txt").write_text("")
    (root / "sub" / "up").symlink_to(root, target_is_directory=True)
    (root / "link.png").symlink_to(root / "a.png")
    assert find_images(root) == ["a.png", "link.png", "sub/d.png"]


@pytest.mark.parametrize("cache_gib", [4.0, 0.0])
def test_unreadable_image_is_named_before_training(make_folder: Make, cache_gib: float) -> None:
    root = make_folder(FILES, CSV)
    (root / "sub" / "broken.png").write_bytes((root / "a.png").read_bytes()[:45])
    with pytest.raises(DataError, match=rf"1 of 7 image files cannot be read(.|\n)*{root}/sub/broken\.png: "):
        ready(root, cache_gib=cache_gib)


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        ("file,label\na.png,\n", "No labels at all: {root}/labels.csv has 1 rows and none has a label"),
        ("file,label\na.png,dog\nf.png,dog\n", "one class only: every label in {root}/labels.csv is 'dog'"),
        ("name,label\na.png,dog\n", "Missing: file. Unknown: name."),
        ("file,label\na.png,dog\na.png,cat\n", "line 3: a.png has label 'cat' here and 'dog' in line 2"),
    ],
)
def test_label_file_errors_come_at_construction(make_folder: Make, csv: str, message: str) -> None:
    root = make_folder(FILES, csv)
    with pytest.raises(DataError, match=re.escape(message.format(root=root))):
        ImageFolder(str(root))


def test_label_file_naming_a_missing_file(make_folder: Make) -> None:
    root = make_folder(FILES, CSV + "c.png,dog\n")
    with pytest.raises(
        DataError, match=r"labels.csv names 1 of 4 files(.|\n)*line 5: c.png \(did you mean sub/c.png\?\)"
    ):
        ready(root)


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        ("file,label\nf.png,cow\n", "val.csv, line 2: label 'cow' is outside the classes cat, dog"),
        ("file,label\nf.png,\n", "val.csv, line 2: a val image needs a label, but f.png has none"),
        ("file,label\nf.png,cat\na.png,dog\n", "val.csv, line 3: a.png also has a label for training"),
        ("file,label\n", "val.csv has no rows. Add val images"),
        ("file,label\nx.png,cat\n", "val.csv names 1 of 1 files that are not images"),
    ],
)
def test_validation_file_errors(make_folder: Make, csv: str, message: str) -> None:
    root = make_folder(FILES, CSV)
    (root / "val.csv").write_text(csv)
    with pytest.raises(DataError, match=re.escape(message)):
        ready(root, val_csv="val.csv")


def test_one_item_in_validation_and_test(make_folder: Make) -> None:
    root = make_folder(FILES, CSV)
    (root / "val.csv").write_text("file,label\nf.png,cat\n")
    with pytest.raises(DataError, match="`val` and `test` share 1 items"):
        ready(root, val_csv="val.csv", test_csv="val.csv")


def test_val_fraction_of_given_labels(make_folder: Make) -> None:
    files = [f"{i}.png" for i in range(12)]
    root = make_folder(files, "file,label\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(10)))
    (root / "val.csv").write_text("file,label\n11.png,a\n")
    data = ready(root, val_csv="val.csv", val_fraction=0.4)
    assert data.split.val.numel() == 5
    assert data.evaluator.label(data.split.val).tolist().count(0) == 3
    assert not torch.isin(data.split.labeled, data.split.val).any()
    assert data.split.labeled.numel() == 6
    assert data.split.unlabeled.numel() == 1
    assert (data.given_label[data.split.val] == -1).all()


def test_val_fraction_takes_no_class_its_last_label(make_folder: Make) -> None:
    root = make_folder(
        [f"{i}.png" for i in range(9)], "file,label\n" + "".join(f"{i}.png,{'aab'[i // 4]}\n" for i in range(9))
    )
    for seed in range(8):
        few = ready(root, val_fraction=0.4, seed=seed)
        assert few.given_label[few.split.labeled].unique().tolist() == [0, 1]


def test_val_fraction_without_spare_labels(make_folder: Make) -> None:
    root = make_folder(FILES, CSV)
    with pytest.raises(DataError, match="needs at least 2 items of one class; every class has one"):
        ready(root, val_fraction=0.2)


def test_a_label_file_beside_the_folder(make_folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(["cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png"])
    (root.parent / "labels.csv").write_text("file,label\ncat/a.png,yes\ndog/d.png,no\n")
    monkeypatch.chdir(root.parent)
    here = Path(root.name)
    assert ready(here, "labels.csv").class_names == ["no", "yes"]
    assert ready(here, num_labels_per_class=1).class_names == ["cat", "dog"], (
        "a file that nobody named is no label file"
    )
    (root / "labels.csv").write_text("file,label\ncat/a.png,old\ndog/d.png,new\n")
    assert ready(here).class_names == ["new", "old"], "auto means the one inside"
    with pytest.raises(ConfigError, match=r"labels.csv may be photos/labels.csv or the other .* ./labels.csv for the"):
        ready(here, "labels.csv")
    assert ready(here, "./labels.csv").class_names == ["no", "yes"]
    for inside in ("photos/labels.csv", str(root / "labels.csv")):
        assert ready(here, inside).class_names == ["new", "old"]
    (root.parent / "labels.csv").write_bytes((root / "labels.csv").read_bytes())
    assert ready(here, "labels.csv").class_names == ["new", "old"], "equal files need no choice"
    with pytest.raises(DataError, match=r"There is no label file photos/others\.csv"):
        ready(here, "others.csv")


def test_folder_errors(make_folder: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no folder .*nowhere. Give the folder"):
        ImageFolder(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"There is no label file .*labels\.csv. It needs a first line `file,label`"):
        ImageFolder(str(make_folder(["a.png"], name="flat")))
    with pytest.raises(DataError, match=r"No labels at all: .* has no subfolder with images"):
        ImageFolder(str(make_folder(["a.png"], name="flat")), None, num_labels_per_class=1)
    with pytest.raises(DataError, match=r"One class only: .* the single subfolder 'cat'"):
        ImageFolder(str(make_folder(["cat/a.png"], name="one")), num_labels_per_class=1)
    root = make_folder(["cat/a.png", "dog/b.png"], name="two")
    with pytest.raises(
        ConfigError, match=r"There is no .*labels\.csv. Taking the 2 subfolders .*\(cat, dog\) .*set num_labels"
    ):
        ImageFolder(str(root))
    with pytest.raises(DataError, match=r"There is no label file .*mine\.csv"):
        ImageFolder(str(root), "mine.csv", num_labels_per_class=1)
    with pytest.raises(DataError, match="'dog' is outside the classes cat, cow"):
        ready(root, num_labels_per_class=1, class_names=["cat", "cow"])
    parts = make_folder(["train/cat/a.png", "val/cat/b.png"], name="parts")
    with pytest.raises(
        DataError, match=r"\(train, val\) look like parts of a dataset, not like classes. Set root to .*parts/train"
    ):
        ImageFolder(str(parts), num_labels_per_class=1)
    empty = make_folder([], "file,label\na.png,x\nb.png,y\n", name="empty")
    with pytest.raises(DataError, match=r"There are no images under .*empty. Files that end in \.png, \.jpg"):
        ready(empty)
    with pytest.raises(ConfigError, match="image_size must be at least 1"):
        ImageFolder(str(root), image_size=0)
    with pytest.raises(ConfigError, match="in_channels must be 1"):
        ImageFolder(str(root), in_channels=2)


def test_mixed_sizes_and_modes_become_one_shape(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i, (mode, size) in enumerate([("L", (9, 30)), ("RGBA", (30, 9)), ("P", (20, 20)), ("1", (5, 5))]):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode).save(tmp_path / f"{i}.png")
    Image.fromarray(rng.integers(0, 65536, (7, 7)).astype(np.uint16)).save(tmp_path / "4.png")
    (tmp_path / "labels.csv").write_text("file,label\n0.png,x\n1.png,y\n")
    batch = next(iter(ready(tmp_path, image_size=12).predict_dataloader()))
    assert batch["image"].shape == (5, 3, 12, 12)


def test_pictures_that_lspread_drew_are_no_data(make_folder: Make) -> None:
    own = ["runs/one/thumbnails/0.png", "next/suggestions.png", "audit/audit.png"]
    root = make_folder(["cat/a.png", "dog/b.png", "audit.png", "thumbnails/c.png", *own])
    for beside in ("runs/one/results.json", "next/suggestions.csv", "audit/audit.csv"):
        (root / beside).write_text("")
    # What merely has such a name stays.
    assert find_images(root) == ["audit.png", "cat/a.png", "dog/b.png", "thumbnails/c.png"]
    data = ImageFolder(str(root), None, num_labels_per_class=1, image_size=8)
    assert data.class_names == ["cat", "dog", "thumbnails"]
