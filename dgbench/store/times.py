"""How long a run took: the logs of its stages and its evaluation, and what they come to.

A stage logs a line for every few steps, an evaluation a row for every case, setting and checkpoint. When they are complete, what they come
to is written beside them (``times.json``), so that a leaderboard of thousands of runs need not read every line. A folder without it (a
record, a run of an older version) is read from its logs, with the same numbers.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from dgbench.atomic import read_json, read_jsonl, write_json
from dgbench.errors import DgbenchError
from dgbench.frozen import Frozen, one_line
from dgbench.store.cases import OFFICIAL_SETTING, read_case_table
from dgbench.store.foreign import read_arrow, rows_where, texts_of, told_as_value_error

if TYPE_CHECKING:
    import pyarrow as pa

STAGE_LOG, EVALUATION_LOG = "times.jsonl", "times.parquet"
SUMMARY = "times.json"
Amount = Annotated[float, Field(ge=0)]
Time = TypeVar("Time", bound=Frozen)


class StageTime(Frozen):
    """Seconds of a training: up to the end of its last step (``seconds``: steps, loading, logging, validations and saves, not the last
    validation and save, after it), and ``steps`` times the median step, in which pauses of the machine do not count (``step_seconds``)."""

    seconds: Amount
    step_seconds: Amount


class EvaluationTime(Frozen):
    """Seconds of the chain `Seg` with the official checkpoint: mean over held-out cases (``per_case``, all stages), and over the rounds of
    the last stage (``per_round``). None where no such time was taken."""

    per_case: Amount | None
    per_round: Amount | None


def has_times(stages: Iterable[Path], evaluation: Path) -> bool:
    """Whether the folders of a run's stages and of its evaluation tell how long they took."""
    logs = [(stage, STAGE_LOG) for stage in stages]
    return all(
        (folder / SUMMARY).is_file() or (folder / log).is_file()
        for folder, log in (*logs, (evaluation, EVALUATION_LOG))
    )


def stage_time(stage: Path) -> StageTime:
    """How long the training in the folder ``stage`` took.

    Raises:
        DgbenchError, ValueError: it cannot be read.
    """
    return _summary(stage, StageTime) or _of_steps(stage)


def evaluation_time(evaluation: Path, cases: "pa.Table") -> EvaluationTime:
    """How long the evaluation in that folder took; ``cases`` are its rows with ``case`` and ``role`` coded as dictionaries.

    Raises:
        DgbenchError, OSError, ValueError: it cannot be read.
    """
    return _summary(evaluation, EvaluationTime) or _of_cases(evaluation, cases)


def sum_up_stage(stage: Path) -> None:
    """Write what the log of a finished training comes to; nothing where somebody removed it. Raises DgbenchError where it is damaged."""
    log = stage / STAGE_LOG
    if not (log.is_file() and log.stat().st_size):
        return
    try:
        time = _of_steps(stage)
    except ValueError as error:
        raise DgbenchError(f"{stage}: {error} — damaged, remove this folder and run again") from error
    write_json(stage / SUMMARY, time.model_dump())


def sum_up_evaluation(evaluation: Path) -> None:
    """Write what the times of a finished evaluation come to."""
    cases = read_case_table(evaluation, ("case", "role"), coded=("case", "role"))
    write_json(evaluation / SUMMARY, _of_cases(evaluation, cases).model_dump())


def _summary(folder: Path, time: type[Time]) -> Time | None:
    path = folder / SUMMARY
    if not path.is_file():
        return None
    return _checked(time, read_json(path), f"{folder.name}/{SUMMARY}", " — remove it: its log is read then")


def _checked(time: type[Time], values: Mapping[str, Any], where: str, advice: str = "") -> Time:
    try:
        return time.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{where}: {one_line(error)}{advice}") from error


def _of_steps(stage: Path) -> StageTime:
    rows = read_jsonl(stage / STAGE_LOG)
    where = f"{stage.name}/{STAGE_LOG}"
    try:
        values = {
            "seconds": math.fsum(row["seconds"] for row in rows),
            "step_seconds": sum(row["steps"] for row in rows) * median(row["seconds"] / row["steps"] for row in rows),
        }
    except (LookupError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{where}: {type(error).__name__}: {error}") from error
    return _checked(StageTime, values, where)


def _of_cases(evaluation: Path, cases: "pa.Table") -> EvaluationTime:
    import numpy as np
    import pyarrow as pa
    from pyarrow import compute

    times = read_arrow(evaluation / EVALUATION_LOG, coded=("case", "setting", "checkpoint"))
    with told_as_value_error():
        if not len(times):  # every case failed: the table has no columns either
            return EvaluationTime(per_case=None, per_round=None)
        heldout = texts_of(cases, "case", rows_where(cases, "role", "held-out"))
        taken = rows_where(times, "setting", lambda name: name.endswith("-Seg"))
        taken &= rows_where(times, "checkpoint", "source-val") & rows_where(times, "case", heldout.__contains__)
        if not taken.any():
            return EvaluationTime(per_case=None, per_round=None)
        final = times["round_seconds"].filter(pa.array(taken & rows_where(times, "setting", OFFICIAL_SETTING)))
        values = {
            "per_case": float(np.sum(times["seconds"].to_numpy()[taken])) / len(texts_of(times, "case", taken)),
            "per_round": compute.mean(compute.list_flatten(final)).as_py(),
        }
        return _checked(EvaluationTime, values, f"{evaluation.name}/{EVALUATION_LOG}")
