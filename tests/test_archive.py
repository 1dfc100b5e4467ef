"""Records of runs: what is kept, what a leaderboard makes of them, and nothing of the machine."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from cli_calls import mistake, run_arguments
from training_fixtures import Mini

from dgbench.cli import call
from dgbench.errors import DgbenchError
from dgbench.store.archive import archive, with_shared
from dgbench.store.folder import iter_runs, write_status


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, sound: Mini) -> Path:
    folder = tmp_path_factory.mktemp("here") / "runs"
    assert call(run_arguments(sound, folder)) == 0
    return folder


def arguments(sound: Mini, runs: Path, records: Path) -> list[str]:
    return ["archive", str(records), f"--protocol={sound.protocol}", "--preset=mini", f"--runs={runs}"]


def test_records_give_the_leaderboard_of_their_runs(
    runs: Path, sound: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tmp_path / "records"
    assert call(arguments(sound, runs, records)) == 0
    assert call(arguments(sound, runs, records)) == 0  # again: replaced
    capsys.readouterr()
    tables = []
    for folder in (runs, records):
        assert call(["leaderboard", f"--protocol={sound.protocol}", f"--runs={folder}", "--format=json"]) == 0
        (table,) = json.loads(capsys.readouterr().out)["tables"]
        assert [row["method"] for row in table["rows"]] == ["erm"]
        tables.append(table["rows"])
    assert tables[0] == tables[1]


def test_record_holds_no_weights_and_names_no_folder_of_the_machine(runs: Path, sound: Mini, tmp_path: Path) -> None:
    assert call(arguments(sound, runs, tmp_path)) == 0
    found = list(iter_runs(tmp_path))
    assert found
    assert all(run.is_record for run in found)
    texts = [path for path in tmp_path.rglob("*") if path.suffix in (".json", ".jsonl")]
    assert len(texts) > 8
    for path in texts:
        assert str(runs.parent) not in path.read_text()
        assert str(sound.data) not in path.read_text()
    assert not list(tmp_path.rglob(".record-*"))


def test_shared_stages_come_along(runs: Path) -> None:
    everything = list(iter_runs(runs))
    own = [run for run in everything if run.spec.method.name == "erm"]
    needed = {stage.folder.rpartition("/")[0] for run in own for stage in run.spec.stages.values()}
    assert {run.relative for run in with_shared(own, everything)} == needed


def test_mistakes_are_one_line(runs: Path, sound: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = arguments(sound, tmp_path / "none", tmp_path)
    assert "no finished run of protocol" in mistake(capsys, words)
    (run,) = [run for run in iter_runs(runs) if run.spec.method.name == "erm"]
    (tmp_path / "file").write_text("")
    with pytest.raises(DgbenchError, match="file"):
        archive(run, tmp_path / "file")


def test_unfinished_run_becomes_no_record(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    (run,) = [run for run in iter_runs(tmp_path / "runs") if run.spec.method.name == "erm"]
    write_status(run.evaluation, "running")
    with pytest.raises(DgbenchError, match="evaluation is running — only finished runs"):
        archive(run, tmp_path / "records")
    assert not list(tmp_path.glob("records/**/*.json"))


def test_a_spoiled_command_line_is_no_way_around_the_names_of_folders(runs: Path, tmp_path: Path) -> None:
    (run,) = [run for run in iter_runs(runs) if run.spec.method.name == "erm"]
    spoiled = replace(run, spec=run.spec.model_copy(update={"command": "dgbench run --runs '/home/me"}))
    with pytest.raises(DgbenchError, match=r"cannot be taken apart \(No closing quotation\): dgbench run"):
        archive(spoiled, tmp_path / "records")
    assert not list(tmp_path.glob("records/**/*.json"))
    cut = replace(run, spec=run.spec.model_copy(update={"command": "dgbench run --runs"}))
    assert json.loads((archive(cut, tmp_path / "records") / "spec.json").read_text())["command"] == "dgbench run"


def test_committed_table_is_made_of_the_committed_records(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(__file__).parent.parent / "leaderboards"
    assert call(["leaderboard", f"--runs={folder}", "--preset=bench", "--format=md"]) == 0
    assert capsys.readouterr().out == (folder / "phantom-bench.md").read_text(encoding="utf-8")
