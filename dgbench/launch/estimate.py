"""What a graph of jobs will cost, from what jobs like these took before in the same runs folder."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from dgbench.atomic import read_json, read_jsonl
from dgbench.launch.graph import Graph
from dgbench.launch.jobs import Job
from dgbench.launch.plan import RunPlan
from dgbench.store.folder import read_status

Kind = tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """A row for each run, a row for each job, and lines about the whole; rows are plain JSON, all with the same keys."""

    runs: list[dict[str, Any]]
    jobs: list[dict[str, Any]]
    lines: list[str]


def summary(graph: Graph) -> Summary:
    """How the jobs of ``graph`` stand and what the missing ones will cost. Only reads."""
    done = graph.done()
    rates = _rates(graph.jobs.values())
    users = dict.fromkeys(graph.jobs, 0)
    for plan in graph.plans:
        for name in _names(graph, plan):
            users[name] += 1
    jobs = [_job_row(job, job.id in done, users[job.id], rates) for job in graph.jobs.values()]
    rows = {row["job"]: row for row in jobs}
    runs = [_run_row(graph, plan, rows) for plan in graph.plans]
    runs += [
        {
            "heldout": cell.request.heldout,
            "method": cell.request.method,
            "seed": cell.request.seed,
            "state": f"n/a: {cell.reason}",
            "jobs": None,
            "done": None,
            "seconds_left": None,
        }
        for cell in graph.cells
        if cell.plan is None
    ]
    return Summary([_readable(row) for row in runs], [_readable(row) for row in jobs], _lines(graph, jobs, users))


def _lines(graph: Graph, jobs: list[dict[str, Any]], users: dict[str, int]) -> list[str]:
    missing = [row for row in jobs if row["state"] != "done"]
    shared = [name for name, count in users.items() if count > 1]
    lines = [
        f"{len(graph.plans)} runs, {len(jobs)} jobs: {len(jobs) - len(missing)} done, {len(missing)} missing; "
        f"{len(shared)} are shared by several runs and done once"
    ]
    if not missing:
        return lines
    known = [row["seconds_left"] for row in missing if row["seconds_left"] is not None]
    unknown = len(missing) - len(known)
    parts = []
    if known:
        parts.append(f"about {duration(math.fsum(known))} one after another for {len(known)} of the missing jobs")
    if unknown:
        parts.append(f"{unknown} of a kind that has not been run here yet")
    return [*lines, "cost: " + "; ".join(parts) + " (from what such jobs took in this runs folder)"]


def duration(seconds: float) -> str:
    """Hours and minutes for people."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _names(graph: Graph, plan: RunPlan) -> list[str]:
    folders = {part.folder for part in plan.folders}
    return [job.id for job in graph.jobs.values() if job.part.folder in folders]


def _job_row(job: Job, done: bool, users: int, rates: dict[Kind, float]) -> dict[str, Any]:
    reached = 0 if done else _reached(job)
    rate = rates.get(_kind(job))
    state = "done" if done else read_status(job.folder).state
    return {
        "job": job.id,
        "state": "missing"
        if state in ("queued", "done") and not done
        else state,  # done under a key that is not asked for
        "units": job.units,
        "reached": job.units if done else reached,
        "runs": users,
        "seconds_left": 0.0 if done else None if rate is None else rate * (job.units - reached),
    }


def _run_row(graph: Graph, plan: RunPlan, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    mine = [rows[name] for name in _names(graph, plan)]
    left = [row["seconds_left"] for row in mine]
    done = sum(row["state"] == "done" for row in mine)
    states = {row["state"] for row in mine}
    state = next((name for name in ("failed", "running", "interrupted") if name in states), "missing")
    return {
        "heldout": plan.request.heldout,
        "method": plan.own.spec.method.name,
        "seed": plan.request.seed,
        "state": "done" if done == len(mine) else state,
        "jobs": len(mine),
        "done": done,
        "seconds_left": None if None in left else math.fsum(left),
    }


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """Rounded seconds."""
    left = row["seconds_left"]
    return {**row, "seconds_left": None if left is None else round(left, 1)}


def _kind(job: Job) -> Kind:
    """Jobs that take equally long per step or case: stage, method and machine of the same preset."""
    spec = job.part.spec
    machine = spec.environment
    return (
        spec.protocol.content,
        spec.method.name,
        job.title,
        machine.device,
        machine.precision,
        str(machine.threads),
        str(machine.devices),
    )


def _rates(jobs: Iterable[Job]) -> dict[Kind, float]:
    """Seconds per step or case of each kind, the median over the jobs of that kind which have been running."""
    found: dict[Kind, list[float]] = {}
    for job in jobs:
        rate = _rate(job)
        if rate is not None:
            found.setdefault(_kind(job), []).append(rate)
    return {kind: median(rates) for kind, rates in found.items()}


def _rate(job: Job) -> float | None:
    """Seconds per step from the log of a training; per case from when an evaluation began and ended."""
    folder = job.folder
    if job.training is not None:
        log = folder / "times.jsonl"
        rows = read_jsonl(log) if log.is_file() else []
        steps = sum(row["steps"] for row in rows)
        return math.fsum(row["seconds"] for row in rows) / steps if steps else None
    if read_status(folder).state != "done":
        return None
    started, ended = ((folder / name).stat().st_mtime for name in ("spec.json", "status.json"))
    return max(0.0, ended - started) / job.units


def _reached(job: Job) -> int:
    """Steps in the log of a training that is not done, cases that an evaluation has kept."""
    if job.training is None:
        return min(job.units, len(list((job.folder / "parts").glob("*/[!.]*.json"))))
    log = job.folder / "steps.jsonl"
    spec = job.folder / "spec.json"
    if not (log.is_file() and spec.is_file() and read_json(spec).get("key") == job.training.key):
        return 0
    return min(job.units, log.read_bytes().count(b"\n"))
