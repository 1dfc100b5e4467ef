"""Many runs as one graph of jobs: what they share is in it once, what is done is recognised from the folders, and every run folder says by
which request it was asked for, so that any process, on any machine with the same disk, can do any job."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dgbench.errors import DgbenchError, NotApplicable
from dgbench.launch.jobs import Job, is_done, jobs_of
from dgbench.launch.plan import RunPlan, RunRequest, plan_run
from dgbench.launch.request import REQUEST, read_request

_ID = re.compile(r"(?P<run>[^/]+/[^/]+/[^/]+/seed\d+-[0-9a-f]{8})/[^/]+")


@dataclass(frozen=True)
class Cell:
    """One run that was asked for: its plan, or the reason why it cannot be (n/a)."""

    request: RunRequest
    plan: RunPlan | None
    reason: str | None = None


@dataclass(frozen=True)
class Graph:
    """The runs in the order they were asked for, and their jobs in an order in which they can be done."""

    cells: tuple[Cell, ...]
    jobs: Mapping[str, Job]

    @property
    def plans(self) -> tuple[RunPlan, ...]:
        """The plans of the runs that can be."""
        return tuple(cell.plan for cell in self.cells if cell.plan is not None)

    def done(self) -> set[str]:
        """The jobs that are done, as the folders tell now; an evaluation is only looked at when what it needs is done."""
        found: set[str] = set()
        for job in self.jobs.values():
            if found.issuperset(job.needs) and is_done(job):
                found.add(job.id)
        return found


def build_graph(requests: Iterable[RunRequest]) -> Graph:
    """Plan every request; the data must be there. A cell that its method cannot fill has a reason instead of a plan; any other
    DgbenchError is raised."""
    cells = []
    jobs: dict[str, Job] = {}
    for request in requests:
        try:
            plan = plan_run(request)
        except NotApplicable as reason:
            cells.append(Cell(request, None, str(reason)))
            continue
        cells.append(Cell(request, plan))
        for job in jobs_of(plan):
            jobs.setdefault(job.id, job)
    return Graph(tuple(cells), jobs)


def missing_needs(job: Job) -> list[str]:
    """What ``job`` needs and is not done."""
    if not job.needs:
        return []
    done: set[str] = set()
    for other in jobs_of(job.plan):
        if done.issuperset(other.needs) and is_done(other):
            done.add(other.id)
    return [need for need in job.needs if need not in done]


def find_job(runs: Path, job_id: str) -> Job:
    """The job with this id below ``runs``, planned anew from the request in its run folder.

    Raises:
        DgbenchError: no such job, or the run would have another key today (code, data or machine changed since it was asked for).
    """
    match = _ID.fullmatch(job_id)
    if match is None or ".." in Path(job_id).parts:
        raise DgbenchError(
            f"{job_id!r} names no job — a job is named PROTOCOL/HELDOUT/METHOD/SEED-KEY/STAGE, see `dgbench plan --jobs`"
        )
    plan = plan_run(read_request(runs, runs / match["run"]))
    for job in jobs_of(plan):
        if job.id == job_id:
            return job
    raise DgbenchError(
        f"{job_id}: the request in {runs / match['run'] / REQUEST} makes {', '.join(job.id for job in jobs_of(plan))} here and now "
        "— the code, the data or the kind of machine changed since it was asked for; ask for the run again"
    )
