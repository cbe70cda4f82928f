"""Windows of T actions and T+1 frames, cut from episodes held in memory (spec 11.2)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vlarft.data.libero import Episode
from vlarft.errors import DataError, ShapeError

MOVING_THRESHOLD = (
    0.1  # largest channel difference to the first frame, pixels in [0, 1] (spec 11.14)
)


@dataclass(frozen=True, eq=False)
class WindowBatch:
    """B windows of T actions.

    Attributes:
        frames: uint8 [B, T+1, H, W, 3]; `frames[:, 0]` is the given frame.
        actions: float32 [B, T, 7], raw LIBERO units; `actions[:, i]` leads from frame i to i+1.
        proprioception: float32 [B, 8] at the given frame.
        instruction: B sentences.
        episode: int64 [B], index of the episode in `Windows.episodes`.
        start: int64 [B], the given frame's index in its episode.
    """

    frames: torch.Tensor
    actions: torch.Tensor
    proprioception: torch.Tensor
    instruction: list[str]
    episode: torch.Tensor
    start: torch.Tensor

    def to(self, device: torch.device | str) -> "WindowBatch":
        """The same windows on a device."""
        return replace(
            self,
            frames=self.frames.to(device),
            actions=self.actions.to(device),
            proprioception=self.proprioception.to(device),
            episode=self.episode.to(device),
            start=self.start.to(device),
        )


class Windows:
    """Every window of the episodes: an episode of L actions has starts 0 to L-T, its end included.

    Args:
        episodes: demonstrations with frames of one size.
        frames: T, imagined frames and actions of a window, 1 or more.

    Attributes:
        episodes: as given.
        frames: T.
        episode: int64 [len], episode of each window.
        start: int64 [len], start of each window in its episode.
        too_short: indices of episodes with fewer than T actions, which have no window.

    Raises:
        DataError: no episode is long enough, or frame sizes differ.
    """

    def __init__(self, episodes: Sequence[Episode], frames: int = 8) -> None:
        if frames < 1:
            raise DataError(f"windows of {frames} frames; allowed: 1 or more")
        sizes = {episode.resolution for episode in episodes}
        if len(sizes) > 1:
            raise DataError(
                f"windows need frames of one size, got {sorted(sizes)}; read files of one size"
            )
        counts = [max(0, episode.steps - frames + 1) for episode in episodes]
        if not sum(counts):
            raise DataError(
                f"none of {len(episodes)} episodes has the {frames} actions of one window"
            )
        self.episodes = list(episodes)
        self.frames = frames
        self.episode = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        self.start = torch.cat([torch.arange(count) for count in counts])
        self.too_short = [index for index, count in enumerate(counts) if not count]
        self._frames = [torch.from_numpy(episode.frames) for episode in episodes]
        self._actions = [torch.from_numpy(episode.actions) for episode in episodes]
        self._proprioception = [torch.from_numpy(episode.proprioception) for episode in episodes]

    def __len__(self) -> int:
        return len(self.start)

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the frames in pixels."""
        return self.episodes[0].resolution

    @property
    def instructions(self) -> list[str]:
        """The different instructions, sorted."""
        return sorted({episode.instruction for episode in self.episodes})

    def grasps(self) -> torch.Tensor:
        """Numbers of the windows in which the gripper closes, int64."""
        first = torch.searchsorted(self.episode, torch.arange(len(self.episodes)))
        found = [
            first[number] + torch.from_numpy(grasp_starts(episode.actions, self.frames))
            for number, episode in enumerate(self.episodes)
        ]
        return torch.cat(found)

    def batch(self, indices: Sequence[int] | npt.NDArray[np.int64] | torch.Tensor) -> WindowBatch:
        """Gather windows on the CPU.

        Args:
            indices: B window numbers, 0 to len-1, in any order, repeats allowed.

        Raises:
            IndexError: a number is out of range.
            ShapeError: no number is given.
        """
        chosen = torch.as_tensor(indices, dtype=torch.int64).cpu().reshape(-1)
        if not len(chosen):
            raise ShapeError("batch() needs at least one window number")
        if int(chosen.min()) < 0 or int(chosen.max()) >= len(self):
            raise IndexError(f"window numbers {chosen.tolist()}; allowed: 0 to {len(self) - 1}")
        episode, start = self.episode[chosen], self.start[chosen]
        where = list(zip(episode.tolist(), start.tolist(), strict=True))
        return WindowBatch(
            frames=torch.stack([self._frames[e][t : t + self.frames + 1] for e, t in where]),
            actions=torch.stack([self._actions[e][t : t + self.frames] for e, t in where]),
            proprioception=torch.stack([self._proprioception[e][t] for e, t in where]),
            instruction=[self.episodes[e].instruction for e, _ in where],
            episode=episode,
            start=start,
        )


def grasp_starts(actions: npt.NDArray[np.float32], length: int) -> npt.NDArray[np.int64]:
    """Starts in whose `length` actions the gripper goes from open to closed.

    Args:
        actions: float [L, 7], raw LIBERO units; a gripper above 0 is closed.
        length: actions of a window.
    """
    closed = actions[:, -1] > 0
    last_open = np.flatnonzero(~closed[:-1] & closed[1:])
    starts = np.arange(max(0, len(actions) - length + 1))[:, None]
    inside = (starts <= last_open) & (last_open + 1 < starts + length)
    return np.flatnonzero(inside.any(1))


def data_fingerprint(windows: Windows) -> dict[str, Any]:
    """What a checkpoint remembers of its data: plain values, quick to compute.

    Returns:
        Numbers of episodes and windows, size of the frames, and a hash over all actions and
        proprioception, instructions, and each episode's first and last frame, in order.
    """
    content = hashlib.sha256()
    for episode in windows.episodes:
        content.update(episode.instruction.encode())
        for part in (
            episode.actions,
            episode.proprioception,
            episode.frames[0],
            episode.frames[-1],
        ):
            content.update(np.ascontiguousarray(part).data)
    return {
        "episodes": len(windows.episodes),
        "windows": len(windows),
        "frames": windows.frames,
        "resolution": list(windows.resolution),
        "sha256": content.hexdigest(),
    }


def moving_mask(frames: torch.Tensor) -> torch.Tensor:
    """Pixels that move in the recorded windows (spec 11.14).

    Args:
        frames: uint8 [B, T+1, H, W, 3], recorded.

    Returns:
        bool [B, H, W]: in some frame, the largest channel difference to the first exceeds 0.1.

    Raises:
        ShapeError: frames are not uint8 [B, T+1, H, W, 3].
    """
    if frames.dtype != torch.uint8 or frames.dim() != 5 or frames.shape[-1] != 3:
        raise ShapeError(
            f"moving_mask: frames {frames.dtype} {list(frames.shape)}; "
            "expected uint8 [B, T+1, H, W, 3]"
        )
    low, high = (
        frames.amin(dim=1).short(),
        frames.amax(dim=1).short(),
    )  # exact: the extremes are the largest moves
    first = frames[:, 0].short()
    return (torch.maximum(high - first, first - low).amax(dim=-1)) > MOVING_THRESHOLD * 255
