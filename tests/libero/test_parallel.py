import threading
from dataclasses import dataclass

import pytest

from vlarft.errors import SimulatorError
from vlarft.libero.parallel import run_by_task


@dataclass(frozen=True)
class Item:
    task: int
    number: int


class Opened:
    """A simulator that only knows its task, and when it is told to end."""

    def __init__(self, task):
        self.task, self.ended = task, threading.Event()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ended.set()

    def interrupt(self):
        self.ended.set()


ITEMS = [Item(task, number) for task in range(3) for number in range(4)]


@pytest.mark.parametrize("jobs", [1, 2, 5, 40])
def test_every_item_is_done_once_with_the_simulator_of_its_task(jobs):
    done, opened = [], []

    def open_task(task):
        opened.append(task)
        return Opened(task)

    def work(simulator, item):
        assert simulator.task == item.task
        done.append(item)

    run_by_task(ITEMS, jobs, open_task, work, pytest.fail)
    assert sorted(done, key=ITEMS.index) == ITEMS
    if jobs == 1:
        assert len(opened) == 3  # one simulator a task, however many items


def test_a_simulator_that_fails_is_replaced_and_its_item_reported():
    done, opened, failed = [], [], []

    def open_task(task):
        opened.append(Opened(task))
        return opened[-1]

    def work(_, item):
        if item == ITEMS[1]:
            raise SimulatorError("diverged")
        done.append(item)

    run_by_task(ITEMS, 1, open_task, work, lambda item, error: failed.append((item, str(error))))
    assert failed == [(ITEMS[1], "diverged")]
    assert len(done) == len(ITEMS) - 1
    assert len(opened) == 4
    assert all(simulator.ended.is_set() for simulator in opened)


def test_any_other_error_ends_all_simulators():
    other_waits = threading.Event()

    def work(simulator, item):
        if item.task == 0:
            other_waits.wait(10)
            raise ValueError("a mistake")
        other_waits.set()
        assert simulator.ended.wait(10)
        raise SimulatorError("interrupted")

    with pytest.raises(ValueError, match="a mistake"):
        run_by_task([Item(0, 0), Item(1, 0)], 2, Opened, work, lambda *_: None)


def test_nothing_to_do():
    run_by_task([], 2, pytest.fail, pytest.fail, pytest.fail)
