"""Episodes of several tasks over several simulator processes."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Generic, Protocol, TypeVar

from vlarft.errors import SimulatorError
from vlarft.libero.remote import RemoteSimulator


class OfTask(Protocol):
    """Work on one task of a suite."""

    @property
    def task(self) -> int:
        """Index of the task."""
        ...


ItemT = TypeVar("ItemT", bound=OfTask)


class _Queue(Generic[ItemT]):
    """Work not begun yet."""

    def __init__(self, items: Sequence[ItemT]) -> None:
        self._items, self._lock = list(items), threading.Lock()

    def take(self, task: int | None) -> ItemT | None:
        """The next item of a task; with None, of the task with the most items left."""
        with self._lock:
            counts = Counter(item.task for item in self._items)
            wanted = max(counts, key=counts.__getitem__, default=None) if task is None else task
            item = next((item for item in self._items if item.task == wanted), None)
            if item is not None:
                self._items.remove(item)
            return item

    def clear(self) -> None:
        with self._lock:
            self._items.clear()


def run_by_task(
    items: Sequence[ItemT],
    jobs: int,
    open_task: Callable[[int], RemoteSimulator],
    work: Callable[[RemoteSimulator, ItemT], None],
    failed: Callable[[ItemT, SimulatorError], None],
) -> None:
    """Do all items, `jobs` at a time, each thread with a simulator of its own.

    A simulator serves one task until no item of it is left. After a `SimulatorError` the item is
    handed to `failed` and a fresh simulator does the rest; any other error, and Ctrl-C, end all
    simulators at once.

    Args:
        items: the work; its order is kept within a task.
        jobs: simulators at a time, 1 or more.
        open_task: starts the simulator of a task.
        work: does an item; called from several threads.
        failed: told of an item that failed for a technical reason; likewise.
    """
    queue, running, stopping = _Queue(items), set[RemoteSimulator](), threading.Event()

    def work_on_task(simulator: RemoteSimulator, first: ItemT) -> None:
        item: ItemT | None = first
        while item is not None and not stopping.is_set():
            try:
                work(simulator, item)
            except SimulatorError as error:
                failed(item, error)
                return
            item = queue.take(item.task)

    def serve() -> None:
        while (item := queue.take(None)) is not None:
            with open_task(item.task) as simulator:
                running.add(simulator)
                work_on_task(simulator, item)
                running.discard(simulator)

    count = min(jobs, len(items))
    with ThreadPoolExecutor(max(1, count)) as pool:
        futures = [pool.submit(serve) for _ in range(count)]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        finally:
            stopping.set()
            queue.clear()
            for simulator in list(running):
                simulator.interrupt()
