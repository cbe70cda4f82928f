"""Decode: tokens of imagined frames become pixels."""

import torch
from torch import Tensor

from vlarft.models.tokenizer import DecoderFeatures, Tokenizer


def unique_frames(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct (scene, tokens) frames.

    Args:
        tokens: int64 [P,R,K]: R frames of each scene.

    Returns:
        scene int64 [U] (ascending), tokens int64 [U,K], and for every frame its number int64 [P,R].
    """
    scenes, frames, width = tokens.shape
    scene = torch.arange(scenes, device=tokens.device).repeat_interleave(frames)
    rows = torch.cat((scene[:, None], tokens.reshape(-1, width)), dim=1)
    distinct, number = rows.unique(dim=0, return_inverse=True)
    return distinct[:, 0], distinct[:, 1:], number.view(scenes, frames)


def decode(
    tokenizer: Tokenizer, features: DecoderFeatures, scene: Tensor, tokens: Tensor
) -> Tensor:
    """Render frames.

    Args:
        tokenizer: in evaluation mode.
        features: decoder features of all scenes.
        scene: scene of each frame, int64 [U].
        tokens: int64 [U,K].

    Returns:
        float32 [U,3,H,W], clamped to [0,1] (the network's output is not bounded).
    """
    pixels = tokenizer.decode_frames(features.select(scene), tokens[:, None])[:, 0]
    return pixels.float().clamp(0, 1)
