"""What a record cost: its networks are those of its trainings, and its times such as a clock gives."""

import math

from dgbench.atomic import read_json
from dgbench.errors import DgbenchError
from dgbench.leaderboard.checked_rows import read_checked
from dgbench.leaderboard.costs import read_run_cost
from dgbench.store.folder import RunFolder
from dgbench.store.foreign import read_table
from dgbench.store.manifest import environment_of
from dgbench.store.times import EVALUATION_LOG
from dgbench.verification.record import Record


def check_cost(record: Record) -> None:
    """Raise DgbenchError where the cost, the environment or a time of a record cannot be read or cannot be; an imported prediction set has
    none."""
    read_run_cost(RunFolder(record.root, record.path, record.spec), read_checked(record.path / "evaluation"))
    if record.spec.method.imported:
        return
    path = record.path / "cost.json"
    try:
        counted = read_json(path)
        for name in record.own:
            stated = counted["table-vi"]["stages"][name]["params"]
            trained = read_json(record.stage(name) / "result.json")["parameters"]
            if not stated == trained > 0:
                raise DgbenchError(f"{path}: {stated} parameters in {name}, its result.json has {trained}")
        for convention, whole in counted.items():
            for what in ("params", "gflops"):
                if not math.isclose(whole[what], math.fsum(stage[what] for stage in whole["stages"].values())):
                    raise DgbenchError(f"{path}: {what} of {convention} are not the sum of its stages")
        path = record.path / "env.json"
        torch, ran = environment_of(record.path)["packages"]["torch"], record.spec.environment.torch
        if torch.split(".")[:2] != ran.split("."):
            raise DgbenchError(f"{path}: torch {torch}, spec.json has {ran}")
        path = record.path / "evaluation" / EVALUATION_LOG
        times = read_table(path)
        seconds = (
            [*times["seconds"], *(time for rounds in times["round_seconds"] for time in rounds)] if len(times) else []
        )
        if wrong := [time for time in seconds if not 0 <= time < math.inf]:
            raise DgbenchError(f"{path}: a time of {wrong[0]} s — submit the run again")
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        raise DgbenchError(f"{path}: a field is missing or of another kind ({error}) — submit the run again") from None
