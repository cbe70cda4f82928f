"""Pictures of a run, kept as `scenes.npz`: recorded, expert and policy before and after."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlarft.data.windows import Windows
from vlarft.engine import RolloutEngine, Sampling
from vlarft.errors import DataError
from vlarft.models.policy import Observation, Policy
from vlarft.report.data import Frames, Panel, Scene

FILE = "scenes.npz"
ENLARGED = 4  # differences are multiplied by this, or they would be black to the eye
PICTURES = ("recorded", "expert", "before", "after")


@dataclass(frozen=True, slots=True)
class SceneFrames:
    """T imagined frames of one start state.

    Attributes:
        title: the instruction.
        note: episode and start.
        pictures: uint8 [T, H, W, 3] for each of `recorded`, `expert`, `before`, `after`.
        distances: L1 + LPIPS to the expert's imagination, mean of the frames, for `before` and
            `after`.
    """

    title: str
    note: str
    pictures: dict[str, Frames]
    distances: dict[str, float]

    def scene(self) -> Scene:
        """Panels of a report, with enlarged differences to the expert's imagination."""
        captions = {
            "recorded": ("Recorded", "what really happened"),
            "expert": ("Expert, imagined", "the target"),
            "before": ("Policy before", f"distance {self.distances['before']:.3f}"),
            "after": ("Policy after", f"distance {self.distances['after']:.3f}"),
        }
        panels = [
            Panel(captions[name][0], self.pictures[name], captions[name][1]) for name in PICTURES
        ]
        for name in ("before", "after"):
            panels.append(
                Panel(
                    f"Difference {name}",
                    difference(self.pictures[name], self.pictures["expert"]),
                    "to the expert",
                )
            )
        return Scene(self.title, panels, self.note)


def difference(a: Frames, b: Frames) -> Frames:
    """Largest channel difference, enlarged, from black over orange to white: uint8 [T, H, W, 3]."""
    size = (
        np.abs(a.astype(np.int16) - b.astype(np.int16)).max(-1).astype(np.float32) / 255 * ENLARGED
    )
    ramp = np.array(
        [[14, 17, 22], [120, 40, 30], [240, 130, 40], [255, 244, 214]], dtype=np.float32
    )
    place = np.clip(size, 0, 1) * (len(ramp) - 1)
    low = np.minimum(place.astype(np.int64), len(ramp) - 2)
    share = (place - low)[..., None]
    picture: Frames = (ramp[low] * (1 - share) + ramp[low + 1] * share).astype(np.uint8)
    return picture


@torch.no_grad()
def imagine_scenes(
    engine: RolloutEngine,
    before: Policy,
    after: Policy,
    windows: Windows,
    indices: Sequence[int] | Tensor,
    sampling: Sampling | None = None,
    *,
    drawn: bool = True,
) -> list[SceneFrames]:
    """Imagine the expert and what both policies would execute, from the same frames and noise.

    Args:
        engine: the world model.
        before: policy at step 0.
        after: policy after the last step.
        windows: validation windows.
        indices: windows to show.
        sampling: options of the imagination; default `Sampling()`.
        drawn: both policies start their flow from the same drawn noise; else from its mean.
    """
    batch = windows.batch(indices)
    observation = Observation(batch.frames[:, 0], batch.proprioception, batch.instruction)
    starts = [torch.Generator().manual_seed(0) if drawn else None for _ in range(2)]
    pairs = zip((before, after), starts, strict=True)
    actions = torch.stack([policy.act(observation, start) for policy, start in pairs], 1)
    result = engine.rollout(
        engine.encode(batch.frames[:, 0]),
        actions,
        batch.actions.to(actions.device),
        sampling or Sampling(),
        keep=("frames",),
    )
    if result.frames is None or result.expert_frames is None:
        raise DataError("rollout(keep=('frames',)) returned no frames")
    imagined = pixels(result.frames)
    expert = pixels(result.expert_frames)
    recorded = batch.frames[:, 1:].numpy()
    distance = (result.l1 + result.perceptual).float().mean(-1).tolist()
    return [
        SceneFrames(
            title=batch.instruction[i],
            note=f"validation episode {windows.episodes[int(batch.episode[i])].name}, "
            f"from step {int(batch.start[i])}",
            pictures={
                "recorded": recorded[i],
                "expert": expert[i],
                "before": imagined[i, 0],
                "after": imagined[i, 1],
            },
            distances={"before": distance[i][0], "after": distance[i][1]},
        )
        for i in range(len(batch.instruction))
    ]


def save_scenes(run: Path, scenes: Sequence[SceneFrames]) -> Path:
    """Write `run/scenes.npz`."""
    arrays: dict[str, Any] = {
        f"{i}/{name}": frames
        for i, scene in enumerate(scenes)
        for name, frames in scene.pictures.items()
    }
    words = [{"title": s.title, "note": s.note, "distances": s.distances} for s in scenes]
    path = run / FILE
    np.savez_compressed(path, words=np.array(json.dumps(words)), **arrays)
    return path


def load_scenes(run: Path) -> list[SceneFrames]:
    """Read `run/scenes.npz`; empty when the run has none.

    Raises:
        DataError: the file is damaged.
    """
    path = run / FILE
    if not path.exists():
        return []
    try:
        with np.load(path) as content:
            words = json.loads(str(content["words"]))
            return [
                SceneFrames(
                    w["title"],
                    w["note"],
                    {name: content[f"{i}/{name}"] for name in PICTURES},
                    w["distances"],
                )
                for i, w in enumerate(words)
            ]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: not a file of scenes ({error}); remove it or run again"
        ) from error


def pixels(frames: Tensor) -> Frames:
    """Float [..., 3, H, W] in [0, 1] -> uint8 [..., H, W, 3]."""
    array: Frames = (frames.movedim(-3, -1) * 255).round().to(torch.uint8).cpu().numpy()
    return array
