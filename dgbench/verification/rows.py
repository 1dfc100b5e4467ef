"""The rows of a record: every case in every view once, each number where it can be, and numbers of a row that fit each other."""

from collections.abc import Iterator
from dataclasses import fields
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dgbench.atomic import read_json
from dgbench.data.splits import heldout_parts
from dgbench.errors import DgbenchError
from dgbench.evaluation.metrics import TOLERANCE_SLACK_MM, CaseMetrics
from dgbench.protocol import ResolvedProtocol
from dgbench.store.cases import CASE_COLUMNS
from dgbench.store.folder import IMPORTED, RunFolder
from dgbench.verification.record import Record, source_cases

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (*CASE_COLUMNS, "roi", "rounds", "windowed", *(field.name for field in fields(CaseMetrics)))
VIEW = ["setting", "checkpoint", "threshold"]
OVERLAPS = ("dsc", "nsd")
DISTANCES = ("assd", "assd_two_means", "hd95", "hd95_max", "centroid_mm")
OF_REFERENCE = ("volume_reference_mm3", "empty_reference", "n_lesions_reference")
COUNTED = 16
"""A case with this many different volumes tells the volume of its voxels: their greatest common divisor, or a small fraction of it."""
FRACTIONS = (1, 2, 3, 4)
ROUNDING = 1e-5

Mask = NDArray[np.bool_]


def check_rows(record: Record, resolved: ResolvedProtocol) -> "pd.DataFrame":
    """The rows of a record, checked.

    Raises:
        DgbenchError: the first thing that does not hold, in one line that names the row.
    """
    frame = RunFolder(record.root, record.path, record.spec).cases()
    path = record.path / "evaluation" / "cases.parquet"
    try:
        if list(frame.columns) != list(COLUMNS):
            names = sorted(set(COLUMNS) ^ set(frame.columns)) or ["their order"]
            raise DgbenchError(f"columns differ from those of this version: {', '.join(names)}")
        _check_cases(frame, record, resolved)
        for message, wrong in _impossible(frame, resolved.protocol.metrics.nsd_tolerance_mm):
            if wrong.any():
                raise DgbenchError(f"{_row(frame, wrong)}: {message}")
        _check_reference(frame)
        _check_copies(frame, record)
        _check_voxels(frame)
    except DgbenchError as error:
        raise DgbenchError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise DgbenchError(f"{path}: a column is of another kind ({error}) — submit the run again") from None
    return frame


def _check_cases(frame: "pd.DataFrame", record: Record, resolved: ResolvedProtocol) -> None:
    """Every expected case stands in every view exactly once, and in its role."""
    views = _views(record, resolved)
    roles = {str(case): set(of_case) for case, of_case in frame.groupby("case")["role"]}
    spec = record.spec
    validation = set() if spec.method.imported else set(source_cases(record, list(record.own)[-1], "validation"))
    support = {case for stage in spec.stages for case in source_cases(record, stage, "validation")} - validation
    heldout = _heldout(set(roles), record, resolved)
    free = {case for case, role in roles.items() if role == {"lesion-free"}}
    if free and free != support:
        raise DgbenchError(f"lesion-free cases are {len(free)}, the shared stages validated on {len(support)}")
    for case, role in roles.items():
        expected = "held-out" if case in heldout else "source-val" if case in validation else "lesion-free"
        if role != {expected} or (expected == "lesion-free" and case not in support):
            raise DgbenchError(f"case {case} has the role {', '.join(sorted(role))}, expected is {expected}")
    if not (frame["center"] == frame["case"].str.partition("/")[0]).all():
        raise DgbenchError("a row's center is not that of its case")
    stages = _settings(record, resolved)
    if (frame["stage"] != frame["setting"].map(stages)).any():
        raise DgbenchError("a row's stage is not that of its setting")
    cases = sorted(heldout | validation | free)
    index = frame.assign(threshold=frame["threshold"].round(6)).set_index(["case", *VIEW]).index
    if index.has_duplicates:
        raise DgbenchError(f"{_named(index[index.duplicated()][0])}: more than one row")
    expected_rows = {(case, *view) for case, view in product(cases, views)}
    if missing := sorted(expected_rows - set(index)):
        raise DgbenchError(f"{_named(missing[0])}: no row ({len(missing)} of {len(expected_rows)} are missing)")
    if extra := sorted(set(index) - expected_rows):
        raise DgbenchError(f"{_named(extra[0])}: no such view in the protocol")


def _heldout(cases: set[str], record: Record, resolved: ResolvedProtocol) -> set[str]:
    """Those of the evaluated ``cases`` that were held out: of that center, in-domain those of it that did not train, which must be its
    fold."""
    spec, protocol = record.spec, resolved.protocol
    center = protocol.center_of(spec.heldout)
    everyone = heldout = {case for case in cases if case.startswith(f"{center}/")}
    if protocol.folds:
        known = {case for stage in spec.stages for case in source_cases(record, stage, "train", "validation")}
        heldout = heldout - known
        everyone = heldout | {case for case in known if case.startswith(f"{center}/")}
        if spec.stages and sorted(heldout) != list(heldout_parts(protocol, center, everyone)[spec.heldout]):
            raise DgbenchError(f"the held-out cases are not {spec.heldout} of the cases of {center}")
    of_phantom = resolved.preset.phantom if "phantom" in spec.data.centers else None
    wanted = of_phantom.cases if of_phantom and (spec.stages or not protocol.folds) else len(everyone)
    if not heldout or len(everyone) != wanted:
        raise DgbenchError(f"{len(everyone)} cases of {center}, the phantom has {wanted}")
    return heldout


def _views(record: Record, resolved: ResolvedProtocol) -> list[tuple[str, str, float]]:
    """Setting, checkpoint and threshold of every row of a case."""
    settings, preset = _settings(record, resolved), resolved.preset
    if record.spec.method.imported:
        return [(setting, IMPORTED, 0.5) for setting in settings]
    return [
        (*view,) for view in product(settings, preset.checkpoints, (round(value, 6) for value in preset.thresholds))
    ]


def _settings(record: Record, resolved: ResolvedProtocol) -> dict[str, str]:
    """The stage of every setting."""
    stages = resolved.protocol.stages
    if record.spec.method.imported:
        last = list(stages)[-1]
        return {f"{stages[last].code}-Seg": last}
    if record.shared:
        return {stages[name].code: name for name in record.own}
    chains = ("Seg", "Mask") if resolved.protocol.shared_stages else ("Seg",)
    return {f"{stages[name].code}-{chain}": name for name in record.own for chain in chains}


def _impossible(frame: "pd.DataFrame", tolerance_mm: float) -> Iterator[tuple[str, Mask]]:
    """What no row may be, and which rows are. A failed case counts as an empty prediction and has no numbers.

    Of n ≥ 2 distances, pooled over both surfaces, at most 0.95 + 0.05/n are below their 95th percentile, and at least 0.05 (n−1)/n are not.
    """

    def column(name: str) -> Any:
        return frame[name].to_numpy()

    failed = column("failed").astype(bool)
    made = ~failed
    empty_r, empty_p = column("empty_reference").astype(bool), column("empty_prediction").astype(bool)
    both = made & ~empty_r & ~empty_p
    yield "failed without a reason", failed & frame["reason"].isna().to_numpy()
    for name in OVERLAPS:
        value = column(name)
        yield f"{name} is outside of 0 to 1", (value < 0) | (value > 1)
        yield f"{name} is missing", made & ~(empty_r & empty_p) & np.isnan(value)
        yield f"{name} is not 0, though one mask is empty", made & (empty_r ^ empty_p) & (value != 0)
        yield (
            f"{name} is defined, though both masks are empty or the case failed",
            ~np.isnan(value) & (failed | (empty_r & empty_p)),
        )
    for name in DISTANCES:
        value = column(name)
        yield f"{name} is negative or infinite", (value < 0) | np.isinf(value)
        yield f"{name} is missing, though both masks hold voxels", both & np.isnan(value)
        yield f"{name} is defined, though a mask is empty", ~both & ~np.isnan(value)
    reference, prediction = column("volume_reference_mm3"), column("volume_prediction_mm3")
    for name, value, empty in (("reference", reference, empty_r), ("prediction", prediction, empty_p)):
        yield (
            f"volume_{name}_mm3 is impossible or contradicts empty_{name}",
            made & ~(np.isfinite(value) & (value >= 0) & ((value == 0) == empty)),
        )
    lesions = [column(name) for name in ("n_lesions_reference", "n_lesions_found", "n_false_positive")]
    yield "a number of lesions is impossible", (np.minimum.reduce(lesions) < 0) | (lesions[1] > lesions[0])
    dsc = column("dsc")
    with np.errstate(invalid="ignore", divide="ignore"):
        bound = 2 * np.minimum(reference, prediction) / (reference + prediction)
    yield "dsc is larger than its volumes allow", both & (dsc > bound + 1e-9)
    apart = np.logical_or.reduce([column(name) > 0 for name in DISTANCES])
    yield "dsc and the surface distances contradict each other", both & (dsc == 1) & apart
    nsd, assd, hd95 = column("nsd"), column("assd"), column("hd95")
    far = np.where(nsd == 1, np.maximum(hd95, column("hd95_max")), hd95) > tolerance_mm + 2 * TOLERANCE_SLACK_MM
    yield f"nsd and hd95 contradict each other at {tolerance_mm:g} mm", both & far & (nsd > 0.975 + ROUNDING)
    least = np.maximum((1 - nsd) * tolerance_mm, 0.025 * hd95)
    yield "assd is smaller than nsd and hd95 allow", both & (assd < least * (1 - ROUNDING))
    yield "a lesion was found without overlap", made & (dsc == 0) & (lesions[1] > 0)
    yield (
        "no false positive, though the prediction is all beside the reference",
        made & ~empty_p & (dsc == 0) & (lesions[2] == 0),
    )
    yield (
        "a lesion was found or a false positive made by an empty prediction",
        made & empty_p & (lesions[1] + lesions[2] > 0),
    )


def _check_reference(frame: "pd.DataFrame") -> None:
    """The reference of a case is the same in all rows of a stage."""
    made = frame[~frame["failed"].astype(bool)]
    for name in OF_REFERENCE:
        counts = made.groupby(["case", "stage"])[name].nunique()
        if (counts > 1).any():
            raise DgbenchError(f"case {counts.index[counts > 1][0][0]}: rows disagree in {name}")


def _check_copies(frame: "pd.DataFrame", record: Record) -> None:
    """Where the last step was selected in a stage and in all before it, both checkpoints are one there, and so are their rows."""
    for name in record.own:
        result = read_json(record.stage(name) / "result.json")
        if result["best_step"] != result["steps"]:
            return
        _check_copy(frame[frame["stage"] == name])


def _check_copy(frame: "pd.DataFrame") -> None:
    keys = ["case", "setting", "threshold"]
    selected, last = (
        frame[frame["checkpoint"] == name].drop(columns="checkpoint").set_index(keys).sort_index()
        for name in ("source-val", "last-step")
    )
    if len(last) == 0:
        return
    for name in selected.columns:
        one, other = selected[name], last[name]
        wrong = (one != other) & ~(one.isna() & other.isna())
        if wrong.any():
            case, setting, threshold = wrong[wrong].index[0]
            raise DgbenchError(
                f"case {case}, {setting}, threshold {threshold:g}: {name} differs between source-val and last-step, one checkpoint here"
            )


def _check_voxels(frame: "pd.DataFrame") -> None:
    """Where the volumes of a case tell that of a voxel, the overlap that a DSC implies is a whole number of voxels."""
    made = frame[~frame["failed"].astype(bool) & frame["dsc"].notna()]
    for case, rows in made.groupby("case"):
        unit = _voxel(np.r_[rows["volume_reference_mm3"], rows["volume_prediction_mm3"]])
        if unit is None:
            continue
        overlap = (rows["dsc"] * (rows["volume_reference_mm3"] + rows["volume_prediction_mm3"]) / 2).to_numpy() / unit
        wrong = np.min([np.abs(overlap * n - np.rint(overlap * n)) for n in FRACTIONS], axis=0) > ROUNDING
        if wrong.any():
            row = rows[wrong].iloc[0]
            raise DgbenchError(
                f"{_named((case, *row[VIEW]))}: dsc {row['dsc']:.6g} is no ratio of whole voxels of the volumes beside it"
            )


def _voxel(volumes: NDArray[np.float64]) -> float | None:
    """The greatest common divisor of volumes in mm³, by Euclid with a tolerance; None where there are too few to tell a voxel by, or the
    result divides one of them badly (volumes of millions of voxels)."""
    different = np.unique(volumes[volumes > 0])
    if len(different) < COUNTED:
        return None
    largest = float(different[-1])
    unit = largest
    for value in different:
        a, b = float(value), unit
        while b > 1e-8 * largest:
            a, b = b, abs(a - b * round(a / b))
        unit = a
    unit = largest / round(largest / unit)
    counts = different / unit
    return unit if (np.abs(counts - np.rint(counts)) < ROUNDING).all() else None


def _row(frame: "pd.DataFrame", wrong: Mask) -> str:
    first = frame[wrong].iloc[0]
    return _named((first["case"], *first[VIEW]))


def _named(row: tuple[Any, ...]) -> str:
    case, setting, checkpoint, threshold = row
    return f"case {case}, {setting}, {checkpoint}, threshold {threshold:g}"
