"""Records of runs: what is kept, what a leaderboard makes of them, nothing of the machine."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_calls import mistake, run_arguments
from record_changes import COMMITTED, change, copy_records, record_of, rehash
from training_fixtures import Mini

from dgbench.cli import call
from dgbench.errors import DgbenchError
from dgbench.evaluation.imported import import_predictions
from dgbench.store.folder import iter_runs, write_status
from dgbench.store.record import with_shared, write_record


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, sound: Mini) -> Path:
    folder = tmp_path_factory.mktemp("here") / "runs"
    assert call(run_arguments(sound, folder)) == 0
    return folder


def submit(runs: Path, records: Path, sound: Mini) -> list[str]:
    return ["submit", str(runs), f"--to={records}", "--preset=mini", f"--protocol={sound.protocol}"]


def only(runs: Path) -> Any:
    (run,) = [run for run in iter_runs(runs) if run.spec.method.name == "erm"]
    return run


class TestSubmit:
    def test_records_give_the_leaderboard_of_their_runs(
        self, runs: Path, sound: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        records = tmp_path / "records"
        assert call(submit(runs, records, sound)) == 0
        assert call(submit(runs, records, sound)) == 0  # again: replaced
        capsys.readouterr()
        tables = []
        for folder in (runs, records):
            assert call(["leaderboard", f"--protocol={sound.protocol}", f"--runs={folder}", "--format=json"]) == 0
            (table,) = json.loads(capsys.readouterr().out)["tables"]
            assert [row["method"] for row in table["rows"]] == ["erm"]
            tables.append(table["rows"])
        assert [[row.pop("record") for row in rows] for rows in tables] == [[None], ["experimental"]]
        assert tables[0] == tables[1]

    def test_a_fresh_run_is_verified(
        self, runs: Path, sound: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert call(submit(only(runs).path, tmp_path, sound)) == 0
        capsys.readouterr()
        assert call(["verify", str(tmp_path), f"--protocol={sound.protocol}"]) == 0
        out = capsys.readouterr().out
        assert "records verified: 1 experimental" in out
        assert "hole: erm, held-out ALPHA, seed 0: not run" in out
        assert "table mini-mini.md is not there" in out
        assert "unknown protocol 'mini'" in mistake(capsys, ["verify", str(tmp_path)])
        assert "unknown protocol 'mini'" in mistake(capsys, submit(runs, tmp_path, sound)[:-1])

    def test_record_holds_no_weights_and_names_no_folder_of_the_machine(
        self, runs: Path, sound: Mini, tmp_path: Path
    ) -> None:
        assert call(submit(runs, tmp_path, sound)) == 0
        found = list(iter_runs(tmp_path))
        assert found
        assert all(run.is_record for run in found)
        texts = [path for path in tmp_path.rglob("*") if path.suffix in (".json", ".jsonl")]
        assert len(texts) > 8
        for path in texts:
            assert str(runs.parent) not in path.read_text()
            assert str(sound.data) not in path.read_text()
        assert not list(tmp_path.glob(".*"))

    def test_shared_stages_come_along(self, tmp_path: Path) -> None:
        everything = list(iter_runs(COMMITTED))
        own = [
            run for run in everything if (run.spec.method.name, run.spec.heldout, run.spec.seed) == ("erm", "MSD", 0)
        ]
        needed = {stage.folder.rpartition("/")[0] for run in own for stage in run.spec.stages.values()}
        assert len(needed) == 2
        assert {run.relative for run in with_shared(own, everything)} == needed
        assert call(["submit", str(own[0].path), f"--to={tmp_path}"]) == 0
        assert {run.relative for run in iter_runs(tmp_path)} == needed

    def test_mistakes_are_one_line(
        self, runs: Path, sound: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "no such folder" in mistake(capsys, submit(tmp_path / "none", tmp_path, sound))
        assert call(["submit", str(tmp_path)]) == 2
        assert "no finished run of a ranked preset there" in capsys.readouterr().err
        path = str(only(runs).path)
        assert "preset mini is not ranked — add --preset mini" in mistake(capsys, ["submit", path])
        assert "preset mini, not bench" in mistake(capsys, ["submit", path, "--preset=bench"])
        (tmp_path / "file").write_text("")
        with pytest.raises(DgbenchError, match="file"):
            write_record(only(runs), tmp_path / "file")

    def test_runs_in_the_place_of_records_are_kept(
        self, runs: Path, sound: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The same runs, or others of the same keys, with their weights."""
        copy = tmp_path / "runs"
        shutil.copytree(runs, copy)
        before = {path.relative_to(copy) for path in copy.rglob("*")}
        for source in (copy, runs):
            line = mistake(capsys, submit(source, copy, sound))
            assert "is there and is no record — name another folder of records with --to" in line
            with pytest.raises(DgbenchError, match="is no record"):
                write_record(only(source), copy)
        assert {path.relative_to(copy) for path in copy.rglob("*")} == before
        assert any(path.suffix == ".safetensors" for path in before)

    def test_a_run_is_found_from_the_folder_beside_it(
        self, runs: Path, sound: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = only(runs).path
        for word in (".", "..", f"../{path.name}", "../../erm", "../../.."):
            monkeypatch.chdir(path)
            records = tmp_path / word.replace("/", "-").replace(".", "x")
            assert call(submit(Path(word), records, sound)) == 0
            assert [run.relative for run in iter_runs(records) if run.spec.method.name == "erm"] == [
                only(runs).relative
            ]

    def test_a_folder_that_has_too_few_above_it_holds_no_run(
        self,
        runs: Path,
        sound: Mini,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        path = only(runs).path
        deep = len(path.parents)
        monkeypatch.setattr("dgbench.verification.collect.DEPTH", deep + 1)
        line = mistake(capsys, submit(path, tmp_path, sound))
        assert line.startswith(f"{path}: a run lies {deep + 1} folders below its runs folder")
        assert "no finished run of preset mini there" in mistake(capsys, submit(path.parent, tmp_path, sound))

    def test_what_verification_refuses_becomes_no_record(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A run on data of one's own under the name of a phantom preset, among others; the folder of records stays as it is."""
        copy_records(tmp_path / "runs")
        run = record_of(tmp_path / "runs")
        change(run / "spec.json", lambda spec: spec | {"data": {"centers": {"RENJI": "0" * 64}}})
        place = run.relative_to(tmp_path / "runs")
        argv = ["submit", str(tmp_path / "runs"), f"--to={tmp_path / 'records'}"]
        line = mistake(capsys, argv)
        assert line == (
            f"{place}/spec.json: data.centers names RENJI, a record of preset bench is of its phantom — run it without --data"
        )
        (second,) = (tmp_path / "runs" / "phantom" / "MSD" / "randconv").iterdir()
        change(second / "spec.json", lambda spec: spec | {"command": f"{spec['command']} --set p=0.1"})
        assert call(argv) == 2
        out, err = capsys.readouterr()
        assert [text.partition("/spec.json: ")[0] for text in out.splitlines()] == [
            f"refused: {place}",
            f"refused: {second.relative_to(tmp_path / 'runs')}",
        ]
        assert "2 of 3 records refused; first: phantom/MSD/erm/" in err
        assert not (tmp_path / "records").exists()

    def test_half_a_run_becomes_no_record(self, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        shutil.copytree(runs, tmp_path / "runs")
        run = only(tmp_path / "runs")
        (run.evaluation / "times.parquet").unlink()
        (record,) = COMMITTED.glob("phantom/MSD/erm/seed0-*")
        alone = tmp_path / "alone" / record.relative_to(COMMITTED)
        shutil.copytree(record, alone)
        for folder, preset, lost in (
            (run.path, "mini", "evaluation/times.parquet"),
            (alone, "bench", "pancreas-coarse/spec.json"),
        ):
            line = mistake(capsys, ["submit", str(folder), f"--to={tmp_path / 'records'}", f"--preset={preset}"])
            assert f"{lost}: no such file — only whole runs become records" in line
        assert not (tmp_path / "records").exists()

    def test_unfinished_run_becomes_no_record(
        self, runs: Path, sound: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.copytree(runs, tmp_path / "runs")
        run = only(tmp_path / "runs")
        write_status(run.evaluation, "running")
        with pytest.raises(DgbenchError, match="evaluation is running — only finished runs"):
            write_record(run, tmp_path / "records")
        assert "evaluation is running" in mistake(capsys, submit(run.path, tmp_path / "records", sound))
        assert call(submit(tmp_path / "runs", tmp_path / "records", sound)) == 2
        assert "skipped mini/GAMMA/erm" in capsys.readouterr().err
        assert not list(tmp_path.glob("records/**/*.json"))

    def test_a_spoiled_command_line_is_no_way_around_the_names_of_folders(self, runs: Path, tmp_path: Path) -> None:
        run = only(runs)
        spoiled = replace(run, spec=run.spec.model_copy(update={"command": "dgbench run --runs '/home/me"}))
        with pytest.raises(DgbenchError, match=r"cannot be taken apart \(No closing quotation\): dgbench run"):
            write_record(spoiled, tmp_path / "records")
        assert not list(tmp_path.glob("records/**/*.json"))
        cut = replace(run, spec=run.spec.model_copy(update={"command": "dgbench run --runs"}))
        record = write_record(cut, tmp_path / "records")
        assert json.loads((record / "spec.json").read_text())["command"] == "dgbench run"

    def test_a_prediction_set_is_submitted_and_verified(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        reference = np.zeros((8, 12, 12), bool)
        reference[2:6, 4:8, 4:8] = True
        cases = [("MSD/a", np.roll(reference, 1, axis=1), reference, (2.0, 1.0, 1.0))]
        run = import_predictions(
            cases, name="closed", heldout="MSD", protocol="phantom", preset="bench", runs=tmp_path / "runs"
        )
        assert call(["submit", str(run.path), f"--to={tmp_path / 'records'}"]) == 0
        capsys.readouterr()
        assert call(["verify", str(tmp_path / "records")]) == 0
        assert "1 records verified: 1 experimental" in capsys.readouterr().out
        record = tmp_path / "records" / run.relative
        change(
            record / "spec.json",
            lambda spec: spec | {"seed": 1, "command": spec["command"].replace("--seed 0", "--seed 1")},
        )
        moved = record.with_name(record.name.replace("seed0", "seed1"))
        record.rename(moved)
        rehash(moved)
        assert "what follows from its evaluation gives" in mistake(capsys, ["verify", str(tmp_path / "records")])

    def test_a_hollow_mask_with_the_surface_of_the_reference_is_verified(self, tmp_path: Path) -> None:
        """Its DSC is below 1, and no surface voxel is away from one of the other mask."""
        reference = np.zeros((9, 9, 9), bool)
        reference[3:6, 3:6, 3:6] = True
        hollow = reference.copy()
        hollow[4, 4, 4] = False
        run = import_predictions(
            [("MSD/a", hollow, reference, (1.0, 1.0, 1.0))],
            name="closed",
            heldout="MSD",
            protocol="phantom",
            preset="bench",
            runs=tmp_path / "runs",
        )
        (row,) = run.cases().to_dict("records")
        assert (row["dsc"] < 1, row["assd"], row["nsd"], row["hd95"]) == (True, 0, 1, 0)
        assert call(["submit", str(run.path), f"--to={tmp_path / 'records'}"]) == 0
        assert call(["verify", str(tmp_path / "records")]) == 0

    @pytest.mark.parametrize("short", ["aaa", "zzz"])
    def test_a_record_with_fewer_cases_is_refused_wherever_it_stands(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], short: str
    ) -> None:
        reference = np.zeros((8, 12, 12), bool)
        reference[2:6, 4:8, 4:8] = True
        cases = [(f"MSD/{case}", np.roll(reference, 1, axis=1), reference, (2.0, 1.0, 1.0)) for case in "abc"]
        for name, own in ((short, cases[:2]), ("middle", cases)):
            import_predictions(
                own,
                name=name,
                heldout="MSD",
                protocol="phantom",
                preset="bench",
                runs=tmp_path / "runs",
                evaluated=dict.fromkeys(("fingerprint", "content"), "0" * 64),
            )
        submit = ["submit", str(tmp_path / "runs"), f"--to={tmp_path / 'records'}"]
        assert mistake(capsys, submit).startswith(f"phantom/MSD/{short}/seed0-")
        for run in iter_runs(tmp_path / "runs"):
            write_record(run, tmp_path / "records")
        text = mistake(capsys, ["verify", str(tmp_path / "records")])
        assert f"MSD/{short}/seed0-" in text.partition(": ")[0]
        assert "2 held-out cases, without MSD/c of phantom/MSD/middle/" in text


def test_committed_table_is_made_of_the_committed_records(capsys: pytest.CaptureFixture[str]) -> None:
    """Of all seeds, or of the first ones alone where it says so."""
    committed = (COMMITTED / "phantom-bench.md").read_text(encoding="utf-8")
    only = re.findall(r"--seeds \d+", committed)[:1]
    command = f"leaderboard --runs={COMMITTED} --preset=bench --format=md {' '.join(only)}"
    assert call(command.split()) == 0
    assert capsys.readouterr().out == committed


def test_committed_records_are_verified(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["verify", str(COMMITTED)]) == 0
    out = capsys.readouterr().out
    assert "records verified" in out
    assert "table phantom-bench.md is that of the records" in out
