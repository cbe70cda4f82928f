"""`metrics.jsonl`: the numbers of a run, one JSON object a line."""

import json
import os
from pathlib import Path
from typing import Any

from vlarft.errors import CheckpointError

Metrics = dict[str, Any]


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, flushed line by line.

    Args:
        path: the file; created when missing.
        offset: bytes to keep, as stored in the checkpoint that is resumed. Lines after it belong to
            steps that will be done again.

    Raises:
        CheckpointError: the file is shorter than `offset`.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        path.touch()
        size = path.stat().st_size
        if size < offset:
            raise CheckpointError(
                f"{path}: {size} bytes, but the checkpoint was written after {offset}; "
                "the file was changed, start the run in a new folder"
            )
        os.truncate(path, offset)
        self._file = path.open("a", encoding="utf-8")

    def write(self, metrics: Metrics) -> None:
        """Append one object."""
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()

    def sync(self) -> int:
        """Bring everything to disk; returns the length in bytes, to be stored in a checkpoint."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[Metrics]:
    """All objects of a `metrics.jsonl`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
