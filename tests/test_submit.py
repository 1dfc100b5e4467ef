"""Records of runs: what is kept, what a leaderboard makes of them, nothing of the machine; and tampered ones are refused."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cli_calls import mistake, run_arguments
from training_fixtures import Mini

from dgbench.atomic import read_json, write_json
from dgbench.cli import call
from dgbench.errors import DgbenchError
from dgbench.evaluation.imported import import_predictions
from dgbench.store.folder import RunSpec, iter_runs, write_status
from dgbench.store.keys import key_of
from dgbench.store.manifest import MANIFEST, REPRODUCTIONS, Manifest, Tier
from dgbench.store.record import with_shared, write_record
from dgbench.store.tiers import agreement, supported_tier

COMMITTED = Path(__file__).parent.parent / "leaderboards"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, sound: Mini) -> Path:
    folder = tmp_path_factory.mktemp("here") / "runs"
    assert call(run_arguments(sound, folder)) == 0
    return folder


def submit(runs: Path, records: Path) -> list[str]:
    return ["submit", str(runs), f"--to={records}", "--preset=mini"]


def only(runs: Path) -> Any:
    (run,) = [run for run in iter_runs(runs) if run.spec.method.name == "erm"]
    return run


class TestSubmit:
    def test_records_give_the_leaderboard_of_their_runs(
        self, runs: Path, sound: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        records = tmp_path / "records"
        assert call(submit(runs, records)) == 0
        assert call(submit(runs, records)) == 0  # again: replaced
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
        assert call(submit(only(runs).path, tmp_path)) == 0
        capsys.readouterr()
        assert call(["verify", str(tmp_path), f"--protocol={sound.protocol}"]) == 0
        out = capsys.readouterr().out
        assert "records verified: 1 experimental" in out
        assert "hole: erm, held-out ALPHA, seed 0: not run" in out
        assert "table mini-mini.md is not there" in out
        assert "unknown protocol 'mini'" in mistake(capsys, ["verify", str(tmp_path)])

    def test_record_holds_no_weights_and_names_no_folder_of_the_machine(
        self, runs: Path, sound: Mini, tmp_path: Path
    ) -> None:
        assert call(submit(runs, tmp_path)) == 0
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
        own = [run for run in everything if run.spec.method.name == "erm" and run.spec.heldout == "MSD"]
        needed = {stage.folder.rpartition("/")[0] for run in own for stage in run.spec.stages.values()}
        assert len(needed) == 2
        assert {run.relative for run in with_shared(own, everything)} == needed
        assert call(["submit", str(own[0].path), f"--to={tmp_path}"]) == 0
        assert {run.relative for run in iter_runs(tmp_path)} == needed

    def test_mistakes_are_one_line(self, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "no such folder" in mistake(capsys, submit(tmp_path / "none", tmp_path))
        assert call(["submit", str(tmp_path)]) == 2
        assert "no finished run of a ranked preset there" in capsys.readouterr().err
        path = str(only(runs).path)
        assert "preset mini is not ranked — add --preset mini" in mistake(capsys, ["submit", path])
        assert "preset mini, not bench" in mistake(capsys, ["submit", path, "--preset=bench"])
        (tmp_path / "file").write_text("")
        with pytest.raises(DgbenchError, match="file"):
            write_record(only(runs), tmp_path / "file")

    def test_unfinished_run_becomes_no_record(
        self, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.copytree(runs, tmp_path / "runs")
        run = only(tmp_path / "runs")
        write_status(run.evaluation, "running")
        with pytest.raises(DgbenchError, match="evaluation is running — only finished runs"):
            write_record(run, tmp_path / "records")
        assert "evaluation is running" in mistake(capsys, submit(run.path, tmp_path / "records"))
        assert call(submit(tmp_path / "runs", tmp_path / "records")) == 2
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
        change(record / "spec.json", lambda spec: spec | {"seed": 1})
        moved = record.with_name(record.name.replace("seed0", "seed1"))
        record.rename(moved)
        rehash(moved)
        assert "what follows from its evaluation gives" in mistake(capsys, ["verify", str(tmp_path / "records")])


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


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """The committed records of two methods at one center, with their shared stages."""
    for method in ("_pancreas", "erm", "randconv"):
        place = Path("phantom") / "MSD" / method
        shutil.copytree(COMMITTED / place, tmp_path / place)
    return tmp_path


def record_of(records: Path, method: str = "erm") -> Path:
    (folder,) = (records / "phantom" / "MSD" / method).iterdir()
    return folder


def rehash(record: Path, tier: Tier = "experimental") -> None:
    Manifest.of(record, tier).write(record)


def change(path: Path, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    write_json(path, edit(read_json(path)))


def change_rows(record: Path, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    path = record / "evaluation" / "cases.parquet"
    edit(pd.read_parquet(path)).to_parquet(path, index=False)


def official(rows: pd.DataFrame, case: str = "MSD/MSD_0001") -> Any:
    return (rows["case"] == case) & (rows["setting"] == "F-Seg") & (rows["threshold"] == 0.5)


def set_dsc(value: float, checkpoints: tuple[str, ...] = ("source-val", "last-step")) -> Callable[[Path], None]:
    def edit(rows: pd.DataFrame) -> pd.DataFrame:
        rows.loc[official(rows) & rows["checkpoint"].isin(checkpoints), "dsc"] = value
        return rows

    return lambda record: change_rows(record, edit)


def raise_dsc(rows: pd.DataFrame) -> pd.DataFrame:
    rows.loc[official(rows), "dsc"] *= 1.01
    return rows


def log_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_log(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def change_validation(record: Path) -> None:
    path = record / "tumor-fine" / "validation.jsonl"
    rows = log_rows(path)
    rows[-1]["dsc"] = 1.0
    write_log(path, rows)


TAMPERED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a DSC raised": (lambda record: change_rows(record, raise_dsc), "the file was changed after it was submitted"),
    "a field changed": (
        lambda record: change(record / "spec.json", lambda spec: spec | {"command": "dgbench run"}),
        "spec.json: sha256",
    ),
    "a file removed": (
        lambda record: (record / "cost.json").unlink(),
        "cost.json: missing, though record.json lists it",
    ),
    "a file added": (lambda record: (record / "notes.txt").write_text("x"), "notes.txt: not listed in record.json"),
    "a list changed": (
        lambda record: change(record / MANIFEST, lambda manifest: manifest | {"sha256": "0" * 64}),
        "it says 00000000",
    ),
    "no list": (lambda record: (record / MANIFEST).unlink(), "write the record with `dgbench submit`"),
    "an unknown tier": (
        lambda record: change(record / MANIFEST, lambda manifest: manifest | {"tier": "gold"}),
        "tier: ",
    ),
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_a_changed_record_is_refused(records: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    tamper, message = TAMPERED[kind]
    tamper(record_of(records))
    text = mistake(capsys, ["verify", str(records)])
    assert message in text
    assert record_of(records).name in text


FORGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a DSC raised a little": (lambda record: change_rows(record, raise_dsc), "is no ratio of whole voxels"),
    "a DSC raised too far": (set_dsc(0.995), "case MSD/MSD_0001, F-Seg, last-step, threshold 0.5: dsc is larger than"),
    "a DSC above one": (set_dsc(1.2), "dsc is outside of 0 to 1"),
    "a DSC gone": (set_dsc(float("nan")), "dsc is missing"),
    "an official DSC raised": (set_dsc(0.5, ("source-val",)), "differs between source-val and last-step"),
    "a row removed": (
        lambda record: change_rows(record, lambda rows: rows[~official(rows)]),
        "case MSD/MSD_0001, F-Seg, last-step, threshold 0.5: no row (2 of 6408 are missing)",
    ),
    "a row twice": (
        lambda record: change_rows(record, lambda rows: pd.concat([rows, rows[official(rows)]])),
        "more than one row",
    ),
    "a case left out": (
        lambda record: change_rows(record, lambda rows: rows[rows["case"] != "MSD/MSD_0001"]),
        "66 cases of MSD, the phantom has 67",
    ),
    "another reference": (
        lambda record: change_rows(
            record, lambda rows: rows.assign(n_lesions_reference=rows["n_lesions_reference"] + 1)
        ),
        "its reference is not that in",
    ),
    "a column gone": (lambda record: change_rows(record, lambda rows: rows.drop(columns="nsd")), "columns differ"),
    "a better selection": (
        lambda record: change(record / "tumor-fine" / "result.json", lambda result: result | {"best_dsc": 0.9}),
        "best_dsc is 0.900000, validation.jsonl gives 0.770016",
    ),
    "another step": (
        lambda record: change(record / "tumor-fine" / "result.json", lambda result: result | {"best_step": 1200}),
        "best_step is 1200, the best of validation.jsonl gives 4800",
    ),
    "a validation changed": (change_validation, "validation.jsonl gives"),
    "a validation removed": (
        lambda record: write_log(
            record / "tumor-fine" / "validation.jsonl", log_rows(record / "tumor-fine" / "validation.jsonl")[:-1]
        ),
        "no validation of RMYY/RMYY_0066 at step 4800",
    ),
    "more draws": (
        lambda record: change(record / "tumor-fine" / "result.json", lambda result: result | {"draws": 19200}),
        "draws is 19200, the budget of preset bench gives 9600",
    ),
    "a log cut short": (
        lambda record: write_log(
            record / "tumor-fine" / "times.jsonl", log_rows(record / "tumor-fine" / "times.jsonl")[:-1]
        ),
        "steps is 4780, the budget of preset bench gives 4800",
    ),
    "a training changed": (
        lambda record: change(record / "tumor-fine" / "spec.json", lambda spec: spec | {"seed": 7}),
        "tumor-fine/spec.json: key is 29c98762, what follows from its other fields gives",
    ),
    "a stage gone": (lambda record: shutil.rmtree(record / "tumor-fine"), "a record is complete"),
    "an unconverged preset": (
        lambda record: change(
            record / "spec.json", lambda spec: spec | {"protocol": spec["protocol"] | {"converged": True}}
        ),
        "protocol.converged: false → true",
    ),
    "another content": (
        lambda record: change(
            record / "spec.json", lambda spec: spec | {"protocol": spec["protocol"] | {"content": "0" * 64}}
        ),
        "differs from protocol phantom: protocol.content",
    ),
    "three times the draws": (
        lambda record: change(
            record / "spec.json", lambda spec: spec | {"method": spec["method"] | {"draws_factor": 3}}
        ),
        "method.draws_factor is 3, method erm gives 1",
    ),
    "another phantom": (
        lambda record: change(record / "spec.json", lambda spec: spec | {"data": {"centers": {"phantom": "0" * 64}}}),
        "data.centers.phantom is 00000000, the phantom of bench gives",
    ),
    "another version": (
        lambda record: change(record / "spec.json", lambda spec: spec | {"dgbench": "9.0.0"}),
        "verify it with the version that made it",
    ),
    "other weights": (
        lambda record: change(
            record / "evaluation" / "spec.json",
            lambda spec: rekeyed(spec | {"train_keys": spec["train_keys"] | {"tumor-fine": "0" * 64}, "version": 4}),
        ),
        "train_keys.tumor-fine",
    ),
    "an unfinished evaluation": (
        lambda record: write_status(record / "evaluation", "running"),
        "running — only finished",
    ),
}


def rekeyed(spec: dict[str, Any]) -> dict[str, Any]:
    """A stage's or evaluation's spec with the key that follows from it."""
    return spec | {"key": key_of({field: value for field, value in spec.items() if field != "key"})}


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_record_with_new_hashes_is_refused(
    records: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    tamper, message = FORGED[kind]
    tamper(record_of(records))
    rehash(record_of(records))
    if kind == "another reference":  # of the two that disagree, the later one is named
        assert record_of(records, "randconv").name in (text := mistake(capsys, ["verify", str(records)]))
    else:
        text = mistake(capsys, ["verify", str(records)])
    assert message in text


def test_a_budget_is_the_protocols_though_every_key_fits(records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half the draws, with all keys, names and hashes made anew: the keys agree, the protocol does not."""
    record = record_of(records)
    spec = read_json(record / "spec.json")
    stage = read_json(record / "tumor-fine" / "spec.json")
    stage["protocol"]["preset"]["stages"]["tumor-fine"]["draws"] = 4800
    stage = rekeyed(stage | {"steps": 2400})
    write_json(record / "tumor-fine" / "spec.json", stage)
    spec["stages"]["tumor-fine"]["key"] = stage["key"]
    keys = {name: link["key"] for name, link in spec["stages"].items()}
    parts = {"stages": ("tumor-coarse", "tumor-fine"), "shared": ("pancreas-coarse", "pancreas-fine")}
    preset = read_json(record / "evaluation" / "spec.json")["how"]
    judged = {name: preset[name] for name in ("tta", "thresholds", "checkpoints")}
    key = key_of(
        {"evaluation": judged, **{part: {name: keys[name] for name in names} for part, names in parts.items()}}
    )
    folder = record.with_name(f"seed0-{key[:8]}")
    text = json.dumps(spec).replace(record.name, folder.name)
    write_json(record / "spec.json", json.loads(text) | {"key": key})
    record.rename(folder)
    rehash(folder)
    assert "protocol.preset.stages.tumor-fine.draws: 9600 → 4800" in mistake(capsys, ["verify", str(records)])


def test_a_lost_shared_record_is_a_hole_inside(records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(records / "phantom" / "MSD" / "_pancreas")
    assert call(["verify", str(records)]) == 2
    out, err = capsys.readouterr()
    assert out.count("refused: ") == 2
    assert "2 of 2 records refused; first: " in err
    assert "pancreas-coarse/spec.json: no such file" in err


def test_holes_between_records_are_listed(records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["verify", str(records)]) == 0
    out = capsys.readouterr().out
    assert "3 records verified: 3 experimental" in out
    assert out.count("hole: ") == 4
    assert "hole: erm, held-out RENJI, seed 0: not run — dgbench run --method erm" in out
    shutil.rmtree(records / "phantom" / "MSD" / "randconv")
    assert call(["verify", str(records)]) == 0
    assert capsys.readouterr().out.count("hole: ") == 2


def test_a_table_of_other_records_is_refused(records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copyfile(COMMITTED / "phantom-bench.md", records / "phantom-bench.md")
    text = mistake(capsys, ["verify", str(records)])
    assert "phantom-bench.md: is not the table of these records — dgbench leaderboard --runs" in text


def test_nothing_to_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no record" in mistake(capsys, ["verify", str(tmp_path)])
    assert "no such folder" in mistake(capsys, ["verify", str(tmp_path / "none")])


class TestTiers:
    def elsewhere(self, records: Path, folder: Path, processor: str = "another processor") -> Path:
        """The same run made on another machine, which came to the same rows."""
        shutil.copytree(records / "phantom", folder / "phantom")
        run = record_of(folder)
        change(run / "env.json", lambda env: env | {"processor": processor})
        return run

    def test_a_second_record_from_elsewhere_raises_the_tier(
        self, records: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = self.elsewhere(records, tmp_path_factory.mktemp("elsewhere"))
        before = Manifest.read(record_of(records))
        assert call(["submit", str(other), f"--to={records}"]) == 0
        assert "  verified\n" in capsys.readouterr().out
        after = Manifest.read(record_of(records))
        assert (before.tier, after.tier) == ("experimental", "verified")
        assert before.files == after.files
        (second,) = (record_of(records) / REPRODUCTIONS).iterdir()
        assert Manifest.read(second).tier == "experimental"
        assert call(["verify", str(records)]) == 0
        assert "2 experimental, 1 verified" in capsys.readouterr().out
        assert call(["submit", str(record_of(records)), f"--to={records}"]) == 0  # again: kept
        assert second.is_dir()
        change(second / "env.json", lambda env: env | {"processor": "AMD EPYC"})
        rehash(second)
        capsys.readouterr()
        assert "made in an environment that the record has already" in mistake(capsys, ["verify", str(records)])

    def test_a_tier_that_nothing_supports_is_refused(self, records: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rehash(record_of(records), "reproduced")
        text = mistake(capsys, ["verify", str(records)])
        assert "tier reproduced, its 0 reproductions support experimental" in text

    def test_a_reproduction_is_checked_as_its_record_is(
        self, records: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = self.elsewhere(records, tmp_path_factory.mktemp("elsewhere"))
        change_rows(other, raise_dsc)
        assert call(["submit", str(other), f"--to={records}"]) == 0
        capsys.readouterr()
        text = mistake(capsys, ["verify", str(records)])
        assert REPRODUCTIONS in text
        assert "is no ratio of whole voxels" in text

    @pytest.mark.parametrize(
        ("other", "tier"),
        [
            ([0.50, 0.60], "verified"),
            ([0.505, 0.595], "verified"),
            ([0.55, 0.55], "reproduced"),
            ([0.52, 0.60], "reproduced"),
            ([0.60, 0.60], "experimental"),
        ],
    )
    def test_agreement(self, other: list[float], tier: Tier) -> None:
        index = pd.MultiIndex.from_tuples([("F-Seg", "MSD/a"), ("F-Seg", "MSD/b")], names=["setting", "case"])
        assert agreement(pd.Series([0.5, 0.6], index), pd.Series(other, index)) == tier
        assert agreement(pd.Series([0.5, 0.6], index), pd.Series([0.5], index[:1])) == "experimental"

    def test_without_an_environment_nothing_is_supported(self, records: Path) -> None:
        assert supported_tier(record_of(records)) == "experimental"
        assert RunSpec.read(record_of(records)).method.imported is False
