"""MLflow: a run in the experiment of the run's name, at MLFLOW_TRACKING_URI.

A run that goes on after a step goes on as the same run there. MLflow takes nothing back: steps between that one and the
end of a killed run are sent twice, with the same values.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path

from unlabeled.train.tracker import Tracked, Tracker

MEND = "Mend it (MLflow reads MLFLOW_TRACKING_URI)"
BATCH, LONGEST = 100, 500  # parameters in one request, characters of a value: limits of the oldest servers


class MLflow(Tracker):
    """The active run of this process. `MLFLOW_EXPERIMENT_NAME`, `MLFLOW_RUN_ID` and the like count as everywhere."""

    def __init__(self, tracked: Tracked) -> None:
        import mlflow

        self._mlflow = mlflow
        if not self._goes_on(tracked):
            self._begin(tracked)

    def _goes_on(self, tracked: Tracked) -> bool:
        begun = tracked.begun_as("mlflow")
        if begun is None or "MLFLOW_RUN_ID" in os.environ:
            return False
        with suppress(self._mlflow.MlflowException):  # another server, or it was deleted there
            self._mlflow.start_run(run_id=begun)
            return True
        return False

    def _begin(self, tracked: Tracked) -> None:
        if not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"} & os.environ.keys():
            self._mlflow.set_experiment(tracked.name)
        tracked.note("mlflow", self._mlflow.start_run().info.run_id)
        fields = ((name, value[:LONGEST]) for name, value in tracked.recipe.items())
        while batch := dict(islice(fields, BATCH)):
            self._mlflow.log_params(batch)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def show(self, step: int, file: Path) -> None:
        self._mlflow.log_artifact(str(file), file.parent.name)

    def close(self) -> None:
        self._mlflow.end_run()


start = MLflow
