"""Encode: the first frame of a scene becomes the world model's prompt."""

from typing import Any, Protocol

from torch import Tensor


class TwoStepEncoder(Protocol):
    """A tokenizer's encoders, or anything that computes the same."""

    def encode_context(self, image: Tensor) -> tuple[Tensor, Any]:
        """As `Tokenizer.encode_context`."""
        ...

    def encode_frames(self, features: Any, frames: Tensor) -> Tensor:
        """As `Tokenizer.encode_frames`."""
        ...


def encode(tokenizer: TwoStepEncoder, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Code a frame twice: as context, and as "future" frame 0 given that context (spec 3.3).

    Args:
        tokenizer: in evaluation mode.
        frames: uint8 [P,H,W,3].

    Returns:
        Context tokens int64 [P,K0] and first frame's tokens int64 [P,K].
    """
    pixels = frames.permute(0, 3, 1, 2).float() / 255
    context, features = tokenizer.encode_context(pixels)
    return context, tokenizer.encode_frames(features, pixels[:, None])[:, 0]
