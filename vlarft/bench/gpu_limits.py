"""What a GPU allows: device memory and matrix products, measured with torch."""

import torch

from vlarft.bench.clock import now
from vlarft.bench.limits import Limits

_BUFFER = 1 << 30  # bytes that are copied
_SIZES = {torch.float32: 4096, torch.bfloat16: 8192}  # edge of the matrix products
_REPEATS = 10


class GpuMeter:
    """Measures rates of a GPU; as `vlarft.bench.limits.Meter`.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.threads = 1
        self._known: Limits | None = None

    def probe(self) -> dict[str, float]:
        """Two of the rates: what tells a disturbed round."""
        return {
            "read_gbps": self._copy(),
            "gemm_bfloat16_gflops": self._product(torch.bfloat16),
        }

    def limits(self, threads: int | None = None) -> Limits:  # noqa: ARG002 - as Meter's
        """Every rate; measured once."""
        if self._known is None:
            single, half = (self._product(dtype) for dtype in (torch.float32, torch.bfloat16))
            read = max(self._copy() for _ in range(3))
            self._known = Limits(1, read, single, half, single, half)
        return self._known

    def _copy(self) -> float:
        """Bytes read and written by copies within device memory, 1e9 a second."""
        source = torch.zeros(_BUFFER, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        target.copy_(source)
        start = now()
        for _ in range(_REPEATS):
            target.copy_(source)
        return 2 * _BUFFER * _REPEATS / (now() - start) / 1e9

    def _product(self, dtype: torch.dtype) -> float:
        size = _SIZES[dtype]
        a, b = (torch.ones(size, size, dtype=dtype, device=self.device) for _ in range(2))
        out = a @ b
        start = now()
        for _ in range(_REPEATS):
            torch.mm(a, b, out=out)
        return 2.0 * size**3 * _REPEATS / (now() - start) / 1e9
