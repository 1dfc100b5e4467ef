"""One run of the tiny preset through the program itself: what it leaves, and what a second, a stopped, a failed and a fresh call do."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from training_fixtures import differences, results

from dgbench.store.cases import read_cases
from dgbench.store.folder import RunFolder, iter_runs, read_status
from dgbench.store.slices import CaseSlice, slice_file

PROGRAM = str(Path(sys.executable).with_name("dgbench"))
OWN, SHARED = ("tumor-coarse", "tumor-fine"), ("pancreas-coarse", "pancreas-fine")
SETTINGS = {"P-Coarse", "P-Fine", "C-Seg", "F-Seg", "C-Mask", "F-Mask"}
HELD_OUT = {f"RENJI/RENJI_000{number}" for number in range(1, 5)}

BROKEN = """
from dgbench.info import MethodInfo
from dgbench.method import Method

class Broken(Method):
    info = MethodInfo(name="broken", target="broken_plugin:Broken", title="Fails", paper="none", year=2026)

    def training_step(self, batch, ctx):
        return {"loss": 0 * self.logits(batch.image).sum() / 0}
"""

WATCHED = """
import json, resource, sys
from dgbench.cli import call
code = call(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
heavy = [name for name in ("torch", "monai", "mlflow", "optuna") if name in sys.modules]
sys.stderr.write("\\n" + json.dumps([code, used.ru_utime + used.ru_stime, heavy]))
"""


@dataclass(frozen=True)
class Tiny:
    """A runs folder with the finished run of erm, held-out RENJI; ``output`` is what the call printed."""

    root: Path
    cache: Path
    output: subprocess.CompletedProcess[str]

    @property
    def runs(self) -> dict[str, RunFolder]:
        return {run.spec.method.name: run for run in iter_runs(self.root)}

    def arguments(self, method: str = "erm", *extra: str, command: str = "run") -> list[str]:
        places = ["--runs", str(self.root), "--cache", str(self.cache)]
        chosen = ["--method", method, "--heldout", "RENJI", "--preset", "tiny"]
        return [command, *chosen, "--device", "cpu", "--threads", "1", "--no-mlflow", *places, *extra]

    def call(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [PROGRAM, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280, cwd=cwd)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The first call: it draws the phantom, trains four stages and evaluates them."""
    folder = tmp_path_factory.mktemp("tiny")
    blank = Tiny(folder / "runs", folder / "cache", subprocess.CompletedProcess([], 0))
    done = Tiny(blank.root, blank.cache, blank.call(*blank.arguments()))
    assert done.output.returncode == 0, done.output.stderr
    return done


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_the_run_folders_hold_everything(tiny: Tiny) -> None:
    assert set(tiny.runs) == {"erm", "_pancreas"}
    for name, stages in (("erm", OWN), ("_pancreas", SHARED)):
        run = tiny.runs[name]
        assert run.status.state == "done"
        assert read_status(run.evaluation).state == "done"
        assert run.own_stages == stages
        for stage in stages:
            folder = run.stage_folder(stage)
            assert read_status(folder).state == "done"
            result = json.loads((folder / "result.json").read_text())
            assert result["steps"] == len((folder / "steps.jsonl").read_text().splitlines())
            assert (folder / "times.jsonl").is_file()
            assert (folder / "times.json").is_file()
        assert {path.name for path in run.path.iterdir() if path.is_file()} >= {
            "spec.json",
            "env.json",
            "status.json",
            "cost.json",
        }
        assert (run.evaluation / "times.parquet").is_file()
        assert (run.evaluation / "times.json").is_file()
        assert not (run.evaluation / "parts").exists()
    assert not list(tiny.root.rglob(".tmp-*"))
    assert not list(tiny.root.rglob(".lock"))
    assert str(Path.home()) not in (tiny.runs["erm"].path / "env.json").read_text()


def test_the_rows_hold_every_case_in_every_setting(tiny: Tiny) -> None:
    rows = pd.concat([run.cases() for run in tiny.runs.values()])
    assert set(rows["setting"]) == SETTINGS
    for setting, part in rows.groupby("setting"):
        held = part[part["role"] == "held-out"]
        assert sorted(held["case"]) == sorted(HELD_OUT), setting
        centers = set(part[part["role"] == "source-val"]["center"])
        assert centers == {"MSD", "RMYY"} | ({"NIH"} if str(setting).startswith("P-") else set())
    free = rows[rows["role"] == "lesion-free"]
    assert set(free["setting"]) == {"C-Seg", "F-Seg", "C-Mask", "F-Mask"}
    assert set(free["center"]) == {"NIH"}
    assert free["empty_reference"].all()
    assert not rows["failed"].any()
    assert set(rows[rows["setting"] == "C-Mask"]["roi"]) == {"label"}
    assert "label" not in set(rows[rows["setting"].isin(["P-Coarse", "P-Fine", "C-Seg", "F-Seg"])]["roi"])
    assert set(rows[rows["setting"] == "P-Coarse"]["roi"]) == {"whole"}


def test_the_call_ends_with_a_table_the_folder_and_the_overlay(tiny: Tiny) -> None:
    out = tiny.output.stdout
    assert out.startswith("PHANTOM DATA — not patient data")
    assert all(setting in out for setting in SETTINGS)
    assert all(word in out for word in ("DSC", "ASD", "HD95", "centroid", "tiny, not"))
    run = tiny.runs["erm"]
    assert f"run folder  {run.path}" in out
    assert f"overlay     {run.path}/figures/overlay.png" in out
    assert f"dgbench mlflow ui --runs {tiny.root}" in out
    assert (run.path / "figures" / "overlay.png").read_bytes().startswith(b"\x89PNG")
    assert "Traceback" not in tiny.output.stderr
    assert "\x1b" not in out + tiny.output.stderr, "no colours and no bars in a log file"
    trained = [line.split()[1] for line in tiny.output.stderr.splitlines() if line.startswith("train ")]
    assert trained == [*SHARED, *OWN]


def official_dsc(rows: pd.DataFrame) -> "pd.Series[float]":
    """By setting and case, at the official checkpoint and threshold."""
    official = rows[(rows["checkpoint"] == "source-val") & (rows["threshold"] == 0.5)]
    return official.set_index(["setting", "case"])["dsc"]


def test_every_held_out_case_leaves_a_slice_and_pooled_features(tiny: Tiny) -> None:
    run = tiny.runs["erm"]
    slices = {case: CaseSlice.load(slice_file(run.path, case)) for case in HELD_OUT}
    assert {case.case for case in slices.values()} == HELD_OUT
    assert all(case.reference_tumor.any() for case in slices.values())
    official = official_dsc(run.cases())
    pancreas = read_cases(run.stage_folder("pancreas-fine").parent / "evaluation")
    official = pd.concat([official, official_dsc(pancreas)])
    for name, shown in slices.items():
        table = {
            "coarse": official["C-Seg", name],
            "fine": official["F-Seg", name],
            "pancreas": official["P-Fine", name],
        }
        assert shown.native
        assert shown.dsc == pytest.approx(table), "pictures show the numbers of tables"
    assert not (run.path / "figures" / "slices" / "MSD").exists(), "only held-out cases are shown"
    features = pd.read_parquet(run.evaluation / "features.parquet")
    assert set(features["stage"]) == set(OWN)
    assert set(features["tissue"]) == {"tumor", "normal"}
    assert set(features[features["role"] == "held-out"]["case"]) == HELD_OUT
    assert set(features["role"]) == {"held-out", "source-val"}
    assert {len(row) for row in features["features"]} == {8}
    first = features[(features["case"] == min(HELD_OUT)) & (features["stage"] == OWN[-1])]
    tumor, normal = (first[first["tissue"] == tissue]["features"].iloc[0] for tissue in ("tumor", "normal"))
    assert (tumor != normal).any()


def test_cost_has_three_conventions_that_agree(tiny: Tiny) -> None:
    cost = json.loads((tiny.runs["erm"].path / "cost.json").read_text())
    assert list(cost) == ["table-vi", "macs", "flops"]
    assert cost["flops"]["gflops"] == 2 * cost["macs"]["gflops"] > 0
    assert cost["table-vi"]["gflops"] > cost["macs"]["gflops"]
    for values in cost.values():
        assert list(values["stages"]) == list(OWN)
        assert values["params"] == sum(stage["params"] for stage in values["stages"].values()) > 0


def test_a_second_call_answers_from_the_store(tiny: Tiny) -> None:
    before = times(tiny.root)
    command = [sys.executable, "-c", WATCHED, *tiny.arguments()]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    code, seconds, heavy = json.loads(answer.stderr.splitlines()[-1])
    assert (code, heavy) == (0, [])
    assert seconds < 3
    assert answer.stdout == tiny.output.stdout
    assert "done already" in answer.stderr
    assert times(tiny.root) == before


@pytest.mark.slow
def test_shared_stages_whose_rows_were_lost_are_judged_again(tiny: Tiny) -> None:
    before, own = results(tiny.runs["_pancreas"]), times(tiny.runs["erm"].path)
    (tiny.runs["_pancreas"].evaluation / "cases.parquet").write_bytes(b"")
    answer = tiny.call(*tiny.arguments())
    assert answer.returncode == 0, answer.stderr
    assert "evaluate pancreas-coarse, pancreas-fine on" in answer.stderr
    assert "train" not in answer.stderr
    assert answer.stdout == tiny.output.stdout
    assert differences(before, results(tiny.runs["_pancreas"])) == []
    assert times(tiny.runs["erm"].path) == own


def test_a_dry_run_of_a_finished_run_says_so(tiny: Tiny) -> None:
    answer = tiny.call(*tiny.arguments("erm", "--dry-run"))
    assert answer.returncode == 0
    assert answer.stdout.count("done") == 6


def test_the_leaderboard_lists_the_run_without_a_rank(tiny: Tiny) -> None:
    answer = tiny.call("leaderboard", "--runs", str(tiny.root), "--format", "json")
    assert answer.returncode == 0, answer.stderr
    assert "rank" in answer.stdout
    content = json.dumps(json.loads(answer.stdout))
    assert "tiny" in content
    assert "not ranked" in content
    for form in ("table", "md", "csv"):
        answer = tiny.call("leaderboard", "--runs", str(tiny.root), "--format", form, "--published")
        assert answer.returncode == 0, answer.stderr
        assert "PHANTOM DATA" in answer.stdout.splitlines()[0]
        assert "tiny" in answer.stdout


def test_mlflow_sync_brings_both_runs_and_nothing_twice(tiny: Tiny) -> None:
    first, second = (tiny.call("mlflow", "sync", "--runs", str(tiny.root)) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "2 runs added" in first.stdout
    assert "0 runs added" in second.stdout
    assert "2 as they were" in second.stdout


def interrupted(tiny: Tiny, arguments: list[str], at: str) -> tuple[int, str]:
    """Press Ctrl-C (SIGINT to the whole process group) when the line that starts with ``at`` appears; exit code and stderr."""
    with subprocess.Popen(
        [PROGRAM, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        lines: list[str] = []
        stream: Iterator[str] = iter(process.stderr)
        for line in stream:
            lines.append(line)
            if line.startswith(at):
                os.killpg(process.pid, signal.SIGINT)
                break
        lines += stream
        return process.wait(timeout=120), "".join(lines)


@pytest.mark.slow
def test_a_fresh_run_stopped_by_ctrl_c_goes_on_to_the_same_bytes(tiny: Tiny) -> None:
    run = tiny.runs["erm"]
    before, shared = results(run), times(tiny.runs["_pancreas"].path)
    code, err = interrupted(tiny, tiny.arguments("erm", "--fresh"), at="tumor-fine: 8/8")
    assert code == 130, err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("interrupted: tumor-fine: stopped ")
    assert run.status.state == "interrupted"
    assert not (run.path / "figures").exists(), "--fresh emptied the folder"
    assert read_status(run.stage_folder("tumor-coarse")).state == "done"
    answer = tiny.call(*tiny.arguments())
    assert answer.returncode == 0, answer.stderr
    assert "train tumor-fine" in answer.stderr
    assert "train tumor-coarse" not in answer.stderr
    assert "pancreas" not in answer.stderr
    assert differences(before, results(run)) == []
    assert answer.stdout == tiny.output.stdout
    assert times(tiny.runs["_pancreas"].path) == shared, "shared stages are never redone"


def test_a_sweep_goes_on_after_a_failure_and_shares_the_pancreas(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "broken_plugin.py").write_text(BROKEN)
    shared = times(tiny.runs["_pancreas"].path)
    answer = tiny.call(*tiny.arguments("broken_plugin:Broken,erm", command="sweep"), cwd=tmp_path)
    assert answer.returncode == 2
    lines = answer.stderr.splitlines()
    assert "failed: tumor-coarse: loss is nan at step 1" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert any(line.startswith("1 of 2 runs are done: 0 jobs now, ") for line in lines)
    assert lines[-1].startswith("error: 1 of 2 runs are not done; first: dgbench run --method broken_plugin:Broken ")
    broken = tiny.runs["broken"]
    assert broken.status.state == "failed"
    assert "nan" in str(broken.status.reason)
    assert broken.spec.stages["pancreas-fine"] == tiny.runs["erm"].spec.stages["pancreas-fine"]
    assert times(tiny.runs["_pancreas"].path) == shared
    table = " ".join(tiny.call("leaderboard", "--runs", str(tiny.root)).stdout.split())
    assert "broken" in table, "a failed run is listed with its reason"


@pytest.mark.slow
def test_dualtask_runs_beside_erm_on_the_same_pancreas(tiny: Tiny) -> None:
    answer = tiny.call(*tiny.arguments("dualtask"))
    assert answer.returncode == 0, answer.stderr
    assert "pancreas" not in answer.stderr
    run = tiny.runs["dualtask"]
    assert set(run.cases()["setting"]) == SETTINGS - {"P-Coarse", "P-Fine"}
    logged = json.loads((run.stage_folder("tumor-fine") / "steps.jsonl").read_text().splitlines()[0])
    assert {"loss", "phase", "step"} < set(logged)
    assert len(logged) > 6, "every term of the loss is logged"
    table = tiny.call("leaderboard", "--runs", str(tiny.root), "--format", "md").stdout
    assert "dualtask" in table
    assert "erm" in table
