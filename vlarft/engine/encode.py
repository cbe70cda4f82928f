"""Encode: frames -> Scenes."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlarft.engine.checks import check_shape
from vlarft.engine.native_encoder import NativeEncoder
from vlarft.errors import DtypeError
from vlarft.models.tokenizer import Tokenizer
from vlarft.reference.encode import encode


def check_frames(frames: Tensor | NDArray[np.uint8], resolution: int) -> Tensor:
    """Frames of start states as a tensor.

    Raises:
        ShapeError, DtypeError: not uint8 [P,H,W,3] at the tokenizer's resolution.
    """
    tensor = torch.as_tensor(frames)
    check_shape("frames", tensor, ("P", resolution, resolution, 3))
    if tensor.dtype != torch.uint8:
        raise DtypeError(f"frames must be uint8 [P,H,W,3] in 0..255, got {tensor.dtype}")
    return tensor


FrameEncoder = Tokenizer | NativeEncoder  # what the back end encodes with


def encode_frames(
    tokenizer: FrameEncoder, frames: Tensor, batch: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Frames uint8 [P,H,W,3] -> context int64 [P,K0], first int64 [P,K], `batch` at a time."""
    parts = [encode(tokenizer, part.to(device)) for part in frames.split(batch)]
    return torch.cat([context for context, _ in parts]), torch.cat([first for _, first in parts])
