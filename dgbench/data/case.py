"""Cases and centers: what a data folder holds. Nothing here opens an image; see :mod:`dgbench.data.reading` for that."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dgbench.errors import DgbenchError, suggest
from dgbench.frozen import SAFE_NAME, check_name
from dgbench.protocol import Protocol
from dgbench.yaml_text import read_yaml

SUFFIX = ".nii.gz"


@dataclass(frozen=True)
class Case:
    """One patient of one center: an image and its reference label map, as files. ``id`` is ``<center>/<name>``."""

    center: str
    name: str
    image: Path
    label: Path

    @property
    def id(self) -> str:
        """Unique over the whole data folder, e.g. ``RENJI/RENJI_0007``."""
        return f"{self.center}/{self.name}"


@dataclass(frozen=True)
class Center:
    """One hospital: a folder in the convention of the Medical Segmentation Decathlon plus an optional ``center.yaml``."""

    name: str
    folder: Path
    cases: tuple[Case, ...]
    labels: dict[str, int]
    meta: dict[str, Any] = field(default_factory=dict)


def load_center(folder: Path) -> Center:
    """Read the manifest of one center folder.

    Cases are the images ``imagesTr/*.nii.gz`` that have a label of the same name in ``labelsTr``; files whose names start with a dot
    (macOS leaves ``._`` files in archives, the Decathlon's among them) are no cases. Raises DgbenchError when the folder,
    ``dataset.json`` or a label is missing, a manifest cannot be read, or a name could escape the folder.
    """
    name = check_name(folder.name, f"{folder}: center name")
    manifest = folder / "dataset.json"
    if not manifest.is_file():
        raise DgbenchError(
            f"center {name}: no dataset.json in {folder} — a center is a folder with imagesTr, labelsTr and dataset.json"
        )
    try:
        dataset = json.loads(manifest.read_text(encoding="utf-8"))
        labels = {str(key): int(value) for key, value in _labels(dataset["labels"]).items()}
    except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        # JSON's and Unicode's are ValueErrors, an infinite label overflows
        raise DgbenchError(
            f"center {name}: dataset.json needs a mapping 'labels' of names to integers ({error})"
        ) from None
    meta_file = folder / "center.yaml"
    meta = read_yaml(meta_file, f"center {name}: center.yaml") if meta_file.is_file() else {}
    if not isinstance(meta, dict):
        raise DgbenchError(f"center {name}: center.yaml must be a mapping")
    images = sorted((folder / "imagesTr").glob(f"[!.]*{SUFFIX}"))
    if not images:
        raise DgbenchError(f"center {name}: no {SUFFIX} images in {folder / 'imagesTr'}")
    cases = []
    for image in images:
        stem = image.name.removesuffix(SUFFIX)
        if not SAFE_NAME.fullmatch(stem):
            raise DgbenchError(
                f"center {name}: case name {stem!r} cannot be used: letters, digits, '_', '-' and '.' only"
            )
        label = folder / "labelsTr" / image.name
        if not label.is_file():
            raise DgbenchError(f"case {name}/{stem}: label missing — expected {label}")
        cases.append(Case(name, stem, image, label))
    return Center(name, folder, tuple(cases), labels, meta)


def _labels(raw: dict[str, Any]) -> dict[str, Any]:
    """Both conventions of dataset.json: {"0": "background"} (Decathlon) and {"background": 0} (nnU-Net v2)."""
    if raw and all(str(key).isdigit() for key in raw):
        return {str(value): int(key) for key, value in raw.items()}
    return raw


def load_centers(directory: Path, protocol: Protocol) -> dict[str, Center]:
    """The centers that ``protocol`` names, from one folder per center in ``directory``; its support centers may be absent.

    Raises DgbenchError when the folder or a required center is missing or a center's labels contradict the protocol's.
    """
    if not directory.is_dir():
        raise DgbenchError(f"data folder {directory} does not exist")
    found = sorted(path.name for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise DgbenchError(
            f"data folder {directory} is empty — it needs one folder per center ({', '.join(protocol.centers)})"
        )
    centers = {}
    for name in (*protocol.centers, *protocol.support_centers):
        if name not in found:
            if name in protocol.support_centers:
                continue
            raise DgbenchError(f"data folder {directory} has no center {name!r}{suggest(name, found)}")
        center = load_center(directory / name)
        for label, value in protocol.labels.items():
            if center.labels.get(label, value) != value:
                raise DgbenchError(
                    f"center {name}: dataset.json gives label {label!r} the value {center.labels[label]}, "
                    f"protocol {protocol.name} expects {value}"
                )
        centers[name] = center
    return centers
