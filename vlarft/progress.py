"""What long work shows: bars on a terminal, plain lines otherwise, always on standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vlarft.terminal import say

Shown = Callable[[int, int], None]
"""Called with (parts done, parts in all)."""


@contextmanager
def progress_bar(title: str, *, quiet: bool = False) -> Iterator[Shown]:
    """Progress of a phase of known length: a bar, or a line at its start and about ten more."""
    console = Console(file=sys.stderr, quiet=quiet)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title)
        shown = 0
        if not console.is_terminal:
            say(console, title)

        def show(done: int, total: int) -> None:
            nonlocal shown
            bar.update(task, completed=done, total=total)
            tenth = 10 * done // total
            if not console.is_terminal and tenth > shown:
                shown = tenth
                say(console, f"{title} {done}/{total}")

        yield show


@contextmanager
def phase(title: str, *, quiet: bool = False) -> Iterator[None]:
    """One long call of unknown length: a moving sign, or a line at its start."""
    console = Console(file=sys.stderr, quiet=quiet)
    if console.is_terminal:
        with console.status(title):
            yield
    else:
        say(console, title)
        yield


class StepProgress:
    """A progress bar on a terminal, plain lines otherwise (every tenth of the run, and the last).

    Args:
        title: what runs.
        total: steps of the whole run.
        done: steps already finished.
        console: where to write; standard error by default.
    """

    def __init__(
        self, title: str, total: int, done: int = 0, console: Console | None = None
    ) -> None:
        self._console = console or Console(file=sys.stderr)
        self._title, self._total = title, total
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def within(self, what: str) -> Shown:
        """A callback that shows how far a part of the current step is; on terminals only."""

        def show(done: int, total: int) -> None:
            self._progress.update(self._task, note=f"{what} {done}/{total}")

        return show

    def step(self, done: int, note: str) -> None:
        """Show that `done` steps are finished."""
        if self._console.is_terminal:
            self._progress.update(self._task, completed=done, note=note)
        elif done % max(1, self._total // 10) == 0 or done == self._total:
            self.line(f"{self._title} step {done}/{self._total}  {note}")

    def line(self, text: str) -> None:
        """Print a line; a bar stays below it."""
        say(self._console, text)
