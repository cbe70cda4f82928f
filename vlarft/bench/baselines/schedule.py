"""Which passes a rollout has, and which of them stand for the rest."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

PASSES = 12  # of one token that are sampled in each of the first, middle and last frame


@dataclass(frozen=True)
class FrameSchedule:
    """[prompt S] then, for each of T frames, [A actions][K tokens].

    Attributes:
        prompt: S.
        frames: T.
        frame_tokens: K.
        action_dim: A.
    """

    prompt: int
    frames: int
    frame_tokens: int
    action_dim: int

    @property
    def suffix(self) -> int:
        """Tokens after the prompt that are ever fed: the very last is not."""
        return self.frames * (self.action_dim + self.frame_tokens) - 1

    @property
    def total(self) -> int:
        """Longest sequence."""
        return self.prompt + self.suffix

    def length_before(self, frame: int, position: int) -> int:
        """Tokens in the cache when the pass that draws (frame, position) begins.

        A frame's first pass feeds the previous frame's last token and the actions (only the actions
        at frame 0), every other pass the token before.
        """
        start = self.prompt + frame * (self.action_dim + self.frame_tokens)
        if position == 0:
            return start - int(frame > 0)
        return start + self.action_dim + position - 1

    def frame_classes(self) -> list[int]:
        """First, middle and last frame."""
        return sorted({0, self.frames // 2, self.frames - 1})

    def opening_classes(self) -> list[int]:
        """Frames whose first pass is sampled; the very first is a class of its own."""
        return sorted({0, min(1, self.frames - 1), *self.frame_classes()})

    def sampled_positions(self) -> list[int]:
        """At most 12 positions 1 .. K-1, spread evenly and ends included."""
        last = self.frame_tokens - 1
        if last <= PASSES:
            return list(range(1, last + 1))
        return [1 + round(i * (last - 1) / (PASSES - 1)) for i in range(PASSES)]


def interpolate(known: Mapping[int, float], x: int) -> float:
    """Piecewise linear between known points, constant outside."""
    points = sorted(known)
    if x <= points[0]:
        return known[points[0]]
    for low, high in pairwise(points):
        if x <= high:
            share = (x - low) / (high - low)
            return known[low] + share * (known[high] - known[low])
    return known[points[-1]]
