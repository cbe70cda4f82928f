"""Decode: tokens -> frames; what depends only on the scene once, equal frames once."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vlarft.engine.accelerated import Renderer
from vlarft.engine.scenes import Scenes, concatenate_features
from vlarft.errors import BackendError
from vlarft.models.tokenizer import DecoderFeatures, Tokenizer
from vlarft.reference.decode import decode, unique_frames

Decoder = Tokenizer | Renderer  # what the back end renders with


def scene_features(decoder: Decoder, scenes: Scenes, batch: int) -> DecoderFeatures:
    """Decoder features of all scenes, `batch` scenes at a time."""
    parts = [decoder.decoder_features(part) for part in scenes.context.split(batch)]
    return concatenate_features(parts)


def render(
    decoder: Decoder, features: DecoderFeatures, scene: Tensor, tokens: Tensor, batch: int
) -> Iterator[Tensor]:
    """Frames float32 [<=batch,3,H,W] in [0,1] of scene int64 [U] and tokens int64 [U,K], in order.

    Raises:
        BackendError: the decoder produced NaN (clamping hides infinities, never NaN).
    """
    for rows, codes in zip(scene.split(batch), tokens.split(batch), strict=True):
        if isinstance(decoder, Tokenizer):
            pixels = decode(decoder, features, rows, codes)
        else:
            pixels = decoder.decode(features, rows, codes)
        if bool(pixels.isnan().any()):
            raise BackendError(
                "decode: the tokenizer's decoder produced NaN; check the checkpoint's weights, "
                "or run it in dtype float32"
            )
        yield pixels


def decode_tokens(
    decoder: Decoder, features: DecoderFeatures, tokens: Tensor, batch: int, out: Tensor
) -> int:
    """Decode [P,R,K] tokens into `out` [P,R,3,H,W]; returns how many frames were rendered."""
    scene, codes, number = unique_frames(tokens)
    flat, number = out.flatten(0, 1), number.flatten()
    done = 0
    for pixels in render(decoder, features, scene, codes, batch):
        here = ((number >= done) & (number < done + len(pixels))).nonzero()[:, 0]
        flat[here] = pixels[number[here] - done].to(out.dtype)
        done += len(pixels)
    return done


def new_frames(scenes: int, rollouts: int, frames: int, size: int, device: torch.device) -> Tensor:
    """Uninitialised float32 [P,N,T,3,H,W]."""
    return torch.empty(scenes, rollouts, frames, 3, size, size, device=device)
