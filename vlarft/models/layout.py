"""`layout.json`: what a world model assumes about frames and actions."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from torch import Tensor

from vlarft.config import Config, load_config
from vlarft.data.actions import ActionBinner, ActionNormalizer
from vlarft.data.statistics import Statistics
from vlarft.errors import CheckpointError, ConfigError, DataError
from vlarft.files import write_json
from vlarft.models.folder import read_json


class SamplingDefaults(Config):
    """How tokens of a world model are drawn when nothing else is asked for."""

    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)  # 0 = greedy
    top_p: float = Field(default=0.8, gt=0, le=1)  # probability mass that may be drawn
    top_k: int | None = Field(default=None, ge=1)  # ids kept before top_p; null = all
    noise: Literal["shared", "independent"] = "shared"  # one noise a group, or one a member


class Layout(Config):
    """Frames a window, action ranges and conventions of a world model; fields: docs/train.md.

    Actions are raw LIBERO units wherever they are passed: the controller's, gripper -1 (open) and
    1 (closed). Ranges are in the units that the model was trained on, `action_units`.
    """

    frames: int = 8  # T, imagined frames
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    bins: int = 256  # of each action dimension
    orientation: Literal["rotated-180", "raw"] = "rotated-180"  # of frames, to LIBERO's raw rows
    action_units: Literal["raw", "normalised"] = "raw"  # normalised: by the statistics' quantiles
    sampling: SamplingDefaults = SamplingDefaults()
    statistics: Statistics | None = None  # of the training data, when known
    provenance: dict[str, Any] = Field(default_factory=dict)  # data and figures, for people

    @field_validator("statistics", mode="before")
    @classmethod
    def _known_statistics(cls, value: Any) -> Any:
        try:
            return Statistics.from_dict(value) if isinstance(value, dict) else value
        except DataError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _consistent(self) -> "Layout":
        if self.frames < 1 or self.bins < 2:
            raise ValueError(f"frames {self.frames} and bins {self.bins} must be at least 1 and 2")
        if len(self.action_low) != len(self.action_high) or not self.action_low:
            raise ValueError("action_low and action_high must have one entry per action dimension")
        if self.statistics is None:
            if self.action_units == "normalised":
                raise ValueError("action_units 'normalised' needs the statistics to normalise by")
        elif self.statistics.orientation != self.orientation:
            raise ValueError(
                f"orientation '{self.orientation}' and that of the statistics, "
                f"'{self.statistics.orientation}', must be one"
            )
        elif len(self.statistics.action_q01) != self.action_dim:
            raise ValueError(
                f"statistics of {len(self.statistics.action_q01)} action entries, ranges of "
                f"{self.action_dim}; they must be of one data set"
            )
        return self

    @property
    def action_dim(self) -> int:
        """A, entries of an action."""
        return len(self.action_low)

    def action_bins(self, raw: Tensor) -> Tensor:
        """Raw actions [...,A] -> bins int64 [...,A], in the units that the model was trained on."""
        if self.action_units == "normalised" and self.statistics is not None:
            quantiles = self.statistics.action_q01, self.statistics.action_q99
            raw = ActionNormalizer(*quantiles).normalize(raw)
        return ActionBinner(self.action_low, self.action_high, self.bins).bins(raw)

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
