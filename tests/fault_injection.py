"""Faults at chosen instants of a run: its processes are killed or signalled, or the disk is full, just before a certain file is written.

Instants are named by what happens in the run folder, not by the clock, so that each phase is hit however busy the machine is.
"""

import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from dgbench.launch import worker

Victim = Literal["job", "parent", "all"]
WRITING = os.O_WRONLY | os.O_RDWR


@dataclass(frozen=True)
class Fault:
    """What happens ``delay`` seconds after a process of the run is about to open for writing, to rename or to remove a file below ``root``
    whose path matches ``pattern``, for the ``count``-th time in that process. It happens once; ``marker`` is then there.

    ``action`` is SIGKILL for a job's process, for the program's or for both; a signal to the program; or, with ``full``, that from then on
    no file below ``root`` can be opened for writing in that process.
    """

    root: Path
    marker: Path
    pattern: str
    action: Victim | Literal["full"] | signal.Signals
    count: int = 1
    delay: float = 0.0

    def arm(self, program: int) -> None:
        """Watch this process from now on; ``program`` is the process that the user started."""
        left = self.count
        full = False

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left, full
            opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
            if not (opened or event in ("os.rename", "os.remove")) or not str(arguments[0]).startswith(str(self.root)):
                return
            if full and opened:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))
            if not re.search(self.pattern, str(arguments[0])):
                return
            left -= 1
            if left != 0 or self.marker.exists():
                return
            self.marker.touch()
            if self.action == "full":
                full = True
                if opened:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))
            elif self.delay:
                threading.Timer(self.delay, self._strike, (program, os.getpid())).start()
            else:
                self._strike(program, os.getpid())

        sys.addaudithook(audit)

    def _strike(self, program: int, here: int) -> None:
        if isinstance(self.action, signal.Signals):
            os.kill(program, self.action)
            return
        jobs = {here} - {program}
        victims = {"job": jobs or {program}, "parent": {program}, "all": jobs | {program}}[str(self.action)]
        for pid in sorted(victims, key=lambda pid: pid == here):  # this process last
            os.kill(pid, signal.SIGKILL)


def faulty_child(fault: Fault, program: int, *arguments: Any) -> None:
    """A job's process with the fault in it."""
    fault.arm(program)
    worker._child(*arguments)


def program(arguments: Sequence[str], fault: Fault | None, output: Path | None = None) -> None:
    """The program as ``dgbench`` starts it, with ``fault``; what it prints goes to ``output``, where one is named."""
    from dgbench.cli import main

    if output is not None:
        descriptor = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        for number in (1, 2):
            os.dup2(descriptor, number)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    for number in worker.STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if fault is not None:
        worker._child = partial(faulty_child, fault, os.getpid())  # type: ignore[assignment]
        fault.arm(os.getpid())
    sys.argv = ["dgbench", *arguments]
    main()
