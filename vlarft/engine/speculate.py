"""How many positions a pass should settle: from measured seconds of passes and acceptance.

A pass of W positions a row costs more than one of W = 1 and settles 1 + a + ... + a^(W-1) tokens,
where a is the share of right guesses. Where memory binds, W is nearly free; where multiplications
bind, W = 1 is the answer. Tokens are the same for every W (docs/imagine.md).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlarft.errors import ShapeError

WIDTHS = (1, 2, 4, 8)
MEASURED_TOKENS = (1, 16, 64, 256)  # of one timed pass
# Guess sources in order of trust, by value of Sampling.speculate, and the share of right guesses
# that is assumed before any was tried: docs/imagine.md has the measurements.
SOURCES: Mapping[str, tuple[str, ...]] = {
    "auto": ("jacobi", "logits"),
    "off": (),
    "jacobi": ("jacobi", "logits"),  # alone it never starts: it needs a pass with guesses before
    "logits": ("logits",),
}
_ACCEPTANCE = 0.9
_GAIN = 1.05  # W > 1 must be predicted to be this much faster


@dataclass(frozen=True)
class Shape:
    """Sizes of one imagination.

    Attributes:
        scenes: P.
        members: M, the expert included.
        prompt: S.
        frames: T.
        action_dim: A.
        frame_tokens: K.
    """

    scenes: int
    members: int
    prompt: int
    frames: int
    action_dim: int
    frame_tokens: int

    @property
    def rows(self) -> int:
        """P M."""
        return self.scenes * self.members


@dataclass(frozen=True)
class Rates:
    """What passes cost here, measured with the model's own weights.

    Attributes:
        tokens: of the timed passes, ascending.
        seconds: of those passes, without a prompt.
        prompt_token: seconds that one query of one prompt position adds.
        read_byte: seconds a byte that is read from memory.
    """

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    prompt_token: float
    read_byte: float

    def dense(self, tokens: float) -> float:
        """Seconds of a pass of `tokens` tokens, attention to caches apart: linear in between."""
        last = len(self.tokens) - 1
        if last == 0:
            return self.seconds[0] * tokens
        high = next((i for i in range(1, last) if tokens <= self.tokens[i]), last)
        low = high - 1
        slope = (self.seconds[high] - self.seconds[low]) / (self.tokens[high] - self.tokens[low])
        return self.seconds[low] + max(0.0, slope) * (tokens - self.tokens[low])

    def imagine_seconds(self, shape: Shape, row_bytes: int, width: int, acceptance: float) -> float:
        """Predicted seconds of an imagination.

        Args:
            shape: its sizes.
            row_bytes: of one row's own keys and values when it is full.
            width: W.
            acceptance: share of right guesses.
        """
        passes = shape.frames * shape.frame_tokens / settled(acceptance, width)
        rows, tokens = shape.rows, shape.rows * width
        attention = tokens * shape.prompt * self.prompt_token
        attention += rows * row_bytes / 2 * self.read_byte  # half full on average
        border = self.dense(tokens + rows * shape.action_dim) - self.dense(tokens)
        return passes * (self.dense(tokens) + attention) + shape.frames * border


def settled(acceptance: float, width: int) -> float:
    """Tokens that a row and pass settle: 1 + a + ... + a^(W-1)."""
    return float(sum(acceptance**i for i in range(width)))


def best_width(
    rates: Rates, shape: Shape, row_bytes: int, acceptance: float, widths: Sequence[int] = WIDTHS
) -> int:
    """The W with the fewest predicted seconds; the first of `widths` unless clearly slower.

    Raises:
        ShapeError: no width to choose from.
    """
    if not widths:
        raise ShapeError("best_width: give at least one width")

    def cost(width: int) -> float:
        return rates.imagine_seconds(shape, row_bytes, width, acceptance)

    best = min(widths, key=cost)
    return best if cost(best) * _GAIN < cost(widths[0]) else widths[0]


class Speculation:
    """An engine's choice of W, and what it learns from its own rollouts.

    Args:
        rates: what passes cost now (with the current number of threads).
        row_bytes: bytes of one row's own keys and values after T frames.
        scenes_at_once: scenes that pass together.
    """

    def __init__(
        self,
        rates: Callable[[], Rates],
        row_bytes: Callable[[int], int],
        scenes_at_once: Callable[[Shape], int],
    ) -> None:
        self._rates, self._row_bytes = rates, row_bytes
        self._scenes_at_once = scenes_at_once
        self._acceptance = _ACCEPTANCE
        self._slowdown = 1.0  # of the last imagination against its prediction

    def choose(self, shape: Shape, speculate: str) -> tuple[int, tuple[str, ...]]:
        """W, and the sources of guesses when it is more than 1."""
        guesses = SOURCES[speculate]
        if not guesses:
            return 1, ()
        # A source that is asked for by name is used even where "auto" would not.
        widths = WIDTHS if speculate == "auto" else WIDTHS[1:]
        row = self._row_bytes(shape.frames)
        part = replace(shape, scenes=self._scenes_at_once(shape))
        width = best_width(self._rates(), part, row, self._acceptance, widths)
        return width, guesses if width > 1 else ()

    def seconds(self, shape: Shape, width: int) -> float:
        """Predicted seconds of an imagination."""
        return self._slowdown * self._timed(shape, width)

    def learn(self, shape: Shape, seconds: float, stats: Mapping[str, Any]) -> None:
        """Take over what an imagination took (seconds) and did (its stats)."""
        tried = sum(count for _, count in stats["guesses"].values())
        if tried:
            self._acceptance = sum(right for right, _ in stats["guesses"].values()) / tried
        self._slowdown = seconds / self._timed(shape, stats["width"])

    def _timed(self, shape: Shape, width: int) -> float:
        row = self._row_bytes(shape.frames)
        part = replace(shape, scenes=self._scenes_at_once(shape))
        seconds = self._rates().imagine_seconds(part, row, width, self._acceptance)
        return seconds * shape.scenes / part.scenes
