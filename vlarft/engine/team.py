"""The native code's threads: as many as torch uses, made when first needed."""

import torch

from vlarft import _native


class Team:
    """Threads and scratch memory that the native decode and compare stages share."""

    def __init__(self) -> None:
        self._workers: _native.Workers | None = None

    @property
    def workers(self) -> _native.Workers:
        """Workers of torch's current number of threads."""
        threads = torch.get_num_threads()
        if self._workers is None or self._workers.threads != threads:
            self._workers = _native.Workers(threads)
        return self._workers

    def release(self) -> None:
        """End the threads and free their memory; both come back when needed."""
        self._workers = None
