"""How runs stand, read from their folders: what ``dgbench status`` shows, and which runs are meant by names on the command line."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from dgbench.errors import DgbenchError
from dgbench.launch.jobs import CANCELLED
from dgbench.launch.slurm import waiting_in_queue
from dgbench.launch.worker import LOG_NAME
from dgbench.store.folder import RunFolder, Status, iter_runs, read_status
from dgbench.store.lock import is_held
from dgbench.store.study import TRIALS, iter_studies, read_trials

GONE = "its process is gone; the same command goes on"
T = TypeVar("T")  # runs or studies


def chosen_runs(root: Path, names: Sequence[str]) -> list[RunFolder]:
    """The runs that are meant: folders of runs, or folders with runs below them, as paths or relative to ``root``; all without a name.

    Raises DgbenchError for a name without a run.
    """
    chosen, empty = _chosen(root, names, {run.path: run for run in iter_runs(root)})
    if empty:
        raise DgbenchError(f"{empty[0]}: no run of that name below {root} — `dgbench status --runs {root}` lists them")
    return chosen


def overview(root: Path, names: Sequence[str], now: datetime | None = None) -> list[dict[str, Any]]:
    """A row for each run, then for each tuning study, that ``names`` mean (all without one); plain JSON.

    Raises DgbenchError for a name that means neither.
    """
    runs, no_runs = _chosen(root, names, {run.path: run for run in iter_runs(root)})
    studies, no_studies = _chosen(root, names, {folder: folder for folder in iter_studies(root)})
    if empty := [name for name in no_runs if name in no_studies]:
        raise DgbenchError(
            f"{empty[0]}: no run or study of that name below {root} — `dgbench status --runs {root}` lists them"
        )
    moment = now or datetime.now(UTC)
    return [*status_rows(runs, moment), *(_study_row(root, folder, moment) for folder in studies)]


def logs_of(root: Path, name: str) -> tuple[dict[str, Path], Callable[[], bool]]:
    """The log of each job of the run, or that of the study, that ``name`` means, by the job's name; and whether it has ended by now.

    Raises DgbenchError where it means none, or several.
    """
    studies, _ = _chosen(root, [name], {folder: folder for folder in iter_studies(root)})
    if len(studies) == 1:
        return {
            "study": studies[0] / LOG_NAME
        }, lambda: not is_held(studies[0]) and read_status(studies[0]).state != "queued"
    chosen = chosen_runs(root, [name])
    if len(chosen) != 1:
        raise DgbenchError(
            f"{name}: {len(chosen)} runs lie below it — name one of them, `dgbench status {name}` lists them"
        )
    paths = {folder.name: folder / LOG_NAME for folder in job_folders(chosen[0])}
    return paths, lambda: state_of(chosen[0])[0] not in ("running", "queued", "waiting")


def _chosen(root: Path, names: Sequence[str], known: Mapping[Path, T]) -> tuple[list[T], list[str]]:
    """Those of ``known`` that lie at or below a name, each once, in the order of the names; and the names that mean none."""
    if not names:
        return list(known.values()), []
    chosen: dict[Path, T] = {}
    empty = []
    for name in names:
        places = {Path(name).absolute(), (root / name).absolute()}
        found = {path: one for path, one in known.items() if places & {up.absolute() for up in (path, *path.parents)}}
        chosen.update(found)
        empty += [] if found else [name]
    return list(chosen.values()), empty


def job_folders(run: RunFolder) -> list[Path]:
    """Where the jobs of a run work: its own stages and its evaluation."""
    return [*(run.stage_folder(stage) for stage in run.own_stages), run.evaluation]


def state_of(run: RunFolder, in_queue: str | None = None) -> tuple[str, str]:
    """The state of a run in a word, and the reason in a sentence. ``waiting``: some of its jobs are done, and no other has been started;
    ``lost``: a job says that it runs, and no process does. ``in_queue`` is what a queue of Slurm says of it."""
    status = run.status
    if status.state != "done" and (run.path / CANCELLED).exists():
        return "cancelled", ""
    if any(is_held(folder) for folder in job_folders(run)):
        return "running", status.reason or ""
    if status.state in ("running", "queued") and in_queue is not None:
        return "queued", f"in the queue of Slurm: {in_queue}"
    if status.state == "running" and any(read_status(folder).state == "running" for folder in job_folders(run)):
        return "lost", GONE
    return ("waiting" if status.state == "running" else status.state), status.reason or ""


def status_rows(runs: Sequence[RunFolder], now: datetime | None = None) -> list[dict[str, Any]]:
    """A row for each run, plain JSON."""
    queued = waiting_in_queue(runs)
    return [_row(run, queued.get(run.relative), now or datetime.now(UTC)) for run in runs]


def _row(run: RunFolder, in_queue: str | None, now: datetime) -> dict[str, Any]:
    state, reason = state_of(run, in_queue)
    working = [folder.name for folder in job_folders(run) if is_held(folder)]
    return {
        "run": run.relative,
        "state": state,
        "trained": f"{run.trained():.0%}",
        "now": ", ".join(working),
        "since": _since(run.status, now),
        "reason": reason,
    }


def _study_row(root: Path, folder: Path, now: datetime) -> dict[str, Any]:
    status = read_status(folder)
    state = "running" if is_held(folder) else "lost" if status.state == "running" else status.state
    trials = len(read_trials(folder)) if (folder / TRIALS).is_file() else 0
    return {
        "run": folder.relative_to(root).as_posix(),
        "state": state,
        "trained": f"{trials} trials",
        "now": "",
        "since": _since(status, now),
        "reason": GONE if state == "lost" else status.reason or "",
    }


def _since(status: Status, now: datetime) -> str:
    return "" if status.updated is None else _ago((now - datetime.fromisoformat(status.updated)).total_seconds())


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
