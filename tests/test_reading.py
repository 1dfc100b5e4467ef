"""Reading a case: every data fault of a NIfTI pair is named in one line; what is read equals SimpleITK."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dgbench.data.case import Case
from dgbench.data.reading import GRID_TOLERANCE_MM, read_case, read_label, read_volume
from dgbench.errors import DgbenchError
from dgbench.task import Task, Window

TASK = Task(spacing=(2.0, 1.0, 1.0), intensity=Window(low=-100, high=240))
SIZE = (6, 8, 10)
SPACING = (2.5, 0.75, 0.5)
ORIGIN = (-10.0, 20.0, -300.0)


def scan() -> np.ndarray:
    return np.random.default_rng(0).integers(-200, 300, SIZE).astype(np.int16)


def mask() -> np.ndarray:
    label = np.zeros(SIZE, np.uint8)
    label[2:4, 2:6, 3:7] = 1
    label[3, 3:5, 4:6] = 2
    return label


def save(path: Path, array: np.ndarray, spacing=SPACING, origin=ORIGIN, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(step) for step in spacing[::-1]])
    image.SetOrigin(origin)
    image.SetDirection([float(cosine) for cosine in direction])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def make_case(folder: Path, center: str = "RENJI", name: str = "0042") -> Case:
    image, label = (folder / center / part / f"{name}.nii.gz" for part in ("imagesTr", "labelsTr"))
    save(image, scan())
    save(label, mask())
    return Case(center, name, image, label)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path)


def read(case: Case):
    return read_case(case, TASK, (1, 2))


def edit(path: Path, offset: int, form: str, *values: float) -> None:
    """Overwrite header fields inside the compressed file."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(form, raw, offset, *values)
    path.write_bytes(gzip.compress(bytes(raw)))


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def flip_byte(raw: bytes) -> bytes:
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 0x10]) + raw[middle + 1 :]


def relabel(case: Case, change: Callable[[np.ndarray], np.ndarray]) -> None:
    save(case.label, change(mask()))


def with_value(value: float, kind: type) -> Callable[[Case], None]:
    def fault(case: Case) -> None:
        image = scan().astype(kind)
        image[1, 2, 3] = value
        save(case.image, image)

    return fault


FAULTS: dict[str, tuple[Callable[[Case], object], str]] = {
    "truncated at half": (lambda c: rewrite(c.image, lambda raw: raw[: len(raw) // 2]), "image .* is truncated: "),
    "last 8 bytes missing": (lambda c: rewrite(c.image, lambda raw: raw[:-8]), "is truncated: 1,312 of 1,312 bytes"),
    "one byte flipped": (lambda c: rewrite(c.image, flip_byte), "is damaged: its gzip stream does not check"),
    "flipped in the checksum": (
        lambda c: rewrite(c.image, lambda raw: raw[:-6] + bytes([raw[-6] ^ 1]) + raw[-5:]),
        "incorrect data check",
    ),
    "wrong length in the trailer": (
        lambda c: rewrite(c.image, lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])),
        "incorrect length check",
    ),
    "0 bytes": (lambda c: c.image.write_bytes(b""), "is empty \\(0 bytes\\)"),
    "40 bytes of data": (lambda c: c.image.write_bytes(gzip.compress(bytes(40))), "is truncated: it holds 40 bytes"),
    "missing file": (lambda c: c.label.unlink(), "label .* cannot be read: No such file"),
    "an HTML page": (lambda c: c.image.write_bytes(b"\n<!DOCTYPE html><html>404</html>"), "is an HTML or XML page"),
    "an LFS pointer": (
        lambda c: c.image.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        "is a Git LFS pointer",
    ),
    "a JPEG mask": (lambda c: c.label.write_bytes(b"\xff\xd8\xff\xe0" + bytes(400)), "label .* is a JPEG picture"),
    "raw NIfTI": (lambda c: rewrite(c.image, gzip.decompress), "is uncompressed NIfTI under the name .nii.gz"),
    "something in gzip": (lambda c: c.image.write_bytes(gzip.compress(b"x" * 400)), "what it holds is not NIfTI-1"),
    "unknown bytes": (lambda c: c.image.write_bytes(b"abcdefgh"), "is not a gzip file \\(it starts with b'abcd'\\)"),
    "fewer voxels than announced": (
        lambda c: rewrite(c.image, lambda raw: gzip.compress(gzip.decompress(raw)[:-100])),
        "is incomplete: 1,212 bytes, its header announces 1,312",
    ),
    "more voxels than announced": (
        lambda c: rewrite(c.image, lambda raw: gzip.compress(gzip.decompress(raw) + bytes(5))),
        "holds more than the 1,312 bytes",
    ),
    "a giant in the header": (lambda c: edit(c.image, 42, "<3h", 32767, 32767, 32767), "is incomplete: 1,312 bytes"),
    "an empty axis": (lambda c: edit(c.image, 42, "<3h", 10, 0, 6), "impossible size 10×0×6"),
    "a series": (lambda c: edit(c.image, 40, "<5h", 4, 10, 8, 3, 2), "has 4 dimensions \\(10×8×3×2\\)"),
    "colour": (lambda c: edit(c.image, 70, "<h", 128), "has NIfTI datatype 128"),
    "NaN": (with_value(np.nan, np.float32), r"has 1 NaN or infinite voxels of 480 \(first at index \(1, 2, 3\)\)"),
    "infinity": (with_value(-np.inf, np.float64), "has 1 NaN or infinite voxels"),
    "zero pixdim": (lambda c: edit(c.image, 84, "<f", 0.0), "has voxel spacing 0.5×0×2.5 mm"),
    "negative pixdim": (lambda c: edit(c.image, 84, "<f", -1.0), "has voxel spacing 0.5×-1×2.5 mm"),
    "sheared affine": (lambda c: edit(c.image, 284, "<f", 0.3), "has a sheared affine: its axes meet at 68.2°"),
    "qform is not sform": (
        lambda c: edit(c.image, 268, "<f", 60.0),
        "has two affines: qform and sform place its grid up to 50.0 mm apart",
    ),
    "micron": (lambda c: edit(c.image, 123, "<B", 3), r"gives lengths in microns in its header \(xyzt_units 3\)"),
    "meter and seconds": (lambda c: edit(c.label, 123, "<B", 1 + 8), "label .* gives lengths in meters in its header"),
    "an unknown unit": (
        lambda c: edit(c.image, 123, "<B", 5),
        "gives lengths in an unknown unit in its header .xyzt_units 5",
    ),
    "spacing in meters": (
        lambda c: save(c.image, scan(), (0.0025, 0.00075, 0.0005)),
        "has voxel spacing 0.0005×0.00075×0.0025 mm in its header, outside of 0.05 to 50 mm",
    ),
    "spacing in microns": (
        lambda c: save(c.image, scan(), (2500, 750, 500)),
        "spacing 500×750×2500 mm in its header, outs",
    ),
    "data offset beyond any file": (lambda c: edit(c.image, 108, "<f", 1e30), "has an impossible data offset 1e\\+30"),
    "no affine": (lambda c: edit(c.image, 252, "<2h", 0, 0), "has no orientation in its header"),
    "quaternion NaN": (
        lambda c: (edit(c.image, 252, "<2h", 1, 0), edit(c.image, 256, "<f", np.nan)),
        r"has the quaternion \(nan, ",
    ),
    "quaternion NaN beside a sform": (lambda c: edit(c.image, 256, "<f", np.nan), r"has the quaternion \(nan, "),
    "quaternion too long": (
        lambda c: (edit(c.image, 252, "<2h", 1, 0), edit(c.image, 256, "<3f", 2, 2, 2)),
        r"has the quaternion \(2, 2, 2\) in its header, which is no rotation",
    ),
    "infinite qoffset": (
        lambda c: (edit(c.image, 252, "<2h", 1, 0), edit(c.image, 268, "<f", np.inf)),
        "has a non-finite qoffset in its header",
    ),
    "infinite slope": (lambda c: edit(c.image, 112, "<f", np.inf), "has intensity slope inf in its header"),
    "infinite intercept": (lambda c: edit(c.image, 112, "<2f", 1, np.inf), "has intensity intercept inf in its header"),
    "a slope beyond 32 bits": (
        lambda c: edit(c.image, 112, "<f", 1e38),
        "has intensities up to 2.98e\\+40, more than 32",
    ),
    "a value beyond 32 bits": (with_value(1e300, np.float64), "has intensities up to 1e\\+300, more than 32 bits hold"),
    "two spacings": (
        lambda c: (edit(c.image, 252, "<h", 0), edit(c.image, 88, "<f", 3.0)),
        "has two voxel spacings: 0.5×0.75×3 mm .pixdim. and 0.5×0.75×2.5 mm .sform.",
    ),
    "other shape": (lambda c: save(c.label, mask()[:5]), "label grid 5×8×10 differs from image 6×8×10"),
    "mask larger than image": (
        lambda c: save(c.label, np.pad(mask(), ((0, 0), (1, 1), (2, 2)))),
        "label grid 6×10×14 differs from image 6×8×10",
    ),
    "other spacing": (
        lambda c: save(c.label, mask(), (2.5, 0.75, 0.6)),
        "label grid spacing 2.5×0.75×0.6 mm differs from image 2.5×0.75×0.5 mm",
    ),
    "origin shifted 50 mm": (
        lambda c: save(c.label, mask(), origin=(-10, 20, -250)),
        r"label grid origin \(-10, 20, -250\) differs from image \(-10, 20, -300\) by 50.0 mm",
    ),
    "axis flipped in the affine": (
        lambda c: save(c.label, mask(), direction=(-1, 0, 0, 0, 1, 0, 0, 0, 1)),
        "label grid origin .* by 4.5 mm",
    ),
    "turned label": (
        lambda c: save(c.label, mask(), direction=(0.96, -0.28, 0, 0.28, 0.96, 0, 0, 0, 1)),
        "label grid direction .* differs from image .*, up to 2.0 mm",
    ),
    "label 7": (
        lambda c: relabel(c, lambda m: np.where(m == 2, 7, m).astype(np.uint8)),
        "has the values 7, the protocol allows 0, 1, 2",
    ),
    "0/255 label": (
        lambda c: relabel(c, lambda m: (255 * (m > 0)).astype(np.uint8)),
        "has the values 255, .* an 8-bit mask",
    ),
    "negative label": (lambda c: relabel(c, lambda m: m.astype(np.int16) - 1), "has the values -1, the protocol"),
    "soft label": (
        lambda c: relabel(c, lambda m: m.astype(np.float32) * 0.5),
        "has values that are not whole numbers \\(0.5\\): a soft label",
    ),
    "slope on a label": (
        lambda c: edit(c.label, 112, "<f", 2.0),
        "carries an intensity scale \\(slope 2, intercept 0\\)",
    ),
    "two dimensions": (
        lambda c: save(c.image, scan()[:, 0], origin=(0, 0), spacing=(1, 1), direction=(1, 0, 0, 1)),
        "has 2 dim",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_named_in_one_line(case: Case, fault: str) -> None:
    change, message = FAULTS[fault]
    change(case)
    with pytest.raises(DgbenchError, match=message) as error:
        read(case)
    text = str(error.value)
    assert text.startswith("case RENJI/0042: ")
    assert "\n" not in text


def test_sound_case_is_read_as_it_was_written(case: Case) -> None:
    volumes = read(case)
    assert volumes.image.dtype == np.float32
    assert volumes.label.dtype == np.uint8
    np.testing.assert_array_equal(volumes.image, scan())
    np.testing.assert_array_equal(volumes.label, mask())
    assert volumes.grid.size == SIZE
    assert volumes.grid.spacing == pytest.approx(SPACING)
    assert volumes.grid.origin == pytest.approx(ORIGIN)
    assert read_label(case, TASK, (1, 2))[1] == volumes.grid


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32, np.float32, np.float64])
def test_every_pixel_type_equals_simpleitk(tmp_path: Path, kind: type) -> None:
    array = (scan() % 100).astype(kind)
    save(tmp_path / "a.nii.gz", array)
    volume = read_volume(tmp_path / "a.nii.gz", what="image")
    np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.nii.gz"))))
    assert volume.array.dtype == kind


def test_slope_and_intercept_are_applied(case: Case) -> None:
    edit(case.image, 112, "<2f", 2.0, -1024.0)
    np.testing.assert_array_equal(read(case).image, scan() * 2.0 - 1024)


def test_a_slope_that_is_not_a_number_means_that_there_is_none(case: Case) -> None:
    edit(case.image, 112, "<2f", np.nan, np.nan)  # as nibabel writes it
    np.testing.assert_array_equal(read(case).image, scan())


def test_one_affine_is_enough_and_a_unit_may_be_unset(case: Case) -> None:
    for codes in ((1, 0), (0, 1)):
        for path in (case.image, case.label):
            edit(path, 252, "<2h", *codes)
            edit(path, 123, "<B", 0)
        assert read(case).grid.spacing == pytest.approx(SPACING)


def test_big_endian_file(tmp_path: Path, case: Case) -> None:
    nibabel = pytest.importorskip("nibabel")
    little = nibabel.load(case.image)
    header = little.header.as_byteswapped(">")
    big = nibabel.Nifti1Image(np.asarray(little.dataobj).astype(">i2"), little.affine, header)
    nibabel.save(big, tmp_path / "big.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "big.nii.gz", what="image").array, scan())


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "RAI", "SPL", "AIR"])
def test_storage_orientation_does_not_matter(tmp_path: Path, orientation: str) -> None:
    save(tmp_path / "a.nii.gz", scan())
    stored = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "a.nii.gz")), orientation)
    sitk.WriteImage(stored, str(tmp_path / "b.nii.gz"))
    first, second = (read_volume(tmp_path / f"{name}.nii.gz", what="image") for name in "ab")
    np.testing.assert_array_equal(first.array, second.array)
    assert first.grid.spacing == pytest.approx(second.grid.spacing)
    np.testing.assert_allclose(first.grid.corners(), second.grid.corners(), atol=1e-4)


def test_flipped_label_that_covers_the_same_space_is_turned_back(case: Case) -> None:
    last = ORIGIN[0] + (SIZE[2] - 1) * SPACING[2]
    save(case.label, mask()[:, :, ::-1], origin=(last, *ORIGIN[1:]), direction=(-1, 0, 0, 0, 1, 0, 0, 0, 1))
    np.testing.assert_array_equal(read(case).label, mask())


def test_rounding_of_the_origin_is_tolerated(case: Case) -> None:
    save(case.label, mask(), origin=(ORIGIN[0] + 0.9 * GRID_TOLERANCE_MM, *ORIGIN[1:]))
    read(case)
    save(case.label, mask(), origin=(ORIGIN[0] + 1.1 * GRID_TOLERANCE_MM, *ORIGIN[1:]))
    with pytest.raises(DgbenchError, match="origin"):
        read(case)


def test_two_dimensional_task_reads_slices_and_flat_files(case: Case) -> None:
    task = Task(ndim=2, spacing=(1.0, 1.0), intensity=Window(low=0, high=1))
    save(case.image, scan()[:1])
    save(case.label, mask()[2], spacing=SPACING[1:], origin=ORIGIN[:2], direction=(1, 0, 0, 1))
    volumes = read_case(case, task, (1, 2))
    np.testing.assert_array_equal(volumes.image, scan()[0])
    np.testing.assert_array_equal(volumes.label, mask()[2])
    assert volumes.grid.size == (8, 10)
    assert volumes.grid.spacing == pytest.approx((0.75, 0.5))


def test_several_gzip_members_are_one_file(case: Case) -> None:
    rewrite(
        case.image,
        lambda raw: gzip.compress(gzip.decompress(raw)[:700]) + gzip.compress(gzip.decompress(raw)[700:]) + bytes(8),
    )
    np.testing.assert_array_equal(read(case).image, scan())


def test_more_channels_than_a_file_holds(case: Case) -> None:
    with pytest.raises(DgbenchError, match="asks for 2 channels"):
        read_case(case, TASK.model_copy(update={"in_channels": 2}), (1, 2))


def test_real_scans_equal_simpleitk(real_data: Path) -> None:
    files = sorted([*real_data.glob("hippocampus/*/*.nii.gz"), *real_data.glob("totalsegmentator_ct/*.nii.gz")])
    assert len(files) > 40
    for path in files:
        volume, reference = read_volume(path, what="scan"), sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
        np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(reference))
        assert volume.grid.origin == reference.GetOrigin()
        assert volume.grid.spacing == reference.GetSpacing()[::-1]
        assert volume.grid.direction == reference.GetDirection()


def test_real_cases(real_data: Path) -> None:
    images = sorted((real_data / "hippocampus" / "imagesTr").glob("*.nii.gz"))
    task = TASK.model_copy(update={"spacing": (1.0, 1.0, 1.0)})
    for image in images:
        volumes = read_case(Case("A", image.name, image, image.parent.parent / "labelsTr" / image.name), task, (1, 2))
        assert set(np.unique(volumes.label)) == {0, 1, 2}
    folder = real_data / "totalsegmentator_ct"
    ct = Case("CT", "sm", folder / "example_ct_sm.nii.gz", folder / "example_seg.nii.gz")
    volumes = read_case(ct, task, range(1, 118))
    assert volumes.image.shape == volumes.label.shape == (30, 101, 122)
    assert int((volumes.label == 7).sum()) == 644
    with pytest.raises(DgbenchError, match="the protocol allows 0, 1, 2"):
        read_case(ct, task, (1, 2))
