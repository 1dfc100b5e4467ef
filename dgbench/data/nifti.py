"""The file behind a scan: complete, undamaged NIfTI-1 bytes, or one sentence that says what is wrong with them.

Common readers zero-fill a truncated gzip stream, skip its checksum or turn NaN into 0 without a word. Here the stream is read to its end,
so that zlib checks CRC and length, and the voxels are taken from those very bytes. The header layout is that of nifti1.h.
"""

import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgbench.data import guard
from dgbench.errors import DgbenchError

HEADER_BYTES = 348
HEADER_FIELDS: dict[str, tuple[str, int]] = {
    "dim": ("(8,)i2", 40),
    "datatype": ("i2", 70),
    "pixdim": ("(8,)f4", 76),
    "vox_offset": ("f4", 108),
    "scl_slope": ("f4", 112),
    "scl_inter": ("f4", 116),
    "xyzt_units": ("u1", 123),
    "qform_code": ("i2", 252),
    "sform_code": ("i2", 254),
    "quatern": ("(3,)f4", 256),
    "qoffset": ("(3,)f4", 268),
    "srow": ("(3,4)f4", 280),
    "magic": ("S4", 344),
}
DATATYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
FOREIGN = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the scan — run `git lfs pull`"),
    (b"<", "is an HTML or XML page, not a scan — the download failed"),
    (b"\xff\xd8\xff", "is a JPEG picture, not a scan"),
    (b"\x89PNG", "is a PNG picture, not a scan"),
    (b"PK\x03\x04", "is a zip archive, not a scan — unpack it"),
)
MILLIMETRES = (0, 2)
OTHER_UNITS = {1: "meters", 3: "microns"}
"""What the lowest three bits of xyzt_units mean (0: unset); ITK scales spacings by it without a word."""
SPACINGS_MM = (0.05, 50.0)
"""Smallest and largest spacing that a scan of a patient can have; anything else is a header in another unit."""
LARGEST_OFFSET = 2**31
"""More than any header extension takes, and few enough bytes to ask zlib for."""
SHEAR_TOLERANCE = 1e-3
SCALE_TOLERANCE = 1e-3
QUATERNION_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Nifti:
    """A decoded file: ``array`` (D,H,W) or (H,W) in stored order and type, before ``slope`` and ``intercept`` (1 and 0 where unset)."""

    array: NDArray[Any]
    slope: float
    intercept: float

    @property
    def scaled(self) -> bool:
        """Whether stored values are to be multiplied or shifted."""
        return (self.slope, self.intercept) != (1.0, 0.0)


def load_nifti(path: Path, what: str) -> Nifti:
    """Decode one ``.nii.gz`` file after checking that it is complete and its header describes a right-angled grid.

    ``what`` starts every message (``case RENJI/0042: image``). Raises DgbenchError when the file is missing, truncated, damaged or of
    another kind, its geometry is impossible or ambiguous, or a voxel is NaN or infinite; HeldOutAccessError when a guard forbids the file.
    """
    guard.check_path(path)
    try:
        if path.exists() and not path.is_file():  # a device or a pipe would never end
            raise DgbenchError(f"{what} {path} is not a regular file")
        raw = path.read_bytes()
    except OSError as error:
        raise DgbenchError(f"{what} {path} cannot be read: {error.strerror}") from None
    try:
        header, data = _unpack(raw)
        _check_geometry(header)
        return _decode(header, data)
    except DgbenchError as error:
        raise DgbenchError(f"{what} {path} {error}") from None


def _unpack(raw: bytes) -> tuple[np.void, bytes]:
    """The header and the whole decompressed file; the size that the header announces bounds the memory this takes."""
    _check_kind(raw)
    head, _ = _inflate(raw, HEADER_BYTES)
    if len(head) < HEADER_BYTES:
        raise DgbenchError(
            f"is truncated: it holds {len(head)} bytes, less than the {HEADER_BYTES} of a NIfTI-1 header"
        )
    header = _parse(head)
    expected = _data_range(header).stop
    data, ended = _inflate(raw, expected + 1)
    if len(data) > expected:
        raise DgbenchError(f"holds more than the {expected:,} bytes that its header announces — write the file anew")
    if not ended:
        raise DgbenchError(
            f"is truncated: {len(data):,} of {expected:,} bytes, then the gzip stream stops — copy the file again"
        )
    if len(data) < expected:
        raise DgbenchError(
            f"is incomplete: {len(data):,} bytes, its header announces {expected:,} — write the file anew"
        )
    return header, data


def _check_kind(raw: bytes) -> None:
    if not raw:
        raise DgbenchError("is empty (0 bytes) — copy the file again")
    if raw[:2] == b"\x1f\x8b":
        return
    for prefix, problem in FOREIGN:
        if raw.lstrip()[: len(prefix)] == prefix:
            raise DgbenchError(problem)
    if len(raw) >= HEADER_BYTES and raw[344:347] == b"n+1":
        raise DgbenchError("is uncompressed NIfTI under the name .nii.gz — compress it with gzip")
    raise DgbenchError(f"is not a gzip file (it starts with {raw[:4]!r})")


def _inflate(raw: bytes, limit: int) -> tuple[bytes, bool]:
    """At most ``limit`` decompressed bytes of all gzip members, and whether the stream was complete; zlib checks CRC-32 and length."""
    parts: list[bytes] = []
    size = 0
    try:
        while True:
            stream = zlib.decompressobj(wbits=31)
            parts.append(stream.decompress(raw, limit - size))
            size += len(parts[-1])
            raw = stream.unused_data.lstrip(b"\0")
            if not stream.eof or not raw or size == limit:
                return b"".join(parts), stream.eof
    except zlib.error as error:
        raise DgbenchError(f"is damaged: its gzip stream does not check ({error}) — copy the file again") from None


def _parse(head: bytes) -> np.void:
    for order in "<>":
        size = int(np.frombuffer(head, f"{order}i4", 1)[0])
        if size == 540:
            raise DgbenchError("is NIfTI-2 — write it as NIfTI-1")
        if size == HEADER_BYTES:
            layout = np.dtype(
                {
                    "names": list(HEADER_FIELDS),
                    "formats": [kind for kind, _ in HEADER_FIELDS.values()],
                    "offsets": [offset for _, offset in HEADER_FIELDS.values()],
                    "itemsize": HEADER_BYTES,
                }
            ).newbyteorder("<" if order == "<" else ">")
            header: np.void = np.frombuffer(head, layout, 1)[0]
            if header["magic"] != b"n+1":
                raise DgbenchError(f"is not NIfTI-1 in one file (magic {bytes(header['magic'])!r}, expected b'n+1')")
            return header
    raise DgbenchError("is gzip, but what it holds is not NIfTI-1")


def _shape(header: np.void) -> tuple[int, ...]:
    """(D,H,W) or (H,W); trailing dimensions of length one are dropped."""
    rank = int(header["dim"][0])
    size = [int(n) for n in header["dim"][1 : 1 + max(0, min(rank, 7))]]
    if not 2 <= rank <= 7 or min(size) < 1:
        raise DgbenchError(f"has an impossible size {'×'.join(map(str, size)) or 0} in its header")
    if math.prod(size[3:]) > 1:
        raise DgbenchError(
            f"has {rank} dimensions ({'×'.join(map(str, size))}) — one scan per file, in 2 or 3 dimensions"
        )
    return tuple(size[:3][::-1])


def _dtype(header: np.void) -> np.dtype[Any]:
    code = int(header["datatype"])
    if code not in DATATYPES:
        raise DgbenchError(f"has NIfTI datatype {code}, which is not a real number per voxel (colour or complex?)")
    return np.dtype(DATATYPES[code]).newbyteorder(">" if header.dtype["dim"].base.byteorder == ">" else "<")


def _data_range(header: np.void) -> slice:
    """Where the voxels are in the decompressed bytes."""
    offset = float(header["vox_offset"])
    if not HEADER_BYTES <= offset <= LARGEST_OFFSET or offset != int(offset):
        raise DgbenchError(f"has an impossible data offset {offset:g} in its header")
    return slice(int(offset), int(offset) + math.prod(_shape(header)) * _dtype(header).itemsize)


def _decode(header: np.void, data: bytes) -> Nifti:
    array = np.frombuffer(memoryview(data)[_data_range(header)], _dtype(header)).reshape(_shape(header))
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):  # nifti1.h: zero means that values are stored as they are; nibabel writes NaN
        slope, intercept = 1.0, 0.0
    for name, value in (("slope", slope), ("intercept", intercept)):
        if not math.isfinite(value):
            raise DgbenchError(f"has intensity {name} {value} in its header — it must be a number")
    if array.dtype.kind == "f":
        finite = np.isfinite(array)
        if not finite.all():
            wrong = np.argwhere(~finite)
            raise DgbenchError(
                f"has {len(wrong):,} NaN or infinite voxels of {array.size:,} (first at index {tuple(map(int, wrong[0]))}) "
                "— replace them by a measured value or remove the case"
            )
    return Nifti(array.astype(array.dtype.newbyteorder("="), copy=False), slope, intercept)


def _check_geometry(header: np.void) -> None:
    """Raise for what a reader would repair or guess in silence: zero spacing, another unit, shear, no affine or two contradicting ones."""
    rank = len(_shape(header))
    pixdim = header["pixdim"][1 : 1 + rank].astype(float)
    if not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
        raise DgbenchError(f"has voxel spacing {_numbers(pixdim)} mm in its header — every pixdim must be above zero")
    if (unit := int(header["xyzt_units"]) & 7) not in MILLIMETRES:
        raise DgbenchError(
            f"gives lengths in {OTHER_UNITS.get(unit, 'an unknown unit')} in its header (xyzt_units {unit}) — write it in mm"
        )
    low, high = SPACINGS_MM
    if pixdim.min() < low or pixdim.max() > high:
        raise DgbenchError(
            f"has voxel spacing {_numbers(pixdim)} mm in its header, outside of {low:g} to {high:g} mm — another unit? write it in mm"
        )
    has_qform, has_sform = header["qform_code"] > 0, header["sform_code"] > 0
    if not (has_qform or has_sform):
        raise DgbenchError(
            "has no orientation in its header (qform_code and sform_code are 0) — write the affine of its scanner"
        )
    if has_qform:
        _check_qform(header)
    if not has_sform:
        return
    sform = header["srow"].astype(float)
    axes = sform[:, :rank]
    scale = np.linalg.norm(axes, axis=0)
    if not np.isfinite(sform).all() or (scale == 0).any():
        raise DgbenchError("has a singular or non-finite sform in its header — write its affine anew")
    cosine = np.abs(np.triu((axes / scale).T @ (axes / scale), 1)).max()
    if cosine > SHEAR_TOLERANCE:
        raise DgbenchError(
            f"has a sheared affine: its axes meet at {math.degrees(math.acos(min(1.0, cosine))):.1f}° instead of 90° "
            "— resample it to a right-angled grid"
        )
    if np.abs(scale / pixdim - 1).max() > SCALE_TOLERANCE:
        raise DgbenchError(
            f"has two voxel spacings: {_numbers(pixdim)} mm (pixdim) and {_numbers(scale)} mm (sform) — write its affine anew"
        )
    if has_qform:
        distance = _largest_displacement(sform, _qform(header, pixdim), _shape(header)[::-1])
        if distance > 0.5 * pixdim.min():
            raise DgbenchError(
                f"has two affines: qform and sform place its grid up to {distance:.1f} mm apart — write both from the right one"
            )


def _check_qform(header: np.void) -> None:
    """Raise for a quaternion that is no rotation, or an offset that is no place."""
    length = float(np.square(header["quatern"].astype(float)).sum())
    if not length <= 1 + QUATERNION_TOLERANCE:
        raise DgbenchError(
            f"has the quaternion ({', '.join(f'{value:g}' for value in header['quatern'])}) in its header, which is no rotation "
            "— write its affine anew"
        )
    if not np.isfinite(header["qoffset"]).all():
        raise DgbenchError("has a non-finite qoffset in its header — write its affine anew")


def _qform(header: np.void, pixdim: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine (3,4) of the quaternion (nifti1.h, method 2)."""
    b, c, d = header["quatern"].astype(float)
    a = math.sqrt(max(0.0, 1 - b * b - c * c - d * d))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    spacing = np.ones(3)
    spacing[: len(pixdim)] = pixdim
    spacing[2] *= -1.0 if header["pixdim"][0] < 0 else 1.0
    return np.column_stack([rotation * spacing, header["qoffset"].astype(float)])


def _largest_displacement(first: NDArray[np.float64], second: NDArray[np.float64], size: tuple[int, ...]) -> float:
    """Largest distance (mm) between the corners of a grid of ``size`` (x,y[,z]) under two affines (3,4)."""
    corners = np.array(list(np.ndindex((2,) * len(size)))) * (np.array(size) - 1)
    points = np.ones((len(corners), 4))
    points[:, :3] = 0
    points[:, : len(size)] = corners
    points[:, 3] = 1
    return float(np.linalg.norm(points @ (first - second).T, axis=1).max())


def _numbers(values: NDArray[np.float64]) -> str:
    return "×".join(f"{value:g}" for value in values)
