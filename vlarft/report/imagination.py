"""`vlarft imagine`: one scene with given actions beside the expert's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlarft.data.windows import Windows
from vlarft.engine import RolloutEngine, Sampling
from vlarft.errors import DataError
from vlarft.report.data import Frames
from vlarft.report.scenes import difference, pixels

MILLISECONDS = 200  # per frame; the last one stays three times as long
GAP = 2  # pixels between panels, before enlargement


@dataclass(frozen=True, slots=True)
class Imagination:
    """Result of `imagine_actions`.

    Attributes:
        instruction: of the episode.
        panels: recorded, expert imagined, given actions imagined, difference; each uint8 [T, H, W,
            3].
        l1: T distances to the expert's imagination.
        perceptual: likewise, LPIPS.
    """

    instruction: str
    panels: list[Frames]
    l1: list[float]
    perceptual: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Figures without pictures."""
        return {"instruction": self.instruction, "l1": self.l1, "perceptual": self.perceptual}


def imagine_actions(
    engine: RolloutEngine,
    windows: Windows,
    episode: int,
    start: int,
    actions: str,
    sampling: Sampling,
) -> Imagination:
    """Imagine the expert's and other actions from one recorded frame, with the same noise.

    Args:
        engine: the world model.
        windows: recorded data.
        episode: number of the episode in `windows.episodes`.
        start: step of the given frame.
        actions: "still" (nothing moves, the gripper stays open), a `.npy` file of raw actions [T,
            7], or the number of another episode, whose actions from the same step are taken.
        sampling: options of the imagination.

    Raises:
        DataError: there is no such window, or the actions are not [T, 7] finite numbers.
    """
    batch = windows.batch([find_window(windows, episode, start)])
    given = read_actions(actions, windows, start)
    result = engine.rollout(
        engine.encode(batch.frames[:, 0]),
        given[None, None],
        batch.actions,
        sampling,
        keep=("frames",),
    )
    assert result.frames is not None  # kept on request
    assert result.expert_frames is not None
    expert, imagined = pixels(result.expert_frames)[0], pixels(result.frames)[0, 0]
    return Imagination(
        batch.instruction[0],
        [batch.frames[0, 1:].numpy(), expert, imagined, difference(imagined, expert)],
        result.l1[0, 0].tolist(),
        result.perceptual[0, 0].tolist(),
    )


def find_window(windows: Windows, episode: int, start: int) -> int:
    """Number of the window of an episode that starts at a step.

    Raises:
        DataError: there is none; the message says which there are.
    """
    if not 0 <= episode < len(windows.episodes):
        raise DataError(
            f"--episode {episode}; the data has episodes 0 to {len(windows.episodes) - 1}"
        )
    found = torch.nonzero((windows.episode == episode) & (windows.start == start)).flatten()
    if not len(found):
        last = windows.episodes[episode].steps - windows.frames
        raise DataError(f"--start {start}; windows of episode {episode} start at 0 to {last}")
    return int(found[0])


def read_actions(actions: str, windows: Windows, start: int) -> Tensor:
    """Actions as `imagine_actions` takes them: float32 [T, 7], raw units.

    Raises:
        DataError: not a file of [T, 7] finite numbers, or no such episode.
    """
    if actions == "still":
        still = torch.zeros(windows.frames, 7)
        still[:, -1] = -1
        return still
    if actions.isdigit():
        donor = int(actions)
        if donor >= len(windows.episodes):
            raise DataError(
                f"--actions {actions}; the data has episodes 0 to {len(windows.episodes) - 1}"
            )
        latest = max(0, windows.episodes[donor].steps - windows.frames)
        return windows.batch([find_window(windows, donor, min(start, latest))]).actions[0]
    try:
        values = np.load(Path(actions), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"--actions {actions}: not 'still', an episode's number or a .npy file of numbers "
            f"({error})"
        ) from error
    if values.shape != (windows.frames, 7) or not np.isfinite(values).all():
        raise DataError(
            f"--actions {actions}: expected finite numbers [{windows.frames}, 7] in raw LIBERO "
            "units, "
            f"got {values.dtype} {list(values.shape)}"
        )
    return torch.from_numpy(values.astype(np.float32))


def write_animation(path: Path, panels: list[Frames], scale: int = 3) -> None:
    """Write panels side by side as an endless GIF or WebP.

    Args:
        path: file to write; `.gif` or `.webp`.
        panels: uint8 [T, H, W, 3] of one size.
        scale: whole-number enlargement.
    """
    frames, height, width, _ = panels[0].shape
    sheet = np.full((frames, height, len(panels) * (width + GAP) - GAP, 3), 255, np.uint8)
    for number, panel in enumerate(panels):
        sheet[:, :, number * (width + GAP) : number * (width + GAP) + width] = panel
    sheet = sheet.repeat(scale, axis=1).repeat(scale, axis=2)
    images = [Image.fromarray(frame) for frame in sheet]
    times = [MILLISECONDS] * (frames - 1) + [3 * MILLISECONDS]
    path.parent.mkdir(parents=True, exist_ok=True)
    images[0].save(path, save_all=True, append_images=images[1:], duration=times, loop=0)
