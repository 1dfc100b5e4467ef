"""The jobs of which runs consist, trainings of stages and evaluations of run folders: what each needs, whether it is done, and doing it.

A job is named by its folder relative to the runs folder (``phantom/RENJI/erm/seed0-1234abcd/tumor-coarse``, ``…/evaluation``), so that runs
which share stages name the same jobs. Whoever does a job holds the lock of that folder; what is done is recognised by its key, and the
status is written last. So any number of processes, on any number of machines with one disk, can work on the same runs.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dgbench.atomic import make_folder, read_json, remove_leftovers, unwritable, write_json
from dgbench.data.fingerprint import set_fingerprint
from dgbench.errors import DgbenchError, Interrupted
from dgbench.evaluation.metrics import NUMBERS
from dgbench.launch.environment import environment
from dgbench.launch.plan import FolderPlan, RunPlan, judged_how
from dgbench.launch.ranks import run_ranks
from dgbench.launch.request import write_request
from dgbench.launch.worker import LOG_NAME, PROCESS_LOCK, once_more
from dgbench.store.folder import RunFolder, RunSpec, iter_runs, read_status, write_status
from dgbench.store.keys import diff, key_of
from dgbench.store.lock import LOCK_NAME, FolderLock
from dgbench.store.study import keep_study
from dgbench.training.job import TrainJob

Say = Callable[[str], None]
RunJob = Callable[[Callable[[Any, Any], None], Any, str, Path, Callable[[], bool]], None]
"""How a job's function is run: (function, content, title, folder, cancelled); :func:`dgbench.launch.worker.run_job` in the foreground."""
EVALUATION = 4
"""Raised when an evaluation changes what it writes, numbers or files that something needs, so that finished and half-finished ones are made
again (training has its own, ``RECIPE``)."""
ROW = ["case", "stage", "setting", "checkpoint", "threshold"]
"""What names a row of an evaluation."""
CANCELLED = "cancelled.json"
"""In a run folder: its jobs are not started, and those that run stop, until ``dgbench retry`` removes it."""


@dataclass(frozen=True)
class Job:
    """One training (``training`` is set) or one evaluation of the run folder ``part`` of ``plan``."""

    plan: RunPlan
    part: FolderPlan
    training: TrainJob | None = None

    @property
    def folder(self) -> Path:
        """Where its results go, and its lock lies."""
        return self.part.folder / "evaluation" if self.training is None else self.training.folder

    @property
    def id(self) -> str:
        """The folder relative to the runs folder, with forward slashes."""
        return self.folder.relative_to(self.plan.request.runs).as_posix()

    @property
    def title(self) -> str:
        """The stage, or "evaluation"."""
        return self.folder.name

    @property
    def needs(self) -> tuple[str, ...]:
        """Jobs that must be done before: trainings need none; an evaluation those of its folder and, as its regions of interest come from
        the shared stages, the evaluation of these."""
        if self.training is not None:
            return ()
        own = [Job(self.plan, self.part, training).id for training in self.part.training]
        shared = self.plan.shared
        return (*own, *([] if shared is None or self.part is shared else [Job(self.plan, shared).id]))

    @property
    def units(self) -> int:
        """Training steps, or cases to judge."""
        return len(self.plan.evaluated(self.part)) if self.training is None else self.training.steps


def jobs_of(plan: RunPlan) -> tuple[Job, ...]:
    """The jobs of one run in an order in which they can be done: all trainings, then the evaluations, so that no held-out file is looked
    at before all is trained."""
    trainings = [Job(plan, part, training) for part in plan.folders for training in part.training]
    return (*trainings, *(Job(plan, part) for part in plan.folders))


def is_trained(job: TrainJob) -> bool:
    """Whether the stage is trained, under this key."""
    return read_status(job.folder).state == "done" and stored_key(job.folder) == job.key


def is_judged(plan: RunPlan, part: FolderPlan) -> bool:
    """Whether ``part`` holds a finished run whose evaluation is of the cases as they are now, with rows that can be read. Looks at held-out
    files: only to be asked when everything is trained."""
    if read_status(part.folder).state != "done":
        return False
    key = evaluation_identity(plan, part)["key"]
    return stored_key(part.folder / "evaluation") == key and _has_rows(plan, part)


def is_done(job: Job) -> bool:
    """Whether nothing is left to do; of an evaluation only to be asked when what it needs is done."""
    return is_judged(job.plan, job.part) if job.training is None else is_trained(job.training)


def is_cancelled(part: FolderPlan) -> bool:
    """Whether somebody cancelled the run."""
    return (part.folder / CANCELLED).exists()


def do(job: Job, run: RunJob, say: Say, *, wait: float = float("inf")) -> bool:
    """Do ``job`` by ``run`` unless it is done; ``wait`` seconds for another process that is at it. If its process dies, of a lack of memory
    or of a signal from elsewhere, it is started once more, with a note in its log.

    Returns whether anything had to be done. Raises DgbenchError (status ``failed``, with the reason) or Interrupted (status
    ``interrupted``); LockHeld where the lock was not to be had.
    """
    if is_done(job):
        return False
    if is_cancelled(job.part):
        raise Interrupted(f"{job.part.folder}: was cancelled — `dgbench retry {job.part.folder}` starts it again")
    with FolderLock(job.folder, wait=wait, on_wait=say):
        with FolderLock(job.folder, name=PROCESS_LOCK, wait=wait, on_wait=say):
            pass  # the process of an owner that was killed has ended
        if is_done(job):  # another process was at it
            return False
        prepare_folder(job)
        with _told(job):
            once_more(lambda: _work(job, run, say), lambda note: _noted(job, note, say))
    return True


def _noted(job: Job, note: str, say: Say) -> None:
    say(note)
    log_lines(job.folder, [note])


def _work(job: Job, run: RunJob, say: Say) -> None:
    remove_leftovers(job.folder)
    if job.training is None:
        _evaluate(job.plan, job.part, run, say)
    else:
        _train(job.part, job.training, run, say)


def prepare_folder(job: Job) -> None:
    """Write what the run of ``job`` is and who asked for it, before anything of it is there."""
    folder = make_folder(job.part.folder)
    write_json(folder / "spec.json", job.part.spec.dump())
    write_json(folder / "env.json", environment())
    request = job.plan.request
    if job.part.spec.tuned is not None and request.config is not None:
        request = replace(request, config=keep_study(request.config, folder))
    write_request(folder, request)


def give_up(job: Job, reason: str) -> None:
    """Leave the status of ``job``'s run saying that it cannot be done."""
    prepare_folder(job)
    write_status(job.part.folder, "failed", reason)


def dependents(job: Job) -> list[RunFolder]:
    """The runs below the runs folder that need ``job`` of shared stages and are not done."""
    runs, part = job.plan.request.runs, job.part
    others = [run for run in iter_runs(runs) if run.path != part.folder and run.status.state != "done"]
    own = part.folder.relative_to(runs).as_posix()
    return [run for run in others if own in {link.folder.rpartition("/")[0] for link in run.spec.stages.values()}]


def evaluation_identity(plan: RunPlan, part: FolderPlan) -> dict[str, Any]:
    """The evaluation record of protocol.md §3: train keys, fingerprint of the evaluated set, and how it is evaluated; with ``heldout``, the
    data of the held-out center by the name that they have where they are trained on. Reads the held-out files."""
    content = set_fingerprint(plan.evaluated(part), plan.request.cache)
    record = {
        "version": EVALUATION,
        "numbers": NUMBERS,
        "train_keys": {stage: link.key for stage, link in part.spec.stages.items()},
        "fingerprint": plan.identity or content,
        "content": content,
        "how": judged_how(plan.resolved),
    }
    if heldout := plan.heldout_identity():
        record["heldout"] = heldout
    return {**record, "key": key_of(record)}


def stored_key(folder: Path) -> str | None:
    """The key of what ``folder`` holds; None where its ``spec.json`` is missing or names none, which is nobody's key."""
    path = folder / "spec.json"
    key = read_json(path).get("key") if path.is_file() else None
    return key if isinstance(key, str) else None


def empty_folder(folder: Path) -> None:
    """Remove everything in ``folder`` but its locks."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name not in (LOCK_NAME, PROCESS_LOCK):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _has_rows(plan: RunPlan, part: FolderPlan) -> bool:
    """Whether the rows of a finished evaluation can be read and none is there twice; damaged or missing ones are made again."""
    try:
        rows = RunFolder(plan.request.runs, part.folder, part.spec).cases()
    except DgbenchError:
        return False
    return len(rows) > 0 and not rows.duplicated(ROW).any()


@contextmanager
def _told(job: Job) -> Iterator[None]:
    """Leave the statuses of the job and of its run, and the log, saying how the block ended; where the disk takes no more, the caller
    alone is told."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stop:
        with suppress(DgbenchError):
            _tell(job, "interrupted", str(stop) or "Ctrl-C")
        raise
    except Exception as error:
        expected = isinstance(error, DgbenchError)
        with suppress(DgbenchError):
            _tell(job, "failed", str(error) if expected else f"unexpected {type(error).__name__}: {error}")
        raise


def _tell(job: Job, state: Any, reason: str) -> None:
    log_lines(job.folder, [f"{state}: {reason}"])
    for folder in (job.folder, job.part.folder):
        write_status(folder, state, reason)


def log_lines(folder: Path, lines: Iterable[str]) -> None:
    """Append lines to the log of a job, each with the time (UTC). Raises DgbenchError where it cannot be written."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    path = make_folder(folder) / LOG_NAME
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(f"{now}  {' '.join(line.split())}\n" for line in lines)
    except OSError as error:
        raise unwritable(path, error) from error


def _train(part: FolderPlan, training: TrainJob, run: RunJob, say: Say) -> None:
    _refuse_another_key(training)
    write_json(training.folder / "spec.json", {"key": training.key, **training.identity})
    count, k = training.steps, training.cases_per_step
    text = f"train {training.stage} with {training.info.name}: {count} steps of {k} cases"
    say(text)
    log_lines(training.folder, [text])
    for folder in (part.folder, training.folder):
        write_status(folder, "running")
    run(_train_job, training, training.stage, training.folder, lambda: is_cancelled(part))
    write_status(training.folder, "done")


def _refuse_another_key(training: TrainJob) -> None:
    """A stage folder of another training (a hand-copied, edited or older one) is never trained on: what differs is named, stored → asked
    for. The key is part of its path, so this is a fault."""
    path = training.folder / "spec.json"
    asked = {"key": training.key, **training.identity}
    if path.is_file() and (changes := diff(read_json(path), asked)):
        raise DgbenchError(
            f"{training.folder}: holds another training ({'; '.join(changes)}) — move it away or use --fresh"
        )


def _evaluate(plan: RunPlan, part: FolderPlan, run: RunJob, say: Say) -> None:
    identity = evaluation_identity(plan, part)
    target = part.folder / "evaluation"
    damaged = read_status(target).state == "done" and not _has_rows(plan, part)
    if damaged or stored_key(target) != identity["key"]:
        empty_folder(target)
    write_json(target / "spec.json", identity)
    cases = plan.evaluated(part)
    shared = None if part is plan.shared or plan.shared is None else plan.shared.folder / "evaluation"
    if read_status(target).state != "done":
        text = f"evaluate {', '.join(job.stage for job in part.training)} on {len(cases)} cases"
        say(text)
        log_lines(target, [text])
        for folder in (part.folder, target):
            write_status(folder, "running")
        content = (plan.request.runs, part.spec, (part.training, cases, shared, target, identity["key"]))
        run(_evaluate_job, content, "evaluation", target, lambda: is_cancelled(part))
        write_status(target, "done")
    write_status(part.folder, "done")


def _train_job(job: TrainJob, report: Any) -> None:
    from dgbench.training.loop import train

    if job.devices == 1:
        train(job, report)
    else:
        run_ranks(job, report)


def _evaluate_job(content: tuple[Path, RunSpec, tuple[Any, ...]], report: Any) -> None:
    from dgbench.evaluation.job import EvaluationJob, clear_parts, evaluate
    from dgbench.evaluation.run_cost import run_cost
    from dgbench.leaderboard.overlay import draw_run_overlay

    runs, spec, parts = content
    job = EvaluationJob(*parts)
    run = RunFolder(runs, job.folder.parent, spec)
    evaluate(job, report)
    write_json(run.path / "cost.json", run_cost(job))
    draw_run_overlay(run)
    clear_parts(job)
