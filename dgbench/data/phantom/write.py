"""Write a phantom as a data folder: one folder per center in MSD convention, NIfTI with true geometry, all or nothing."""

import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from dgbench.data.phantom.axes import AXES, LESION_FREE
from dgbench.data.phantom.generate import PhantomCase, case_name, draw_case
from dgbench.data.phantom.recipe import GENERATOR_VERSION, PhantomRecipe, fingerprint
from dgbench.errors import DgbenchError

_FOLDERS = ("imagesTr", "labelsTr", "labelsTrue")


def write_phantom(recipe: PhantomRecipe, directory: Path, *, on_case: Callable[[str, int], None] | None = None) -> None:
    """Write the phantom of ``recipe`` to ``directory``; nothing is left there if it is interrupted.

    Every center is a folder with ``imagesTr``, ``labelsTr`` (as annotated), ``labelsTrue`` (true outlines), ``dataset.json`` and
    ``center.yaml``; ``phantom.json`` beside them holds recipe, fingerprint and what was drawn for each case. A complete folder with
    the same fingerprint is left as it is.

    Args:
        recipe: what to draw.
        directory: a folder that does not exist, is empty, or holds this very phantom.
        on_case: called with (center, index from 0) after each case, for progress.

    Raises:
        DgbenchError: the folder holds something else, or cannot be written.
    """
    directory = Path(directory)
    if _is_there(recipe, directory):
        return
    draft = directory.parent / f".{directory.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        draft.mkdir(parents=True)
        _write_all(recipe, draft, on_case)
        _publish(recipe, draft, directory)
    except OSError as error:
        raise DgbenchError(
            f"phantom: cannot write {directory}: {error.strerror or error} — choose another folder"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _is_there(recipe: PhantomRecipe, directory: Path) -> bool:
    """Whether ``directory`` holds this phantom; False where it can be written; an error for anything else."""
    if not directory.exists():
        return False
    if not directory.is_dir():
        raise DgbenchError(f"phantom: {directory} is a file — name a folder")
    if not any(directory.iterdir()):
        return False
    record = directory / "phantom.json"
    if not record.is_file():
        raise DgbenchError(f"phantom: {directory} holds other files and no phantom.json — choose an empty folder")
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        cases, digest = found["cases"], found["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise DgbenchError(f"phantom: {record} is not readable as a phantom's record — delete the folder") from error
    if digest != fingerprint(recipe):
        raise DgbenchError(
            f"phantom: {directory} holds another phantom ({digest[:12]}, wanted {fingerprint(recipe)[:12]}) — "
            "choose another folder or delete it"
        )
    for name, meta in cases.items():
        for folder in _FOLDERS:
            path = directory / meta["center"] / folder / f"{name}.nii.gz"
            if not path.is_file():
                raise DgbenchError(f"phantom: {path} is missing — delete {directory} and write the phantom again")
    return True


def _publish(recipe: PhantomRecipe, draft: Path, directory: Path) -> None:
    """Move the finished draft into place; another process may have been faster with the same phantom."""
    try:
        os.replace(draft, directory)
    except OSError:
        if not _is_there(recipe, directory):
            raise


def _write_all(recipe: PhantomRecipe, draft: Path, on_case: Callable[[str, int], None] | None) -> None:
    metas: dict[str, dict[str, Any]] = {}
    for center, count in recipe.counts().items():
        for folder in _FOLDERS:
            (draft / center / folder).mkdir(parents=True)
        for index in range(count):
            case, name = draw_case(recipe, center, index), case_name(center, index)
            volumes: tuple[NDArray[np.generic], ...] = (case.image, case.label, case.true_label)
            for folder, voxels in zip(_FOLDERS, volumes, strict=True):
                _write_volume(voxels, case, draft / center / folder / f"{name}.nii.gz")
            metas[name] = case.meta
            if on_case is not None:
                on_case(center, index)
        names = [case_name(center, index) for index in range(count)]
        _write_json(draft / center / "dataset.json", _dataset(center, names))
        about = yaml.safe_dump(_about(recipe, center), sort_keys=False, allow_unicode=True)
        (draft / center / "center.yaml").write_text(about, encoding="utf-8")
    record = {"fingerprint": fingerprint(recipe), "recipe": recipe.describe(), "cases": metas}
    _write_json(draft / "phantom.json", record)


def _dataset(center: str, names: list[str]) -> dict[str, Any]:
    training = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names]
    return {
        "name": f"{center} (phantom)",
        "description": "Abdominal CT phantom, not patient data",
        "tensorImageSize": "3D",
        "labels": {"background": 0, "pancreas": 1, "tumor": 2},
        "modality": {"0": "CT"},
        "channel_names": {"0": "CT"},
        "numTraining": len(names),
        "numTest": 0,
        "file_ending": ".nii.gz",
        "training": training,
        "test": [],
    }


def _about(recipe: PhantomRecipe, center: str) -> dict[str, Any]:
    axes = {
        name: {"strength": recipe.strength(name), "kind": axis.kind, "support": axis.support}
        for name, axis in AXES.items()
    }
    return {
        "name": center,
        "phantom": True,
        "generator_version": GENERATOR_VERSION,
        "fingerprint": fingerprint(recipe),
        "has_tumor": center not in LESION_FREE,
        "note": "synthetic volumes; centers differ along the axes below, labelsTrue holds the lesions' true outlines",
        "axes": axes,
    }


def _write_volume(voxels: NDArray[np.generic], case: PhantomCase, path: Path) -> None:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(case.spacing[::-1])
    image.SetOrigin(case.origin[::-1])
    image.SetDirection(case.direction)
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        raise DgbenchError(f"phantom: cannot write {path.name}: {str(error).splitlines()[-1].strip()}") from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
