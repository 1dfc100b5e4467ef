"""What `dgbench verify` refuses: records that were changed or forged, and tables of other records."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cli_calls import mistake
from record_changes import (
    COMMITTED,
    change,
    change_rows,
    copy_records,
    log_rows,
    official,
    raise_dsc,
    record_of,
    rehash,
    rekeyed,
    resealed,
    write_log,
)

from dgbench.cli import call
from dgbench.store.folder import write_status
from dgbench.store.manifest import MANIFEST


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return copy_records(tmp_path)


def set_official(**values: float) -> Callable[[Path], None]:
    """The official rows of a case, of both checkpoints, hold these values."""

    def edit(rows: pd.DataFrame) -> pd.DataFrame:
        rows.loc[official(rows), list(values)] = list(values.values())
        return rows

    return lambda record: change_rows(record, edit)


def set_dsc(value: float, checkpoints: tuple[str, ...] = ("source-val", "last-step")) -> Callable[[Path], None]:
    def edit(rows: pd.DataFrame) -> pd.DataFrame:
        rows.loc[official(rows) & rows["checkpoint"].isin(checkpoints), "dsc"] = value
        return rows

    return lambda record: change_rows(record, edit)


def change_log(name: str, **values: Any) -> Callable[[Path], None]:
    """The first row of a log of the last stage holds these values."""

    def edit(record: Path) -> None:
        first, *others = log_rows(record / "tumor-fine" / name)
        write_log(record / "tumor-fine" / name, [first | values, *others])

    return edit


def borrow_steps(record: Path) -> None:
    """Two rows of times whose numbers of steps come to the same sum."""
    path = record / "tumor-fine" / "times.jsonl"
    first, second, *others = log_rows(path)
    write_log(path, [first | {"steps": -20}, second | {"steps": 60}, *others])


def equal_but_apart(rows: pd.DataFrame) -> pd.DataFrame:
    """A case without any error whose centers are apart."""
    found = official(rows)
    rows.loc[found, "volume_prediction_mm3"] = rows.loc[found, "volume_reference_mm3"]
    rows.loc[found, ["dsc", "nsd"]] = 1.0
    rows.loc[found, ["assd", "assd_two_means", "hd95", "hd95_max"]] = 0.0
    return rows


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
    "another program": (
        lambda record: change(record / "spec.json", lambda spec: spec | {"command": "rm -rf ~"}),
        "command is no plain `dgbench run",
    ),
    "a second program": (
        lambda record: change(record / "spec.json", lambda spec: spec | {"command": f"{spec['command']} && true"}),
        "command is no plain `dgbench run",
    ),
    "another method": (
        lambda record: change(
            record / "spec.json", lambda spec: spec | {"command": spec["command"].replace("--method ", "--method x")}
        ),
        "command has --method x",
    ),
    "another seed": (
        lambda record: change(record / "spec.json", lambda spec: spec | {"command": f"{spec['command']} --seed 7"}),
        "command has --seed 7, the run is of 0",
    ),
    "another seed with a colon": (
        lambda record: change(record / "spec.json", lambda spec: spec | {"command": f"{spec['command']} --seed 7:7"}),
        "command has --seed 7:7, the run is of 0",
    ),
    "weights": (
        lambda record: (record / "tumor-fine" / "best.safetensors").write_bytes(b"x"),
        "tumor-fine/best.safetensors: is no part of a record",
    ),
    "times": (
        lambda record: (record / "evaluation" / "times.parquet").write_bytes(b"x"),
        "its cost cannot be read (Parquet file size is 1 bytes",
    ),
    "a time below zero": (change_log("times.jsonl", seconds=-5), "times.jsonl: 20 steps in -5 s"),
    "steps below zero": (borrow_steps, "times.jsonl: -20 steps in "),
    "parameters": (
        lambda record: change(
            record / "cost.json", lambda cost: cost | {"table-vi": cost["table-vi"] | {"params": -1}}
        ),
        "its cost cannot be read (a number that is negative or not finite)",
    ),
    "a DSC raised a little": (lambda record: change_rows(record, raise_dsc), "is no ratio of whole voxels"),
    "a DSC raised too far": (set_dsc(0.995), "case MSD/MSD_0001, F-Seg, last-step, threshold 0.5: dsc is larger than"),
    "a DSC above one": (set_dsc(1.2), "dsc is outside of 0 to 1"),
    "an NSD of its own": (set_official(nsd=1.0), "nsd and hd95 contradict each other at 3 mm"),
    "an ASSD of its own": (set_official(assd=0.02), "assd is smaller than nsd and hd95 allow"),
    "a centroid of its own": (
        lambda record: change_rows(record, equal_but_apart),
        "dsc and the surface distances contradict each other",
    ),
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
    "a validation in words": (
        change_log("validation.jsonl", dsc="x"),
        "tumor-fine: a field is missing or of another kind",
    ),
    "a number in words": (
        change_log("validation.jsonl", dsc="0.5"),
        "tumor-fine: a field is missing or of another kind",
    ),
    "a validation that overflows": (
        change_log("validation.jsonl", dsc=10**400),
        "tumor-fine: a field is missing or of another kind (int too large",
    ),
    "a validation of another center": (
        change_log("validation.jsonl", center="MSD"),
        "validation.jsonl: center of RENJI/RENJI_0006 at step 1200 is MSD",
    ),
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
        "tumor-fine/spec.json: key is c4a2ba91, what follows from its other fields gives",
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
    "an evaluation of no content": (
        lambda record: change(
            record / "evaluation" / "spec.json", lambda spec: rekeyed(spec | {"content": None, "version": 4})
        ),
        "evaluation/spec.json: version or content is of another kind",
    ),
    "an evaluation of no version": (
        lambda record: change(record / "evaluation" / "spec.json", lambda spec: rekeyed(spec | {"version": "x"})),
        "evaluation/spec.json: version or content is of another kind",
    ),
    "an unfinished evaluation": (
        lambda record: write_status(record / "evaluation", "running"),
        "running — only finished",
    ),
}


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


def half_the_draws(stage: dict[str, Any]) -> dict[str, Any]:
    stage["protocol"]["preset"]["stages"]["tumor-fine"]["draws"] = 4800
    return stage | {"steps": 2400}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (half_the_draws, "protocol.preset.stages.tumor-fine.draws: 9600 → 4800"),
        (lambda stage: stage | {"data": "0" * 64}, "data is 00000000, the phantom of the run gives"),
    ],
    ids=["budget", "data"],
)
def test_a_training_is_of_the_protocol_though_every_key_fits(
    records: Path, capsys: pytest.CaptureFixture[str], edit: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    """Half the draws, or another phantom, with all keys, names and hashes made anew: the keys agree, the protocol does not."""
    change(record_of(records) / "tumor-fine" / "spec.json", edit)
    resealed(record_of(records))
    assert message in mistake(capsys, ["verify", str(records)])


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


def test_what_is_no_part_of_a_record_is_named(records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table of a preset without records, or a file in a folder of the protocol, could be taken for something that was verified."""
    (records / "phantom-demo.md").write_text("| method | DSC |\n", encoding="utf-8")
    (records / "phantom" / "MSD" / "notes.txt").write_text("read me", encoding="utf-8")
    assert call(["verify", str(records)]) == 0
    found = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not looked at")]
    assert found == [
        f"not looked at: {name}, part of no record" for name in ("phantom/MSD/notes.txt", "phantom-demo.md")
    ]


def test_nothing_to_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no record" in mistake(capsys, ["verify", str(tmp_path)])
    assert "no such folder" in mistake(capsys, ["verify", str(tmp_path / "none")])
