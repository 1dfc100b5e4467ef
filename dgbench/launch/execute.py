"""Doing what a plan says and nothing twice: finished jobs are recognised by their keys, interrupted ones go on, and the result is
written last."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dgbench.atomic import read_json, write_json
from dgbench.data.fingerprint import set_fingerprint
from dgbench.errors import DgbenchError, Interrupted
from dgbench.evaluation.metrics import NUMBERS
from dgbench.launch.environment import environment
from dgbench.launch.plan import FolderPlan, RunPlan, judged_how
from dgbench.launch.worker import run_job
from dgbench.store.folder import RunFolder, RunSpec, read_status, write_status
from dgbench.store.keys import key_of
from dgbench.store.lock import FolderLock
from dgbench.training.job import TrainJob

Say = Callable[[str], None]
EVALUATION = 4
"""Raised when an evaluation changes what it writes, numbers or files, so that finished and half-finished ones are made again (training has
its own, ``RECIPE``)."""


def execute(plan: RunPlan, *, fresh: bool, say: Say) -> bool:
    """Train and evaluate what is missing of ``plan``; with ``fresh`` the method's own folder is emptied first (shared stages are kept).

    Returns whether anything had to be done. Raises DgbenchError (status ``failed``, with the reason) or Interrupted (status
    ``interrupted``).
    """
    if fresh:
        with FolderLock(plan.own.folder):
            empty_folder(plan.own.folder)
    untrained = [folder for folder in plan.folders if not all(_trained(job) for job in folder.training)]
    for folder in untrained:
        with FolderLock(folder.folder, wait=float("inf"), on_wait=say):
            _guarded(folder, partial(_train, folder, say))
    unjudged = [folder for folder in plan.folders if not is_done(plan, folder)]  # the first look at a held-out file
    for folder in unjudged:
        with FolderLock(folder.folder, wait=float("inf"), on_wait=say):
            _guarded(folder, partial(_evaluate, plan, folder, say))
    return bool(untrained or unjudged)


def is_done(plan: RunPlan, folder: FolderPlan) -> bool:
    """Whether ``folder`` holds a finished run whose evaluation is of the cases as they are now, with rows that can be read."""
    if read_status(folder.folder).state != "done":
        return False
    key = evaluation_identity(plan, folder)["key"]
    return stored_key(folder.folder / "evaluation") == key and _has_rows(plan, folder)


def evaluation_identity(plan: RunPlan, folder: FolderPlan) -> dict[str, Any]:
    """The evaluation record of protocol.md §3: train keys, fingerprint of the evaluated set, and how it is evaluated. Reads the held-out
    files."""
    content = set_fingerprint(plan.evaluated(folder), plan.request.cache)
    record = {
        "version": EVALUATION,
        "numbers": NUMBERS,
        "train_keys": {stage: link.key for stage, link in folder.spec.stages.items()},
        "fingerprint": plan.identity or content,
        "content": content,
        "how": judged_how(plan.resolved),
    }
    return {**record, "key": key_of(record)}


def stored_key(folder: Path) -> str | None:
    """The key of what ``folder`` holds; None where its ``spec.json`` is missing or names none, which is nobody's key."""
    path = folder / "spec.json"
    key = read_json(path).get("key") if path.is_file() else None
    return key if isinstance(key, str) else None


def _has_rows(plan: RunPlan, folder: FolderPlan) -> bool:
    """Whether the rows of a finished evaluation can be read; damaged or missing ones are made again."""
    try:
        return len(RunFolder(plan.request.runs, folder.folder, folder.spec).cases()) > 0
    except DgbenchError:
        return False


def _guarded(folder: FolderPlan, work: Callable[[], None]) -> None:
    """Run ``work`` and leave the folder's status saying how it ended."""
    try:
        work()
    except (Interrupted, KeyboardInterrupt) as stop:
        write_status(folder.folder, "interrupted", str(stop) or "Ctrl-C")
        raise
    except DgbenchError as error:
        write_status(folder.folder, "failed", str(error))
        raise


def _train(folder: FolderPlan, say: Say) -> None:
    write_json(folder.folder / "spec.json", folder.spec.dump())
    write_json(folder.folder / "env.json", environment())
    write_status(folder.folder, "running")
    for job in folder.training:
        if _trained(job):
            continue
        _prepare_stage_folder(job)
        say(
            f"train {job.stage} with {job.info.name}: {job.steps} steps of {job.resolved.cases_per_step(job.stage)} cases"
        )
        write_status(job.folder, "running")
        try:
            run_job(_train_job, job, job.stage, job.folder / "crash.txt")
        except (DgbenchError, Interrupted) as problem:
            write_status(job.folder, "interrupted" if isinstance(problem, Interrupted) else "failed", str(problem))
            raise
        write_status(job.folder, "done")


def _prepare_stage_folder(job: TrainJob) -> None:
    """A stage folder of another key (a hand-copied or older one) is never trained on; the key is part of its path, so this is a fault."""
    spec = job.folder / "spec.json"
    if spec.is_file() and (held := stored_key(job.folder)) != job.key:
        raise DgbenchError(
            f"{job.folder}: holds training {held[:8] if held else 'without a key'}, not {job.key[:8]} — move it away or use --fresh"
        )
    write_json(spec, {"key": job.key, **job.identity})


def _trained(job: TrainJob) -> bool:
    return read_status(job.folder).state == "done" and stored_key(job.folder) == job.key


def _evaluate(plan: RunPlan, folder: FolderPlan, say: Say) -> None:
    identity = evaluation_identity(plan, folder)
    target = folder.folder / "evaluation"
    damaged = read_status(target).state == "done" and not _has_rows(plan, folder)
    if damaged or stored_key(target) != identity["key"]:
        empty_folder(target)
    write_json(target / "spec.json", identity)
    cases = plan.evaluated(folder)
    shared = None if folder is plan.shared or plan.shared is None else plan.shared.folder / "evaluation"
    if read_status(target).state != "done":
        say(f"evaluate {', '.join(job.stage for job in folder.training)} on {len(cases)} cases")
        write_status(folder.folder, "running")
        job = (folder.training, cases, shared, target, identity["key"])
        run_job(_evaluate_job, (plan.request.runs, folder.spec, job), "evaluation", target / "crash.txt")
        write_status(target, "done")
    write_status(folder.folder, "done")


def _train_job(job: TrainJob, report: Any) -> None:
    from dgbench.training.loop import train

    train(job, report)


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


def empty_folder(folder: Path) -> None:
    """Remove everything in ``folder`` but its lock."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
