"""What this machine can do at most: matrix products and memory traffic, and what it is."""

import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "faiss-cpu",
    "pynndescent",
    "numba",
    "graphlearning",
    "torch-geometric",
)
MOST_SECONDS = 3.0


def has_avx512() -> bool:
    """Whether the CPU says so, where Linux tells."""
    path = Path("/proc/cpuinfo")
    return path.exists() and "avx512f" in path.read_text()


def describe(num_threads: int) -> dict[str, Any]:
    """Return the processor, the threads and the versions."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "processor": model or platform.processor() or platform.machine(),
        "threads": num_threads,
        "avx512": has_avx512(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _median(function: Callable[[], object], repeats: int) -> float:
    """Return the median seconds of a few calls, fewer where they are slow: some CPUs only emulate bfloat16."""
    function()
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < MOST_SECONDS:
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def prepare(arrays: dict[str, np.ndarray], *, size: int, repeats: int) -> Callable[[int], dict[str, Any]]:
    """Return a call that measures rates in 10^9 operations or bytes a second; a kind that is missing says why."""

    def run(turn: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)
        a, b = torch.randn(2, size, size, generator=generator)
        operations = 2 * size**3 / 1e9
        found: dict[str, Any] = {"float32 GEMM, GFLOP/s": operations / _median(lambda: a @ b, repeats)}
        torch.set_float32_matmul_precision("medium")
        found["float32 GEMM at precision 'medium', GFLOP/s"] = operations / _median(lambda: a @ b, repeats)
        torch.set_float32_matmul_precision("highest")
        low, right = a.bfloat16(), b.bfloat16()
        found["bfloat16 GEMM, GFLOP/s"] = operations / _median(lambda: low @ right, repeats)
        narrow, other = a.mul(20).to(torch.int8), b.mul(20).to(torch.int8)
        try:
            found["int8 GEMM, GOP/s"] = operations / _median(lambda: torch._int_mm(narrow, other), repeats)
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            found["int8 GEMM, GOP/s"] = f"missing ({type(error).__name__})"
        length = 32 * size * size
        x, y, z = torch.ones(length), torch.ones(length), torch.ones(length)
        moved = x.element_size() * length / 1e9
        found["copy, GB/s"] = 2 * moved / _median(lambda: y.copy_(x), repeats)
        found["triad, GB/s"] = 3 * moved / _median(lambda: torch.add(x, y, alpha=2.0, out=z), repeats)
        return found

    return run
