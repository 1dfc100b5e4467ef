"""Taking over a training that was done elsewhere under the same key, instead of doing it again."""

import shutil
import tempfile
from pathlib import Path

from dgbench.atomic import TEMPORARY_PREFIX, make_folder, unwritable
from dgbench.launch.jobs import Job, empty_folder, is_trained, prepare_folder, stored_key
from dgbench.launch.plan import RunPlan
from dgbench.store.folder import read_status
from dgbench.store.lock import LOCK_NAME, FolderLock, LockHeld
from dgbench.training.job import TrainJob


def adopt(job: Job, source: Path) -> bool:
    """Copy the finished training in ``source`` to where ``job`` wants it, if it has the key of ``job`` and nothing is there yet, nor
    anybody at work. A key holds everything that the bytes of a training depend on. Returns whether it was copied."""
    training = job.training
    if training is None or is_trained(training) or (training.folder / "status.json").exists():
        return False
    if read_status(source).state != "done" or stored_key(source) != training.key:
        return False
    prepare_folder(job)
    try:
        with FolderLock(training.folder):
            if is_trained(training):
                return False
            _copy(source, training, make_folder(job.part.folder))
    except LockHeld:  # by whoever trains or copies the same
        return False
    return True


def _copy(source: Path, training: TrainJob, beside: Path) -> None:
    try:
        with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=beside) as temporary:
            copy = Path(temporary) / training.stage
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns(LOCK_NAME))
            empty_folder(training.folder)
            # that it is done comes last
            for path in sorted(copy.iterdir(), key=lambda path: path.name == "status.json"):
                path.rename(training.folder / path.name)
    except OSError as error:
        raise unwritable(training.folder, error) from error


def take_over_trials(plan: RunPlan) -> None:
    """Take over the trainings of a tuned run from the trial that was selected, where the study lies beside the configuration, or from
    another run of the method."""
    if plan.own.spec.tuned is None or plan.request.config is None:
        return
    name = plan.own.folder.parent.relative_to(plan.request.runs)
    homes = [plan.request.config.parent / "trials" / name, plan.own.folder.parent]
    for training in plan.own.training:
        for source in (path for home in homes for path in sorted(home.glob(f"seed*/{training.stage}"))):
            if (
                next(source.glob("best-*.safetensors"), None) is None
            ):  # a trial that is not the best one keeps its logs alone
                continue
            if adopt(Job(plan, plan.own, training), source):
                break
