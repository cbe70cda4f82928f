"""The four 2x2 convolutions of a nearest upsampling, interleaved into the enlarged image.

    out[b,2h+i,2w+j,c] = parts[b,h+i,w+j,2i+j,c] + bias[c],   i, j in {0, 1}

`parts` is one convolution with 2x2 kernels, padding 1 and 4 C outputs: its value at (h,w) sees the
pixels (h-1,w-1) .. (h,w), so an output of parity (i,j) finds its own window at (h+i,w+j). The
moments of the result (moments.py) are taken on the way, for the GroupNorm that follows.

A program owns a tile of output pixels and a block of channels of one image. Bytes: 4 e B H W C read
and written (e of the dtype; the border rows of `parts` of the other parities are not read), 8 B T C
written. Operations: about 5 an output.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlarft.kernels.checks import FLOAT32, FLOATS, check
from vlarft.kernels.decode.moments import (
    Moments,
    blocks,
    new_moments,
    store_moments,
    tile_moments,
)


@triton.jit
def _interleave_kernel(
    parts_ptr,
    bias_ptr,
    out_ptr,
    moments_ptr,
    height,
    columns,
    width,
    tiles,
    TILE: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    image = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    pixels = 4 * height * columns
    pixel = tile * TILE + tl.arange(0, TILE)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    real = channel < width
    inside = (pixel < pixels)[:, None] & real[None, :]
    row, column = pixel // (2 * columns), pixel % (2 * columns)
    source = (image * (height + 1) + row // 2 + row % 2) * (columns + 1)
    source = (source + column // 2 + column % 2) * 4 + 2 * (row % 2) + column % 2
    at = source[:, None] * width + channel[None, :]
    x = tl.load(parts_ptr + at, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(bias_ptr + channel, mask=real, other=0.0)[None, :]
    stored = x.to(out_ptr.dtype.element_ty)
    at = (image * pixels + pixel[:, None]) * width + channel[None, :]
    tl.store(out_ptr + at, stored, mask=inside)
    count = tl.minimum(pixels - tile * TILE, TILE).to(tl.float32)
    mean, squares = tile_moments(stored.to(tl.float32), inside, count)
    store_moments(moments_ptr, image, tile, tiles, channel, width, mean, squares)


def interleave(parts: Tensor, bias: Tensor) -> tuple[Tensor, Moments]:
    """The enlarged image [B,2H,2W,C], like `parts`, and its moments.

    Args:
        parts: float32 or bfloat16 [B,H+1,W+1,4C], the four parities one after the other.
        bias: float32 [C].

    Raises:
        ShapeError, DtypeError: by argument name.
    """
    check("bias", bias, ("C",), FLOAT32, parts.device)
    width = bias.shape[0]
    check("parts", parts, ("B", "H+1", "W+1", 4 * width), FLOATS, parts.device)
    images, height, columns = parts.shape[0], parts.shape[1] - 1, parts.shape[2] - 1
    check("parts", parts[:, 1:, 1:], ("B", "H", "W", 4 * width), FLOATS, parts.device, False)
    out = parts.new_empty(images, 2 * height, 2 * columns, width)
    pixels = 4 * height * columns
    tile, channels = blocks(pixels, width)
    known = new_moments(images, pixels, width, tile, parts.device)
    tiles = known.values.shape[1]
    _interleave_kernel[(images * tiles, triton.cdiv(width, channels))](
        parts,
        bias,
        out,
        known.values,
        height,
        columns,
        width,
        tiles,
        TILE=tile,
        CHANNELS=channels,
    )
    return out, known


def folded(weight: Tensor) -> Tensor:
    """Weights [4C,D,2,2] of the one convolution that `interleave` takes, in weight's dtype.

    Rows of the enlarged image lie two by two on one row of the small one. So of the three rows of a
    3x3 kernel, an even output sees rows (0), (1, 2) on two rows, an odd one (0, 1), (2); columns
    likewise. Sums are taken in float64 and rounded once.

    Args:
        weight: [C,D,3,3] of the convolution after the upsampling, padding 1.
    """
    rows = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], device=weight.device)
    rows = rows.double()  # parity, row of the 2x2 kernel, row of the 3x3 kernel
    four = torch.einsum("ihk,jwl,cdkl->ijcdhw", rows, rows, weight.double())
    return four.flatten(0, 2).to(weight.dtype)
