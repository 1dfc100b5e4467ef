"""Keys hold what changes numbers and nothing else; data and protocol must be of one kind; nothing of the held-out center is read too
early."""

import gzip
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from training_fixtures import Mini

from dgbench.cli.options import protocol_name
from dgbench.cli.sweep import methods_of
from dgbench.data.phantom import write_phantom
from dgbench.errors import DgbenchError
from dgbench.launch import execute as execution
from dgbench.launch import jobs
from dgbench.launch.plan import RunPlan, RunRequest, data_folder, phantom_recipe, plan_run, resolve_request
from dgbench.protocol import load_protocol
from dgbench.store.folder import read_status


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    return Mini.write(tmp_path_factory.mktemp("mini"))


def plan(mini: Mini, runs: Path, *overrides: str, method: str = "erm") -> RunPlan:
    request = RunRequest(
        method, "GAMMA", protocol=str(mini.protocol), preset="mini", data=mini.data, runs=runs, cache=mini.cache
    )
    return plan_run(replace(request, threads=1, overrides=overrides))


def train_keys(made: RunPlan) -> list[str]:
    return [job.key for folder in made.folders for job in folder.training]


def test_the_default_protocol_depends_on_whose_data_it_is() -> None:
    assert protocol_name(None, None) == "phantom"
    assert protocol_name(None, Path("mine")) == "pancreas-tumor"
    assert protocol_name("hippocampus", Path("mine")) == "hippocampus"


def test_data_and_protocol_must_be_of_one_kind(mini: Mini, tmp_path: Path) -> None:
    patients = RunRequest("erm", "RENJI", protocol="phantom", preset="tiny", data=mini.data, cache=tmp_path)
    with pytest.raises(DgbenchError, match="is not a phantom, protocol 'phantom' is for a phantom"):
        plan_run(patients)
    (tmp_path / "phantom.json").write_text("{}", encoding="utf-8")
    drawn = replace(patients, protocol="pancreas-tumor", preset="demo", data=tmp_path)
    with pytest.raises(DgbenchError, match="is a phantom, protocol 'pancreas-tumor' is for patient data"):
        plan_run(drawn)


@pytest.mark.parametrize("override", ["preset.tta=true", "preset.thresholds=[0.5, 0.7]"])
def test_how_a_run_is_judged_changes_its_folder_and_not_its_weights(mini: Mini, tmp_path: Path, override: str) -> None:
    before, after = plan(mini, tmp_path), plan(mini, tmp_path, override)
    assert train_keys(before) == train_keys(after)
    assert before.own.folder != after.own.folder
    assert after.own.spec.protocol.modified


@pytest.mark.parametrize("override", ["preset.ranked=true", "preset.converged=true", "preset.ranked=false"])
def test_no_override_says_what_a_row_counts_for(mini: Mini, tmp_path: Path, override: str) -> None:
    name = override.partition("=")[0]
    with pytest.raises(
        DgbenchError, match=f"--set {name}: what the rows of a preset count for is the protocol's to say"
    ):
        plan(mini, tmp_path, override)


@pytest.mark.parametrize(
    "edit", [("draws: 16", "draws: 18"), ("version: 1", "version: 1\nmetrics: {nsd_tolerance_mm: 9.0}")]
)
def test_an_edited_protocol_of_the_same_name_and_version_has_another_content(
    mini: Mini, tmp_path: Path, edit: tuple[str, str]
) -> None:
    """Budget and metrics alike; the same file elsewhere, or an override of the preset (a stamp says so), has the same."""
    text = mini.protocol.read_text()
    assert edit[0] in text
    (tmp_path / "same.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text(text.replace(*edit))
    same, other = (plan(Mini(mini.data, tmp_path / f"{name}.yaml", mini.cache), tmp_path) for name in ("same", "other"))
    content = plan(mini, tmp_path).own.spec.protocol.content
    assert (
        same.own.spec.protocol.content == plan(mini, tmp_path, "preset.width=16").own.spec.protocol.content == content
    )
    assert other.own.spec.protocol.content != content


@pytest.mark.parametrize("override", ["preset.workers=3", "preset.checkpoint_every=7"])
def test_what_changes_no_number_changes_no_key_and_no_rank(mini: Mini, tmp_path: Path, override: str) -> None:
    before, after = plan(mini, tmp_path), plan(mini, tmp_path, override)
    assert train_keys(before) == train_keys(after)
    assert before.own.folder == after.own.folder
    assert not after.own.spec.protocol.modified


def change_a_voxel(scan: Path) -> None:
    with gzip.open(scan) as file:
        content = bytearray(file.read())
    content[-1] ^= 1
    scan.write_bytes(gzip.compress(bytes(content)))


def test_the_cached_phantom_is_known_by_its_recipe_and_other_data_by_their_bytes(tmp_path: Path) -> None:
    """Processors differ in the last bits of the same phantom; a key is the same question on all of them (protocol.md §4)."""
    request = RunRequest("erm", "RENJI", preset="tiny", threads=1, runs=tmp_path / "runs", cache=tmp_path / "cache")
    resolved = resolve_request(request)[0]
    assert resolved.preset.phantom is not None
    folder, recipe = data_folder(None, request.cache, resolved)
    write_phantom(phantom_recipe(resolved.preset.phantom), folder)
    given = replace(request, data=folder)
    before, before_given = plan_run(request), plan_run(given)
    assert {job.identity["data"] for part in before.folders for job in part.training} == {recipe}
    change_a_voxel(next((folder / "MSD" / "imagesTr").iterdir()))
    assert train_keys(plan_run(request)) == train_keys(before)
    assert set(train_keys(plan_run(given))).isdisjoint(train_keys(before_given))


def test_precision_is_the_machine_s_it_changes_the_keys_and_not_the_rank(mini: Mini, tmp_path: Path) -> None:
    before, here = plan(mini, tmp_path), plan(mini, tmp_path, "preset.precision.cpu=bf16")
    assert set(train_keys(before)).isdisjoint(train_keys(here))
    assert here.own.spec.environment.precision == "bf16"
    assert not here.own.spec.protocol.modified
    elsewhere = plan(mini, tmp_path, "preset.precision.cuda=fp32")
    assert train_keys(before) == train_keys(elsewhere)


def test_inference_that_source_validation_uses_is_in_the_train_key(mini: Mini, tmp_path: Path) -> None:
    text = mini.protocol.read_text(encoding="utf-8")
    for old, new, equal in (
        ("whole_roi_voxels: 100000", "whole_roi_voxels: 90000", False),
        ("title: Three tiny centers", "title: Other", True),
    ):
        assert old in text
        changed = tmp_path / "changed.yaml"
        changed.write_text(text.replace(old, new), encoding="utf-8")
        other = plan(Mini(mini.data, changed, mini.cache), tmp_path)
        assert (train_keys(other) == train_keys(plan(mini, tmp_path))) is equal


def test_every_possible_source_is_part_of_a_runs_identity(mini: Mini, tmp_path: Path) -> None:
    assert set(plan(mini, tmp_path).own.spec.data.centers) == {"ALPHA", "BETA"}


def test_the_official_view_cannot_be_left_out() -> None:
    for override in ({"thresholds": "[0.4]"}, {"checkpoints": "[last-step]"}):
        with pytest.raises(DgbenchError, match="the official ranking is of these"):
            load_protocol("phantom").resolve("bench", override)


def test_a_method_that_is_named_twice_is_one() -> None:
    assert methods_of("erm, randconv,erm") == ["erm", "randconv"]


def test_a_command_can_be_pasted(mini: Mini) -> None:
    request = RunRequest("erm", "GAMMA", data=Path("my data"), overrides=("preset.thresholds=[0.5, 0.7]",))
    assert (
        request.command()
        == "dgbench run --method erm --heldout GAMMA --data 'my data' --set 'preset.thresholds=[0.5, 0.7]'"
    )


def test_a_fault_outside_the_process_of_a_job_leaves_no_run_that_seems_to_go_on(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def job(*_: object) -> None:
        raise OSError("no more handles")

    made = plan(mini, tmp_path / "runs")
    monkeypatch.setattr(execution, "run_job", job)
    with pytest.raises(OSError, match="no more handles"):
        execution.execute(made, fresh=False, say=lambda text: None)
    first = made.folders[0]
    for folder in (first.folder, first.training[0].folder):
        status = read_status(folder)
        assert (status.state, status.reason) == ("failed", "unexpected OSError: no more handles")


def test_held_out_files_are_first_touched_after_all_training(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def job(function: object, content: object, title: str, folder: Path, cancelled: object) -> None:
        events.append(title)
        if title != "evaluation":
            (folder / "result.json").write_text(json.dumps({}), encoding="utf-8")

    def fingerprint(cases: object, cache: Path) -> str:
        events.append("held-out files")
        return "0" * 64

    made = plan(mini, tmp_path / "runs")
    monkeypatch.setattr(execution, "run_job", job)
    monkeypatch.setattr(jobs, "set_fingerprint", fingerprint)
    for _ in range(2):  # the second time, the stages are trained and only the evaluation is missing
        assert execution.execute(made, fresh=False, say=lambda text: None) in (True, False)
        first = events.index("held-out files")
        assert not {job.stage for job in made.own.training} & set(events[first:])
        os.remove(made.own.folder / "evaluation" / "status.json")
        os.remove(made.own.folder / "status.json")
        events.clear()
