"""What this machine allows: memory reads, multiply-adds from registers, matrix products.

Measured in the process and the run whose times they judge. A floor takes each byte once at the
read rate and each multiplication once at the multiply rate of that run.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vlarft import _native
from vlarft.bench.machine import last_cache_bytes
from vlarft.engine.plan import free_memory

_LEAST_BUFFER = 512 << 20
_CACHE_TIMES = 8  # the buffer is this many times the last cache level, at least
_FREE_SHARE = 4  # ... but at most this part of the free memory
_PROBE_SECONDS = 0.05
_READS = 5
_SIZE = 1024  # edge of the matrix products


@dataclass(frozen=True)
class Limits:
    """Best rates of a machine with a number of threads.

    Attributes:
        threads: how many.
        read_gbps: memory read, 1e9 bytes a second.
        fma_gflops: float32 multiply-adds from registers, 1e9 operations a second.
        dot_bf16_gflops: bfloat16 dot products from registers; 0 without AVX512-BF16.
        gemm_float32_gflops: product of two float32 matrices of edge 1024, by torch.
        gemm_bfloat16_gflops: likewise in bfloat16.
    """

    threads: int
    read_gbps: float
    fma_gflops: float
    dot_bf16_gflops: float
    gemm_float32_gflops: float
    gemm_bfloat16_gflops: float

    def matmul_gflops(self, dtype: torch.dtype) -> float:
        """Fastest way found to multiply; values stored as bfloat16 may be widened first."""
        best = max(self.fma_gflops, self.gemm_float32_gflops)
        if dtype == torch.bfloat16:
            best = max(best, self.dot_bf16_gflops, self.gemm_bfloat16_gflops)
        return best

    def during(self, typical: dict[str, float]) -> "Limits":
        """The same with the rates that a run's own probes found."""
        return Limits(**{**asdict(self), **typical})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class Meter:
    """Measures rates; owns the buffer that is read.

    Args:
        threads: how many threads; default torch's.
        buffer_bytes: default 8 times the last cache level and at least 512 MiB.
    """

    def __init__(self, threads: int | None = None, buffer_bytes: int | None = None) -> None:
        self.threads = threads or torch.get_num_threads()
        self._known: dict[int, Limits] = {}
        wanted = max(_LEAST_BUFFER, _CACHE_TIMES * last_cache_bytes())
        spare = free_memory(torch.device("cpu")) // _FREE_SHARE
        self.buffer = torch.full((buffer_bytes or min(wanted, spare),), 1, dtype=torch.uint8)

    def probe(self) -> dict[str, float]:
        """Three of the rates, in about 0.3 s: what tells a disturbed round."""
        return {
            "read_gbps": self._read(self.threads),
            "fma_gflops": max(self._fma(self.threads) for _ in range(2)),
            "gemm_float32_gflops": gemm_gflops(torch.float32, seconds=_PROBE_SECONDS),
        }

    def limits(self, threads: int | None = None) -> Limits:
        """Every rate, in a few seconds; measured once, later calls return what was found."""
        count = threads or self.threads
        if count not in self._known:
            self._known[count] = self._measure(count)
        return self._known[count]

    def _measure(self, count: int) -> Limits:
        with _torch_threads(count):
            return Limits(
                threads=count,
                read_gbps=max(self._read(count) for _ in range(3)),
                fma_gflops=max(self._fma(count) for _ in range(4)),
                dot_bf16_gflops=max(
                    _native.multiply_rate("bfloat16", count, _PROBE_SECONDS) / 1e9 for _ in range(4)
                ),
                gemm_float32_gflops=gemm_gflops(torch.float32),
                gemm_bfloat16_gflops=gemm_gflops(torch.bfloat16),
            )

    def _read(self, threads: int) -> float:
        """Median of some loops: on virtual machines a loop in a hundred seems twice as fast."""
        seconds = [_native.read_seconds(self.buffer, threads) for _ in range(_READS)]
        return self.buffer.nbytes / statistics.median(seconds) / 1e9

    def _fma(self, threads: int) -> float:
        return _native.multiply_rate("float32", threads, _PROBE_SECONDS) / 1e9


def gemm_gflops(dtype: torch.dtype, size: int = _SIZE, seconds: float = 0.5) -> float:
    """Best rate of a square matrix product by torch, 1e9 operations a second."""
    a, b = (torch.ones(size, size, dtype=dtype) for _ in range(2))
    out = a @ b
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best / 1e9


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
