"""A training on several devices: a process for each, started and watched over by that of the job, which ends them all when one died or
hangs."""

import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any

from dgbench.errors import DgbenchError, Interrupted
from dgbench.launch.worker import STOP_SIGNALS, outcome_of
from dgbench.training.job import TrainJob

Report = Callable[..., None]
PRELOADED = ["dgbench.training.loop", "torch._dynamo"]
"""Imported once for all ranks."""
LOST, DIED = "lost", "died"
"""Outcomes of a rank beside those of any job: an exchange failed, for which another rank is to blame; the process left no word."""
GRACE = 5.0
"""Seconds in which the one to blame is looked for, and in which a process that is done may leave."""
LOOK_EVERY = 1.0
"""Seconds between two looks at the clock."""


@dataclass
class _Member:
    """A rank's process, how many exchanges it has begun, and how it ended: kind and line."""

    name: str
    process: Any
    receiver: Connection
    exchanges: int = 0
    ended: tuple[str, str] | None = None

    @property
    def kind(self) -> str | None:
        """The kind of its end; None while it runs."""
        return None if self.ended is None else self.ended[0]

    def receive(self, report: Report) -> None:
        """Take in what it sent."""
        gone = not self.process.is_alive()
        with suppress(EOFError):
            while self.ended is None and self.receiver.poll():
                match self.receiver.recv():
                    case ("progress", progressed):
                        report(*progressed)
                    case ("exchange", int(count)):
                        self.exchanges = count
                    case (str(kind), str(line)):
                        self.ended = kind, line
        if gone and self.ended is None:
            self.ended = DIED, f"{self.name}: {_unexpected_end(self.process.exitcode or 0)}"

    def end(self) -> None:
        """Let a process leave that has told how it ended, and kill any other."""
        if self.process.pid is not None:
            self.process.join(GRACE if self.ended else 0)
            self.process.kill()
            self.process.join()


def run_ranks(job: TrainJob, report: Report) -> None:
    """Train ``job`` in ``job.devices`` processes and wait for them; the first failure of one ends all. Stop signals are passed on.

    Raises what a rank raised (DgbenchError, Interrupted); a DgbenchError that names the rank which failed, died, or did not answer for
    ``job.rank_timeout`` seconds. The last checkpoint stays, and the same job goes on from it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory(prefix="dgbench-ranks-") as folder:
        members, senders = [], []
        for rank in range(job.devices):
            name = f"{job.stage}, rank {rank} of {job.devices}"
            receiver, sender = context.Pipe(duplex=False)
            arguments = (sender, job, rank, name, Path(folder) / "meeting")
            members.append(_Member(name, context.Process(name=name, target=_rank, args=arguments), receiver))
            senders.append(sender)
        with _passing_on(members) as signals:
            try:
                for member, sender in zip(members, senders, strict=True):
                    member.process.start()
                    sender.close()
                    for number in signals:  # those that came before there was a process
                        os.kill(member.process.pid, number)
                _watch(members, job, report)
            finally:
                for member in members:
                    member.end()
    _judge(members, stopped=bool(signals), stage=job.stage)


def _watch(members: Sequence[_Member], job: TrainJob, report: Report) -> None:
    """Return when all members have ended, or one badly. DgbenchError when none says anything for too long."""
    heard = time.monotonic()
    lost_since: float | None = None
    while running := [member for member in members if member.kind is None]:
        if wait([source for member in running for source in (member.receiver, member.process.sentinel)], LOOK_EVERY):
            heard = time.monotonic()
        for member in running:
            member.receive(report)
        kinds = {member.kind for member in members}
        if kinds & {"error", "memory", DIED}:
            return
        now = time.monotonic()
        if LOST in kinds:
            lost_since = lost_since or now
            if now - lost_since > GRACE:
                return
        if now - heard > job.rank_timeout:
            raise DgbenchError(_hung(running, job))


def _judge(members: Sequence[_Member], *, stopped: bool, stage: str) -> None:
    """Raise for how ``members`` ended, the one to blame first."""
    ends = [member.ended for member in members if member.ended is not None]
    lines = dict(reversed(ends))
    if stopped and lines.keys() & {DIED, LOST}:
        raise Interrupted(f"{stage}: stopped at once")
    if DIED in lines:
        raise DgbenchError(f"{lines[DIED]}; the same command goes on from the last checkpoint")
    if "memory" in lines:
        raise DgbenchError(f"{lines['memory']} — lower preset.width or the crop")
    for kind in ("error", LOST):
        if kind in lines:
            raise DgbenchError(lines[kind])
    if "interrupted" in lines:
        raise Interrupted(lines["interrupted"])


def _hung(running: Sequence[_Member], job: TrainJob) -> str:
    """All wait for the rank that has begun the fewest exchanges."""
    fewest = min(member.exchanges for member in running)
    behind = " and ".join(member.name for member in running if member.exchanges == fewest)
    return f"{behind}: no answer for {job.rank_timeout:g} s — if it only is slow, give it longer with --rank-timeout"


def _unexpected_end(exit_code: int) -> str:
    reason = f"signal {-exit_code}" if exit_code < 0 else f"exit status {exit_code}"
    memory = ", out of memory, probably" if exit_code == -signal.SIGKILL else ""
    return f"the process ended unexpectedly ({reason}{memory})"


@contextmanager
def _passing_on(members: Sequence[_Member]) -> Iterator[list[int]]:
    """Hand every stop signal to all members while the block runs; gives the list of what was sent."""
    sent: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        sent.append(number)
        for member in members:
            if member.process.pid is not None and member.process.is_alive():
                os.kill(member.process.pid, number)

    previous = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        yield sent
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _die_with_parent() -> None:
    """Whoever killed the job may start it again at once: a rank must not write any more."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


def _rank(sender: Connection, job: TrainJob, rank: int, name: str, meeting: Path) -> None:
    """The whole life of a rank's process."""
    from dgbench.training.distributed import LostRank, joined
    from dgbench.training.loop import train

    os.setpgid(0, 0)  # signals reach the job's process, which passes them on
    threading.Thread(target=_die_with_parent, daemon=True).start()
    begun, lost = 0, ""

    def tell(kind: str, content: Any) -> None:
        with suppress(BrokenPipeError):  # the job's process was killed, and so is this one any moment
            sender.send((kind, content))

    def exchanging(count: int) -> None:
        nonlocal begun
        begun = count
        tell("exchange", count)

    def report(done: int, total: int, text: str = "") -> None:
        if rank == 0:
            tell("progress", (done, total, text))
        else:
            tell("exchange", begun)

    def work() -> None:
        nonlocal lost
        try:
            with joined(rank, job.devices, job.device, meeting, exchanging) as ranks:
                train(job, report, ranks)
        except LostRank as error:
            lost = f"{name}: lost the other ranks ({error})"

    kind, line = outcome_of(work, name, job.folder)
    tell(LOST if lost else kind, lost or line)
