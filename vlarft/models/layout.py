"""`layout.json`: what a world model assumes about frames and actions."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from vlarft.config import Config, load_config
from vlarft.data.actions import ActionBinner
from vlarft.errors import CheckpointError, ConfigError
from vlarft.files import write_json
from vlarft.models.folder import read_json


class Layout(Config):
    """Frames a window, action ranges and conventions of a world model.

    Ranges are raw units: in LIBERO the controller's, gripper -1 (open) and 1 (closed).
    """

    frames: int = 8  # T, imagined frames
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    bins: int = 256  # of each action dimension
    orientation: Literal["rotated-180", "raw"] = "rotated-180"  # of frames, to LIBERO's raw rows
    provenance: dict[str, Any] = Field(default_factory=dict)  # data and figures, for people

    @model_validator(mode="after")
    def _consistent(self) -> "Layout":
        if self.frames < 1 or self.bins < 2:
            raise ValueError(f"frames {self.frames} and bins {self.bins} must be at least 1 and 2")
        if len(self.action_low) != len(self.action_high) or not self.action_low:
            raise ValueError("action_low and action_high must have one entry per action dimension")
        return self

    @property
    def action_dim(self) -> int:
        """A, entries of an action."""
        return len(self.action_low)

    def binner(self) -> ActionBinner:
        """Raw actions -> bins."""
        return ActionBinner(self.action_low, self.action_high, self.bins)

    def require_orientation(self, orientation: str, whose: str) -> None:
        """Refuse frames that are turned another way than those the world model was trained on.

        Args:
            orientation: of the frames that the world model would see.
            whose: what they come from or were made for, for the message.

        Raises:
            CheckpointError: names both orientations.
        """
        if orientation != self.orientation:
            raise CheckpointError(
                f"world model: its layout.json has orientation '{self.orientation}', {whose} "
                f"'{orientation}'; take models and data of one orientation"
            )

    @classmethod
    def read(cls, path: Path) -> "Layout":
        """Read `layout.json`.

        Raises:
            CheckpointError: the file is missing, or a value is unknown or out of range.
        """
        try:
            return load_config(cls, read_json(path))
        except ConfigError as error:
            raise CheckpointError(
                f"{path}: {str(error).removeprefix('configuration: ')}"
            ) from error

    def write(self, path: Path) -> None:
        """Write `layout.json`."""
        write_json(path, self.model_dump(mode="json"))
