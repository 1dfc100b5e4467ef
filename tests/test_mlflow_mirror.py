"""The MLflow mirror: that it is whole, that it is idempotent, and that it can be rebuilt."""

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from fake_runs import PNG, fake_run, fake_spec

from dgbench.atomic import append_jsonl
from dgbench.errors import DgbenchError
from dgbench.store.folder import iter_runs, write_status
from dgbench.store.mlflow_mirror import SyncReport, mirrored, sync, ui_command

SYNC = "import pathlib, sys; from dgbench.store.mlflow_mirror import sync; print(sync(pathlib.Path(sys.argv[1])))"


def test_ui_command_is_for_this_machine_only(tmp_path: Path) -> None:
    command = ui_command(tmp_path / "my runs", port=5555)
    assert "MLFLOW_DISABLE_TELEMETRY=true" in command[: command.index(sys.executable)]
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "5555"
    assert command[command.index("--backend-store-uri") + 1] == f"sqlite:///{tmp_path}/my runs/mlflow.db"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty mirror; its database takes seconds to create, so that it is created once and copied."""
    root = tmp_path_factory.mktemp("template")
    report = sync(root)
    assert report == SyncReport(f"sqlite:///{root}/mlflow.db")
    assert sorted(path.name for path in root.iterdir()) == [".mlflow", "mlflow.db"]
    assert [path.name for path in (root / ".mlflow").iterdir()] == ["mirrored.json"]
    return root / "mlflow.db"


@pytest.fixture
def root(tmp_path: Path, template: Path) -> Path:
    folder = tmp_path / "my runs ü"
    folder.mkdir()
    shutil.copy(template, folder / "mlflow.db")
    return folder


def client(root: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{root}/mlflow.db")


def runs(root: Path) -> dict[str, Any]:
    """Active mirrored runs by folder, none of them double."""
    found = client(root).search_runs([e.experiment_id for e in client(root).search_experiments()])
    by_folder = {run.data.tags["dgbench.folder"]: run for run in found}
    assert len(by_folder) == len(found)
    return by_folder


def test_everything_is_mirrored(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = fake_run(root, fake_spec(lr=0.5, long="x" * 7000, **{f"option{i}": i for i in range(120)}), steps=700)
    report = sync(root)
    assert (report.created, report.replaced, report.unchanged, report.removed, report.problems) == (1, 0, 0, 0, ())
    assert capfd.readouterr() == ("", "")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"

    api = client(root)
    (mirrored,) = runs(root).values()
    assert api.get_experiment(mirrored.info.experiment_id).name == "phantom-v1-demo"
    assert mirrored.info.status == "FINISHED"
    assert mirrored.info.run_name == "erm · RENJI · seed 0"
    tags = mirrored.data.tags
    for name, value in {
        "protocol": "phantom-v1",
        "kind": "phantom",
        "preset": "demo",
        "heldout": "RENJI",
        "method": "erm",
        "seed": "0",
        "state": "done",
        "key": run.spec.key,
        "folder": run.relative,
    }.items():
        assert tags[f"dgbench.{name}"] == value
    assert mirrored.data.params["method.config.lr"] == "0.5"
    assert mirrored.data.params["method.config.option119"] == "119"
    assert mirrored.data.params["method.config.long"] == "x" * 6000
    history = api.get_metric_history(mirrored.info.run_id, "tumor-fine/loss")
    assert {(point.step, point.value) for point in history} == {(step, 1 / step) for step in range(1, 701)}
    assert mirrored.data.metrics["tumor-fine/validation/dsc"] == pytest.approx(0.6)
    assert mirrored.data.metrics["held-out/RENJI/F-Seg/dsc"] == pytest.approx(0.4)

    def files(folder: str | None = None) -> set[str]:
        return {entry.path for entry in api.list_artifacts(mirrored.info.run_id, folder)}

    assert files() == {"spec.json", "tables", "figures"}
    assert files("tables") == {"tables/cases.parquet", "tables/cases.csv"}
    assert files("figures") == {"figures/overlay.png"}
    picture = next((root / "mlartifacts").rglob("overlay.png"))
    assert picture.read_bytes() == PNG


def test_again_changes_nothing_and_a_changed_folder_replaces_its_run(root: Path) -> None:
    spec = fake_spec()
    run = fake_run(root, spec)
    fake_run(root, fake_spec(seed=1))
    assert sync(root).created == 2
    before = {folder: found.info.run_id for folder, found in runs(root).items()}
    assert sync(root).unchanged == 2
    assert {folder: found.info.run_id for folder, found in runs(root).items()} == before

    write_status(run.path, "interrupted", "Ctrl-C")
    append_jsonl(run.stage_folder("tumor-fine") / "steps.jsonl", {"step": 4, "loss": 0.125})
    report = sync(root, only=[run.path])
    assert (report.replaced, report.unchanged) == (1, 0)
    after = runs(root)
    assert set(after) == set(before)
    changed = after[run.relative]
    assert changed.info.status == "KILLED"
    assert changed.data.tags["dgbench.reason"] == "Ctrl-C"
    assert changed.data.metrics["tumor-fine/loss"] == 0.125
    other = fake_spec(seed=1).folder(Path()).as_posix()
    assert after[other].info.run_id == before[other]


def test_a_half_mirrored_run_is_made_anew_and_doubles_are_removed(root: Path) -> None:
    fake_run(root)
    sync(root)
    api = client(root)
    (mirrored,) = runs(root).values()
    experiment, folder = mirrored.info.experiment_id, mirrored.data.tags["dgbench.folder"]
    api.create_run(experiment, tags={"dgbench.folder": folder})  # killed before its digest was written
    api.create_run(experiment, tags={"mine": "yes"})  # somebody else's
    report = sync(root)
    assert (report.created, report.replaced, report.unchanged) == (0, 0, 1)
    left = api.search_runs([experiment])
    assert len(left) == 2
    assert {run.info.run_id for run in left} >= {mirrored.info.run_id}
    api.delete_tag(mirrored.info.run_id, "dgbench.digest")
    assert sync(root).replaced == 1


def test_damaged_folders_are_reported_and_the_rest_is_mirrored(root: Path) -> None:
    good, torn, damaged = (fake_run(root, fake_spec(seed=seed)) for seed in (0, 1, 2))
    (torn.path / "spec.json").write_text("{")
    (damaged.evaluation / "cases.parquet").write_bytes(b"PAR1")
    report = sync(root)
    assert report.created == 1
    assert set(runs(root)) == {good.relative}
    assert len(report.problems) == 2
    assert "half-written" in report.problems[0]
    assert "cases.parquet: not a readable table" in report.problems[1]
    assert sync(root, only=[root / "phantom"]).problems == (f"{root}/phantom/spec.json: no such file",)


def test_a_queued_run_without_logs_is_mirrored(root: Path) -> None:
    run = fake_run(root)
    for path in (run.path / "tumor-coarse", run.path / "tumor-fine", run.evaluation, run.path / "figures"):
        shutil.rmtree(path)
    (run.path / "status.json").unlink()
    assert sync(root).created == 1
    (mirrored,) = runs(root).values()
    assert mirrored.info.status == "SCHEDULED"
    assert mirrored.data.metrics == {}


def test_a_removed_folder_leaves_the_default_mirror(root: Path) -> None:
    gone, kept = fake_run(root), fake_run(root, fake_spec(seed=1))
    sync(root)
    shutil.rmtree(gone.path)
    assert sync(root, only=[kept.path]).removed == 0
    assert sync(root).removed == 1
    assert set(runs(root)) == {kept.relative}
    assert sync(root).removed == 0


def test_a_deleted_experiment_comes_back(root: Path) -> None:
    fake_run(root)
    sync(root)
    (experiment,) = [e for e in client(root).search_experiments() if e.name == "phantom-v1-demo"]
    client(root).delete_experiment(experiment.experiment_id)
    sync(root)
    assert len(runs(root)) == 1


def test_what_is_mirrored_is_known_without_mlflow(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = fake_run(root), fake_run(root, fake_spec(seed=1))
    assert not mirrored(first.path)
    sync(root, only=[first.path])
    assert mirrored(first.path)
    assert not mirrored(second.path)
    monkeypatch.chdir(root.parent)
    assert mirrored(first.path.relative_to(root.parent))
    sync(root)
    assert mirrored(first.path)
    assert mirrored(second.path)
    write_status(first.path, "interrupted")
    assert not mirrored(first.path)
    (second.path / "spec.json").write_text("{")
    assert not mirrored(second.path)
    sync(root, only=[first.path])
    (root / "mlflow.db").unlink()
    assert not mirrored(first.path)


def test_another_tracking_database(root: Path, tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(template, tmp_path / "other.db")
    fake_run(root)
    uri = f"sqlite:///{tmp_path}/other.db"
    report = sync(root, tracking_uri=uri)
    assert (report.tracking_uri, report.created) == (uri, 1)
    assert runs(root) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        root.name,
        "other.db",
    ]  # no mlruns in the current folder
    assert next((root / "mlartifacts").rglob("overlay.png")).read_bytes() == PNG


@pytest.mark.parametrize("uri", ["nonsense://x", "sqlite:////proc/no/such/folder/x.db"])
def test_an_unusable_address_is_one_line(root: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)
    fake_run(root)
    with pytest.raises(DgbenchError, match=f"MLflow at {uri}: .* — check the address") as caught:
        sync(root, tracking_uri=uri)
    assert "\n" not in str(caught.value)


def test_a_foreign_database_is_one_line(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)
    folder = tmp_path / "foreign"
    fake_run(folder)
    (folder / "mlflow.db").write_bytes(b"<html>not a database</html>" * 100)
    with pytest.raises(DgbenchError, match="can be deleted, the next sync rebuilds it"):
        sync(folder)


@pytest.mark.slow
def test_rebuilt_after_the_database_was_deleted(root: Path) -> None:
    for seed in (0, 1):
        fake_run(root, fake_spec(seed=seed))

    def contents() -> list[Any]:
        return [(folder, run.data.params, run.data.metrics) for folder, run in sorted(runs(root).items())]

    sync(root)
    before = contents()
    assert len(before) == 2
    (root / "mlflow.db").unlink()
    shutil.rmtree(root / "mlartifacts")
    assert sync(root).created == 2  # in the same process, which has had the deleted file open
    assert contents() == before
    assert all(mirrored(run.path) for run in iter_runs(root))
    assert (root / "mlflow.db").exists()


@pytest.mark.slow
def test_eight_processes_on_a_fresh_root(tmp_path: Path) -> None:
    for seed in range(3):
        fake_run(tmp_path, fake_spec(seed=seed))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SYNC, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, outputs
    assert [error for _, error in outputs] == [""] * 8
    assert sum("created=3" in out for out, _ in outputs) == 1
    assert sum("unchanged=3" in out for out, _ in outputs) == 7
    assert set(runs(tmp_path)) == {run.relative for run in iter_runs(tmp_path)}


@pytest.mark.slow
def test_a_killed_creation_of_the_database_is_repaired(tmp_path: Path) -> None:
    fake_run(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", SYNC, str(tmp_path)])
    while not list(tmp_path.glob(".mlflow/.tmp-*.db")):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.3)
    process.kill()
    process.wait()
    assert not (tmp_path / "mlflow.db").exists()
    (
        tmp_path / ".mlflow" / ".tmp-0.db-journal"
    ).touch()  # whether SQLite has one open depends on the instant of the kill
    assert sync(tmp_path).created == 1
    assert [path.name for path in (tmp_path / ".mlflow").iterdir()] == ["mirrored.json"]


@pytest.mark.slow
def test_the_ui_serves_the_mirror(root: Path) -> None:
    run = fake_run(root)
    sync(root)
    process = subprocess.Popen(
        ui_command(root, port=5791),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = "http://127.0.0.1:5791/api/2.0/mlflow/runs/search"
        experiment = next(iter(runs(root).values())).info.experiment_id
        request = urllib.request.Request(
            address,
            data=f'{{"experiment_ids": ["{experiment}"]}}'.encode(),
            headers={"Content-Type": "application/json"},
        )
        deadline = time.monotonic() + 240
        while True:
            try:
                answer = urllib.request.urlopen(request, timeout=10).read().decode()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.5)
        assert run.relative in answer
    finally:
        process.terminate()
        process.wait()
