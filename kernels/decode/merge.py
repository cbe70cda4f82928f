"""Moments of tiles -> GroupNorm as y = (x - center) * scale + bias, one center and scale a channel.

    m = mean over the group of (mean[b,t,c] + added[c]),  tiles weighted by their pixels
    v = sum over the group of (squares + n_t (mean[b,t,c] + added[c] - m)^2) / (P C / G)
    scale[b,c] = weight[c] / sqrt(v + eps),  center[b,c] = m - added[c]

`added` is a bias of the convolution before, which that convolution then need not add: GroupNorm of
x + added is taken without x + added ever being written.

A program owns some groups of one image, together a line of the cache wide, and reads their tiles
twice, in order, in float64. Bytes: 16 B T C read, half of it from the cache, 8 B C written.
Operations: about 6 B T C.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlarft.errors import ShapeError
from vlarft.kernels.checks import FLOAT32, check
from vlarft.kernels.decode.moments import Moments

_ELEMENTS = 1024  # of a block of tiles and channels: 8 float64 a thread at 4 warps
_CHANNELS = 32  # 128 bytes


@triton.jit
def _merge_kernel(
    moments_ptr,
    weight_ptr,
    added_ptr,
    center_ptr,
    scale_ptr,
    pixels,
    width,
    tiles,
    tile_pixels,
    group_width,
    eps,
    ADDED: tl.constexpr,
    TILES: tl.constexpr,
    GROUPS: tl.constexpr,
    LANES: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)[None, :]
    first_channel = (tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)[:, None]) * group_width
    channel = first_channel + lane
    mine = (lane < group_width) & (first_channel < width)
    added = tl.zeros([GROUPS, LANES], tl.float64)
    if ADDED:
        added += tl.load(added_ptr + channel, mask=mine, other=0.0).to(tl.float64)
    elements = tl.cast(pixels, tl.float64) * group_width
    start = moments_ptr + image * tiles * 2 * width + channel[None, :, :]
    total = tl.zeros([GROUPS, LANES], tl.float64)
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)[:, None, None]
        inside = (tile < tiles) & mine[None, :, :]
        count = tl.minimum(pixels - tile * tile_pixels, tile_pixels).to(tl.float64)
        mean = tl.load(start + tile * 2 * width, mask=inside, other=0.0).to(tl.float64)
        total += tl.sum(tl.where(inside, (mean + added[None, :, :]) * count, 0.0), axis=0)
    middle = tl.sum(total, axis=1) / elements
    squares = tl.zeros([GROUPS, LANES], tl.float64)
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)[:, None, None]
        inside = (tile < tiles) & mine[None, :, :]
        count = tl.minimum(pixels - tile * tile_pixels, tile_pixels).to(tl.float64)
        at = start + tile * 2 * width
        away = tl.load(at, mask=inside, other=0.0).to(tl.float64)
        away += added[None, :, :] - middle[None, :, None]
        own = tl.load(at + width, mask=inside, other=0.0).to(tl.float64)
        squares += tl.sum(tl.where(inside, own + away * away * count, 0.0), axis=0)
    deviation = tl.sqrt(tl.sum(squares, axis=1) / elements + eps)
    weight = tl.load(weight_ptr + channel, mask=mine, other=0.0).to(tl.float64)
    out = image * width + channel
    tl.store(scale_ptr + out, (weight / deviation[:, None]).to(tl.float32), mask=mine)
    tl.store(center_ptr + out, (middle[:, None] - added).to(tl.float32), mask=mine)


def merge(
    moments: Moments,
    weight: Tensor,
    *,
    groups: int,
    eps: float,
    added: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Center and scale of GroupNorm, float32 [B,C].

    Args:
        moments: of x [B,P,C].
        weight: of the norm, float32 [C].
        groups: G, divides C.
        eps: added to the variance.
        added: float32 [C], not part of x and yet to be normalised with it.

    Raises:
        ShapeError, DtypeError: by argument name.
    """
    values = moments.values
    images, tiles, _, width = values.shape
    check("weight", weight, (width,), FLOAT32, values.device)
    if added is not None:
        check("added", added, (width,), FLOAT32, values.device)
    if groups < 1 or width % groups:
        raise ShapeError(f"groups must divide the {width} channels, got {groups}")
    center = torch.empty(images, width, device=values.device)
    scale = torch.empty_like(center)
    group_width = width // groups
    lanes = triton.next_power_of_2(group_width)
    together = min(max(1, _CHANNELS // lanes), triton.next_power_of_2(groups))
    _merge_kernel[(images, triton.cdiv(groups, together))](
        values,
        weight,
        weight if added is None else added,
        center,
        scale,
        moments.pixels,
        width,
        tiles,
        moments.tile,
        group_width,
        eps,
        ADDED=added is not None,
        TILES=min(max(1, _ELEMENTS // (together * lanes)), triton.next_power_of_2(tiles)),
        GROUPS=together,
        LANES=lanes,
    )
    return center, scale
