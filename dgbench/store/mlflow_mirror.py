"""A view of the run folders in MLflow: parameters, curves, tables and pictures, rebuilt from the folders at any time.

The mirror is never read by dgbench. One MLflow run stands for one run folder as it was at one moment: it carries a digest of the files it
was made from, written last, so that an unchanged folder costs nothing and a changed or half-mirrored one is made anew and the old one
deleted (MLflow keeps deleted runs until ``mlflow gc``).
"""

import logging
import math
import os
import secrets
import sys
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgbench.atomic import TEMPORARY_PREFIX, read_json, write_json
from dgbench.errors import DgbenchError
from dgbench.store.folder import RunFolder, iter_runs, read_run
from dgbench.store.lock import FolderLock
from dgbench.store.mlflow_study import PARENT, StudySnapshot, milliseconds, take_study, write_study
from dgbench.store.snapshot import Snapshot, folder_digest, take_snapshot
from dgbench.store.study import iter_studies

METRICS_PER_CALL, PARAMS_PER_CALL = 1000, 100
"""Limits of one call of MLflow's REST interface."""
MLFLOW_ENVIRONMENT: Mapping[str, str] = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",  # no connection outlives its use: the database may be deleted and rebuilt meanwhile
}
"""Set before MLflow is imported, here and in :func:`ui_command`."""

_STATES = {"queued": "SCHEDULED", "running": "RUNNING", "done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SyncReport:
    """What a call of :func:`sync` did, in numbers of runs; ``problems`` has one line for each folder that could not be mirrored."""

    tracking_uri: str
    created: int = 0
    replaced: int = 0
    unchanged: int = 0
    removed: int = 0
    problems: tuple[str, ...] = ()


def sync(
    runs_root: Path,
    tracking_uri: str | None = None,
    only: Collection[Path] | None = None,
    studies: Collection[Path] | None = None,
) -> SyncReport:
    """Mirror run folders, and tuning studies into MLflow. Doing it again changes nothing; any number of processes may do it at once.

    Args:
        runs_root: folder of all runs.
        tracking_uri: any MLflow tracking server or database; by default ``runs_root/mlflow.db`` (created here), from which runs whose
            folder is gone are removed too. The artifacts go where the server wants them, those of a database to ``runs_root/mlartifacts``.
        only: run folders to mirror; all if None.
        studies: folders of studies to mirror; if None all of them where ``only`` is None too, else none.

    Raises:
        DgbenchError: ``runs_root`` is not writable, or MLflow does not answer or refuses its database.
    """
    root = Path(os.path.abspath(runs_root))
    problems: list[str] = []
    with FolderLock(root / ".mlflow", wait=math.inf, on_wait=_log.info):
        snapshots: dict[str, Snapshot] = {}
        digests: dict[str, str] = {}
        for run in _runs(root, only, problems):
            try:
                digests[run.relative] = folder_digest(run)
                snapshots[run.relative] = take_snapshot(run)
            except DgbenchError as error:
                problems.append(str(error))
        wanted = (iter_studies(root) if only is None else ()) if studies is None else map(Path.absolute, studies)
        tuned: dict[str, StudySnapshot] = {}
        for folder in wanted:
            try:
                tuned[folder.relative_to(root).as_posix()] = take_study(folder)
            except DgbenchError as error:
                problems.append(str(error))
        with _mlflow_errors(tracking_uri or _default_uri(root)):
            mirror = _Mirror(root, tracking_uri)
            counts = {name: mirror.update(name, shot, digests[name]) for name, shot in snapshots.items()}
            outcomes = [*counts.values(), *(mirror.update_study(name, shot) for name, shot in tuned.items())]
            removed = mirror.remove_gone() if tracking_uri is None and only is None else 0
        if tracking_uri is None:
            _write_marks(root, _read_marks(root) | {name: digests[name] for name in counts})
    return SyncReport(
        mirror.uri,
        outcomes.count("created"),
        outcomes.count("replaced"),
        outcomes.count("unchanged"),
        removed,
        tuple(problems),
    )


def mirrored(folder: Path) -> bool:
    """Whether the default mirror shows a run folder as it is now. Answers in milliseconds, from the digests that :func:`sync` left; MLflow
    is not asked, so that what was deleted there is not noticed. False as well for a folder that cannot be read: :func:`sync` says why."""
    root = Path(os.path.abspath(folder)).parents[3]
    try:
        run = read_run(root, folder)
        return _database(root).exists() and _read_marks(root).get(run.relative) == folder_digest(run)
    except DgbenchError:
        return False


def ui_command(runs_root: Path, port: int = 5000) -> list[str]:
    """The command that shows the default mirror at ``http://127.0.0.1:<port>``, to nobody but this machine, and without telemetry."""
    root = Path(os.path.abspath(runs_root))
    environment = ["env", *(f"{name}={value}" for name, value in MLFLOW_ENVIRONMENT.items())]
    backend = ["--backend-store-uri", _default_uri(root), "--default-artifact-root", _artifacts(root)]
    address = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [*environment, sys.executable, "-m", "mlflow", "ui", *backend, *address]


class _Mirror:
    """An open MLflow client and the mirrored runs it already has, by folder."""

    def __init__(self, root: Path, tracking_uri: str | None) -> None:
        client_class = _client_class()
        self.root = root
        self.uri = tracking_uri or _default_uri(root)
        self.artifacts = (
            None if self.uri.startswith(("http://", "https://")) else _artifacts(root)
        )  # else MLflow takes ./mlruns
        if tracking_uri is None and not _database(root).exists():
            _create_database(root)
        self.client = client_class(tracking_uri=self.uri)
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, list[Any]] = defaultdict(list)

    def update(self, folder: str, shot: Snapshot, digest: str) -> str:
        """Make the mirror of one folder current: ``created``, ``replaced`` or ``unchanged``."""
        experiment = self._experiment(shot.experiment)
        old = self.runs[folder]
        current = [run for run in old if run.data.tags.get("dgbench.digest") == digest][:1]
        if not current:
            self._write(experiment, shot, digest)
        for run in old:
            if run not in current:
                self.client.delete_run(run.info.run_id)
        if current:
            return "unchanged"
        return "replaced" if old else "created"

    def update_study(self, folder: str, shot: StudySnapshot) -> str:
        """Make the mirror of one study current; its trials are runs below it."""
        experiment = self._experiment(shot.experiment)
        old = self.runs[folder]
        whole = [run for run in old if run.data.tags.get("dgbench.digest") == shot.digest][:1]
        if not whole:
            state = _STATES[shot.status.state]
            write_study(self.client, experiment, folder, shot, milliseconds(shot.status.updated), state)
        kept = {run.info.run_id for run in whole}
        for run in old:
            if run.info.run_id not in kept and run.data.tags.get(PARENT) not in kept:
                self.client.delete_run(run.info.run_id)
        if whole:
            return "unchanged"
        return "replaced" if old else "created"

    def remove_gone(self) -> int:
        """Delete the runs whose folder does not exist any more, in all experiments of dgbench."""
        for experiment in self._pages(self.client.search_experiments, filter_string="tags.dgbench = 'mirror'"):
            self._experiment(experiment.name)
        gone = [run for folder, runs in self.runs.items() if not (self.root / folder).exists() for run in runs]
        for run in gone:
            self.client.delete_run(run.info.run_id)
        return len(gone)

    def _write(self, experiment: str, shot: Snapshot, digest: str) -> None:
        from mlflow.entities import Metric, Param

        spec, updated = shot.spec, milliseconds(shot.status.updated)
        run_id = self.client.create_run(
            experiment,
            start_time=updated,
            tags=shot.tags,
            run_name=f"{spec.method.name} · {spec.heldout} · seed {spec.seed}",
        ).info.run_id
        for params in _chunks([Param(key, value) for key, value in shot.params.items()], PARAMS_PER_CALL):
            self.client.log_batch(run_id, params=params)
        for metrics in _chunks([Metric(p.name, p.value, updated, p.step) for p in shot.points], METRICS_PER_CALL):
            self.client.log_batch(run_id, metrics=metrics)
        for file, folder in shot.files:
            self.client.log_artifact(run_id, str(file), folder or None)
        for path, text in shot.texts.items():
            self.client.log_text(run_id, text, path)
        self.client.set_tag(run_id, "dgbench.digest", digest)
        if shot.status.state in ("queued", "running"):
            self.client.update_run(run_id, status=_STATES[shot.status.state])
        else:
            self.client.set_terminated(run_id, _STATES[shot.status.state], end_time=updated)

    def _experiment(self, name: str) -> str:
        """Id of the experiment, created or restored where needed; its mirrored runs are read when it is first asked for."""
        if name not in self.experiments:
            found = self.client.get_experiment_by_name(name)
            if found is None:
                identifier = self.client.create_experiment(
                    name, artifact_location=self.artifacts, tags={"dgbench": "mirror"}
                )
            else:
                identifier = found.experiment_id
                if found.lifecycle_stage == "deleted":
                    self.client.restore_experiment(identifier)
                if found.tags.get("dgbench") != "mirror":
                    self.client.set_experiment_tag(identifier, "dgbench", "mirror")
            self.experiments[name] = identifier
            for run in self._pages(self.client.search_runs, experiment_ids=[identifier]):
                if "dgbench.folder" in run.data.tags:
                    self.runs[run.data.tags["dgbench.folder"]].append(run)
        return self.experiments[name]

    @staticmethod
    def _pages(search: Any, **arguments: Any) -> Iterator[Any]:
        token = None
        while True:
            page = search(**arguments, page_token=token)
            yield from page
            token = page.token
            if not token:
                return


def _runs(root: Path, only: Collection[Path] | None, problems: list[str]) -> Iterator[RunFolder]:
    if only is None:
        yield from iter_runs(root, lambda _, error: problems.append(str(error)))
        return
    for path in only:
        try:
            yield read_run(root, path)
        except DgbenchError as error:
            problems.append(str(error))


def _database(root: Path) -> Path:
    return root / "mlflow.db"


def _default_uri(root: Path) -> str:
    return f"sqlite:///{_database(root).as_posix()}"


def _artifacts(root: Path) -> str:
    return (root / "mlartifacts").as_uri()


def _marks(root: Path) -> Path:
    return root / ".mlflow" / "mirrored.json"


def _read_marks(root: Path) -> dict[str, str]:
    """Digests of the mirrored folders, by folder; empty if there are none yet."""
    return read_json(_marks(root)) if _marks(root).exists() else {}


def _write_marks(root: Path, digests: Mapping[str, str]) -> None:
    write_json(_marks(root), {folder: digest for folder, digest in sorted(digests.items()) if (root / folder).exists()})


def _create_database(root: Path) -> None:
    """A database whose creation is interrupted stays broken for ever; so it is made beside its place and renamed. What a killed creation
    left behind (the database, its journal) goes too: the caller holds the lock, so nobody is writing it."""
    _marks(root).unlink(missing_ok=True)
    temporary = root / ".mlflow" / f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}.db"
    try:
        _client_class()(tracking_uri=f"sqlite:///{temporary.as_posix()}")
        os.replace(temporary, _database(root))
    finally:
        for left in temporary.parent.glob(f"{TEMPORARY_PREFIX}*"):
            left.unlink(missing_ok=True)


def _client_class() -> Any:
    """MlflowClient, imported without telemetry, noise, or minutes of retries when a server is away."""
    os.environ.update(MLFLOW_ENVIRONMENT)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient


@contextmanager
def _mlflow_errors(uri: str) -> Iterator[None]:
    """One-line errors, and none of the deprecation warnings of MLflow's own dependencies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _client_class()
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            line = " ".join(str(error).split())
            raise DgbenchError(
                f"MLflow at {uri}: {line[:300]} — check the address; a damaged database can be deleted, the next sync rebuilds it"
            ) from error


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
