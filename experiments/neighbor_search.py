"""How fast, how complete and how large are the backends of find_neighbors, and how does their time grow with n?

Items lie on a curved surface of 16 dimensions in 128 (a random network's image of 100 Gaussian clusters, with noise
around it), or come from a file. Every search runs in a process of its own, after a small one that warms it up; backends
take turns; of several rounds the fastest counts. Peak memory is the process's, data included. Recall is estimated on
1000 items, with its standard error.

    python experiments/neighbor_search.py --n 10000 100000 1000000 --backend exact nn_descent ivf
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from lspread.graph import find_neighbors, recall_at_k
from lspread.graph.neighbors import Backend

LATENT, HIDDEN, CLUSTERS, NOISE = 16, 256, 100, 0.02


def make_data(n: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    center = normal(CLUSTERS, LATENT)
    into, shift, out = normal(LATENT, HIDDEN) / LATENT**0.5, normal(HIDDEN) / 2, normal(HIDDEN, width) / HIDDEN**0.5
    z = torch.empty(n, width)
    for part in z.split(1 << 16):
        cluster = torch.randint(CLUSTERS, (len(part),), generator=generator)
        latent = center[cluster] + normal(len(part), LATENT) / 2
        part.copy_((latent @ into + shift).relu() @ out + NOISE * normal(len(part), width))
    return z


def load(options: argparse.Namespace, n: int) -> Tensor:
    if options.embeddings is None:
        return make_data(n, options.width)
    z = torch.from_numpy(np.load(options.embeddings))
    return z[torch.randperm(len(z), generator=torch.Generator().manual_seed(0))[:n]]


def search(options: argparse.Namespace) -> dict[str, Any]:
    """One search: what a child process does."""
    n, backend = options.n[0], options.backend[0]
    z = load(options, n)
    choice: dict[str, Any] = {"metric": options.metric, "backend": backend, "effort": options.effort}
    find_neighbors(z[:5000], options.k, **choice)
    load_before, cpu, start = os.getloadavg()[0], time.process_time(), time.perf_counter()
    neighbors = find_neighbors(z, options.k, **choice)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kibibytes on Linux
    recall = recall_at_k(neighbors, z, generator=torch.Generator().manual_seed(1))
    return {
        "backend": backend,
        "n": len(z),
        "width": z.shape[1],
        "k": options.k,
        "effort": options.effort,
        "metric": options.metric,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "recall": recall.value,
        "recall_error": recall.standard_error,
        "peak_gib": peak,
        "data_gib": z.nbytes / 2**30,
        "load": load_before,
        "threads": torch.get_num_threads(),
    }


def run_apart(options: argparse.Namespace, n: int, backend: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", __file__, "--alone", "--n", str(n), "--backend", backend]
    for name in ("k", "width", "effort", "metric", "embeddings"):
        value = getattr(options, name)
        command += [] if value is None else [f"--{name}", str(value)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{backend}, {n:,} items: {found['seconds']:.2f} s, recall {found['recall']:.4f}", file=sys.stderr, flush=True
    )
    return found


def exponents(rows: list[dict[str, Any]], backends: list[str], clock: str) -> dict[str, float]:
    """Fit time = constant * n^exponent by least squares of logarithms."""
    fitted = {}
    for backend in backends:
        points = [(math.log(row["n"]), math.log(row[clock])) for row in rows if row["backend"] == backend]
        if len(points) > 1:
            fitted[backend] = float(np.polyfit(*zip(*points, strict=True), 1)[0])
    return fitted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=[10_000, 30_000, 100_000], help="numbers of items")
    parser.add_argument("--backend", nargs="+", choices=get_args(Backend), default=["exact", "nn_descent", "ivf"])
    parser.add_argument("--k", type=int, default=15, help="neighbours per item")
    parser.add_argument("--width", type=int, default=128, help="numbers per item")
    parser.add_argument("--embeddings", type=Path, help="a .npy file (n, d) to take items from instead")
    parser.add_argument("--metric", choices=["euclidean", "cosine"], default="euclidean")
    parser.add_argument("--effort", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=Path, help="a JSON file for the results")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(search(options)))
        return
    print("| backend | n | seconds | CPU seconds | recall | peak GiB | data GiB | load |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for n in options.n:
        rounds = [[run_apart(options, n, backend) for backend in options.backend] for _ in range(options.rounds)]
        for turns in zip(*rounds, strict=True):
            row = min(turns, key=lambda turn: turn["seconds"])
            rows.append(row)
            print(
                f"| {row['backend']} | {row['n']:,} | {row['seconds']:.2f} | {row['cpu_seconds']:.2f} | "
                f"{row['recall']:.4f} ± {row['recall_error']:.4f} | {row['peak_gib']:.2f} | {row['data_gib']:.2f} | "
                f"{row['load']:.1f} |",
                flush=True,
            )
    fitted = {clock: exponents(rows, options.backend, clock) for clock in ("seconds", "cpu_seconds")}
    for backend, exponent in fitted["seconds"].items():
        print(f"{backend}: seconds grow as n^{exponent:.2f}, CPU seconds as n^{fitted['cpu_seconds'][backend]:.2f}")
    if options.output:
        options.output.write_text(json.dumps({"rows": rows, "exponents": fitted}, indent=1) + "\n")


if __name__ == "__main__":
    main()
