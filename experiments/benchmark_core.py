"""How fast and how right is the core, beside its peers, on this machine?

One run measures neighbor graphs, solves, layers forward and backward, and the whole way from features to labels, all
against other libraries, each in a process of its own with the same number of threads and the environment that suits it
best; contestants take turns. It prints and saves one table (Markdown and JSON), a plot of growth over n, and
which of the bars are met. Every finished task is saved at once, so an interruption loses the task in progress only.

    python experiments/benchmark_core.py                         # everything: about 25 minutes on two cores
    python experiments/benchmark_core.py --resume                # measures the tasks that are not recorded yet
    python experiments/benchmark_core.py --resume --only graph   # measures a section again and keeps the others
    python experiments/benchmark_core.py --resume --tasks layer_0 solve_million    # these tasks again, all others kept
    python experiments/benchmark_core.py --quick --output /tmp/quick    # tiny sizes: does it all work?

Without --resume the record starts anew: it then holds what this run measures and nothing else.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from peers.contest import Arena, Contestant, Row, Task
from peers.dataset import FULL, QUICK, Dataset, Sizes, load_dataset
from peers.judges import accuracy_judge, gradient_judge, recall_judge, residual_judge
from peers.machine import describe
from peers.table import (
    Bar,
    Board,
    exponent_of,
    ours_over,
    plot_growth,
    points_ahead,
    print_bars,
    print_task,
    rate_lines,
    ratio_to,
    to_markdown,
    value_of,
)
from rich.console import Console

import lspread.solve
from lspread.errors import DataError
from lspread.graph.neighbors import Backend

K, ALPHA, NUM_CLASSES = 15, 0.99, 10
RESULTS = Path(__file__).resolve().parent / "results"

GLL = "GLL: Annoy, Laplace, sparse LU adjoint"
# What the core promises. A figure nobody measured is "not measured", never "pass".
BARS = [
    Bar("1. exact kNN, 70,000 x 128: faiss IndexFlatL2 / ours", ratio_to("knn_low", "faiss IndexFlatL2"), ">=", 2.5),
    Bar("1. exact kNN, 70,000 x 784: faiss IndexFlatL2 / ours", ratio_to("knn_high", "faiss IndexFlatL2"), ">=", 2.5),
    Bar("1. exact kNN, 70,000 x 128: scikit-learn brute / ours", ratio_to("knn_low", "scikit-learn brute"), ">=", 5),
    Bar("1. exact kNN, 70,000 x 784: scikit-learn brute / ours", ratio_to("knn_high", "scikit-learn brute"), ">=", 5),
    Bar("1. exact kNN, 70,000 x 128: recall", value_of("knn_low", "recall"), ">=", 1),
    Bar("1. exact kNN, 70,000 x 784: recall", value_of("knn_high", "recall"), ">=", 1),
    Bar("2. solve, 70,000, c=10, 2e-6: SciPy CG per class / ours", ratio_to("solve_10", "SciPy CG per class"), ">=", 4),
    Bar("2. solve, 70,000, c=10: power iteration / ours", ratio_to("solve_10", "power iteration, torch CSR"), ">=", 8),
    Bar("2. solve, 70,000, c=10: true residual of ours", value_of("solve_10", "residual"), "<=", 2e-6),
    Bar("2. solve, 70,000, c=100: SciPy CG per class / ours", ratio_to("solve_100", "SciPy CG per class"), ">=", 5),
    Bar("2. solve, 70,000, c=100: true residual of ours", value_of("solve_100", "residual"), "<=", 2e-6),
    Bar("2. solve, a million, c=10, 1e-3: SciPy CG / ours", ratio_to("solve_million", "SciPy CG per class"), ">=", 4),
    Bar("2. solve, a million, c=10: true residual of ours", value_of("solve_million", "residual"), "<=", 1e-3),
    *[
        Bar(f"3. layer, n={n}: GLL / ours", ratio_to(f"layer_{place}", GLL), ">=", 5)
        for place, n in enumerate(FULL.layer)
    ],
    Bar("3. layer, n=4096: unrolling 50 steps / ours", ratio_to("layer_2", "dense, 50 steps unrolled"), ">=", 20),
    *[
        Bar(f"3. layer, n={n}: gradient error of ours", value_of(f"layer_{place}", "gradient error"), "<=", 1e-5)
        for place, n in enumerate(FULL.layer)
    ],
    Bar("3. 32 graphs of 80 nodes: ours / batched dense solve", ours_over("layer_batch", "dense solve"), "<=", 1.2),
    Bar("4. features to labels: scikit-learn / ours", ratio_to("labels", "scikit-learn LabelSpreading(knn)"), ">=", 5),
    Bar("4. ... points ahead", points_ahead("labels", "scikit-learn LabelSpreading(knn)"), ">=", 3),
    Bar("4. features to labels: faiss + SciPy CG / ours", ratio_to("labels", "faiss Flat + SciPy CG"), ">=", 2.5),
    Bar("4. ... points ahead, equal accuracy", points_ahead("labels", "faiss Flat + SciPy CG"), ">=", -0.2),
    Bar("4. features to labels: peak memory, MiB", value_of("labels", "peak"), "<=", 1.2 * 1024),
    Bar("5. a million, features to labels: seconds", value_of("million", "seconds"), "<=", 240),
    Bar("5. a million, features to labels: peak memory, MiB", value_of("million", "peak"), "<=", 6 * 1024),
    Bar(
        "5. exponent of time over n, approximate search, n >= 10,000",
        exponent_of("lspread, ivf", "lspread, nn_descent"),
        "<=",
        1.2,
    ),
]  # fmt: skip


def ours(
    name: str, module: str, *, is_ours: bool = False, backend: str = "", solver: str = "", **options: Any
) -> Contestant:
    """A contestant of lspread; a backend or solver that this version lacks is named in the table."""
    missing = ""
    if backend and backend not in get_args(Backend):
        missing = f"this version has no backend {backend!r}"
    if solver and not hasattr(lspread.solve, solver):
        missing = f"this version has no solver {solver}"
    options |= {key: value for key, value in (("backend", backend), ("solver", solver)) if value}
    return Contestant(name, module, options, is_ours=is_ours, is_missing=missing)


def peer(name: str, module: str, *, is_faiss: bool = False, **options: Any) -> Contestant:
    return Contestant(name, module, options, is_faiss=is_faiss)


# The contestants, one line each.
EXACT = [
    ours("lspread, exact", "neighbors", is_ours=True, search="lspread", backend="exact"),
    peer("faiss IndexFlatL2", "neighbors", search="faiss", index="Flat", is_faiss=True),
    peer("scikit-learn brute", "neighbors", search="sklearn"),
]
APPROXIMATE = [
    ours("lspread, auto", "neighbors", is_ours=True, search="lspread", backend="auto"),
    ours("lspread, ivf", "neighbors", search="lspread", backend="ivf"),
    ours("lspread, nn_descent", "neighbors", search="lspread", backend="nn_descent"),
    ours("lspread, faiss", "neighbors", search="lspread", backend="faiss"),
    peer("pynndescent", "neighbors", search="pynndescent"),
    peer("faiss HNSW32", "neighbors", search="faiss", index="HNSW32", search_width=64, is_faiss=True),
    peer("faiss IVF1024, 32 probes", "neighbors", search="faiss", index="IVF1024,Flat", probes=32, is_faiss=True),
]
SOLVE = [
    ours("lspread, AutoSolver", "solvers", is_ours=True, solve="lspread", solver="AutoSolver"),
    ours("lspread, ConjugateGradient", "solvers", solve="lspread", solver="ConjugateGradient"),
    ours("lspread, Chebyshev", "solvers", solve="lspread", solver="Chebyshev"),
    peer("SciPy CG per class", "solvers", solve="scipy_cg"),
    peer("SciPy CG, classes on threads", "solvers", solve="scipy_cg", num_threads=0),
    peer("power iteration, torch CSR", "solvers", solve="torch_power"),
    peer("graphlearning conjgrad", "solvers", solve="graphlearning"),
    peer("PyG LabelPropagation", "solvers", solve="pyg"),
]
SHORT_ONLY = {"power iteration, torch CSR", "PyG LabelPropagation"}  # minutes, at 100 classes or a million nodes
LAYER = [
    ours("lspread.LabelSpreading", "layers", is_ours=True, layer="lspread"),
    peer(GLL, "layers", layer="gll"),
    peer("sparse LU adjoint", "layers", layer="sparse_lu", factor_once=True),
    peer("sparse LU adjoint, as GLL: factored twice", "layers", layer="sparse_lu", factor_once=False),
    peer("dense, 50 steps unrolled", "layers", layer="dense_unrolled"),
    peer("dense solve", "layers", layer="dense_solve"),
]
RTOL_OF_LABELS = 1e-5  # lspread's default
LABELS = [
    ours("lspread, defaults", "pipelines", is_ours=True, pipeline="lspread"),
    ours("lspread, auto", "pipelines", pipeline="lspread", backend="auto"),
    peer("scikit-learn LabelSpreading(knn)", "pipelines", pipeline="sklearn"),
    peer("faiss Flat + SciPy CG", "pipelines", pipeline="search_and_cg", search="faiss", index="Flat",
         rtol=RTOL_OF_LABELS, is_faiss=True),
    peer("LP-DeepSSL's graph and solve, k=50", "pipelines", pipeline="lp_deepssl", k=50, is_faiss=True),
    peer("graphlearning randomwalk on faiss neighbors", "pipelines", pipeline="graphlearning", method="randomwalk",
         search="faiss", index="Flat", is_faiss=True),
    peer("graphlearning poisson on faiss neighbors", "pipelines", pipeline="graphlearning", method="poisson",
         search="faiss", index="Flat", is_faiss=True),
]  # fmt: skip
MILLION = [
    ours("lspread, auto", "pipelines", is_ours=True, pipeline="lspread", backend="auto"),
    peer("pynndescent + SciPy CG", "pipelines", pipeline="search_and_cg", search="pynndescent", rtol=RTOL_OF_LABELS),
]
# With the largest n each is asked for; exact searches grow as n^2.
GROWTH = [
    (ours("lspread, auto", "pipelines", is_ours=True, pipeline="lspread", backend="auto"), 300_000),
    (ours("lspread, ivf", "pipelines", pipeline="lspread", backend="ivf"), 1_000_000),
    (ours("lspread, nn_descent", "pipelines", pipeline="lspread", backend="nn_descent"), 100_000),
    (ours("lspread, exact", "pipelines", pipeline="lspread", backend="exact"), 100_000),
    (LABELS[2], 30_000),
    (LABELS[3], 100_000),
]


def without_compilers(contestant: Contestant) -> Contestant:
    """Leave out what compiles for half a minute before it starts."""
    is_compiled = "pynndescent" in contestant.options.values() or contestant.options.get("backend") == "nn_descent"
    reason = contestant.is_missing or ("left out of a quick run: it compiles too long" if is_compiled else "")
    return replace(contestant, is_missing=reason)


Maker = Callable[[str, str], Task]
"""Makes the task of a section and a key."""


class Benchmark:
    """The tasks of one run. The method named like a section returns what makes its tasks, by key.

    Inputs and judges can cost minutes, so they are made when their task is measured: listing the tasks is free.
    """

    def __init__(self, arena: Arena, load: Callable[[], Dataset], sizes: Sizes) -> None:
        self.arena, self._load, self.sizes = arena, load, sizes
        self._graphs: dict[str, Path] = {}
        self.is_quick = sizes is QUICK

    def makers(self, section: str) -> dict[str, Maker]:
        """What makes the tasks of a section, by key and in the order of a run."""
        found: dict[str, Maker] = getattr(self, section)()
        return found

    @cached_property
    def data(self) -> Dataset:
        """The embeddings; raises `DataError` where the images are missing."""
        self.arena.report("reading the images")
        return self._load()

    def measure(self, section: str, key: str) -> list[Row]:
        """Return the rows of one task; raises `DataError` where the images are missing."""
        task = self.makers(section)[key](section, key)
        if self.is_quick:
            task = replace(task, contestants=[without_compilers(contestant) for contestant in task.contestants])
        return self.arena.compete(task)

    def _name_of(self, embedding: str | int) -> str:
        """The name of an embedding; a number is that many rows of the large set, saved now."""
        return embedding if isinstance(embedding, str) else self.data.subset(embedding)

    def graph(self) -> dict[str, Maker]:
        return {
            "knn_low": partial(self._search, embedding="components", who=EXACT),
            "knn_high": partial(self._search, embedding="pixels", who=EXACT),
            "approximate_pixels": partial(self._search, embedding="pixels", who=APPROXIMATE),
            "approximate_sample": partial(self._search, embedding=self.sizes.approximate, who=APPROXIMATE),
        }

    def _search(
        self, section: str, key: str, *, embedding: str | int, who: list[Contestant], num_rows: int = 2_000
    ) -> Task:
        name = self._name_of(embedding)
        path = self.data.path(name)
        z = np.load(path)
        n, d = z.shape
        kind = "exact" if who is EXACT else "approximate"
        title = f"{kind} k nearest neighbors, {n:,} x {d}, k={K}; recall on {min(num_rows, n):,} rows against float64"
        judge = recall_judge(z, K, num_rows=num_rows)
        # All scores by one product each: what brute force needs. Symmetry or pruning can beat it.
        work = (lambda values: {"GFLOP": 2 * n * n * d / 1e9}) if who is EXACT else None
        return Task(section, key, title, n, {"z": path}, who, {"k": K}, judge, None, work)

    def solve(self) -> dict[str, Maker]:
        fast = [who for who in SOLVE if who.name not in SHORT_ONLY]
        few, many = NUM_CLASSES, 10 * NUM_CLASSES
        return {
            "solve_10": partial(self._solve, embedding="components", num_classes=few, rtol=2e-6, who=SOLVE),
            "solve_100": partial(self._solve, embedding="components", num_classes=many, rtol=2e-6, who=fast),
            "solve_million": partial(self._solve, embedding=self.sizes.large, num_classes=few, rtol=1e-3, who=fast),
        }

    def _targets(self, name: str, num_classes: int) -> Path:
        """Save one-hot rows of the first draw; more classes than there are get nodes drawn by seed."""
        given = np.load(self.data.path(f"{name}_given"))[0]
        if num_classes > NUM_CLASSES:
            rows = np.random.default_rng(0).choice(len(given), 5 * num_classes, replace=False)
            given = np.full(len(given), -1)
            given[rows] = np.arange(len(rows)) % num_classes
        path = self.data.folder / f"{name}_targets_{num_classes}.npy"
        np.save(path, (given[:, None] == np.arange(num_classes)).astype(np.float32))
        return path

    def _graph_of(self, name: str, kind: str) -> Path:
        """Return S of an embedding, made once by lspread from exact neighbors or from any that a million can have."""
        if name not in self._graphs:
            self.arena.report(f"the graph of {name}")
            inputs = {"z": self.data.path(name)}
            found = self.data.folder / f"{name}_found.npz"
            if found.exists():
                inputs["found"] = found
            elif kind == "approximate" and not self.is_quick:
                inputs["found"], _ = self.arena.call("neighbors", inputs, search="pynndescent", k=K)
            self._graphs[name], _ = self.arena.call("graphs", inputs, k=K, backend="exact")
        return self._graphs[name]

    def _solve(
        self, section: str, key: str, *, embedding: str | int, num_classes: int, rtol: float, who: list[Contestant]
    ) -> Task:
        name = self._name_of(embedding)
        targets = self._targets(name, num_classes)
        graph = self._graph_of(name, "exact" if name == "components" else "approximate")
        right = np.load(targets)
        with np.load(graph) as arrays:
            num_edges = len(arrays["data"])
        n, c = right.shape

        def work(values: dict[str, Any]) -> dict[str, float]:
            # Each step reads every entry with its column once, reads a block of scores and writes one.
            steps = values.get("steps")
            return {"GB": steps * (8 * num_edges + 8 * n * c) / 1e9} if steps else {}

        return Task(
            section,
            key,
            f"solve, {n:,} nodes, c={c}, {num_edges:,} entries, alpha={ALPHA}, relative residual {rtol:g}",
            n,
            {"graph": graph, "targets": targets},
            who,
            {"alpha": ALPHA, "rtol": rtol},
            residual_judge(graph, right, ALPHA),
            None,
            work,
        )

    def layer(self) -> dict[str, Maker]:
        found: dict[str, Maker] = {
            f"layer_{place}": partial(self._layer, num_graphs=1, n=n, who=LAYER)
            for place, n in enumerate(self.sizes.layer)
        }
        num_graphs, n = self.sizes.batch
        dense = [LAYER[0], LAYER[4], LAYER[5]]
        return found | {"layer_batch": partial(self._layer, num_graphs=num_graphs, n=n, who=dense)}

    def _layer(self, section: str, key: str, *, num_graphs: int, n: int, who: list[Contestant]) -> Task:
        count = num_graphs * n
        z = np.load(self.data.path("components"), mmap_mode="r")[:count]
        generator = np.random.default_rng(0)
        true = self.data.truth["components"][:count]
        # An eighth is labeled; the layer sees these, the loss all.
        label = np.where(generator.random(count) < 0.125, true, -1)
        inputs = {}
        for name, array in (("x", z), ("label", label), ("true", true)):
            inputs[name] = self.data.folder / f"{key}_{name}.npy"
            np.save(inputs[name], array.reshape(num_graphs, n, *array.shape[1:]))
        options = {"k": K, "alpha": ALPHA}
        exact, _ = self.arena.call("layers", inputs, layer="dense_solve", dtype="float64", **options)
        with np.load(exact) as arrays:
            judge = gradient_judge(arrays["gradient"])
        what = f"n={n}" if num_graphs == 1 else f"{num_graphs} graphs of {n} nodes"
        title = f"layer forward and backward, {what}, d={z.shape[1]}, c={NUM_CLASSES}, k={K}; gradient against float64"
        return Task(section, key, title, count, inputs, who, options, judge)

    def labels(self) -> dict[str, Maker]:
        return {"labels": partial(self._to_labels, embedding="components", who=LABELS)}

    def million(self) -> dict[str, Maker]:
        return {"million": partial(self._to_labels, embedding=self.sizes.large, who=MILLION, has_recall=True)}

    def growth(self) -> dict[str, Maker]:
        return {
            f"growth_{n}": partial(
                self._to_labels, embedding=n, who=[contestant for contestant, most in GROWTH if n <= most]
            )
            for n in self.sizes.growth
        }

    def _to_labels(
        self, section: str, key: str, *, embedding: str | int, who: list[Contestant], has_recall: bool = False
    ) -> Task:
        name = self._name_of(embedding)
        path = self.data.path(name)
        given = self.data.path(f"{name}_given")
        z = np.load(path, mmap_mode="r")
        n, d = z.shape
        count_right = accuracy_judge(self.data.truth[name], np.load(given))
        recall = recall_judge(z, K, num_rows=1_000) if has_recall else None

        def judge(answer: dict[str, np.ndarray], turn: int) -> dict[str, float]:
            found = count_right(answer, turn)
            return found | recall(answer, turn) if recall and "index" in answer else found

        title = f"features to labels, {n:,} x {d}, 10 labels per class, alpha={ALPHA}; accuracy on the others"
        keep = self.data.folder / f"{name}_found.npz" if has_recall else None
        options = {"k": K, "alpha": ALPHA}
        return Task(section, key, title, n, {"z": path, "given": given}, who, options, judge, keep)


# In the order of a run: the million leaves its neighbors to the solvers.
SECTIONS = ("graph", "layer", "labels", "million", "solve", "growth")


def notes(facts: dict[str, Any]) -> list[str]:
    """Return what a reader must know about how it was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    core = "OPENBLAS_CORETYPE=SkylakeX" if facts["avx512"] else "no OPENBLAS_CORETYPE (no AVX-512 here)"
    memory = (
        "Memory is not measured in a quick run."
        if facts["quick"]
        else "Peak memory is the largest resident set (VmHWM) of the contestant's own process during the task: "
        "interpreter, libraries and data included."
    )
    sittings = "one run" if facts["sittings"] == 1 else f"{facts['sittings']} sittings"
    data = "scikit-learn's digits (quick run)" if facts["quick"] else "Fashion-MNIST, all 70,000 images"
    quick = "**Quick run on tiny sizes: the figures mean nothing.** " if facts["quick"] else ""
    return [
        f"{quick}Written by `experiments/benchmark_core.py`; all numbers are from {sittings} on one machine.",
        f"{facts['processor']}, {facts['threads']} threads for every contestant, not bound to cores; Python "
        f"{facts['python']}, {versions}.",
        "Every contestant runs in a process of its own and they take turns. A first call of under 20 s warms up and is "
        "not counted; then at least three turns are, one where a call takes over a minute. In a turn, calls of under a "
        "tenth of a second are repeated for half a second, as a training loop does, and their median counts. "
        f"Start-up, reading data and judging are not timed. Processes with faiss start with {core}; in all others that "
        f"variable is unset. {memory}",
        f"Data: {data}; features are their first principal components, or pixels. Larger sets hold the same images "
        "shifted by at most one pixel and mirrored. Labels are drawn by seed, a new draw each turn, the same for all; "
        'accuracy is the mean over the turns. "x ours" is median over median. "of limit" compares with this machine\'s '
        "float32 matrix product (2 n^2 d operations) or memory triad (entries, columns and two blocks of scores per "
        "step, each once), measured in the same run; above 100 % means less work, or a faster product, than that.",
        "GLL computes a function of its own (Laplace learning on 25 neighbors from Annoy, float64), so its gradient is "
        "not compared; the sparse LU adjoints below it solve the very problem of lspread's layer. "
        "scikit-learn's LabelSpreading stops after its default 30 steps. graphlearning gets its neighbors from faiss: "
        "its own search needs annoy. PyG is told the number of steps, which it cannot find itself. SciPy stops by the "
        "residual that its float32 recurrence believes in; the table shows the true one of everybody, in float64.",
    ]


def count_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, under a minute; nothing is worth citing")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="sections to measure (default: all)")
    parser.add_argument("--threads", type=int, default=count_cores(), help="of every contestant (default: all cores)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for benchmark_core.json, .md and .png")
    parser.add_argument(
        "--tasks", nargs="+", metavar="KEY", help="keys of tasks to measure, within --only if given (default: all)"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep the recorded tasks of benchmark_core.json, but for those that --only or --tasks name",
    )
    options = parser.parse_args(arguments)
    if options.quick and options.output == RESULTS:
        parser.error("a quick run does not go where results are recorded: name another --output")
    return options


def recorded(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier run of the same machine, versions and options has written, or nothing."""
    if not path.exists():
        return {"machine": facts, "sections": {}}
    earlier: dict[str, Any] = json.loads(path.read_text())
    different = [key for key, value in facts.items() if earlier["machine"].get(key) != value]
    if different:
        raise SystemExit(f"{path} was written with another {', '.join(different)}; run without --resume.")
    earlier["machine"]["sittings"] += 1
    return earlier


def choose(
    known: dict[str, list[str]], finished: dict[str, Any], *, only: list[str] | None, tasks: list[str] | None
) -> dict[str, list[str]]:
    """Return the keys to measure by section: those of `only` and `tasks`, or without both those not recorded."""
    named = {section: keys for section, keys in known.items() if not only or section in only}
    possible = [key for keys in named.values() for key in keys]
    unknown = [key for key in tasks or () if key not in possible]
    if unknown:
        raise SystemExit(f"no task {', '.join(unknown)}; --tasks takes some of: {' '.join(possible)}")
    measured = {section: {row["task"] for row in found.get("rows", [])} for section, found in finished.items()}

    def is_wanted(section: str, key: str) -> bool:
        if tasks:
            return key in tasks
        return bool(only) or key not in measured.get(section, ())

    wanted = {section: [key for key in keys if is_wanted(section, key)] for section, keys in named.items()}
    return {section: keys for section, keys in wanted.items() if keys}


def put(finished: dict[str, Any], section: str, key: str, rows: list[Row], order: list[str]) -> None:
    """Record a task in place of what it had; the rows of all others stay, in the order of a run."""
    kept = [row for row in finished.get(section, {}).get("rows", []) if row["task"] != key]
    place = {name: number for number, name in enumerate(order)}
    fresh = [row.to_json() for row in rows]
    finished[section] = {"rows": sorted(kept + fresh, key=lambda row: place.get(row["task"], len(order)))}


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    console = Console(soft_wrap=not Console().is_terminal)
    sizes = QUICK if options.quick else FULL
    record = options.output / "benchmark_core.json"
    options.output.mkdir(parents=True, exist_ok=True)
    facts = describe(options.threads) | {"quick": options.quick}
    content = recorded(record, facts) if options.resume else {"machine": facts, "sections": {}}
    facts, finished = content["machine"], content["sections"]
    facts.setdefault("sittings", 1)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="benchmark_core_") as folder, console.status("") as status:

        def report(text: str) -> None:
            line = f"{time.perf_counter() - start:5.0f} s  {text}"
            status.update(line) if console.is_terminal else console.print(line, highlight=False)

        arena = Arena(Path(folder), num_threads=options.threads, is_shared=options.quick, report=report)
        benchmark = Benchmark(arena, lambda: load_dataset(sizes, Path(folder), is_quick=options.quick), sizes)
        known = {section: list(benchmark.makers(section)) for section in SECTIONS}
        wanted = choose(known, finished, only=options.only, tasks=options.tasks)
        try:
            if not rate_lines(facts):
                report("the limits of this machine")
                facts |= arena.call("machine", {}, size=256 if options.quick else 2048, repeats=5)[1]
                console.print("; ".join(rate_lines(facts)))
            for section, keys in wanted.items():
                try:
                    for key in keys:
                        rows = benchmark.measure(section, key)
                        print_task(console, rows, Board(rows, facts))
                        put(finished, section, key, rows, known[section])
                        save(finished, facts, options.output)
                except DataError as error:
                    console.print(f"{section} is skipped: {error}", style="yellow")
                    # Rows of an earlier sitting are still true.
                    if not finished.get(section, {}).get("rows"):
                        finished[section] = {"skipped": str(error)}
                    save(finished, facts, options.output)
                arena.close()
        finally:
            arena.close()
    print_bars(console, save(finished, facts, options.output))
    console.print(f"wrote {record} and its .md and .png in {time.perf_counter() - start:.0f} s")


def save(finished: dict[str, Any], facts: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Write JSON, Markdown and the plot; return the verdicts."""
    ordered = {section: finished[section] for section in SECTIONS if section in finished}
    rows = [Row(**row) for found in ordered.values() for row in found.get("rows", [])]
    skipped = {section: found["skipped"] for section, found in ordered.items() if "skipped" in found}
    board = Board(rows, facts)
    verdicts = [bar.judge(board) for bar in BARS]
    if facts["quick"]:
        verdicts = [found | {"verdict": f"quick: {found['verdict']}"} for found in verdicts]
    content = {"machine": facts, "bars": verdicts, "sections": ordered}
    plot = "benchmark_core.png" if board.growth() else None
    if plot:
        plot_growth(board, folder / plot)
    # Written beside and then moved, so that an interruption leaves the last good one.
    fresh = folder / "benchmark_core.json.new"
    fresh.write_text(json.dumps(content, indent=1) + "\n")
    fresh.replace(folder / "benchmark_core.json")
    (folder / "benchmark_core.md").write_text(to_markdown(board, verdicts, notes(facts), skipped, plot=plot))
    return verdicts


if __name__ == "__main__":
    main()
