"""What a finished evaluation leaves to look at: the cost of the method and an overlay of its best, median and worst held-out case."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dgbench.data.case import Case
from dgbench.data.preparation import FULL_SCALE, prepare_case
from dgbench.evaluation.cost import Convention, Cost, count_cost
from dgbench.evaluation.job import EvaluationJob, load_result, load_shared, result_file
from dgbench.evaluation.metrics import dice
from dgbench.inference.cascade import CHAIN_THRESHOLD
from dgbench.leaderboard.overlay import OverlayCase, draw_overlays
from dgbench.method import Method
from dgbench.store.atomic import write_json
from dgbench.training.job import TrainJob
from dgbench.training.loop import build_method

CONVENTIONS: tuple[Convention, ...] = ("table-vi", "macs", "flops")


def finish(job: EvaluationJob) -> None:
    """Write cost.json and, for a method under test, figures/overlay.png into the run folder."""
    folder = job.folder.parent
    write_json(folder / "cost.json", run_cost(job))
    shown = exemplary(job) if job.shared is not None else []
    if shown:
        protocol = job.resolved.protocol
        title = f"{job.info.name}, held-out {job.split.test[0].partition('/')[0]}: best, median and worst case (F-Seg)"
        draw_overlays(
            [overlay_case(job, case) for case in shown],
            folder / "figures" / "overlay.png",
            kind=protocol.kind,
            title=title,
        )


def exemplary(job: EvaluationJob) -> list[Case]:
    """The best, the median and the worst held-out case of the last stage's official rows; fewer where there are fewer cases."""
    import pandas as pd

    rows = pd.read_parquet(
        job.folder / "cases.parquet", columns=["case", "role", "setting", "checkpoint", "threshold", "dsc", "failed"]
    )
    last = job.setting(job.training[-1].stage, "Seg")
    official = (rows["role"] == "held-out") & (rows["setting"] == last) & (rows["checkpoint"] == "source-val")
    chosen = rows[official & ~rows["failed"] & rows["dsc"].notna() & (rows["threshold"] == CHAIN_THRESHOLD)]
    ordered = chosen.sort_values(["dsc", "case"], ascending=[False, True])["case"].tolist()
    cases = {case.id: case for case in job.cases}
    picks = dict.fromkeys(ordered[index] for index in (0, len(ordered) // 2, len(ordered) - 1)) if ordered else {}
    return [cases[case_id] for case_id in picks]


def overlay_case(job: EvaluationJob, case: Case) -> OverlayCase:
    """One row of the figure, on the task grid: reference, pancreas, coarse and fine tumor of the `Seg` chain."""
    assert job.shared is not None
    protocol = job.resolved.protocol
    prepared = prepare_case(case, protocol, job.training[0].cache)
    labels = np.asarray(prepared.label)
    pancreas = list(load_shared(job, case).values())[-1]
    tumor = [
        load_result(result_file(job.folder, case, job.setting(training.stage, "Seg"), "source-val"))
        for training in job.training
    ]
    coarse, fine = tumor[0], tumor[-1]
    masks = [result.mask(CHAIN_THRESHOLD, protocol.inference.component_fraction) for result in (pancreas, coarse, fine)]
    references = [np.isin(labels, protocol.stages[result.stage].target) for result in (pancreas, coarse, fine)]
    scores = [dice(reference, mask) for reference, mask in zip(references, masks, strict=True)]
    return OverlayCase.from_volumes(
        case.id,
        np.asarray(prepared.image)[0].astype(np.float32) / FULL_SCALE,
        {
            "reference_pancreas": references[0],
            "reference_tumor": references[-1],
            "pancreas": masks[0],
            "tumor_coarse": masks[1],
            "tumor_fine": masks[2],
        },
        prepared.spacing,
        dsc=dict(zip(("pancreas", "coarse", "fine"), scores, strict=True)),
        window=(0.0, 1.0),
    )


def run_cost(job: EvaluationJob) -> dict[str, dict[str, Any]]:
    """By convention: parameters and operations of the run's stages, each at its own crop and width, and their sum. ``table-vi`` counts the
    training network with all heads, as the paper does; the other conventions count what is deployed."""
    stages = {training.stage: stage_cost(training) for training in job.training}
    return {
        convention: {
            "params": sum(costs[convention]["params"] for costs in stages.values()),
            "gflops": sum(costs[convention]["gflops"] for costs in stages.values()),
            "stages": {stage: costs[convention] for stage, costs in stages.items()},
        }
        for convention in CONVENTIONS
    }


def stage_cost(training: TrainJob) -> dict[Convention, dict[str, Any]]:
    """One stage's parameters and operations (1e9) by convention, for one crop."""
    method = meta_method(training)
    shape = (1, training.resolved.protocol.task.in_channels, *training.resolved.preset.stages[training.stage].crop)
    whole = count_cost(method, shape, convention="table-vi")
    method.deploy()
    deployed = count_cost(method, shape, convention="macs", call=_predict)
    doubled = replace(deployed, gflops=2 * deployed.gflops)
    costs: dict[Convention, Cost] = {"table-vi": whole, "macs": deployed, "flops": doubled}
    return {name: {"params": c.params, "gflops": c.gflops, "input": list(shape)} for name, c in costs.items()}


def meta_method(training: TrainJob) -> Method[Any]:
    """The method of a training job on the ``meta`` device: shapes without numbers."""
    return build_method(replace(training, device="cpu"), torch.device("meta"))


def _predict(method: Any, image: torch.Tensor) -> Any:
    return method.predict(image)
