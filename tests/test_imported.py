"""Imported prediction sets: judged like every prediction, checked like every file, and kept apart from what was trained here."""

import csv
import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from cli_calls import mistake
from leaderboard_runs import CENTERS, PROTOCOL, add_run, cell, only_table, row_of, terminal
from training_fixtures import Mini

from dgbench.atomic import write_json
from dgbench.cli import call
from dgbench.errors import DgbenchError
from dgbench.evaluation.imported import PredictedCase, import_predictions
from dgbench.evaluation.metrics import case_metrics
from dgbench.leaderboard.compile import compile_runs
from dgbench.leaderboard.evidence import table_statistics
from dgbench.leaderboard.export import to_csv
from dgbench.leaderboard.records import View
from dgbench.leaderboard.sheets import to_markdown
from dgbench.leaderboard.tables import leaderboard_sheets
from dgbench.protocol import load_protocol
from dgbench.store.folder import RunFolder, iter_runs
from dgbench.training.job import protocol_reference

SPACING = (2.0, 1.0, 1.0)


def masks(folder: Path, mini: Mini) -> Path:
    """The labels of GAMMA, moved by one voxel, as predictions."""
    folder.mkdir()
    for path in sorted((mini.data / "GAMMA" / "labelsTr").iterdir()):
        rewrite(path, folder / path.name, lambda label: np.roll(label, 1, axis=2))
    return folder


def rewrite(source: Path, target: Path, change: Callable[[Any], Any], spacing: tuple[float, ...] | None = None) -> None:
    image = sitk.ReadImage(str(source))
    written = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
    if written.GetSize() == image.GetSize():
        written.CopyInformation(image)
    if spacing is not None:
        written.SetSpacing(spacing)
    sitk.WriteImage(written, str(target))


def arguments(mini: Mini, folder: Path, runs: Path, **changes: str) -> list[str]:
    options = {"name": "closed", "heldout": "GAMMA", "protocol": str(mini.protocol), "preset": "mini"}
    options |= {"data": str(mini.data), "cache": str(mini.cache), "runs": str(runs), **changes}
    return ["import-predictions", str(folder), *(f"--{key}={value}" for key, value in options.items())]


def test_masks_become_a_finished_run(sound: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, runs = masks(tmp_path / "masks", sound), tmp_path / "runs"
    assert call(arguments(sound, folder, runs)) == 0
    (run,) = iter_runs(runs)
    assert (run.spec.method.name, run.spec.method.imported, run.spec.stages) == ("closed", True, {})
    assert run.status.state == "done"
    assert str(tmp_path) not in (run.path / "spec.json").read_text()
    rows = run.cases()
    assert set(rows["checkpoint"]) == {"imported"}
    assert list(rows["case"]) == ["GAMMA/case_00", "GAMMA/case_01"]
    reference = sitk.GetArrayFromImage(sitk.ReadImage(str(sound.data / "GAMMA" / "labelsTr" / "case_01.nii.gz"))) == 2
    expected = case_metrics(reference, np.roll(reference, 1, axis=2), SPACING, nsd_tolerance_mm=2.0)
    for name in ("dsc", "nsd", "assd", "hd95", "centroid_mm", "volume_prediction_mm3"):
        assert rows[name][1] == pytest.approx(getattr(expected, name))
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    assert call(arguments(sound, folder, runs)) == 0  # again: found
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before
    capsys.readouterr()
    assert call(["leaderboard", f"--protocol={sound.protocol}", f"--runs={runs}"]) == 0
    assert "Imported prediction sets" in capsys.readouterr().out


def test_a_set_stands_in_the_table_of_the_runs(sound: Mini, tmp_path: Path) -> None:
    """The identity of protocol, data and evaluated cases is that of a run of a method."""
    from dgbench.launch.jobs import evaluation_identity

    runs = tmp_path / "runs"
    assert call(arguments(sound, masks(tmp_path / "masks", sound), runs)) == 0
    (run,) = iter_runs(runs)
    plan = sound.plan(runs)
    assert run.spec.protocol == plan.own.spec.protocol
    assert run.spec.data == plan.own.spec.data
    stored = json.loads((run.evaluation / "spec.json").read_text())
    identity = evaluation_identity(plan, plan.own)
    assert {key: stored[key] for key in ("numbers", "fingerprint", "content")} == {
        key: identity[key] for key in ("numbers", "fingerprint", "content")
    }


def test_other_masks_and_seeds_are_other_runs(sound: Mini, tmp_path: Path) -> None:
    folder, runs = masks(tmp_path / "masks", sound), tmp_path / "runs"
    assert call(arguments(sound, folder, runs)) == 0
    assert call(arguments(sound, folder, runs, seed="1")) == 0
    path = folder / "case_00.nii.gz"
    rewrite(path, path, lambda label: np.roll(label, 1, axis=1))
    assert call(arguments(sound, folder, runs)) == 0
    assert len(list(iter_runs(runs))) == 3


def test_binary_masks_need_their_value_named(sound: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, runs = tmp_path / "binary", tmp_path / "runs"
    folder.mkdir()
    for path in (sound.data / "GAMMA" / "labelsTr").iterdir():
        rewrite(path, folder / path.name, lambda label: (label == 2).astype(np.uint8))
    text = mistake(capsys, arguments(sound, folder, runs))
    assert text.startswith("no mask holds value 2, they hold value 1 — say which values are meant with --target")
    assert not list(iter_runs(runs))
    assert call(arguments(sound, folder, runs, target="1")) == 0
    capsys.readouterr()
    (run,) = iter_runs(runs)
    assert (run.cases()["dsc"] == 1).all()
    for wrong in ("one", "0", "1,,2", "256"):
        assert "expected label values from 1 to 255" in mistake(capsys, arguments(sound, folder, runs, target=wrong))


def spoil(folder: Path, kind: str) -> None:
    path = folder / "case_01.nii.gz"
    match kind:
        case "missing":
            path.unlink()
        case "extra":
            shutil.copyfile(path, folder / "case_77.nii.gz")
        case "size":
            rewrite(path, path, lambda label: label[:-1])
        case "spacing":
            rewrite(path, path, lambda label: label, spacing=(1.0, 1.0, 2.5))
        case "value":
            rewrite(path, path, lambda label: np.where(label == 2, 7, label).astype(np.uint8))
        case "soft":
            rewrite(path, path, lambda label: (label * 0.3).astype(np.float32))
        case "nan":
            rewrite(path, path, lambda label: np.where(label == 2, np.nan, label).astype(np.float32))
        case "truncated":
            path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no mask for 1 of 2 cases of GAMMA: case_01.nii.gz — every held-out case needs one"),
        ("extra", "1 files belong to no case of GAMMA: case_77.nii.gz"),
        ("size", "grid 15×24×24 differs from reference 16×24×24 — resample the mask onto its scan"),
        ("spacing", "grid spacing 2.5×1×1 mm differs from reference 2×1×1 mm"),
        ("value", "case GAMMA/case_01: prediction has the values 7, the protocol allows 0, 1, 2"),
        ("soft", "case GAMMA/case_01: prediction has values that are not whole numbers"),
        ("nan", "NaN or infinite voxels"),
        ("truncated", "is truncated"),
    ],
)
def test_a_bad_folder_is_refused_and_nothing_written(
    sound: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, message: str
) -> None:
    folder, runs = masks(tmp_path / "masks", sound), tmp_path / "runs"
    spoil(folder, kind)
    assert message in mistake(capsys, arguments(sound, folder, runs))
    assert not list(runs.rglob("*.json"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "erm"}, "--name erm: is a method of this benchmark"),
        ({"name": "a/b"}, "--name 'a/b' cannot be used"),
        ({"heldout": "DELTA"}, "unknown held-out center 'DELTA'"),
        ({"preset": "none"}, "unknown preset 'none'"),
    ],
)
def test_a_wrong_name_is_refused(
    sound: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], message: str
) -> None:
    folder = masks(tmp_path / "masks", sound)
    assert message in mistake(capsys, arguments(sound, folder, tmp_path / "runs", **changes))
    assert "no such folder" in mistake(capsys, arguments(sound, tmp_path / "none", tmp_path / "runs"))


def cube(case: str, shift: int = 0) -> PredictedCase:
    """A cube of 4×4×4 voxels and itself moved: DSC 1 − shift/4."""
    reference = np.zeros((8, 12, 12), bool)
    reference[2:6, 4:8, 4:8] = True
    return case, np.roll(reference, shift, axis=1), reference, SPACING


def of_arrays(runs: Path, *cases: PredictedCase, heldout: str = "MSD", **changes: Any) -> RunFolder:
    return import_predictions(
        cases,
        **{"name": "closed", "heldout": heldout, "protocol": PROTOCOL, "preset": "bench", "runs": runs, **changes},
    )


def test_arrays_become_a_run(tmp_path: Path) -> None:
    run = of_arrays(tmp_path, cube("MSD/b", 2), cube("MSD/a"))
    rows = run.cases()
    assert list(rows["case"]) == ["MSD/a", "MSD/b"]
    assert list(rows["dsc"]) == [1.0, 0.5]
    assert of_arrays(tmp_path, cube("MSD/a"), cube("MSD/b", 2)).path == run.path  # the order does not matter
    assert of_arrays(tmp_path, cube("MSD/a"), cube("MSD/b", 1)).path != run.path


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ([], "no case of MSD"),
        ([cube("RENJI/a")], "case RENJI/a: is not of the held-out center"),
        ([cube("a")], "case a: is not of the held-out center"),
        ([cube("MSD/a"), cube("MSD/a")], "case MSD/a: comes twice"),
        (
            [("MSD/a", *(2 * part for part in (np.ones((2, 2, 2)), np.ones((2, 2, 2)))), SPACING)],
            "case MSD/a: .*other than 0 and 1",
        ),
        ([("MSD/a", np.ones((2, 2, 2)), np.ones((2, 2, 3)), SPACING)], "case MSD/a: masks: shapes"),
        ([("MSD/a", np.ones((2, 2, 2)), np.ones((2, 2, 2)), (1.0, 1.0))], "case MSD/a: spacing"),
    ],
)
def test_wrong_arrays_are_refused_and_nothing_written(tmp_path: Path, cases: list[PredictedCase], message: str) -> None:
    with pytest.raises(DgbenchError, match=message):
        of_arrays(tmp_path, *cases)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two trained rows at all centers, and two better imported sets on the same cases, one of them at one center with two seeds."""
    reference = protocol_reference(load_protocol("phantom").resolve("bench")).model_dump()
    for method, dsc in (("erm", 0.3), ("randconv", 0.4)):
        for center in CENTERS:
            add_run(tmp_path, method, center, cases=cell(center, dsc), protocol=reference, evaluated="these")
    same = {"evaluated": {"fingerprint": "these", "content": "these"}, "data": {"phantom": "fee1dead" * 8}}
    for center in CENTERS:
        of_arrays(tmp_path, cube(f"{center}/{center}_0000", 1), heldout=center, **same)
    for seed in (0, 4):
        of_arrays(tmp_path, cube("MSD/MSD_0000", seed // 4), name="partial", seed=seed, **same)
    return tmp_path


def test_imported_rows_are_never_ranked_and_owe_only_their_own_seeds(mixed: Path) -> None:
    table = only_table(mixed)
    assert [(row.label, row.rank, row.imported) for row in table.rows] == [
        ("randconv", 1, False),
        ("erm", 2, False),
        ("closed", None, True),
        ("partial", None, True),
    ]
    assert table.ranked
    assert table.seeds == (0,)
    assert table.statistics is not None
    assert set(table.statistics.standings) == {"erm", "randconv"}
    assert set(table.statistics.comparisons) == {"randconv", "closed"}
    closed = row_of(table, "closed")
    assert closed.mean["dsc"].mean == 0.75
    assert closed.cost is None
    assert closed.notes[0] == "imported, not trained under this protocol"
    assert not row_of(table, "partial").complete
    holes = {(hole.heldout, hole.seed) for hole in table.missing}
    assert {hole.label for hole in table.missing} == {"partial"}
    assert holes == {(center, seed) for center in ("RENJI", "RMYY") for seed in (0, 4)}
    assert table.missing[0].command.startswith("dgbench import-predictions FOLDER --name partial")


def test_imported_rows_are_a_section_of_their_own(mixed: Path) -> None:
    result = compile_runs(mixed, protocol=PROTOCOL)
    text = terminal(result)
    ranked, _, rest = text.partition("Imported prediction sets: ")
    for part in ("Official ranking", "Evidence: ", "Detection: "):
        assert "randconv" in ranked.partition(part)[2]
    assert "closed" not in ranked
    assert "not ours" in rest.partition("Missing runs")[0]
    (noted,) = (line for line in text.splitlines() if ": imported, not trained under this protocol" in line)
    assert "closed" in noted
    page = to_markdown(leaderboard_sheets(result))
    assert "| not ours | closed | 75.0 | 75.0 | 75.0 | 75.0 |" in page
    assert "imported,,closed,mean" in to_csv(result)


def add_seeds(root: Path, n_seeds: int, n_cases: int) -> None:
    """``n_seeds`` seeds of two trained rows, whose DSC vary a little with the case."""
    reference = protocol_reference(load_protocol("phantom").resolve("bench")).model_dump()
    for method, dsc in (("erm", 0.3), ("randconv", 0.4)):
        for center, seed in itertools.product(CENTERS, range(n_seeds)):
            varied = (dsc + 0.01 * seed + 0.002 * index * (method == "erm") for index in range(n_cases))
            add_run(root, method, center, seed, cases=cell(center, *varied), protocol=reference, evaluated="these")


def test_a_set_with_all_seeds_is_compared_with_the_baseline_and_changes_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    n_seeds, n_cases = 5, 3
    add_seeds(tmp_path, n_seeds, n_cases)
    alone = only_table(tmp_path).statistics
    same = {"evaluated": {"fingerprint": "these", "content": "these"}, "data": {"phantom": "fee1dead" * 8}}
    for center in CENTERS:
        for seed, shifts in enumerate(
            ((1, 2, 3), (1, 2, 4), (1, 1, 3), (2, 3, 4), (1, 1, 2), (0, 0, 0))
        ):  # one seed more
            cubes = [cube(f"{center}/{center}_{index:04d}", shift) for index, shift in enumerate(shifts)]
            of_arrays(tmp_path, *cubes, heldout=center, seed=seed, **same)
        of_arrays(
            tmp_path, *(cube(f"{center}/{center}_{i:04d}") for i in range(n_cases)), name="once", heldout=center, **same
        )
    table = only_table(tmp_path)
    found = table.statistics
    assert alone is not None
    assert found is not None
    assert found.comparisons["randconv"] == alone.comparisons["randconv"]
    assert (found.standings, found.robustness, found.notes) == (alone.standings, alone.robustness, alone.notes)
    assert set(found.comparisons) == {"randconv", "closed"}
    other = found.comparisons["closed"]
    closed = other.overall
    assert closed.mean == pytest.approx(
        1 - 31 / 15 / 4 - (0.3 + 0.02 + 0.002)
    )  # the sixth seed, a perfect one, takes no part
    assert closed.interval is not None
    randconv = found.comparisons["randconv"]
    assert randconv.p is not None
    assert other.p is not None
    assert randconv.p < other.p  # so that one family of two would double it
    assert (randconv.p_holm, other.p_holm) == (randconv.p, other.p)
    result = compile_runs(tmp_path, protocol=PROTOCOL)
    ranked, _, rest = terminal(result).partition("Imported prediction sets: ")
    assert "closed" not in ranked
    low, high = (f"{100 * bound:+.1f}" for bound in closed.interval)
    assert f"+16.1 [{low}, {high}]" in rest
    lines = csv.DictReader(line for line in to_csv(result).splitlines() if not line.startswith("#"))
    told = {
        line["method"]: (line["difference"], line["evidence"], line["tier"])
        for line in lines
        if line["center"] == "mean"
    }
    assert told["closed"] == ("16.1333", "claim", "")
    assert told["once"] == ("", "", "")


def test_one_set_of_masks_under_several_seeds_is_not_several_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    add_seeds(tmp_path, 3, 2)
    same = {"evaluated": {"fingerprint": "these", "content": "these"}, "data": {"phantom": "fee1dead" * 8}}
    for center, seed in itertools.product(CENTERS, range(3)):
        for name, shifts in (("copied", (1, 2)), ("trained", (1 + seed, 2)), ("partly", (1 + min(seed, 1), 2))):
            cubes = [cube(f"{center}/{center}_{index:04d}", shift) for index, shift in enumerate(shifts)]
            of_arrays(tmp_path, *cubes, name=name, heldout=center, seed=seed, **same)
    table = only_table(tmp_path)
    assert table.statistics is not None
    assert set(table.statistics.comparisons) == {"randconv", "trained"}
    told = [note for note in row_of(table, "copied").notes if note.startswith("equal results of several seeds")]
    assert told == [
        "equal results of several seeds at MSD, RENJI, RMYY: not compared, a system that was trained once has one seed"
    ]
    assert not any("equal results" in note for note in row_of(table, "trained").notes)


def test_a_set_of_other_cases_costs_the_trained_rows_nothing() -> None:
    """Sets are compared apart: what forbids it is noted, and trained rows keep their statistics."""
    frame = pd.concat(
        pd.DataFrame(cell(center, 0.5, 0.6)[: 1 + (method != "closed")]).assign(method=method, seed=0)
        for method in ("erm", "randconv", "closed")
        for center in CENTERS
    )
    found = table_statistics(frame, baseline="erm", ranked=["erm", "randconv"], imported=["closed"], metrics=["dsc"])
    assert found is not None
    assert set(found.comparisons) == {"randconv"}
    assert found.notes[-1].startswith("no statistics of imported sets: scores: closed has no dsc for MSD")


def test_imported_rows_stand_in_every_view_of_their_setting_only(mixed: Path) -> None:
    for view in (View(policy="paper"), View(checkpoint="last-step"), View(threshold=0.9)):
        table = only_table(mixed, view=view)
        assert row_of(table, "closed").mean["dsc"].mean == 0.75
        assert not table.ranked
    oracle = only_table(mixed, view=View(setting="F-Mask"))
    assert {row.label for row in oracle.rows} == {"erm", "randconv"}


def test_other_data_never_share_a_table(mixed: Path) -> None:
    """Nor does a set on other cases of one center take the runs of other centers, which do not speak of them, however new it is."""
    run = of_arrays(mixed, cube("MSD/MSD_0000"), name="elsewhere", data={"phantom": "fee1dead" * 8})
    write_json(run.path / "status.json", {"state": "done", "updated": "2036-01-01T00:00:00+00:00"})
    tables = compile_runs(mixed, protocol=PROTOCOL).tables
    assert sorted(sorted(row.label for row in table.rows) for table in tables) == [
        ["closed", "erm", "partial", "randconv"],
        ["elsewhere"],
    ]


def test_a_table_of_imports_alone_is_not_ranked(tmp_path: Path) -> None:
    for center in CENTERS:
        of_arrays(tmp_path, cube(f"{center}/a", 1), heldout=center)
    table = only_table(tmp_path)
    assert not table.ranked
    assert table.rows[0].rank is None
    assert table.rows[0].mean["dsc"].mean == 0.75
    assert "Imported prediction sets" in terminal(compile_runs(tmp_path, protocol=PROTOCOL))


def test_a_set_is_mirrored(tmp_path: Path) -> None:
    from dgbench.store.snapshot import take_snapshot

    shot = take_snapshot(of_arrays(tmp_path, cube("MSD/a", 1)))
    assert any(point.name == "held-out/MSD/F-Seg/imported/dsc" for point in shot.points)


def test_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parent.parent / "docs" / "submitting.md"
    (code,) = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(page), "exec"), {})
    (run,) = iter_runs(tmp_path / "runs")
    assert list(run.cases()["dsc"]) == [0.75]
