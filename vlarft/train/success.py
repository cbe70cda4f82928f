"""Success classifier: the frames at which recorded episodes are solved against all others.

A solved episode ends with the first frame at which the simulator calls the task solved. That frame
is the positive; frames shortly before it look the same and are left out; earlier ones, and all
frames of failures, are negatives. Frames are shown as a world model's tokenizer draws them, T
frames after a given one, since what is judged later is imagined: trained on the recordings'
sharp pixels, the classifier misses most of the solved frames that a tokenizer blurs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vlarft.data.libero import Episode, split_of
from vlarft.data.windows import Windows
from vlarft.engine import RolloutEngine, Sampling
from vlarft.errors import DataError
from vlarft.models.success import SuccessClassifier, SuccessConfig
from vlarft.models.tokenizer import Tokenizer
from vlarft.train.loop import LoopConfig

BATCH = 32  # windows that are drawn or imagined at once
NEAR = 32  # frames before a solved one: half of an episode's negatives come from there
Progress = Callable[[int, int], None] | None


class SuccessTraining(LoopConfig):
    """Frames and optimisation."""

    steps: int = 800
    batch_size: int = Field(default=64, ge=2)  # frames a step, half of them solved
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    weight_decay: float = 0.05
    ema_decay: float = 0.99
    validate_every: int = 200
    checkpoint_every: int = 400
    channels: tuple[int, ...] = SuccessConfig().channels  # of the classifier
    dropout: float = SuccessConfig().dropout
    shift: int = Field(default=2, ge=0)  # largest random translation, pixels
    margin: int = Field(default=4, ge=0)  # frames before the solved one that are left out
    unsolved: int = Field(default=6, ge=1)  # negatives an episode
    accepted: float = Field(default=0.05, gt=0, lt=1)  # of the negatives, by the threshold
    temperature: float = Field(default=0.3, ge=0)  # of imaginations that set the threshold


@dataclass(frozen=True, eq=False)
class Chosen:
    """Windows whose last frame is classified.

    Attributes:
        windows: int64 [M], numbers.
        solved: bool [M], whether the task is solved at the window's last frame.
        near: bool [M], whether that is within `NEAR` frames before a solved one.
        episode: int64 [M].
    """

    windows: Tensor
    solved: Tensor
    near: Tensor
    episode: Tensor


def with_failures(solved: list[Episode], failures: list[Episode], split: str) -> list[Episode]:
    """Episodes of one split; failures, which have none, are split by their number.

    Raises:
        DataError: a failure is solved.
    """
    for episode in failures:
        if episode.success:
            raise DataError(
                f"{episode.file}: '{episode.name}' is solved; --failures takes failed ones"
            )
    numbers = [int(episode.name.removeprefix("demo_")) for episode in failures]
    own = [e for e, number in zip(failures, numbers, strict=True) if split_of(number) == split]
    return [*solved, *own]


def choose_windows(windows: Windows, config: SuccessTraining) -> Chosen:
    """The last window of every solved episode, and `unsolved` others of every episode.

    Negatives are spread evenly over an episode. Half of a solved one's are spread over all windows
    that end more than `margin` frames before its end, the others over the last `NEAR` of these.

    Raises:
        DataError: no episode is solved, or none has a negative.
    """
    chosen: list[tuple[int, bool, bool, int]] = []
    firsts = torch.searchsorted(windows.episode, torch.arange(len(windows.episodes)))
    for number, (episode, first) in enumerate(zip(windows.episodes, firsts.tolist(), strict=True)):
        count = episode.steps - windows.frames + 1
        if count < 1:
            continue
        before = count
        if episode.success:
            chosen.append((first + count - 1, True, False, number))
            before = count - 1 - config.margin
        if before < 1:
            continue
        close = min(NEAR, before)
        half = config.unsolved // 2 if episode.success else 0
        starts = {*_spread(0, before, config.unsolved - half)}
        starts |= {*_spread(before - close, before, half)}
        for start in sorted(starts):
            follows = episode.success and start >= before - close
            chosen.append((first + start, False, follows, number))
    numbers, solved, near, episodes = (torch.tensor(column) for column in zip(*chosen, strict=True))
    if solved.all() or not solved.any():
        raise DataError(
            "a success classifier needs solved frames and others: episodes that end with success, "
            f"longer than {windows.frames + config.margin} actions"
        )
    return Chosen(numbers, solved, near, episodes)


@torch.no_grad()
def draw_frames(
    tokenizer: Tokenizer, windows: Windows, chosen: Tensor, progress: Progress = None
) -> Tensor:
    """The windows' last frames as the tokenizer draws them from their first: uint8 [M,3,H,W]."""
    device = next(tokenizer.parameters()).device
    parts: list[Tensor] = []
    for some in chosen.split(BATCH):
        ends = windows.batch(some).frames[:, [0, -1]].permute(0, 1, 4, 2, 3).float() / 255
        context, tokens = tokenizer.tokenize(ends.to(device))
        parts.append(_bytes(tokenizer.detokenize(context, tokens)[:, 0]))
        if progress:
            progress(sum(len(part) for part in parts), len(chosen))
    return torch.cat(parts)


def imagine_frames(
    engine: RolloutEngine,
    windows: Windows,
    chosen: Tensor,
    sampling: Sampling,
    progress: Progress = None,
) -> Tensor:
    """The windows' last frames, imagined from the first with the recorded actions, as above."""
    parts: list[Tensor] = []
    for some in chosen.split(BATCH):
        batch = windows.batch(some)
        scenes = engine.encode(batch.frames[:, 0], keys=some)
        tokens = engine.imagine(scenes, batch.actions[:, None], sampling).tokens
        parts.append(_bytes(engine.decode(scenes, tokens[:, :, -1:])[:, 0, 0]))
        if progress:
            progress(sum(len(part) for part in parts), len(chosen))
    return torch.cat(parts)


class SuccessTask:
    """Cross-entropy of a classifier, on as many solved frames as others."""

    def __init__(
        self,
        classifier: SuccessClassifier,
        config: SuccessTraining,
        training: tuple[Tensor, Chosen],
        validation: tuple[Tensor, Chosen],
    ) -> None:
        self.model: nn.Module = classifier
        self.classifier, self.config = classifier, config
        self.frames, chosen = training
        self.validation = validation
        self.solved = chosen.solved.nonzero().flatten()
        self.others = (~chosen.solved).nonzero().flatten()

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights."""
        return self.classifier.parameters()

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG002
        """Cross-entropy of one random batch, in nats a frame."""
        half = self.config.batch_size // 2
        rows = torch.cat([_drawn(part, half, generator) for part in (self.solved, self.others)])
        frames = _pixels(_shifted(self.frames[rows], self.config.shift, generator))
        scores = self.classifier(frames.to(next(self.parameters()).device))
        target = (torch.arange(2 * half) < half).to(scores)
        return F.binary_cross_entropy_with_logits(scores.float(), target), {}

    def validate(self, model: nn.Module) -> dict[str, float]:  # noqa: ARG002
        """Area under the curve on frames of validation episodes, drawn by the tokenizer."""
        frames, chosen = self.validation
        return {"auc": area(scores_of(self.classifier, frames), chosen.solved)}

    def after_step(self, step: int) -> None:
        """Nothing to do."""

    def extra_state(self) -> dict[str, Any]:
        """No further state."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Counterpart of `extra_state`."""


@torch.no_grad()
def scores_of(classifier: SuccessClassifier, frames: Tensor) -> Tensor:
    """Scores float32 [M] on the CPU of frames uint8 [M,3,H,W]."""
    device = next(classifier.parameters()).device
    parts = [classifier(_pixels(some).to(device)).float().cpu() for some in frames.split(8 * BATCH)]
    return torch.cat(parts)


def area(scores: Tensor, solved: Tensor) -> float:
    """Share of pairs of a solved and another frame in which the solved one scores higher (AUC)."""
    good, bad = scores[solved, None], scores[~solved]
    return float(((good > bad).double() + (good == bad).double() / 2).mean())


def calibrated(scores: Tensor, solved: Tensor, accepted: float) -> float:
    """The threshold above which at most the share `accepted` of unsolved frames score."""
    others = scores[~solved].double().sort(descending=True).values
    return float(others[int(accepted * len(others))])


def shares_above(scores: Tensor, solved: Tensor, threshold: float) -> dict[str, float]:
    """`recall` of solved frames, share `accepted` of others, and `accuracy`, balanced."""
    above = (scores > threshold).double()
    recall, accepted = float(above[solved].mean()), float(above[~solved].mean())
    return {"recall": recall, "accepted": accepted, "accuracy": (recall + 1 - accepted) / 2}


def halves(chosen: Chosen) -> tuple[Tensor, Tensor]:
    """Rows bool [M] twice: every second episode sets the threshold, the others judge it."""
    episodes, place = torch.unique(chosen.episode, return_inverse=True)
    ends_solved = torch.zeros(len(episodes), dtype=torch.bool)
    ends_solved[place[chosen.solved]] = True
    turn = torch.empty(len(episodes), dtype=torch.int64)
    for kind in (ends_solved, ~ends_solved):
        turn[kind] = torch.arange(int(kind.sum()))
    first = (turn % 2 == 0)[place]
    return first, ~first


def _spread(first: int, last: int, count: int) -> list[int]:
    """`count` whole numbers from `first` to `last` - 1, evenly spaced."""
    return torch.linspace(first, last - 1, count).long().tolist() if count else []


def _drawn(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return rows[torch.randint(len(rows), (count,), generator=generator)]


def _shifted(frames: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Each frame [B,3,H,W] moved by up to `limit` pixels, edges repeated."""
    count, _, height, width = frames.shape
    shift = torch.randint(-limit, limit + 1, (2, count, 1), generator=generator)
    rows = (torch.arange(height)[None] + shift[0]).clamp(0, height - 1)
    columns = (torch.arange(width)[None] + shift[1]).clamp(0, width - 1)
    moved = frames.permute(0, 2, 3, 1)[
        torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    ]
    return moved.permute(0, 3, 1, 2)


def _bytes(pixels: Tensor) -> Tensor:
    """[0, 1] -> uint8 on the CPU."""
    return (255 * pixels.clamp(0, 1)).round().to("cpu", torch.uint8)


def _pixels(frames: Tensor) -> Tensor:
    """The reverse, to float32."""
    return frames.float() / 255
