"""Honesty rule 1: the held-out center is unreadable while training. Shown by a spy, by breaking in, by taking the center away, and by
replacing it with noise: no key and no byte of the weights may change."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import yaml
from scans import make_case
from training_fixtures import Mini, outcome, quiet

from dgbench.data import guard
from dgbench.data.case import Case, Center
from dgbench.data.fingerprint import content_hash
from dgbench.data.preparation import PreparedCase, prepare_case
from dgbench.data.reading import read_case, read_label, read_volume
from dgbench.errors import HeldOutAccessError
from dgbench.launch.jobs import evaluation_identity
from dgbench.launch.plan import RunPlan, plan_run
from dgbench.protocol import Protocol, load_protocol
from dgbench.task import Task, Window
from dgbench.training.job import TrainJob
from dgbench.training.loop import train

HELDOUT = "GAMMA"
TASK = Task(spacing=(2.0, 1.0, 1.0), intensity=Window(low=-100, high=240))

SPY = """
import json, pickle, sys
opened = []
names = {"open": 0, "os.listdir": 0, "os.scandir": 0, "os.rename": 0, "shutil.copyfile": 0}
sys.addaudithook(lambda event, args: opened.append(str(args[names[event]])) if event in names else None)
from pathlib import Path
job = pickle.loads(Path(sys.argv[1]).read_bytes())
from dgbench.training.loop import train
train(job, lambda done, total, text="": None)
Path(sys.argv[2]).write_text(json.dumps(opened))
"""


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    """Three centers; the first stage is trained by a recipe, as the shared pancreas stages are."""
    written = Mini.write(tmp_path_factory.mktemp("mini"))
    content = yaml.safe_load(written.protocol.read_text())
    content["stages"]["organ"]["recipe"] = "erm"
    written.protocol.write_text(yaml.safe_dump(content, sort_keys=False))
    return written


def jobs(plan: RunPlan) -> list[TrainJob]:
    return [job for folder in plan.folders for job in folder.training]


@pytest.fixture(scope="module")
def trained(mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What both stages of the undisturbed run leave."""
    return train_all(mini.plan(tmp_path_factory.mktemp("runs")))


def train_all(plan: RunPlan) -> dict[str, dict[str, Any]]:
    for job in jobs(plan):
        train(job, quiet)
    return {job.stage: outcome(job.folder) for job in jobs(plan)}


def test_the_split_gives_the_held_out_center_to_no_training_job(mini: Mini, tmp_path: Path) -> None:
    plan = mini.plan(tmp_path)
    assert [job.stage for job in jobs(plan)] == ["organ", "lesion"]
    for job in jobs(plan):
        assert HELDOUT not in {case.center for case in job.cases}
        assert not [name for name in (*job.split.train, *job.split.validation) if name.startswith(HELDOUT)]
        assert HELDOUT not in json.dumps(job.identity["split"]["sources"])


def test_a_spy_sees_no_held_out_path_opened(mini: Mini, tmp_path: Path) -> None:
    job = mini.job(tmp_path / "runs")
    (tmp_path / "job").write_bytes(pickle.dumps(replace(job, cache=tmp_path / "cache")))
    command = [sys.executable, "-c", SPY, str(tmp_path / "job"), str(tmp_path / "opened")]
    subprocess.run(command, check=True, timeout=200)
    opened = [os.path.realpath(path) for path in json.loads((tmp_path / "opened").read_text())]
    sources = [path for path in opened if path.startswith(str(mini.data / "ALPHA"))]
    assert len(set(sources)) >= 10, "the spy sees the images and labels of a source center"
    assert not [path for path in opened if path.startswith(str(mini.data / HELDOUT))]


def test_training_does_not_need_the_held_out_center_at_all(
    mini: Mini, trained: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """Readers written in C escape a spy in Python; a file that is not there escapes nobody."""
    shutil.copytree(mini.data, tmp_path / "data")
    plan = Mini(tmp_path / "data", mini.protocol, tmp_path / "cache").plan(tmp_path / "runs")
    shutil.rmtree(tmp_path / "data" / HELDOUT)
    assert train_all(plan) == trained


def noise_center(folder: Path) -> None:
    """Replace every image by noise and every label by another mask, on another grid."""
    rng = np.random.default_rng(7)
    for name in sorted(path.name for path in (folder / "imagesTr").iterdir()):
        for kind, array in (
            ("imagesTr", rng.integers(-3000, 3000, (9, 20, 30)).astype(np.int16)),
            ("labelsTr", rng.integers(0, 3, (9, 20, 30)).astype(np.uint8)),
        ):
            sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / kind / name))


def test_noise_in_place_of_the_held_out_center_changes_no_key_and_no_byte(
    mini: Mini, trained: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    before = mini.plan(tmp_path / "before")
    shutil.copytree(mini.data, tmp_path / "data")
    noise_center(tmp_path / "data" / HELDOUT)
    after = Mini(tmp_path / "data", mini.protocol, tmp_path / "cache").plan(tmp_path / "after")
    assert [job.key for job in jobs(after)] == [job.key for job in jobs(before)]
    assert [folder.spec.key for folder in after.folders] == [folder.spec.key for folder in before.folders]
    assert train_all(after) == trained
    old, new = (evaluation_identity(plan, plan.own) for plan in (before, after))
    assert old["train_keys"] == new["train_keys"]
    assert old["key"] != new["key"], "what was evaluated is another set"
    other = plan_run(replace(after.request, heldout="ALPHA")).own.spec.data.centers
    assert new["heldout"] == {HELDOUT: other[HELDOUT]} != old["heldout"], "judged or trained on, it is the same data"


# --- breaking in ------------------------------------------------------------------------------------------------------------------


def heldout_case(mini: Mini) -> Case:
    folder = mini.data / HELDOUT
    return Case(HELDOUT, "case_00", folder / "imagesTr" / "case_00.nii.gz", folder / "labelsTr" / "case_00.nii.gz")


def through_a_link(mini: Mini, scratch: Path) -> object:
    link = scratch / "innocent.nii.gz"
    link.symlink_to(heldout_case(mini).image)
    return link.read_bytes()


def by_a_relative_path(mini: Mini, scratch: Path) -> object:
    return open(os.path.relpath(heldout_case(mini).image), "rb")


def by_descriptor(mini: Mini, scratch: Path) -> object:
    return os.open(heldout_case(mini).label, os.O_RDONLY)


def reader_of_its_own(mini: Mini, scratch: Path) -> object:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(heldout_case(mini).image))
    return reader.Execute()


def protocol_of(mini: Mini) -> Protocol:
    return load_protocol(str(mini.protocol))


BREAK_INS: dict[str, Callable[[Mini, Path], object]] = {
    "open": lambda mini, scratch: heldout_case(mini).image.open("rb"),
    "bytes path": lambda mini, scratch: open(os.fsencode(heldout_case(mini).image), "rb"),  # noqa: SIM115
    "link": through_a_link,
    "relative path": by_a_relative_path,
    "descriptor": by_descriptor,
    "manifest": lambda mini, scratch: (mini.data / HELDOUT / "dataset.json").read_text(),
    "copy": lambda mini, scratch: shutil.copy(heldout_case(mini).image, scratch),
    "SimpleITK": lambda mini, scratch: sitk.ReadImage(str(heldout_case(mini).image)),
    "SimpleITK by path": lambda mini, scratch: sitk.ReadImage(heldout_case(mini).label),
    "SimpleITK series": lambda mini, scratch: sitk.ReadImage([str(heldout_case(mini).image)] * 2),
    "SimpleITK reader": reader_of_its_own,
    "numpy": lambda mini, scratch: np.fromfile(heldout_case(mini).image, np.uint8),
    "read_case": lambda mini, scratch: read_case(heldout_case(mini), protocol_of(mini).task, (1, 2)),
    "read_label": lambda mini, scratch: read_label(heldout_case(mini), protocol_of(mini).task, (1, 2)),
    "hash": lambda mini, scratch: content_hash(heldout_case(mini).image, mini.cache),
    "prepare": lambda mini, scratch: prepare_case(heldout_case(mini), protocol_of(mini), mini.cache),
    "other center's files": lambda mini, scratch: prepare_case(
        Case(HELDOUT, "x", mini.data / "ALPHA/imagesTr/case_00.nii.gz", mini.data / "ALPHA/labelsTr/case_00.nii.gz"),
        protocol_of(mini),
        mini.cache,
    ),
    "disguised": lambda mini, scratch: prepare_case(
        Case("ALPHA", "case_00", heldout_case(mini).image, heldout_case(mini).label), protocol_of(mini), mini.cache
    ),
}


@pytest.mark.parametrize("name", BREAK_INS)
def test_no_way_into_the_held_out_center_from_a_training(mini: Mini, tmp_path: Path, name: str) -> None:
    job = mini.job(tmp_path / "runs")
    prepare_case(heldout_case(mini), protocol_of(mini), mini.cache)  # an earlier evaluation left it in the cache

    def intrude(done: int, total: int, text: str = "") -> None:
        BREAK_INS[name](mini, tmp_path)

    with pytest.raises(HeldOutAccessError, match="allow-list"):
        train(job, intrude)


def maps(prepared: PreparedCase) -> dict[str, Callable[[], object]]:
    zero, one = (0, 0, 0), (1, 1, 1)
    return {
        "image": lambda: prepared.image,
        "label": lambda: prepared.label,
        "image_box": lambda: prepared.image_box(zero, one),
        "label_box": lambda: prepared.label_box(zero, one),
    }


def test_memory_maps_of_a_case_that_was_prepared_before_stay_shut(mini: Mini, tmp_path: Path) -> None:
    job = mini.job(tmp_path)
    foreign = prepare_case(heldout_case(mini), protocol_of(mini), mini.cache)
    source = prepare_case(job.cases[0], protocol_of(mini), mini.cache)
    with guard.guarding(job.split.train + job.split.validation, job.centers):
        for reach in maps(foreign).values():
            with pytest.raises(HeldOutAccessError, match="GAMMA/case_00"):
                reach()
        for reach in maps(source).values():
            reach()
    for reach in maps(foreign).values():
        reach()


def test_what_other_runs_keep_of_held_out_cases_is_shut_for_the_code_of_a_method(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = mini.job(tmp_path / "runs")
    slices = tmp_path / "runs" / "mini" / HELDOUT / "erm" / "seed7-00000000" / "figures" / "slices" / "case_00.npz"
    slices.parent.mkdir(parents=True)
    np.savez(slices, image=np.zeros(1))
    monkeypatch.setattr("dgbench.training.loop.method_of", lambda *_: np.load(slices))
    with pytest.raises(HeldOutAccessError, match="case_00"):
        train(job, quiet)


@pytest.mark.parametrize("reach", [np.load, Path.read_bytes], ids=["numpy", "bytes"])
def test_what_an_evaluation_prepared_is_shut_for_the_code_of_a_method(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reach: Callable[[Path], object]
) -> None:
    """Under its path too, from the moment the method is built; the cases of the training stay open."""
    job = mini.job(tmp_path / "runs")
    foreign = prepare_case(heldout_case(mini), protocol_of(mini), mini.cache)
    source = prepare_case(job.cases[0], protocol_of(mini), mini.cache)

    def build(*_: object) -> None:
        reach(source.folder / "image.npy")
        reach(foreign.folder / "image.npy")

    monkeypatch.setattr("dgbench.training.loop.method_of", build)
    with pytest.raises(HeldOutAccessError, match="allow-list") as refused:
        train(job, quiet)
    assert str(foreign.folder) in str(refused.value)


def test_support_cases_are_shut_out_of_stages_that_do_not_train_on_them(mini: Mini, tmp_path: Path) -> None:
    """The allow-list is the stage's, case by case: a center with one allowed case keeps its others shut."""
    job = mini.job(tmp_path)
    allowed, other = job.cases[0], job.cases[1]
    with guard.guarding([allowed.id], job.centers):
        allowed.image.read_bytes()
        with pytest.raises(HeldOutAccessError):
            other.image.read_bytes()


def test_guards_nest_and_end(mini: Mini, tmp_path: Path) -> None:
    job, case = mini.job(tmp_path), heldout_case(mini)
    with guard.guarding(job.split.train, job.centers), guard.guarding([case.id], job.centers):
        case.image.read_bytes()
    with guard.guarding(job.split.train, job.centers):
        with guard.guarding([case.id], job.centers):
            pass
        with pytest.raises(HeldOutAccessError):
            case.image.read_bytes()
    case.image.read_bytes()


def test_loader_workers_are_guarded_too(mini: Mini, tmp_path: Path) -> None:
    from torch.utils.data import DataLoader

    job, case = mini.job(tmp_path), heldout_case(mini)
    with guard.guarding(job.split.train, job.centers):
        loader = DataLoader([0], batch_size=None, num_workers=1, collate_fn=lambda _: case.image.read_bytes())
        with pytest.raises(HeldOutAccessError, match="allow-list"):
            next(iter(loader))


# --- on files alone, without a training ------------------------------------------------------------------------------------------


@pytest.fixture
def hospitals(tmp_path: Path) -> dict[str, Center]:
    centers = {}
    for name in ("MSD", "RENJI"):
        cases = tuple(make_case(tmp_path, f"{name}_{number}", center=name) for number in range(2))
        centers[name] = Center(name, tmp_path / name, cases, {"pancreas": 1, "tumor": 2})
        (tmp_path / name / "dataset.json").write_text("{}")
    return centers


def test_guard_refuses_cases_off_its_list_before_they_are_opened(
    hospitals: dict[str, Center], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: (opened.append(self), original(self))[1])
    allowed, validation = hospitals["MSD"].cases
    heldout = hospitals["RENJI"].cases[0]
    with guard.guarding([allowed.id], hospitals.values()):
        read_case(allowed, TASK, (1, 2))
        for case in (validation, heldout):
            with pytest.raises(HeldOutAccessError, match=f"case {case.id}: not on the allow-list"):
                read_case(case, TASK, (1, 2))
            with pytest.raises(HeldOutAccessError):
                read_volume(case.image, what="image")
    assert set(opened) == {allowed.image, allowed.label}
    read_case(heldout, TASK, (1, 2))


def test_guard_hook_refuses_any_python_open(hospitals: dict[str, Center], tmp_path: Path) -> None:
    allowed, other = hospitals["MSD"].cases
    heldout = hospitals["RENJI"]
    link = tmp_path / "innocent.bin"
    link.symlink_to(heldout.cases[0].image)
    ways = [
        lambda path: path.read_bytes(),
        lambda path: Path(str(path)).read_text(encoding="latin-1"),
        lambda path: os.open(path, os.O_RDONLY),
        lambda path: os.open(os.fsencode(path), os.O_RDONLY),
        lambda path: np.memmap(path, mode="r"),
    ]
    forbidden = [other.image, heldout.cases[1].label, heldout.folder / "dataset.json", link]
    with guard.guarding([allowed.id], hospitals.values()):
        for path in forbidden:
            for way in ways:
                with pytest.raises(HeldOutAccessError, match="outside the allow-list"):
                    way(path)
        assert allowed.image.read_bytes()
        assert (hospitals["MSD"].folder / "dataset.json").read_text() == "{}"
    for path in forbidden:
        assert path.read_bytes()


def test_guard_is_restored_also_after_an_error(hospitals: dict[str, Center]) -> None:
    first, second = hospitals["MSD"].cases
    with guard.guarding([first.id, second.id], hospitals.values()):
        with pytest.raises(HeldOutAccessError), guard.guarding([first.id], hospitals.values()):
            guard.check(second)
        guard.check(second)


def test_guard_holds_in_forked_workers(hospitals: dict[str, Center]) -> None:
    with guard.guarding([hospitals["MSD"].cases[0].id], hospitals.values()):
        child = os.fork()
        if child == 0:
            try:
                hospitals["RENJI"].cases[0].image.read_bytes()
            except HeldOutAccessError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
