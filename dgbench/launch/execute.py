"""One run in the foreground: its jobs one after another, nothing twice, interrupted ones go on."""

from contextlib import ExitStack

from dgbench.errors import DgbenchError
from dgbench.launch.jobs import Say, do, empty_folder, jobs_of
from dgbench.launch.plan import RunPlan
from dgbench.launch.worker import run_job
from dgbench.store.lock import FolderLock


def execute(plan: RunPlan, *, fresh: bool, say: Say) -> bool:
    """Train and evaluate what is missing of ``plan``; with ``fresh`` the method's own folder is emptied first (shared stages are kept).

    Returns whether anything had to be done. Raises DgbenchError (status ``failed``, with the reason) or Interrupted (status
    ``interrupted``).
    """
    if fresh:
        forget(plan)
    worked = [do(job, run_job, say) for job in jobs_of(plan)]
    return any(worked)


def forget(plan: RunPlan) -> None:
    """Empty the method's own folder. Raises DgbenchError while another process works in it, or where the run's configuration lies there."""
    config = plan.request.config
    if config is not None and plan.own.folder.absolute() in config.absolute().parents:
        raise DgbenchError(
            f"--fresh would remove --config {config} — name the one beside the study, or copy its folder elsewhere first"
        )
    with ExitStack() as locks:
        for job in jobs_of(plan):
            if job.part is plan.own:
                locks.enter_context(FolderLock(job.folder))
        empty_folder(plan.own.folder)
