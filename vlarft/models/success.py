"""A classifier of single frames: is the task solved in this picture?"""

from pathlib import Path
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vlarft.config import Config, load_config
from vlarft.data.libero import ORIENTATION
from vlarft.errors import CheckpointError, ConfigError, ShapeError
from vlarft.files import write_json
from vlarft.models.folder import load_strict, read_json, read_tensors, write_tensors

WEIGHTS = "model.safetensors"


class SuccessConfig(Config):
    """Sizes, and the score from which on a frame counts as solved."""

    image_size: int = Field(default=64, ge=8)
    """Side of the square picture in px."""
    channels: tuple[int, ...] = (16, 32, 64, 64)
    """Channels after each stride-2 convolution, multiples of 8."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of the last features that a training step leaves out."""
    threshold: float = Field(default=0.0, allow_inf_nan=False)
    """Score (log-odds) above which a frame counts as solved; training sets it."""
    orientation: str = ORIENTATION
    """How the frames are turned."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if not self.channels or any(c < 8 or c % 8 for c in self.channels):
            raise ValueError(f"channels {self.channels}: expected multiples of 8")
        if self.image_size % 2 ** len(self.channels):
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of {2 ** len(self.channels)}"
            )
        return self


class SuccessClassifier(nn.Module):
    """A small convolutional network; sees one frame and no instruction.

    Args:
        config: sizes and threshold; `config` may be replaced by one of another threshold.
    """

    def __init__(self, config: SuccessConfig) -> None:
        super().__init__()
        self.config = config
        blocks: list[nn.Module] = []
        for inputs, outputs in zip((3, *config.channels[:-1]), config.channels, strict=True):
            blocks += [nn.Conv2d(inputs, outputs, 3, 2, padding=1)]
            blocks += [nn.GroupNorm(8, outputs), nn.SiLU()]
        self.features = nn.Sequential(*blocks)
        side = config.image_size // 2 ** len(config.channels)
        self.score = nn.Sequential(
            nn.Flatten(), nn.Dropout(config.dropout), nn.Linear(config.channels[-1] * side**2, 1)
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Scores (log-odds of "solved").

        Args:
            frames: float [B, 3, H, W] in [0, 1].

        Returns:
            float [B].

        Raises:
            ShapeError: the frames have another size than the configuration's.
        """
        size = self.config.image_size
        if frames.dim() != 4 or frames.shape[1:] != (3, size, size):
            raise ShapeError(
                f"success classifier: frames {list(frames.shape)}; expected [B, 3, {size}, {size}]"
            )
        scores: Tensor = self.score(self.features(2 * frames - 1))
        return scores[:, 0]

    @torch.no_grad()
    def solved(self, frames: Tensor) -> Tensor:
        """Whether each frame [B, 3, H, W] scores above the threshold, bool [B]."""
        scores: Tensor = self(frames)
        return scores > self.config.threshold

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "SuccessClassifier":
        """Load `config.json` and the weights, in evaluation mode, float32.

        Raises:
            CheckpointError: the folder is missing, damaged or something else.
        """
        folder = Path(folder)
        try:
            config = load_config(SuccessConfig, read_json(folder / "config.json"))
        except ConfigError as error:
            reason = str(error).removeprefix("configuration: ")
            raise CheckpointError(f"{folder / 'config.json'}: {reason}") from error
        model = cls(config)
        tensors = {name: value.float() for name, value in read_tensors(folder).items()}
        load_strict(model, tensors, str(folder))
        return model.eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the folder, weights in `dtype` when given."""
        folder = Path(folder)
        write_tensors(folder / WEIGHTS, dict(self.state_dict()), dtype)
        write_json(folder / "config.json", self.config.model_dump(mode="json"))


def build_success_classifier(config: SuccessConfig, seed: int = 0) -> SuccessClassifier:
    """A classifier with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SuccessClassifier(config)
