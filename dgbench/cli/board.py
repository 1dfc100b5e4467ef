"""What a sweep shows: bars on a terminal, one for all jobs and one for each that runs; plain lines elsewhere."""

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgbench.launch.local import Board
    from dgbench.launch.worker import Progress


@contextmanager
def board() -> "Iterator[Board]":
    """A board on stderr."""
    if not sys.stderr.isatty():
        yield PlainBoard()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        yield RichBoard(bars)


class PlainBoard:
    """Lines only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """See :class:`dgbench.launch.local.Board`."""
        with self._lock:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def show(self, ended: int, total: int, running: "Sequence[tuple[str, Progress]]") -> None:
        """Nothing: the lines say it."""


class RichBoard:
    """Bars."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._all = bars.add_task("jobs", total=None, text="")
        self._tasks: dict[str, Any] = {}

    def say(self, text: str) -> None:
        """See :class:`dgbench.launch.local.Board`."""
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, ended: int, total: int, running: "Sequence[tuple[str, Progress]]") -> None:
        """See :class:`dgbench.launch.local.Board`."""
        self._bars.update(self._all, completed=ended, total=total)
        names = {name for name, _ in running}
        for name in [name for name in self._tasks if name not in names]:
            self._bars.remove_task(self._tasks.pop(name))
        for name, progress in running:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=None, text="")
            self._bars.update(
                self._tasks[name], completed=progress.done, total=progress.total or None, text=progress.text
            )
