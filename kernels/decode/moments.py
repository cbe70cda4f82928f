"""Moments of channels: what GroupNorm needs to know of an activation, in one pass over it.

    y[b,p,c]       = x[b,p,c] + residual[b,p,c] + bias[c]       (when given; rounded to x's dtype)
    mean[b,t,c]    = mean of y over the pixels p of tile t
    squares[b,t,c] = sum of (y - mean)^2 over them

A program owns one tile: TILE pixels of a block of channels of one image, in registers, so that the
squares are taken about the mean itself. Sums are float32 and their order depends on the tile alone:
no atomics, and an image's moments do not depend on its batch mates. Groups are formed later, from
channels (merge.py), so that any number of channels and groups will do.

Bytes: e B P C read (e of the dtype), 8 B T C written, T = ceil(P / TILE): 3% of a bfloat16
activation. With a residual, 2 e B P C read and e B P C written: the addition has no pass
of its own.
Operations: about 4 B P C.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlarft.kernels.checks import FLOAT32, FLOATS, check

_ELEMENTS = 8192  # of a program's block: 64 registers a thread at 4 warps
_CHANNELS = 64  # 128 bytes of bfloat16 a pixel, one line of the cache


@dataclass(frozen=True)
class Moments:
    """Moments of tiles of an activation [B,P,C].

    Attributes:
        values: means and sums of squares about them, float32 [B,T,2,C].
        pixels: P.
        tile: pixels of a tile; the last one of an image may have fewer.
    """

    values: Tensor
    pixels: int
    tile: int


@triton.jit
def tile_moments(x, inside, count):
    """Mean and sum of squares about it over axis 0 of x, of which `count` rows are inside."""
    near = tl.sum(tl.where(inside, x, 0.0), axis=0) / count
    away = tl.where(inside, x - near[None, :], 0.0)
    # The mean of what is left corrects a mean that was rounded at the size of the sum.
    mean = near + tl.sum(away, axis=0) / count
    away = tl.where(inside, x - mean[None, :], 0.0)
    return mean, tl.sum(away * away, axis=0)


@triton.jit
def store_moments(moments_ptr, image, tile, tiles, channel, width, mean, squares):
    """Write the moments of a tile to their place in [B,T,2,C]."""
    at = moments_ptr + (image * tiles + tile) * 2 * width + channel
    tl.store(at, mean, mask=channel < width)
    tl.store(at + width, squares, mask=channel < width)


@triton.jit
def _moments_kernel(
    x_ptr,
    residual_ptr,
    bias_ptr,
    moments_ptr,
    pixels,
    width,
    tiles,
    RESIDUAL: tl.constexpr,
    BIAS: tl.constexpr,
    TILE: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    image = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    pixel = tile * TILE + tl.arange(0, TILE)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (pixel < pixels)[:, None] & (channel < width)[None, :]
    at = (image * pixels + pixel[:, None]) * width + channel[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        x += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        x += tl.load(bias_ptr + channel, mask=channel < width, other=0.0)[None, :]
    if RESIDUAL or BIAS:
        stored = x.to(x_ptr.dtype.element_ty)
        tl.store(x_ptr + at, stored, mask=inside)
        x = stored.to(tl.float32)
    count = tl.minimum(pixels - tile * TILE, TILE).to(tl.float32)
    mean, squares = tile_moments(x, inside, count)
    store_moments(moments_ptr, image, tile, tiles, channel, width, mean, squares)


def blocks(pixels: int, width: int) -> tuple[int, int]:
    """Pixels and channels of a program's block, powers of two."""
    channels = min(_CHANNELS, triton.next_power_of_2(width))
    return min(_ELEMENTS // channels, triton.next_power_of_2(pixels)), channels


def new_moments(images: int, pixels: int, width: int, tile: int, device: torch.device) -> Moments:
    """Uninitialised moments of an activation [images,pixels,width]."""
    values = torch.empty(images, triton.cdiv(pixels, tile), 2, width, device=device)
    return Moments(values, pixels, tile)


def moments(x: Tensor, residual: Tensor | None = None, bias: Tensor | None = None) -> Moments:
    """Moments of x, to which residual and bias are added first, in place.

    Args:
        x: float32 or bfloat16 [B,P,C]; overwritten by the sum when something is added.
        residual: like x.
        bias: float32 [C].

    Raises:
        ShapeError, DtypeError: by argument name.
    """
    check("x", x, ("B", "P", "C"), FLOATS, x.device)
    images, pixels, width = x.shape
    if residual is not None:
        check("residual", residual, x.shape, (x.dtype,), x.device)
    if bias is not None:
        check("bias", bias, (width,), FLOAT32, x.device)
    tile, channels = blocks(pixels, width)
    out = new_moments(images, pixels, width, tile, x.device)
    tiles = out.values.shape[1]
    _moments_kernel[(images * tiles, triton.cdiv(width, channels))](
        x,
        x if residual is None else residual,
        x if bias is None else bias,
        out.values,
        pixels,
        width,
        tiles,
        RESIDUAL=residual is not None,
        BIAS=bias is not None,
        TILE=tile,
        CHANNELS=channels,
    )
    return out
