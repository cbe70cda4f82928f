"""Memory of the process, on the CPU or on a GPU."""

import ctypes
from pathlib import Path

import torch
from torch import nn

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # man 5 proc: sets VmHWM to VmRSS


def held_bytes(device: torch.device) -> int:
    """Memory that is held now: by this process on the CPU, by all on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        return total - free
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)  # gives free heap pages back
    return _status("VmRSS")


def reset_peak(device: torch.device) -> None:
    """Start a new measurement of `peak_bytes`."""
    if device.type == "cpu":
        _CLEAR.write_text(_RESET_PEAK)
    else:
        torch.cuda.empty_cache()


def peak_bytes(device: torch.device) -> int:
    """Most memory that was held since `reset_peak`.

    On a GPU what torch's allocator reserved and what the engine keeps, which is their peak.
    """
    if device.type == "cpu":
        return _status("VmHWM")
    torch.cuda.synchronize(device)
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def module_bytes(module: nn.Module, device: torch.device) -> int:
    """Bytes of a module's parameters on a device."""
    return sum(p.nbytes for p in module.parameters() if p.device.type == device.type)


def _status(key: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS}: no {key}")
