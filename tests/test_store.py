"""Atomic files, keys and run folders."""

import errno
import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_runs import fake_cases, fake_run, fake_spec

from dgbench.atomic import (
    append_jsonl,
    read_json,
    read_jsonl,
    replacing,
    truncate_jsonl,
    write_bytes,
    write_json,
    write_text,
)
from dgbench.errors import DgbenchError
from dgbench.store.folder import (
    RunFolder,
    RunSpec,
    iter_runs,
    open_run,
    probe_writable,
    read_run,
    read_status,
    run_folder,
    write_status,
)
from dgbench.store.keys import canonical_json, diff, key_of

# --- atomic files -----------------------------------------------------------------------------------------------------


def test_written_files_read_back_and_leave_nothing_beside_them(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b.txt", "Grüße\n")
    write_bytes(tmp_path / "a" / "b.bin", b"\x00\xff")
    write_json(tmp_path / "a" / "b.json", {"z": 0.1, "a": [1, None, "é"]})
    assert (tmp_path / "a" / "b.txt").read_text(encoding="utf-8") == "Grüße\n"
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"\x00\xff"
    assert list(read_json(tmp_path / "a" / "b.json").items()) == [("z", 0.1), ("a", [1, None, "é"])]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["b.bin", "b.json", "b.txt"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    path = tmp_path / "status.json"
    write_text(path, "old")

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(DgbenchError, match=r"status\.json: cannot be written \(No space left on device\)"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_on_disk_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b))[1])
    write_text(tmp_path / "x", "x")
    assert events == ["fsync", "replace", "fsync"]


def test_a_writer_that_dies_halfway_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    write_text(path, "old")

    def die_halfway() -> None:
        with replacing(path) as temporary:
            temporary.write_text("ne")
            assert temporary.suffix == ".json"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        die_halfway()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", [write_json, append_jsonl])
@pytest.mark.parametrize("value", [{"loss": float("nan")}, {"loss": float("inf")}, {"loss": object()}])
def test_what_json_does_not_have_is_refused(tmp_path: Path, write: Callable[..., None], value: Any) -> None:
    with pytest.raises(DgbenchError, match=r"log: cannot be written as JSON"):
        write(tmp_path / "log", value)
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"state": "do', "half-written or foreign"),
        (b"", "half-written or foreign"),
        (b"\xff\xfe{}", "half-written or foreign"),
        (b"<html></html>", "half-written or foreign"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b"[1]", "expected a JSON object, found list"),
    ],
)
def test_foreign_json_is_one_line_with_the_file_name(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "status.json").write_bytes(content)
    with pytest.raises(DgbenchError, match=message) as caught:
        read_json(tmp_path / "status.json")
    assert "status.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DgbenchError, match=r"gone\.json: no such file"):
        read_json(tmp_path / "gone.json")
    with pytest.raises(DgbenchError, match=r"gone\.jsonl: no such file"):
        read_jsonl(tmp_path / "gone.jsonl")


def test_row_logs_drop_a_half_written_row_and_only_that(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    append_jsonl(path, *({"step": i, "loss": 0.1 * i, "note": "a\rb"} for i in (1, 2, 2)))
    append_jsonl(path, {"step": 3, "loss": 0.3})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 4, "lo')
    assert [row["step"] for row in read_jsonl(path)] == [1, 2, 2, 3]
    assert [row["step"] for row in read_jsonl(path, until_step=2)] == [1, 2, 2]
    assert truncate_jsonl(path, last=3) == 4
    assert path.read_bytes() == whole
    assert truncate_jsonl(path, last=2) == 3
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:3])
    assert truncate_jsonl(path, last=0) == 0
    assert path.read_bytes() == b""
    assert truncate_jsonl(tmp_path / "none.jsonl", last=5) == 0


def test_a_damaged_row_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": \n{"step": 3}\n')
    for read in (read_jsonl, lambda p: truncate_jsonl(p, last=1)):
        with pytest.raises(DgbenchError, match=r"steps\.jsonl, line 2: damaged row"):
            read(path)
    path.write_bytes(b'{"epoch": 1}\n')
    with pytest.raises(DgbenchError, match="no number 'step'"):
        truncate_jsonl(path, last=1)


def test_resumed_log_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": 1 / (3 + i)} for i in range(10)]
    append_jsonl(tmp_path / "one.jsonl", *rows)
    append_jsonl(tmp_path / "two.jsonl", *rows[:8])
    truncate_jsonl(tmp_path / "two.jsonl", last=5)
    append_jsonl(tmp_path / "two.jsonl", *rows[6:])
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (
        lambda: write_text(tmp_path / "file" / "x", ""),
        lambda: append_jsonl(tmp_path / "file" / "x", {}),
        lambda: probe_writable(tmp_path / "file" / "runs"),
    ):
        with pytest.raises(DgbenchError, match=r"cannot be written \(.*\) — check permissions"):
            write()
    probe_writable(tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_read_only_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(DgbenchError, match=r"Permission denied"):
        probe_writable(tmp_path)


# --- keys -------------------------------------------------------------------------------------------------------------


def test_golden_key() -> None:
    value = {"b": [1, 2.5, None, True], "a": {"é": 1e-07, "x": "y"}}
    text = '{"a":{"x":"y","\\u00e9":1e-07},"b":[1,2.5,null,true]}'
    assert canonical_json(value) == text
    assert key_of(value) == hashlib.sha256(text.encode()).hexdigest()
    assert key_of(value) == "54d7d3e8221014b6e998d10dfdf4c3463b6a4626c83c722a873ab8fcd6b93730"


def test_key_ignores_order_and_sees_every_value() -> None:
    assert key_of({"a": 1, "b": (1, 2)}) == key_of({"b": [1, 2], "a": 1})
    values: list[Any] = [0, 1, 0.0, -0.0, 1.0, True, False, None, "1", "", [], {}, [1], {"a": 1}, 0.1 + 0.2, 0.3]
    assert len({key_of({"v": value}) for value in values}) == len(values)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"m": {"lr": float("nan")}}, r"value\.m\.lr: nan has no place in a key"),
        ({"m": [1, float("inf")]}, r"value\.m\[1\]: inf"),
        ({"m": {1: 2}}, r"value\.m: mapping key 1 is int"),
        ({"m": {1, 2}}, r"value\.m: set has no JSON form"),
        ({"m": Path("x")}, "has no JSON form"),
    ],
)
def test_what_has_no_canonical_form_is_refused(value: Any, message: str) -> None:
    with pytest.raises(DgbenchError, match=message):
        key_of(value)


def test_diff_names_places_and_both_values() -> None:
    a = {"method": {"config": {"lr": 0.01, "views": 2}}, "sources": ["MSD", "RMYY"], "seed": 1, "crop": [1, 2]}
    b = {"method": {"config": {"lr": 0.001, "con": None}}, "sources": ["MSD"], "seed": 1.0, "crop": (1, 3)}
    assert diff(a, b) == [
        "crop[1]: 2 → 3",
        "method.config.con: absent → null",
        "method.config.lr: 0.01 → 0.001",
        "method.config.views: 2 → absent",
        "seed: 1 → 1.0",
        'sources: ["MSD","RMYY"] → ["MSD"]',
    ]
    assert diff(a, json.loads(json.dumps(a))) == []
    assert diff({"a": {}}, {}) == ["a: {} → absent"]
    assert diff({"a": True}, {"a": 1}) == ["a: true → 1"]


# --- run folders ------------------------------------------------------------------------------------------------------


def test_run_folder_names(tmp_path: Path) -> None:
    key = "ab12cd34" + "0" * 56
    assert run_folder(tmp_path, "phantom", "RENJI", "erm", 3, key) == tmp_path / "phantom/RENJI/erm/seed3-ab12cd34"
    assert run_folder(tmp_path, "phantom", "RENJI", "_pancreas", 0, key).parent.name == "_pancreas"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heldout": "../x"}, "center '../x' cannot be used"),
        ({"protocol": "a/b"}, "protocol 'a/b' cannot be used"),
        ({"method": "_other"}, "method '_other' cannot be used"),
        ({"heldout": "CON"}, "center 'CON' cannot be used: no folder can have this name on Windows"),
        ({"heldout": "com1.txt"}, "center 'com1.txt' cannot be used: no folder"),
        ({"method": "erm."}, "method 'erm.' cannot be used: no folder"),
        ({"key": "xyz"}, "cannot name a run folder"),
        ({"seed": -1}, "cannot name a run folder"),
    ],
)
def test_bad_folder_names_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    good = {"protocol": "phantom", "heldout": "RENJI", "method": "erm", "seed": 0, "key": "a" * 64}
    with pytest.raises(DgbenchError, match=message):
        run_folder(tmp_path, **{**good, **change})


def test_spec_round_trip_and_paths(tmp_path: Path) -> None:
    spec = fake_spec(lr=0.1, widths=[1, 2])
    run = open_run(tmp_path, spec)
    assert run.path == run_folder(tmp_path, "phantom", "RENJI", "erm", 0, spec.key)
    stored = json.loads((run.path / "spec.json").read_text())
    assert stored["schema"] == 1
    assert stored["method"]["config"] == {"lr": 0.1, "widths": [1, 2]}
    assert RunSpec.read(run.path) == spec
    assert run.stage_folder("tumor-fine") == run.path / "tumor-fine"
    assert run.stage_folder("pancreas-fine") == tmp_path / "phantom/RENJI/_pancreas/seed0-00000000/pancreas-fine"
    assert run.own_stages == ("tumor-coarse", "tumor-fine")
    with pytest.raises(DgbenchError, match="no stage 'tumour-fine' — did you mean 'tumor-fine'"):
        run.stage_folder("tumour-fine")


def test_open_run_finds_the_same_run_and_refuses_another_with_a_diff(tmp_path: Path) -> None:
    spec = fake_spec(lr=0.1)
    open_run(tmp_path, spec)
    again = spec.model_copy(update={"command": "dgbench sweep", "dgbench": "0.1.1"})
    assert open_run(tmp_path, again).spec == spec
    method = spec.method.model_copy(update={"config": {"lr": 0.2}})
    with pytest.raises(DgbenchError, match=r"holds another run \(method\.config\.lr: 0\.1 → 0\.2\)"):
        open_run(tmp_path, spec.model_copy(update={"method": method}))


def edit(run: RunFolder, **changes: Any) -> None:
    values = json.loads((run.path / "spec.json").read_text()) | changes
    (run.path / "spec.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "schema 2 of dgbench 0.1.0.dev0, this version reads schema 1"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"key": "short"}, "key: String should match pattern"),
        ({"seed": "zero"}, "seed: Input should be a valid integer"),
        ({"stages": {"a": {"key": "a" * 64, "folder": "../../x"}}}, "is not a folder below the runs root"),
        ({"seed": 5}, "moved or changed by hand"),
    ],
)
def test_damaged_specs_are_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    run = open_run(tmp_path, fake_spec())
    edit(run, **changes)
    with pytest.raises(DgbenchError, match=message) as caught:
        read_run(tmp_path, run.path)
    assert "\n" not in str(caught.value)


def test_status_round_trip(tmp_path: Path) -> None:
    assert read_status(tmp_path).state == "queued"
    written = write_status(tmp_path, "failed", "out of\n  memory")
    assert read_status(tmp_path) == written
    assert written.reason == "out of memory"
    assert written.updated is not None
    assert written.updated.endswith("+00:00")
    (tmp_path / "status.json").write_text('{"state": "finished"}')
    with pytest.raises(DgbenchError, match=r"status\.json: state: Input should be 'queued'"):
        read_status(tmp_path)


def test_iter_runs_passes_over_foreign_folders_and_reports_half_written_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = [fake_run(tmp_path, fake_spec(seed=seed)).path for seed in (0, 1)]
    (tmp_path / "phantom/RENJI/erm/notes").mkdir()
    (tmp_path / "phantom/RENJI/erm/seed0-backup").mkdir()
    (tmp_path / "phantom/RENJI/erm/seed9-00000000").write_text("a file")
    empty = tmp_path / "phantom/RENJI/erm/seed7-00000000"
    empty.mkdir()
    torn = open_run(tmp_path, fake_spec(seed=2)).path
    (torn / "spec.json").write_text('{"schema": 1, "key"')
    moved = tmp_path / "phantom/MSD/erm" / good[0].name
    moved.parent.mkdir(parents=True)
    os.symlink(good[0], moved)
    problems: dict[Path, str] = {}
    runs = list(iter_runs(tmp_path, lambda path, error: problems.update({path: str(error)})))
    assert [run.path for run in runs] == good
    assert set(problems) == {empty, torn, moved}
    assert "no such file" in problems[empty]
    assert "half-written" in problems[torn]
    assert "moved" in problems[moved]
    with caplog.at_level(logging.WARNING):
        assert len(list(iter_runs(tmp_path))) == 2
    assert len(caplog.records) == 3
    assert list(iter_runs(tmp_path / "none")) == []


def test_iter_runs_with_a_relative_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_run(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    (run,) = iter_runs(Path("runs"))
    assert run.own_stages == ("tumor-coarse", "tumor-fine")
    assert run.relative.startswith("phantom/RENJI/erm/seed0-")


def test_cases_and_record(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    assert run.cases().equals(fake_cases())
    assert run.status.state == "done"
    assert not run.is_record
    for stage in run.own_stages:
        (run.stage_folder(stage) / "last-000001.safetensors").unlink()
    assert not run.is_record
    (run.path / "figures/overlay.png").unlink()
    assert run.is_record


def test_damaged_case_tables_are_named(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    table = run.evaluation / "cases.parquet"
    data = table.read_bytes()
    table.write_bytes(data[: len(data) // 2])
    with pytest.raises(DgbenchError, match=r"cases\.parquet: not a readable table"):
        run.cases()
    fake_cases().drop(columns=["setting"]).to_parquet(table)
    with pytest.raises(DgbenchError, match="columns setting are missing"):
        run.cases()
    table.unlink()
    with pytest.raises(DgbenchError, match="has not been evaluated"):
        run.cases()


def test_the_store_is_light_to_import() -> None:
    code = (
        "import sys, dgbench.store.folder, dgbench.store.lock, dgbench.store.mlflow_mirror; "
        "print([m for m in ('torch', 'pandas', 'mlflow', 'monai') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
