"""metrics.csv of a run."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only

__all__ = ["RunLogger"]


class RunLogger(CSVLogger):
    """Lightning's CSVLogger that writes metrics.csv straight into a folder, and keeps it when a run is resumed.

    Args:
        run_dir: The folder.
    """

    def __init__(self, run_dir: str | Path) -> None:
        super().__init__(str(run_dir), name="", version="", flush_logs_every_n_steps=20)

    @property
    def log_dir(self) -> str:
        """The run's folder itself."""
        return str(Path(self.save_dir))

    @property
    def experiment(self) -> Any:
        """The writer of metrics.csv."""
        if self._experiment is None and getattr(rank_zero_only, "rank", 0) == 0:
            Path(self.save_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _ContinuedWriter(self.log_dir)
        return self._experiment if self._experiment is not None else super().experiment

    def log_hyperparams(self, params: Any = None, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml says it all."""


class _ContinuedWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        # Lightning deletes an older file here; a resumed run goes on with it.
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                self.metrics_keys = next(csv.reader(file), [])
