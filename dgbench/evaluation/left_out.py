"""What a training without one source center is worth there: leave-one-source-out selection (protocol.md §8)."""

from collections.abc import Callable

import torch

from dgbench.atomic import write_json
from dgbench.data.case import Case
from dgbench.data.guard import guarding
from dgbench.data.preparation import prepare_cases
from dgbench.errors import DgbenchError
from dgbench.evaluation.job import load_trained
from dgbench.store.study import LEFT_OUT
from dgbench.training.job import TrainJob
from dgbench.training.process import seal_others, set_up_torch
from dgbench.training.selection import center_mean
from dgbench.training.validation import stage_predictor, validate


def judge_left_out(job: TrainJob, cases: tuple[Case, ...], report: Callable[[int, int], None]) -> None:
    """Write ``left-out.json`` of a finished training: the Dice (0..1) of each of ``cases``, of the source center that it went without, in
    its label ROI, by the checkpoint that source validation selected, and their mean. No other case, prepared or not, and nothing that other
    runs keep can be opened meanwhile.

    Raises:
        DgbenchError: no case defines a Dice (reference and prediction are empty in all), or the checkpoint is not of this training.
    """
    set_up_torch(job)
    device = torch.device(job.device)
    with guarding(frozenset(case.id for case in cases), job.centers):
        prepared = list(prepare_cases(cases, job.resolved.protocol, job.cache).values())
        seal_others(job, prepared)
        method = load_trained(job, "source-val", device)
        predictor = stage_predictor(method, job.stage, job.resolved, device, job.precision, tta=False)
        scores: list[float] = []
        for case in prepared:
            scores += validate([case], job.stage, predictor, job.resolved)
            report(len(scores), len(prepared))
    mean = center_mean(scores, [case.center for case in cases])
    if mean != mean:
        raise DgbenchError(
            f"{job.stage}: no case of {cases[0].center} gave a Dice, so that nothing can be selected by it — use --selection source-val"
        )
    rows = {case.id: score if score == score else None for case, score in zip(cases, scores, strict=True)}
    write_json(job.folder / LEFT_OUT, {"key": job.key, "dsc": mean, "cases": rows})
