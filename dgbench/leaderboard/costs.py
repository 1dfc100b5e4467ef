"""What runs cost: parameters and operations of the networks of the method under test, seconds per case and of training.

Times are those of the runs themselves, on whatever else the machine did: they tell methods of one table apart roughly. Two times are
compared only where processor (or GPU and driver), number of devices, precision, threads and torch are the same.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from dgbench.atomic import read_json
from dgbench.errors import DgbenchError
from dgbench.store.folder import RunFolder
from dgbench.store.foreign import told_as_value_error
from dgbench.store.times import evaluation_time, has_times, stage_time

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """One run's own stages together. ``params`` and ``gflops`` by the convention of the paper's Table VI (training network, all heads),
    ``deployed_params`` and ``deployed_gmacs`` of what predicts; ``seconds_per_case`` is the mean over held-out cases, chain `Seg`,
    official checkpoint, ``seconds_per_round`` that over the rounds of the last stage alone; ``train_seconds`` includes loading, logging and
    the validations and saves before the last step, not those after it, ``step_seconds`` is the number of steps times the median step, in
    which pauses of the machine do not count. ``machine`` names what times depend on."""

    params: int
    gflops: float
    deployed_params: int
    deployed_gmacs: float
    seconds_per_case: float | None
    seconds_per_round: float | None
    train_seconds: float
    step_seconds: float
    machine: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RowCost:
    """The cost of a row. ``params`` are those of any of its runs, operations means over runs. Times are of the runs on one machine, the
    same for all rows of a table (``timed_on``): means over held-out centers of the means over seeds; None unless there is one for each.
    ``train_factor`` is the median over (center, seed) of its ``step_seconds`` relative to the baseline's on the same machine, whichever
    that is, and ``factor_range`` the least and the greatest; None without such a pair. ``machines`` lists where the runs were made."""

    params: int
    gflops: float
    deployed_params: int
    deployed_gmacs: float
    seconds_per_case: float | None
    seconds_per_round: float | None
    train_seconds: float | None
    train_factor: float | None
    factor_range: tuple[float, float] | None
    timed_on: str | None
    machines: tuple[str, ...]

    @property
    def factor_text(self) -> str | None:
        """The factor, and its range where that is one."""
        if self.train_factor is None or self.factor_range is None:
            return None
        low, high = (f"{bound:.2f}" for bound in self.factor_range)
        return f"{self.train_factor:.2f}" + ("" if low == high else f" ({low}–{high})")


def read_run_cost(run: RunFolder, cases: "pa.Table") -> RunCost | None:
    """The cost of a finished run with these rows (:func:`dgbench.leaderboard.checked_rows.read_checked`); None where it lacks a file of it
    (an imported prediction set has no networks).

    Raises:
        DgbenchError: a file is there and cannot be read.
    """
    counts, environment_file = run.path / "cost.json", run.path / "env.json"
    stages = [run.stage_folder(stage) for stage in run.own_stages]
    if not (counts.is_file() and environment_file.is_file() and has_times(stages, run.evaluation)):
        return None
    counted, environment = read_json(counts), read_json(environment_file)
    try:
        with told_as_value_error():
            trained, judged = [stage_time(stage) for stage in stages], evaluation_time(run.evaluation, cases)
            whole, deployed = counted["table-vi"], counted["macs"]
            ran = run.spec.environment
            rounded = (ran.device, ran.precision, environment.get("bf16_instructions")) == ("cpu", "bf16", False)
            cost = RunCost(
                params=int(whole["params"]),
                gflops=float(whole["gflops"]),
                deployed_params=int(deployed["params"]),
                deployed_gmacs=float(deployed["gflops"]),
                seconds_per_case=judged.per_case,
                seconds_per_round=judged.per_round,
                train_seconds=math.fsum(time.seconds for time in trained),
                step_seconds=math.fsum(time.step_seconds for time in trained),
                machine=(
                    *_processor(ran.device, environment),
                    f"{ran.precision} without instructions" if rounded else ran.precision,
                    f"{ran.threads} thread{'s' if ran.threads > 1 else ''}",
                    f"torch {ran.torch}",
                    *((f"{ran.devices} devices",) if ran.devices > 1 else ()),
                ),
            )
            if not all(0 <= value < math.inf for value in vars(cost).values() if isinstance(value, int | float)):
                raise ValueError("a number that is negative or not finite")
            return cost
    except (OSError, ValueError) as error:
        raise DgbenchError(f"{run.path}: its cost cannot be read ({' '.join(str(error).split())})") from error


def _processor(device: str, environment: Mapping[str, Any]) -> tuple[str, ...]:
    """What computed, as ``env.json`` tells; runs from before it told the GPU are compared with each other alone."""
    if device == "cpu":
        return (str(environment["processor"]),)
    gpu, driver = environment.get("gpu"), environment.get("driver")
    return (str(gpu), f"driver {driver}") if gpu and driver else (f"{device} (unknown GPU)",)


def common_machine(rows: Iterable[Mapping[tuple[str, int], RunCost]]) -> tuple[str, ...] | None:
    """The machine that most rows have runs on, of equals that with the most runs; None without any."""
    counts = [Counter(cost.machine for cost in costs.values()) for costs in rows]
    machines = sorted({machine for count in counts for machine in count})
    return max(
        machines, key=lambda machine: (sum(machine in c for c in counts), sum(c[machine] for c in counts)), default=None
    )


def mixed_cells(rows: Iterable[Mapping[tuple[str, int], RunCost]]) -> list[tuple[str, int]]:
    """The (held-out center, seed) whose runs of several rows are not of one machine, in order."""
    machines: dict[tuple[str, int], set[tuple[str, ...]]] = {}
    for costs in rows:
        for cell, cost in costs.items():
            machines.setdefault(cell, set()).add(cost.machine)
    return sorted(cell for cell, found in machines.items() if len(found) > 1)


def row_cost(
    costs: Mapping[tuple[str, int], RunCost],
    baseline: Mapping[tuple[str, int], RunCost] | None,
    machine: tuple[str, ...] | None,
    heldouts: Collection[str],
) -> RowCost | None:
    """The cost of a row from those of its runs by (held-out center, seed), relative to the runs of ``baseline``, with times of the runs on
    ``machine`` at all ``heldouts``; None without any run."""
    if not costs:
        return None
    every = list(costs.values())
    timed = [[cost for (at, _), cost in costs.items() if at == name and cost.machine == machine] for name in heldouts]
    factors = [
        cost.step_seconds / baseline[cell].step_seconds
        for cell, cost in costs.items()
        if baseline and cell in baseline and baseline[cell].machine == cost.machine and baseline[cell].step_seconds
    ]
    return RowCost(
        params=every[0].params,
        gflops=fmean(cost.gflops for cost in every),
        deployed_params=every[0].deployed_params,
        deployed_gmacs=fmean(cost.deployed_gmacs for cost in every),
        seconds_per_case=_over_centers([[cost.seconds_per_case for cost in runs] for runs in timed]),
        seconds_per_round=_over_centers([[cost.seconds_per_round for cost in runs] for runs in timed]),
        train_seconds=_over_centers([[cost.train_seconds for cost in runs] for runs in timed]),
        train_factor=median(factors) if factors else None,
        factor_range=(min(factors), max(factors)) if factors else None,
        timed_on=None if machine is None else ", ".join(machine),
        machines=tuple(sorted({", ".join(cost.machine) for cost in every})),
    )


def _over_centers(values: Iterable[Iterable[float | None]]) -> float | None:
    """The mean over centers of the means of what is known; None where a center knows nothing: centers take different times."""
    known = [[value for value in center if value is not None] for center in values]
    return fmean(map(fmean, known)) if known and all(known) else None
