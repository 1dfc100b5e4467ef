"""`data check`: every case of a data folder in one pass. It never stops at a broken case or a broken center.

Errors are what training would refuse; warnings are what geometry and value ranges cannot prove: duplicates, empty labels, missing tumors,
intensities that are not HU, a label that lies where no organ can be, a stray file.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dgbench.data.case import SUFFIX, Case, Center, load_center
from dgbench.data.preparation import OnCase
from dgbench.data.reading import CaseVolumes, Grid, grid_difference, read_image, read_label
from dgbench.data.splits import MIN_CASES_FOR_VALIDATION
from dgbench.errors import DgbenchError
from dgbench.frozen import SAFE_NAME
from dgbench.protocol import Protocol
from dgbench.task import Percentile, Task, Window

SPACING_FACTOR = 4.0
CENTER_SPACING_FACTOR = 10.0
OUTSIDE_FRACTION = 0.25
BYTE_RANGE = 255.0


@dataclass(frozen=True)
class Finding:
    """One remark about ``case`` (a case id, a center, or ``-`` for the whole folder)."""

    case: str
    level: Literal["error", "warning"]
    message: str


@dataclass(frozen=True)
class Report:
    """What one pass found: ``findings`` errors first, and how many centers and cases were looked at."""

    findings: tuple[Finding, ...]
    centers: int
    cases: int

    @property
    def errors(self) -> int:
        """Number of errors; the data can be used when it is 0."""
        return sum(finding.level == "error" for finding in self.findings)

    def rows(self) -> list[dict[str, str]]:
        """One mapping per finding, with keys case, level, message."""
        return [asdict(finding) for finding in self.findings]

    def to_json(self) -> str:
        """Counts and findings as a JSON object."""
        counts = {"centers": self.centers, "cases": self.cases, "errors": self.errors}
        return json.dumps({**counts, "findings": self.rows()}, indent=2, ensure_ascii=False)


@dataclass(frozen=True)
class Expectation:
    """What the cases of one center have to be: label values that may and that should occur, dimensions, and the window if there is one."""

    labels: Mapping[str, int]
    required: frozenset[int]
    task: Task
    window: Window | None


@dataclass(frozen=True)
class Inspection:
    """What is kept of a case once its voxels are gone. ``image`` and ``label`` are hashes of the voxels; empty where there is nothing to
    compare (a label without foreground, a file that could not be read)."""

    case: Case
    findings: tuple[Finding, ...]
    spacing: tuple[float, ...] = ()
    image: str = ""
    label: str = ""


def check_data(directory: Path, protocol: Protocol | None = None, on_case: OnCase | None = None) -> Report:
    """Check every center folder in ``directory``: those of ``protocol``, or all of them against their own dataset.json.

    ``on_case`` is told after each case. Raises DgbenchError only when there is nothing to check: ``directory`` is missing or empty.
    """
    if not directory.is_dir():
        raise DgbenchError(f"data folder {directory} does not exist")
    folders = sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise DgbenchError(f"data folder {directory} is empty — it needs one folder per center")
    findings: list[Finding] = []
    if protocol is not None:
        wanted = {*protocol.centers, *protocol.support_centers}
        missing = [name for name in protocol.centers if not (directory / name).is_dir()]
        findings += [Finding(name, "error", f"center {name}: no folder {directory / name}") for name in missing]
        spare = [folder.name for folder in folders if folder.name not in wanted]
        findings += [Finding(name, "warning", f"center {name}: not in protocol {protocol.name}") for name in spare]
        folders = [folder for folder in folders if folder.name in wanted]
    centers = []
    for folder in folders:
        center, remarks = scan_center(folder)
        centers.append(center)
        findings += remarks
    total = sum(len(center.cases) for center in centers)
    inspections: list[Inspection] = []
    for center in centers:
        expected, remarks = expectation(center, protocol)
        findings += remarks
        for case in center.cases:
            inspections.append(inspect(case, expected))
            if on_case is not None:
                on_case(case.id, len(inspections), total)
    findings += [finding for inspection in inspections for finding in inspection.findings]
    findings += compare(inspections)
    return Report(tuple(sorted(findings, key=lambda finding: finding.level)), len(centers), total)


def check_center(center: Center, protocol: Protocol | None = None) -> list[Finding]:
    """All findings about the cases of one center, duplicates within it included. Never raises for a bad case."""
    expected, findings = expectation(center, protocol)
    inspections = [inspect(case, expected) for case in center.cases]
    return findings + [finding for each in inspections for finding in each.findings] + compare(inspections)


def scan_center(folder: Path) -> tuple[Center, list[Finding]]:
    """A center with every case that can be looked at, and a finding for everything that cannot or should not be there."""
    name = folder.name
    findings: list[Finding] = []
    images = {path.name.removesuffix(SUFFIX): path for path in sorted((folder / "imagesTr").glob(f"[!.]*{SUFFIX}"))}
    labels = {path.name.removesuffix(SUFFIX): path for path in sorted((folder / "labelsTr").glob(f"[!.]*{SUFFIX}"))}
    for stem in images.keys() | labels.keys():
        if stem not in labels:
            text = f"case {name}/{stem}: label missing — expected {folder / 'labelsTr' / (stem + SUFFIX)}"
            findings.append(Finding(f"{name}/{stem}", "error", text))
        elif stem not in images:
            text = f"case {name}/{stem}: orphan label — no image {folder / 'imagesTr' / (stem + SUFFIX)}"
            findings.append(Finding(f"{name}/{stem}", "warning", text))
        if not SAFE_NAME.fullmatch(stem):
            text = f"center {name}: case name {stem!r} cannot be used: letters, digits, '_', '-' and '.' only"
            findings.append(Finding(f"{name}/{stem}", "error", text))
    for path in sorted([*folder.glob("imagesTr/[!.]*.nii"), *folder.glob("labelsTr/[!.]*.nii")]):
        beside = path.with_name(path.name + ".gz").is_file()
        text = f"{path} is ignored: " + (
            f"{path.name}.gz lies beside it — remove one" if beside else "only .nii.gz counts"
        )
        findings.append(Finding(f"{name}/{path.stem}", "warning", f"case {name}/{path.stem}: {text}"))
    cases = tuple(Case(name, stem, images[stem], labels[stem]) for stem in sorted(images.keys() & labels.keys()))
    if len(cases) < MIN_CASES_FOR_VALIDATION:
        text = f"center {name}: {len(cases)} cases, fewer than {MIN_CASES_FOR_VALIDATION}: it gives none for source validation"
        findings.append(Finding(name, "warning", text))
    try:
        center = load_center(folder)
    except DgbenchError as error:
        if str(error) not in {finding.message for finding in findings}:
            findings.append(Finding(name, "error", str(error)))
        center = Center(name, folder, cases, {})
    return Center(name, folder, cases, center.labels, center.meta), sorted(findings, key=lambda finding: finding.case)


def expectation(center: Center, protocol: Protocol | None) -> tuple[Expectation, list[Finding]]:
    """What to expect of the cases of ``center``, and where its dataset.json contradicts ``protocol``.

    Without a protocol its own labels are allowed (0, 1, 2 where it names none), in three dimensions, in any intensity unit.
    """
    if protocol is None:
        labels = {name: value for name, value in center.labels.items() if value != 0} or {"pancreas": 1, "tumor": 2}
        task = Task(spacing=(1.0, 1.0, 1.0), intensity=Percentile())
        return Expectation(labels, frozenset(), task, None), []
    findings = [
        Finding(
            center.name,
            "error",
            f"center {center.name}: dataset.json gives label {name!r} the value {center.labels[name]}, "
            f"protocol {protocol.name} expects {value}",
        )
        for name, value in protocol.labels.items()
        if center.labels.get(name, value) != value
    ]
    required = frozenset(protocol.labels.values()) if center.name in protocol.centers else frozenset[int]()
    intensity = protocol.task.intensity
    window = intensity if isinstance(intensity, Window) else None
    return Expectation(protocol.labels, required, protocol.task, window), findings


def inspect(case: Case, expected: Expectation) -> Inspection:
    """Read one case and say everything that is wrong or odd about it; image and label are both read even if one is broken."""
    findings: list[Finding] = []
    image: tuple[NDArray[np.float32], Grid] | None = None
    label: tuple[NDArray[np.uint8], Grid] | None = None
    try:
        image = read_image(case, expected.task)
    except DgbenchError as error:
        findings.append(Finding(case.id, "error", str(error)))
    try:
        label = read_label(case, expected.task, tuple(expected.labels.values()))
    except DgbenchError as error:
        findings.append(Finding(case.id, "error", str(error)))
    if image is None or label is None:
        return Inspection(case, tuple(findings))
    difference = grid_difference(label[1], image[1])
    if difference:
        text = f"case {case.id}: label grid {difference} — draw or resample the label on its image"
        return Inspection(case, (Finding(case.id, "error", text),), image[1].spacing, _hash(image[0]))
    volumes = CaseVolumes(image[0], label[0], image[1])
    odd = [Finding(case.id, "warning", f"case {case.id}: {text}") for text in _oddities(volumes, expected)]
    return Inspection(
        case,
        tuple(odd),
        volumes.grid.spacing,
        _hash(volumes.image),
        _hash(volumes.label) if volumes.label.any() else "",
    )


def compare(inspections: Iterable[Inspection]) -> list[Finding]:
    """What only shows between cases: equal images or labels within or across centers, spacings unlike the rest of the center, centers
    whose spacings cannot both be right."""
    cases = list(inspections)
    findings = []
    for kind in ("image", "label"):
        same: defaultdict[str, list[str]] = defaultdict(list)
        for inspection in cases:
            same[getattr(inspection, kind)].append(inspection.case.id)
        for content, (first, *others) in same.items():
            if content:
                text = "case {}: {} is identical to that of case {} — one patient must not count twice, nor be on both sides of a split"
                findings += [Finding(other, "warning", text.format(other, kind, first)) for other in others]
    medians: dict[str, NDArray[np.float64]] = {}
    for center in sorted({inspection.case.center for inspection in cases}):
        spaced = [inspection for inspection in cases if inspection.case.center == center and inspection.spacing]
        ranks = Counter(len(inspection.spacing) for inspection in spaced)
        if len(spaced) < MIN_CASES_FOR_VALIDATION or len(ranks) != 1:
            continue
        median = medians[center] = np.median([inspection.spacing for inspection in spaced], axis=0)
        for inspection in spaced:
            ratio = np.array(inspection.spacing) / median
            if max(ratio.max(), 1 / ratio.min()) > SPACING_FACTOR:
                text = (
                    f"case {inspection.case.id}: spacing {_times(inspection.spacing)} mm is unlike its center's "
                    f"median {_times(median.tolist())} mm — check the header's unit and values"
                )
                findings.append(Finding(inspection.case.id, "warning", text))
    if medians and len({len(spacing) for spacing in medians.values()}) == 1:
        spacings = np.array(list(medians.values()))
        if (spacings.max(axis=0) / spacings.min(axis=0)).max() > CENTER_SPACING_FACTOR:
            listed = ", ".join(f"{name} {_times(spacing.tolist())}" for name, spacing in medians.items())
            text = f"median spacings of the centers are too far apart ({listed} mm) — check their headers' units and values"
            findings.append(Finding("-", "warning", text))
    return findings


def _oddities(volumes: CaseVolumes, expected: Expectation) -> Iterable[str]:
    """Readable, but perhaps not what it should be."""
    image, label = volumes.image, volumes.label
    low, high = float(image.min()), float(image.max())
    counts = np.bincount(label.ravel(), minlength=max(expected.labels.values()) + 1)
    if not counts[1:].any():
        yield "label is empty: no voxel of any structure — is the label lost?"
    else:
        for name, value in expected.labels.items():
            if value in expected.required and not counts[value]:
                yield f"no voxel of label {name!r} ({value}), which every case of this center should have"
    if low == high:
        yield f"image is constant ({low:g}) — is the scan lost?"
        return
    window = expected.window
    if window is None:
        return
    if low >= 0 and high <= BYTE_RANGE:
        yield f"intensities {low:g} to {high:g} look like 8 bit, not HU — the window is [{window.low:g}, {window.high:g}]"
    elif counts[1:].any():
        inside = image[label > 0]
        outside = float(np.mean((inside < window.low) | (inside > window.high)))
        if outside > OUTSIDE_FRACTION:
            yield (
                f"{outside:.0%} of the labelled voxels are outside of the window [{window.low:g}, {window.high:g}] "
                "— a flipped label, or one of another scan?"
            )


def _hash(array: NDArray[np.float32] | NDArray[np.uint8]) -> str:
    return hashlib.sha256(f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


def _times(values: Iterable[float]) -> str:
    return "×".join(f"{value:g}" for value in values)
