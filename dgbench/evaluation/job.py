"""One evaluation job: trained stages applied to source-validation, held-out and lesion-free cases, raw rows stored (protocol.md §2).

It runs in a process of its own and is the first to open a held-out file. Every case's rows are written as they are made, so an interrupted
evaluation goes on where it stopped.
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dgbench.atomic import read_json, write_bytes, write_json
from dgbench.data.case import Case
from dgbench.data.preparation import PreparedCase, native_label, prepare_case
from dgbench.data.splits import Split
from dgbench.errors import DgbenchError
from dgbench.evaluation.case_slice import case_slice
from dgbench.evaluation.features import feature_rows
from dgbench.evaluation.metrics import CaseMetrics, case_metrics
from dgbench.inference.cascade import StageResult, run_stage
from dgbench.inference.native import native_mask
from dgbench.inference.predictor import Predictor
from dgbench.inference.roi import Box
from dgbench.info import MethodInfo
from dgbench.method import Method
from dgbench.protocol import ResolvedProtocol
from dgbench.store.checkpoint_file import load_checkpoint, unflatten_state
from dgbench.store.foreign import read_arrays
from dgbench.store.slices import slice_file
from dgbench.store.times import sum_up_evaluation
from dgbench.training.build import method_of
from dgbench.training.job import TrainJob
from dgbench.training.loop import Report
from dgbench.training.process import set_up_torch
from dgbench.training.validation import stage_predictor

PARTS = "parts"
CHECKPOINT_FILES = {"source-val": "best", "last-step": "last"}
TABLES = {
    "cases": ["setting", "checkpoint", "threshold", "case"],
    "times": ["setting", "checkpoint", "case"],
    "features": ["stage", "checkpoint", "case", "tissue"],
}
"""The tables of an evaluation and what their rows are sorted by."""
UNDEFINABLE = tuple(field.name for field in fields(CaseMetrics) if field.type is float)
"""Columns of the raw rows that are NaN where they are not computable."""


@dataclass(frozen=True)
class EvaluationJob:
    """Stages of one run folder to evaluate, in order of inference. ``training`` holds the jobs that trained them; ``shared`` is the
    folder of the evaluation that holds the predictions of the shared stages before them, or None where there are none. A ``brief`` one
    follows the `Seg` chain alone, and leaves neither slices nor features."""

    training: tuple[TrainJob, ...]
    cases: tuple[Case, ...]
    shared: Path | None
    folder: Path
    key: str
    brief: bool = False

    @property
    def resolved(self) -> ResolvedProtocol:
        """The protocol, the same for all stages."""
        return self.training[0].resolved

    @property
    def split(self) -> Split:
        """Who is held out and who validates."""
        return self.training[0].split

    @property
    def info(self) -> MethodInfo:
        """The method under test (or the recipe of shared stages)."""
        return self.training[0].info

    @property
    def under_test(self) -> bool:
        """Whether these are the stages of the method under test, not shared ones."""
        return self.training[0].stage not in self.resolved.protocol.shared_stages

    @property
    def pictured(self) -> bool:
        """Whether slices and features are kept for figures."""
        return self.under_test and not self.brief

    @property
    def chains(self) -> tuple[str, ...]:
        """`Seg` and, where it differs, `Mask`: what looks around a shared stage can look around the label instead."""
        return ("Seg",) if self.shared is None or self.brief else ("Seg", "Mask")

    def setting(self, stage: str, chain: str) -> str:
        """The name of a stage's row in tables, e.g. ``F-Seg``."""
        settings = self.resolved.protocol.stages[stage]
        return settings.code if settings.recipe is not None else f"{settings.code}-{chain}"


def evaluate(job: EvaluationJob, report: Report) -> None:
    """Evaluate every case of ``job``: the tables and 8-bit probabilities into its folder, a slice of every held-out case into the run's."""
    first = job.training[0]
    set_up_torch(first)
    device = torch.device(first.device)
    predictors: dict[str, dict[str, Predictor]] = {
        name: load_predictors(job, name, device) for name in job.resolved.preset.checkpoints
    }
    parts = job.folder / PARTS
    for index, case in enumerate(job.cases):
        part = part_file(parts, case)
        if not part.is_file():
            write_json(part, _evaluate_case(job, case, predictors))
        report(index + 1, len(job.cases), case.id)
    _compile(job, parts)


def part_file(parts: Path, case: Case) -> Path:
    """Where the rows of ``case`` are kept until all cases are done."""
    return parts / case.center / f"{case.name}.json"


def load_predictors(job: EvaluationJob, checkpoint: str, device: torch.device) -> dict[str, Predictor]:
    """Each stage's deployed method with the weights of ``checkpoint`` (source-val | last-step)."""
    return {
        training.stage: stage_predictor(
            load_trained(training, checkpoint, device),
            training.stage,
            job.resolved,
            device,
            training.precision,
            tta=job.resolved.preset.tta,
        )
        for training in job.training
    }


def load_trained(training: TrainJob, checkpoint: str, device: torch.device) -> Method[Any]:
    """The method of a finished training job with the weights of ``checkpoint``, deployed. Raises DgbenchError when they do not belong to
    it or are damaged."""
    method = method_of(training, device)
    loaded = load_checkpoint(training.folder / CHECKPOINT_FILES[checkpoint])
    if loaded.key != training.key:
        raise DgbenchError(
            f"{training.folder}: no {checkpoint} checkpoint of this run — delete that folder and run again"
        )
    if loaded.problem is not None:  # the one before it holds weights that were not selected
        raise DgbenchError(f"{loaded.problem} — delete {training.folder} and run again")
    content = unflatten_state(loaded.tensors, loaded.meta["state"])
    method.load_state_dict(content if checkpoint == "source-val" else content["method"])
    method.deploy()
    return method.eval()


def _evaluate_case(
    job: EvaluationJob, case: Case, predictors: Mapping[str, Mapping[str, Predictor]]
) -> dict[str, list[dict[str, Any]]]:
    """The lines that ``case`` adds to each table."""
    rows: list[dict[str, Any]] = []
    times: list[dict[str, Any]] = []
    features: list[dict[str, Any]] = []
    try:
        prepared = prepare_case(case, job.resolved.protocol, job.training[0].cache)
        reference, _ = native_label(case, job.resolved.protocol)
    except DgbenchError as error:
        told = _told_of_reference(job, case)
        failed = [_failed_row(job, case, str(error), told.get(view["stage"], {}), **view) for view in _views(job)]
        return {"cases": [_without_nan(row) for row in failed], "times": times, "features": features}
    same = {training.stage for training in job.training if _last_is_best(training)}
    for checkpoint, stages in predictors.items():
        if checkpoint == "last-step" and len(same) == len(job.training) and "source-val" in predictors:
            rows += [{**row, "checkpoint": checkpoint} for row in rows if row["checkpoint"] == "source-val"]
            continue
        for chain in job.chains:
            found = load_shared(job, case)
            for stage, predictor in stages.items():
                started = time.perf_counter()
                result = run_stage(prepared, stage, predictor, job.resolved, found, chain=chain)
                seconds = time.perf_counter() - started
                found[stage] = result
                setting = job.setting(stage, chain)
                save_result(result_file(job.folder, case, setting, checkpoint), result)
                view = {"case": case.id, "setting": setting, "checkpoint": checkpoint}
                times.append({**view, "seconds": seconds, "round_seconds": list(result.seconds)})
                rows += _rows(job, case, prepared, reference, result, setting, checkpoint)
            if checkpoint == "source-val" and chain == "Seg" and job.pictured and case.id in job.split.test:
                case_slice(prepared, job.resolved.protocol, found, reference).save(
                    slice_file(job.folder.parent, case.id)
                )
        if checkpoint == "source-val" and job.pictured and _role(job, case) != "lesion-free":
            for stage, predictor in stages.items():
                pooled = feature_rows(prepared, stage, predictor, job.resolved)
                features += [
                    {**_identity(job, case), "stage": stage, "checkpoint": checkpoint, **row} for row in pooled
                ]
    return {"cases": [_without_nan(row) for row in rows], "times": times, "features": features}


def _without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """``row`` with None for what is not computable: JSON has no NaN. :func:`_compile` brings it back."""
    return {name: None if value != value else value for name, value in row.items()}


def _last_is_best(training: TrainJob) -> bool:
    result = read_json(training.folder / "result.json")
    return bool(result["best_step"] == result["steps"])


def _views(job: EvaluationJob) -> list[dict[str, Any]]:
    return [
        {
            "stage": training.stage,
            "setting": job.setting(training.stage, chain),
            "checkpoint": checkpoint,
            "threshold": threshold,
        }
        for checkpoint in job.resolved.preset.checkpoints
        for chain in job.chains
        for training in job.training
        for threshold in job.resolved.preset.thresholds
    ]


def _role(job: EvaluationJob, case: Case) -> str:
    if case.id in job.split.test:
        return "held-out"
    return "source-val" if case.id in job.split.validation else "lesion-free"


def _identity(job: EvaluationJob, case: Case) -> dict[str, Any]:
    return {"case": case.id, "center": case.center, "role": _role(job, case)}


def _rows(
    job: EvaluationJob,
    case: Case,
    prepared: PreparedCase,
    reference: NDArray[np.uint8],
    result: StageResult,
    setting: str,
    checkpoint: str,
) -> list[dict[str, Any]]:
    protocol = job.resolved.protocol
    target = np.isin(reference, protocol.stages[result.stage].target)
    rows = []
    for threshold in job.resolved.preset.thresholds:
        predicted = native_mask(prepared, result, threshold, protocol.inference.component_fraction)
        metrics = case_metrics(
            target,
            predicted,
            prepared.native.spacing,
            nsd_tolerance_mm=protocol.metrics.nsd_tolerance_mm,
            detection_overlap=protocol.metrics.detection_overlap,
        )
        view = {"stage": result.stage, "setting": setting, "checkpoint": checkpoint, "threshold": threshold}
        source = {"roi": result.roi, "rounds": result.rounds, "windowed": result.windowed}
        rows.append({**_identity(job, case), **view, "failed": False, "reason": None, **source, **asdict(metrics)})
    return rows


def _told_of_reference(job: EvaluationJob, case: Case) -> dict[str, dict[str, Any]]:
    """By stage, what the reference of a failed case tells by itself: how many lesions there were to find; nothing where it cannot be read
    either."""
    metrics = job.resolved.protocol.metrics
    try:
        reference, grid = native_label(case, job.resolved.protocol)
    except DgbenchError:
        return {}
    told = {}
    for training in job.training:
        target = np.isin(reference, job.resolved.protocol.stages[training.stage].target)
        alone = case_metrics(target, np.zeros_like(target), grid.spacing, nsd_tolerance_mm=metrics.nsd_tolerance_mm)
        told[training.stage] = {
            name: getattr(alone, name) for name in ("empty_reference", "n_lesions_reference", "volume_reference_mm3")
        }
    return told


def _failed_row(
    job: EvaluationJob, case: Case, reason: str, reference: Mapping[str, Any], **view: Any
) -> dict[str, Any]:
    unknown = {
        field.name: True
        if field.name == "empty_prediction"
        else False
        if field.type is bool
        else 0
        if field.type is int
        else float("nan")
        for field in fields(CaseMetrics)
    }
    return {
        **_identity(job, case),
        **view,
        "failed": True,
        "reason": reason,
        "roi": "none",
        "rounds": 0,
        "windowed": False,
        **unknown,
        **reference,
    }


def result_file(folder: Path, case: Case, setting: str, checkpoint: str) -> Path:
    return folder / "probabilities" / case.center / f"{case.name}__{setting}__{checkpoint}.npz"


def save_result(path: Path, result: StageResult) -> None:
    """Write a stage's answer: levels cropped to where they are not zero, with everything needed to rebuild it."""
    import io

    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        levels=result.levels,
        lo=np.array(result.box.lo),
        shape=np.array(result.shape),
        stage=np.array(result.stage),
        roi=np.array(result.roi),
        rounds=np.array(result.rounds),
        windowed=np.array(result.windowed),
    )
    write_bytes(path, buffer.getvalue())


def load_result(path: Path) -> StageResult:
    """What :func:`save_result` wrote. Raises DgbenchError when the file is missing, damaged or foreign."""
    if not path.is_file():
        raise DgbenchError(f"{path} is missing — delete {path.parents[2]} and run again")
    try:
        data = read_arrays(path)
        lo = tuple(int(value) for value in data["lo"])
        hi = tuple(low + length for low, length in zip(lo, data["levels"].shape, strict=True))
        shape = tuple(int(value) for value in data["shape"])
        return StageResult(
            str(data["stage"]),
            data["levels"],
            Box(lo, hi),
            shape,
            str(data["roi"]),
            int(data["rounds"]),
            bool(data["windowed"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DgbenchError(
            f"{path}: not readable probabilities ({error}) — delete {path.parents[2]} and run again"
        ) from error


def load_shared(job: EvaluationJob, case: Case) -> dict[str, StageResult]:
    """The official predictions (source-val checkpoint) of the shared stages for ``case``, in order of inference; none without shared
    stages."""
    if job.shared is None:
        return {}
    stages = job.resolved.protocol.stages
    shared = job.resolved.protocol.shared_stages
    return {name: load_result(result_file(job.shared, case, stages[name].code, "source-val")) for name in shared}


def _compile(job: EvaluationJob, parts: Path) -> None:
    """All parts into one file per table, with a fixed order of rows."""
    import pandas as pd

    content = [read_json(path) for path in sorted(part_file(parts, case) for case in job.cases)]
    for name, keys in TABLES.items():
        frame = pd.DataFrame([row for part in content for row in part[name]])
        frame = frame.astype({column: float for column in UNDEFINABLE if column in frame})
        if len(frame):
            frame = frame.sort_values(keys, kind="stable").reset_index(drop=True)
        write_bytes(job.folder / f"{name}.parquet", frame.to_parquet(index=False))
    sum_up_evaluation(job.folder)


def clear_parts(job: EvaluationJob) -> None:
    """Remove the rows kept for going on after an interruption, once everything is written."""
    shutil.rmtree(job.folder / PARTS)
