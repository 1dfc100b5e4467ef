"""The command line: what it prints, and that every mistake is one line on stderr with exit code 2 and nothing half-written."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cli_calls import mistake, run_arguments
from training_fixtures import Mini

from dgbench import processor
from dgbench.cli import TRACE, call
from dgbench.store.slices import CaseSlice, slice_file

BAD_REQUESTS: dict[str, tuple[dict[str, str], str]] = {
    "method": ({"method": "eerm"}, "unknown method 'eerm' — did you mean 'erm'? (known: "),
    "method, not close": ({"method": "zzz"}, "unknown method 'zzz' — known: "),
    "class, no module": ({"method": ":C"}, "method ':C': expected package.module:Class"),
    "class, foreign": ({"method": "os:path"}, "method os:path: the class must carry `info`"),
    "class, absent": ({"method": "json:Method"}, "method json:Method: module json has no class 'Method'"),
    "class, not installed": (
        {"method": "no_such.thing:C"},
        "method no_such.thing:C: cannot import no_such.thing: ModuleNotFoundError: No module named 'no_such'",
    ),
    "center": ({"heldout": "GAMA"}, "unknown held-out center 'GAMA' for protocol 'mini' — did you mean 'GAMMA'?"),
    "protocol": ({"protocol": "phantm"}, "unknown protocol 'phantm' — did you mean 'phantom'?"),
    "protocol file": ({"protocol": "none.yaml"}, "protocol file none.yaml does not exist"),
    "preset": ({"preset": "minni"}, "unknown preset 'minni' for protocol 'mini' — did you mean 'mini'?"),
    "method key": ({"set": "lr=1"}, "--set lr: method 'erm' has no such key — known: none"),
    "method key, close": (
        {"method": "dualtask", "set": "view=2"},
        "--set view: method 'dualtask' has no such key — did you mean 'views'?",
    ),
    "method value": ({"method": "dualtask", "set": "views=7"}, "method 'dualtask': views: Input should be 1 or 2"),
    "preset key": (
        {"set": "preset.stages.lesion.leraning=1"},
        "--set preset.stages.lesion.leraning: unknown key 'leraning'",
    ),
    "preset key, close": ({"set": "preset.widht=8"}, "--set preset.widht: unknown key 'widht' — did you mean 'width'?"),
    "preset value": ({"set": "preset.width=12"}, "width: Input should be a multiple of 8"),
    "preset type": ({"set": "preset.tta=perhaps"}, "tta: Input should be a valid boolean"),
    "set without =": ({"set": "width"}, "--set 'width': expected key=value"),
    "set without key": ({"set": "=8"}, "--set '=8': expected key=value"),
    "set, not YAML": ({"set": "preset.width=[8"}, "cannot read the value '[8'"),
    "devices, one thread": ({"devices": "2"}, "--threads 1: 2 devices divide the threads of a run"),
    "devices": ({"devices": "0"}, "--devices 0: a run has one device or more"),
    "devices, too many": ({"devices": "9999"}, "--devices 9999: this machine has"),
    "rank timeout": ({"rank-timeout": "0"}, "Invalid value for '--rank-timeout'"),
    "device": ({"device": "tpu"}, "unknown device 'tpu' — known: cpu, cuda"),
    "seed": ({"seed": "-1"}, "--seed -1: a seed is a whole number from 0 up"),
    "seed, no number": ({"seed": "x"}, "Invalid value for '--seed'"),
    "threads": ({"threads": "0"}, "Invalid value for '--threads'"),
    "option": ({"hedlout": "GAMMA"}, "No such option"),
    "no data": ({"data": "nowhere"}, "data folder nowhere does not exist"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_mistaken_request_is_answered_before_anything_is_written(
    name: str,
    sound: Mini,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    changes, message = BAD_REQUESTS[name]
    fresh = Mini(sound.data, sound.protocol, tmp_path / "cache")
    assert message in mistake(capsys, run_arguments(fresh, tmp_path / "runs", **changes))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("what", ["--method", "--heldout"])
def test_a_missing_option_is_named(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"--method": "erm", "--heldout": "RENJI"}
    arguments = [word for name, value in given.items() if name != what for word in (name, value)]
    assert mistake(capsys, ["run", *arguments]) == f"Missing option '{what}' — see `dgbench --help`"


def test_a_runs_folder_that_cannot_be_written(mini: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("not a folder")
    for runs in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/runs")):
        line = mistake(capsys, run_arguments(mini, runs))
        assert line.startswith(f"{runs}")
        assert "cannot be written" in line
    assert (tmp_path / "file").read_text() == "not a folder"
    assert not mini.cache.exists()


def test_the_program_itself_ends_with_two_and_no_traceback(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("dgbench")
    command = [str(program), "run", "--method", "eerm", "--heldout", "RENJI"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.startswith("error: unknown method 'eerm' — did you mean 'erm'?")
    assert answer.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("inside")
def test_a_protocol_without_shared_stages_keeps_slices_and_features_too(mini: Mini, tmp_path: Path) -> None:
    import pandas as pd

    assert call(run_arguments(mini, tmp_path / "runs")) == 0
    [run] = (path.parent for path in (tmp_path / "runs").rglob("cost.json"))
    assert {path.name for path in (run / "figures").rglob("*.*")} == {"overlay.png", "case_00.npz", "case_01.npz"}
    shown = CaseSlice.load(slice_file(run, "GAMMA/case_00"))
    assert set(shown.dsc) == {"coarse", "fine"}
    assert shown.reference_tumor.any()
    assert not shown.reference_pancreas.any()
    features = pd.read_parquet(run / "evaluation" / "features.parquet")
    assert set(zip(features["stage"], features["tissue"], strict=True)) == {
        ("organ", "tumor"),
        ("lesion", "tumor"),
        ("lesion", "normal"),
    }
    times = pd.read_parquet(run / "evaluation" / "times.parquet")
    assert (times["round_seconds"].map(len) == 1).all()


@pytest.mark.usefixtures("inside")
@pytest.mark.slow
def test_a_finished_run_that_was_damaged_is_judged_again(
    mini: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = run_arguments(mini, tmp_path / "runs")
    assert call(arguments) == 0
    shown = capsys.readouterr().out
    [run] = (path.parent for path in (tmp_path / "runs").rglob("cost.json"))
    table, spec = run / "evaluation" / "cases.parquet", run / "evaluation" / "spec.json"
    stored = {path: path.read_bytes() for path in (table, spec)}
    damages: list[Callable[[], object]] = [
        table.unlink,
        lambda: table.write_bytes(b""),
        lambda: table.write_bytes(stored[table][:-40]),
        lambda: pd.concat([pd.read_parquet(table)] * 2).to_parquet(table),
        lambda: spec.write_text("{}"),
    ]
    for damage in damages:
        damage()
        assert call(arguments) == 0
        out, err = capsys.readouterr()
        assert err.splitlines()[0] == "evaluate organ, lesion on 6 cases"
        assert out == shown
        assert {path: path.read_bytes() for path in stored} == stored
    (run / "lesion" / "spec.json").write_text("{}")
    text = mistake(capsys, arguments)
    assert text.startswith(f"{run / 'lesion'}: holds another training (")
    assert re.search(r"key: absent → \"[0-9a-f]{64}\"", text)


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert call([*arguments, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_methods_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in listed(capsys, "methods", "list")}
    assert {"erm", "randconv", "dualtask"} <= set(rows)
    assert all(row["broken"] is None for row in rows.values())
    assert call(["methods", "list"]) == 0
    assert all(name in capsys.readouterr().out for name in ["erm"])
    shown = listed(capsys, "methods", "show", "dualtask")
    assert shown["name"] == "dualtask"
    assert shown["card"]
    assert {"views", "profile"} <= {setting["key"] for setting in shown["config"]}
    assert call(["methods", "show", "dualtask"]) == 0
    assert shown["card"].strip() in capsys.readouterr().out
    assert "did you mean 'dualtask'" in mistake(capsys, ["methods", "show", "dualtak"])


def test_protocols_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    rows = {row["name"]: row for row in listed(capsys, "protocols", "list")}
    assert rows["phantom"]["kind"] == "phantom"
    shown = listed(capsys, "protocols", "show", "phantom")
    assert call(["protocols", "show", "phantom"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == shown
    assert "unknown protocol" in mistake(capsys, ["protocols", "show", "none"])


def test_doctor_names_versions_and_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "file").write_text("")
    assert call(["doctor", "--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("torch", "SimpleITK", "protocols", str(tmp_path / "runs"), "GiB free"))
    assert call(["doctor", "--runs", str(tmp_path / "file"), "--cache", str(tmp_path / "cache")]) == 2
    assert f"problem: {tmp_path / 'file'}" in capsys.readouterr().out


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("known", [True, False, None])
def test_bf16_without_instructions_is_announced(
    known: bool | None, mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processor, "has_bf16", lambda: known)
    monkeypatch.setattr("dgbench.launch.execute.execute", lambda *_, **__: False)
    monkeypatch.setattr("dgbench.cli.run._show_result", lambda _: None)
    for precision in ("bf16", "fp32"):
        call([*run_arguments(mini, tmp_path / "runs"), "--set", f"preset.precision.cpu={precision}"])
        assert ("no instructions" in capsys.readouterr().err) == (known is False and precision == "bf16")


@pytest.mark.parametrize("there", [False, True])
def test_the_leaderboard_of_no_runs_says_how_to_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    if there:
        (tmp_path / "runs").mkdir()
    empty = ["leaderboard"]
    for form in ("table", "md"):
        assert call([*empty, "--format", form]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert out.startswith(("PHANTOM DATA — not patient data", "**PHANTOM DATA"))
        assert "no runs yet" in out
    assert call([*empty, "--format", "json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)
    assert call([*empty, "--format", "csv"]) == 0
    *comments, header = capsys.readouterr().out.splitlines()
    assert all(line.startswith("# ") for line in comments)
    assert {"rank", "method", "center", "dsc"} <= set(header.split(","))
    assert call([*empty, "--published"]) == 0
    assert "REPORTED in the literature on patient data" in capsys.readouterr().out
    for form in ("table", "md", "csv", "json"):
        assert call([*empty, "--published", "--protocol", "hippocampus", "--format", form]) == 0
        out, err = capsys.readouterr()
        assert err == "nothing is published for protocol hippocampus\n"
        assert "REPORTED" not in out
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "none"], "unknown protocol 'none'"),
        (["--preset", "demoo"], "unknown preset 'demoo' for protocol 'phantom' — did you mean 'demo'?"),
        (["--policy", "papper"], "unknown policy 'papper' — did you mean 'paper'?"),
        (["--setting", "F-Segg"], "--setting 'F-Segg' is unknown to protocol 'phantom' — did you mean 'F-Seg'?"),
        (["--setting", "P-Fine"], "--setting 'P-Fine' is unknown"),
        (
            ["--checkpoint", "best"],
            "--checkpoint 'best' is unknown to protocol 'phantom' — known: last-step, source-val",
        ),
        (["--threshold", "1"], "--threshold 1: a threshold lies between 0 and 1"),
        (["--format", "xml"], "'xml' is not one of"),
        (["--runs", __file__], "is a file"),
        (["--runs", ""], "after --runs: an empty text — is a variable of the shell unset?"),
        (["--runs="], "after --runs=: an empty text"),
        (["--format", "html", "--out", " "], "after --out: an empty text"),
        (["--runs", "n" * 300], "cannot be a path here (File name too long) — choose a shorter one"),
    ],
)
def test_a_mistaken_leaderboard(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in mistake(capsys, ["leaderboard", *options])


def test_a_dry_run_of_the_phantom_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    assert call(["run", "--method", "dualtask", "--heldout", "RENJI", "--dry-run", *places]) == 0
    out = capsys.readouterr().out
    assert "preset demo (not ranked)" in out
    assert "the phantom is not drawn yet" in out
    assert not list(tmp_path.iterdir())


def test_a_dry_run_with_data_names_every_job(mini: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    assert call([*run_arguments(mini, runs), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "train   organ: 8 steps" in out
    assert "train   lesion: 8 steps" in out
    assert out.count("queued") == 3
    assert not runs.exists()
    mini.plan(runs)
    assert call(["sweep", "--dry-run", *run_arguments(mini, runs, method="erm,randconv")[2:]]) == 0
    assert "2 runs, 6 jobs: 0 done, 6 missing" in capsys.readouterr().out


def test_a_sweep_is_checked_as_a_whole_before_it_starts(
    mini: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep", *run_arguments(mini, tmp_path / "runs", method="erm,emr")[1:]]
    assert "unknown method 'emr' — did you mean 'erm'?" in mistake(capsys, arguments)
    assert not (tmp_path / "runs").exists()


NARROW = """
from dgbench.info import MethodInfo
from dgbench.method import Method

class {name}(Method):
    info = MethodInfo(name="narrow", target="{module}:{name}", title="Narrow", paper="none", year=2026, {limit})
"""


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ("dims=frozenset({2})", "method narrow works in 2D, protocol mini is 3D"),
        ("min_sources=3", "method narrow needs at least 3 source centers, with GAMMA held out there are 2"),
    ],
    ids=["dims", "sources"],
)
def test_a_cell_that_a_method_cannot_fill_is_not_applicable(
    mini: Mini,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    reason: str,
) -> None:
    """A run of it is a mistake; a sweep says n/a and goes on with the others, and that is no failure."""
    module = f"narrow_{limit.partition('=')[0]}"
    (tmp_path / f"{module}.py").write_text(NARROW.format(name="Narrow", module=module, limit=limit))
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = run_arguments(mini, tmp_path / "runs", method=f"{module}:Narrow")
    assert mistake(capsys, arguments) == reason
    both = run_arguments(mini, tmp_path / "runs", method=f"{module}:Narrow,erm")
    assert call(["sweep", "--dry-run", *both[1:]]) == 0
    answer = capsys.readouterr()
    assert f"n/a: {reason}" in answer.err
    assert "1 runs, 3 jobs: 0 done, 3 missing" in answer.out
    assert not list((tmp_path / "runs").rglob("spec.json"))


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A fault of our own, in a session without :data:`dgbench.cli.TRACE` whose temporary files go to ``tmp_path``."""

    def broken() -> None:
        raise ZeroDivisionError("no\nfloor")

    monkeypatch.setattr("dgbench.registry.discover", broken)
    monkeypatch.delenv(TRACE)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.mark.usefixtures("fault")
def test_what_the_caller_cannot_mend_is_one_line_that_names_its_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = mistake(capsys, ["methods", "list"])
    [kept] = tmp_path.iterdir()
    assert line == f"unexpected ZeroDivisionError: no floor (trace in {kept}); please report it"
    first, *trace = kept.read_text().splitlines()
    assert first.endswith(": dgbench methods list")
    assert trace[0] == "Traceback (most recent call last):"
    assert trace[-2:] == ["ZeroDivisionError: no", "floor"]


@pytest.mark.usefixtures("fault")
def test_a_trace_that_cannot_be_kept_is_not_hidden_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    line = mistake(capsys, ["methods", "list"])
    assert line.startswith("unexpected ZeroDivisionError: no floor (its trace cannot be kept: ")
    assert line.endswith("DGBENCH_TRACE=1 shows it); please report it")


@pytest.mark.usefixtures("fault")
def test_a_developer_gets_the_trace_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACE, "1")
    with pytest.raises(ZeroDivisionError):
        call(["methods", "list"])
    assert not list(tmp_path.iterdir())
