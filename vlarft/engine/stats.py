"""Where a rollout's time goes."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vlarft import _native


def resident_bytes() -> int:
    """Memory of this process that is in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_resident_bytes() -> int:
    """The most that this process ever had in use.

    Not `ru_maxrss`: a process that was started by a larger one inherits that one's.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:", 1)[1].split(maxsplit=1)[0]) * 1024


@contextmanager
def nvtx_range(name: str) -> Iterator[None]:
    """An NVTX range of the domain "vlarft", where the environment variable VLARFT_NVTX is 1."""
    if os.environ.get("VLARFT_NVTX") != "1" or not _native.build_info()["cuda"]:
        yield
        return
    _native.range_push(name)
    try:
        yield
    finally:
        _native.range_pop()


class Stopwatch:
    """Seconds per stage; each stage is also an NVTX range of the same name."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block; a GPU is waited for before and after it."""
        self._wait()
        start = time.perf_counter()
        try:
            with nvtx_range(name):
                yield
                self._wait()
        finally:
            elapsed = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
