"""FSQ: indices -> codes, the digits of an index scaled to [-1, 1].

    digit_d = floor(index / (L_1 ... L_{d-1})) mod L_d
    code_d  = (digit_d - h_d) / h_d,   h_d = floor(L_d / 2)

Source: arXiv 2309.15505; the same numbers, bit for bit, as `vlarft/models/fsq.py`. A program owns
256 indices; levels are known when it is compiled, so that the divisions are multiplications.

Bytes: 8 N read, 4 N D written. Operations: about 5 N D.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlarft.errors import ConfigError
from vlarft.kernels.checks import INDICES, check

_INDICES = 256


@triton.jit
def _codes_kernel(
    index_ptr, code_ptr, count, LEVELS: tl.constexpr, DIGITS: tl.constexpr, BLOCK: tl.constexpr
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    rest = tl.load(index_ptr + i, mask=i < count, other=0)
    for d in tl.static_range(DIGITS):
        digit = rest % LEVELS[d]
        rest = rest // LEVELS[d]
        half = tl.full([BLOCK], LEVELS[d] // 2, tl.float32)
        code = tl.div_rn(digit.to(tl.float32) - half, half)
        tl.store(code_ptr + i * DIGITS + d, code, mask=i < count)


def codes(indices: Tensor, levels: Sequence[int]) -> Tensor:
    """Codes in [-1, 1], float32 [N,K,D].

    Args:
        indices: int64 [N,K], not negative; digits beyond the levels are ignored.
        levels: L_d, odd and at least 3; the first is the least significant digit.

    Raises:
        ShapeError, DtypeError, ConfigError: by argument name.
    """
    check("indices", indices, ("N", "K"), INDICES, indices.device)
    if not levels or any(level < 3 or level % 2 == 0 for level in levels):
        raise ConfigError(f"levels must be odd and at least 3, got {list(levels)}")
    out = torch.empty(*indices.shape, len(levels), device=indices.device)
    _codes_kernel[(triton.cdiv(indices.numel(), _INDICES),)](
        indices,
        out,
        indices.numel(),
        LEVELS=tuple(levels),
        DIGITS=len(levels),
        BLOCK=_INDICES,
    )
    return out
