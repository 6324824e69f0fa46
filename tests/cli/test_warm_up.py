"""A warm-up is trained once: other labels and later settings start from it, and come out as if they had trained it."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lspread.cli.main import main
from lspread.cli.progress import EpochLines
from lspread.cli.warm_up import warm_up_folder
from lspread.lit.warm_up import ENTRY, NUM_KEPT
from tests.cli.conftest import make_photos

EXACT = ("--trainer.precision", "32-true")


@pytest.fixture
def fit(photo_arguments, tmp_path, capsys):
    """Return a function that trains a run of that name and returns its folder and what the screen said."""

    def run(name, *options, cache=tmp_path / "cache"):
        where = [] if cache is None else ["--warmup_cache", str(cache)]
        assert main(photo_arguments(tmp_path / name, *EXACT, *where, *options)) == 0
        return tmp_path / name, capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def warm_up(photo_arguments, tmp_path_factory):
    """Return a folder with one entry; copy it."""
    folder = tmp_path_factory.mktemp("warm up")
    only = ("--model.warmup_lr", "0.003", "--trainer.max_epochs", "1", "--warmup_cache", str(folder / "cache"))
    assert main(photo_arguments(folder / "run", *EXACT, *only)) == 0
    return folder / "cache"


def entries(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").glob("*"))


def curves(run_dir):
    """Return metrics.csv without what a clock says."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if "seconds" not in name} for row in csv.DictReader(file)]


def assert_same(first, second):
    expected, found = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")
    assert (first / "predictions.csv").read_text() == (second / "predictions.csv").read_text()
    assert curves(first) == curves(second)


def test_a_second_run_goes_on_from_the_first_ones_warm_up(fit, tmp_path):
    first, printed = fit("first")
    [checkpoint, metrics] = [tmp_path / "cache" / name for name in entries(tmp_path)]
    assert (checkpoint.suffix, metrics.suffix) == (".ckpt", ".csv")
    assert f"warm-up: will be kept for later runs on these images in {checkpoint}" in printed
    assert "epoch 1/4" in printed
    second, printed = fit("second")
    assert f"warm-up: 1 epochs taken from {checkpoint}" in printed
    assert "epoch 1/4" not in printed
    assert "epoch 2/4" in printed
    assert_same(first, second)
    results = [json.loads((folder / "results.json").read_text()) for folder in (first, second)]
    assert [found["warm_up"] for found in results] == [None, str(checkpoint)]
    warm_up = torch.load(checkpoint, weights_only=True)["callbacks"]["RunFolder"]["fit_seconds"]
    assert 0 < warm_up < results[1]["seconds"]["fit"]  # counted, though it took no time here
    assert str(checkpoint) in (second / "report.html").read_text()
    # A run that goes on remembers it.
    assert main(["fit", str(second), "--trainer.max_epochs", "5"]) == 0
    assert json.loads((second / "results.json").read_text())["warm_up"] == str(checkpoint)


OTHER = {
    "labels": ("--data.labels_csv", "others.csv"),
    "rate": ("--model.lr", "0.001"),
    "length": ("--trainer.max_epochs", "3"),
    "graph": ("--config", "graph.yaml"),
    "weights": ("--model.mixup", "0.5", "--model.supervised_weight", "0.5"),
}


@pytest.mark.parametrize("options", OTHER.values(), ids=list(OTHER))
def test_what_comes_later_may_differ(options, warm_up, fit, photos, config_path, tmp_path):
    if "graph.yaml" in options:
        config = yaml.safe_load(Path(config_path("image_folder")).read_text())
        callbacks = config["trainer"]["callbacks"]
        callbacks[0]["init_args"] |= {"k": 4, "alpha": 0.5}
        graph = tmp_path / "graph.yaml"
        graph.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
        options = ("--config", str(graph))
    if "others.csv" in options:
        others = tmp_path / "others.csv"
        with others.open("w", newline="") as out:
            csv.writer(out).writerows([("file", "label"), *list(photos.label.items())[12:20]])
        options = (options[0], str(others))
    options = ("--model.warmup_lr", "0.003", *options)
    alone, _ = fit("alone", *options, "--warmup_cache", "null", cache=None)
    kept, printed = fit("kept", *options, cache=shutil.copytree(warm_up, tmp_path / "cache"))
    assert "epochs taken from" in printed
    assert_same(alone, kept)


EARLIER = {
    "seed": ("--seed_everything", "1"),
    "temperature": ("--model.temperature", "0.7"),
    "rate": ("--model.warmup_lr", "0.001"),
    "rate of both stages": ("--model.warmup_lr", "null", "--model.lr", "0.001"),
    "views": ("--model.view", "lspread.data.StrongAugmentation", "--model.view.flip", "0"),
    "batches": ("--data.batch_size", "12"),
    "network": ("--model.backbone.widths", "[8, 12]"),
    "held-out images": ("--data.val_csv", "null"),
    "precision": ("--trainer.precision", "bf16-mixed"),
    "clipping": ("--trainer.gradient_clip_val", "0.5"),
    "validation": ("--trainer.check_val_every_n_epoch", "2"),
    "clock": ("--trainer.max_time", "00:01:00:00"),
}


@pytest.mark.parametrize("options", EARLIER.values(), ids=list(EARLIER))
def test_what_the_warm_up_depends_on_trains_another(options, warm_up, fit, tmp_path):
    shutil.copytree(warm_up, tmp_path / "cache")
    _, printed = fit("second", "--model.warmup_lr", "0.003", "--trainer.max_epochs", "1", *options)
    assert "will be kept" in printed
    assert len(entries(tmp_path)) == 4


def test_a_changed_picture_trains_another(fit, tmp_path):
    photos = make_photos(tmp_path / "photos")
    fit("first", "--data.root", str(photos.root))
    picture = photos.root / next(iter(photos.label))
    stat = picture.stat()
    shutil.copyfile(photos.root / list(photos.label)[-1], picture)
    os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    _, printed = fit("second", "--data.root", str(photos.root))
    assert "will be kept" in printed


def test_a_warm_up_alone_is_taken_whole(fit, tmp_path):
    only = ("--model.warmup_epochs", "2", "--trainer.max_epochs", "2")
    first, _ = fit("first", *only)
    assert len(curves(first)) == 2
    second, printed = fit("second", *only)
    assert "2 epochs taken from" in printed
    assert_same(first, second)
    # A shorter run than the warm-up has to train its part of it.
    _, printed = fit("third", "--model.warmup_epochs", "2", "--trainer.max_epochs", "1")
    assert "epochs taken" not in printed
    assert "epoch 1/1" in printed


def test_the_clock_of_a_timed_run_has_the_warm_ups_time(fit, tmp_path):
    fit("first", "--trainer.max_time", "00:01:00:00", "--trainer.max_epochs", "2")
    checkpoint = torch.load(tmp_path / "cache" / entries(tmp_path)[0], weights_only=True)
    assert 0 < checkpoint["callbacks"]["Timer"]["time_elapsed"]["train"] < 3600
    _, printed = fit("second", "--trainer.max_time", "00:02:00:00", "--trainer.max_epochs", "2")
    assert "epochs taken from" in printed
    # Where the warm-up alone took longer than all of a run may, nothing is left to train.
    _, printed = fit("third", "--trainer.max_time", "00:00:00:00", "--trainer.max_epochs", "2")
    assert "epoch 2/2" not in printed


@pytest.mark.parametrize("options", [(), ("--model.temperature", "0.7")])
def test_an_interrupted_warm_up_is_not_kept(options, photo_arguments, tmp_path, monkeypatch):
    def press_ctrl_c(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    longer = ("--model.warmup_epochs", "2", "--warmup_cache", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(EpochLines, "on_train_epoch_start", press_ctrl_c)
        assert main(photo_arguments(tmp_path / "halves", *EXACT, *longer)) == 130
    assert main(["fit", str(tmp_path / "halves"), *options]) == 0
    assert entries(tmp_path) == []  # a shuffle may have begun again, and settings may have changed


def test_a_warm_up_that_steps_or_time_cut_short_is_not_kept(fit, tmp_path, monkeypatch):
    fit("steps", "--model.warmup_epochs", "2", "--trainer.max_steps", "3")
    assert entries(tmp_path) == []

    def stop(self, trainer, *others):
        trainer.should_stop = True

    with monkeypatch.context() as patch:
        patch.setattr(EpochLines, "on_train_batch_start", stop)
        fit("time", "--trainer.max_epochs", "2")
    assert entries(tmp_path) == []


@pytest.mark.parametrize("options", [("--seed_everything", "false"), ("--data.num_workers", "1")])
def test_what_another_run_cannot_repeat_is_not_kept(options, fit, tmp_path):
    _, printed = fit("run", "--trainer.max_epochs", "1", *options)
    assert "kept" not in printed
    assert entries(tmp_path) == []


@pytest.mark.parametrize("options", [("--trainer.max_epochs", "0"), ("--trainer.max_steps", "1")])
def test_a_run_that_ends_before_the_warm_up_takes_none(options, warm_up, fit, tmp_path):
    shutil.copytree(warm_up, tmp_path / "cache")
    _, printed = fit("short", "--model.warmup_lr", "0.003", *options)
    assert "taken" not in printed


def test_a_damaged_entry_is_trained_again(fit, tmp_path):
    first, _ = fit("first")
    checkpoint = tmp_path / "cache" / entries(tmp_path)[0]
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=f"{checkpoint} cannot be read and is trained again"):
        second, printed = fit("second")
    assert "will be kept" in printed
    assert_same(first, second)
    torch.load(checkpoint, weights_only=True)


def test_a_folder_that_cannot_be_written_ends_no_run(fit, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match=r"could not be kept in .*file/cache/.*Training goes on"):
        fit("run", cache=tmp_path / "file" / "cache")


def test_null_keeps_nothing_and_the_default_is_the_users_cache(fit, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    fit("none", "--warmup_cache", "null", cache=None)
    assert not (tmp_path / "home").exists()
    fit("auto", cache=None)
    [checkpoint] = (tmp_path / "home" / "lspread" / "warm_ups").glob("*.ckpt")
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["warm_ups"]
    assert told == {"folder": str(checkpoint.parent), "number": 1, "mib": round(checkpoint.stat().st_size / 2**20, 1)}
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert warm_up_folder("auto") == Path.home() / ".cache" / "lspread" / "warm_ups"


def test_the_entries_used_last_are_kept_and_no_other_file_is_touched(fit, tmp_path):
    (tmp_path / "cache").mkdir()
    names = [f"warm_up-{number:032x}" for number in range(NUM_KEPT + 1)]
    foreign = ["my-model.ckpt", "my-model.csv", "warm_up-mine.ckpt"]
    for number, name in enumerate([f"{name}.{kind}" for name in names for kind in ("ckpt", "csv")] + foreign):
        path = tmp_path / "cache" / name
        path.write_text("")
        seconds = 1 if name in foreign else 1000 + number
        os.utime(path, (seconds, seconds))
    fit("first")
    left = entries(tmp_path)
    assert set(foreign) <= set(left)
    assert len([name for name in left if ENTRY.fullmatch(name)]) == NUM_KEPT
    assert {f"{names[0]}.ckpt", f"{names[1]}.csv"}.isdisjoint(left)
    assert f"{names[2]}.ckpt" in left
