"""The comparison with other methods: its statistics, its records, its settings, and what the READMEs say of them."""

import ast
import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy import stats

from lspread import UNLABELED
from lspread.cli.main import main
from lspread.nn import LabelPropagation

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"


@pytest.fixture(scope="module")
def scripts():
    """Import the scripts as they import each other."""
    sys.path.insert(0, str(ROOT / "experiments"))
    names = ("label_efficiency", "ablation", "baseline_settings", "graph_ablation", "settings_files")
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


def test_readmes_have_the_tables_of_the_records(scripts):
    measured = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    script = scripts["label_efficiency"]
    table = script.markdown(script.current_runs(script.read(RESULTS / "label_efficiency.json")))
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")
    script = scripts["ablation"]
    assert script.markdown(script.read_all(RESULTS / "ablation.json")) in measured
    script = scripts["graph_ablation"]
    record = script.read(RESULTS / "graph_ablation.json")
    assert record["refresh"] == script.REFRESH, "the recipe's graph has changed since"
    assert script.markdown(record["runs"]) in measured


def test_every_script_is_named_with_its_question():
    lines = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8").splitlines()
    scripts = sorted((ROOT / "experiments").glob("*.py"))
    wanted = [
        f"| `{path.name}` | {ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]} |" for path in scripts
    ]
    assert [line for line in lines if line.startswith("| `") and ".py` |" in line] == wanted


def test_table_by_hand(scripts):
    def row(test, unlabeled, graph=None):
        scores = {"test classifier": test, "unlabeled classifier": unlabeled}
        return scores if graph is None else scores | {"unlabeled graph": graph}

    runs = {
        "lspread/10/0": row(0.8, 0.81, 0.82),
        "lspread/10/1": row(0.84, 0.83, 0.83),
        "lspread/1/0": row(0.7, 0.71, 0.72),
        "lspread_chosen/10/0": row(0.9, 0.9, 0.9),
        "gll/10/0": row(0.79, 0.8),
        "gll/10/1": row(0.81, 0.8),
        "fixmatch/10/1": row(0.805, 0.8),
        "fixmatch/1/1": row(0.5, 0.5),
        "linear_probe/10/0": row(0.7, 0.7, 0.6)
        | {"test logistic_regression": 0.75, "unlabeled logistic_regression": 0.76},
    }
    _, _, first, second, third, fourth, fifth, last = scripts["label_efficiency"].markdown(runs).splitlines()
    # Two draws, one degree of freedom: 12.706 standard errors.
    assert first == "| lspread (2 / 1) | 82.0 ± 25.4 |  | 70.0 |  | 82.0 ± 12.7 / 82.5 ± 6.4 | 71.0 / 72.0 |"
    assert second == "| fixmatch (1 / 1) | 80.5 | 3.5 | 50.0 |  | 80.0 | 50.0 |"
    assert third == "| gll (2 / 0) | 80.0 ± 12.7 | 2.0 ± 12.7 |  |  | 80.0 ± 0.0 |  |"
    assert fourth == "| logistic regression on the warm-up (1 / 0) | 75.0 | 5.0 |  |  | 76.0 |  |"
    assert fifth == "| linear_probe (1 / 0) | 70.0 | 10.0 |  |  | 70.0 / 60.0 |  |"
    assert last == "| lspread_chosen (1 / 0) | 90.0 |  |  |  | 90.0 / 90.0 |  |"  # never mixed with drawn labels


def test_graph_ablation_by_hand(scripts):
    runs = {"recipe/1/0": 70.0, "recipe/1/1": 72.0, "k15/1/0": 69.0, "k15/1/1": 73.0, "k15/5/0": 80.0, "knn/1/1": 50.0}
    _, _, recipe, k15, knn = scripts["graph_ablation"].markdown(runs).splitlines()
    assert recipe == "| the recipe | 71.0 |  |  |  |  |  |"
    assert k15 == "| with 15 neighbors | 71.0 | +0.0 ± 12.7 | 80.0 |  |  |  |"
    assert knn == "| vote of the nearest labels | 50.0 | -22.0 |  |  |  |  |"


def test_ablation_by_hand(scripts):
    def row(test, graph):
        return {"test classifier": test, "unlabeled graph": graph, "minutes": 2.0}

    one = {
        "recipe/0": row(0.8, 0.82),
        "recipe/1": row(0.84, 0.83),
        "no_mixup/0": row(0.79, 0.8),
        "cutmix/1": row(0.8, 0.8),
    }
    other = {"recipe/0": row(0.82, 0.82), "no_mixup/0": row(0.79, 0.82), "no_mixup/1": row(0.1, 0.1)}
    recipe, no_mixup, cutmix = scripts["ablation"].rows([one, other])
    assert recipe == ["the recipe", "2 / 3", "82.5", "", "", "", "2.0"]
    # Draw 0 of both records is one draw: -1 and -3 points are -2, and no interval. Draw 1 has no recipe beside it.
    assert no_mixup == ["without mixing images", "1 / 2", "79.0", "81.0", "-2.0", "-1.0", "2.0"]
    assert cutmix[1:5] == ["1 / 1", "80.0", "84.0", "-4.0"]
    one["no_mixup/1"] = row(0.84, 0.83)
    found = scripts["ablation"].rows([one, other])[1]
    assert found[1:5] == ["2 / 3", "81.5", "82.5", "-1.0 +- 12.7"]


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
        used = scripts["label_efficiency"].hash_settings(method, options.set)
        return scores | {"minutes": 5.0, "steps": 10, "settings": used}

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(module, "warm_up", lambda out, settings: (tmp_path / "start.yaml", 1.0))
    chosen = {
        "label_efficiency": ["--methods", "lspread", "gll", "--labels", "1", "--seeds", "0", "1"],
        "ablation": ["--variants", "recipe", "cutmix", "--seeds", "0", "1"],
        "baseline_settings": ["--methods", "supervised", "fixmatch"],
    }[script]
    arguments = [script, "--record", str(record), "--out", str(tmp_path), *chosen]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(KeyboardInterrupt):
        module.main()
    assert len(json.loads(record.read_text())["runs"]) == 2
    module.main()
    count = 6 if script == "baseline_settings" else 4
    assert len(done) == len(set(done)) == count + 1
    assert len(json.loads(record.read_text())["runs"]) == count
    module.main()
    assert len(done) == count + 1
    assert len(capsys.readouterr().out.splitlines()) > count
    if script != "baseline_settings":
        content = json.loads(record.read_text())
        next(iter(content["runs"].values()))["settings"] = "of before"
        record.write_text(json.dumps(content))
        module.main()
        assert len(done) == count + 2, "what was run with other settings is run again"
    monkeypatch.setattr(sys, "argv", [*arguments, "--epochs" if script == "ablation" else "--minutes", "7"])
    with pytest.raises(SystemExit, match="name another --record"):
        module.main()


def test_a_folder_is_taken_up_only_for_what_was_asked_there(scripts, tmp_path, monkeypatch):
    module, folder, commands = scripts["label_efficiency"], tmp_path / "run", []
    config = tmp_path / "some.yaml"
    config.write_text("model: {lr: 0.1}")
    checkpoint = folder / "checkpoints" / "last.ckpt"

    def train(command, **options):
        """Stand for the training: killed before a checkpoint, interrupted after it, finished."""
        commands.append(command)
        assert (folder / "config.yaml").exists() == checkpoint.exists()
        (folder / "config.yaml").write_text("")
        if len(commands) == 2:
            checkpoint.parent.mkdir()
            checkpoint.write_text("")
        if len(commands) < 3:
            raise KeyboardInterrupt
        (folder / "results.json").write_text('{"scores": []}')

    monkeypatch.setattr(module.subprocess, "run", train)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            module.fit(folder, [config], ["--data.seed=1"])
    with pytest.raises(SystemExit, match="holds a run with other settings"):
        module.fit(folder, [config], ["--data.seed=2"])
    assert module.fit(folder, [config], ["--data.seed=1"]) == {"scores": []}
    begins = ["--config", str(config)]
    assert [command[4:6] if "--config" in command else command[4:5] for command in commands] == [
        begins,
        begins,
        [str(folder)],
    ]
    assert module.fit(folder, [config], ["--data.seed=1"]) == {"scores": []}
    assert len(commands) == 3
    config.write_text("model: {lr: 0.2}")
    with pytest.raises(SystemExit, match="holds a run with other settings"):
        module.fit(folder, [config], ["--data.seed=1"])


def test_every_method_has_the_best_of_the_settings_that_were_tried(scripts):
    runs = scripts["label_efficiency"].read(RESULTS / "baseline_settings.json")["runs"]
    for method, candidates in scripts["baseline_settings"].CANDIDATES.items():
        tried = {key.split("/")[1]: row for key, row in runs.items() if key.split("/")[0] == method}
        assert set(tried) == set(candidates)
        best = max(tried, key=lambda name: tried[name]["unlabeled classifier"])
        model = yaml.safe_load((ROOT / "configs" / "methods" / f"{method}.yaml").read_text())["model"]
        for setting in best.split(" "):
            name, value = setting.split("=")
            assert model[name] == float(value), f"{method}: {name} of {best}"


def test_gll_is_laplace_learning_with_its_weights():
    """Weights exp(-4 d^2 / (s_i s_j)) of 25 neighbors, the larger of both directions; given labels held."""
    asked = yaml.safe_load((ROOT / "configs" / "methods" / "gll.yaml").read_text())["model"]["spread_layer"]
    layer = LabelPropagation(**asked["init_args"])
    z = torch.randn(80, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    label = torch.where(torch.arange(80) < 30, torch.arange(80) % 10, UNLABELED)
    distance = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    width, near = distance.topk(25, largest=False)[0][:, -1], distance.topk(25, largest=False)[1]
    weight = torch.exp(-4 * distance**2 / (width[:, None] * width))
    weight = torch.zeros_like(weight).scatter_(1, near, weight.gather(1, near))
    weight = torch.maximum(weight, weight.T)
    laplacian = weight.sum(1).diag() - weight
    free, given = label == UNLABELED, label != UNLABELED
    right = weight[free][:, given] @ torch.eye(10, dtype=torch.float64)[label[given]]
    ridge = asked["init_args"]["ridge"] * torch.eye(int(free.sum()), dtype=torch.float64)
    expected = torch.linalg.solve(laplacian[free][:, free] + ridge, right)
    torch.testing.assert_close(layer(z, label)[free], expected, atol=1e-6, rtol=1e-6)


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
    methods |= {name: list(found.values()) for name, found in scripts["baseline_settings"].CANDIDATES.items()}
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
