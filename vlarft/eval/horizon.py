"""How far imagination stays right: chunk after chunk, each from the last imagined frame."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlarft.data.windows import Windows, moving_mask
from vlarft.engine import RolloutEngine, Sampling
from vlarft.errors import DataError
from vlarft.eval.image_quality import psnr, squared_error

CHUNKS = 4


@dataclass(frozen=True, slots=True)
class Horizon:
    """Quality at the end of each chunk, over moving pixels, mean over windows, in dB.

    Attributes:
        frames: imagined frames so far, e.g. (8, 16, 24, 32).
        free: each chunk starts from the last imagined frame.
        restarted: each chunk starts from the recorded frame.
        copy: the first frame, unchanged.
        windows: how many.
    """

    frames: tuple[int, ...]
    free: tuple[float, ...]
    restarted: tuple[float, ...]
    copy: tuple[float, ...]
    windows: int

    def lines(self) -> list[str]:
        """One line a chunk."""
        return [
            f"frame {at}: {free:.2f} dB free-running, {restarted:.2f} from a recorded frame, "
            f"{copy:.2f} copying (moving pixels)"
            for at, free, restarted, copy in zip(
                self.frames, self.free, self.restarted, self.copy, strict=True
            )
        ]

    def to_dict(self) -> dict[str, Any]:
        """As written to `summary.json`."""
        return {
            "frames": list(self.frames),
            "free": list(self.free),
            "restarted": list(self.restarted),
            "copy": list(self.copy),
            "windows": self.windows,
        }


@torch.no_grad()
def measure_horizon(
    engine: RolloutEngine,
    windows: Windows,
    indices: Sequence[int] | Tensor,
    sampling: Sampling,
    *,
    chunks: int = CHUNKS,
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Horizon:
    """Imagine several chunks with the recorded actions.

    Args:
        engine: the world model.
        windows: of `chunks` times the layout's frames.
        indices: window numbers.
        sampling: options of the imagination.
        chunks: how many.
        batch: windows at once.
        progress: called with (windows done, windows).

    Raises:
        DataError: windows of another length, or nothing moves in any of them.
    """
    step = engine.world.layout.frames
    if windows.frames != chunks * step:
        raise DataError(f"windows of {windows.frames} frames; {chunks} chunks need {chunks * step}")
    numbers = torch.as_tensor(indices, dtype=torch.int64).cpu()
    quality: list[Tensor] = []  # [B, method, chunk]
    done = 0
    for some in numbers.split(batch):
        recording = windows.batch(some)
        moving = moving_mask(recording.frames)
        recorded = recording.frames.permute(0, 1, 4, 2, 3).float() / 255
        kept = moving.flatten(1).any(1)
        start, ends = recording.frames[:, 0], []
        for chunk in range(chunks):
            first = chunk * step
            actions = recording.actions[:, first : first + step]
            free = _last_frame(engine, start, actions, sampling)
            fresh = _last_frame(engine, recording.frames[:, first], actions, sampling)
            target = recorded[:, first + step]
            count = 3 * moving.sum((-2, -1)).clamp_min(1)
            methods = (free, fresh, recorded[:, 0])
            errors = [squared_error(image, target, moving) / count for image in methods]
            ends.append(psnr(torch.stack(errors, 1)))
            start = (free.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        quality.append(torch.stack(ends, 2)[kept])
        if progress:
            done += len(some)
            progress(done, len(numbers))
    rows = torch.cat(quality)
    if not len(rows):
        raise DataError("nothing moves in any of these windows; evaluate other windows")
    by_method = [tuple(line) for line in rows.mean(0).tolist()]
    ends_at = tuple(step * (chunk + 1) for chunk in range(chunks))
    return Horizon(ends_at, by_method[0], by_method[1], by_method[2], len(rows))


def _last_frame(
    engine: RolloutEngine, given: Tensor, actions: Tensor, sampling: Sampling
) -> Tensor:
    """The last imagined frame [B,3,H,W] after given frames uint8 [B,H,W,3]."""
    scenes = engine.encode(given)
    tokens = engine.imagine(scenes, actions[:, None], sampling).tokens
    return engine.decode(scenes, tokens[:, :, -1:])[:, 0, 0].float().cpu()
