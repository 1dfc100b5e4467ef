"""How runs stand, read from their folders: what ``dgbench status`` shows, and which runs are meant by names on the command line."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dgbench.errors import DgbenchError
from dgbench.launch.jobs import CANCELLED
from dgbench.launch.slurm import waiting_in_queue
from dgbench.store.folder import RunFolder, iter_runs, read_status
from dgbench.store.lock import is_held


def chosen_runs(root: Path, names: Sequence[str]) -> list[RunFolder]:
    """The runs that are meant: folders of runs, or folders with runs below them, as paths or relative to ``root``; all without a name.

    Raises DgbenchError for a name without a run.
    """
    runs = list(iter_runs(root))
    if not names:
        return runs
    chosen: dict[Path, RunFolder] = {}
    for name in names:
        places = {Path(name).absolute(), (root / name).absolute()}
        found = [run for run in runs if places & {path.absolute() for path in (run.path, *run.path.parents)}]
        if not found:
            raise DgbenchError(f"{name}: no run of that name below {root} — `dgbench status --runs {root}` lists them")
        chosen.update((run.path, run) for run in found)
    return list(chosen.values())


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
        return "lost", "its process is gone; the same command goes on"
    return ("waiting" if status.state == "running" else status.state), status.reason or ""


def status_rows(runs: Sequence[RunFolder], now: datetime | None = None) -> list[dict[str, Any]]:
    """A row for each run, plain JSON."""
    queued = waiting_in_queue(runs)
    return [_row(run, queued.get(run.relative), now or datetime.now(UTC)) for run in runs]


def _row(run: RunFolder, in_queue: str | None, now: datetime) -> dict[str, Any]:
    state, reason = state_of(run, in_queue)
    updated = run.status.updated
    working = [folder.name for folder in job_folders(run) if is_held(folder)]
    return {
        "run": run.relative,
        "state": state,
        "trained": f"{run.trained():.0%}",
        "now": ", ".join(working),
        "since": "" if updated is None else _ago((now - datetime.fromisoformat(updated)).total_seconds()),
        "reason": reason,
    }


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
