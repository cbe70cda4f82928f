"""Ctrl-C that lets a step finish."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_request(patient: bool = False) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one raises KeyboardInterrupt at once.

    Args:
        patient: for one of several processes. SIGTERM asks too, as torchrun sends it, and nothing
            but asks, however often: a process that leaves alone takes the others down.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may install handlers; the caller's one stays
        return

    def on_interrupt(number: int, _frame: object) -> None:
        stop.set()
        if not patient:
            signal.signal(number, previous[number])

    numbers = (signal.SIGINT, signal.SIGTERM) if patient else (signal.SIGINT,)
    previous = {int(number): signal.getsignal(number) or signal.SIG_DFL for number in numbers}
    for number in numbers:
        signal.signal(number, on_interrupt)
    try:
        yield stop
    finally:
        for number in numbers:
            signal.signal(number, previous[number])
