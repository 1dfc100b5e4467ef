"""What the MLflow mirror shows of a tuning study: one run for the study, and below it one for each trial."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dgbench.store.folder import Status, read_status
from dgbench.store.snapshot import MIRROR_VERSION
from dgbench.store.study import BEST, KEPT_OF_STUDY, StudySpec, TrialRow, counted, read_trials, select

PARENT = "mlflow.parentRunId"
"""The tag by which MLflow nests runs."""


@dataclass(frozen=True)
class StudySnapshot:
    """A study as it is mirrored."""

    folder: Path
    spec: StudySpec
    status: Status
    trials: list[TrialRow]
    digest: str

    @property
    def experiment(self) -> str:
        """That of the runs of the same protocol, version and preset."""
        protocol = self.spec.protocol
        return f"{protocol.name}-v{protocol.version}-{protocol.preset}"


def take_study(folder: Path) -> StudySnapshot:
    """Everything of a study that MLflow shows. Raises DgbenchError where a file is damaged."""
    lines = [f"mirror {MIRROR_VERSION}"]
    for name in (*KEPT_OF_STUDY, "status.json"):
        if (path := folder / name).is_file():
            lines.append(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}")
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return StudySnapshot(folder, StudySpec.read(folder), read_status(folder), read_trials(folder), digest)


def write_study(client: Any, experiment: str, name: str, shot: StudySnapshot, time: int, state: str) -> None:
    """Write the runs of a study; the digest of the parent comes last, and makes it whole. ``name`` is the study's folder below the runs
    folder, ``time`` in milliseconds, ``state`` as MLflow calls it."""
    from mlflow.entities import Metric, Param, RunTag

    spec = shot.spec
    tags = {
        "dgbench.folder": name,
        "dgbench.study": spec.key,
        "dgbench.method": spec.method.name,
        "dgbench.heldout": spec.heldout,
    }
    parent = client.create_run(
        experiment, start_time=time, tags=tags, run_name=f"tune {spec.method.name} · {spec.heldout} · seed {spec.seed}"
    ).info.run_id
    for trial in shot.trials:
        own = {**tags, PARENT: parent, "dgbench.trial": str(trial.number), "dgbench.state": trial.state}
        if trial.reason is not None:
            own["dgbench.reason"] = trial.reason[:5000]
        child = client.create_run(experiment, start_time=time, run_name=f"trial {trial.number}", tags=own).info.run_id
        values = [Metric("tuning/validation", value, time, step) for step, value in enumerate(trial.validations)]
        values += [Metric(f"{stage}/best_dsc", one.best_dsc, time, 0) for stage, one in trial.stages.items()]
        values += [] if trial.value is None else [Metric("tuning/objective", trial.value, time, 0)]
        params = [Param(key, str(value)) for key, value in trial.params.items()]
        client.log_batch(child, metrics=values[:1000], params=params[:100])
        client.set_terminated(child, "FAILED" if trial.state == "failed" else "FINISHED", end_time=time)
    summary = [Metric("tuning/trials", counted(shot.trials), time, 0)]
    if any(trial.state == "complete" for trial in shot.trials):
        best = select(shot.trials, counted(shot.trials))
        summary.append(Metric("tuning/objective", best.value or 0.0, time, 0))
    facts = {"method": spec.method.name, "heldout": spec.heldout, "seed": spec.seed, "objective": spec.objective}
    client.log_batch(parent, metrics=summary, params=[Param(key, str(value)) for key, value in facts.items()])
    for file in KEPT_OF_STUDY:
        if (shot.folder / file).is_file() and (file != BEST or shot.status.state == "done"):
            client.log_artifact(parent, str(shot.folder / file))
    client.log_batch(parent, tags=[RunTag("dgbench.digest", shot.digest)])
    client.set_terminated(parent, state, end_time=time)


def milliseconds(time: str | None) -> int:
    """Milliseconds since 1970; 0 for what nothing has been said about yet."""
    return 0 if time is None else round(datetime.fromisoformat(time).timestamp() * 1000)
