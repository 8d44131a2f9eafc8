"""Programs that collect experiments, behind one interface; each is an extra of its own."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.following.entry import Entry

PROGRESS = "sweep"
"""Name of the run that says how far the sweeps of the folder are."""


class Tracker(ABC):
    """Takes runs, each as one of its own, and the progress of the sweeps as another.

    Attributes:
        name: as the command line has it; of the extra too.
        module: is imported to reach it.

    Args:
        folder: of the records; its name is that of the project.
        place: where to; None: as the program itself is set up.

    Raises:
        BenchError: the program is not installed.
    """

    name: ClassVar[str]
    module: ClassVar[str]

    def __init__(self, folder: Path, place: str | None) -> None:
        self.project = folder.resolve().name
        self.place = place
        try:
            self.program: Any = importlib.import_module(self.module)
        except ImportError as error:
            raise BenchError(
                f"--to {self.name} needs an extra: pip install -c constraints.txt -e '.[{self.name}]' "
                f"({error})"
            ) from error
        self.open(folder)

    @abstractmethod
    def open(self, folder: Path) -> None:
        """Get ready."""

    @abstractmethod
    def send(self, entry: Entry) -> None:
        """Take a run; one that was sent before is replaced."""

    @abstractmethod
    def progress(self, step: int, counts: Mapping[str, float]) -> None:
        """Take how far the sweeps are; ``step``: seconds since `open`."""

    @abstractmethod
    def close(self) -> None:
        """Finish what is open."""


class TensorBoard(Tracker):
    """Writes files, ``PLACE/RUN_ID/`` for each run; ``tensorboard --logdir PLACE`` shows them (HPARAMS)."""

    name, module = "tensorboard", "torch.utils.tensorboard"

    def open(self, folder: Path) -> None:
        """Choose the folder of the files: ``tensorboard`` beside the records, if none was said."""
        self._root = Path(self.place) if self.place else folder / "tensorboard"
        self._progress: Any = None

    def send(self, entry: Entry) -> None:
        """Write settings, figures and how the run ended."""
        folder = self._root / entry.run_id
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        with self.program.SummaryWriter(str(folder)) as writer:
            writer.add_text("run", entry.name)
            writer.add_hparams(dict(entry.settings), dict(entry.figures), run_name=".")

    def progress(self, step: int, counts: Mapping[str, float]) -> None:
        """Write a point of each curve."""
        if self._progress is None:
            self._progress = self.program.SummaryWriter(str(self._root / PROGRESS))
        for name, value in counts.items():
            self._progress.add_scalar(f"{PROGRESS}/{name}", value, step)
        self._progress.flush()

    def close(self) -> None:
        """Close the curves' file."""
        if self._progress is not None:
            self._progress.close()


class WeightsAndBiases(Tracker):
    """Sends to a project of Weights & Biases, where ``wandb login`` or WANDB_* variables lead."""

    name, module = "wandb", "wandb"

    def open(self, folder: Path) -> None:
        """Choose the project: the folder's name, if none was said."""
        self._project = self.place or self.project
        self._folder = folder
        self._progress: Any = None

    def send(self, entry: Entry) -> None:
        """Send settings as config and figures as summary."""
        run = self._run(entry.run_id, entry.name, config=dict(entry.settings))
        run.summary.update(dict(entry.figures))
        run.finish(exit_code=0 if entry.ok else 1)

    def progress(self, step: int, counts: Mapping[str, float]) -> None:
        """Send a point of each curve."""
        if self._progress is None:
            self._progress = self._run(None, PROGRESS)
        self._progress.log(dict(counts), step=step)

    def close(self) -> None:
        """Finish the run of the progress."""
        if self._progress is not None:
            self._progress.finish()

    def _run(self, run_id: str | None, name: str, **more: Any) -> Any:
        return self.program.init(
            project=self._project,
            id=run_id,
            name=name,
            dir=str(self._folder),
            resume="allow" if run_id else None,
            reinit="create_new",
            settings=self.program.Settings(silent=True, console="off"),
            **more,
        )


class MLflow(Tracker):
    """Sends to an experiment of MLflow, where MLFLOW_TRACKING_URI or PLACE leads."""

    name, module = "mlflow", "mlflow"

    def open(self, folder: Path) -> None:
        """Find or make the experiment called like the folder."""
        self._client = self.program.MlflowClient(tracking_uri=self.place)
        found = self._client.get_experiment_by_name(self.project)
        self._experiment = (
            found.experiment_id if found else self._client.create_experiment(self.project)
        )
        self._progress: Any = None

    def send(self, entry: Entry) -> None:
        """Send settings as parameters and figures as metrics."""
        for old in self._sent(entry.run_id):
            self._client.delete_run(old.info.run_id)
        run = self._client.create_run(
            self._experiment, run_name=entry.name, tags={"bench.run_id": entry.run_id}
        )
        key = run.info.run_id
        for name, setting in entry.settings.items():
            self._client.log_param(key, name, setting)
        for name, figure in entry.figures.items():
            self._client.log_metric(key, name, figure)
        self._client.set_terminated(key, "FINISHED" if entry.ok else "FAILED")

    def progress(self, step: int, counts: Mapping[str, float]) -> None:
        """Send a point of each curve."""
        if self._progress is None:
            self._progress = self._client.create_run(self._experiment, run_name=PROGRESS)
        for name, value in counts.items():
            self._client.log_metric(self._progress.info.run_id, name, value, step=step)

    def close(self) -> None:
        """Finish the run of the progress."""
        if self._progress is not None:
            self._client.set_terminated(self._progress.info.run_id)

    def _sent(self, run_id: str) -> list[Any]:
        chosen = f"tags.`bench.run_id` = '{run_id}'"
        return list(self._client.search_runs([self._experiment], chosen))


TRACKERS: dict[str, type[Tracker]] = {
    tracker.name: tracker for tracker in (TensorBoard, WeightsAndBiases, MLflow)
}
