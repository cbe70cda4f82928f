"""One level of LPIPS for pairs of feature maps.

    n(a)[p,c] = a[p,c] / (|a[p,:]| + 1e-10)
    d[r]      = mean over p of sum over c of w[c] (n(a)[image_r,p,c] - n(b)[target_r,p,c])^2

Source: arXiv 1801.03924, Eq. 1, with w outside the square, as released. A program owns a tile of
pixels of one pair, all channels, in registers: maps are read once, and neither normalised maps nor
copies for each pair exist. Float32 inside; sums of tiles are merged in order
(average.py). Equal maps give 0.

Bytes of a pair: 2 e P C (e of the dtype). Operations: about 9 P C.
"""

import triton
import triton.language as tl
from torch import Tensor

from vlarft.errors import ShapeError
from vlarft.kernels.checks import FLOAT32, FLOATS, INDICES, check
from vlarft.kernels.compare.average import average

_ELEMENTS = 4096  # of each of a program's two blocks: 64 registers a thread at 4 warps
_WIDEST = 8192  # channels that one block can hold


@triton.jit
def _perceptual_kernel(
    a_ptr,
    b_ptr,
    weight_ptr,
    image_ptr,
    target_ptr,
    sums_ptr,
    pixels,
    width,
    tiles,
    TILE: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    pair = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    pixel = (tile * TILE + tl.arange(0, TILE))[:, None]
    channel = tl.arange(0, CHANNELS)[None, :]
    inside = (pixel < pixels) & (channel < width)
    image = tl.load(image_ptr + pair)
    target = tl.load(target_ptr + pair)
    a_at = (image * pixels + pixel) * width + channel
    b_at = (target * pixels + pixel) * width + channel
    a = tl.load(a_ptr + a_at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + b_at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + channel, mask=channel < width, other=0.0)
    a_norm = tl.sqrt_rn(tl.sum(a * a, axis=1)) + 1e-10
    b_norm = tl.sqrt_rn(tl.sum(b * b, axis=1)) + 1e-10
    away = tl.div_rn(a, tl.broadcast_to(a_norm[:, None], a.shape))
    away -= tl.div_rn(b, tl.broadcast_to(b_norm[:, None], b.shape))
    total = tl.sum(tl.sum(weight * away * away, axis=1), axis=0)
    tl.store(sums_ptr + pair * tiles + tile, total)


def perceptual(
    a: Tensor, b: Tensor, weight: Tensor, image: Tensor, target: Tensor, out: Tensor
) -> None:
    """Add one level's distance of every pair to `out`.

    Indices are not checked against the number of maps: that would wait for the GPU.

    Args:
        a: float32 or bfloat16 [I,P,C].
        b: like a, [J,P,C].
        weight: float32 [C].
        image: row of a, int64 [R].
        target: row of b, int64 [R].
        out: float32 [R].

    Raises:
        ShapeError, DtypeError: by argument name.
    """
    check("a", a, ("I", "P", "C"), FLOATS, a.device)
    pixels, width = a.shape[1:]
    check("b", b, ("J", pixels, width), (a.dtype,), a.device)
    check("weight", weight, (width,), FLOAT32, a.device)
    check("image", image, ("R",), INDICES, a.device)
    check("target", target, image.shape, INDICES, a.device)
    if width > _WIDEST:
        raise ShapeError(f"a must have at most {_WIDEST} channels, got {width}")
    channels = triton.next_power_of_2(width)
    tile = min(max(1, _ELEMENTS // channels), triton.next_power_of_2(pixels))
    tiles = triton.cdiv(pixels, tile)
    sums = out.new_empty(image.shape[0], tiles)
    _perceptual_kernel[(image.shape[0] * tiles,)](
        a,
        b,
        weight,
        image,
        target,
        sums,
        pixels,
        width,
        tiles,
        TILE=tile,
        CHANNELS=channels,
    )
    average(sums, pixels, out, add=True)
