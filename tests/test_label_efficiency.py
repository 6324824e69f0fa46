"""The comparison with other methods: its statistics, its records, its settings, and what README says of them."""

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lspread.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"


@pytest.fixture(scope="module")
def scripts():
    """Import the scripts as they import each other."""
    sys.path.insert(0, str(ROOT / "experiments"))
    names = ("label_efficiency", "ablation", "baseline_settings", "settings_files")
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(ROOT / "experiments"))


def test_interval_is_students(scripts):
    values = np.array([70.0, 74.0, 75.0])
    expected = stats.t(2).ppf(0.975) * np.sqrt(((values - 73) ** 2).sum() / 2) / np.sqrt(3)
    assert scripts["label_efficiency"].interval(values) == pytest.approx(expected)
    describe = scripts["label_efficiency"].describe
    assert describe(values) == f"73.0 +- {expected:.1f}"
    assert describe(values[:1], "+.1f") == "+70.0"
    assert describe(values[:0]) == ""


def test_readme_has_the_numbers_of_the_records(scripts):
    describe = scripts["label_efficiency"].describe
    runs = json.loads((RESULTS / "label_efficiency.json").read_text())["runs"]

    def scores(method, labels, column):
        found = {key.split("/")[2]: row for key, row in runs.items() if key.startswith(f"{method}/{labels}/")}
        return {seed: 100 * row[column] for seed, row in found.items() if column in row}

    rows = re.findall(r"^\| \**(\w+)\** \((\d) / (\d)\) \|(.*)\|$", (ROOT / "README.md").read_text(), re.M)
    assert {name for name, *_ in rows} == {key.split("/")[0] for key in runs}
    for method, *draws, cells in rows:
        expected = []
        for labels, count in zip((10, 1), draws, strict=True):
            test, ours = (scores(name, labels, "test classifier") for name in (method, "lspread"))
            assert len(test) == int(count)
            ahead = [ours[seed] - test[seed] for seed in test if not method.startswith("lspread")]
            expected += [describe(np.array(list(one))) for one in (test.values(), ahead)]
        for labels in (10, 1):
            found = scores(method, labels, "unlabeled graph") or scores(method, labels, "unlabeled classifier")
            expected.append(f"{np.mean(list(found.values())):.1f}" if found else "")
        assert [cell.strip(" *").replace("±", "+-") for cell in cells.split("|")] == expected, method


@pytest.mark.parametrize("script", ["label_efficiency", "ablation", "baseline_settings"])
def test_finished_runs_are_kept_and_not_run_again(scripts, script, tmp_path, monkeypatch, capsys):
    module, record = scripts[script], tmp_path / "record.json"
    done = []

    def run(options, start, method, num_labels, seed):
        """Stand for five minutes of training, the third of which is interrupted."""
        if len(done) == 2:
            done.append("interrupted")
            raise KeyboardInterrupt
        done.append((method, num_labels, seed, *options.set))
        scores = {"test classifier": 0.5 + 0.01 * len(done), "unlabeled classifier": 0.5, "unlabeled graph": 0.5}
        return scores | {"minutes": 5.0}

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(module, "warm_up", lambda out, settings: (tmp_path / "start.yaml", 1.0))
    chosen = {
        "label_efficiency": ["--methods", "lspread", "gll", "--labels", "1", "--seeds", "0", "1"],
        "ablation": ["--variants", "recipe", "cutmix", "--seeds", "0", "1"],
        "baseline_settings": ["--methods", "supervised", "lp_deepssl"],
    }[script]
    arguments = [script, "--record", str(record), "--out", str(tmp_path), *chosen]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(KeyboardInterrupt):
        module.main()
    assert len(json.loads(record.read_text())["runs"]) == 2
    module.main()
    count = 5 if script == "baseline_settings" else 4
    assert len(done) == len(set(done)) == count + 1
    assert len(json.loads(record.read_text())["runs"]) == count
    module.main()
    assert len(done) == count + 1
    assert len(capsys.readouterr().out.splitlines()) > count
    monkeypatch.setattr(sys, "argv", [*arguments, "--minutes", "7"])
    with pytest.raises(SystemExit, match="name another --record"):
        module.main()


def test_settings_files_are_compared_on_the_draws_that_both_have(scripts, tmp_path, monkeypatch, capsys):
    module, record, called = scripts["settings_files"], tmp_path / "record.json", []

    def fit(folder, configs, settings):
        """Stand for an hour of training: 85 and 86 % for the long one, 83 and 82 % for the short one."""
        called.append((folder.name, *settings))
        right = {"fashion_mnist-0": 0.85, "fashion_mnist-1": 0.86, "fashion_mnist_10min-0": 0.83}.get(folder.name, 0.82)
        asked = [("test", "classifier"), ("unlabeled", "graph")]
        scores = [{"on": on, "key": key, "accuracy": right} for on, key in asked]
        return {"seconds": {"fit": 90.0, "embed": 30.0}, "scores": scores}

    monkeypatch.setattr(module, "fit", fit)
    monkeypatch.setattr(
        sys, "argv", ["settings_files", "--record", str(record), "--out", str(tmp_path), "--seeds", "0"]
    )
    module.main()
    assert "fashion_mnist_10min loses, test: 2.0 points" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*sys.argv, "1"])
    module.main()
    assert len(called) == 4
    assert {f"--warmup_cache={tmp_path / 'warm_ups'}"} == {settings[2] for settings in called}
    printed = capsys.readouterr().out
    assert "fashion_mnist_10min loses, test: 3.0 +- 12.7 points" in printed  # 2 and 4: 12.7 = t(1) of 0.975
    assert re.search(r"fashion_mnist +2 +2\.0 +85\.5", printed)


def test_all_settings_are_known(scripts, capsys):
    """A misspelled setting would end the run that comes to it, hours later."""
    methods = {name: [[]] for name in scripts["label_efficiency"].METHODS if not name.startswith("lspread")}
    methods |= scripts["baseline_settings"].CANDIDATES
    tried = [(name, settings) for name, candidates in methods.items() for settings in candidates]
    tried += [(None, settings) for _, settings in scripts["ablation"].VARIANTS.values()]
    for method, settings in tried:
        names = ["fashion_mnist"] if method is None else ["fashion_mnist", f"methods/{method}"]
        files = [part for name in names for part in ("--config", str(ROOT / "configs" / f"{name}.yaml"))]
        command = ["fit", *files, *(f"--{one}" for one in settings), "--print_config"]
        try:
            code = main(command)
        except SystemExit as end:
            code = end.code
        assert code in (0, None), f"{command}: {capsys.readouterr().err}"
