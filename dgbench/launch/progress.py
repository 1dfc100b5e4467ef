"""Progress of long work: bars with rate and time left on a terminal, plain lines elsewhere (a log file is not a terminal)."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PLAIN_SECONDS = 20.0

Report = Callable[..., None]


@contextmanager
def progress(title: str) -> Iterator[Report]:
    """A function ``report(done, total, text="")`` to call as work goes on."""
    if sys.stderr.isatty():
        with _bar(title) as report:
            yield report
    else:
        yield _plain(title)


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


def _plain(title: str) -> Report:
    last = time.monotonic()

    def report(done: int, total: int, text: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last >= PLAIN_SECONDS:
            last = now
            sys.stderr.write(f"{title}: {done}/{total}{f'  {text}' if text else ''}\n")
            sys.stderr.flush()

    return report
