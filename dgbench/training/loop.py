"""The step loop: one stage of one run, resumable to the byte at any step (protocol.md §3).

Nothing that influences a step survives in memory alone: batches, augmentation, dropout and method randomness are functions of (seed, step);
weights, optimiser states and method memories are in the checkpoint; log lines after the checkpoint are dropped when it is resumed.
On several devices each rank runs this loop on batches of its own; rank 0 validates and writes.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from statistics import fmean
from traceback import clear_frames
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from dgbench.atomic import append_jsonl, sync_file, truncate_jsonl, write_json
from dgbench.data.augmentation import strengthened
from dgbench.data.guard import guarding
from dgbench.data.preparation import PreparedCase, prepare_cases
from dgbench.data.sampling import CropDataset, check_sampling
from dgbench.data.splits import center_of
from dgbench.errors import DgbenchError, Diverged, Interrupted
from dgbench.method import Batch, Method, ValidationRow
from dgbench.seeds import derive_seed
from dgbench.store.checkpoint_file import (
    flatten_state,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
    unflatten_state,
)
from dgbench.store.times import sum_up_stage
from dgbench.training.build import method_of
from dgbench.training.distributed import Ranks, check_agreement
from dgbench.training.interrupt import StopRequest, stop_requests
from dgbench.training.job import TrainJob
from dgbench.training.process import seal_others, set_up_torch
from dgbench.training.selection import center_mean, validation_steps
from dgbench.training.step import AdamMaker, TrainingContext, run_step
from dgbench.training.validation import stage_predictor, validate

LOG_EVERY = 20
PREPARING = "preparing cases"
"""What is reported while no step has been done yet."""
WORKER_DIED = "DataLoader worker"
"""How torch begins to say that a worker of the loader is no longer alive."""
LOGS = ("steps", "validation", "times")


class Report(Protocol):
    """Receives progress: units done, units in all, and a short text."""

    def __call__(self, done: int, total: int, text: str = "") -> None: ...


@dataclass
class TrainingState:
    """What a checkpoint holds besides tensors: steps done, and the best source validation so far."""

    step: int = 0
    best_step: int | None = None
    best_dsc: float = float("-inf")


@dataclass
class StageTraining:
    """A stage in memory: method, optimisers, data, log buffers."""

    job: TrainJob
    method: Method[Any]
    optimizers: list[Optimizer]
    device: torch.device
    train_cases: list[PreparedCase]
    validation_cases: list[PreparedCase]
    ranks: Ranks
    state: TrainingState = field(default_factory=TrainingState)
    pending: list[dict[str, Any]] = field(default_factory=list)
    clock: float = field(default_factory=time.monotonic)


def train(job: TrainJob, report: Report, ranks: Ranks | None = None) -> None:
    """Train ``job`` to its end, from its last checkpoint if it has one; the folder then holds best, last, logs and result.json. ``ranks``
    of a job on several devices: who this one is.

    Raises DgbenchError for a loss that is not finite, a checkpoint of another job, or devices that do not agree; Interrupted after a stop
    signal to any of them (state saved).
    """
    ranks = ranks or Ranks()
    set_up_torch(job, ranks.size)
    allowed = frozenset(job.split.train + job.split.validation)
    with guarding(allowed, job.centers), stop_requests() as stop:
        training = _build(job, report, ranks)
        _resume(training, report)
        with _dead_workers_named(job):
            _run(training, stop, report)
        _finish(training)


@contextmanager
def _dead_workers_named(job: TrainJob) -> Iterator[None]:
    """Where a worker of the loader was killed, torch says so from a signal handler, wherever the training is then."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(WORKER_DIED):
            raise
        clear_frames(error.__traceback__)  # they hold the loader, whose other workers would outlive this training
        raise DgbenchError(
            f"{job.stage}: a loader worker was killed ({' '.join(str(error).split())}) — the system ran out of memory, probably: lower "
            "preset.workers, or run fewer jobs side by side"
        ) from None


def _build(job: TrainJob, report: Report, ranks: Ranks) -> StageTraining:
    device = (
        torch.device(job.device, ranks.rank) if ranks.size > 1 and job.device == "cuda" else torch.device(job.device)
    )
    if not ranks.leads:
        ranks.gather(None)  # wait for what rank 0 prepares
    prepared = _prepare(job, report)
    if ranks.leads:
        ranks.gather(None)
    seal_others(job, prepared.values())
    method = method_of(job, device)
    make = AdamMaker(job.resolved.preset.stages[job.stage].lr, job.resolved.weight_decay(job.stage))
    optimizers = list(method.configure_optimizers(make))
    return StageTraining(
        job,
        method,
        optimizers,
        device,
        [prepared[case_id] for case_id in job.split.train],
        [prepared[case_id] for case_id in job.split.validation],
        ranks,
    )


def _prepare(job: TrainJob, report: Report) -> dict[str, PreparedCase]:
    cases = {case.id: case for case in job.cases}
    wanted = [cases[case_id] for case_id in (*job.split.train, *job.split.validation)]
    return prepare_cases(
        wanted, job.resolved.protocol, job.cache, lambda case_id, done, total: report(done, total, PREPARING)
    )


def _run(training: StageTraining, stop: StopRequest, report: Report) -> None:
    job, method, state, ranks = training.job, training.method, training.state, training.ranks
    total = job.steps
    validations = validation_steps(total, job.resolved.preset.validations)
    for step, batch in _batches(training, state.step, total):
        torch.manual_seed(derive_seed(job.seed, "step", job.stage, ranks.micro_step(step)))
        phase, factor, losses = run_step(
            method,
            batch,
            TrainingContext(
                seed=derive_seed(job.seed, job.stage),
                step=step,
                total_steps=total,
                optimizers=training.optimizers,
                device=training.device,
                precision=job.precision,
                ranks=ranks,
            ),
        )
        training.pending.append({"step": step + 1, "phase": phase, "lr_factor": factor, **losses})
        state.step = step + 1
        validated = state.step in validations
        # read once: a signal that comes later waits for the next step
        stopped = next((name for name in ranks.gather(stop.signal_name) if name is not None), None)
        saving = validated or stopped is not None or state.step % job.resolved.preset.checkpoint_every == 0
        if saving or len(training.pending) >= LOG_EVERY:
            _flush(training)
        if saving:
            _check_weights(training)
            _check_ranks(training)
        if validated:
            _validate(training)
        if saving:
            _save(training)
        best = "" if state.best_step is None else f"source-val DSC {100 * state.best_dsc:.1f}"
        report(state.step, total, best)
        if stopped is not None and state.step < total:
            raise Interrupted(
                f"{job.stage}: stopped by {stopped} after step {state.step} of {total}; the same command goes on from there"
            )


def _batches(training: StageTraining, start: int, total: int) -> Iterator[tuple[int, Batch]]:
    job, ranks = training.job, training.ranks
    positions = {name: index for index, name in enumerate(job.split.sources)}
    k = job.resolved.cases_per_step(job.stage)
    plan = [training.method.sampling(step, total) for step in range(total)]
    for step, sampling in enumerate(plan):
        check_sampling(sampling, k, len(positions), f"{job.stage}: method {job.info.name}: sampling() at step {step}")
    dataset = CropDataset(
        cases=training.train_cases,
        domains=[positions[center_of(case_id)] for case_id in job.split.train],
        stage=job.resolved.protocol.stages[job.stage],
        crop=job.resolved.preset.stages[job.stage].crop,
        k=k,
        seed=derive_seed(job.seed, job.stage),
        augmentation=strengthened(
            job.resolved.protocol.augmentation, job.resolved.preset.stages[job.stage].augmentation
        ),
        plan=[sampling for sampling in plan for _ in range(ranks.size)],
        donors="donor" in job.info.needs,
    )
    steps = range(ranks.micro_step(start), total * ranks.size, ranks.size)
    loader = crop_loader(dataset, steps, job.resolved.preset.workers, training.device)
    try:
        for step, tensors in zip(range(start, total), loader, strict=True):
            yield step, Batch(**tensors).to(training.device)
    except DgbenchError as error:  # a loader worker's comes wrapped in its trace, with our line last
        clear_frames(error.__traceback__)  # they hold the loader, whose workers would outlive this training
        *trace, line = str(error).strip().splitlines()
        raise type(error)(line.partition(": ")[2] if trace else line) from None


def crop_loader(
    dataset: CropDataset, steps: range, workers: int, device: torch.device
) -> DataLoader[dict[str, torch.Tensor]]:
    """The batches of ``steps`` of a dataset in order, made by ``workers`` processes (0: by this one) for ``device``."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        # a forked worker inherits the read guard; in a job's process the default is to spawn, and a spawned one would not
        multiprocessing_context="fork" if workers else None,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(0),
    )


def _validate(training: StageTraining) -> None:
    job, state, ranks = training.job, training.state, training.ranks
    scores: list[float] = []
    if ranks.leads:
        predictor = stage_predictor(training.method, job.stage, job.resolved, training.device, job.precision, tta=False)
        scores = validate(training.validation_cases, job.stage, predictor, job.resolved, ranks.beat)
    scores = ranks.gather(scores)[0]
    centers = [center_of(case_id) for case_id in job.split.validation]
    if ranks.leads:
        append_jsonl(
            job.folder / "validation.jsonl",
            *(
                {"step": state.step, "case": case_id, "center": center, "dsc": score if score == score else None}
                for case_id, center, score in zip(job.split.validation, centers, scores, strict=True)
            ),
        )
    training.method.on_validation(
        [ValidationRow(job.split.sources.index(center), score) for center, score in zip(centers, scores, strict=True)],
        state.step,
    )
    mean = center_mean(scores, centers)
    if mean > state.best_dsc:
        state.best_dsc, state.best_step = mean, state.step
        if not ranks.leads:
            return
        tensors, structure = flatten_state(training.method.state_dict())
        save_checkpoint(job.folder / "best", tensors, {"key": job.key, "step": state.step, "state": structure})


def _flush(training: StageTraining) -> None:
    """Write the buffered log lines; a loss that is not finite ends the run before it can reach a checkpoint."""
    own = [{name: _number(value) for name, value in row.items()} for row in training.pending]
    rows = [_mean_row(told) for told in zip(*training.ranks.gather(own), strict=True)]
    training.pending.clear()
    for row in rows:
        broken = [name for name, value in row.items() if isinstance(value, float) and not isfinite(value)]
        if broken:
            raise _diverged(training, f"{', '.join(broken)} is {row[broken[0]]} at step {row['step']}")
    if not training.ranks.leads:
        return
    append_jsonl(training.job.folder / "steps.jsonl", *rows)
    now = time.monotonic()
    if rows:
        seconds = {"step": rows[-1]["step"], "steps": len(rows), "seconds": round(now - training.clock, 6)}
        append_jsonl(training.job.folder / "times.jsonl", seconds)
    training.clock = now


def _mean_row(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A step's log line from those of all ranks: what is a float on any of them, as the mean over those that have it."""
    if len(told) == 1:
        return told[0]
    merged = {name: value for row in reversed(told) for name, value in row.items()}
    for name, value in merged.items():
        if isinstance(value, float):
            merged[name] = fmean(row[name] for row in told if name in row)
    return merged


def _check_ranks(training: StageTraining) -> None:
    """Copies that drifted apart are found before they are validated or saved."""
    if training.ranks.size > 1:
        job = training.job
        what = f"{job.stage}: after step {training.state.step} the state of method {job.info.name}"
        check_agreement(training.ranks, *flatten_state(training.method.state_dict()), what)


def _check_weights(training: StageTraining) -> None:
    """A finite loss can have a gradient that is not: weights are looked at before they are validated or saved."""
    finite = [parameter.isfinite().all() for parameter in training.method.parameters()]
    if not bool(torch.stack(finite).all()):
        raise _diverged(training, f"a weight is not finite after step {training.state.step}")


def _diverged(training: StageTraining, what: str) -> Diverged:
    kept = "the last good state is kept" if has_checkpoint(training.job.folder / "last") else "no state was saved yet"
    stage = training.job.stage
    return Diverged(f"{stage}: {what} — lower the learning rate (--set preset.stages.{stage}.lr=…); {kept}")


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, Tensor) else value


def _save(training: StageTraining) -> None:
    state = training.state
    if not training.ranks.leads:
        return
    content = {
        "method": training.method.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in training.optimizers],
    }
    tensors, structure = flatten_state(content)
    meta = {"key": training.job.key, "step": state.step, "best_step": state.best_step, "state": structure}
    meta["best_dsc"] = state.best_dsc if state.best_step is not None else None
    for name in LOGS:
        log = training.job.folder / f"{name}.jsonl"
        if log.exists():
            sync_file(log)  # no power cut may leave a checkpoint that is ahead of its log
    save_checkpoint(training.job.folder / "last", tensors, meta)


def _resume(training: StageTraining, report: Report) -> None:
    job, leads = training.job, training.ranks.leads
    if not has_checkpoint(job.folder / "last"):
        for name in LOGS if leads else ():
            truncate_jsonl(job.folder / f"{name}.jsonl", last=0)
        return
    loaded = load_checkpoint(job.folder / "last")
    if loaded.problem is not None:
        report(0, job.steps, f"going on from {loaded.file.name}: {loaded.problem}")
    tensors, meta = loaded.tensors, loaded.meta
    if (key := loaded.key) != job.key:
        raise DgbenchError(
            f"{job.folder}: the checkpoint belongs to another run ({key[:8]}, not {job.key[:8]}) — use --fresh to start over"
        )
    content = unflatten_state(tensors, meta["state"])
    training.method.load_state_dict(content["method"])
    for optimizer, saved in zip(training.optimizers, content["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    best = meta["best_dsc"]
    training.state = TrainingState(meta["step"], meta["best_step"], float("-inf") if best is None else best)
    if not leads:
        return
    kept = {name: truncate_jsonl(job.folder / f"{name}.jsonl", last=meta["step"]) for name in LOGS}
    if kept["steps"] != meta["step"]:
        raise DgbenchError(
            f"{job.folder / 'steps.jsonl'}: {kept['steps']} of {meta['step']} rows are left — use --fresh to start over"
        )


def _finish(training: StageTraining) -> None:
    job, state = training.job, training.state
    if state.best_step is None:
        raise DgbenchError(f"{job.stage}: no source-validation case gave a Dice, so no checkpoint could be selected")
    if not training.ranks.leads:
        return
    sum_up_stage(job.folder)
    write_json(
        job.folder / "result.json",
        {
            "steps": state.step,
            "draws": state.step * job.cases_per_step,
            "best_step": state.best_step,
            "best_dsc": state.best_dsc,
            "parameters": sum(parameter.numel() for parameter in training.method.parameters()),
        },
    )
