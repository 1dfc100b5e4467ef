"""Preparation: a cached case is complete or absent, boxes and the way back are exact."""

import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scans import SIZE, SPACING, itk_linear, make_case, mask, save, scan

from dgbench.data import fingerprint, guard, preparation, resampling
from dgbench.data.case import Case, Center
from dgbench.errors import DgbenchError, HeldOutAccessError
from dgbench.protocol import Protocol, load_protocol
from dgbench.task import Percentile, Task, Window

CT = Task(spacing=(2.0, 1.1, 1.0), intensity=Window(low=-100, high=240))


def protocol(task: Task = CT) -> Protocol:
    return load_protocol("phantom").model_copy(update={"name": "small", "task": task})


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_prepared_case_holds_the_resampled_window(case: Case, cache: Path) -> None:
    prepared = preparation.prepare_case(case, protocol(), cache)
    assert prepared.size == (23, 16, 17)
    assert prepared.spacing == CT.spacing
    assert prepared.native.size == SIZE
    assert prepared.native.spacing == pytest.approx(SPACING)
    assert isinstance(prepared.image, np.memmap)
    assert prepared.image.dtype == np.uint16
    assert prepared.image.shape == (1, 23, 16, 17)
    hounsfield = itk_linear(scan(), SPACING, prepared.size, CT.spacing)
    expected = (np.clip(hounsfield, -100, 240) + 100) / 340
    got = prepared.image_box((0, 0, 0), prepared.size)
    assert got.dtype == np.float32
    assert (got.min(), got.max()) == (0, 1)
    known = np.isfinite(expected)
    np.testing.assert_allclose(got[0][known], expected[known], atol=0.5 / 65535 + 2e-5)
    at = resampling.coordinates(prepared.size, CT.spacing, SPACING)
    np.testing.assert_array_equal(prepared.label, resampling.labels(mask(), at))


def test_percentile_intensities_are_those_of_the_native_image(case: Case, cache: Path) -> None:
    task = Task(spacing=SPACING, intensity=Percentile(low=10, high=90))
    prepared = preparation.prepare_case(case, protocol(task), cache)
    low, high = np.percentile(scan(), (10, 90))
    expected = np.clip((scan() - low) / (high - low), 0, 1)
    np.testing.assert_allclose(prepared.image_box((0, 0, 0), SIZE)[0], expected, atol=1e-5)


def test_constant_image_has_no_percentiles(tmp_path: Path, cache: Path) -> None:
    case = make_case(tmp_path, image=np.full(SIZE, 7, np.int16))
    task = Task(spacing=SPACING, intensity=Percentile())
    with pytest.raises(DgbenchError, match=r"case A/1: image .* is constant: .* are both 7"):
        preparation.prepare_case(case, protocol(task), cache)
    assert preparation.prepare_case(case, protocol(), cache).image[0, 0, 0, 0] == round(107 / 340 * 65535)


def test_boxes_are_those_of_the_labels(case: Case, cache: Path) -> None:
    prepared = preparation.prepare_case(case, protocol(), cache)
    for labels in ([1], [2], [1, 2]):
        where = np.argwhere(np.isin(prepared.label, labels))
        assert prepared.box(labels) == (tuple(where.min(0)), tuple(where.max(0) + 1))
    assert prepared.box([3]) is None


def test_box_beyond_the_volume_is_padded_with_zeros(case: Case, cache: Path) -> None:
    prepared = preparation.prepare_case(case, protocol(), cache)
    low, high = (-3, 5, 10), (4, 9, 30)
    image, label = prepared.image_box(low, high), prepared.label_box(low, high)
    assert image.shape == (1, 7, 4, 20)
    assert label.shape == (7, 4, 20)
    np.testing.assert_array_equal(image[:, 3:, :, :7] * 65535, np.asarray(prepared.image[:, :4, 5:9, 10:]))
    np.testing.assert_array_equal(label[3:, :, :7], prepared.label[:4, 5:9, 10:])
    assert not image[:, :3].any()
    assert not image[..., 7:].any()
    assert not prepared.image_box((100, 0, 0), (101, 2, 2)).any()
    label[:] = 9
    assert prepared.label.max() == 2


def test_to_native_is_linear_and_covers_the_box(case: Case, cache: Path) -> None:
    prepared = preparation.prepare_case(case, protocol(), cache)
    low, shape = (4, 3, 5), (12, 6, 7)
    z, y, x = (start + np.arange(n) * 1.0 for start, n in zip(low, shape, strict=True))
    ramp = z[:, None, None] * 2 + y[:, None] * 1.1 - x
    box, first = preparation.to_native(prepared, ramp, low)
    index = np.stack(
        np.meshgrid(*(start + np.arange(n) for start, n in zip(first, box.shape, strict=True)), indexing="ij")
    )
    task = index * (np.array(SPACING) / CT.spacing)[:, None, None, None]
    last = np.array(low) + shape - 1
    clamped = np.clip(task, np.array(low)[:, None, None, None], last[:, None, None, None])
    np.testing.assert_allclose(box, 2 * clamped[0] + 1.1 * clamped[1] - clamped[2], atol=1e-4)
    for axis in range(3):
        centers = np.arange(SIZE[axis]) * SPACING[axis] / CT.spacing[axis]
        inside = np.flatnonzero((centers >= low[axis] - 0.5) & (centers < last[axis] + 0.5))
        assert (inside[0], len(inside)) == (first[axis], box.shape[axis])


def test_to_native_of_the_whole_volume_covers_the_whole_volume(case: Case, cache: Path) -> None:
    for task in (CT, Task(spacing=(17.0, 3.9, 3.1), intensity=CT.intensity)):
        prepared = preparation.prepare_case(case, protocol(task), cache)
        padded = np.ones([n + 6 for n in prepared.size])
        box, first = preparation.to_native(prepared, padded, (-3, -3, -3))
        assert (box.shape, first) == (SIZE, (0, 0, 0))
        assert (box == 1).all()
        box, first = preparation.to_native(prepared, np.ones(prepared.size), (0, 0, 0))
        assert (box.shape, first) == (SIZE, (0, 0, 0))


def test_label_returns_to_the_native_grid(case: Case, cache: Path) -> None:
    fine = Task(spacing=(1.0, 0.45, 0.35), intensity=CT.intensity)
    prepared = preparation.prepare_case(case, protocol(fine), cache)
    reference, grid = preparation.native_label(case, protocol(fine))
    assert grid == prepared.native
    box, _ = preparation.to_native(prepared, (prepared.label == 2).astype(np.float32), (0, 0, 0))
    again, truth = box > 0.5, reference == 2
    assert 2 * (again & truth).sum() / (again.sum() + truth.sum()) > 0.95


def test_two_dimensional_task(tmp_path: Path, cache: Path) -> None:
    case = make_case(tmp_path, image=scan()[:1], label=mask()[4:5])
    task = Task(ndim=2, spacing=(0.45, 0.7), intensity=CT.intensity)
    prepared = preparation.prepare_case(case, protocol(task), cache)
    assert prepared.image.shape == (1, 40, 24)
    assert prepared.label_box((-1, 0), (41, 24)).shape == (42, 24)
    box, first = preparation.to_native(prepared, np.ones(prepared.size), (0, 0))
    assert (box.shape, first) == (SIZE[1:], (0, 0))
    np.testing.assert_array_equal(preparation.native_label(case, protocol(task))[0], mask()[4])


def test_second_call_opens_what_the_first_left(case: Case, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = preparation.prepare_case(case, protocol(), cache)
    monkeypatch.setattr(preparation, "read_case", lambda *_: pytest.fail("read again"))
    assert preparation.prepare_case(case, protocol(), cache) == first
    assert pickle.loads(pickle.dumps(first)) == first


def test_key_follows_content_and_task(case: Case, cache: Path) -> None:
    first = preparation.prepare_case(case, protocol(), cache).folder
    other = Task(spacing=CT.spacing, intensity=Window(low=-100, high=241))
    assert preparation.prepare_case(case, protocol(other), cache).folder != first
    copy = Case("B", "9", case.image.with_name("9.nii.gz"), case.label.with_name("9.nii.gz"))
    copy.image.write_bytes(case.image.read_bytes())
    copy.label.write_bytes(case.label.read_bytes())
    assert preparation.prepare_case(copy, protocol(), cache).folder == first
    save(case.image, scan() + 1)
    assert preparation.prepare_case(case, protocol(), cache).folder != first


def test_concurrent_writers_leave_one_complete_folder(case: Case, cache: Path) -> None:
    barrier = threading.Barrier(6)
    results: list[object] = []

    def work() -> None:
        barrier.wait()
        try:
            results.append(preparation.prepare_case(case, protocol(), cache).folder)
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert len(set(results)) == 1, results
    assert sorted(path.name for path in preparation.prepared_root(cache).iterdir()) == [results[0].name]


def test_folder_appears_complete_by_one_rename(case: Case, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], bool]] = []
    rename = Path.rename

    def spy(self: Path, target: Path) -> Path:
        seen.append((sorted(path.name for path in self.iterdir()), target.exists()))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", spy)
    preparation.prepare_case(case, protocol(), cache)
    assert seen == [(["geometry.json", "image.npy", "label.npy"], False)]


def test_interrupted_write_leaves_nothing(case: Case, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(DgbenchError, match=r"cannot be written \(No space left"):
            preparation.prepare_case(case, protocol(), cache)
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    preparation.prepare_case(case, protocol(), cache)


def test_cache_that_cannot_be_made_is_an_error(case: Case, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DgbenchError, match=r"cannot be written \(Not a directory"):
        preparation.prepare_case(case, protocol(), tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "content"), [("image.npy", b"\x93NUMPY"), ("label.npy", b""), ("geometry.json", b"{")]
)
def test_damaged_cache_is_named(case: Case, cache: Path, name: str, content: bytes) -> None:
    folder = preparation.prepare_case(case, protocol(), cache).folder
    (folder / name).write_bytes(content)
    with pytest.raises(DgbenchError, match=rf"case A/1: its prepared folder .* is damaged .*{name}.* — delete it"):
        _ = (prepared := preparation.prepare_case(case, protocol(), cache)).image, prepared.label


def test_image_of_another_case_in_the_cache_is_noticed(case: Case, cache: Path) -> None:
    prepared = preparation.prepare_case(case, protocol(), cache)
    np.save(prepared.folder / "image.npy", np.zeros((1, 2, 3, 4), np.uint16))
    with pytest.raises(DgbenchError, match=r"image.npy is not uint16 of shape \(1, 23, 16, 17\)"):
        _ = prepared.image


def test_bad_case_ends_the_pass_with_its_line(tmp_path: Path, cache: Path) -> None:
    cases = [make_case(tmp_path, "1"), make_case(tmp_path, "2", label=mask() * 7)]
    told: list[tuple[str, int, int]] = []
    with pytest.raises(DgbenchError, match="case A/2: label has the values 7, 14"):
        preparation.prepare_cases(cases, protocol(), cache, lambda *args: told.append(args))
    assert told == [("A/1", 1, 2)]
    assert list(preparation.prepare_cases(cases[:1], protocol(), cache)) == ["A/1"]


def test_guard_covers_prepared_cases(tmp_path: Path, cache: Path) -> None:
    allowed, heldout = make_case(tmp_path, "1"), make_case(tmp_path, "2", image=scan() + 1)
    center = Center("A", tmp_path / "A", (allowed, heldout), {})
    prepared = preparation.prepare_cases(center.cases, protocol(), cache)
    with guard.guarding([allowed.id], [center]):
        assert preparation.prepare_case(allowed, protocol(), cache).image.size
        attempts = [
            lambda: preparation.prepare_case(heldout, protocol(), cache),
            lambda: prepared[heldout.id].image,
            lambda: prepared[heldout.id].label_box((0, 0, 0), (1, 1, 1)),
            lambda: preparation.native_label(heldout, protocol()),
            lambda: fingerprint.content_hash(heldout.image, cache),
            lambda: fingerprint.center_fingerprint(center, cache),
        ]
        for attempt in attempts:
            with pytest.raises(HeldOutAccessError):
                attempt()


def test_real_scans_are_prepared(real_data: Path, cache: Path) -> None:
    mri = protocol(Task(spacing=(1.5, 1.0, 1.0), intensity=Percentile()))
    folder = real_data / "hippocampus"
    cases = [
        Case("A", path.name.removesuffix(".nii.gz"), path, folder / "labelsTr" / path.name)
        for path in sorted((folder / "imagesTr").glob("*.nii.gz"))
    ]
    prepared = preparation.prepare_cases(cases, mri, cache)
    for case, each in ((case, prepared[case.id]) for case in cases):
        image = each.image_box((0, 0, 0), each.size)
        assert (image.min(), image.max()) == (0, 1)
        assert 0.05 < image.mean() < 0.9
        reference, _ = preparation.native_label(case, mri)
        for value in (1, 2):
            native = (reference == value).sum() * np.prod(each.native.spacing)
            assert (each.label == value).sum() * 1.5 == pytest.approx(native, rel=0.06)


def test_real_ct_is_prepared(real_data: Path, tmp_path: Path, cache: Path) -> None:
    folder = real_data / "totalsegmentator_ct"
    pancreas = sitk.ReadImage(str(folder / "example_seg.nii.gz")) == 7
    sitk.WriteImage(pancreas, str(tmp_path / "pancreas.nii.gz"))
    ct = protocol(Task(spacing=(1.5, 0.8, 0.8), intensity=CT.intensity))
    case = Case("CT", "sm", folder / "example_ct_sm.nii.gz", tmp_path / "pancreas.nii.gz")
    each = preparation.prepare_case(case, ct, cache)
    assert each.size == (60, 379, 458)
    assert (each.label == 1).sum() * 1.5 * 0.8 * 0.8 == pytest.approx(644 * 27, rel=0.06)
    low, high = each.box([1])
    inside = each.image_box(low, high)[0][each.label_box(low, high) == 1] * 340 - 100
    native = sitk.GetArrayFromImage(sitk.ReadImage(str(case.image)))[sitk.GetArrayFromImage(pancreas) == 1]
    assert inside.mean() == pytest.approx(np.clip(native, -100, 240).mean(), abs=5)
