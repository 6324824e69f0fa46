"""The benchmark of the core runs, its peers compute the same things, and its verdicts follow from its rows."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
ALPHA, K = 0.9, 5


@pytest.fixture(scope="module")
def peers():
    """Make the folder of the script importable, as it is for the script."""
    sys.path.insert(0, str(ROOT / "experiments"))
    import peers.contest
    import peers.graphs
    import peers.judges
    import peers.layers
    import peers.machine
    import peers.neighbors
    import peers.pipelines
    import peers.solvers
    import peers.table
    import peers.worker

    yield peers
    sys.path.remove(str(ROOT / "experiments"))


@pytest.fixture(scope="module")
def script(peers):
    import benchmark_core

    return benchmark_core


@pytest.fixture
def sit(peers, script, tmp_path, monkeypatch):
    """Run the script on tiny sizes without workers: inputs and judges are real, answers are not.

    Every contestant of the n-th task that is measured takes n seconds. Returns the keys of the tasks, in turn.
    """
    count = itertools.count(1)
    measured = []

    def call(self, module, inputs, **options):
        if module == "machine":
            return None, {"triad, GB/s": 10.0}
        output = self.folder / f"answer-{next(self._number)}.npz"
        arrays = peers.worker.read_inputs({name: str(path) for name, path in inputs.items()})
        found = getattr(peers, module).prepare(arrays, **options)(0)
        np.savez(output, **{name: value for name, value in found.items() if isinstance(value, np.ndarray)})
        return output, {}

    def compete(self, task):
        if task.key == sit.interrupted_at:
            raise KeyboardInterrupt
        measured.append(task.key)
        assert all(path.exists() for path in task.inputs.values())
        done = {"seconds": [float(next(count))], "values": {"accuracy by turn": [0.5]}}
        return [
            peers.contest.Row(task.section, task.key, task.title, who.name, task.size, who.is_ours, **done)
            for who in task.contestants
        ]

    def sit(*arguments, interrupted_at=None):
        measured.clear()
        sit.interrupted_at = interrupted_at
        command = ["--quick", "--threads", "1", "--output", str(tmp_path), *arguments]
        if interrupted_at:
            with pytest.raises(KeyboardInterrupt):
                script.main(command)
        else:
            script.main(command)
        return list(measured)

    monkeypatch.setattr(script.Arena, "call", call)
    monkeypatch.setattr(script.Arena, "compete", compete)
    monkeypatch.setattr(script, "plot_growth", lambda board, path: None)
    return sit


@pytest.fixture(scope="module")
def blobs():
    generator = np.random.default_rng(0)
    true = np.arange(90) % 3
    z = generator.normal(size=(90, 6)) + 4 * np.eye(3, 6)[true]
    given = np.where(np.arange(90) < 9, true, -1)
    return z.astype(np.float32), true, given


@pytest.fixture(scope="module")
def graph(peers, blobs):
    z, _, given = blobs
    index, distance = peers.neighbors.search_sklearn(z, K)
    s = peers.pipelines.normalized(peers.pipelines.self_tuning_graph(index, distance))
    targets = (given[:, None] == np.arange(3)).astype(np.float32)
    return {"data": s.data, "indices": s.indices, "indptr": s.indptr, "targets": targets}


@pytest.mark.parametrize(
    ("search", "options"),
    [("lspread", {"backend": "exact"}), ("sklearn", {}), ("faiss", {"index": "Flat"})],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_searches_agree_with_sorting_all_distances(peers, blobs, search, options):
    if search == "faiss":
        pytest.importorskip("faiss")
    z = blobs[0]
    distance = np.linalg.norm(z[:, None].astype(float) - z[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    found = peers.neighbors.prepare({"z": z}, search=search, k=K, **options)(0)
    assert np.array_equal(found["index"], np.argsort(distance, 1)[:, :K])
    np.testing.assert_allclose(found["distance"], np.sort(distance, 1)[:, :K], rtol=1e-4)
    assert peers.judges.recall_judge(z, K, num_rows=90)(found, 0) == {"recall": 1.0}


def test_recall_counts_what_is_wrong(peers, blobs):
    z = blobs[0]
    judge = peers.judges.recall_judge(z, K, num_rows=90)
    index = peers.neighbors.search_sklearn(z, K)[0].copy()
    index[0, 0] = 0  # itself
    index[1, 1] = index[1, 0]  # twice
    index[2, 0] = -1  # nobody
    index[3, 4] = int(np.linalg.norm(z - z[3], axis=1).argmax())  # far away
    assert judge({"index": index}, 0)["recall"] == pytest.approx(1 - 4 / (90 * K))


@pytest.mark.parametrize(
    ("solve", "options"),
    [
        ("lspread", {"solver": "ConjugateGradient"}),
        ("scipy_cg", {}),
        ("scipy_cg", {"num_threads": 2}),
        ("torch_power", {}),
        ("graphlearning", {}),
        ("pyg", {}),
    ],
)
def test_solvers_agree_with_the_dense_solve(peers, graph, tmp_path, solve, options):
    if solve == "graphlearning":
        pytest.importorskip("graphlearning")
    answer = peers.solvers.prepare(graph, solve=solve, alpha=ALPHA, rtol=1e-5, **options)(0)
    dense = peers.solvers.matrix_of(graph).toarray().astype(float)
    rhs = (1 - ALPHA) * graph["targets"].astype(float)
    expected = np.linalg.solve(np.eye(90) - ALPHA * dense, rhs)
    np.testing.assert_allclose(answer["scores"], expected, atol=2e-5)
    np.savez(tmp_path / "graph.npz", **graph)
    judge = peers.judges.residual_judge(tmp_path / "graph.npz", graph["targets"], ALPHA)
    residual = rhs - (np.eye(90) - ALPHA * dense) @ answer["scores"].astype(float)
    relative = np.linalg.norm(residual, axis=0) / np.linalg.norm(rhs, axis=0)
    assert judge(answer, 0)["residual"] == pytest.approx(relative.max(), rel=1e-6)
    assert relative.max() < 3e-5


@pytest.mark.parametrize("shape", [(1, 90), (3, 30)])
def test_layers_have_the_gradient_of_the_dense_solve(peers, blobs, shape):
    z, true, given = blobs
    arrays = {"x": z.reshape(*shape, -1), "label": given.reshape(shape), "true": true.reshape(shape)}
    options = {"k": K, "alpha": ALPHA}
    if shape[0] > 1:  # every graph needs labels of its own
        arrays["label"] = np.where(np.arange(30) < 6, arrays["true"], -1)
    exact = peers.layers.prepare(arrays, layer="dense_solve", dtype="float64", **options)(0)
    judge = peers.judges.gradient_judge(exact["gradient"])
    layers = [("lspread", {}), ("dense_solve", {})]
    if shape[0] == 1:
        layers += [("sparse_lu", {"factor_once": True}), ("sparse_lu", {"factor_once": False})]
    for layer, more in layers:
        answer = peers.layers.prepare(arrays, layer=layer, **options, **more)(0)
        assert answer["loss"] == pytest.approx(exact["loss"], rel=1e-5), layer
        assert judge(answer, 0)["gradient error"] < 2e-5, layer
    # 0.9^50 of the way is missing, and no more.
    unrolled = peers.layers.prepare(arrays, layer="dense_unrolled", dtype="float64", **options)(0)
    assert 1e-6 < judge(unrolled, 0)["gradient error"] < 0.3


def test_pipelines_find_the_blobs(peers, blobs):
    z, true, given = blobs
    arrays = {"z": z, "given": given[None]}
    answers = {}
    for name, options in {
        "lspread": {},
        "sklearn": {},
        "search_and_cg": {"search": "sklearn", "rtol": 1e-6},
    }.items():
        answers[name] = peers.pipelines.prepare(arrays, pipeline=name, k=K, alpha=ALPHA, **options)(0)
        accuracy = peers.judges.accuracy_judge(true, given[None])(answers[name], 0)["accuracy"]
        assert accuracy == (answers[name]["label"][9:] == true[9:]).mean()
        assert accuracy > 0.9, name
    # The same function by other means, so not one label differs.
    assert np.array_equal(answers["lspread"]["label"], answers["search_and_cg"]["label"])


def test_environment_suits_each(peers, monkeypatch):
    for name in peers.worker.UNSET:
        monkeypatch.setenv(name, "left over")
    plain = peers.worker.environment(3, is_faiss=False)
    special = peers.worker.environment(3, is_faiss=True)
    assert not set(peers.worker.UNSET) & set(plain)
    assert special.get("OPENBLAS_CORETYPE") == ("SkylakeX" if peers.machine.has_avx512() else None)
    assert all(found[name] == "3" for found in (plain, special) for name in peers.worker.THREADS)


def test_worker_says_what_failed_and_goes_on(peers, blobs, tmp_path):
    np.save(tmp_path / "z.npy", blobs[0])
    Contestant = peers.contest.Contestant
    who = [
        Contestant("fails", "neighbors", {"search": "nobody"}),
        Contestant("is missing", "neighbors", is_missing="this version has none"),
        Contestant("good", "neighbors", {"search": "sklearn"}, is_ours=True),
        Contestant("not there", "no_such_module"),
    ]
    arena = peers.contest.Arena(tmp_path, num_threads=1, is_shared=True, report=lambda text: None)
    judge = peers.judges.recall_judge(blobs[0], K, num_rows=90)
    task = peers.contest.Task("graph", "key", "title", 90, {"z": tmp_path / "z.npy"}, who, {"k": K}, judge)
    rows = {row.name: row for row in arena.compete(task)}
    arena.close()
    assert rows["fails"].note == "failed: KeyError: 'nobody'"
    assert rows["is missing"].note == "this version has none"
    assert rows["not there"].note == "not installed: peers.no_such_module"
    assert len(rows["good"].seconds) == 3
    assert min(rows["good"].seconds) > 0
    assert rows["good"].values["recall"] == 1
    board = peers.table.Board(list(rows.values()), {"triad, GB/s": 10.0})
    lines = peers.table.to_markdown(board, [], [], {"solve": "no data"}, plot=None).splitlines()
    assert any(line.startswith("| fails | failed: KeyError") for line in lines)
    assert "Skipped: no data" in lines


def make_row(peers, task, name, seconds, accuracy=(), *, size=10, section="graph", is_ours=False, **values):
    values["accuracy by turn"] = list(accuracy)
    return peers.contest.Row(section, task, task, name, size, is_ours, seconds=seconds, peak=100.0, values=values)


def test_bars_follow_from_rows(peers):
    table = peers.table
    rows = [
        make_row(peers, "a", "ours", [2.0, 1.0, 3.0], [0.8, 0.9, 0.7], is_ours=True, recall=0.99),
        make_row(peers, "a", "peer", [8.0, 6.0, 70.0], [0.7, 0.6]),
        make_row(peers, "b", "peer", [1.0]),
    ]
    rows += [make_row(peers, f"g{n}", "ours", [n**1.5 / 1e6], size=n, section="growth") for n in (10**4, 10**5)]
    rows.append(make_row(peers, "million", "ours", [1e9 / 1e6], size=10**6, section="million"))
    rows.append(make_row(peers, "g1000", "ours", [1.0], size=1000, section="growth"))
    board = table.Board(rows, {})

    def judged(figure, sense, threshold):
        found = table.Bar("text", figure, sense, threshold).judge(board)
        return found["figure"] if found["figure"] is None else pytest.approx(found["figure"]), found["verdict"]

    assert judged(table.ratio_to("a", "peer"), ">=", 4) == (4.0, "pass")
    assert judged(table.ours_over("a", "peer"), "<=", 0.2) == (0.25, "FAIL")
    assert judged(table.value_of("a", "recall"), ">=", 1) == (0.99, "FAIL")
    assert judged(table.value_of("a", "seconds"), "<=", 2) == (2.0, "pass")
    assert judged(table.value_of("a", "peak"), "<=", 99) == (100.0, "FAIL")
    assert judged(table.points_ahead("a", "peer"), ">=", 3) == (20.0, "pass")
    assert judged(table.exponent_of("nobody", "ours"), "<=", 1.2) == (1.5, "FAIL")
    assert judged(table.ratio_to("b", "peer"), ">=", 1) == (None, "not measured")
    assert judged(table.value_of("c", "seconds"), ">=", 1) == (None, "not measured")


# In the order of a run.
TASKS = {
    "graph": ["knn_low", "knn_high", "approximate_pixels", "approximate_sample"],
    "layer": ["layer_0", "layer_1", "layer_2", "layer_batch"],
    "labels": ["labels"],
    "million": ["million"],
    "solve": ["solve_10", "solve_100", "solve_million"],
    "growth": ["growth_300", "growth_600", "growth_1200"],
}
KEYS = [key for keys in TASKS.values() for key in keys]


def seconds_by_task(folder):
    """What the record holds, in its order; every task's rows lie together and agree."""
    sections = json.loads((folder / "benchmark_core.json").read_text())["sections"]
    found = {}
    for section, content in sections.items():
        for task, group in itertools.groupby(content["rows"], lambda row: row["task"]):
            rows = list(group)
            assert (section, task) not in found
            assert {row["section"] for row in rows} == {section}
            assert len({row["name"] for row in rows}) == len(rows)
            (found[section, task],) = {row["seconds"][0] for row in rows}
    return found


def test_an_interrupted_run_keeps_finished_tasks_and_resumes_with_the_rest(script, sit, tmp_path, monkeypatch):
    place = KEYS.index("solve_100")
    assert sit(interrupted_at="solve_100") == KEYS[:place]
    names = [(section, key) for section, keys in TASKS.items() for key in keys]
    assert list(seconds_by_task(tmp_path).items()) == list(zip(names[:place], range(1, place + 1), strict=True))
    page = (tmp_path / "benchmark_core.md").read_text()
    assert "solve, 600 nodes, c=10, " in page
    assert "600 nodes, c=100" not in page
    assert sit("--resume") == KEYS[place:]
    assert list(seconds_by_task(tmp_path).items()) == list(zip(names, range(1, len(names) + 1), strict=True))
    assert "solve, 600 nodes, c=100, " in (tmp_path / "benchmark_core.md").read_text()
    solve = json.loads((tmp_path / "benchmark_core.json").read_text())["sections"]["solve"]["rows"]
    assert {row["name"] for row in solve if row["is_ours"]} == {"lspread, AutoSolver"}

    def load(*_, **__):
        raise AssertionError("nothing is left to measure, so nothing is read")

    monkeypatch.setattr(script, "load_dataset", load)
    before = seconds_by_task(tmp_path)
    assert sit("--resume") == []
    assert seconds_by_task(tmp_path) == before


def test_a_task_measured_again_replaces_its_own_rows_only(script, sit, tmp_path, monkeypatch):
    sit("--only", "labels", "layer", "graph")
    first = seconds_by_task(tmp_path)
    assert [key for _, key in first] == KEYS[:9]
    # No other task's judge is made, and the record of the time before tasks were saved one by one is as good.
    record = tmp_path / "benchmark_core.json"
    content = json.loads(record.read_text())
    for section in content["sections"].values():
        section["seconds"] = 60.0
    record.write_text(json.dumps(content))
    with monkeypatch.context() as patch:
        patch.delattr(script, "recall_judge")
        patch.delattr(script, "accuracy_judge")
        assert sit("--resume", "--tasks", "layer_2", "layer_0") == ["layer_0", "layer_2"]
    second = first | {("layer", "layer_0"): 10.0, ("layer", "layer_2"): 11.0}
    assert list(seconds_by_task(tmp_path).items()) == list(second.items())
    assert json.loads(record.read_text())["sections"]["graph"] == content["sections"]["graph"]
    # Named sections are measured again from their first task; until a task has ended, its old rows stay.
    assert sit("--resume", "--only", "graph", interrupted_at="knn_high") == ["knn_low"]
    third = second | {("graph", "knn_low"): 12.0}
    assert list(seconds_by_task(tmp_path).items()) == list(third.items())
    assert sit("--resume", "--only", "labels") == ["labels"]
    assert list(seconds_by_task(tmp_path).items()) == list((third | {("labels", "labels"): 13.0}).items())
    # Tasks that a later sitting adds come where they belong.
    assert sit("--resume", "--tasks", "growth_600") == ["growth_600"]
    assert sit("--resume", interrupted_at="growth_1200") == [*KEYS[9:13], "growth_300"]
    assert [key for _, key in seconds_by_task(tmp_path)] == KEYS[:-1]
    assert "6 sittings" in (tmp_path / "benchmark_core.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "possible"),
    [(["--tasks", "layer_0", "layer_9"], KEYS), (["--only", "graph", "--tasks", "layer_9"], TASKS["graph"])],
)
def test_unknown_tasks_are_refused_with_those_there_are(sit, tmp_path, arguments, possible):
    with pytest.raises(SystemExit, match=f"^no task layer_9; --tasks takes some of: {' '.join(possible)}$"):
        sit(*arguments)
    assert not (tmp_path / "benchmark_core.json").exists()


def test_missing_images_skip_a_section_but_not_what_is_recorded(script, sit, tmp_path, monkeypatch):
    sit("--tasks", "labels")

    def load(*_, **__):
        raise script.DataError("there are no images")

    with monkeypatch.context() as patch:
        patch.setattr(script, "load_dataset", load)
        assert sit("--resume", "--only", "labels", "growth") == []
    sections = json.loads((tmp_path / "benchmark_core.json").read_text())["sections"]
    assert sections["growth"] == {"skipped": "there are no images"}
    assert {row["task"] for row in sections["labels"]["rows"]} == {"labels"}
    assert "Skipped: there are no images" in (tmp_path / "benchmark_core.md").read_text()
    assert sit("--resume", "--tasks", "growth_300") == ["growth_300"]
    assert list(seconds_by_task(tmp_path)) == [("labels", "labels"), ("growth", "growth_300")]


@pytest.mark.slow
def test_quick_run_writes_everything_and_resumes(tmp_path):
    import subprocess

    command = [sys.executable, str(ROOT / "experiments" / "benchmark_core.py"), "--quick", "--output", str(tmp_path)]
    command += ["--threads", "1"]
    first = subprocess.run([*command, "--only", "layer", "growth"], capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    found = json.loads((tmp_path / "benchmark_core.json").read_text())
    assert set(found["sections"]) == {"layer", "growth"}
    ours = [row for section in found["sections"].values() for row in section["rows"] if row["is_ours"]]
    assert ours
    assert all(row["seconds"] or row["note"] for row in ours)
    assert all(bar["verdict"].startswith("quick: ") for bar in found["bars"])
    assert (tmp_path / "benchmark_core.png").stat().st_size > 5_000
    assert "figures mean nothing" in (tmp_path / "benchmark_core.md").read_text()
    again = subprocess.run([*command, "--resume", "--only", "layer"], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    kept = json.loads((tmp_path / "benchmark_core.json").read_text())
    assert kept["sections"]["growth"] == found["sections"]["growth"]
    assert kept["sections"]["layer"] != found["sections"]["layer"]
    assert "2 sittings" in (tmp_path / "benchmark_core.md").read_text()
    other = subprocess.run([*command, "--resume", "--threads", "2"], capture_output=True, text=True, check=False)
    assert other.returncode != 0
    assert "was written with another threads; run without --resume" in other.stderr


def test_torch_is_at_its_usual_precision_after_the_limits(peers):
    found = peers.machine.prepare({}, size=64, repeats=1)(0)
    assert torch.get_float32_matmul_precision() == "highest"
    rates = peers.table.rate_lines(found)
    assert [line.split()[-1] for line in rates[:3]] == ["GFLOP/s"] * 3
    assert [line.split()[-1] for line in rates[-2:]] == ["GB/s"] * 2
