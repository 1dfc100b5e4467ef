"""What `dgbench verify` refuses of runs that agree with themselves: other splits, commands and places, copies, numbers that cannot be."""

import math
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cli_calls import mistake, run_arguments
from record_changes import (
    COMMITTED,
    change,
    change_rows,
    copy_records,
    log_rows,
    record_of,
    rehash,
    rekeyed,
    resealed,
    write_log,
)
from training_fixtures import Mini

from dgbench.atomic import read_json
from dgbench.cli import call
from dgbench.errors import DgbenchError
from dgbench.protocol import load_protocol
from dgbench.store.folder import RunSpec
from dgbench.training.selection import center_mean
from dgbench.verification.record import Record

OWN = ("tumor-coarse", "tumor-fine")


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return copy_records(tmp_path / "records")


def select_again(stage: Path) -> None:
    """The selection that follows from the validations."""
    rows = log_rows(stage / "validation.jsonl")
    means = {}
    for step in dict.fromkeys(row["step"] for row in rows):
        here = [row for row in rows if row["step"] == step]
        scores = [math.nan if row["dsc"] is None else row["dsc"] for row in here]
        means[step] = center_mean(scores, [row["center"] for row in here])
    best = max(means, key=lambda step: means[step])
    change(stage / "result.json", lambda result: result | {"best_step": best, "best_dsc": means[best]})


def change_stages(edit: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    """A change of what both trainings state."""

    def tamper(record: Path) -> None:
        for name in OWN:
            change(record / name / "spec.json", edit)

    return tamper


def split_with(**values: Any) -> Callable[[Path], None]:
    return change_stages(lambda stage: stage | {"split": stage["split"] | values})


def train_on_all(record: Path) -> None:
    change_stages(
        lambda stage: (
            stage | {"split": stage["split"] | {"train": stage["split"]["train"] + stage["split"]["validation"]}}
        )
    )(record)


def move_validation_cases(record: Path) -> None:
    """Three hard cases are trained on, and nothing of them is left where cases are validated."""
    moved = {"RENJI/RENJI_0032", "RMYY/RMYY_0007", "RMYY/RMYY_0053"}

    def edit(stage: dict[str, Any]) -> dict[str, Any]:
        split = stage["split"]
        kept = [case for case in split["validation"] if case not in moved]
        return stage | {"split": split | {"train": sorted([*split["train"], *moved]), "validation": kept}}

    change_stages(edit)(record)
    for name in OWN:
        log = record / name / "validation.jsonl"
        write_log(log, [row for row in log_rows(log) if row["case"] not in moved])
        select_again(record / name)
    change_rows(record, lambda rows: rows[~rows["case"].isin(moved)])


TRAININGS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "sources": (split_with(sources=["RENJI", "NIH"]), "split.sources is ['RENJI', 'NIH'], protocol phantom gives"),
    "name of the split": (split_with(id="x"), "split.id is x, protocol phantom gives loco-MSD"),
    "validation cases trained on": (
        train_on_all,
        "split.train has RENJI/RENJI_0006 where protocol phantom chooses none",
    ),
    "validation cases moved": (
        move_validation_cases,
        "split.validation has RENJI/RENJI_0033 where protocol phantom chooses RENJI/RENJI_0032",
    ),
    "recipe": (change_stages(lambda stage: stage | {"recipe": 0}), "recipe is 0, this version gives 1"),
    "preparation": (change_stages(lambda stage: stage | {"preparation": 99}), "preparation is 99, this version gives"),
    "turns": (change_stages(lambda stage: stage | {"surplus": "x"}), "surplus is x, this version gives None"),
    "a field": (change_stages(lambda stage: stage | {"target": "x"}), "differs from a training of this version"),
}


METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "version": ({"version": 2}, "method.version is 2, erm has version 1 here — install the one that was run"),
    "config": ({"config": {"a": 1}}, "method.config: a: Extra inputs are not permitted"),
}


@pytest.mark.parametrize("kind", METHODS)
def test_a_row_that_the_method_does_not_have_is_refused(
    records: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """It would be the baseline: of the latest version, or first by name."""
    values, message = METHODS[kind]
    change_stages(lambda stage: stage | {"method": stage["method"] | values})(record_of(records))
    change(record_of(records) / "spec.json", lambda spec: spec | {"method": spec["method"] | values})
    resealed(record_of(records))
    assert message in mistake(capsys, ["verify", str(records)])


@pytest.mark.parametrize("kind", TRAININGS)
def test_a_training_of_its_own_kind_is_refused(records: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    tamper, message = TRAININGS[kind]
    tamper(record_of(records))
    resealed(record_of(records))
    assert message in mistake(capsys, ["verify", str(records)])


def test_a_split_of_patient_data_is_the_protocols_choice_of_its_cases(sound: Mini, tmp_path: Path) -> None:
    """Whose cases are not known, but are the same for every stage."""
    from dgbench.verification.split import check_splits

    assert call(run_arguments(sound, tmp_path)) == 0
    (run,) = tmp_path.glob("mini/GAMMA/erm/seed*")
    record, resolved = Record(tmp_path, run, RunSpec.read(run)), load_protocol(str(sound.protocol)).resolve("mini")
    check_splits(record, resolved)
    (organ, lesion), first = resolved.protocol.stages, read_json(run / "lesion" / "spec.json")["split"]["train"][0]
    change(run / lesion / "spec.json", lambda stage: stage | {"split": stage["split"] | {"train": [first]}})
    with pytest.raises(DgbenchError, match="cases of ALPHA, not those of the other stages"):
        check_splits(record, resolved)
    change(run / organ / "spec.json", lambda stage: stage | {"split": stage["split"] | {"train": []}})
    with pytest.raises(DgbenchError, match=r"organ/spec.json: split\..* where protocol mini chooses"):
        check_splits(record, resolved)


@pytest.mark.parametrize(
    ("centers", "named"), [({"RENJI": "a" * 64, "RMYY": "b" * 64}, "RENJI, RMYY"), ({}, "nothing")]
)
def test_a_run_on_the_phantom_says_so(
    records: Path, capsys: pytest.CaptureFixture[str], centers: dict[str, str], named: str
) -> None:
    record = record_of(records)
    change(record / "spec.json", lambda spec: spec | {"data": {"centers": centers}})
    rehash(record)
    line = mistake(capsys, ["verify", str(records)])
    assert f"data.centers names {named}, a record of preset bench is of its phantom — run it without --data" in line


COMMANDS = {
    "--preset tiny": "command has --preset tiny, the run is of bench",
    "--protocol pancreas-tumor": "command has --protocol pancreas-tumor, the run is of phantom",
    "--seed=7": "command has --seed=7, which does not belong there",
    "--devices 2": "command has --devices 2, the run is of 1",
    "--runs /home/me/secret": "command has --runs, which does not belong there",
    "--data /etc": "command has --data, which does not belong there",
    "--threads": "command has --threads without a value",
    "--config /etc/x": "command has --config /etc/x, but a tuned run has phantom/MSD/randconv/seed0-",
    "--set width=64": "command has --set width: method 'randconv' has no such key",
    "--set identity_probability=0.125": "command has --set identity_probability=0.125, the run is with 0.0",
    "--set preset.width=64": "command has --set preset.width, the run is of the preset as it is",
}


def command_with(record: Path, words: str) -> None:
    change(record / "spec.json", lambda spec: spec | {"command": f"{spec['command']} {words}"})
    rehash(record)


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_of_another_run_is_refused(records: Path, capsys: pytest.CaptureFixture[str], words: str) -> None:
    command_with(record_of(records, "randconv"), words)
    assert COMMANDS[words] in mistake(capsys, ["verify", str(records)])


def test_a_command_may_say_what_is_so(records: Path) -> None:
    record = record_of(records, "randconv")
    config = read_json(record / "spec.json")["method"]["config"]
    settings = [f"identity_probability={config['identity_probability']}", f"bias={str(config['bias']).lower()}"]
    settings += ["preset.workers=2"]
    command_with(
        record, shlex.join(["--protocol", "phantom", *(word for text in settings for word in ("--set", text))])
    )
    assert call(["verify", str(records)]) == 0


def stage_of_its_own(record: Path) -> None:
    change_rows(record, lambda rows: rows.assign(stage="x", n_lesions_reference=rows["n_lesions_reference"] + 1))


def other_files(record: Path) -> None:
    """Other references, of files that nobody else has."""
    change_rows(record, lambda rows: rows.assign(n_lesions_reference=rows["n_lesions_reference"] + 1))
    change(record / "evaluation" / "spec.json", lambda spec: rekeyed(spec | {"content": "0" * 64, "version": 4}))


def counted(empty: bool, false_positives: int) -> Callable[[Path], None]:
    """Cases without any overlap, of an empty prediction or another, have so many false positives."""

    def edit(rows: pd.DataFrame) -> pd.DataFrame:
        found = (rows["dsc"] == 0) & (rows["empty_prediction"].astype(bool) == empty)
        assert found.any()
        rows.loc[found, "n_false_positive"] = false_positives
        return rows

    return lambda record: change_rows(record, edit)


def select_earlier(record: Path) -> None:
    """The last stage selected an earlier step than its last, the first one did not, whose official rows are better than they were."""
    log = record / "tumor-fine" / "validation.jsonl"
    write_log(log, [row | ({"dsc": 0.0} if row["step"] == 4800 else {}) for row in log_rows(log)])
    select_again(record / "tumor-fine")

    def edit(rows: pd.DataFrame) -> pd.DataFrame:
        rows.loc[(rows["setting"] == "C-Seg") & (rows["checkpoint"] == "source-val"), "dsc"] *= 0.99
        return rows

    change_rows(record, edit)


def stopped_clock(record: Path) -> None:
    log = record / "tumor-fine" / "times.jsonl"
    write_log(log, [row | {"seconds": 0} for row in log_rows(log)])


def early_case(record: Path) -> None:
    path = record / "evaluation" / "times.parquet"
    times = pd.read_parquet(path)
    times.loc[0, "seconds"] = -1.0
    times.to_parquet(path, index=False)


def small_network(**values: float) -> Callable[[Path], None]:
    return lambda record: change(
        record / "cost.json", lambda cost: {name: whole | values for name, whole in cost.items()}
    )


def other_parameters(record: Path) -> None:
    change(record / "tumor-fine" / "result.json", lambda result: result | {"parameters": -3})


def other_torch(record: Path) -> None:
    change(record / "env.json", lambda env: env | {"packages": env["packages"] | {"torch": "1.0"}})


NUMBERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a stage of its own": (stage_of_its_own, "a row's stage is not that of its setting"),
    "other files": (other_files, "its reference is not that in phantom/MSD/"),
    "no false positive": (counted(empty=False, false_positives=0), "no false positive, though the prediction"),
    "a false positive of nothing": (counted(empty=True, false_positives=1), "by an empty prediction"),
    "a checkpoint that is one": (select_earlier, "dsc differs between source-val and last-step"),
    "no time": (stopped_clock, "tumor-fine/times.jsonl: no step took any time"),
    "a case before its time": (early_case, "evaluation/times.parquet: a time of -1.0 s"),
    "few parameters": (small_network(params=7), "cost.json: params of table-vi are not the sum of its stages"),
    "few operations": (small_network(gflops=0.001), "cost.json: gflops of table-vi are not the sum of its stages"),
    "parameters below zero": (other_parameters, "parameters in tumor-fine, its result.json has -3"),
    "another torch": (other_torch, "env.json: torch 1.0, spec.json has 2.13"),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_that_cannot_be_are_refused(records: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    tamper, message = NUMBERS[kind]
    tamper(record_of(records))
    rehash(record_of(records))
    assert message in mistake(capsys, ["verify", str(records)])


def copied(records: Path, spec: dict[str, Any], stage: dict[str, Any], *, again: bool = False) -> Path:
    """A copy of the record of erm that says this of itself, with all keys made anew; timed ``again`` or with the times of the first."""
    copy = records / "phantom" / "MSD" / "copy" / "seed"
    shutil.copytree(record_of(records), copy)
    for name in OWN:
        change(copy / name / "spec.json", lambda stated: stated | stage)
        log = copy / name / "times.jsonl"
        write_log(log, [row | ({"seconds": 2 * row["seconds"]} if again else {}) for row in log_rows(log)])
    if again:
        path = copy / "evaluation" / "times.parquet"
        pd.read_parquet(path).assign(seconds=1.0).to_parquet(path, index=False)
    change(copy / "spec.json", lambda stated: stated | spec)
    copy = resealed(copy)
    (records / "phantom" / "MSD" / "copy").rmdir()
    return copy


@pytest.mark.parametrize("again", [False, True])
def test_a_training_is_no_second_seed(records: Path, capsys: pytest.CaptureFixture[str], again: bool) -> None:
    (shared,) = (COMMITTED / "phantom" / "MSD" / "_pancreas").glob("seed1-*")
    shutil.copytree(shared, records / shared.relative_to(COMMITTED))
    links = read_json(shared / "spec.json")["stages"]
    first = read_json(record_of(records) / "spec.json")
    stages = {**first["stages"], **links}
    original = record_of(records)
    spec = {"seed": 1, "command": f"{first['command']} --seed 1", "stages": stages}
    copy = copied(records, spec, {"seed": 1}, again=again)
    line = mistake(capsys, ["verify", str(records)])
    file, what = ("evaluation/cases.parquet", "predictions") if again else ("tumor-coarse/times.jsonl", "times")
    assert f"{copy / file}: has the {what} of {original / file} — a copy is no run of its own, leave it out" in line


def test_a_training_is_of_one_method(records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    method = {"name": "mymethod", "version": 1, "config": {}}
    first = read_json(record_of(records) / "spec.json")
    target = read_json(record_of(records) / "tumor-fine" / "spec.json")["method"]["target"]
    spec = {"method": first["method"] | method, "command": first["command"].replace("erm", "my.pkg:Class")}
    copy = copied(records, spec, {"method": {**method, "target": target}})
    assert f"{copy}/tumor-coarse/times.jsonl: has the times of " in mistake(capsys, ["verify", str(records)])


def test_a_link_leads_to_no_record(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = records / "phantom" / "MSD" / "erm"
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    assert f"{place}: is a link — records lie below {records} themselves" in mistake(capsys, ["verify", str(records)])


@pytest.mark.parametrize("place", ["reproductions", "reproductions/best.safetensors"])
def test_nothing_is_kept_beside_second_records(records: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    path = record_of(records) / place
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    assert f"{path}: is no second record of phantom/MSD/erm/seed0-" in mistake(capsys, ["verify", str(records)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "phantom-bench.md: cannot be read ('utf-8' codec"),
        (b"--seeds " + b"9" * 5000 + b": ", "phantom-bench.md: is not the table of these records"),
        (None, "phantom-bench.md: cannot be read ("),
    ],
    ids=["no text", "a long number", "a folder"],
)
def test_a_damaged_table_is_a_mistake(
    records: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    page = records / "phantom-bench.md"
    if content is None:
        page.mkdir()
    else:
        page.write_bytes(content)
    assert message in mistake(capsys, ["verify", str(records)])
