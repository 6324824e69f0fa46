"""One task, several contestants, taking turns: rounds of one call each, every contestant in a process of its own."""

import contextlib
import itertools
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .worker import ContestantError, Worker

Judge = Callable[[dict[str, np.ndarray], int], dict[str, float]]
WARM_UP_BELOW = 20.0
"""Seconds: a first call shorter than this warms up and is not counted: some compile for several seconds."""
ONCE_ABOVE = 60.0
PAUSE = 0.05
"""Seconds between turns: threads of the last contestant stop spinning."""


@dataclass(frozen=True)
class Contestant:
    """A line of the table: which function of which module, with which options.

    Attributes:
        name: As the table shows it.
        module: Module of `peers` whose `prepare` returns the timed call.
        options: For `prepare`.
        is_faiss: Its process gets the OpenBLAS kernel that faiss needs.
        is_ours: Ratios are taken to this one.
        is_missing: Why it cannot run, or nothing.
    """

    name: str
    module: str
    options: dict[str, Any] = field(default_factory=dict)
    is_faiss: bool = False
    is_ours: bool = False
    is_missing: str = ""


@dataclass
class Row:
    """What one contestant did in one task."""

    section: str
    task: str
    title: str
    name: str
    size: int
    is_ours: bool = False
    note: str = ""
    seconds: list[float] = field(default_factory=list)
    peak: float | None = None
    values: dict[str, Any] = field(default_factory=dict)
    limit: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float | None:
        """Median seconds, None where it did not run."""
        return statistics.median(self.seconds) if self.seconds else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Task:
    """What contestants are asked to do.

    Attributes:
        section: Of the table.
        key: Short name that bars refer to.
        title: As the table shows it.
        size: Number of items n.
        inputs: Files of arrays.
        contestants: Who takes part.
        options: For every contestant.
        judge: Reads an answer and the number of the turn.
        keep: Where the last answer of the first contestant that has one is left for other tasks.
        work: Least amount of work of a name (10^9 operations or bytes) that the machine's limit is taken for; may use
            what the contestant said about itself.
    """

    section: str
    key: str
    title: str
    size: int
    inputs: dict[str, Path]
    contestants: list[Contestant]
    options: dict[str, Any] = field(default_factory=dict)
    judge: Judge | None = None
    keep: Path | None = None
    work: Callable[[dict[str, Any]], dict[str, float]] | None = None


def num_repeats(seconds: float, *, is_quick: bool = False) -> int:
    """How often to time a call that took so long: at least three times, once where it takes over a minute."""
    if seconds > ONCE_ABOVE:
        return 1
    if is_quick or seconds > 1:
        return 3
    return 5 if seconds > 0.1 else 9


class Arena:
    """Starts the workers and keeps the turns.

    Args:
        folder: For answers and logs.
        num_threads: Of every contestant.
        is_shared: Put all contestants of one environment into one process: quick, but memory means nothing.
        report: Told what goes on.
    """

    def __init__(self, folder: Path, *, num_threads: int, is_shared: bool, report: Callable[[str], None]) -> None:
        self.folder, self.num_threads, self.is_shared, self.report = folder, num_threads, is_shared, report
        self._workers: dict[object, Worker] = {}
        self._number = itertools.count()

    def close(self) -> None:
        """End all workers: their contestants have no further task."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def _worker(self, contestant: Contestant) -> Worker:
        """Return the contestant's process; it lives until `close`, as some compile for half a minute."""
        key = contestant.is_faiss if self.is_shared else contestant.name
        if key not in self._workers or not self._workers[key].is_alive:
            log = self.folder / "workers.log"
            self._workers[key] = Worker(num_threads=self.num_threads, is_faiss=contestant.is_faiss, log=log)
        return self._workers[key]

    def _forget(self) -> None:
        for worker in self._workers.values():
            with contextlib.suppress(ContestantError):
                worker.ask(do="forget")

    def call(self, module: str, inputs: dict[str, Path], **options: Any) -> tuple[Path, dict[str, Any]]:
        """Let a worker do something once, not timed; return the file of its arrays and its other values."""
        output = self.folder / f"answer-{next(self._number)}.npz"
        worker = self._worker(Contestant("", module))
        files = {name: str(path) for name, path in inputs.items()}
        worker.ask(do="prepare", name="", module=module, inputs=files, options=options)
        answer = worker.ask(do="run", name="", turn=0, output=str(output))
        self._forget()
        return output, answer["values"]

    def compete(self, task: Task) -> list[Row]:
        """Return one row per contestant, in the order given; who fails gets a row that says so."""
        rows, workers = {}, {}
        for contestant in task.contestants:
            name = contestant.name
            row = Row(task.section, task.key, task.title, name, task.size, contestant.is_ours)
            rows[name] = row
            if contestant.is_missing:
                row.note = contestant.is_missing
                continue
            self.report(f"{task.key}: {name} gets ready")
            worker = self._worker(contestant)
            files = {key: str(path) for key, path in task.inputs.items()}
            try:
                options = task.options | contestant.options
                worker.ask(do="prepare", name=name, module=contestant.module, inputs=files, options=options)
                workers[name] = worker
            except ContestantError as error:
                row.note = str(error)
        is_warm: set[str] = set()
        while workers:
            for name, worker in list(workers.items()):
                row = rows[name]
                if row.seconds and len(row.seconds) >= num_repeats(min(row.seconds), is_quick=self.is_shared):
                    del workers[name]
                    continue
                self.report(f"{task.key}: {name}, turn {len(row.seconds) + (name in is_warm)}")
                try:
                    self._turn(task, row, worker, is_warm)
                except ContestantError as error:
                    row.note = str(error)
                    del workers[name]
        self._forget()
        return list(rows.values())

    def _turn(self, task: Task, row: Row, worker: Worker, is_warm: set[str]) -> None:
        output = self.folder / "answer.npz"
        time.sleep(PAUSE)
        turn = len(row.seconds)
        answer = worker.ask(do="run", name=row.name, turn=turn, output=str(output))
        if row.name not in is_warm:
            is_warm.add(row.name)
            if answer["seconds"] < WARM_UP_BELOW:
                return
        row.seconds.append(answer["seconds"])
        row.peak = None if self.is_shared else answer["peak"]
        row.values |= {k: v for k, v in answer["values"].items() if k in ("steps", "status")}
        if task.judge is not None:
            with np.load(output) as arrays:
                found = task.judge({name: arrays[name] for name in arrays.files}, turn)
            for name, value in found.items():
                # Draws differ from turn to turn, so their mean counts.
                history = row.values.setdefault(f"{name} by turn", [])
                history.append(value)
                row.values[name] = float(np.mean(history))
        if task.keep is not None and (row.is_ours or not task.keep.exists()):
            shutil.move(output, task.keep)
        if task.work is not None:
            row.limit = task.work(row.values)
