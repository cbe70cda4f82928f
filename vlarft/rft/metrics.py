"""Where the numbers of a run go beside `metrics.jsonl`: optional sinks; and stage timers."""

import importlib.util
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from vlarft.errors import ConfigError
from vlarft.metrics import Metrics, MetricsFile


class StageTimer:
    """Seconds per named stage of a step; stages may be entered several times."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the time of a `with` block towards `stage`."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    @property
    def total(self) -> float:
        """Seconds since the timer was made."""
        return time.perf_counter() - self._start


EXTREMES = {"ratio_min": min, "ratio_max": max}  # over updates
ALIKE = {**EXTREMES, "log_prob_gap": max, "gradient_norm": max}  # over processes


def combine_updates(processes: Sequence[Sequence[dict[str, float]]]) -> list[dict[str, float]]:
    """Numbers of each update over all processes.

    Args:
        processes: of each one, a record an update. Means are multiplied by the process's share of
            the scenes already, so that they add up.
    """
    combined = []
    for records in zip(*processes, strict=True):
        columns = _columns(records)
        combined.append({name: ALIKE.get(name, sum)(column) for name, column in columns.items()})
    return combined


def mean_update(records: Sequence[dict[str, float]]) -> Metrics:
    """Mean over updates of each number; extremes keep their extreme."""
    return {
        name: EXTREMES[name](column) if name in EXTREMES else sum(column) / len(column)
        for name, column in _columns(records).items()
    }


def _columns(records: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [r[name] for r in records if name in r] for name in names}


class Sink(Protocol):
    """A place beside `metrics.jsonl` that takes the same numbers."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Take the numbers of one step."""

    def close(self) -> None:
        """Bring everything to its place."""


class TensorBoardSink:
    """TensorBoard event files in `run/tensorboard`."""

    def __init__(self, run: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run / "tensorboard"))

    def write(self, step: int, values: dict[str, float]) -> None:
        """One scalar a name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WandbSink:
    """A Weights & Biases run named after the end of the run folder; `WANDB_*` variables apply.

    Its id is drawn once and kept in the folder, so that a resumed run goes on in the same one.
    """

    def __init__(self, run: Path, config: dict[str, Any]) -> None:
        import wandb

        file = run / "wandb_id.txt"
        if not file.exists():
            file.write_text(uuid.uuid4().hex, encoding="utf-8")
        self._run: Any = wandb.init(
            project="vlarft",
            name="/".join(run.absolute().parts[1:][-3:]),  # tells the arms of an experiment apart
            dir=str(run),
            config=config,
            resume="allow",
            id=file.read_text(encoding="utf-8"),
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """One history row a step."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def open_sinks(names: Sequence[str], run: Path, config: dict[str, Any]) -> list[Sink]:
    """The sinks of a configuration.

    Args:
        names: "tensorboard", "wandb".
        run: run folder.
        config: resolved configuration, shown by W&B.

    Raises:
        ConfigError: a sink's package is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"sinks: '{name}' needs the package {name}, which is not installed; "
                f"pip install 'vlarft[{name}]', or remove it from sinks"
            )
    return [
        TensorBoardSink(run) if name == "tensorboard" else WandbSink(run, config) for name in names
    ]


class RunLog:
    """`metrics.jsonl` of a run and its sinks.

    Args:
        run: run folder.
        config: resolved configuration.
        sinks: their names.
        offset: bytes of `metrics.jsonl` to keep.

    Raises:
        ConfigError: a sink's package is not installed.
        CheckpointError: the file is shorter than `offset`.
    """

    def __init__(
        self, run: Path, config: dict[str, Any], sinks: Sequence[str], offset: int
    ) -> None:
        self._sinks = open_sinks(sinks, run, config)
        self._file = MetricsFile(run / "metrics.jsonl", offset)

    def write(self, metrics: Metrics) -> None:
        """Append one object."""
        self._file.write(metrics)
        for sink in self._sinks:
            sink.write(metrics["step"], flat_numbers(metrics))

    def sync(self) -> int:
        """Length of `metrics.jsonl` in bytes, all on disk."""
        return self._file.sync()

    def close(self) -> None:
        """Close everything."""
        self._file.close()
        for sink in self._sinks:
            sink.close()


def flat_numbers(metrics: Metrics, prefix: str = "") -> dict[str, float]:
    """Numbers of nested metrics with dotted names; None and texts are left out."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            flat.update(flat_numbers(value, f"{prefix}{name}."))
        elif isinstance(value, int | float) and name != "step":
            flat[prefix + name] = float(value)
    return flat
