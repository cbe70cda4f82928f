"""Does the world model know what it does not know? Entropy of its tokens against its errors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlarft.data.windows import Windows, moving_mask
from vlarft.engine import RolloutEngine, Sampling
from vlarft.eval.image_quality import squared_error
from vlarft.eval.statistics import Estimate, rank_interval
from vlarft.rft.gate import frame_entropy

QUANTILES = (0.1, 0.5, 0.75, 0.9)


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """Entropy of the next-token distribution, and the error of the imagination, across windows.

    Attributes:
        entropy: of each window, float64 [W], nats a token.
        quantiles: of the windows' entropies, nats a token: what a gate's threshold is chosen from.
        moving: Spearman's correlation of a window's entropy with the squared error of its last
            imagined frame over moving pixels; None: fewer than two episodes with moving pixels.
        whole: the same over all pixels.
        order: Spearman's correlation of the entropy with how well the reward orders the window's
            group (its rank correlation with the action error); below 0, a gate keeps better groups.
    """

    entropy: Tensor
    quantiles: dict[float, float]
    moving: Estimate | None
    whole: Estimate
    order: Estimate | None = None

    def lines(self) -> list[str]:
        """Shown, not judged: no reward is made of the entropy."""
        steps = ", ".join(f"{value:.3f} at {q:.0%}" for q, value in self.quantiles.items())
        moving = self.moving if self.moving else "nothing moves"
        return [
            f"token entropy of a window, nats: {steps}; rank correlation with the error of the "
            f"last imagined frame: {moving} (moving pixels), {self.whole} (all pixels)"
            + (f"; with the order of its group: {self.order}" if self.order else "")
        ]

    def to_dict(self) -> dict[str, Any]:
        """As written to `summary.json`."""
        return {
            "windows": len(self.entropy),
            "quantiles": {f"{q:g}": value for q, value in self.quantiles.items()},
            "moving": self.moving and self.moving.to_dict(),
            "whole": self.whole.to_dict(),
            "order": self.order and self.order.to_dict(),
        }


@torch.no_grad()
def measure_uncertainty(
    engine: RolloutEngine,
    windows: Windows,
    indices: Sequence[int] | Tensor,
    sampling: Sampling,
    *,
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Uncertainty:
    """Entropy and error of recorded windows, imagined with their own actions.

    Args:
        engine: the world model.
        windows: recorded windows of the layout's frames.
        indices: W window numbers, of at least two episodes.
        sampling: options of the imagination; the entropy is that of temperature 1 in any case.
        batch: windows at once.
        progress: called with (windows done, windows).

    Raises:
        DataError: windows of one episode only.
    """
    numbers = torch.as_tensor(indices, dtype=torch.int64).cpu()
    entropies: list[Tensor] = []
    errors: dict[str, list[Tensor]] = {"moving": [], "whole": []}
    for some in numbers.split(batch):
        recording = windows.batch(some)
        entropies.append(frame_entropy(engine.world, recording.frames, recording.actions))
        scenes = engine.encode(recording.frames[:, 0])
        tokens = engine.imagine(scenes, recording.actions[:, None], sampling).tokens
        last = engine.decode(scenes, tokens[:, :, -1:])[:, 0, 0].float().cpu()
        target = recording.frames[:, -1].permute(0, 3, 1, 2).float() / 255
        moving = moving_mask(recording.frames)
        for name, mask in (("moving", moving), ("whole", torch.ones_like(moving))):
            errors[name].append(squared_error(last, target, mask) / (3 * mask.sum((1, 2))))
        if progress:
            progress(sum(map(len, entropies)), len(numbers))
    entropy, episode = torch.cat(entropies), windows.episode[numbers]
    error = {name: torch.cat(parts).double() for name, parts in errors.items()}
    moves = error["moving"].isfinite()  # 0 / 0 where nothing moves
    levels = torch.quantile(entropy, torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    return Uncertainty(
        entropy,
        dict(zip(QUANTILES, levels, strict=True)),
        rank_interval(entropy[moves], error["moving"][moves], episode[moves])
        if len(episode[moves].unique()) > 1
        else None,
        rank_interval(entropy, error["whole"], episode),
    )
