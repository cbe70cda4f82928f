"""Time, of work that may be queued on a GPU."""

import time

import torch


def now() -> float:
    """Seconds; on a machine whose GPU is in use, when everything queued on it is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
