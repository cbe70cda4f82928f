"""One run in several processes: torchrun's ranks divide the scenes of each step.

All processes hold the same weights. They exchange small values (`gather`: rewards, numbers for
`metrics.jsonl`, whether to stop) and, once an update, the sum of their gradients (`sum_gradients`).
No model is wrapped. What is imagined, and in which order noise is drawn, does not depend on their
number, so neither do checkpoints.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vlarft.errors import BackendError, ConfigError, VlarftError
from vlarft.terminal import torchrun_rank

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # a process that answers later counts as lost


class Ranks:
    """The processes of a run; one that is alone exchanges nothing.

    Args:
        index: number of this process, from 0.
        count: processes.
    """

    def __init__(self, index: int = 0, count: int = 1) -> None:
        self.index, self.count = index, count

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.index == 0

    def share(self, scenes: int) -> slice:
        """This process's scenes of a step.

        Raises:
            ConfigError: the scenes cannot be divided evenly.
        """
        if scenes % self.count:
            fitting = [str(n) for n in range(1, scenes + 1) if scenes % n == 0]
            raise ConfigError(
                f"scenes = {scenes} cannot be divided evenly among {self.count} processes; "
                f"use --nproc-per-node {', '.join(fitting[:-1])} or {fitting[-1]}, or set scenes "
                f"to a multiple of {self.count}"
            )
        own = scenes // self.count
        return slice(self.index * own, (self.index + 1) * own)

    def gather(self, value: T) -> list[T]:
        """Every process's value, in their order; all must call it. Tensors must be on the CPU.

        Raises:
            VlarftError: another process ended.
        """
        if self.count == 1:
            return [value]
        values: list[T | None] = [None] * self.count
        with self._answers():
            dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]  # each entry was replaced

    def mean(self, values: Mapping[str, float | None]) -> dict[str, float | None]:
        """Mean of each number over all processes; None where one has None."""
        columns = {name: [v[name] for v in self.gather(values)] for name in values}
        return {
            name: None if None in column else sum(v for v in column if v is not None) / self.count
            for name, column in columns.items()
        }

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give every process the sum of all gradients: one all-reduce of one flat buffer.

        A parameter that no process has a gradient for keeps none, so that the optimiser leaves it.

        Raises:
            VlarftError: another process ended.
        """
        if self.count == 1:
            return
        found = parameters[0].new_tensor([p.grad is not None for p in parameters])
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([*(g.flatten() for g in gradients), found])
        with self._answers():
            dist.all_reduce(flat)
        *parts, counts = flat.split([*(p.numel() for p in parameters), len(parameters)])
        for parameter, part, count in zip(parameters, parts, counts.tolist(), strict=True):
            parameter.grad = part.view_as(parameter) if count else None

    def require_same(self, facts: Mapping[str, str]) -> None:
        """Refuse to start when processes were given different things.

        Args:
            facts: by the name that errors use.

        Raises:
            ConfigError: names what differs.
        """
        for index, others in enumerate(self.gather(dict(facts))):
            different = [name for name in facts if facts[name] != others[name]]
            if different:
                raise ConfigError(
                    f"process {index} has another {' and another '.join(different)} than process "
                    f"{self.index}; give all the same files and one run folder that all can read"
                )

    @contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # gloo and NCCL raise it, or subclasses
            reason = str(error).splitlines()[0]
            raise VlarftError(
                f"process {self.index} of {self.count} waited for another one, which ended or did "
                f"not answer within {TIMEOUT}: see its own message ({reason}); the same command "
                "goes on from the last checkpoint"
            ) from error


ALONE = Ranks()


@contextmanager
def join_ranks(device: str) -> Iterator[tuple[Ranks, str]]:
    """Join the processes that torchrun started; without it this process is alone.

    Args:
        device: "cpu" or "cuda".

    Yields:
        The processes, and this one's device: with CUDA the GPU of its number on this machine.

    Raises:
        ConfigError: a device with an index, for several processes.
        BackendError: fewer GPUs than processes on this machine.
        VlarftError: the others cannot be reached.
    """
    index, count = torchrun_rank()
    if count == 1:
        yield ALONE, device
        return
    on_gpu = device.startswith("cuda")
    if on_gpu:
        device = _own_gpu(device, int(os.environ["LOCAL_RANK"]))
    try:
        # Small values go over gloo even when gradients go over NCCL: no wait for the GPU.
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    except RuntimeError as error:
        raise VlarftError(
            f"the processes could not reach each other ({str(error).splitlines()[0]}); "
            "check torchrun's --master-addr and --master-port"
        ) from error
    try:
        yield Ranks(index, count), device
        dist.destroy_process_group()  # not after an error: the others see that this process is gone
    finally:
        # gloo's threads may outlive this, as DTensor's caches keep the group of a divided VLM. One
        # that lets go of its last tensor while Python ends would abort the process, so they get the
        # interpreter once more: https://github.com/pytorch/pytorch/pull/179291
        time.sleep(0.1)


def _own_gpu(device: str, number: int) -> str:
    if device != "cuda":
        raise ConfigError(
            f"--device {device} for several processes; use --device cuda: each takes its own GPU"
        )
    if number >= torch.cuda.device_count():
        raise BackendError(
            f"process {number} of this machine has no GPU, there are {torch.cuda.device_count()}; "
            "use at most as many as --nproc-per-node, or --device cpu"
        )
    torch.cuda.set_device(number)
    return f"cuda:{number}"


def own_rows(scenes: Tensor, own: slice) -> Tensor:
    """Of some scenes of a step, those of one process, counted from its first.

    Args:
        scenes: int64 [M], numbers 0..P-1.
        own: as `Ranks.share` gave it.
    """
    inside = (scenes >= own.start) & (scenes < own.stop)
    return scenes[inside] - int(own.start)
