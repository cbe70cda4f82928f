"""A world that is known exactly: a square moves right by the first action entry, in pixels."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlarft.data.libero import Episode

SIZE, SQUARE, T = 32, 6, 4
BACKGROUND, WHITE = 64, 255


def picture(position: int) -> np.ndarray:
    frame = np.full((SIZE, SIZE, 3), BACKGROUND, np.uint8)
    frame[12 : 12 + SQUARE, position : position + SQUARE] = WHITE
    return frame


def episode(number: int, speeds: list[int], start: int = 2) -> Episode:
    positions = np.cumsum([start, *speeds])
    actions = np.zeros((len(speeds), 7), np.float32)
    actions[:, 0] = speeds
    return Episode(
        name=f"demo_{number}",
        file=Path("square.hdf5"),
        task="move",
        instruction="move the square",
        kind="standard",
        split="val",
        success=True,
        init_index=0,
        frames=np.stack([picture(int(p)) for p in positions]),
        actions=actions,
        proprioception=np.zeros((len(speeds) + 1, 8), np.float32),
    )


class SquareEngine:
    """Stands in for `RolloutEngine`; its token is the square's position.

    Args:
        listens: whether imagination uses the actions it is given.
    """

    metric = "lpips-alex"
    device = torch.device("cpu")

    def __init__(self, listens: bool = True) -> None:
        self.listens = listens
        self.world = SimpleNamespace(tokenizer=SimpleNamespace(tokenize=self.tokenize))
        self.noises: list[Any] = []

    def encode(self, frames: Tensor) -> Tensor:
        return self._position(frames.permute(0, 3, 1, 2).float() / 255)

    def tokenize(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        return self._position(frames[:, 0])[:, None], self._position(frames[:, 1:])[..., None]

    def imagine(self, scenes: Tensor, actions: Tensor, sampling: Any) -> Any:
        self.noises.append(sampling)
        moves = actions[..., 0] if self.listens else torch.ones_like(actions[..., 0])
        return SimpleNamespace(tokens=(scenes[:, None, None] + moves.cumsum(-1)).long()[..., None])

    def decode(self, scenes: Tensor, tokens: Tensor) -> Tensor:
        assert len(scenes) == len(tokens)
        flat = [picture(int(p)) for p in tokens.flatten()]
        frames = torch.from_numpy(np.stack(flat)).permute(0, 3, 1, 2).float() / 255
        return frames.unflatten(0, tokens.shape[:-1])

    def compare(self, frames: Tensor, reference: Tensor) -> Any:
        return SimpleNamespace(perceptual=(frames - reference[:, None]).abs().mean((-3, -2, -1)))

    def _position(self, images: Tensor) -> Tensor:
        return (images[..., 0, 12, :] > 0.9).int().argmax(-1)
