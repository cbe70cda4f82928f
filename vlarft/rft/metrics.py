"""Where the numbers of a run go beside `metrics.jsonl`: optional sinks; and stage timers."""

import importlib.util
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from vlarft.errors import ConfigError
from vlarft.metrics import Metrics


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


def flat_numbers(metrics: Metrics, prefix: str = "") -> dict[str, float]:
    """Numbers of nested metrics with dotted names; None and texts are left out."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            flat.update(flat_numbers(value, f"{prefix}{name}."))
        elif isinstance(value, int | float) and name != "step":
            flat[prefix + name] = float(value)
    return flat
