"""A convolution's bias and the ReLU after it, in place and in one pass.

    x[r,c] = max(x[r,c] + bias[c], 0),  NaN stays NaN

cuDNN's convolutions leave the bias to a pass of its own, and ReLU is another. A program owns a
block of rows (pixels of all images) and channels. Float32 inside, one rounding at the store.

Bytes: e R C read and written (e of the dtype), half of the two passes. Operations: 2 R C.
"""

import triton
import triton.language as tl
from torch import Tensor

from vlarft.kernels.checks import FLOAT32, FLOATS, check

_ELEMENTS = 4096  # of a program's block: 32 numbers a thread at 4 warps
_CHANNELS = 64


@triton.jit
def _bias_relu_kernel(x_ptr, bias_ptr, rows, width, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    inside = (row < rows) & (channel < width)
    at = x_ptr + row * width + channel
    bias = tl.load(bias_ptr + channel, mask=channel < width, other=0.0)
    x = tl.load(at, mask=inside, other=0.0).to(tl.float32) + bias
    x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(at, x.to(x_ptr.dtype.element_ty), mask=inside)


def bias_relu(x: Tensor, bias: Tensor) -> Tensor:
    """Overwrite x with max(x + bias, 0) and return it.

    Args:
        x: float32 or bfloat16 [R,C].
        bias: float32 [C].

    Raises:
        ShapeError, DtypeError: by argument name.
    """
    check("x", x, ("R", "C"), FLOATS, x.device)
    rows, width = x.shape
    check("bias", bias, (width,), FLOAT32, x.device)
    channels = min(_CHANNELS, triton.next_power_of_2(width))
    block = min(_ELEMENTS // channels, triton.next_power_of_2(rows))
    _bias_relu_kernel[(triton.cdiv(rows, block), triton.cdiv(width, channels))](
        x, bias, rows, width, ROWS=block, CHANNELS=channels
    )
    return x
