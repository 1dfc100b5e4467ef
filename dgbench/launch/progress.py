"""Progress of long work: bars with rate and time left on a terminal, plain lines elsewhere (a log file is not a terminal)."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

PLAIN_SECONDS = 20.0

Report = Callable[..., None]


@contextmanager
def progress(title: str, *, log: Path | None = None, show: bool = True) -> Iterator[Report]:
    """A function ``report(done, total, text="")`` to call as work goes on. ``log`` is a file to which the plain lines are appended in any
    case; without ``show`` nothing is written elsewhere."""
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file, progress(title, show=show) as report:
            keep = _plain(title, file)

            def both(done: int, total: int, text: str = "") -> None:
                keep(done, total, text)
                report(done, total, text)

            yield both
    elif not show:
        yield lambda done, total, text="": None
    elif sys.stderr.isatty():
        with _bar(title) as report:
            yield report
    else:
        yield _plain(title, sys.stderr)


@contextmanager
def _bar(title: str) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:28}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:>9}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, rate="", text="")

        def report(done: int, total: int, text: str = "") -> None:
            bar.update(task, completed=done, total=total, text=text)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:.1f}/s" if speed else "")

        yield report


def _plain(title: str, stream: TextIO) -> Report:
    last = time.monotonic()

    def report(done: int, total: int, text: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last >= PLAIN_SECONDS:
            last = now
            stream.write(f"{title}: {done}/{total}{f'  {text}' if text else ''}\n")
            stream.flush()

    return report
