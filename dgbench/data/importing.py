"""Making a data folder out of one Decathlon-style folder: its cases dealt into centers.

That gives real files to try the whole path on. The centers are exchangeable: what is measured on them is accuracy, not generalization.
"""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dgbench.data.case import SUFFIX, load_center
from dgbench.errors import DgbenchError
from dgbench.frozen import check_name

PARTS = ("imagesTr", "labelsTr")
KEPT = ("labels", "modality", "licence", "reference")


def split_folder(
    source: Path,
    directory: Path,
    centers: Sequence[str],
    *,
    labels: Mapping[str, int] | None = None,
    modality: str | None = None,
    link: bool = False,
) -> dict[str, tuple[str, ...]]:
    """Deal the cases of ``source`` into one folder per center below ``directory``; nothing is left there if it fails.

    The cases go round the centers in the order of a hash of their names, so the deal depends on nothing but names, and a center is no
    stretch of consecutive numbers. Files whose names start with a dot (macOS leaves them in the Decathlon's archives) are no cases.

    Args:
        source: folder with ``imagesTr``, ``labelsTr`` and, where it has one, ``dataset.json``.
        directory: a folder that does not exist or is empty.
        centers: names of the centers, at least two.
        labels: names and values of the labels, over those of ``dataset.json``; needed where there is none.
        modality: for example CT or MRI, over that of ``dataset.json``.
        link: symbolic links to the files of ``source`` instead of copies.

    Returns:
        The case names of each center, sorted.

    Raises:
        DgbenchError: a name cannot be used or comes twice, a label file or the label names are missing, there are fewer cases than
            centers, or ``directory`` holds something or cannot be written.
    """
    names = [check_name(name, "center name") for name in centers]
    if len(names) < 2 or len(set(names)) < len(names):
        raise DgbenchError(f"centers {', '.join(names) or 'none'}: name two or more, each once")
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise DgbenchError(f"{directory} is there already and not empty — choose another folder or delete it")
    stems = _case_names(source)
    if len(stems) < len(names):
        raise DgbenchError(f"{source / 'imagesTr'} holds {len(stems)} cases, fewer than the {len(names)} centers")
    manifest = _manifest(source, labels, modality)
    dealt = {name: tuple(sorted(_order(stems)[index :: len(names)])) for index, name in enumerate(names)}
    draft = directory.absolute().parent / f".{directory.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        for name, members in dealt.items():
            _write_center(draft / name, source, members, manifest, link=link)
            load_center(draft / name)
        os.replace(draft, directory)
    except OSError as error:
        taken = error.errno in (errno.ENOTEMPTY, errno.EEXIST)
        reason = "it is no longer empty" if taken else error.strerror or str(error)
        raise DgbenchError(f"cannot write {directory}: {reason} — choose another folder") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return dealt


def _case_names(source: Path) -> list[str]:
    """Names of the images that have a label. Raises DgbenchError for an image without one, a label without an image, or no image."""
    if not source.is_dir():
        raise DgbenchError(f"folder {source} does not exist")
    images, labels = (
        {path.name.removesuffix(SUFFIX) for path in (source / part).glob(f"[!.]*{SUFFIX}")} for part in PARTS
    )
    if not images:
        raise DgbenchError(f"no {SUFFIX} images in {source / 'imagesTr'}")
    for stem in sorted(images ^ labels):
        has, lacks = PARTS if stem in images else PARTS[::-1]
        raise DgbenchError(f"case {stem}: in {has} of {source}, but not in {lacks} — add or remove its file")
    return sorted(images)


def _order(stems: Sequence[str]) -> list[str]:
    return sorted(stems, key=lambda stem: hashlib.sha256(f"deal/{stem}".encode()).digest())


def _manifest(source: Path, labels: Mapping[str, int] | None, modality: str | None) -> dict[str, Any]:
    """What every center's dataset.json starts from: that of ``source``, or label names given by hand."""
    path = source / "dataset.json"
    try:
        given: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        given = {str(key): given[key] for key in KEPT if key in given}
    except (ValueError, TypeError, RecursionError) as error:
        raise DgbenchError(f"{path} cannot be read as a JSON object: {error}") from None
    if labels is not None:
        given["labels"] = {"background": 0, **labels}
    if "labels" not in given:
        raise DgbenchError(f"{source} has no dataset.json that names its labels — give them: --labels name=1,name=2")
    if modality is not None:
        given["modality"] = {"0": modality}
    return given


def _write_center(
    folder: Path, source: Path, members: Sequence[str], manifest: Mapping[str, Any], *, link: bool
) -> None:
    for part in PARTS:
        (folder / part).mkdir(parents=True)
        for stem in members:
            origin, target = (source / part / f"{stem}{SUFFIX}").resolve(), folder / part / f"{stem}{SUFFIX}"
            if link:
                target.symlink_to(origin)
            else:
                shutil.copyfile(origin, target)
    name = f"{source.resolve().name}, center {folder.name}"
    (folder / "dataset.json").write_text(json.dumps({"name": name, **manifest}, indent=1) + "\n", encoding="utf-8")
    about = {
        "name": folder.name,
        "source": source.resolve().name,
        "cases": len(members),
        "note": "not a hospital: cases of one data set, dealt by a hash of their names, so that the centers are exchangeable",
    }
    (folder / "center.yaml").write_text(yaml.safe_dump(about, sort_keys=False), encoding="utf-8")
