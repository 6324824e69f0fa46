"""One contestant, one process: its libraries, its environment, its memory.

The parent writes a line of JSON, the worker answers with one. Arrays travel through files in a folder of the parent's.
The worker reads its arrays once and times its own calls, so neither start-up nor travel is measured.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .machine import has_avx512

HERE = Path(__file__).resolve()
PACKAGE = __package__ or "peers"
SHORT, LEAST_TIMED = 0.1, 0.5
"""Seconds: a shorter call is repeated until so many are timed, as a layer is called at every step of a training."""
# Left over from the shell, these would bind threads to cores or give one contestant another kernel than the rest.
UNSET = (
    "OPENBLAS_CORETYPE",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "OMP_WAIT_POLICY",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
)
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "LOKY_MAX_CPU_COUNT")


class ContestantError(Exception):
    """A contestant could not run; the message is what the table shows."""


def environment(num_threads: int, *, is_faiss: bool) -> dict[str, str]:
    """Return the environment of a worker: equal threads for all, the right OpenBLAS kernel for faiss."""
    found = {name: value for name, value in os.environ.items() if name not in UNSET}
    found |= {name: str(num_threads) for name in THREADS}
    # faiss-cpu's bundled OpenBLAS takes many AVX-512 processors for older ones unless told; it asks at start-up only.
    if is_faiss and has_avx512():
        found["OPENBLAS_CORETYPE"] = "SkylakeX"
    path = [str(HERE.parents[2]), str(HERE.parents[1])]
    found["PYTHONPATH"] = os.pathsep.join([*path, *filter(None, [os.environ.get("PYTHONPATH")])])
    return found


class Worker:
    """The parent's end of one worker process."""

    def __init__(self, *, num_threads: int, is_faiss: bool, log: Path) -> None:
        self._log = log
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{PACKAGE}.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=environment(num_threads, is_faiss=is_faiss),
                text=True,
            )

    def ask(self, **order: Any) -> dict[str, Any]:
        """Send one order and wait for the answer; raises `ContestantError` where there is none."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            last = (self._log.read_text(errors="replace").strip().splitlines() or ["nothing was said"])[-1]
            raise ContestantError(f"its process ended with {self._process.wait()}: {last}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ContestantError(answer["error"])
        return answer

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()


def peak_memory() -> float:
    """Return the largest resident memory of this process since the last task, MiB.

    `ru_maxrss` would do, but on Linux it remembers the parent, whose memory the child shares for a moment at birth.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def forget_peak() -> None:
    """Let the peak start again from what is resident now, where Linux allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def read_inputs(inputs: dict[str, str]) -> dict[str, np.ndarray]:
    """Read `.npy` under their name, and every array of an `.npz` under its own."""
    arrays: dict[str, np.ndarray] = {}
    for name, path in inputs.items():
        if path.endswith(".npz"):
            with np.load(path) as several:
                arrays |= {key: several[key] for key in several.files}
        else:
            arrays[name] = np.load(path)
    return arrays


def time_call(run: Callable[[int], dict[str, Any]], turn: int) -> tuple[dict[str, Any], float]:
    """Return what a call gives and its seconds; a short one is repeated and its median counts."""
    seconds: list[float] = []
    while not seconds or (seconds[0] < SHORT and sum(seconds) < LEAST_TIMED):
        start = time.perf_counter()
        result = run(turn)
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)


def serve() -> None:
    """Answer orders until the parent hangs up."""
    # What libraries print must not end up between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    runs: dict[str, Any] = {}
    for line in sys.stdin:
        order = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if order["do"] == "forget":
                runs.clear()
                gc.unfreeze()
                gc.collect()
                forget_peak()
            elif order["do"] == "prepare":
                module = importlib.import_module(f"{PACKAGE}.{order['module']}")
                runs[order["name"]] = module.prepare(read_inputs(order["inputs"]), **order["options"])
                # Libraries hold a million objects that no collection before a turn needs to look at.
                gc.collect()
                gc.freeze()
            else:
                run = runs[order["name"]]
                gc.collect()
                result, answer["seconds"] = time_call(run, order["turn"])
                answer["peak"] = peak_memory()
                np.savez(order["output"], **{k: v for k, v in result.items() if isinstance(v, np.ndarray)})
                answer["values"] = {k: v for k, v in result.items() if not isinstance(v, np.ndarray)}
        except ModuleNotFoundError as error:
            answer = {"error": f"not installed: {error.name}"}
        except Exception as error:
            traceback.print_exc()
            said = str(error).split("\n")[0][:160]
            answer = {"error": f"failed: {type(error).__name__}: {said}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
