"""MP4 of an episode, by OpenCV, which LIBERO brings along."""

from pathlib import Path
from typing import Any

from vlarft.errors import BackendError
from vlarft.libero.scene import CONTROL_HZ, UInt8Array

SIZE = 256  # px
EVERY = 2  # control steps a picture


class Film:
    """A film in real time of pictures taken every `EVERY` control steps.

    Args:
        path: of the .mp4; missing folders are made.
    """

    def __init__(self, path: Path) -> None:
        import cv2

        self._cv2: Any = cv2
        path.parent.mkdir(parents=True, exist_ok=True)
        codec = cv2.VideoWriter_fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(str(path), codec, CONTROL_HZ / EVERY, (SIZE, SIZE))
        if not self._writer.isOpened():
            raise BackendError(f"{path}: this OpenCV cannot write MP4; leave out --films")
        self._steps = 0

    def due(self) -> bool:
        """Count a control step; whether a picture of it is wanted."""
        self._steps += 1
        return self._steps % EVERY == 1

    def add(self, picture: UInt8Array) -> None:
        """Add a picture [SIZE, SIZE, 3] in LIBERO's raw rows; the film shows it upright."""
        self._writer.write(self._cv2.cvtColor(picture[::-1], self._cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the file."""
        self._writer.release()
