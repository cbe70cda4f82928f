"""Sums of tiles -> one mean a pair, in a fixed order.

    out[r] = (out[r] or 0) + sum over t of sums[r,t] / count

A program owns a pair and reads its tiles in order, in float64, rounded once: a pair's result does
not depend on its batch mates. Bytes: 4 R T read, 4 R written. Operations: R T.
"""

import triton
import triton.language as tl
from torch import Tensor

from vlarft.kernels.checks import FLOAT32, check

_TILES = 1024


@triton.jit
def _average_kernel(sums_ptr, out_ptr, tiles, count, ADD: tl.constexpr, TILES: tl.constexpr):
    pair = tl.program_id(0).to(tl.int64)
    total = tl.zeros([TILES], tl.float64)
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)
        sums = tl.load(sums_ptr + pair * tiles + tile, mask=tile < tiles, other=0.0)
        total += sums.to(tl.float64)
    mean = tl.sum(total, axis=0) / tl.cast(count, tl.float64)
    if ADD:
        mean += tl.load(out_ptr + pair).to(tl.float64)
    tl.store(out_ptr + pair, mean.to(tl.float32))


def average(sums: Tensor, count: int, out: Tensor, *, add: bool = False) -> None:
    """Fill `out` with the means of R pairs, or add them to it.

    Args:
        sums: float32 [R,T].
        count: elements of a pair.
        out: float32 [R].
        add: whether the means are added to what is there.

    Raises:
        ShapeError, DtypeError: by argument name.
    """
    check("sums", sums, ("R", "T"), FLOAT32, sums.device)
    check("out", out, (sums.shape[0],), FLOAT32, sums.device)
    tiles = sums.shape[1]
    _average_kernel[(sums.shape[0],)](
        sums, out, tiles, count, ADD=add, TILES=min(_TILES, triton.next_power_of_2(tiles))
    )
